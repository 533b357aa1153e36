"""Steps of a rollout: their weights are cast once and get one gradient; on a GPU, a step is compiled whole.

A rollout calls the same layers at every step. As they are written, they would cast their weights each time, and each
time compute and add up a weight gradient. Here, within a rollout (`Mode.rollout`), weights are cast once, and their
gradient is one product over the rows of all steps, from the input of each call and the gradient at its output. A
compiled step has the weights as constants; a layer that it calls again, or on other rows than the step's, gets its
gradient through its weights as usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks

from .backend import Mode
from .functions import compiled
from .layers import LayerNorm, Linear

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
                return self.mode.run(function, self.compiled, (self.owner, *args), kwargs)
            return self.eager(function, *args, **kwargs)

    def eager(self, function: Callable, *args, **kwargs):
        layers = [layer for layer in self.owner.modules() if isinstance(layer, Linear)]
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
                if isinstance(layer, Linear | LayerNorm):
                    layer.calls = {part: Call(self.layer(layer, part), rows) for part in layer.parts()}
                    made.append(layer)
            result = compiled(getattr(type(owner), self.name))(owner, *args, **kwargs)
            for layer in made:
                for call in layer.calls.values():
                    call.end()
            return result
        finally:
            for layer in made:
                layer.calls = {}

    def layer(self, layer: Linear | LayerNorm, part: str) -> Layer:
        trained = torch.is_grad_enabled() and layer.parts()[part][0].requires_grad
        key = layer, part, trained
        if key not in self.mode.layers:
            self.mode.layers[key] = Layer(layer, part, trained)
        return self.mode.layers[key]


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
        self.seen: list[tuple[Tensor, Tensor]] = []  # input of a call, gradient at its output

    def compute(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, over the rows of all calls; None if the backward pass reached none."""
        if not self.seen:
            return None, None
        # (rows, in), (rows, out)
        x, grad = (torch.cat(rows) for rows in zip(*self.seen, strict=True))
        self.seen = []
        if self.eps is not None:
            return compiled(norm_gradients)(x, grad, self.eps)
        return (grad.to(self.dtype).T @ x).float(), grad.sum(0, dtype=torch.float32) if self.biased else None


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
        # always copies: autograd does not allow an input as an output
        return weight.to(gradients.dtype, copy=True), bias.to(gradients.dtype, copy=True) if bias is not None else None

    @staticmethod
    def backward(ctx, *direct):
        """`direct` are the gradients of calls that have no tap."""
        found = zip(ctx.gradients.compute(), direct, strict=True)
        return *(b.float() if a is None and b is not None else a if b is None else a + b for a, b in found), None


class Call:
    """A layer in one compiled step: its parameters are constants, `tap` sees the gradient at its output."""

    def __init__(self, layer: Layer, rows: int):
        self.layer, self.rows, self.x, self.seen = layer, rows, None, []
        self.tap = Tap.apply(layer.weight, rows, layer.gradients, self.seen) if layer.trained else None

    def taps(self, x: Tensor) -> bool:
        """Whether this call of the layer is the one whose gradient the tap sees."""
        first = self.tap is not None and self.x is None and x.shape[:-1] == (self.rows,)
        if first:
            self.x = x.detach()
        return first

    def linear(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if not self.taps(x):
            return F.linear(x, weight, bias)
        y = F.linear(x, weight.detach(), None if bias is None else bias.detach())
        # in float32: otherwise the product would accumulate into the tap, and copy it first
        return (y.float() + self.tap).to(y.dtype)

    def norm(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if not self.taps(x):
            return F.layer_norm(x.float(), weight.shape, weight, bias, self.layer.eps)
        return F.layer_norm(x.float(), weight.shape, weight.detach(), bias.detach(), self.layer.eps) + self.tap

    def end(self) -> None:
        """Passes the input on to the tap."""
        if self.x is not None:
            self.seen.append(self.x)


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
        ctx.gradients.seen.append((x.flatten(0, -2), grad.flatten(0, -2)))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None, None


class Tap(torch.autograd.Function):
    """Zeros (N, out) that are added to a layer's output: their gradient is that of the output."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: int, gradients: Gradients, seen: list):
        ctx.gradients, ctx.seen = gradients, seen
        ctx.set_materialize_grads(False)
        return zero(weight.device).expand(rows, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        if grad is not None and ctx.seen:
            ctx.gradients.seen.append((*ctx.seen, grad))
        return None, None, None, None


@functools.cache
def zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)
