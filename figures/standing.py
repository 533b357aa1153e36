"""Draws figures/standing.gif: agents side by side in the same evaluation episode, as they see it.

    python figures/standing.py [NAME=]RUN... [--out figures/standing.gif]

RUN is the folder of a run, or what setup/export_agent.py wrote. The figure in the repository is made by
`python figures/standing.py HRSSM=results/agent DreamerV3=results/agent_dreamerv3`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dreamer import make_agent
from run import checkpoint, collect, evaluate, runtime

ZOOM, GAP, LABEL = 2, 8, 18  # enlargement of the image; pixels between the agents, and above them for their names


def record(run: Path, seed: int, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) of an evaluation episode of a run's agent, and its return so far at each of them (T,)."""
    config = evaluate.run_config([], run).replace(parallel=False, device="cpu", seed=seed)
    runtime.seed_everything(seed, config.deterministic_run)
    with collect.make_envs(config, "eval_only", 1, True) as group:
        agent = make_agent(config, group)
        checkpoint.load_weights(run, agent)
        rewards, receive = [], group.receive

        def receive_and_note() -> list:
            transitions = receive()
            rewards.extend(transition.reward for transition in transitions)
            return transitions

        group.receive = receive_and_note
        _, (frames,), _ = evaluate.play(agent, group, 1, episode)
    return frames, np.concatenate([[0.0], np.cumsum(rewards)])


def draw(frames: list[np.ndarray], labels: list[str]) -> Image.Image:
    """One image of the agents' frames side by side, each enlarged, below its label."""
    height, width = (side * ZOOM for side in frames[0].shape[:2])
    canvas = Image.new("RGB", ((width + GAP) * len(frames) - GAP, height + LABEL), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left = number * (width + GAP)
        canvas.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC), (left, LABEL))
        pen.text((left, 2), label, fill="black", font=font)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".gif"), help="the GIF to write")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation (0)")
    parser.add_argument("--episode", type=int, default=0, help="which episode of the evaluation (0)")
    parser.add_argument("--steps", type=int, default=140, help="agent steps to show (140)")
    parser.add_argument("--colors", type=int, default=56, help="of the GIF (56)")
    args = parser.parse_args()
    shown = []
    try:
        for argument in args.runs:
            name, _, folder = argument.rpartition("=")
            shown.append((name or Path(folder).name, *record(Path(folder), args.seed, args.episode)))
    except (OSError, ValueError) as error:
        parser.exit(2, f"standing.py: {error}\n")
    images = []
    for step in range(min(args.steps + 1, *(len(frames) for _, frames, _ in shown))):
        labels = [f"{name}: {returns[step]:.0f}" for name, _, returns in shown]
        images.append(draw([frames[step] for _, frames, _ in shown], labels))
    palette = images[len(images) // 2].quantize(args.colors)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(args.out, save_all=True, append_images=images[1:], duration=80, loop=0, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB; returns of the whole episode:")
    for name, _, returns in shown:
        print(f"  {name} {returns[-1]:.0f}")


if __name__ == "__main__":
    main()
