"""How the same arithmetic runs faster: layers that share work between steps, compiled steps and functions, CUDA graphs.

Nothing here changes what is computed. The networks are built of the modules below and mark functions `fusable`, `step`
or `rollout`; how these run, and whether a whole update is captured, is decided for each agent by `choose_backend`.
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
from torch import Tensor, nn

import native
import tools

# Layers of a rollout
#
# A rollout calls the same layers at every step. Plain PyTorch would cast their weights each time, and compute and add
# up a weight gradient for each call. The modules below compute what nn.Linear and nn.LayerNorm compute; within a
# `rollout`, weights are cast once and their gradient is one product over the rows of all calls: faster, and in bfloat16
# free of a sum of rounded numbers.


class _Scope:
    """What the layers of one rollout share, by module and whether they are trained."""

    def __init__(self):
        self.layers: dict[tuple, Any] = {}
        self.frozen = False


_scope: _Scope | None = None


def rollout(function: Callable) -> Callable:
    """Marks a function that calls layers many times while their parameters stay the same."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        global _scope
        if _scope is not None:
            return function(*args, **kwargs)
        _scope = _Scope()
        try:
            return function(*args, **kwargs)
        finally:
            _scope = None

    return call


def _shared(module: nn.Module, part: str, make: Callable) -> Any:
    """`make(trained)`, called once in a rollout for each part of a module, or each time outside of one."""
    if _scope is None:
        return make(torch.is_grad_enabled())
    trained = torch.is_grad_enabled() and not _scope.frozen
    key = id(module), part, trained
    if key not in _scope.layers:
        _scope.layers[key] = make(trained)
    return _scope.layers[key]


class Linear(nn.Linear):
    """nn.Linear that computes in `dtype`: (..., inputs) → (..., outputs).

    Args:
        one_hot: how many of the first inputs are one-hot variables, and so mostly 0, which the C++ layers make use of.
    """

    parts = ("",)  # of its parameters, which are called apart

    def __init__(self, inputs: int, outputs: int, bias: bool = True, dtype=torch.float32, one_hot: int = 0):
        super().__init__(inputs, outputs, bias)
        self.dtype, self.one_hot = dtype, one_hot
        self.calls: dict[str, _Call] = {}  # in a compiled step, by part

    def shared(self, part: str = "") -> "_Matrix":
        return _shared(self, part, lambda trained: _Matrix(self.weight, self.bias, self.dtype, self.one_hot, trained))

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_part("", x)

    def apply_part(self, part: str, x: Tensor) -> Tensor:
        return self.calls[part].linear(x) if self.calls else self.shared(part)(x)


