"""How the same arithmetic runs faster: compiled steps and functions, C++, CUDA graphs.

Nothing here changes what is computed. The networks are built from the modules below, and their functions are decorated
with `fusable`, `step` or `rollout`; `choose_backend` decides how these run and whether a whole update is captured.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch._dynamo.exc
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

import native
from run import logs

# Steps that are compiled whole
#
# A rollout calls the same layers at every step. Compiled, a step would cast their weights each time, and each time
# compute and add up a weight gradient. So `step` compiles it with the weights as constants: within a `rollout` they are
# cast once, and their gradient is one product over the rows of all steps, from the input of each call and the gradient
# at its output. Where nothing is compiled, the modules below are plain PyTorch.


class Linear(nn.Linear):
    """nn.Linear that computes in `dtype`: (..., inputs) → (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, dtype=torch.float32):
        super().__init__(inputs, outputs, bias)
        self.dtype = dtype
        self.calls: dict[str, _Call] = {}  # in a compiled step, by part

    def parts(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Weight and bias of each part that is called on its own."""
        return {"": (self.weight, self.bias)}

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_part("", x)

    def apply_part(self, part: str, x: Tensor) -> Tensor:
        if self.calls:
            return self.calls[part].linear(x)
        weight, bias = self.parts()[part]
        return F.linear(x.to(self.dtype), weight.to(self.dtype), None if bias is None else bias.to(self.dtype))


class SplitLinear(Linear):
    """nn.Linear without bias of two concatenated inputs, as the sum of `first(x)` and `second(y)`.

    So the part of an input that is known for all steps of a rollout can be computed for all of them at once.

    Args:
        sizes: of the two inputs.
    """

    def __init__(self, sizes: tuple[int, int], outputs: int, dtype=torch.float32):
        super().__init__(sum(sizes), outputs, bias=False, dtype=dtype)
        self.sizes = sizes

    def parts(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        first, second = self.weight.split(self.sizes, 1)
        return {"first": (first, None), "second": (second, None)}

    def first(self, x: Tensor) -> Tensor:
        return self.apply_part("first", x)

    def second(self, y: Tensor) -> Tensor:
        return self.apply_part("second", y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x) + self.second(y)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension in float32, followed by the function of a subclass.

    A subclass defines that function as `after`, and both together as `fused`.
    """

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps)
        self.dtype = torch.float32
        self.calls: dict[str, _Call] = {}

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {"": (self.weight, self.bias)}

    def after(self, x: Tensor, *args) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def fused(x: Tensor, *args) -> Tensor:
        """x, other inputs, weight, bias and eps → output."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args) -> Tensor:
        if self.calls:
            return self.after(self.calls[""].norm(x), *args).to(args[0].dtype if args else x.dtype)
        return self.fused(x, *args, self.weight, self.bias, self.eps)


_layers: dict[tuple, "_Layer"] | None = None  # of the current rollout, by module, part and whether they are trained


def rollout(function: Callable) -> Callable:
    """Marks a function that calls steps many times while the parameters stay the same."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        global _layers
        if _layers is not None:
            return function(*args, **kwargs)
        _layers = {}
        try:
            return function(*args, **kwargs)
        finally:
            _layers = None

    return call


