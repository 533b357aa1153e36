"""Twins of layers. A module becomes one by its class, so that its parameters and their names remain.

Linear maps and convolutions compute in the backend's type, norms in float32. The output of a linear map is float32
unless a norm of ours follows it directly (`HALF_OUTPUTS`); NormSiLU returns the type of its input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks

from . import native
from .backend import Mode
from .functions import compiled


def hooked(*modules: nn.Module) -> bool:
    """Whether somebody's hooks see or change the calls of these modules."""
    names = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
    return any(len(getattr(module, name)) > 0 for module in modules for name in names)


def rewritten(*modules: nn.Module) -> bool:
    """Whether somebody has given these modules a forward pass of their own."""
    return any("forward" in module.__dict__ for module in modules)


class Twin:
    """What a twin has besides its parameters."""

    mode: Mode
    calls: dict  # how a compiled step calls this layer: see steps.py
    half: bool  # whether the output stays in the backend's type
    chunks: int  # equal parts in which a norm's output is read

    def out(self, y: Tensor) -> Tensor:
        return y if self.half else y.float()


class Linear(Twin, nn.Linear):
    def parts(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Weight and bias of each part that is called on its own."""
        return {"": (self.weight, self.bias)}

    def forward(self, x: Tensor) -> Tensor:
        return self.part("", x)

    def part(self, name: str, x: Tensor) -> Tensor:
        x = self.mode.cast(x)
        if self.calls:
            return self.out(self.calls[name].linear(x))
        weight, bias = self.parts()[name]
        return self.out(F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)))


class JointLinear(Linear, networks.JointLinear):
    def parts(self) -> dict[str, tuple[Tensor, None]]:
        first, second = self.weight.split(self.sizes, 1)
        return {"first": (first, None), "second": (second, None)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.mode.cast(x)
        return self.out(F.linear(x, self.weight.to(x.dtype)))

    def first(self, x: Tensor) -> Tensor:
        return self.part("first", x)

    def second(self, y: Tensor) -> Tensor:
        return self.part("second", y)


class LayerNorm(Twin, nn.LayerNorm):
    """The output is float32."""

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {"": (self.weight, self.bias)}

    def forward(self, x: Tensor) -> Tensor:
        if self.calls:
            return self.calls[""].norm(x)
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


class NormSiLU(networks.NormSiLU, LayerNorm):
    """Its plain forward pass finds the LayerNorm above as its base class."""

    def forward(self, x: Tensor) -> Tensor:
        mode = self.mode
        if not self.calls and not torch.compiler.is_compiling():
            if mode.fuse == "native" and native.supports(x) and native.reads(self, x.shape[-1]):
                return native.norm_silu(x, self.weight, self.bias, self.eps)
            if mode.fuse == "compiled":
                function = native.plain_norm_silu(self.weight.numel(), self.eps)
                return mode.run(function, compiled(function), (x, self.weight, self.bias))
        return super().forward(x).to(x.dtype)


class GRU(Twin, networks.GRU):
    def forward(self, x: Tensor, state: networks.State) -> networks.State:
        own = type(self.linear) is Linear and type(self.norm) is LayerNorm  # somebody may have put others there
        if not own or hooked(self.linear, self.norm) or rewritten(self.linear, self.norm):
            return super().forward(x, state)
        deter = state["deter"]
        fits = self.linear.out_features == 3 * deter.shape[-1] and native.reads(self.norm, self.linear.out_features)
        if self.mode.fuse == "native" and native.supports(x, deter) and fits:
            parts = self.linear(torch.cat([x, deter.to(x.dtype)], -1))
            return {"deter": native.gru_gates(parts, deter, self.norm.weight, self.norm.bias, self.norm.eps)}
        if self.norm.calls:
            # cast first, so that the input's norm writes into the concatenation
            joint = torch.cat([self.mode.cast(x), self.mode.cast(deter)], -1)
            linear, norm = self.linear.calls[""], self.norm.calls[""]
            return {"deter": networks.update_deter(*linear.normed_parts(norm, joint), deter)}
        return super().forward(x, state)


class Encoder(networks.Encoder):
    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return super().forward(obs).float()


class Conv2d(Twin, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = self.mode.cast(x)
        weight = self.weight.to(x.dtype, memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        # the gradients of a CPU's own convolutions are slow here
        small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[2] * x.shape[3] <= 64
        shape = self.kernel_size, self.stride, self.padding, self.dilation, self.groups, bias
        if small and shape == ((4, 4), (2, 2), (1, 1), (1, 1), 1, None):
            return self.out(Halving.apply(x, weight))
        return self.out(F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups))


class ConvTranspose2d(Twin, nn.ConvTranspose2d):
    def forward(self, x: Tensor) -> Tensor:
        x = self.mode.cast(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        geometry = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return self.out(F.conv_transpose2d(x, self.weight.to(x.dtype), bias, *geometry))


TWINS = {
    nn.Linear: Linear,
    nn.LayerNorm: LayerNorm,
    nn.Conv2d: Conv2d,
    nn.ConvTranspose2d: ConvTranspose2d,
    networks.JointLinear: JointLinear,
    networks.NormSiLU: NormSiLU,
    networks.GRU: GRU,
    networks.Encoder: Encoder,
}

# layers whose output is read by a norm of ours, by the module that they belong to
HALF_OUTPUTS = {
    networks.Dense: ("linear",),
    networks.JointDense: ("linear",),
    networks.GRU: ("linear",),
    networks.ConvEncoder: ("convs",),
    networks.ConvDecoder: ("start", "convs"),
}


def replace_layers(root: nn.Module, mode: Mode) -> None:
    """Makes twins of all layers below a module that have one; the others get float32 inputs."""
    half = {
        layer
        for module in root.modules()
        for name in HALF_OUTPUTS.get(type(module), ())
        if hasattr(module, name)
        for layer in (getattr(module, name).children() if name == "convs" else [getattr(module, name)])
    }
    gates = {getattr(module, "norm", None) for module in root.modules() if type(module) is networks.GRU}
    for module in root.modules():
        twin = None if type(module) in mode.changed else TWINS.get(type(module))
        if twin is not None and getattr(module, "padding_mode", "zeros") == "zeros":
            module.__class__ = twin
            module.mode, module.calls, module.half = mode, {}, module in half
            module.chunks = 3 if module in gates else 1
        elif next(module.parameters(recurse=False), None) is not None and mode.dtype != torch.float32:
            module.register_forward_pre_hook(_float_inputs, with_kwargs=True)


def _float_inputs(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def convert(x):
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    return tuple(map(convert, args)), {key: convert(value) for key, value in kwargs.items()}


class Halving(torch.autograd.Function):
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
