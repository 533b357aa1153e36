"""How the same arithmetic runs faster: layers that many steps share, compiled steps and functions, CUDA graphs.

Nothing here changes what is computed. The networks and losses call a `Layer`, and functions marked `fusable` or `step`,
wherever they are; how these are fused, and whether a whole update is captured, is decided for each agent by `choose`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch._dynamo.exc
import torch._functorch.config
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor

import native
import tools

# Layers that many steps share


class _Calls:
    """Inputs of a layer's calls and the gradients at their outputs, of one backward pass.

    Args:
        gradients: such inputs (rows, in) and gradients (rows, out) → the gradients of weight and bias, None where
            there is no bias.
    """

    def __init__(self, gradients: Callable):
        self.task, self.inputs, self.grads, self.gradients = -1, [], [], gradients

    def add(self, x: Tensor, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self.task:  # what another backward pass left, which did not ask for this weight
            self.task, self.inputs, self.grads = task, [], []
        self.inputs.append(x.flatten(0, -2))
        self.grads.append(grad.flatten(0, -2))

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        found = (self.inputs, self.grads) if self.task == torch._C._current_graph_task_id() else ([], [])
        self.inputs, self.grads = [], []
        return found


class _Shared(torch.autograd.Function):
    """A layer's weight and bias in the type of its work, and at the end of the backward pass the gradients of them."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, calls: _Calls):
        ctx.calls, ctx.dtype = calls, weight.dtype
        ctx.set_materialize_grads(False)
        # a tensor of its own in either case: autograd takes no input for an output
        return weight.to(dtype, copy=True), bias.to(dtype, copy=True) if bias is not None else None

    @staticmethod
    def backward(ctx, *_):
        inputs, grads = ctx.calls.take()
        if not inputs:
            return None, None, None, None
        # all rows of all calls
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        grad = grads[0] if len(grads) == 1 else torch.cat(grads)
        weight, bias = ctx.calls.gradients(x, grad)
        return weight.to(ctx.dtype), bias, None, None