def step(frozen: bool = False) -> Callable[[Callable], Callable]:
    """Marks a step of a rollout, a method of a module, to be compiled as a whole where PyTorch compiles.

    Tensors among the arguments are (N, ...); each layer is called at most once. Random numbers equal those of the plain
    function.

    Args:
        frozen: compiled, the module's parameters get no gradient.
    """

    def mark(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(owner: nn.Module, *args):
            if _fusing != "compiled":
                return function(owner, *args)
            rows = next(len(arg) for arg in args if isinstance(arg, Tensor))
            trained = torch.is_grad_enabled() and not frozen
            modules = [module for module in owner.modules() if isinstance(module, Linear | LayerNorm)]
            for module in modules:
                module.calls = {part: _Call(_layer(module, part, trained), rows) for part in module.parts()}
            try:
                with fusing("traced"):
                    return _compiled(function)(owner, *args)
            finally:
                for module in modules:
                    for made in module.calls.values():
                        made.end()
                    module.calls = {}

        return rollout(call)

    return mark


def _layer(module: Linear | LayerNorm, part: str, trained: bool) -> "_Layer":
    key = id(module), part, trained
    if key not in _layers:
        _layers[key] = _Layer(module, part, trained)
    return _layers[key]


class _Layer:
    """The parameters of a part of a module for the steps of a rollout, in the type that it computes in."""

    def __init__(self, module: Linear | LayerNorm, part: str, trained: bool):
        weight, bias = module.parts()[part]
        self.eps = getattr(module, "eps", None)
        self.trained = trained and weight.requires_grad
        self.gradients = _Gradients(module.dtype, self.eps, bias is not None)
        with torch.set_grad_enabled(self.trained):
            self.weight, self.bias = _Parameters.apply(weight, bias, self.gradients)


class _Gradients:
    """The gradients of a layer's parameters, from the inputs and output gradients of its calls in a rollout.

    Args:
        dtype: that the layer computes in.
        eps: of a norm; None for a linear map.
        biased: whether there is a bias.
    """

    def __init__(self, dtype: torch.dtype, eps: float | None, biased: bool):
        self.dtype, self.eps, self.biased = dtype, eps, biased
        self.seen: list[tuple[Tensor, Tensor]] = []  # input of a call, gradient at its output

    def compute(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, over the rows of all calls; None if the backward pass reached none."""
        if not self.seen:
            return None, None
        # (rows, in), (rows, out)
        x, grad = (torch.cat(rows) for rows in zip(*self.seen, strict=True))
        self.seen = []
        if self.eps is not None:
            return norm_gradients(x, grad, self.eps)
        return (grad.to(self.dtype).T @ x).float(), grad.sum(0, dtype=torch.float32) if self.biased else None


class _Parameters(torch.autograd.Function):
    """Weight and bias in the type that a layer computes in; their gradients at the end of the backward pass."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, gradients: _Gradients):
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        # always copies: autograd does not allow an input as an output
        return weight.to(gradients.dtype, copy=True), bias.to(gradients.dtype, copy=True) if bias is not None else None

    @staticmethod
    def backward(ctx, *_):
        return *ctx.gradients.compute(), None


class _Call:
    """A layer in one compiled step: its parameters are constants, `tap` sees the gradient at its output."""

    def __init__(self, layer: _Layer, rows: int):
        self.layer, self.x, self.seen = layer, None, []
        self.tap = _Tap.apply(layer.weight, rows, layer.gradients, self.seen) if layer.trained else None

    def linear(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        self.x = x.detach()
        y = F.linear(x, weight.detach(), None if bias is None else bias.detach())
        # in float32: otherwise the product would accumulate into the tap, and copy it first
        return y if self.tap is None else (y.float() + self.tap).to(y.dtype)

    def norm(self, x: Tensor) -> Tensor:
        self.x = x.detach()
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
        y = F.layer_norm(x.float(), weight.shape, weight, bias, self.layer.eps)
        return y if self.tap is None else y + self.tap

    def end(self) -> None:
        """Passes the input on to the tap."""
        self.seen.append(self.x)


class _Tap(torch.autograd.Function):
    """Zeros (N, out) that are added to a layer's output: their gradient is that of the output."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: int, gradients: _Gradients, seen: list):
        ctx.gradients, ctx.seen = gradients, seen
        return _zero(weight.device).expand(rows, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.gradients.seen.append((*ctx.seen, grad))
        return None, None, None, None


@functools.cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *steps: Tensor) -> Tensor:
        return torch.stack(steps, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.transpose(0, 1).contiguous().unbind()


def stack_steps(steps: list[Tensor]) -> Tensor:
    """T tensors (N, ...) → (N, T, ...). The gradient is brought into the layout of the steps in one copy."""
    return _Stack.apply(*steps)


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
        # the gradient of a block of 2×2 pixels comes from the 2×2 outputs around it; (2, 2, O, 2·2·C)
        blocks = weight.unflatten(2, (2, 2)).unflatten(4, (2, 2)).flip(2, 4).permute(2, 4, 0, 3, 5, 1)
        dx = _windows(grad, 2, 1) @ blocks.reshape(4 * out, -1)
        # (N, H + 2, W + 2, C), the padding included
        dx = dx.view(n, h + 1, w + 1, 2, 2, -1).transpose(2, 3).reshape(n, 2 * h + 2, 2 * w + 2, -1)
        return dx[:, 1:-1, 1:-1].permute(0, 3, 1, 2), dweight


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """Images (N, H, W, C), padded by 1 → the windows of a convolution, (N·h·w, size·size·C)."""
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    n, height, width, channels = x.shape
    h, w = (height - size) // step + 1, (width - size) // step + 1
    a, b, c, d = x.stride()
    return x.as_strided((n, h, w, size, size, channels), (a, step * b, step * c, b, c, d)).reshape(n * h * w, -1)


def halve(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """Convolution with stride 2: (N, C, H, W), (O, C, k, k) → (N, O, H/2, W/2)."""
    # the gradients of a CPU's own convolutions are slow here
    small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[2] * x.shape[3] <= 64
    if small and weight.shape[2:] == (4, 4) and padding == 1:
        return _Halving.apply(x, weight)
    return F.conv2d(x, weight, stride=2, padding=padding)


# Fused functions

_fusing = ""


@contextlib.contextmanager
def fusing(how: str) -> Iterator[None]:
    """Within it, `fusable` functions run eagerly (""), `compiled` by PyTorch, or as `native` code for a CPU.

    "traced" means that PyTorch is compiling a caller already.
    """
    global _fusing
    before, _fusing = _fusing, how
    try:
        yield
    finally:
        _fusing = before


@functools.cache
def _compiled(function: Callable) -> Callable:
    torch.compiler.config.recompile_limit = 256  # one for each shape that a function meets
    # the actor's backward pass keeps the graph for the critic's; this is the setting that PyTorch's own error names
    torch._functorch.config.donated_buffer = False
    options = {
        "fallback_random": True,  # PyTorch's own random numbers
        "realize_reads_threshold": 1000,  # backward passes recompute a norm instead of storing it between two kernels
    }
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


def fusable(replacement: Callable | None = None) -> Callable[[Callable], Callable]:
    """Marks a function of tensors, pointwise operations and small reductions, that `fusing` turns into few kernels.

    Random numbers are drawn outside of such functions, so that all versions see the same.

    Args:
        replacement: the same function in native code.
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


@fusable()
def norm_gradients(x: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Input and gradient at the output of a LayerNorm, (N, C) → the gradients of its parameters, (C,)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    return (grad * normed).sum(0), grad.sum(0)


# Backends


class Backend(NamedTuple):
    """How an agent's functions run."""

    fuse: str = ""  # how `fusable` functions run: see `fusing`
    capture: bool = False  # record and replay CUDA graphs
    note: str = ""  # a line for the log: the choice, and why not a faster one


def choose_backend(wanted: bool, device: torch.device, processes: int = 1) -> Backend:
    """The fastest backend that works on a device.

    Args:
        wanted: the setting `compile`.
        processes: of data-parallel training, whose exchanges are not captured.
    """
    if not wanted:
        return Backend(note="update: plain PyTorch (compile is False)")
    if device.type != "cuda":
        try:
            native.library()
        except OSError as error:
            return Backend(note=f"update: plain PyTorch, without the faster layers in C++ ({error})")
        return Backend("native", note="update: PyTorch, with layers in C++")
    reason = try_compiler(device)
    fuse = "" if reason else "compiled"
    if processes > 1:
        return Backend(fuse, False, "update: not captured as a CUDA graph (several processes)" + reason)
    return Backend(fuse, True, "update: a CUDA graph" + (reason or " of compiled code"))


def try_compiler(device: torch.device) -> str:
    """Compiles a small function and its gradient; returns why that failed, or an empty string."""
    try:
        x = torch.ones(4, 8, device=device, requires_grad=True)
        with torch.enable_grad():
            torch.compile(lambda x: F.silu(x).sum(), dynamic=False, fullgraph=True)(x).backward()
    except Exception as error:  # a missing compiler raises various errors
        return f"; nothing is compiled ({logs.first_line(error)})"
    return ""


class GraphedFunction:
    """A function from a dict of tensors to a dict of tensors, run as a `Backend` says.

    If captured, it works on copies of its inputs: the first calls run eagerly on a separate stream, the next is
    recorded as a CUDA graph, and every later one replays it. The function must not make decisions in Python that differ
    between calls, wait for the device, or keep its inputs, whose shapes stay the same. If compiling or recording fails,
    the reason is logged and the function runs without it.

    Args:
        name: of the function, in log lines.
        log: called with a line; None logs nothing.
    """

    WARM_UP = 3  # calls before the capture, as PyTorch recommends

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        backend: Backend,
        name: str,
        log: Callable[[str], Any] | None = None,
    ):
        self.function, self.fuse, self.capture, self.name = function, backend.fuse, backend.capture, name
        self.log = log or (lambda line: None)
        self.reset()

    def reset(self) -> None:
        """Discards a captured graph, as is necessary when a tensor that the function uses has been replaced."""
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
                self.log(f"{self.name}: ready after {self.seconds:.0f} s ({last} calls)")
        return out

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self.function(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.log(f"{self.name}: nothing is compiled ({logs.first_line(error)})")
            self.fuse = ""
        with fusing(""):  # all of it again, including the part before the error
            return self.function(inputs)

    def copy(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the inputs, always in the same memory."""
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
            self.log(f"{self.name}: not captured as a CUDA graph ({logs.first_line(error)})")
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
