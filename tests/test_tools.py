"""Optimizer, EMA, metrics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tools
from run import checkpoint
from tools import Metrics


@pytest.mark.parametrize("clip, decay", [(0.5, 0.0), (1e9, 0.0), (0, 0.0), (0.5, 0.1)])
def test_optimizer_clips_over_all_its_parameters_and_moves_no_others(clip, decay):
    torch.manual_seed(0)
    params = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    unused, other = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    copies = [param.detach().double() for param in params]
    named = {"first": params[0], "second": params[1], "unused": unused}
    optimizer = tools.Optimizer(named, lr=0.1, eps=1e-3, clip=clip, weight_decay=decay, unused=("unused",))
    first, second = ([torch.zeros_like(copy) for copy in copies] for _ in range(2))
    for step in range(1, 4):
        grads = [2 * step * copy for copy in copies]
        norm = sum(grad.square().sum() for grad in grads).sqrt()
        loss = other * step * sum(param.square().sum() for param in params)
        assert optimizer.step(loss).item() == pytest.approx(norm.item(), rel=1e-5)
        scale = min(1.0, clip / norm.item()) if clip else 1.0
        for copy, grad, m, v in zip(copies, grads, first, second, strict=True):
            m += 0.1 * (scale * grad - m)
            v += 0.001 * ((scale * grad) ** 2 - v)
            copy *= 1 - 0.1 * decay
            copy -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-3)
        for param, copy in zip(params, copies, strict=True):
            torch.testing.assert_close(param.detach().double(), copy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unused.detach(), torch.ones(2) * (1 - 0.1 * decay) ** 3)
    assert other.grad is None and other.item() == 1


def test_ema_moves_each_parameter_by_the_rate():
    target, online = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    expected = [0.95 * mine.detach() + 0.05 * theirs.detach() for mine, theirs in pairs]
    before = [param.detach().clone() for param in online.parameters()]
    tools.ema(target, online, 0.05)
    torch.testing.assert_close([param.detach() for param in target.parameters()], expected)
    assert all(torch.equal(a, b) for a, b in zip(before, online.parameters(), strict=True))


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), min_size=1, max_size=20))
def test_metrics_are_means_over_the_updates_that_have_them(values):
    metrics = Metrics()
    for value, extra in values:
        entry = {"loss": torch.tensor(value)}
        if extra:
            entry["extra"] = torch.tensor([value * 2])
        metrics.update(entry)
    result = metrics.result()
    mean = math.fsum(value for value, _ in values) / len(values)
    assert result["loss"] == pytest.approx(mean, abs=1e-9)
    extras = [2 * value for value, extra in values if extra]
    assert ("extra" in result) == bool(extras)
    if extras:
        assert result["extra"] == pytest.approx(math.fsum(extras) / len(extras), abs=1e-9)
    assert metrics.result() == {}


def test_metrics_do_not_see_a_tensor_change_later():
    """A captured graph writes each update's scalars to the same memory."""
    metrics, loss = Metrics(), torch.tensor(1.0, requires_grad=True)
    metrics.update({"loss": loss})
    with torch.no_grad():
        loss.fill_(5)
    metrics.update({"loss": loss})
    assert metrics.result() == {"loss": 3.0}


def test_metrics_of_many_updates_stay_exact():
    metrics, value = Metrics(), torch.tensor(0.1)
    for _ in range(5000):
        metrics.update({"loss": value})
    assert metrics.result()["loss"] == pytest.approx(float(value), rel=1e-12)


def test_metrics_resume_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    updates = [{"loss": torch.randn(()), "kl": torch.randn(())} for _ in range(20)]
    whole, first, second = Metrics(), Metrics(), Metrics()
    for update in updates:
        whole.update(update)
    for update in updates[:13]:
        first.update(update)
    state = first.state_dict()
    first.update(updates[0])  # the state is a copy
    checkpoint.save_checkpoint(tmp_path / "a.pt", state)
    second.load_state_dict(checkpoint.load_checkpoint(tmp_path / "a.pt"))
    for update in updates[13:]:
        second.update(update)
    assert second.result() == whole.result()