class _Product(torch.autograd.Function):
    """x @ weight.T + bias; its backward pass leaves the weight's gradient to `_Shared`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: "Matrix"):
        ctx.save_for_backward(x, weight)
        ctx.calls = matrix.calls
        return matrix.product(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        if ctx.calls is not None:
            ctx.calls.add(x, grad)
        wanted = ctx.needs_input_grad[0] and _is_wanted(ctx.next_functions[0][0])
        return (grad @ weight if wanted else None), None, None, None


def _is_wanted(node) -> bool:
    """Whether the backward pass at work goes on into a node of the graph."""
    leaf = node.name().endswith("AccumulateGrad")  # about which torch does not answer
    return leaf or torch._C._will_engine_execute_node(node)


class Layer:
    """Parameters for the many calls of a rollout.

    Within a compiled `step` their gradients are computed once, over the rows of all calls, and not at every call.

    Args:
        weight: (out, ...).
        bias: (out,) or None.
        dtype: of the layer's work.
        gradients: see `_Calls`.
        trained: let gradients reach them.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gradients: Callable, trained: bool = True
    ):
        trained = trained and weight.requires_grad and torch.is_grad_enabled()
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.calls = _Calls(gradients) if trained else None
        if not trained:
            self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype) if bias is not None else None

    @functools.cached_property
    def shared(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in `dtype`, whose gradients are those of all calls."""
        return _Shared.apply(self.weight, self.bias, self.dtype, self.calls)

    def __call__(self, *args) -> Tensor:
        raise NotImplementedError

    def at(self, call: "_Call", *args) -> Tensor:
        """Within a compiled step: hands `call` the input (N, in), and lets it add to the output (N, out)."""
        raise NotImplementedError


class Matrix(Layer):
    """The linear map of a weight and a bias: (..., in) → (..., out).

    The gradient of its weight is one product over the rows of all calls, in place of one product, and one sum, at every
    step: faster, and in bfloat16 free of a sum of rounded numbers.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        dtype: of the products.
        sparse: how many of the first inputs are mostly 0, as one-hot variables are; native code makes use of it in
            float32.
        trained: let gradients reach the weight and the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, sparse: int = 0, trained: bool = True):
        def gradients(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
            return grad.to(dtype).T @ x, grad.sum(0, dtype=torch.float32) if biased else None

        biased = bias is not None
        super().__init__(weight, bias, dtype, gradients, trained)
        if self.calls is not None:
            self.weight, self.bias = self.shared
        self.sparse = sparse if _fusing == "native" and native.supports(weight) and dtype == torch.float32 else 0
        if self.sparse:
            self.columns = self.weight.detach()[:, :sparse].T.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.calls is None and not self.sparse:
            return self.product(x)
        return _Product.apply(x, self.weight, self.bias, self)

    def product(self, x: Tensor) -> Tensor:
        if not self.sparse:
            return F.linear(x, self.weight, self.bias)
        y = F.linear(x[..., self.sparse :], self.weight[:, self.sparse :], self.bias)
        native.add_sparse_product(y, x, self.columns)
        return y

    def at(self, call: "_Call", x: Tensor) -> Tensor:
        call.x = x = x.to(self.weight.dtype)
        return call.add(F.linear(x, self.weight.detach(), None if self.bias is None else self.bias.detach()))


# Steps that are compiled whole


class _Tap(torch.autograd.Function):
    """Zeros (N, out), the gradient at which is that at the output of a layer to which they are added."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: int, calls: _Calls, seen: list):
        ctx.calls, ctx.seen = calls, seen
        return _zero(weight.device).expand(rows, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.calls.add(*ctx.seen, grad)
        return None, None, None, None


@functools.cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)


class _Call:
    """A layer at one step: called as the layer itself."""

    def __init__(self, layer: Layer, tap: Tensor | None):
        self.layer, self.tap, self.x = layer, tap, None

    def __call__(self, *args) -> Tensor:
        return self.layer.at(self, *args)

    def add(self, y: Tensor) -> Tensor:
        """The output with the tap, in float32: a product would take it as what to add to, and copy it first."""
        return y if self.tap is None else (y.float() + self.tap).to(y.dtype)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *steps: Tensor) -> Tensor:
        return torch.stack(steps, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.transpose(0, 1).contiguous().unbind()


def stack_steps(steps: list[Tensor]) -> Tensor:
    """T tensors (N, ...) → (N, T, ...). The gradient is brought into the steps' layout at once."""
    return _Stack.apply(*steps)


def step(function: Callable) -> Callable:
    """Marks a rollout's step, a method of `layers` and tensors (N, ...), to be compiled whole where PyTorch compiles.

    PyTorch sees the parameters of the layers, each called once at most, as constants; their gradients come from what
    went in and from the gradients at their outputs, as for `Matrix`. Random numbers are those of the plain function.
    """

    def tapped(owner, layers: list[Layer], taps: list[Tensor | None], *args):
        calls = [_Call(layer, tap) for layer, tap in zip(layers, taps, strict=True)]
        out = function(owner, calls, *args)
        return out, [None if call.x is None or call.tap is None else call.x.detach() for call in calls]

    @functools.wraps(function)
    def call(owner, layers: list[Layer], *args):
        if _fusing != "compiled":
            return function(owner, layers, *args)
        rows = next(len(arg) for arg in args if isinstance(arg, Tensor))
        seen = [[] for _ in layers]
        taps = [
            _Tap.apply(layer.shared[0], rows, layer.calls, x) if layer.calls else None
            for layer, x in zip(layers, seen, strict=True)
        ]
        with fusing("traced"):
            out, inputs = _compiled(tapped)(owner, layers, taps, *args)
        for kept, x in zip(seen, inputs, strict=True):
            kept.append(x)
        return out

    return call


# Convolutions


class _Halving(torch.autograd.Function):
    """A convolution of 4×4 with stride 2 and padding 1, whose gradients are matrix products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2, padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        # (N, h, w, O)
        grad = grad.permute(0, 2, 3, 1)
        n, h, w, out = grad.shape
        # (O, 4·4·C)
        dweight = grad.reshape(-1, out).T @ _windows(x.permute(0, 2, 3, 1), 4, 2)
        dweight = dweight.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[0]:
            return None, dweight
        # a block of 2×2 pixels has its gradient from the 2×2 outputs around; (2, 2, O, 2·2·C)
        blocks = weight.unflatten(2, (2, 2)).unflatten(4, (2, 2)).flip(2, 4).permute(2, 4, 0, 3, 5, 1)
        dx = _windows(grad, 2, 1) @ blocks.reshape(4 * out, -1)
        # (N, H + 2, W + 2, C), the padding included
        dx = dx.view(n, h + 1, w + 1, 2, 2, -1).transpose(2, 3).reshape(n, 2 * h + 2, 2 * w + 2, -1)
        return dx[:, 1:-1, 1:-1].permute(0, 3, 1, 2), dweight


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """Images (N, H, W, C), padded by 1 → the windows that a convolution sees, (N·h·w, size·size·C)."""
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    n, height, width, channels = x.shape
    h, w = (height - size) // step + 1, (width - size) // step + 1
    a, b, c, d = x.stride()
    return x.as_strided((n, h, w, size, size, channels), (a, step * b, step * c, b, c, d)).reshape(n * h * w, -1)


def halve(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """Convolution with stride 2: (N, C, H, W), (O, C, k, k) → (N, O, H/2, W/2)."""
    # where a CPU's own gradients in bfloat16 are slow
    small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[2] * x.shape[3] <= 64
    if small and weight.shape[2:] == (4, 4) and padding == 1:
        return _Halving.apply(x, weight)
    return F.conv2d(x, weight, stride=2, padding=padding)


# Fused functions

_fusing = ""


@contextlib.contextmanager
def fusing(how: str) -> Iterator[None]:
    """Within it, `fusable` functions run as they are (""), `compiled` by PyTorch, or as `native` code for a CPU.

    "traced" is within what PyTorch compiles already.
    """
    global _fusing
    before, _fusing = _fusing, how
    try:
        yield
    finally:
        _fusing = before


@functools.cache
def _compiled(function: Callable) -> Callable:
    torch._dynamo.config.recompile_limit = 256  # one for each shape that a function meets
    torch._functorch.config.donated_buffer = False  # the actor's backward pass keeps the graph for the critic's
    torch._inductor.config.fallback_random = True  # PyTorch's own random numbers
    return torch.compile(function, dynamic=False, fullgraph=True)


def fusable(replacement: Callable | None = None) -> Callable[[Callable], Callable]:
    """Marks a function of tensors, pointwise work and small reductions, that `fusing` turns into few kernels.

    Random numbers are drawn outside of such functions, so that a fused one sees the same.

    Args:
        replacement: what computes the same as native code.
    """

    def mark(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args):
            if _fusing == "compiled":
                return _compiled(function)(*args)
            if _fusing == "native" and replacement and native.supports(*args):
                return replacement(*args)
            return function(*args)

        return call

    return mark


# Execution


class Execution(NamedTuple):
    """How an agent's functions run."""

    fuse: str = ""  # how `fusable` functions run: see `fusing`
    capture: bool = False  # replay CUDA graphs
    note: str = ""  # a line for the log that says so, and why not more


def choose(wanted: bool, device: torch.device, processes: int = 1) -> Execution:
    """The fastest execution that works on a device.

    Args:
        wanted: the setting `compile`.
        processes: of data-parallel training, whose exchanges are not captured.
    """
    if not wanted:
        return Execution(note="update: plain PyTorch (compile is False)")
    if device.type != "cuda":
        try:
            native.library()
        except OSError as error:
            return Execution(note=f"update: plain PyTorch, without the faster layers in C++ ({error})")
        return Execution("native", note="update: PyTorch, with layers in C++")
    reason = try_compiler(device)
    fuse = "" if reason else "compiled"
    if processes > 1:
        return Execution(fuse, False, "update: not captured as a CUDA graph (several processes)" + reason)
    return Execution(fuse, True, "update: a CUDA graph" + (reason or " of compiled code"))


def try_compiler(device: torch.device) -> str:
    """Compiles a small function and its gradient; returns why that failed, or nothing."""
    try:
        x = torch.ones(4, 8, device=device, requires_grad=True)
        with torch.enable_grad():
            torch.compile(lambda x: F.silu(x).sum(), dynamic=False, fullgraph=True)(x).backward()
    except Exception as error:  # a missing compiler shows in many ways
        return f"; nothing is compiled ({tools.first_line(error)})"
    return ""


class Runner:
    """A function from a dict of tensors to a dict of tensors, run as an `Execution` says.

    Captured, it works on copies of its inputs: the first calls run as they are, on a stream of their own; then one call
    is recorded as a CUDA graph, and every later one replays it. The function must not decide anything in Python between
    calls, wait for the device, or keep its inputs, whose shapes stay the same. If compiling or recording fails, the
    reason is said and it goes on without.

    Args:
        name: in what is said.
        say: takes a line for the log; None for silence.
    """

    WARM_UP = 3  # calls before the capture, as torch asks for

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        execution: Execution,
        name: str,
        say: Callable[[str], Any] | None = None,
    ):
        self.function, self.fuse, self.capture, self.name = function, execution.fuse, execution.capture, name
        self.say = say or (lambda line: None)
        self.reset()

    def reset(self) -> None:
        """Forgets a captured graph, as it has to be when a tensor that the function uses was replaced by another."""
        self.calls, self.seconds, self.graph, self.inputs = 0, 0.0, None, {}

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.capture:
            inputs = self.copy(inputs)
        if self.graph is not None:
            return self.replay()
        start = time.perf_counter()
        with fusing(self.fuse):
            if not self.capture:
                out = self.compute(inputs)
            elif self.calls < self.WARM_UP:
                out = self.warm_up()
            else:
                out = self.record()
        self.calls += 1
        last = self.WARM_UP + 1 if self.capture else 1
        if self.calls <= last and (self.fuse == "compiled" or self.capture):
            self.seconds += time.perf_counter() - start
            if self.calls == last:
                self.say(f"{self.name}: ready after {self.seconds:.0f} s ({last} calls)")
        return out

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self.function(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.say(f"{self.name}: nothing is compiled ({tools.first_line(error)})")
            self.fuse = ""
        with fusing(""):  # all of it anew, the part that was done before the error too
            return self.function(inputs)

    def copy(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, always in the same memory."""
        if not self.inputs:
            self.inputs = {key: torch.empty(x.shape, dtype=x.dtype, device=x.device) for key, x in inputs.items()}
        for key, value in inputs.items():
            self.inputs[key].copy_(value, non_blocking=True)
        return self.inputs

    def warm_up(self) -> dict[str, Tensor]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            out = self.compute(self.inputs)
        current.wait_stream(side)
        for tensor in out.values():
            tensor.record_stream(current)
        return out

    def record(self) -> dict[str, Tensor]:
        try:
            graph = torch.cuda.CUDAGraph()
            # other threads may upload batches meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                out = self.function(self.inputs)
                self.scalars = [key for key, value in out.items() if value.ndim == 0]
                self.packed = torch.stack([out[key].float() for key in self.scalars]) if self.scalars else None
                self.outputs = {key: value for key, value in out.items() if value.ndim}
        except Exception as error:
            self.say(f"{self.name}: not captured as a CUDA graph ({tools.first_line(error)})")
            self.capture, inputs, self.inputs = False, self.inputs, {}
            return self.function(inputs)
        self.graph = graph
        return self.replay()

    def replay(self) -> dict[str, Tensor]:
        self.graph.replay()
        out = {key: value.clone() for key, value in self.outputs.items()}
        if self.packed is not None:
            out.update(zip(self.scalars, self.packed.clone().unbind(), strict=True))
        return out
