"""Layers in C++ for a CPU (`native.cpp`), compiled for this machine when a run starts, in a second or two.

PyTorch walks over memory once for every operation of a norm with its activation, or of the GRU's gates; these do it once.
In bfloat16 they also sum the gradients of a norm's parameters in float32, which PyTorch's own norm does not on a CPU.
They compute what the functions of the same names in networks.py and distributions.py do, to rounding.
"""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parent / "native.cpp"
FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -freciprocal-math -fopenmp -shared -fPIC"
WIDE = "-mprefer-vector-width=512"  # known to compilers for x86 alone
GRAIN = 2**14  # numbers that are worth a thread


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        OSError: no compiler ($CXX or c++), or it failed; the message holds its first words.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "native.so"
        for flags in (f"{FLAGS} {WIDE}", FLAGS):
            command = [*compiler, *flags.split(), str(SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                break
        else:
            raise OSError(f"{compiler[0]}: {(done.stderr.strip() or 'failed').splitlines()[0]}")
        found = ctypes.CDLL(str(out))
    for name, tensors, half in (
        ("norm_silu_forward", 4, True),
        ("norm_silu_backward", 6, True),
        ("gru_gates_forward", 5, True),
        ("gru_gates_backward", 8, True),
        ("pick_class", 3, False),
    ):
        eps = [ctypes.c_float] if half else []
        getattr(found, name).argtypes = (
            [ctypes.c_int] * half + [ctypes.c_void_p] * tensors + [ctypes.c_long] * 2 + eps + [ctypes.c_int]
        )
        getattr(found, name).restype = None
    return found


def threads(numbers: int) -> int:
    return max(1, min(torch.get_num_threads(), numbers // GRAIN))


def pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def rows(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.contiguous()


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x, c = rows(x), x.shape[-1]
        y = torch.empty_like(x)
        library().norm_silu_forward(
            x.dtype == torch.bfloat16, *pointers(x, weight, bias, y), x.numel() // c, c, eps, threads(x.numel())
        )
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, bias = ctx.saved_tensors
        grad, c, count = rows(grad), x.shape[-1], threads(x.numel())
        dx, parameters = torch.empty_like(x), x.new_zeros(count, 2, c, dtype=torch.float32)
        library().norm_silu_backward(
            x.dtype == torch.bfloat16,
            *pointers(x, grad, weight, bias, dx, parameters),
            x.numel() // c,
            c,
            ctx.eps,
            count,
        )
        return dx, *parameters.sum(0), None


class _GRUGates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        parts, deter = rows(parts), rows(deter)
        y = torch.empty_like(deter)
        library().gru_gates_forward(
            parts.dtype == torch.bfloat16,
            *pointers(parts, deter, weight, bias, y),
            *deter.shape,
            eps,
            threads(parts.numel()),
        )
        ctx.save_for_backward(parts, deter, weight, bias)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        parts, deter, weight, bias = ctx.saved_tensors
        grad, count = rows(grad), threads(parts.numel())
        dparts, ddeter = torch.empty_like(parts), torch.empty_like(deter)
        parameters = deter.new_zeros(count, 2, parts.shape[-1])
        library().gru_gates_backward(
            parts.dtype == torch.bfloat16,
            *pointers(parts, deter, grad, weight, bias, dparts, ddeter, parameters),
            *deter.shape,
            ctx.eps,
            count,
        )
        return dparts, ddeter, *parameters.sum(0), None


def norm_silu(x: Tensor, share: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _NormSiLU.apply(x if share is None else x + share, weight, bias, eps)


def gru_gates(parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _GRUGates.apply(parts, deter.float(), weight, bias, eps)


def pick(probs: Tensor, cumulated: None, u: Tensor) -> Tensor:
    probs, u = rows(probs), rows(u)
    y = torch.empty_like(probs)
    library().pick_class(*pointers(probs, u, y), u.numel(), probs.shape[-1], threads(probs.numel()))
    return y


def supports(*args) -> bool:
    """Whether arguments can be taken: tensors on the CPU, the first of them in float32 or bfloat16."""
    return args[0].dtype in (torch.float32, torch.bfloat16) and all(
        arg.device.type == "cpu" for arg in args if isinstance(arg, Tensor)
    )
