"""The process of a run: signals, the lock on its folder, the device, and the state of every random generator.

Torch is imported where it is used: the allocator has to be set up before.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from run import distributed
from run.logs import log_line

if TYPE_CHECKING:
    import torch


# Set-up


def tune_allocator() -> str:
    """Lets glibc keep freed memory, which it would otherwise map and fault again for every large tensor.

    For the command line, before torch is imported; the process's resident memory stays at its peak. Returns a line for
    the log, empty with another C library.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return ""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # of malloc.h
    done = mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1) and mallopt(m_top_pad, 256 << 20)
    return "allocator: freed memory is kept" if done else ""


def tune_matmul(device: torch.device) -> str:
    """Uses oneDNN for float32 matrix products on a CPU if that is as exact; disables TensorFloat-32 on a GPU.

    On a CPU with bfloat16 matrix units the faster backend rounds to bfloat16: this is measured. Returns a line for the
    log.
    """
    import torch

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
    import torch

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


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; its file `.pid` names the one inside. Raises ValueError if there is one.

    The system releases the lock whenever and however the process ends. (`.lock` belongs to setup/sweep.py, which holds
    it while the processes that it started run.)
    """
    with open(folder / ".pid", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"--logdir {folder}: process {file.read().strip()} trains there; stop it or use another --logdir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log_line(f"--logdir {folder} cannot be locked ({error.strerror}): do not start a second process there")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


# Randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch; `deterministic` makes torch choose deterministic kernels.

    An operation that has no such kernel on a GPU raises torch's error. Call it before the first use of the GPU.
    """
    import torch

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
    import torch

    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "generators": {key: _plain(value.bit_generator.state) for key, value in generators.items()},
    }


def set_rng_state(state: dict[str, Any], **generators: np.random.Generator) -> None:
    """Restores the result of `rng_state`, the named generators in place; ignores states of absent GPUs."""
    import torch

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
    """Within it, torch draws from generators seeded with these numbers; afterwards, its previous state is restored."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# Signals


class Interrupted(BaseException):
    """Signal within `Interrupt.immediate`; not an Exception, which env code may catch."""


class Interrupt:
    """Within it, Ctrl-C, SIGTERM and a closed terminal set `requested`, so that the loop can stop cleanly.

    A second Ctrl-C raises KeyboardInterrupt. A process that ignores SIGHUP (nohup) still does.
    """

    def __init__(self):
        self.requested = False
        self._immediate = False

    def __enter__(self) -> Interrupt:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within it, a past or new interrupt raises Interrupted: for waits that may never end."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._immediate:
            sys.unraisablehook = lambda _: None  # destructors of what is left half made would print tracebacks
            raise Interrupted
