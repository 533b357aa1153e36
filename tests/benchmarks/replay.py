"""Speed and memory of the replay: adding rows, drawing and gathering batches, prefetching them, resuming.

    python tests/benchmarks/replay.py [--steps 200000] [--directory DIR] [--before CODE]

The frames are random, the rows those of dmc_vision: 64×64 images with a walker's action. The files, 12.4 KB per step,
go to a temporary folder in DIR and are removed; they stay in the page cache if the memory allows, and a disk that reads
more slowly sets the time otherwise. With --before, the code in that folder is measured too, in a process of its own:
the two take turns, and the ratio is that of this code to it. Times are CPU times of all threads, which other processes
disturb less.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROW = {
    "image": ((64, 64, 3), np.dtype(np.uint8)),
    "action": ((6,), np.dtype(np.float32)),
    "reward": ((), np.dtype(np.float32)),
    "is_first": ((), np.dtype(bool)),
    "is_terminal": ((), np.dtype(bool)),
}
ROW_BYTES = 64 * 64 * 3 + 6 * 4 + 4 + 2


def private() -> int:
    """Bytes of memory that belong to this process alone: neither files nor libraries."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def fill(replay, steps: int, envs: int = 4, length: int = 500) -> float:
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
            start = time.process_time()
            for env in range(envs):
                replay.add(env, row, episode, t == length)
            seconds += time.process_time() - start
        episode += 1
    return seconds


def serve(steps: int, batches: int, directory: Path) -> None:
    """Makes the measurements that standard input names, prints a number for each."""
    from run.prefetch import Prefetcher
    from run.replay import Replay

    before, rng = private(), np.random.default_rng(1)
    replay = Replay(directory, 2 * steps, spec=ROW)
    seconds = fill(replay, steps)
    state = replay.state_dict()

    def resume() -> Replay:
        again = Replay(directory, 2 * steps, spec=ROW)
        again.load_state_dict(state)
        assert again.load() == replay.steps
        return again

    def gather(length: int, of: Replay = replay) -> None:
        of.gather(of.draw(rng, 16, length))

    def rate(take, count: int = batches) -> float:
        start = time.process_time()
        for _ in range(count):
            take()
        return count / (time.process_time() - start)

    def prefetch() -> None:
        prefetcher.prefetch()
        prefetcher.next()

    def first() -> float:
        again = resume()
        return 1000 / rate(lambda: gather(64, again), 1)

    for _ in range(batches):  # so that every file was read once
        gather(64)
    prefetcher = Prefetcher(replay, rng, 16, 64, depth=2)
    measures = {
        "add": lambda: 1e6 * seconds / replay.steps,
        "memory": lambda: (private() - before) / (replay.steps * ROW_BYTES),
        "16x64": lambda: rate(lambda: gather(64)),
        "16x16": lambda: rate(lambda: gather(16), 4 * batches),
        "prefetch": lambda: rate(prefetch),
        "load": lambda: 1000 / rate(resume, 1),
        "first": first,
    }
    for line in sys.stdin:
        print(measures[line.strip()](), flush=True)
    prefetcher.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000, help="agent steps in the replay")
    parser.add_argument("--batches", type=int, default=300, help="batches of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--directory", default=None, help="folder for the files")
    parser.add_argument("--before", default=None, help="folder of the code to compare with")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        sys.path[0], directory = args.serve
        serve(args.steps, args.batches, Path(directory))
        return
    folder = Path(tempfile.mkdtemp(prefix="replay-", dir=args.directory))
    print(f"{args.steps} steps, {args.steps * ROW_BYTES / 1e9:.2f} GB of raw rows")
    servers = []
    try:
        for number, code in enumerate([Path(__file__).parents[2], args.before][: 1 + bool(args.before)]):
            sizes = ["--steps", str(args.steps), "--batches", str(args.batches)]
            command = [sys.executable, __file__, *sizes, "--serve", str(code), str(folder / str(number))]
            servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for what, label, rounds in (
            ("add", "add, with files, us a step", 1),
            ("memory", "private memory, of the raw bytes", 1),
            ("16x64", "draw and gather, batches/s of 16x64", args.rounds),
            ("16x16", "draw and gather, batches/s of 16x16", args.rounds),
            ("prefetch", "prefetched, batches/s of 16x64", args.rounds),
            ("load", "resume, ms", args.rounds),
            ("first", "first batch after it, ms", args.rounds),
        ):
            found = [[] for _ in servers]
            for _ in range(rounds):
                for server, values in zip(servers, found, strict=True):
                    print(what, file=server.stdin, flush=True)
                    values.append(float(server.stdout.readline()))
            medians = [statistics.median(values) for values in found]
            ratio = f"  before {medians[1]:10.4g}  ratio {medians[0] / medians[1]:7.4f}" if args.before else ""
            print(f"{label:36}{medians[0]:10.4g}{ratio}", flush=True)
    finally:
        for server in servers:
            server.communicate()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
