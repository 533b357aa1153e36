"""Times one update of the agent: world model, imagination, actor, critic, their optimizer steps and EMA updates.

    python tests/benchmarks/update.py [--device cpu] [--precision 32 16] [--modes plain native compiled captured]
                                      [--repeats 7] [--profile] [--SETTING VALUE ...]

Walker frames from a real replay, batch 16×64, 6 actions by default; other flags are settings of dreamer.py. Modes:
plain PyTorch; native, with layers in C++ (CPU); layers compiled by PyTorch; captured, all of it in one CUDA graph
(GPU). By default those that `compile` may choose.
Prints for each the median, updates/s, achieved FLOP/s and their share of what a plain matrix product of the same type
reaches in the same run, and the time until it is ready; on a GPU also kernels per update and peak memory. --profile
adds the time of each part of an update and the slowest operations; for a captured one, the time by origin of kernels.
"""

import argparse
import contextlib
import functools
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import tools
from run import process
from run.config import Config, load_config

process.tune_allocator()

import numpy as np
import torch
from loop import timed
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import accel
import dreamer
import envs
import models
import networks
from accel.graphs import GraphedFunction
from run import runtime
from run.replay import Replay

TASK = "dmc_walker_walk"


def walker_batch(config: Config, device: torch.device) -> dict[str, torch.Tensor]:
    """Sequences of a random policy on the walker, through the replay."""
    env = envs.make(TASK, seed=0, size=tuple(config.size), time_limit=2 * config.batch_length * config.action_repeat)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(folder, 10**6)
        for episode in range(4):
            obs, action, reward, done = env.reset(), np.zeros(env.action_space.shape, np.float32), 0.0, False
            while True:
                row = {k: obs[k] for k in ("image", "is_first", "is_terminal")}
                replay.add(0, {**row, "action": action, "reward": np.float32(reward)}, episode, done)
                if done:
                    break
                action = rng.uniform(-1, 1, action.shape).astype(np.float32)
                obs, reward, done, _ = env.step({"action": action})
        batch = replay.gather(replay.draw(rng, config.batch_size, config.batch_length))
    env.close()
    return {k: torch.from_numpy(v).to(device) for k, v in batch.items()}


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions, forward and backward."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class Product:
    """A plain square matrix product."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        n = 8192 if device.type == "cuda" else 2048
        self.factors, self.flops = torch.randn(2, n, n, device=device).to(dtype), 2 * n**3

    def __call__(self) -> None:
        torch.mm(*self.factors)


def gpu_events(run) -> list[tuple[str, float]]:
    """Name and microseconds of all that the GPU does in one call."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    return [(e.name, e.time_range.elapsed_us()) for e in trace.events() if e.device_type.name == "CUDA"]


def kernels(run) -> int:
    """GPU kernels of one call."""
    return sum(not name.startswith(("Memcpy", "Memset")) for name, _ in gpu_events(run))


ORIGINS = {  # the first that matches a kernel's name
    "Triton": "^triton",
    "convolutions": "conv|wgrad|dgrad|fprop|nhwc",
    "matrix products": "nvjet|gemm|cublas|cutlass",
    "optimizers and EMA": "multi_tensor",
    "PyTorch's reductions": "reduce_kernel",
    "copies, casts, concatenations": "copy|Cat",
    "random numbers": "distribution",
    "other": "",
}


def kernel_times(run, names: int = 30) -> None:
    """Prints the GPU time of one call by origin, and the kernels that take most."""
    events, of_origin, of_name = gpu_events(run), {}, {}
    for name, taken in events:
        origin = next(key for key, pattern in ORIGINS.items() if re.search(pattern, name, re.IGNORECASE))
        for table, key in ((of_origin, origin), (of_name, name)):
            count, total = table.get(key, (0, 0.0))
            table[key] = count + 1, total + taken
    for table in (of_origin, of_name):
        for name, (count, total) in sorted(table.items(), key=lambda item: -item[1][1])[:names]:
            print(f"    {total / 1e3:8.3f} ms {count:5d} x {name[:120]}")
    print(f"    {sum(taken for _, taken in events) / 1e3:8.3f} ms in all {len(events)}")


