"""Twins of functions: small ones that become one kernel each, and a few that are faster otherwise.

They replace the functions of the method's modules, by name, while an agent with this backend runs (`replaced`). Random
numbers are drawn outside of them, so that all versions see the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch._dynamo.config
import torch._functorch.config
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import distributions
import models
import networks
import tools
from distributions import mix, pick
from tools import ema as ema_one_by_one

from . import native
from .backend import Mode

# compiled as they are
COMPILED = {
    distributions: ("mix", "pick", "categorical_kl", "two_hot_mean", "two_hot_log_prob"),
    models: ("center", "mask_pixels", "latent_reconstruction_loss", "lambda_return"),
    networks: ("bound_action", "bounded_normal"),
}


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function, compiled whole for each shape that it meets."""
    torch.compiler.config.recompile_limit = 256
    # the actor's backward pass keeps the graph for the critic's; this is the setting that PyTorch's own error names
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # a hook may come, or go, after a step has been compiled
    options = {
        "fallback_random": True,  # PyTorch's own random numbers
        # what many read, or what takes many operations, is computed again rather than stored between two kernels
        "realize_reads_threshold": 1000,
        "realize_acc_reads_threshold": 1000,
        "realize_opcount_threshold": 1000,
    }
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


def fused(function: Callable, mode: Mode) -> Callable:
    """The compiled function, or within a function that is being compiled itself, the plain one."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling() or mode.fuse != "compiled":
            return function(*args, **kwargs)
        return mode.run(function, compiled(function), args, kwargs)

    return call


def native_mix(logits: Tensor, unimix: float) -> Tensor:
    float32 = logits.dtype == torch.float32  # C++ would give float32 for others too
    number = isinstance(unimix, int | float)  # a tensor may be trained
    return native.mix(logits, unimix) if float32 and number and native.supports(logits) else mix(logits, unimix)


def native_pick(probs: Tensor, u: Tensor) -> Tensor:
    same = probs.dtype == u.dtype == torch.float32 and u.shape == probs.shape[:-1]
    return native.pick(probs, u) if same and native.supports(probs) else pick(probs, u)


def cumulate(probs: Tensor) -> Tensor:
    return probs.cumsum(-1)  # deterministic on a GPU too where it is compiled


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dim: int, *steps: Tensor) -> Tensor:
        ctx.dim = dim
        return torch.stack(steps, dim)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, *grad.movedim(ctx.dim, 0).contiguous().unbind()


def stack(states: list[networks.State], dim: int = 1) -> networks.State:
    """Brings the gradient into the layout of the steps in one copy."""
    return {k: _Stack.apply(dim, *(state[k] for state in states)) for k in states[0]}


def ema(target: torch.nn.Module, online: torch.nn.Module, rate: float | Tensor) -> None:
    """All parameters in a few kernels."""
    if isinstance(rate, Tensor):
        ema_one_by_one(target, online, rate)
    else:
        get_ema_multi_avg_fn(1 - rate)(list(target.parameters()), list(online.parameters()), None)


def twins(mode: Mode) -> list[tuple[object, str, Callable, Callable]]:
    """Module, name, function as written and twin of each function that this mode replaces."""
    if mode.table is not None:
        return mode.table
    table = [(networks, "stack", stack), (tools, "ema", ema)]
    if mode.fuse == "native":
        table += [(distributions, "mix", native_mix), (distributions, "pick", native_pick)]
    if mode.fuse == "compiled":
        for module, names in COMPILED.items():
            table += [(module, name, fused(getattr(module, name), mode)) for name in names]
        table += [(distributions, "cumulate", cumulate)]
    mode.table = [(owner, name, getattr(owner, name), twin) for owner, name, twin in table if name not in mode.changed]
    return mode.table


@contextlib.contextmanager
def replaced(table: list[tuple[object, str, Callable, Callable]]) -> Iterator[None]:
    """Within it, twins take the places of their functions, unless somebody has put others there since."""
    used = [row for row in table if getattr(row[0], row[1]) is row[2]]
    for module, name, _, twin in used:
        setattr(module, name, twin)
    try:
        yield
    finally:
        for module, name, plain, _ in used:
            setattr(module, name, plain)