class SplitLinear(Linear):
    """nn.Linear without bias of two concatenated inputs, as the sum of `first(x)` and `second(y)`.

    So the part of an input that is known for all steps of a rollout can be computed for all of them at once.

    Args:
        sizes: of the two inputs.
    """

    parts = ("first", "second")

    def __init__(self, sizes: tuple[int, int], outputs: int, dtype=torch.float32, one_hot: int = 0):
        super().__init__(sum(sizes), outputs, bias=False, dtype=dtype, one_hot=one_hot)
        self.sizes = sizes

    def shared(self, part: str = "") -> "_Matrix":
        weights = _shared(self, "weights", lambda trained: self.weight.tensor_split([self.sizes[0]], 1))
        weight, one_hot = (weights[0], self.one_hot) if part == "first" else (weights[1], 0)
        return _shared(self, part, lambda trained: _Matrix(weight, None, self.dtype, one_hot, trained))

    def first(self, x: Tensor) -> Tensor:
        return self.apply_part("first", x)

    def second(self, y: Tensor) -> Tensor:
        return self.apply_part("second", y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x) + self.second(y)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension in float32, and what a subclass lets follow it.

    A subclass defines `after` the normalization, and `fused`, the same in one function.
    """

    parts = ("",)

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps)
        self.calls: dict[str, _Call] = {}

    def after(self, x: Tensor, *args) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def fused(x: Tensor, *args) -> Tensor:
        """x, other inputs, weight, bias and eps → output."""
        raise NotImplementedError

    def shared(self, part: str = "") -> "_Norm":
        return _shared(self, part, lambda trained: _Norm(self, trained))

    def forward(self, x: Tensor, *args) -> Tensor:
        if self.calls:
            return self.after(self.calls[""].norm(x), *args).to(args[0].dtype if args else x.dtype)
        shared = self.shared()
        return self.fused(x, *args, shared.weight, shared.bias, self.eps)


class _Gradients:
    """Inputs of a layer's calls and the gradients at their outputs, of one backward pass.

    Args:
        function: inputs (rows, in) and gradients (rows, out) → the gradients of weight and bias, None for no bias.
    """

    def __init__(self, function: Callable):
        self.task, self.inputs, self.grads, self.function = -1, [], [], function

    def add(self, x: Tensor, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self.task:  # what is left of another backward pass, which did not ask for this weight
            self.task, self.inputs, self.grads = task, [], []
        self.inputs.append(x.flatten(0, -2))
        self.grads.append(grad.flatten(0, -2))

    def compute(self) -> tuple[Tensor, Tensor | None] | None:
        """Over the rows of all calls; None where this backward pass met none."""
        found = (self.inputs, self.grads) if self.task == torch._C._current_graph_task_id() else ([], [])
        self.inputs, self.grads = [], []
        if not found[0]:
            return None
        return self.function(*(rows[0] if len(rows) == 1 else torch.cat(rows) for rows in found))


class _Parameters(torch.autograd.Function):
    """Weight and bias in the type of a layer's work; the gradients of all calls at the end of the backward pass."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gradients: _Gradients):
        ctx.gradients, ctx.dtype = gradients, weight.dtype
        ctx.set_materialize_grads(False)
        # a tensor of its own in either case: autograd takes no input for an output
        return weight.to(dtype, copy=True), bias.to(dtype, copy=True) if bias is not None else None

    @staticmethod
    def backward(ctx, *_):
        found = ctx.gradients.compute()
        return (None, None, None, None) if found is None else (found[0].to(ctx.dtype), found[1], None, None)


