"""Steps of a rollout: their weights are cast once and get one gradient; on a GPU, a step is compiled whole.

A rollout calls the same layers at every step. As they are written, they would cast their weights each time, and each
time compute and add up a weight gradient. Here, within a rollout (`Mode.rollout`), weights are cast once, and their
gradient is one product over the rows of all steps, from the input of each call and the gradient at its output. A
compiled step has the weights as constants; a layer that it calls again, or on other rows than the step's, gets its
gradient through its weights as usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import networks

from .backend import Mode
from .functions import compiled
from .layers import LayerNorm, Linear, hooked

STEPS = {networks.RSSM: ("obs_step", "img_step"), networks.Actor: ("act",)}


class Step:
    """A method of a module whose tensor arguments are (N, ...), compiled.

    Random numbers equal those of the plain method.
    """

    def __init__(self, owner: nn.Module, name: str, mode: Mode):
        self.owner, self.name, self.mode = owner, name, mode

    def __call__(self, *args, **kwargs):
        function = getattr(type(self.owner), self.name)
        if torch.compiler.is_compiling():
            return function(self.owner, *args, **kwargs)
        with self.mode.rollout():
            if self.mode.fuse == "compiled":
                for arg in (*args, *kwargs.values()):
                    if isinstance(arg, State):
                        arg.refuse_hooks()
                return self.mode.run(function, self.compiled, (self.owner, *args), kwargs)
            return self.eager(function, *args, **kwargs)

    def eager(self, function: Callable, *args, **kwargs):
        layers = [layer for layer in self.owner.modules() if isinstance(layer, Linear) and is_fixed(layer)]
        try:
            for layer in layers:
                layer.calls = {part: EagerCall(self.layer(layer, part)) for part in layer.parts()}
            return function(self.owner, *args, **kwargs)
        finally:
            for layer in layers:
                layer.calls = {}

    def compiled(self, owner: nn.Module, *args, **kwargs):
        rows, made = count_rows(args, kwargs), []
        try:
            for layer in owner.modules():
                if isinstance(layer, Linear | LayerNorm) and is_fixed(layer):
                    layer.calls = {part: Call(self.layer(layer, part), rows) for part in layer.parts()}
                    made.append(layer)
            step = getattr(type(owner), self.name)
            if isinstance(owner, networks.RSSM) and torch.is_grad_enabled():
                args, kwargs = tuple(map(next_input, args)), {k: next_input(arg) for k, arg in kwargs.items()}
                result = State(*compiled(carrying(step, self.name == "img_step"))(owner, *args, **kwargs))
            else:
                result = compiled(step)(owner, *args, **kwargs)
            for layer in made:
                for call in layer.calls.values():
                    call.end()
            return result
        finally:
            for layer in made:
                layer.calls = {}

    def layer(self, layer: Linear | LayerNorm, part: str) -> Layer:
        """The one of this rollout, unless a loss has put other parameters there since."""
        own = [p for p in (layer.weight, layer.bias) if p is not None]
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in own)
        key = layer, part, trained, *((p, p.requires_grad, p.data_ptr(), version(p)) for p in own)
        if key not in self.mode.layers:
            self.mode.layers[key] = Layer(layer, part, trained)
        return self.mode.layers[key]


class State(dict):
    """The state that a compiled step returns, with what its readers need of it.

    So the gradients that reach them are added within the step's own backward pass.

    Args:
        again: of a step with an observation: its carried part, for the next step; the state is for the losses.
        feat: of one without: its features, for the losses; the state is for the next step.
    """

    def __init__(self, state: networks.State, again: networks.State, feat: Tensor | None):
        super().__init__(state)
        self.again, self.feat = again, feat
        self.returned = [(key, value, version(value)) for key, value in state.items() if isinstance(value, Tensor)]

    def unchanged(self) -> bool:
        """Whether the state is what the step returned: a loss may have changed it, but not what belongs to it."""
        return all(self.get(key) is value and version(value) == then for key, value, then in self.returned)

    def refuse_hooks(self) -> None:
        """Raises RuntimeError for a hook of a tensor of the state: it would see only a part of the gradient."""
        for key, value, _ in self.returned:
            if value._backward_hooks or value.retains_grad:
                raise RuntimeError(
                    f"a hook or retain_grad of state[{key!r}] sees only a part of its gradient, as its "
                    "step is compiled: use --compile False"
                )


def version(x: Tensor) -> int:
    """How often x has been changed in place; 0 for a tensor of inference mode, which does not count."""
    return 0 if x.is_inference() else x._version


def next_input(arg):
    """An argument of a step: of a state, the tensors for the next step."""
    return {**arg, **arg.again} if isinstance(arg, State) and arg.unchanged() else arg


@functools.cache
def carrying(step: Callable, feat: bool) -> Callable:
    """A step of the dynamics that returns what makes a `State`."""

    @functools.wraps(step)
    def call(owner: networks.RSSM, *args, **kwargs) -> tuple[networks.State, networks.State, Tensor | None]:
        state = step(owner, *args, **kwargs)
        if feat:
            return state, {}, type(owner).feat(owner, state)
        return state, {k: state[k].clone() for k in owner.carried}, None

    return call


class Feat:
    """`RSSM.feat`, which reads the features that a compiled step has returned."""

    def __init__(self, owner: networks.RSSM):
        self.owner = owner

    def __call__(self, state: networks.State, *args, **kwargs) -> Tensor:
        if isinstance(state, State) and not args and not kwargs:
            state.refuse_hooks()
            if state.feat is not None and state.unchanged():
                return state.feat
        return type(self.owner).feat(self.owner, state, *args, **kwargs)


def is_fixed(layer: nn.Module) -> bool:
    """Whether a layer's parameters stay the same in a rollout: a call may set them (spectral_norm, weight_norm)."""
    return not hooked(layer) and not is_parametrized(layer)


