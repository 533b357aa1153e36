"""Records a task: `python -m envs --task dmc_walker_walk_video_hard --out clip.mp4` records a random policy."""

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import envs
from run import video

SUFFIXES = (".mp4", ".gif")
MAX_SIDE = 4096  # pixels of a video that every player can show


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = {key: getattr(args, key) for key in (*envs.SETTINGS, "seed", "action_repeat", "time_limit")}
    try:
        env = envs.make(args.task, size=tuple(args.size), **settings)
        returns = []
        frames = play(env, args.steps, args.episodes, args.seed, returns)
        count = video.write(args.out, (video.enlarge(frame, args.zoom) for frame in frames), args.fps)
        env.close()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"python -m envs: {error}", file=sys.stderr)
        sys.exit(2)
    ended = f", episode returns: {' '.join(f'{r:.1f}' for r in returns)}" if returns else ""
    print(f"{args.out}: {count} frames{ended}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m envs", description=__doc__)
    parser.add_argument(
        "--task", required=True, help="such as dmc_walker_walk, dmc_cup_catch_video, rms_push_cube, gym_CartPole-v1"
    )
    parser.add_argument("--out", required=True, type=Path, help="video to write, .mp4 or .gif")
    parser.add_argument("--steps", type=int, default=200, help="agent steps to record (default 200)")
    parser.add_argument("--episodes", type=int, default=None, help="whole episodes to record, instead of --steps")
    parser.add_argument("--fps", type=float, default=20, help="frames per second (default 20)")
    parser.add_argument("--zoom", type=int, default=4, help="size of the agent's pixels in the video (default 4)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="height and width of the agent's image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--action_repeat", type=int, help="default 2, for rms_* 1")
    parser.add_argument("--time_limit", type=int, help="environment steps of an episode; default 1000, for rms_* 100")
    defaults = inspect.signature(envs.make).parameters
    for key in envs.SETTINGS:
        default = defaults[key].default
        parser.add_argument(
            f"--{key}", type=type(default), default=default, help=f"see configs.yaml (default {default!r})"
        )
    args = parser.parse_args(argv)

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
    if args.zoom * max(args.size) > MAX_SIDE:
        size = " ".join(map(str, args.size))
        parser.error(f"--zoom is {args.zoom}, --size {size}: a side of the video would exceed {MAX_SIDE} pixels")
    maniskill = args.task.startswith("rms_")
    if args.action_repeat is None:
        args.action_repeat = 1 if maniskill else 2
    if args.time_limit is None:
        args.time_limit = 100 if maniskill else 1000
    return args


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
