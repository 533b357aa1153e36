"""Watch a task: `python -m envs --task dmc_walker_walk_video_hard --out clip.mp4` films a random policy."""

import argparse
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import envs

SUFFIXES = (".mp4", ".gif")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = {key: getattr(args, key) for key in (*envs.SETTINGS, "seed", "action_repeat", "time_limit")}
    try:
        env = envs.make(args.task, size=tuple(args.size), **settings)
        returns = []
        frames = play(env, args.steps, args.episodes, args.seed, returns)
        count = write(args.out, (enlarge(frame, args.zoom) for frame in frames), args.fps)
        env.close()
    except (ValueError, FileNotFoundError, ImportError, RuntimeError) as error:
        sys.exit(f"python -m envs: {error}")
    ended = f", returns of its episodes: {' '.join(f'{r:.1f}' for r in returns)}" if returns else ""
    print(f"{args.out}: {count} frames{ended}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m envs", description=__doc__)
    parser.add_argument("--task", required=True, help="e.g. dmc_walker_walk, dmc_cup_catch_video, rms_push_cube")
    parser.add_argument("--out", required=True, type=Path, help="film to write, .mp4 or .gif")
    parser.add_argument("--steps", type=int, default=200, help="agent steps to film (default 200)")
    parser.add_argument("--episodes", type=int, default=None, help="whole episodes to film, in place of --steps")
    parser.add_argument("--fps", type=float, default=20, help="frames a second (default 20)")
    parser.add_argument("--zoom", type=int, default=4, help="pixels of the film for one of the agent's (default 4)")
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
        parser.error(f"--out {args.out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.absolute().parent}")
    for flag in ("steps", "episodes", "fps", "zoom"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            parser.error(f"--{flag} is {value}: expected a number above 0")
    maniskill = args.task.startswith("rms_")
    if args.action_repeat is None:
        args.action_repeat = 1 if maniskill else 2
    if args.time_limit is None:
        args.time_limit = 100 if maniskill else 1000
    return args


def play(env, steps: int, episodes: int | None, seed: int, returns: list[float]) -> Iterator[np.ndarray]:
    """Frames of a random policy over agent steps, or over whole episodes; their returns go into `returns`."""
    rng = np.random.default_rng(seed)
    step = 0
    while len(returns) < episodes if episodes else step < steps:
        yield env.reset()["image"]
        done, total = False, 0.0
        while not done and (episodes or step < steps):
            obs, reward, done, _ = env.step({"action": rng.uniform(-1, 1, env.action_space.shape)})
            total += reward
            step += 1
            yield obs["image"]
        if done:
            returns.append(total)


def enlarge(frame: np.ndarray, zoom: int) -> np.ndarray:
    return frame.repeat(zoom, axis=0).repeat(zoom, axis=1)


def write(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes (H, W, 3) uint8 frames as a film that browsers play (mp4: H.264 in yuv420p); returns their number."""
    if path.suffix.lower() == ".gif":
        import imageio

        frames = list(frames)
        imageio.mimsave(path, frames, duration=1000 / fps, loop=0)
        return len(frames)

    import imageio_ffmpeg

    writer, count = None, 0
    try:
        for frame in frames:
            height, width = frame.shape[:2]
            # yuv420p halves the colors' resolution: an odd side gets its last line twice
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if writer is None:
                options = {"codec": "libx264", "pix_fmt_out": "yuv420p", "macro_block_size": 2, "quality": 8}
                size = frame.shape[1::-1]
                writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, ffmpeg_log_level="error", **options)
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
            count += 1
    finally:
        if writer is not None:
            writer.close()
    return count


if __name__ == "__main__":
    main()