def count_rows(args: tuple, kwargs: dict) -> int:
    """N, of the first tensor among the arguments of a step, which may be states."""
    for arg in (*args, *kwargs.values()):
        for value in arg.values() if isinstance(arg, dict) else (arg,):
            if isinstance(value, Tensor):
                return len(value)
    raise TypeError("a step takes a tensor or a state")


class Layer:
    """The parameters of a part of a layer for the steps of a rollout, in the type that it computes in."""

    def __init__(self, module: Linear | LayerNorm, part: str, trained: bool):
        weight, bias = module.parts()[part]
        self.eps = getattr(module, "eps", None)
        self.trained = trained
        dtype = module.mode.dtype if self.eps is None else torch.float32
        self.half, self.chunks = module.half, module.chunks
        self.out_dtype = dtype if module.half else torch.float32  # type of the output and its gradient
        self.gradients = Gradients(dtype, self.eps, bias is not None)
        with torch.set_grad_enabled(trained):
            self.weight, self.bias = Parameters.apply(weight, bias, self.gradients)


class Gradients:
    """The gradients of a layer's parameters, from the inputs and output gradients of its calls in a rollout.

    Args:
        dtype: that the layer computes in.
        eps: of a norm; None for a linear map.
        biased: whether there is a bias.
    """

    def __init__(self, dtype: torch.dtype, eps: float | None, biased: bool):
        self.dtype, self.eps, self.biased = dtype, eps, biased
        self.seen: list[tuple[Tensor, ...]] = []  # input of a call, gradient at its output, maybe in parts

    def compute(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, over the rows of all calls; None if the backward pass reached none."""
        if not self.seen:
            return None, None
        # (rows, in), (rows, out)
        x, *parts = (torch.cat(rows) for rows in zip(*self.seen, strict=True))
        grad, self.seen = torch.cat(parts, -1) if len(parts) > 1 else parts[0], []
        if self.eps is not None:
            weight, bias = compiled(norm_gradients)(x, grad, self.eps)
            return weight, bias if self.biased else None
        bias = grad.sum(0, dtype=torch.float32) if self.biased else None
        if x.is_cuda and x.dtype != torch.float32:
            return torch.mm(grad.to(self.dtype).T, x, out_dtype=torch.float32), bias
        return (grad.to(self.dtype).T @ x).float(), bias


def norm_gradients(x: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Input and gradient at the output of a LayerNorm, (N, C) → the gradients of its parameters, (C,)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    return (grad * normed).sum(0), grad.sum(0)


class Parameters(torch.autograd.Function):
    """Weight and bias in the type that a layer computes in; their gradients at the end of the backward pass."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, gradients: Gradients):
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return as_constant(weight, gradients.dtype), None if bias is None else as_constant(bias, gradients.dtype)

    @staticmethod
    def backward(ctx, *direct):
        """`direct` are the gradients of calls that have no tap."""
        found = zip(ctx.gradients.compute(), direct, strict=True)
        return *(b.float() if a is None and b is not None else a if b is None else a + b for a, b in found), None


def as_constant(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, or a view: autograd does not allow an input as an output."""
    return parameter.view_as(parameter) if parameter.dtype == dtype else parameter.to(dtype)


class Call:
    """A layer in one compiled step: its parameters are constants, `taps` see the gradient at its output."""

    def __init__(self, layer: Layer, rows: int):
        self.layer, self.rows, self.x, self.seen = layer, rows, None, []
        self.taps = Taps.apply(layer.weight, layer, rows, self.seen) if layer.trained else None

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Weight and bias; as constants, with the taps, in the call whose gradient the taps see."""
        if self.taps is None or self.x is not None or x.shape[:-1] != (self.rows,):
            return self.layer.weight, self.layer.bias, None
        self.x = x.detach()
        return self.layer.weight.detach(), None if self.layer.bias is None else self.layer.bias.detach(), self.taps

    def linear(self, x: Tensor) -> Tensor:
        weight, bias, taps = self.parameters(x)
        y = F.linear(x, weight, bias)
        if taps is None:
            return y
        # another type or shape: the product would otherwise accumulate into the tap, and copy it first
        return (y.unsqueeze(1) + taps[0].unsqueeze(1)).squeeze(1) if self.layer.half else y.float() + taps[0]

    def norm(self, x: Tensor) -> Tensor:
        weight, bias, taps = self.parameters(x)
        y = F.layer_norm(x.float(), weight.shape, weight, bias, self.layer.eps)
        return y if taps is None else y + (torch.cat(taps, -1) if len(taps) > 1 else taps[0])

    def normed_parts(self, norm: Call, x: Tensor) -> Sequence[Tensor]:
        """`norm` of `linear` of x in equal parts: one kernel computes the norm and all that reads the parts."""
        weight, bias, taps = self.parameters(x)
        y, chunks = F.linear(x, weight, bias), norm.layer.chunks
        parts = y.chunk(chunks, -1) if taps is None else TappedParts.apply(y, *taps, chunks)
        weight, bias, taps = norm.parameters(y)
        parts, count = [part.float() for part in parts], y.shape[-1]
        mean = sum(part.sum(-1, keepdim=True) for part in parts) / count
        parts = [part - mean for part in parts]
        scale = torch.rsqrt(sum((part * part).sum(-1, keepdim=True) for part in parts) / count + norm.layer.eps)
        weights, biases = (parameter.chunk(len(parts)) for parameter in (weight, bias))
        parts = [part * scale * w + b for part, w, b in zip(parts, weights, biases, strict=True)]
        return parts if taps is None else [part + tap for part, tap in zip(parts, taps, strict=True)]

    def end(self) -> None:
        """Passes the input on to the tap."""
        if self.x is not None:
            self.seen += self.x, self.x._version


class EagerCall:
    """A linear layer in the steps of a rollout that are not compiled."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def linear(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.trained:
            return F.linear(x, layer.weight, layer.bias)
        return RecordedLinear.apply(x, layer.weight, layer.bias, layer.gradients)


class RecordedLinear(torch.autograd.Function):
    """A linear map that leaves the gradient of its parameters to the end of the rollout's backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, gradients: Gradients):
        ctx.save_for_backward(x, weight)
        ctx.gradients = gradients
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        # a pass may ask for no gradient of the parameters, which no public function tells
        if torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            ctx.gradients.seen.append((x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None, None


class Taps(torch.autograd.Function):
    """Zeros (N, out), in equal parts, that are added to a layer's output: their gradient is that of the output."""

    @staticmethod
    def forward(ctx, weight: Tensor, layer: Layer, rows: int, seen: list) -> tuple[Tensor, ...]:
        ctx.gradients, ctx.seen = layer.gradients, seen
        ctx.set_materialize_grads(False)
        part = zero(weight.device, layer.out_dtype).expand(rows, weight.shape[0] // layer.chunks)
        return tuple(part.view_as(part) for _ in range(layer.chunks))

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        if grads[0] is not None and ctx.seen:
            x, version = ctx.seen
            if x._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    "the input of a layer in a compiled step"
                )
            ctx.gradients.seen.append((x, *grads))
        return None, None, None, None


class TappedParts(torch.autograd.Function):
    """Equal parts of y plus tap; the gradient, concatenated once, is that of both."""

    @staticmethod
    def forward(ctx, y: Tensor, tap: Tensor, parts: int) -> tuple[Tensor, ...]:
        return tuple(map(torch.add, y.chunk(parts, -1), tap.chunk(parts, -1)))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad = torch.cat(grads, -1)
        return grad, grad, None


@functools.cache
def zero(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), device=device, dtype=dtype)
