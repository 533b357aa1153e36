"""Speed of the replay: adding rows, drawing and gathering batches, prefetching them, loading files.

    python tests/benchmarks/replay.py [--steps 200000] [--directory DIR]

The frames are random, the batches 16×64 rows of 64×64 images with a walker's action, as in dmc_vision. The
files, 12.4 KB per step, go to a temporary folder in DIR and are removed. Loading is measured with the files in the page
cache: a disk that reads more slowly than this sets the time.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from run.prefetch import Prefetcher
from run.replay import Replay


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def fill(replay: Replay, steps: int, envs: int = 4, length: int = 500) -> float:
    """Plays episodes of random frames into the replay; returns the seconds that add() took."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (64, 64, 64, 3), np.uint8)
    actions = rng.uniform(-1, 1, (64, 6)).astype(np.float32)
    seconds, episode = 0.0, 0
    while replay.total_steps < steps:
        for t in range(length + 1):
            row = {
                "image": frames[(7 * episode + t) % 64],
                "action": actions[t % 64],
                "reward": np.float32(t % 3),
                "is_first": t == 0,
                "is_terminal": False,
            }
            start = time.perf_counter()
            for env in range(envs):
                replay.add(env, row, episode, t == length)
            seconds += time.perf_counter() - start
        episode += 1
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000, help="agent steps in the replay")
    parser.add_argument("--batches", type=int, default=300, help="batches of each measurement")
    parser.add_argument("--directory", default=None, help="folder for the files")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="replay-", dir=args.directory))
    rng = np.random.default_rng(1)
    try:
        before = resident()
        replay = Replay(directory, 2 * args.steps)
        seconds = fill(replay, args.steps)
        raw = replay.steps * (64 * 64 * 3 + 6 * 4 + 4 + 2)
        print(f"replay            {replay.steps} steps, {replay.episodes} episodes, {raw / 1e9:.2f} GB of raw rows")
        print(f"memory            {(resident() - before) / raw:.3f} x the raw bytes")
        print(f"add, with files   {1e6 * seconds / replay.steps:.0f} us a step, {replay.steps / seconds:.0f} steps/s")

        start = time.perf_counter()
        for _ in range(args.batches):
            replay.draw(rng, 16, 64)
        drawn = time.perf_counter() - start
        print(f"draw              {1e6 * drawn / args.batches:.0f} us a batch")

        start = time.perf_counter()
        for _ in range(args.batches):
            replay.gather(replay.draw(rng, 16, 64))
        taken = time.perf_counter() - start
        print(f"draw and gather   {args.batches / taken:.0f} batches/s of 16x64x64x64x3 (goal 100)")

        prefetcher = Prefetcher(replay, rng, 16, 64, depth=2)
        start = time.perf_counter()
        for _ in range(args.batches):
            prefetcher.prefetch()
            prefetcher.next()
        taken = time.perf_counter() - start
        prefetcher.close()
        print(f"prefetched        {args.batches / taken:.0f} batches/s")

        del replay, prefetcher
        again = Replay(directory, 2 * args.steps)
        start = time.perf_counter()
        steps = again.load()
        taken = time.perf_counter() - start
        print(f"load              {taken:.2f} s for {steps} steps, {taken / (raw / 1e9):.2f} s/GB")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
