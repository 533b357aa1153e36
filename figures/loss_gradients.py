"""What each loss asks of the world model: `python figures/loss_gradients.py RUN... [--checkpoint FILE] [--batches 8]`.

For each RUN, a --logdir with its replay, prints a Markdown table: the loss times its weight, the norm of its gradient
at the parameters of the encoder and of the dynamics, averaged over batches, and its share there: Adam divides the
gradient of each parameter by its size, so what counts is the size of one loss's gradient next to that of the sum, root
mean squares over batches; the table has the median over parameters. `dyn` and `rep` are the two
parts of the KL loss. The projection of `mbr`, which no other loss trains, is left out.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import models
from dreamer import make_agent
from run import checkpoint, collect, evaluate
from run.replay import Replay

PARTS = ("encoder", "dynamics")


def loss_gradients(model: models.WorldModel, batch: dict[str, Tensor]) -> dict[str, tuple[float, dict[str, Tensor]]]:
    """Of each loss with a weight: its weighted value, and its gradient at each of PARTS, flat.

    Args:
        batch: replay rows (B, T, ...).
    """
    data = models.preprocess(batch)
    params = {
        part: [p for name, p in getattr(model, part).named_parameters() if not name.startswith("projection")]
        for part in PARTS
    }
    losses, _, _ = model.losses(data, model.draw_mask(data))
    found = {}
    for name, loss in losses.items():
        scale = model.config[f"{name}_scale"]
        if not scale:
            continue
        loss, grads = scale * loss.mean(), {}
        for part in PARTS:
            found_here = torch.autograd.grad(loss, params[part], retain_graph=True, materialize_grads=True)
            grads[part] = torch.cat([grad.flatten() for grad in found_here])
        found[name] = loss.item(), grads
    return found


def table(run: Path, path: Path, batches: int) -> str:
    """The table of a run's checkpoint; ValueError if there is no run, or no replay."""
    if not (run / "config.yaml").is_file() or not (run / "train_eps").is_dir():
        raise ValueError(f"{run} is not the folder of a run with its replay (config.yaml, train_eps)")
    config = evaluate.run_config([], run).replace(parallel=False, device="cpu", compile=False)
    with collect.make_train_envs(config) as group:
        agent = make_agent(config, group)
    step = checkpoint.put(checkpoint.load_checkpoint(path), agent, path)
    replay, rng = Replay(run / "train_eps", config.dataset_size), np.random.default_rng(0)
    if not replay.load():
        raise ValueError(f"{run / 'train_eps'} holds no finished episode")
    torch.manual_seed(0)
    norms: dict[str, list[list[float]]] = defaultdict(list)
    squares: dict[tuple[str, str], Tensor] = defaultdict(float)  # squared gradients at each part, summed over batches
    for _ in range(batches):
        rows = replay.sample(rng, config.batch_size, config.batch_length)
        batch = {key: torch.from_numpy(value) for key, value in rows.items()}
        found = loss_gradients(agent.world_model, batch)
        for name, (value, grads) in found.items():
            norms[name].append([value, *(grads[part].norm().item() for part in PARTS)])
            for part in PARTS:
                squares[name, part] += grads[part].square()
        for part in PARTS:
            squares["sum", part] += sum(grads[part] for _, grads in found.values()).square()
    lines = [f"{run}, step {step * config.action_repeat}", ""]
    lines += ["| loss | value | encoder | dynamics | share, encoder | share, dynamics |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, rows in norms.items():
        shares = [(squares[name, part] / squares["sum", part]).sqrt().nanmedian().item() for part in PARTS]
        lines.append(f"| {name} | " + " | ".join(f"{number:.2g}" for number in [*np.mean(rows, 0), *shares]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--checkpoint", type=Path, help="default: RUN/latest.pt")
    parser.add_argument("--batches", type=int, default=8)
    args = parser.parse_args()
    if args.batches < 1:
        parser.error("--batches: expected 1 or more")
    try:
        for run in args.runs:
            print(table(run, args.checkpoint or run / checkpoint.LATEST, args.batches))
    except (OSError, ValueError) as error:
        parser.exit(2, f"loss_gradients.py: {error}\n")


if __name__ == "__main__":
    main()
