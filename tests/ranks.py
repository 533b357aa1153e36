"""Numbers that must not depend on the number of processes: `[torchrun] tests/ranks.py FOLDER` saves them there."""

import sys
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import agents
import numpy as np
import torch

from run import distributed

UPDATES = 4
# A larger epsilon, as Adam amplifies rounding errors where a gradient is close to zero
SMOOTH = ("--opt_eps", "1e-3", "--ac_opt_eps", "1e-3", "--model_lr", "1e-2", "--actor_lr", "1e-2", "--value_lr", "1e-2")
SETTINGS = {
    "pixels": ("--augmentation", "affine", "shift", "intensity", "--aug_prob", "0.5", "--probe_decoder", "True"),
    "explore": ("--expl_behavior", "plan2explore", "--imag_gradient", "both", "--imag_gradient_mix", "0.3"),
    "one branch": ("--hybrid", "False", "--kl_free", "0.1"),
    "continuous": ("--dyn_discrete", "0", "--reward_head", "normal", "--value_head", "normal", "--mask_ratio", "0"),
    **{
        name: ("--configs", name, "--proto_count", "20", "--proto_size", "8", "--proto_freeze", "1")
        for name in ("repo", "r2dreamer", "infonce", "dreamerpro")
    },
}


class Draws:
    """Replaces torch's random numbers by draws for the rows of all ranks, of which each rank takes its own."""

    def __init__(self):
        self.calls = 0

    def draw(self, shape: tuple[int, ...], kind: str = "random") -> torch.Tensor:
        self.calls += 1
        rows, size = shape[0], distributed.size()
        whole = getattr(np.random.default_rng(self.calls), kind)((size * rows, *shape[1:]))
        return torch.from_numpy(whole[distributed.rank() * rows :][:rows]).float()

    def rand(self, *shape, device=None, dtype=None) -> torch.Tensor:
        return self.draw(shape[0] if isinstance(shape[0], tuple) else shape)

    def patch_torch(self):
        return mock.patch.multiple(
            torch,
            rand=self.rand,
            randn=lambda *shape, device: self.draw(shape, "standard_normal"),
            rand_like=lambda x: self.draw(x.shape),
            randn_like=lambda x: self.draw(x.shape, "standard_normal"),
            randint=lambda low, high, shape, device: (self.draw(shape) * (high - low) + low).floor(),
        )


def updates(flags: tuple[str, ...]) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A few updates, each on a new batch of four sequences, of which each rank has its share.

    Returns the metrics of each update, means over the ranks, and the agent's tensors before and after.
    """
    agent = agents.agent(*SMOOTH, *flags)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    count = 4 // distributed.size()
    mine = slice(distributed.rank() * count, (distributed.rank() + 1) * count)
    metrics, draws = [], Draws()
    for number in range(UPDATES):
        batch = agents.batch(size=4, seed=number)
        # the ranks' returns and rewards differ
        batch["reward"] = batch["reward"] * torch.tensor([0.1, 0.4, 0.7, 1.0])[:, None]
        with draws.patch_torch():
            found = agent.update({key: value[mine] for key, value in batch.items()})
        found = distributed.all_gather({key: value.item() for key, value in found.items()})
        metrics.append({key: float(np.mean([one[key] for one in found])) for key in found[0]})
    return metrics, before, agent.state_dict()


def errors() -> list[str]:
    """The errors that a rank sees: when all ranks raise one, and when only the last rank does."""
    seen = []
    for failing in (range(distributed.size()), [distributed.size() - 1]):
        try:
            with distributed.together(ValueError):
                if distributed.rank() in failing:
                    raise ValueError(f"of rank {distributed.rank()}")
                distributed.all_gather("something else")
        except ValueError as error:
            seen.append(str(error))
    return seen


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    distributed.start()
    found = {
        "updates": {name: updates(flags) for name, flags in SETTINGS.items()},
        "errors": errors(),
        "agreed": [distributed.any_rank(distributed.rank() == rank) for rank in range(3)],
    }
    torch.save(found, Path(sys.argv[1]) / f"{distributed.rank()}of{distributed.size()}.pt")
    distributed.stop()
