"""Twins are used only while they compute what the method's files define.

A twin repeats an equation of networks.py, distributions.py or tools.py. Before an agent gets twins, each of them is
compared with the equation as it stands there, values and gradients, on random inputs: the agent's own layers, with
random parameters, and small examples for functions. Where somebody has changed the equation, its twin is left out: what
is written is computed, and the log names the part that has become slower.
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
# Standard deviations of inputs and parameters: what an equation does to large numbers shows in large ones alone
SCALES = ((1, 1), (1000, 1), (1, 100))


def leave_out_changed(agent: nn.Module, mode: Mode) -> None:
    """Fills `mode.changed`: classes of layers and names of functions whose twins compute something else."""
    float32 = Mode(Backend(mode.fuse), mode.log)
    eager = torch.compiler.set_stance("force_eager")  # nothing is compiled for this
    with torch.random.fork_rng([]), torch.enable_grad(), float32.rollout(), eager:
        torch.manual_seed(0)
        repeating = [module for module in agent.modules() if methods(module, mode)]
        # alike ones once
        layers = {f"{x} {[item for item in vars(x).items() if item[0][0] != '_']}": x for x in repeating}
        for layer in layers.values():
            if not all(layer_agrees(layer, name, *scale, float32) for name in methods(layer, mode) for scale in SCALES):
                mode.changed.add(type(layer))
        examples = function_examples()
        for module, name, plain, twin in twins(float32):
            as_written = mode.fuse == "compiled" and name in COMPILED.get(module, ())
            if not as_written and not all(allclose_with_grads(plain, twin, arguments) for arguments in examples[name]):
                mode.changed.add(name)
    for item in sorted(getattr(item, "__name__", item) for item in mode.changed):
        mode.log(f"{item} does not compute what its faster twin does: it runs as it is written")


def methods(layer: nn.Module, mode: Mode) -> tuple[str, ...]:
    """The methods of a layer whose twins repeat an equation."""
    if type(layer) is networks.JointLinear:
        return "first", "second"
    return ("forward",) if mode.fuse and type(layer) in (networks.GRU, networks.NormSiLU) else ()


def example(layer: nn.Module, name: str) -> list:
    """Arguments of a method of a layer."""
    if isinstance(layer, networks.JointLinear):
        return [torch.randn(ROWS, layer.sizes[name == "second"])]
    if isinstance(layer, networks.NormSiLU):
        return [torch.randn(ROWS, layer.weight.numel())]
    deter = layer.linear.out_features // 3
    return [torch.randn(ROWS, layer.linear.in_features - deter), {"deter": torch.randn(ROWS, deter)}]


def layer_agrees(layer: nn.Module, name: str, inputs: float, weights: float, mode: Mode) -> bool:
    """Whether a layer and its twin agree on random inputs and parameters of these standard deviations."""
    plain = copy.deepcopy(layer).cpu().requires_grad_()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=weights)
    twin = copy.deepcopy(plain)
    replace_layers(twin, mode)
    try:
        arguments = example(plain, name)
    except (AttributeError, TypeError, LookupError):  # it is made otherwise
        return False
    for x in tensors(arguments):
        x.mul_(inputs)
    calls = [getattr(twin, name)]
    if mode.fuse == "compiled":
        calls.append(in_step(twin, name))
    parameters = list(plain.parameters()), list(twin.parameters())
    return all(allclose_with_grads(getattr(plain, name), call, arguments, *parameters) for call in calls)


def function_examples() -> dict[str, list[list]]:
    """Arguments of functions, by name."""
    logits = torch.randn(ROWS, 4, 5) * torch.tensor([1, 10, 1000]).view(ROWS, 1, 1)
    probs = torch.randn(500, 4, 5).softmax(-1)  # many, as a small change moves few draws
    old, new = (nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)}) for _ in range(2))
    for tensor in (*old["norm"].state_dict().values(), *new["norm"].state_dict().values()):
        tensor.copy_(torch.randn(tensor.shape))
    state = {"stoch": (2, 3), "deter": (4,), "logit": (2, 3), "mean": (2,), "std": (2,)}
    return {
        "mix": [[logits, unimix] for unimix in (0.1, 0.0)],
        "pick": [[probs, torch.rand(500, 4)]],
        "cumulate": [[probs]],
        "stack": [[[{key: torch.randn(ROWS, *shape) for key, shape in state.items()} for _ in range(4)], 1]],
        "ema": [[old, new, 0.3]],
    }


def in_step(layer: nn.Module, name: str) -> Callable:
    """A layer's method as a compiled step calls it, without the compiler."""

    def call(*arguments):
        parts = [part for part in layer.modules() if hasattr(part, "parts")]
        calls = [{key: Call(Layer(part, key, True), ROWS) for key in part.parts()} for part in parts]
        for part, own in zip(parts, calls, strict=True):
            part.calls = own
        out = getattr(layer, name)(*arguments)
        for part, own in zip(parts, calls, strict=True):
            part.calls = {}
            for one in own.values():
                one.end()
        return out

    return call


def allclose_with_grads(plain: Callable, twin: Callable, arguments: list, *parameters: list[Tensor]) -> bool:
    """Whether a function and its twin give the same values and gradients."""
    try:
        found = [outcome(*call) for call in zip((plain, twin), (arguments,) * 2, parameters or ([], []), strict=True)]
    except Exception:  # it takes or returns something else
        return False
    return len(found[0]) == len(found[1]) and all(map(close, *found))


def outcome(call: Callable, arguments: list, parameters: list[Tensor]) -> list[Tensor | None]:
    """Values of a call, and gradients of a random loss of them."""
    arguments = copy.deepcopy(arguments)
    leaves = [x.requires_grad_() for x in tensors(arguments) if x.is_floating_point()] + parameters
    values = list(tensors([call(*arguments)]))
    if not values:  # it changes modules
        modules = [argument for argument in arguments if isinstance(argument, nn.Module)]
        values = [x for module in modules for x in module.state_dict().values()]
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
