"""Twins are used only while they compute what the method's files say.

A twin repeats an equation of networks.py, distributions.py or tools.py. Before an agent gets twins, each of them is
compared with the equation as it stands there, values and gradients, on small random inputs. Where somebody has changed
the equation, its twin is left out: what is written is computed, and the log says which part has become slower.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import networks

from .backend import Backend, Mode
from .functions import COMPILED, twins
from .layers import replace_layers
from .steps import Call, Layer

TOLERANCE = 1e-4  # relative to the largest entry
ROWS = 3


def leave_out_changed(mode: Mode) -> None:
    """Fills `mode.changed`: classes of layers and names of functions whose twins compute something else."""
    mode.changed, float32 = set(), Mode(Backend(mode.fuse), mode.log)
    with torch.random.fork_rng([]), torch.enable_grad(), float32.rollout():
        torch.manual_seed(0)
        for plain, name, arguments in layer_examples(mode):
            for parameter in plain.parameters():
                nn.init.normal_(parameter)
            twin = copy.deepcopy(plain)
            replace_layers(twin, float32)
            methods = getattr(plain, name), in_step(twin, name, mode.fuse)
            if not agree(*methods, arguments, list(plain.parameters()), list(twin.parameters())):
                mode.changed.add(type(plain))
        examples = function_examples()
        for module, name, twin in twins(float32):
            as_written = mode.fuse == "compiled" and name in COMPILED.get(module, ())
            if not as_written and not agree(getattr(module, name), twin, examples[name]):
                mode.changed.add(name)
    for item in sorted(getattr(item, "__name__", item) for item in mode.changed):
        mode.log(f"{item} does not compute what its faster twin does: it runs as it is written")


def layer_examples(mode: Mode) -> list[tuple[nn.Module, str, list]]:
    """Layers, a method of each, and its arguments."""
    joint = networks.JointLinear((4, 3), 5)
    examples = [(joint, "first", [torch.randn(ROWS, 4)]), (joint, "second", [torch.randn(ROWS, 3)])]
    if mode.fuse:
        state = {"deter": torch.randn(ROWS, 6)}
        examples.append((networks.GRU(5, 6), "forward", [torch.randn(ROWS, 5), state]))
    if mode.fuse == "native":  # otherwise it is compiled as it is written
        examples.append((networks.NormSiLU(7), "forward", [torch.randn(ROWS, 7)]))
    return examples


def function_examples() -> dict[str, list]:
    """Arguments of functions, by name."""
    probs = torch.rand(ROWS, 4, 5).softmax(-1)
    return {
        "mix": [torch.randn(ROWS, 5), 0.1],
        "pick": [probs, torch.rand(ROWS, 4)],
        "cumulate": [probs],
        "stack": [[{"deter": torch.randn(ROWS, 2)} for _ in range(4)], 1],
        "ema": [nn.Linear(3, 2), nn.Linear(3, 2), 0.3],
    }


def in_step(layer: nn.Module, name: str, fuse: str) -> Callable:
    """A layer's method as a compiled step calls it, without the compiler."""

    def call(*arguments):
        parts = [part for part in layer.modules() if hasattr(part, "parts")]
        calls = [{key: Call(Layer(part, key, True), ROWS) for key in part.parts()} for part in parts]
        for part, own in zip(parts, calls, strict=True):
            part.calls = own
        out = getattr(layer, name)(*arguments)
        for own in calls:
            for one in own.values():
                one.end()
        return out

    return call if fuse == "compiled" else getattr(layer, name)


def agree(plain: Callable, twin: Callable, arguments: list, *parameters: list[Tensor]) -> bool:
    try:
        found = [outcome(*call) for call in zip((plain, twin), (arguments,) * 2, parameters or ([], []), strict=True)]
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # it takes or returns something else
        return False
    return len(found[0]) == len(found[1]) and all(map(close, *found))


def outcome(call: Callable, arguments: list, parameters: list[Tensor]) -> list[Tensor | None]:
    """Values of a call, and gradients of a random loss of them."""
    arguments = copy.deepcopy(arguments)
    leaves = [x.requires_grad_() for x in tensors(arguments) if x.is_floating_point()] + parameters
    values = list(tensors([call(*arguments)]))
    if not values:  # it changes modules
        values = [p.detach() for module in arguments if isinstance(module, nn.Module) for p in module.parameters()]
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in values)
    return [*values, *torch.autograd.grad(loss, leaves, allow_unused=True)] if loss.requires_grad else values


def tensors(value) -> Iterable[Tensor]:
    """Tensors in nested lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def close(expected: Tensor | None, found: Tensor | None) -> bool:
    if expected is None or found is None:
        return all(x is None or not x.any() for x in (expected, found))
    return expected.shape == found.shape and bool(
        (expected - found).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6)
    )
