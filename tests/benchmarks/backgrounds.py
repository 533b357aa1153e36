"""Cost of backgrounds, green screens and colors, in milliseconds and relative to the engine's own render.

python tests/benchmarks/backgrounds.py [--size 64 64] [--rounds 200]     generates its own videos
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from envs import distracted
from envs.dmc import DMC


def milliseconds(function, rounds: int) -> float:
    """Median over the rounds, after two warm-up calls."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[2:]))


def make_video(path: Path, frames: int = 200, size: int = 352) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (size, size))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (size, size)))
    writer.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="height and width of the frame")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    size = tuple(args.size)

    with tempfile.TemporaryDirectory() as assets:
        videos = [Path(assets) / "dmcgb" / mode / f"video{i}.mp4" for mode in distracted.VIDEOS for i in range(5)]
        for video in videos:
            make_video(video)
        start = time.perf_counter()
        distracted.load_videos("video_easy", size, assets)
        decode = time.perf_counter() - start
        start = time.perf_counter()
        distracted.load_videos("video_easy", size, assets)
        print(
            f"1000 frames of 352 x 352: decoded in {decode:.2f} s, from the cache {time.perf_counter() - start:.4f} s\n"
        )

        common = {"size": size, "assets": assets}
        envs = {
            "video": distracted.DistractedDMC("walker", "walk", resource_files=str(videos[0].parent), **common),
            **{m: distracted.DMCGS("walker", "walk", m, **common) for m in (*distracted.COLOR_STD, *distracted.VIDEOS)},
        }
        print(f"{'walker_walk':12} {'render':>8} {'mask and matting':>17} {'share':>7} {'per reset':>10}   (ms)")
        for mode, env in envs.items():
            env.reset()
            render = milliseconds(lambda: DMC.render(env), args.rounds // 4)  # noqa: B023
            frame = np.ascontiguousarray(DMC.render(env))
            matting = 0.0
            if mode == "video":
                source, mask = env._background, distracted.blue_mask
            elif "video" in mode:
                source, mask = env._video, distracted.green_mask
            if "video" in mode:
                matting = milliseconds(
                    lambda: distracted.replace(frame, mask(frame), source.next()),  # noqa: B023
                    args.rounds * 10,
                )
            reset = milliseconds(env.begin_episode, args.rounds // 10)
            print(f"{mode:12} {render:8.2f} {matting:17.3f} {matting / render:7.2%} {reset:10.2f}")
            env.close()


if __name__ == "__main__":
    main()