MODES = {
    "plain": accel.Backend(),
    "native": accel.Backend("native"),
    "compiled": accel.Backend("compiled"),
    "captured": accel.Backend("compiled", capture=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", nargs="+", type=int, default=[32, 16], choices=[32, 16])
    parser.add_argument("--modes", nargs="+", choices=MODES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="time by part and by operation")
    args, settings = parser.parse_known_args()
    device = runtime.pick_device(args.device)
    gpu = device.type == "cuda"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; {runtime.tune_matmul(device)}")
    columns = "| mode | median ms | updates/s | TFLOP | TFLOP/s | of a matrix product | ready s |"
    print(columns + " kernels | MiB |" * gpu)
    print("|---|---|---|---|---|---|---|" + "---|---|" * gpu)
    for precision in args.precision:
        name, dtype = ("bfloat16", torch.bfloat16) if precision == 16 else ("float32", torch.float32)
        flags = ["--configs", "dmc_vision", "--task", TASK, "--device", str(device), "--precision", str(precision)]
        config = load_config([*flags, *settings])
        runtime.seed_everything(0, config.deterministic_run)
        batch = walker_batch(config, device)
        make_agent = functools.partial(
            dreamer.Dreamer, config, {"image": tuple(batch["image"].shape[2:])}, batch["action"].shape[-1]
        )
        with FlopCount() as count:
            make_agent().update(batch)
        flops = count.total
        for mode in args.modes or (["plain", "compiled", "captured"] if gpu else ["plain", "native"]):
            agent = make_agent()
            accel.install(agent, MODES[mode]._replace(dtype=dtype), lambda line: print(line, file=sys.stderr))
            update = functools.partial(agent.update, batch)
            first = sum(timed(update, device) for _ in range(GraphedFunction.WARM_UP + 1 if gpu else 2))
            product = Product(dtype, device)
            product()
            # interleaved, as the speed of a shared machine changes
            pairs = [(timed(update, device), timed(product, device)) for _ in range(args.repeats)]
            seconds, product_seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
            ceiling = product.flops / product_seconds
            line = f"| {mode}, {name} | {seconds * 1e3:.{2 if gpu else 0}f} | {1 / seconds:.2f} | {flops / 1e12:.2f} "
            line += f"| {flops / seconds / 1e12:.3f} | {flops / seconds / ceiling:.0%} | {first:.1f} |"
            if gpu:
                del product
                torch.cuda.reset_peak_memory_stats()
                line += f" {kernels(update)} | {torch.cuda.max_memory_allocated() / 2**20:.0f} |"
            print(line, flush=True)
            if args.profile and mode == "captured":
                kernel_times(update)
            elif args.profile:
                parts(agent, batch, device)
                operations(agent, batch, device)
            del agent, update


class Parts:
    """Time within each part of an update, excluding nested parts."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.stack = device, {}, []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str):
        start = self.now()
        self.stack.append(0.0)
        yield
        taken = self.now() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken - self.stack.pop()
        if self.stack:
            self.stack[-1] += taken

    def timed(self, name: str, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return call


def parts(agent: dreamer.Dreamer, batch: dict[str, torch.Tensor], device: torch.device) -> None:
    """Prints the time of each part of one update."""
    clock, world_model = Parts(device), agent.world_model
    replaced = [
        (networks.RSSM, "observe", "scan"),
        (networks.RSSM, "target_branch", "target branch"),
        (networks.RSSM, "imagine", "imagination"),
        (models.WorldModel, "loss", "world model losses"),
        (models.ImagBehavior, "loss", "behavior losses"),
        (torch.autograd, "grad", "backward"),
        (tools.Optimizer, "step", "optimizer"),
        (tools, "ema", "EMA"),
    ]
    if agent.config.hybrid:
        replaced.append((world_model.target_encoder, "forward", "target branch"))
    replaced.append((world_model.encoder, "forward", "encoder"))
    with contextlib.ExitStack() as stack:
        for owner, name, label in replaced:
            stack.enter_context(mock.patch.object(owner, name, clock.timed(label, getattr(owner, name))))
        with clock.part("else"):
            agent.update(batch)
    total = sum(clock.seconds.values())
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"    {name:20s} {seconds * 1e3:8.1f} ms {seconds / total:5.0%}")


def operations(agent: dreamer.Dreamer, batch: dict[str, torch.Tensor], device: torch.device) -> None:
    """Prints the slowest operations, forward and backward."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as trace:
        agent.update(batch)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(trace.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=40))


if __name__ == "__main__":
    main()