class _Product(torch.autograd.Function):
    """x @ weight.T + bias; its backward pass leaves the weight's gradient to `_Parameters`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: "_Matrix"):
        ctx.save_for_backward(x, weight)
        ctx.gradients = matrix.gradients
        return matrix.product(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        if ctx.gradients is not None:
            ctx.gradients.add(x, grad)
        wanted = ctx.needs_input_grad[0] and _is_wanted(ctx.next_functions[0][0])
        return (grad @ weight if wanted else None), None, None, None


def _is_wanted(node) -> bool:
    """Whether the backward pass at work goes on into a node of the graph."""
    leaf = node.name().endswith("AccumulateGrad")  # about which torch does not answer
    return leaf or torch._C._will_engine_execute_node(node)


class _Layer:
    """Parameters of a module for the calls of a rollout.

    Args:
        gradients: see `_Gradients`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gradients: Callable, trained: bool):
        trained = trained and weight.requires_grad and torch.is_grad_enabled()
        self.weight, self.bias, self.dtype = weight, bias, dtype
        self.gradients = _Gradients(gradients) if trained else None
        if not trained:
            self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype) if bias is not None else None

    @functools.cached_property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in `dtype`, whose gradients are those of all calls."""
        return _Parameters.apply(self.weight, self.bias, self.dtype, self.gradients)


class _Matrix(_Layer):
    """A linear map."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, one_hot: int, trained: bool):
        def gradients(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
            return grad.to(dtype).T @ x, grad.sum(0, dtype=torch.float32) if biased else None

        biased = bias is not None
        super().__init__(weight, bias, dtype, gradients, trained)
        if self.gradients is not None:
            self.weight, self.bias = self.parameters
        self.one_hot = one_hot if _fusing == "native" and native.supports(weight) and dtype == torch.float32 else 0
        if self.one_hot:
            self.columns = self.weight.detach()[:, :one_hot].T.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.gradients is None and not self.one_hot:
            return self.product(x)
        return _Product.apply(x, self.weight, self.bias, self)

    def product(self, x: Tensor) -> Tensor:
        if not self.one_hot:
            return F.linear(x, self.weight, self.bias)
        y = F.linear(x[..., self.one_hot :], self.weight[:, self.one_hot :], self.bias)
        native.add_sparse_product(y, x, self.columns)
        return y


class _Norm(_Layer):
    """The parameters of a LayerNorm."""

    def __init__(self, norm: LayerNorm, trained: bool):
        def gradients(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
            return norm_gradients(x, grad, eps)

        self.eps = eps = norm.eps
        super().__init__(norm.weight, norm.bias, norm.weight.dtype, gradients, trained)


# Steps that are compiled whole


class _Tap(torch.autograd.Function):
    """Zeros (N, out), the gradient at which is that at the output of a layer to which they are added."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: int, gradients: _Gradients, seen: list):
        ctx.gradients, ctx.seen = gradients, seen
        return _zero(weight.device).expand(rows, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.gradients.add(*ctx.seen, grad)
        return None, None, None, None


@functools.cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)


class _Call:
    """A part of a module at one step: its parameters are constants, `tap` sees the gradient at its output."""

    def __init__(self, layer: _Layer, tap: Tensor | None):
        self.layer, self.tap, self.x = layer, tap, None

    def linear(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        x = x.to(weight.dtype)
        self.x = x.detach()
        y = F.linear(x, weight.detach(), None if bias is None else bias.detach())
        # in float32: a product would take the tap as what to add to, and copy it first
        return y if self.tap is None else (y.float() + self.tap).to(y.dtype)

    def norm(self, x: Tensor) -> Tensor:
        self.x = x.detach()
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
        y = F.layer_norm(x.float(), weight.shape, weight, bias, self.layer.eps)
        return y if self.tap is None else y + self.tap


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


def step(frozen: bool = False) -> Callable[[Callable], Callable]:
    """Marks a step of a rollout, a method of a module, to be compiled whole where PyTorch compiles.

    PyTorch sees the module's parameters as constants; their gradients come from what went into each layer and from the
    gradient at its output, as elsewhere in a rollout. Tensors among the arguments are (N, ...); a layer is called once
    at most. Random numbers are those of the plain function.

    Args:
        frozen: no gradient reaches the module's parameters.
    """

    def mark(function: Callable) -> Callable:
        def compiled(owner: nn.Module, *args):
            rows = next(len(arg) for arg in args if isinstance(arg, Tensor))
            modules = [module for module in owner.modules() if isinstance(module, Linear | LayerNorm)]
            taken = []
            for module in modules:
                for part in module.parts:
                    layer, seen = module.shared(part), []
                    wanted = layer.gradients is not None
                    tap = _Tap.apply(layer.parameters[0], rows, layer.gradients, seen) if wanted else None
                    module.calls[part] = _Call(layer, tap)
                    taken.append((module.calls[part], seen))
            try:
                with fusing("traced"):
                    return _compiled(function)(owner, *args)
            finally:
                for called, seen in taken:
                    seen.append(called.x)
                for module in modules:
                    module.calls = {}

        @functools.wraps(function)
        def call(owner: nn.Module, *args):
            before, _scope.frozen = _scope.frozen, frozen or _scope.frozen
            try:
                return compiled(owner, *args) if _fusing == "compiled" else function(owner, *args)
            finally:
                _scope.frozen = before

        return rollout(call)

    return mark


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
    note: str = ""  # a line for the log: what was chosen, and why not more


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
    """Compiles a small function and its gradient; returns why that failed, or nothing."""
    try:
        x = torch.ones(4, 8, device=device, requires_grad=True)
        with torch.enable_grad():
            torch.compile(lambda x: F.silu(x).sum(), dynamic=False, fullgraph=True)(x).backward()
    except Exception as error:  # a missing compiler shows in many ways
        return f"; nothing is compiled ({tools.first_line(error)})"
    return ""


class GraphedFunction:
    """A function from a dict of tensors to a dict of tensors, run as a `Backend` says.

    Captured, it works on copies of its inputs: the first calls run as they are, on a stream of their own; then one call
    is recorded as a CUDA graph, and every later one replays it. The function must not decide anything in Python between
    calls, wait for the device, or keep its inputs, whose shapes stay the same. If compiling or recording fails, the
    reason is logged and it runs without.

    Args:
        name: in what is said.
        log: takes a line; None for silence.
    """

    WARM_UP = 3  # calls before the capture, as torch asks for

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
                self.log(f"{self.name}: ready after {self.seconds:.0f} s ({last} calls)")
        return out

    def compute(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self.function(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.log(f"{self.name}: nothing is compiled ({tools.first_line(error)})")
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
            self.log(f"{self.name}: not captured as a CUDA graph ({tools.first_line(error)})")
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
