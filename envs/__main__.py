"""Records a task: `python envs --task dmc_walker_walk_video_hard --out clip.mp4` records a random policy."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if not __package__:  # `python envs`, which takes no modules from the caller's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import envs
from run import video
from run.config import Config, load_config

SUFFIXES = (".mp4", ".gif")
MAX_SIDE = 4096  # pixels of a video that every player can show


def main(argv: list[str] | None = None) -> None:
    args, config = parse(argv)
    try:
        env = envs.make(
            config.task, seed=config.seed, size=config.size, action_repeat=config.action_repeat,
            time_limit=config.time_limit, **{key: config[key] for key in envs.settings()},
        )  # fmt: skip
        returns = []
        frames = play(env, args.steps, args.episodes, config.seed, returns)
        count = video.write(args.out, (video.enlarge(frame, args.zoom) for frame in frames), args.fps)
        env.close()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"python envs: {error}", file=sys.stderr)
        sys.exit(2)
    ended = f", episode returns: {' '.join(f'{r:.1f}' for r in returns)}" if returns else ""
    print(f"{args.out}: {count} frames{ended}")


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, Config]:
    """The flags of a recording, and the settings: configs.yaml, --configs and the other flags, as in training."""
    parser = argparse.ArgumentParser(
        "python envs",
        description=__doc__,
        epilog="All other flags are settings of configs.yaml, such as --configs, --seed, --size, --img_source.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task", required=True, help="such as dmc_walker_walk, dmc_cup_catch_video, rms_push_cube, gym_CartPole-v1"
    )
    parser.add_argument("--out", required=True, type=Path, help="video to write, .mp4 or .gif")
    parser.add_argument("--steps", type=int, default=200, help="agent steps to record (default 200)")
    parser.add_argument("--episodes", type=int, default=None, help="whole episodes to record, instead of --steps")
    parser.add_argument("--fps", type=float, default=20, help="frames per second (default 20)")
    parser.add_argument("--zoom", type=int, default=4, help="size of the agent's pixels in the video (default 4)")
    args, others = parser.parse_known_args(argv)
    config = load_config(["--task", args.task, *others])

    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"--out {args.out}: expected a name ending in {' or '.join(SUFFIXES)}")
    if args.out.is_dir():
        parser.error(f"--out {args.out} is a folder: expected a file name")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: no such folder {args.out.absolute().parent}")
    for flag in ("steps", "episodes", "zoom"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            parser.error(f"--{flag} is {value}: expected a number above 0")
    if not 0.1 <= args.fps <= 1000:
        parser.error(f"--fps is {args.fps}: expected a number from 0.1 to 1000")
    if args.zoom * max(config.size) > MAX_SIDE:
        size = " ".join(map(str, config.size))
        parser.error(f"--zoom is {args.zoom}, --size {size}: a side of the video would exceed {MAX_SIDE} pixels")
    return args, config


def random_action(space, rng: np.random.Generator) -> np.ndarray:
    if hasattr(space, "n"):
        return np.eye(space.n, dtype=np.float32)[rng.integers(space.n)]
    return rng.uniform(-1, 1, space.shape)


def play(env, steps: int, episodes: int | None, seed: int, returns: list[float]) -> Iterator[np.ndarray]:
    """Frames of a random policy over agent steps, or over whole episodes; their returns go into `returns`."""
    rng = np.random.default_rng(seed)
    step = 0
    while len(returns) < episodes if episodes else step < steps:
        yield env.reset()["image"]
        done, total = False, 0.0
        while not done and (episodes or step < steps):
            obs, reward, done, _ = env.step({"action": random_action(env.action_space, rng)})
            total += reward
            step += 1
            yield obs["image"]
        if done:
            returns.append(total)


if __name__ == "__main__":
    main()
