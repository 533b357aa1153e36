"""Counts the GPU calls of an update and of an acting step, on a machine without a GPU (see build.sh).

    python tests/nogpu/count.py [--modes plain compiled captured] [--names N] [--SETTING VALUE ...]

The agent of `dmc_vision` (other flags are settings of dreamer.py) learns and acts on zeros: Python and
PyTorch run in full, kernels are compiled for an H100 and do nothing. Prints for each mode the kernels by origin, the
host's time, the time until it is ready, and the allocator's peak memory; --names adds the most frequent kernels. The
last call of each must not wait for the GPU: it fails if it does.
"""

import argparse
import collections
import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

import accel
import dreamer
from accel.graphs import GraphedFunction
from run.config import load_config

MODES = {
    "plain": accel.Backend(dtype=torch.bfloat16),
    "compiled": accel.Backend("compiled", dtype=torch.bfloat16),
    "captured": accel.Backend("compiled", capture=True, dtype=torch.bfloat16),
}
WARM_UP = GraphedFunction.WARM_UP + 1


def take_counts(library: ctypes.CDLL) -> collections.Counter:
    buffer = ctypes.create_string_buffer(1 << 24)
    library.nogpu_take_counts(buffer, len(buffer))
    rows = (line.split("\t", 1) for line in buffer.value.decode().splitlines())
    return collections.Counter({name: int(count) for count, name in rows})


def report(name: str, library: ctypes.CDLL, call, names: int) -> None:
    """Calls it until it is ready, then once more, counted and without waiting."""
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(WARM_UP):
        call()
    ready = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**20
    take_counts(library)
    library.nogpu_forbid_waiting(True)
    start = time.perf_counter()
    call()
    host = 1e3 * (time.perf_counter() - start)
    library.nogpu_forbid_waiting(False)
    counts = collections.Counter()
    for kernel, count in take_counts(library).items():
        if not kernel.startswith(("call:", "wait:")):
            counts[kernel] = count
    makers = collections.Counter()
    for kernel, count in counts.items():
        makers[kernel.split(":")[0]] += count
    parts = ", ".join(f"{maker} {count}" for maker, count in makers.most_common())
    print(f"{name}: {counts.total()} kernels and copies ({parts})")
    print(f"    host {host:.1f} ms; ready in {ready:.0f} s; peak {peak:.0f} MiB")
    for kernel, count in counts.most_common(names):
        print(f"    {count:5d} {kernel[:140]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--names", type=int, default=0, help="how many of the most frequent kernels to name")
    args, settings = parser.parse_known_args()
    library = ctypes.CDLL("libnogpu.so")
    config = load_config(["--configs", "dmc_vision", "--device", "cuda", *settings])
    batch, length = config.batch_size, config.batch_length
    data = {
        "image": torch.zeros(batch, length, *config.size, 3, dtype=torch.uint8),
        "action": torch.zeros(batch, length, 6),
        "reward": torch.zeros(batch, length),
        "is_first": torch.zeros(batch, length, dtype=torch.bool),
        "is_terminal": torch.zeros(batch, length, dtype=torch.bool),
    }
    data = {key: value.cuda() for key, value in data.items()}
    obs = {key: data[key][: config.envs, 0].contiguous() for key in ("image", "is_first")}
    for mode in args.modes:
        agent = dreamer.Dreamer(config, {"image": (*config.size, 3)}, 6)
        accel.install(agent, MODES[mode], lambda line: print(f"    {line}"))
        report(f"{mode} update", library, lambda agent=agent: agent.update(data), args.names)
        _, state = agent.act(obs, None, training=True)
        report(f"{mode} acting", library, lambda agent=agent, s=state: agent.act(obs, s, training=True), args.names)


if __name__ == "__main__":
    main()
