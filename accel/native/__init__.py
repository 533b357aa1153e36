"""Layers in C++ for a CPU (`layers.cpp`), compiled for this machine when a run starts, in a second or two.

PyTorch walks over memory once for every operation of a norm with its activation, or of the GRU's gates; these do it
once. In bfloat16 they also sum the gradients of a norm's parameters in float32, which PyTorch's own norm on a CPU does
not. They compute what the functions of the same names in networks.py and distributions.py do, to rounding. Gradients
that will be differentiated again (a gradient penalty) are PyTorch's own.
"""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import networks
from distributions import mix as plain_mix

SOURCE = Path(__file__).resolve().parent / "layers.cpp"
# -ffast-math is left out: it forgets about NaN and, with some compilers, about small numbers in the whole process
FLAGS = (
    "-O3 -march=native -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math -freciprocal-math "
    "-fopenmp -shared -fPIC"
)
WIDE = "-mprefer-vector-width=512"  # known to compilers for x86 alone
GRAIN = 2**14  # numbers that are worth a thread


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        OSError: no compiler ($CXX or c++), or it failed; the message holds its first words.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if not shutil.which(compiler[0]):
        raise OSError(f"no compiler {compiler[0]}: install g++ or name one in CXX")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "native.so"
        for flags in (f"{FLAGS} {WIDE}", FLAGS):
            command = [*compiler, *flags.split(), str(SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                break
        else:
            raise OSError(f"{compiler[0]}: {(done.stderr.strip() or 'failed').splitlines()[0]}")
        return ctypes.CDLL(str(out))


def call(name: str, *args: Tensor | int | float) -> None:
    """Calls a compiled function, which gets tensors as pointers."""
    getattr(library(), name)(*map(_argument, args))


def _argument(value: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_float:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_long(value)


def threads(numbers: int) -> int:
    return max(1, min(torch.get_num_threads(), numbers // GRAIN))


def half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


@functools.cache
def plain_norm_silu(size: int, eps: float) -> Callable:
    """networks.NormSiLU as a function of its input, weight and bias."""
    plain = networks.NormSiLU(size)
    plain.eps = eps

    def norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(plain, {"weight": weight, "bias": bias}, (x.float(),)).to(x.dtype)

    return norm_silu


def plain_gru_gates(parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    parts = F.layer_norm(parts.float(), weight.shape, weight, bias, eps)
    return networks.update_deter(*parts.chunk(3, -1), deter)


def differentiable(function: Callable, grad: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """Gradients of a plain function's inputs that can be differentiated again."""
    inputs = [x.view_as(x) for x in inputs]  # one may be computed from another
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, c = torch.empty_like(x), x.shape[-1]
        call("norm_silu_forward", half(x), x, weight, bias, y, x.numel() // c, c, eps, threads(x.numel()))
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *differentiable(plain_norm_silu(x.shape[-1], ctx.eps), grad, x, weight, bias), None
        grad, c, count = grad.contiguous(), x.shape[-1], threads(x.numel())
        # dparameters: of weight and bias, from each thread's rows
        out = dx, dparameters = torch.empty_like(x), x.new_zeros(count, 2, c, dtype=torch.float32)
        call("norm_silu_backward", half(x), x, grad, weight, bias, *out, x.numel() // c, c, ctx.eps, count)
        return dx, *dparameters.sum(0), None


class _GRUGates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, d = torch.empty_like(deter), deter.shape[-1]
        inputs = parts, deter, weight, bias
        call("gru_gates_forward", half(parts), *inputs, y, y.numel() // d, d, eps, threads(parts.numel()))
        ctx.save_for_backward(*inputs)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        parts, deter, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(plain_gru_gates, eps=ctx.eps)
            return *differentiable(plain, grad, parts, deter, weight, bias), None
        count, d = threads(parts.numel()), deter.shape[-1]
        inputs = parts, deter, grad.contiguous(), weight, bias
        out = dparts, ddeter, dparameters = (
            torch.empty_like(parts),
            torch.empty_like(deter),
            parts.new_zeros(count, 2, parts.shape[-1], dtype=torch.float32),
        )
        call("gru_gates_backward", half(parts), *inputs, *out, deter.numel() // d, d, ctx.eps, count)
        return dparts, ddeter, *dparameters.sum(0), None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, unimix: float) -> Tensor:
        y, k = torch.empty_like(logits), logits.shape[-1]
        call("mix_forward", logits, y, y.numel() // k, k, unimix, threads(y.numel()))
        ctx.save_for_backward(logits, y)
        ctx.unimix = unimix
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *differentiable(functools.partial(plain_mix, unimix=ctx.unimix), grad, logits), None
        dlogits, k = torch.empty_like(y), y.shape[-1]
        call("mix_backward", y, grad.contiguous(), dlogits, y.numel() // k, k, ctx.unimix, threads(y.numel()))
        return dlogits, None


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _NormSiLU.apply(x.contiguous(), weight, bias, eps)


def gru_gates(parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _GRUGates.apply(parts.contiguous(), deter.float().contiguous(), weight, bias, eps)


def mix(logits: Tensor, unimix: float) -> Tensor:
    return _Mix.apply(logits.float().contiguous(), float(unimix))


def pick(probs: Tensor, u: Tensor) -> Tensor:
    probs, u = probs.contiguous(), u.contiguous()
    y = torch.empty_like(probs)
    call("pick_class", probs, u, y, u.numel(), probs.shape[-1], threads(probs.numel()))
    return y


def reads(norm: torch.nn.LayerNorm, size: int) -> bool:
    """Whether C++, which reads parameters from their addresses, can read those of a norm over `size` numbers."""
    return all(
        isinstance(p, Tensor) and p.shape == (size,) and p.dtype == torch.float32 and p.is_contiguous() and p.is_cpu
        for p in (norm.weight, norm.bias)
    )


def supports(*args: Tensor) -> bool:
    """Whether arguments can be taken: on the CPU, the first of them in float32 or bfloat16, with numbers to read.

    There are none where PyTorch only follows the operations: tracing, torch.func, tensors of a class of their own.
    """
    followed = torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None
    return (
        not followed
        and args[0].dtype in (torch.float32, torch.bfloat16)
        and all(type(arg) in (Tensor, torch.nn.Parameter) and arg.is_cpu for arg in args)
    )
