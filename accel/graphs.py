"""Functions of an agent that run with its twins, recorded and replayed as CUDA graphs where the backend captures."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from run.logs import first_line

from .backend import Backend, Mode
from .functions import replaced, twins

Tensors = dict[str, "Tensor | Tensors"]


class GraphedFunction:
    """A function from (nested) dicts of tensors to a dict of tensors, run with the twins of an agent.

    If captured, it works on copies of its inputs: the first calls run eagerly on a separate stream, the next is
    recorded as a CUDA graph, and every later one replays it. The function must not make decisions in Python that differ
    between calls, wait for the device, or keep its inputs, whose shapes stay the same. If compiling or recording fails,
    the reason is logged and the function runs without it.

    Args:
        name: of the function, in log lines.
        snapshot: returns a function that undoes all that calls of `function` have changed since; None if they change
            nothing. A call in which compiling fails is undone and repeated.
    """

    WARM_UP = 3  # calls before the capture, as PyTorch recommends

    def __init__(
        self,
        function: Callable[[Tensors], dict[str, Tensor]],
        backend: Backend,
        mode: Mode,
        name: str,
        snapshot: Callable[[], Callable[[], None]] | None = None,
    ):
        self.function, self.capture, self.mode, self.name = function, backend.capture, mode, name
        self.snapshot, self.table = snapshot, twins(mode)
        self.seconds = 0.0
        self.reset()

    def __deepcopy__(self, memo: dict) -> "GraphedFunction":
        """That of a copied agent: a captured graph belongs to the tensors of the original."""
        made = memo[id(self)] = copy.copy(self)
        made.function, made.snapshot = copy.deepcopy(self.function, memo), copy.deepcopy(self.snapshot, memo)
        made.reset()
        return made

    def reset(self) -> None:
        """Discards a captured graph, as is necessary when a tensor that the function uses has been replaced."""
        self.calls, self.graph, self.inputs = 0, None, None

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        if self.capture:
            self.inputs = copy_into(self.inputs, inputs)
            inputs = self.inputs
        if self.graph is not None:
            return self.replay()
        last = self.WARM_UP + 1 if self.capture else 1
        if self.calls >= last:
            return self.compute(inputs)
        start = time.perf_counter()
        if not self.capture:
            out = self.first(inputs)
        elif self.calls < self.WARM_UP:
            out = self.warm_up()
        else:
            out = self.record()
        self.calls += 1
        self.seconds += time.perf_counter() - start
        if self.calls == last and (self.mode.fuse == "compiled" or self.capture):
            self.mode.log(f"{self.name}: ready after {self.seconds:.0f} s ({last} calls)")
        return out

    def compute(self, inputs: Tensors) -> dict[str, Tensor]:
        with replaced(self.table):
            return self.function(inputs)

    def first(self, inputs: Tensors) -> dict[str, Tensor]:
        """A call that compiles. PyTorch compiles a gradient when it first needs it, in the middle of an update."""
        if self.mode.fuse != "compiled":
            return self.compute(inputs)
        undo = self.snapshot() if self.snapshot else lambda: None
        try:
            return self.compute(inputs)
        except Exception as error:
            undo()
            self.mode.fuse, self.table = "", []
            out = self.compute(inputs)  # raises again what is no fault of the compiler
            self.mode.log(f"{self.name}: nothing is compiled ({first_line(error)})")
            return out

    def warm_up(self) -> dict[str, Tensor]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            out = self.first(self.inputs)
        current.wait_stream(side)
        for tensor in out.values():
            tensor.record_stream(current)
        return out

    def record(self) -> dict[str, Tensor]:
        try:
            graph = torch.cuda.CUDAGraph()
            # other threads may upload batches meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                out = self.compute(self.inputs)
                self.scalars = [key for key, value in out.items() if value.ndim == 0]
                self.packed = torch.stack([out[key].float() for key in self.scalars]) if self.scalars else None
                self.outputs = {key: value for key, value in out.items() if value.ndim}
        except Exception as error:
            self.mode.log(f"{self.name}: not captured as a CUDA graph ({first_line(error)})")
            self.capture, inputs, self.inputs = False, self.inputs, None
            return self.compute(inputs)
        self.graph = graph
        return self.replay()

    def replay(self) -> dict[str, Tensor]:
        self.graph.replay()
        out = {key: value.clone() for key, value in self.outputs.items()}
        if self.packed is not None:
            out.update(zip(self.scalars, self.packed.clone().unbind(), strict=True))
        return out


def copy_into(memory: Tensors | None, inputs: Tensors) -> Tensors:
    """Copies of the inputs, in the memory of an earlier copy if there is one."""
    copies: dict[str, Any] = {}
    for key, value in inputs.items():
        into = memory[key] if memory else None
        if isinstance(value, dict):
            copies[key] = copy_into(into, value)
        else:
            copies[key] = torch.empty(value.shape, dtype=value.dtype, device=value.device) if into is None else into
            copies[key].copy_(value, non_blocking=True)
    return copies
