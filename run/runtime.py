"""The device of a run, its arithmetic, and the state of every random generator."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from run import distributed
from run.config import Config
from run.logs import log


def set_up(config: Config) -> None:
    """Sets up the process for every action of the command line.

    Seeds all generators, and chooses deterministic kernels and the arithmetic of matrix products.
    """
    device = pick_device(config.device)
    seed_everything(config.seed, config.deterministic_run)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a CUDA graph records the work of the current device alone
    log.info(tune_matmul(device))
    if device.type == "cpu" and (note := crowding(torch.get_num_threads(), os.cpu_count() or 1, os.getloadavg()[0])):
        log.info(note)


def crowding(threads: int, cores: int, load: float) -> str:
    """A line for the log if threads will wait for cores that other processes use; else an empty string.

    The threads of a product wait for each other, and spin meanwhile, so that one late thread delays all.

    Args:
        load: mean number of other processes that wanted to run lately.
    """
    if threads == 1 or load + threads < cores + 0.8:
        return ""
    return (
        f"other processes want {load:.1f} of {cores} CPU cores, for which {threads} threads will wait: "
        "OMP_NUM_THREADS=1, or GOMP_SPINCOUNT=300, may be more than twice as fast"
    )


def tune_matmul(device: torch.device) -> str:
    """Uses oneDNN for float32 matrix products on a CPU if that is as exact; disables TensorFloat-32 on a GPU.

    On a CPU with bfloat16 matrix units the faster backend rounds to bfloat16: this is measured. Returns a line for the
    log.
    """
    if device.type != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return "matrix products and convolutions: float32 is exact"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(256, 512, generator=generator)
    exact = a.double() @ b.double().T
    torch.set_float32_matmul_precision("medium")
    error = ((torch.nn.functional.linear(a, b) - exact).norm() / exact.norm()).item()
    if error < 2e-6:
        return f"matrix products: float32 by oneDNN (relative error {error:.1g})"
    torch.set_float32_matmul_precision("highest")
    return f"matrix products: float32 by torch's default (oneDNN would round to bfloat16 here: error {error:.1g})"


def pick_device(name: str) -> torch.device:
    """The torch device of `--device`; `auto` is a GPU if there is one. Raises ValueError if it does not exist.

    With several ranks, each takes its own GPU.
    """
    if distributed.size() > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        number, count = distributed.local_rank(), torch.cuda.device_count()
        if number >= count:
            raise ValueError(f"--device {name}: each process needs a GPU, and this machine has {count}; start {count}")
        return torch.device("cuda", number)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and distributed.size() > 1:
        raise ValueError(f"--device {name}: each process takes its own GPU; use auto, cuda or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


# Randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch; `deterministic` makes torch choose deterministic kernels.

    An operation that has no such kernel on a GPU raises torch's error. Call it before the first use of the GPU.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def rng_state(**generators: np.random.Generator) -> dict[str, Any]:
    """States of torch's generators (CPU, every GPU), Python's, numpy's global one and the named generators."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "generators": {key: value.bit_generator.state for key, value in generators.items()},
    }


def set_rng_state(state: dict[str, Any], **generators: np.random.Generator) -> None:
    """Restores the result of `rng_state`, the named generators in place; ignores states of absent GPUs."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
    for key, generator in generators.items():
        generator.bit_generator.state = state["generators"][key]


@contextmanager
def own_randomness(device: torch.device, *seed: int) -> Iterator[None]:
    """Within it, torch draws from generators seeded with these numbers; afterward, its previous state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield
