"""The C++ layers against the functions that they replace, in float64."""

import os
import shutil
import subprocess
import sys

import agents
import pytest
import torch

import accel
import distributions as dists
import models
import networks
from accel import functions, native

needs_compiler = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="needs a C++ compiler")
EPS = 1e-3
SHAPES = [(1, 1), (3, 5), (2, 3, 33), (70, 32), (300, 64), (9, 2500), (2100, 17)]
# relative to the largest entry; bfloat16 has 8 bits, with one rounding of the output
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


def gap(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-12)).item()


def compare(function, leaves: list[torch.Tensor], *rest) -> dict[str, float]:
    """Largest relative gap of the native function's output and gradients to those in float64."""
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = function(*exact, *rest)
    grad = torch.randn(wanted.shape)
    got = function(*leaves, *rest)
    names = ["out", *(f"grad {i}" for i in range(len(leaves)))]
    grad = grad.to(got.dtype)
    ours = [got, *torch.autograd.grad(got, leaves, grad)]
    plain = [wanted, *torch.autograd.grad(wanted, exact, grad.double())]
    assert [x.dtype for x in ours[1:]] == [x.dtype for x in leaves]
    return {name: gap(a, b) for name, a, b in zip(names, ours, plain, strict=True)}


def norm_silu(x, weight, bias):
    # the plain function computes in float32
    if x.dtype == torch.float64:
        normed = torch.nn.functional.layer_norm(x, weight.shape, weight, bias, EPS)
        return torch.nn.functional.silu(normed)
    return native.norm_silu(x, weight, bias, EPS)


def parameters(size: int) -> list[torch.Tensor]:
    return [(torch.rand(size) + 0.5).requires_grad_(), torch.randn(size).mul(0.3).requires_grad_()]


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_silu(shape, dtype):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape) + 1).to(dtype).requires_grad_()
    for name, value in compare(norm_silu, [x, *parameters(shape[-1])]).items():
        # sums over rows are in float32 for any x, and the norm of a single column is 0
        tight = 1e-5 if name in ("grad 1", "grad 2") else max(TOLERANCE[dtype], 1e-5)
        assert value < tight or shape == (1, 1), (name, value)


@needs_compiler
def test_norm_silu_of_a_sum_and_of_strided_rows():
    torch.manual_seed(0)
    x, share = torch.randn(40, 6, requires_grad=True), torch.randn(6, 40, requires_grad=True)
    layer, found = networks.NormSiLU(40), []
    layer.weight.data, layer.bias.data = parameters(40)
    for how in (layer, lambda x: native.norm_silu(x, layer.weight, layer.bias, EPS)):
        y = how(x.T + share)
        # an expanded gradient
        found.append([y, *torch.autograd.grad(y[0].sum() + y.sum(), [x, share, layer.weight, layer.bias])])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("function, sizes", [("norm_silu", (40, 40)), ("gru_gates", (60, 20))])
def test_threads_share_the_rows(function, sizes):
    torch.manual_seed(0)
    columns, deter = sizes
    x = torch.randn(3001, columns, requires_grad=True)
    state = [torch.randn(3001, deter, requires_grad=True)] if function == "gru_gates" else []
    weights, found, before = parameters(columns), [], torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        assert native.threads(x.numel()) == count
        y = getattr(native, function)(x, *state, *weights, EPS)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *weights])])
    torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0][0], found[1][0])


@needs_compiler
def test_in_bfloat16_a_norms_parameters_have_float32_gradients():
    """PyTorch's norm of bfloat16 sums them in bfloat16 on a CPU, a third off over so many rows."""
    torch.manual_seed(0)
    x = torch.randn(2**17, 32).bfloat16().requires_grad_()
    found = compare(norm_silu, [x, *parameters(32)])
    assert found["grad 1"] < 1e-4 and found["grad 2"] < 1e-4, found


def gru_gates(parts, deter, weight, bias):
    if parts.dtype == torch.float64:
        parts = torch.nn.functional.layer_norm(parts, weight.shape, weight, bias, EPS)
        return networks.update_deter(*parts.chunk(3, -1), deter)
    return native.gru_gates(parts, deter, weight, bias, EPS)


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows, deter", [(1, 2), (7, 24), (100, 512)])
def test_gru_gates(rows, deter, dtype):
    torch.manual_seed(0)
    parts = (2 * torch.randn(rows, 3 * deter)).to(dtype).requires_grad_()
    leaves = [parts, torch.randn(rows, deter, requires_grad=True), *parameters(3 * deter)]
    for name, value in compare(gru_gates, leaves).items():
        assert value < (TOLERANCE[dtype] if name == "grad 0" and dtype == torch.bfloat16 else 1e-5), (name, value)


@needs_compiler
@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("shape", [(5,), (40, 32), (3, 70, 6), (2, 300, 32)])
def test_mix(shape, unimix):
    def mix(logits):
        return dists.mix(logits, unimix) if logits.dtype == torch.float64 else native.mix(logits, unimix)

    torch.manual_seed(0)
    logits = torch.randn(shape, requires_grad=True)
    found = compare(mix, [logits])
    assert found["out"] < 1e-6 and found["grad 0"] < 5e-6, found
    with torch.no_grad():
        logits[..., 0] = 500.0
    found = compare(mix, [logits])
    assert found["out"] < 1e-6


@needs_compiler
@pytest.mark.parametrize("shape", [(5,), (40, 32), (3, 70, 6), (2, 300, 32)])
def test_draws_match(shape):
    torch.manual_seed(0)
    probs = torch.softmax(3 * torch.randn(shape), -1)
    found = []
    for pick in (dists.pick, functions.native_pick):
        torch.manual_seed(1)
        found.append(torch.stack([pick(probs, torch.rand(probs.shape[:-1])) for _ in range(50)]))
    assert torch.equal(*found)
    assert found[0].sum() == found[0][..., 0].numel()
    u = torch.rand(shape[-2:-1])  # one for all rows before
    assert torch.equal(functions.native_pick(probs, u), dists.pick(probs, u))
    half = probs.bfloat16(), torch.rand(probs.shape[:-1]).bfloat16()
    assert torch.equal(functions.native_pick(*half), dists.pick(*half))
    assert torch.equal(functions.native_mix(half[0], 0.01), dists.mix(half[0], 0.01))


@needs_compiler
def test_a_draw_takes_the_last_class_when_rounding_leaves_a_gap():
    for pick in (dists.pick, native.pick):
        assert pick(torch.full((1, 3), 0.333), torch.tensor([1 - 2**-24])).tolist() == [[0, 0, 1]]


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nan_stays_nan(dtype):
    x = torch.zeros(3, 40, dtype=dtype)
    x[1, 2], x[2, 3] = float("nan"), float("inf")
    weight, bias = torch.ones(40), torch.zeros(40)
    y = native.norm_silu(x, weight, bias, EPS)
    gates = native.gru_gates(x[:, :39].contiguous(), torch.zeros(3, 13), weight[:39], bias[:39], EPS)
    for out in (y, gates):
        assert out[0].isfinite().all() and out[1].isnan().all() and out[2].isnan().any()


@needs_compiler
def test_large_values_do_not_overflow():
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).requires_grad_()
    weight = torch.full((4,), 1e4, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    assert max(compare(norm_silu, [x, weight, bias]).values()) < 1e-4


@needs_compiler
def test_loading_does_not_flush_denormals():
    """Some compilers' fast math makes the whole process flush them to 0."""
    code = "import torch; from accel import native; native.library(); assert (torch.full((64,), 1e-40) * 1).min() > 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_compiler
def test_bfloat16_gradients_align_with_float32():
    """With the same batch and draws, the gradient of each parameter has the direction of float32's."""
    batch, found = agents.batch(), []
    for precision in ("32", "16"):
        model = agents.agent("--precision", precision, "--dyn_discrete", "0", fuse="native").world_model
        torch.manual_seed(1)
        data = models.preprocess(batch)
        loss, _, _ = model.loss(data, model.draw_mask(data))
        named = [(k, v) for k, v in model.named_parameters() if v.requires_grad]
        grads = torch.autograd.grad(loss, [v for _, v in named], allow_unused=True)
        found.append({k: g for (k, _), g in zip(named, grads, strict=True) if g is not None})
    for name, exact in found[0].items():
        if exact.norm() > 1e-4:
            cosine = torch.cosine_similarity(found[1][name].flatten(), exact.flatten(), 0)
            assert cosine > 0.95, (name, cosine.item())


def test_a_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    native.library.cache_clear()
    try:
        chosen = accel.choose_backend(True, torch.device("cpu"))
    finally:
        native.library.cache_clear()
    assert not chosen.fuse and "plain PyTorch" in chosen.note and "/nowhere/c++" in chosen.note


def test_a_failing_compiler_is_reported(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'no such target' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    native.library.cache_clear()
    try:
        chosen = accel.choose_backend(True, torch.device("cpu"))
    finally:
        native.library.cache_clear()
    assert not chosen.fuse and "no such target" in chosen.note
