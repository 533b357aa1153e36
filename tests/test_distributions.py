"""Distributions, beyond the reference numbers: real sampling, its gradients, and the rarer kinds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distributions as dists

DRAWS = 40_000


def frequencies_fit(counts, probs):
    """Whether counts of draws are within 5 standard errors of the probabilities, class by class."""
    n = counts.sum(-1, keepdim=True)
    error = torch.sqrt(probs * (1 - probs) / n)
    return ((counts / n - probs).abs() <= 5 * error + 1e-9).all()


def test_onehot_samples_follow_the_mixed_probabilities():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [30.0, 0.0, 0.0, 0.0]])
    dist = dists.OneHot(logits.expand(DRAWS, 2, 4), unimix=0.1)
    expected = 0.9 * torch.softmax(logits, -1) + 0.1 / 4
    torch.testing.assert_close(dist.probs[0], expected)
    sample = dist.sample()
    assert set(sample.unique().tolist()) == {0.0, 1.0} and (sample.sum(-1) == 1).all()
    assert frequencies_fit(sample.sum(0), expected)
    assert sample[:, 1, 1:].sum() > 0  # only the uniform share can draw these


def test_onehot_gradient_of_a_sample_is_that_of_the_probabilities():
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 4, requires_grad=True)
    weight = torch.randn(5, 3, 4)
    dist = dists.OneHot(logits)
    (by_sample,) = torch.autograd.grad((dist.sample() * weight).sum(), logits, retain_graph=True)
    (by_probs,) = torch.autograd.grad((dist.probs * weight).sum(), logits, retain_graph=True)
    (by_mode,) = torch.autograd.grad((dist.mode() * weight).sum(), logits, retain_graph=True)
    (by_log,) = torch.autograd.grad((dist.log_probs * weight).sum(), logits)
    torch.testing.assert_close(by_sample, by_probs)
    torch.testing.assert_close(by_mode, by_log)
    assert (by_probs - by_log).abs().max() > 0.1


@pytest.mark.parametrize("unimix", [0.01, 0.0])
def test_onehot_of_far_apart_logits_is_finite(unimix):
    logits, other = torch.tensor([[[[0.0, 200.0]], [[90.0, 0.0]]], [[[1.0, 0.0]], [[-300.0, 0.0]]]]).requires_grad_()
    p, q = dists.OneHot(logits, unimix), dists.OneHot(other, unimix)
    for value in (p.kl(q), q.kl(p), p.entropy(), p.mode(), p.log_prob(p.sample())):
        grads = torch.autograd.grad(value.sum(), [logits, other], retain_graph=True, allow_unused=True)
        assert all(x.isfinite().all() for x in (value, *grads) if x is not None)
    exact = torch.distributions.Categorical(logits=logits.double()).entropy().squeeze(-1)
    assert unimix or torch.allclose(p.entropy().double(), exact)


def test_onehot_kl_gradients_stop_where_they_should():
    post, prior = torch.randn(6, 2, 3, requires_grad=True), torch.randn(6, 2, 3, requires_grad=True)
    p, q = dists.OneHot(post), dists.OneHot(prior)
    a, b = torch.autograd.grad(p.detach().kl(q).sum(), [post, prior], allow_unused=True, retain_graph=True)
    assert a is None and b.abs().max() > 0
    a, b = torch.autograd.grad(p.kl(q.detach()).sum(), [post, prior], allow_unused=True)
    assert b is None and a.abs().max() > 0


def test_draw_one_hot_takes_the_last_class_when_rounding_leaves_a_gap(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(tuple(shape), 1 - 2**-24))
    probs = torch.full((1, 3), 0.333)  # sums to 0.999
    assert dists.draw_one_hot(probs).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("kind", [dists.Normal, dists.TruncNormal, dists.TanhNormal])
def test_continuous_samples_and_densities_agree(kind):
    torch.manual_seed(1)
    mean, std = torch.tensor([0.4, -0.3]), torch.tensor([0.5, 0.2])
    dist = kind(mean.expand(DRAWS, 2), std.expand(DRAWS, 2))
    sample = dist.sample()
    one = kind(mean[:1], std[:1])
    edge = 0.999 if kind is dists.TanhNormal else 1.0
    low, high = (-edge, edge) if kind is not dists.Normal else (-3.0, 3.0)
    grid = torch.linspace(low, high, 20_001)[:, None]
    density = kind(mean[:1].expand_as(grid), std[:1].expand_as(grid)).log_prob(grid).exp()
    width = (high - low) / 20_000
    assert density.sum() * width == pytest.approx(1, abs=0.01)
    assert (grid[:, 0] * density).sum() * width == pytest.approx(sample[:, 0].mean().item(), abs=0.01)
    assert (sample >= low).all() or kind is not dists.TruncNormal
    if kind is not dists.TanhNormal:  # TanhNormal's entropy is an estimate
        entropy = -(density * density.clamp_min(1e-12).log()).sum() * width
        assert one.entropy().item() == pytest.approx(entropy.item(), abs=0.01)
    else:
        estimate = dist.entropy().mean().item()
        assert estimate == pytest.approx(-dist.log_prob(dist.sample()).mean().item(), abs=0.05)


@pytest.mark.parametrize("kind", [dists.Normal, dists.TruncNormal, dists.TanhNormal])
def test_continuous_samples_are_reparameterized(kind):
    mean = torch.zeros(100, 2, requires_grad=True)
    std = torch.full((100, 2), 0.5, requires_grad=True)
    grads = torch.autograd.grad(kind(mean, std).sample().sum(), [mean, std])
    assert all(g.abs().max() > 0 for g in grads)


def test_normal_kl_matches_torch():
    a = dists.Normal(torch.randn(7, 3), torch.rand(7, 3) + 0.1)
    b = dists.Normal(torch.randn(7, 3), torch.rand(7, 3) + 0.1)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(a.mean, a.std), torch.distributions.Normal(b.mean, b.std)
    ).sum(-1)
    torch.testing.assert_close(a.kl(b), theirs)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12, allow_nan=False))
def test_twohot_shares_its_mass_between_neighbors(x):
    # The likelihood of a target is linear in the log-probabilities of two neighboring buckets around symlog(x).
    logits = torch.randn(dists.BUCKETS, generator=torch.Generator().manual_seed(0))
    dist = dists.TwoHotSymlog(logits[None])
    got = dist.log_prob(torch.tensor([[x]], dtype=torch.float32)).item()
    place = max(-20.0, min(20.0, math.copysign(math.log1p(abs(x)), x)))
    at = (place + 20) / 40 * (dists.BUCKETS - 1)
    below = min(int(at), dists.BUCKETS - 2)
    log_probs = torch.log_softmax(logits.double(), -1)
    expected = (below + 1 - at) * log_probs[below] + (at - below) * log_probs[below + 1]
    assert got == pytest.approx(expected.item(), abs=2e-3)


def test_twohot_fits_its_targets():
    x = torch.tensor([[-300.0], [-1.5], [0.0], [0.1], [7.0], [12345.0]])
    logits = torch.zeros(6, dists.BUCKETS, requires_grad=True)
    opt = torch.optim.Adam([logits], 0.5)
    for _ in range(600):
        opt.zero_grad()
        (-dists.TwoHotSymlog(logits).log_prob(x).sum()).backward()
        opt.step()
    torch.testing.assert_close(dists.TwoHotSymlog(logits).mode().detach(), x, rtol=0.05, atol=0.05)


def test_bernoulli():
    logits = torch.tensor([[-2.0], [0.0], [3.0]])
    dist = dists.Bernoulli(logits)
    torch.testing.assert_close(dist.mean, torch.sigmoid(logits))
    for x in (torch.zeros(3, 1), torch.ones(3, 1)):
        theirs = torch.distributions.Bernoulli(logits=logits).log_prob(x)[:, 0]
        torch.testing.assert_close(dist.log_prob(x), theirs)
    assert dist.mode().flatten().tolist() == [0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_symexp_inverts_symlog(x):
    y = torch.tensor(x, dtype=torch.float64)
    assert dists.symexp(dists.symlog(y)).item() == pytest.approx(x, rel=1e-9, abs=1e-12)
