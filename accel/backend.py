"""Which twins are used, and the state that the twins of an agent share."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from run.logs import first_line

from . import native


class Backend(NamedTuple):
    """How an agent runs. The default is plain PyTorch."""

    fuse: str = ""  # "compiled" by PyTorch, "native" layers in C++ for a CPU, or neither
    capture: bool = False  # record and replay CUDA graphs
    dtype: torch.dtype = torch.float32  # type of matrix products and convolutions
    note: str = ""  # a line for the log: the choice, and why not a faster one


def choose_backend(wanted: bool, device: torch.device, processes: int = 1, precision: int = 32) -> Backend:
    """The fastest backend that works on a device.

    Args:
        wanted: the setting `compile`.
        processes: of data-parallel training, whose exchanges are not captured.
        precision: 32, or 16 for bfloat16.
    """
    dtype = torch.bfloat16 if precision == 16 else torch.float32
    if not wanted:
        return Backend(dtype=dtype, note="update: plain PyTorch (compile is False)")
    if device.type != "cuda":
        try:
            native.library()
        except OSError as error:
            return Backend(dtype=dtype, note=f"update: plain PyTorch, without the faster layers in C++ ({error})")
        return Backend("native", dtype=dtype, note="update: PyTorch, with layers in C++")
    reason = try_compiler(device)
    fuse = "" if reason else "compiled"
    if processes > 1:
        return Backend(fuse, False, dtype, "update: not captured as a CUDA graph (several processes)" + reason)
    return Backend(fuse, True, dtype, "update: a CUDA graph" + (reason or " of compiled code"))


def try_compiler(device: torch.device) -> str:
    """Compiles a small function and its gradient; returns why that failed, or an empty string."""
    try:
        x = torch.ones(4, 8, device=device, requires_grad=True)
        with torch.enable_grad():
            torch.compile(lambda x: F.silu(x).sum(), dynamic=False, fullgraph=True)(x).backward()
    except Exception as error:  # a missing compiler raises various errors
        return f"; nothing is compiled ({first_line(error)})"
    return ""


class Mode:
    """How the twins of an agent run now; all of them share one.

    Args:
        log: called with a line when a part runs slower than the backend promises.
    """

    def __init__(self, backend: Backend, log: Callable[[str], Any]):
        self.fuse, self.dtype, self.log = backend.fuse, backend.dtype, log
        self.layers: dict | None = None  # parameters of the layers in compiled steps, within a `rollout`
        self.plain: set[Callable] = set()  # functions that could not be compiled
        self.changed: set[type | str] = set()  # layers and functions whose twins compute something else: see check.py
        self.cast_of: tuple | None = None  # the last activation that was cast, and its cast
        self.table: list | None = None  # functions that are replaced: see functions.twins

    def __getstate__(self) -> dict:
        """Without what belongs to this process."""
        return {**vars(self), "log": print, "layers": None, "plain": set(), "cast_of": None, "table": None}

    def __deepcopy__(self, memo) -> "Mode":
        return self  # copies of a module share it

    @contextlib.contextmanager
    def rollout(self) -> Iterator[None]:
        """Within it, the parameters of compiled steps stay the same: they are cast once and get one gradient."""
        if self.layers is not None:
            yield
            return
        self.layers = {}
        try:
            yield
        finally:
            self.layers = self.cast_of = None

    def cast(self, x: torch.Tensor) -> torch.Tensor:
        """x in the type of matrix products; within a rollout, an activation that several layers read is cast once."""
        if x.dtype == self.dtype:
            return x
        if torch.compiler.is_compiling() or self.layers is None or x.is_inference():
            return x.to(self.dtype)
        key = torch.is_grad_enabled(), x.requires_grad, x._version
        if self.cast_of is None or self.cast_of[0] is not x or self.cast_of[1] != key:
            self.cast_of = x, key, x.to(self.dtype)
        return self.cast_of[2]

    def run(self, function: Callable, compiled: Callable, args: tuple, kwargs: dict | None = None) -> Any:
        """The result of a compiled function; of the function itself if it cannot be compiled, which is logged once."""
        if function not in self.plain:
            try:
                return compiled(*args, **(kwargs or {}))
            except Exception as error:  # raised before anything of the function has run; its own errors come again
                failure = error
        result = function(*args, **(kwargs or {}))
        if function not in self.plain:
            self.plain.add(function)
            self.log(f"{function.__qualname__} is not compiled ({first_line(failure)})")
        return result
