"""The representation losses of other methods: numbers of the public R2-Dreamer code, and properties."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import distributed
import distributions as dists
from baselines import dreamerpro, infonce, r2dreamer, repo

# Numbers of the public code


@functools.cache
def numbers() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "parity" / "representation_losses.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def close(found: torch.Tensor, name: str) -> None:
    reference.close(found, numbers()[name].numpy(), name)


def leaf(name: str) -> torch.Tensor:
    return numbers()[name].clone().requires_grad_()


def test_parity_barlow_twins():
    projected, embed = leaf("barlow_projected"), leaf("barlow_embed")
    loss = r2dreamer.barlow_twins_loss(projected, embed)
    close(loss, "barlow_loss")
    loss.backward()
    close(projected.grad, "barlow_projected_grad")
    assert embed.grad is None
    # the two terms, by two weights
    invariance = r2dreamer.barlow_twins_loss(projected, embed, off_diagonal=0)
    close(invariance, "barlow_invariance")
    close(r2dreamer.barlow_twins_loss(projected, embed, off_diagonal=1) - invariance, "barlow_redundancy")


def test_parity_infonce():
    projected, embed = leaf("infonce_projected"), leaf("infonce_embed")
    loss = infonce.infonce_loss(projected, embed)
    close(loss, "infonce_loss")
    loss.backward()
    close(projected.grad, "infonce_projected_grad")
    assert embed.grad is None


def test_parity_sinkhorn():
    # (K, B, T), as the public code has it
    scores = numbers()["sinkhorn_scores"].permute(1, 2, 0)
    found = dreamerpro.sinkhorn(scores.flatten(0, 1)).view_as(scores)
    close(found.permute(2, 0, 1), "sinkhorn_assignments")
    # both views at once, each balanced by itself
    close(dreamerpro.assign(torch.stack([scores, -scores]))[0].permute(2, 0, 1), "sinkhorn_assignments")


def test_parity_prototype_losses():
    prototypes, embed_weight, feat_weight = map(leaf, ("prototypes", "proto_obs_weight", "proto_feat_weight"))
    target = leaf("proto_ema_projection")
    projections = (
        F.linear(numbers()["proto_embed"], embed_weight, numbers()["proto_obs_bias"]),
        F.linear(numbers()["proto_feat"], feat_weight, numbers()["proto_feat_bias"]),
        target,
    )
    losses = dreamerpro.prototype_losses(*(x.unflatten(0, (2, -1)) for x in projections), prototypes)
    for name, loss in losses.items():
        close(loss, f"{name}_loss")
    sum(losses.values()).backward()
    close(prototypes.grad, "prototypes_grad")
    close(embed_weight.grad, "proto_obs_weight_grad")
    close(feat_weight.grad, "proto_feat_weight_grad")
    assert target.grad is None


# RePo


def kl_balance(scale: float = 3.0):
    """A posterior that is `scale` away from the prior, and their logits."""
    torch.manual_seed(0)
    post = (scale * torch.randn(2, 5, 4, 6)).requires_grad_()
    prior = torch.zeros(2, 5, 4, 6, requires_grad=True)
    return post, prior


def test_the_budget_loss_splits_the_kl_between_prior_and_posterior():
    post, prior = kl_balance()
    beta = torch.tensor(0.3, requires_grad=True)
    kl = dists.OneHot(post).kl(dists.OneHot(prior)).mean()
    grads = torch.autograd.grad(kl, (post, prior))
    loss, excess = repo.kl_budget_loss(dists.OneHot(post), dists.OneHot(prior), beta, target=3.0)
    torch.testing.assert_close(excess, kl.detach() - 3)
    torch.testing.assert_close(loss, beta * (kl - 3))
    found = torch.autograd.grad(loss, (post, prior, beta), allow_unused=True)
    torch.testing.assert_close(found[0], 0.3 / 6 * grads[0])
    torch.testing.assert_close(found[1], 0.3 * 5 / 6 * grads[1])
    assert found[2] is None and not excess.requires_grad


def test_the_budget_has_no_free_nats():
    post, prior = kl_balance(scale=0.1)
    loss, excess = repo.kl_budget_loss(dists.OneHot(post), dists.OneHot(prior), torch.tensor(1.0), target=3.0)
    assert -3 < excess < -2.9  # a KL far below a free nat
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(loss, (post, prior)))


@pytest.mark.parametrize("excess", [5.0, 0.2, -0.2, -3.0])
def test_the_multiplier_rises_above_the_budget_and_falls_below(excess):
    log_beta = torch.tensor(-2.0, requires_grad=True)
    excess = torch.tensor(excess, requires_grad=True)
    repo.multiplier_loss(log_beta, excess).backward()
    assert log_beta.grad == -excess and excess.grad is None


# R2-Dreamer and its control


def test_barlow_twins_is_zero_for_views_that_agree_and_whose_columns_are_uncorrelated():
    # columns of a Hadamard matrix but the first: mean 0, uncorrelated
    h = torch.ones(1, 1)
    for _ in range(4):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    columns = h[:, 1:]
    diagonal = (len(h) - 1) / len(h)  # std is unbiased, c divides by N
    expected = columns.shape[1] * (1 - diagonal) ** 2
    # whatever the scale and the offset of a column
    found = r2dreamer.barlow_twins_loss(3 * columns + 1, 0.5 * columns - 2, off_diagonal=1.0)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert r2dreamer.barlow_twins_loss(columns, columns.roll(1, 1)) > columns.shape[1] / 2


def test_barlow_twins_bears_constant_columns():
    projected = torch.randn(8, 3)
    projected[:, 1] = 2.0
    projected.requires_grad_()
    loss = r2dreamer.barlow_twins_loss(projected, torch.zeros(8, 3))
    (grad,) = torch.autograd.grad(loss, projected)
    assert loss.isfinite() and grad.isfinite().all()


def test_infonce_of_rows_that_find_their_own_embedding():
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(12, 30), dim=-1)
    assert infonce.infonce_loss(200 * rows, rows) < 1e-3
    assert infonce.infonce_loss(200 * rows, rows.roll(1, 0)) > 50
    torch.testing.assert_close(infonce.infonce_loss(0 * rows, rows), torch.tensor(12.0).log())


@pytest.mark.parametrize(
    "loss", [r2dreamer.barlow_twins_loss, infonce.infonce_loss, lambda x, y: r2dreamer.gather_rows(x).pow(3).mean()]
)
def test_shares_of_the_batch_have_its_loss_and_gradient(monkeypatch, loss):
    """What two ranks compute, each from its share, averages to what one computes from the whole."""
    torch.manual_seed(0)
    whole = torch.randn(12, 5, requires_grad=True), torch.randn(12, 5)
    expected = loss(*whole)
    (expected_grad,) = torch.autograd.grad(expected, whole[0])
    monkeypatch.setattr(distributed, "size", lambda: 2)
    found, grads = [], []
    for rank in range(2):
        mine = slice(6 * rank, 6 * rank + 6)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)

        def all_gather_rows(x, mine=mine):
            return next(w.detach() for w in whole if torch.equal(w[mine], x))

        monkeypatch.setattr(distributed, "all_gather_rows", all_gather_rows)
        share = loss(*(x[mine] for x in whole))
        # of the whole batch's rows, those of this rank alone have a gradient
        grads.append(torch.autograd.grad(share, whole[0])[0])
        found.append(share.detach())
    torch.testing.assert_close(sum(found) / 2, expected.detach())
    torch.testing.assert_close(sum(grads) / 2, expected_grad)


# DreamerPro


@given(st.integers(2, 30), st.integers(2, 12), st.sampled_from([0.05, 0.1, 1.0]), st.integers(0, 1000))
def test_sinkhorn_balances_rows_and_columns(rows, prototypes, eps, seed):
    scores = torch.rand(rows, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    few = dreamerpro.sinkhorn(scores, eps, 3)
    torch.testing.assert_close(few.sum(1), torch.ones(rows))  # to the last step, a row is normalized
    balanced = dreamerpro.sinkhorn(scores.double(), eps, 3000)
    torch.testing.assert_close(balanced.sum(1), torch.ones(rows).double())
    share = torch.full((prototypes,), rows / prototypes).double()
    torch.testing.assert_close(balanced.sum(0), share, rtol=1e-2, atol=1e-2)
    # a score that is the same for all changes nothing
    torch.testing.assert_close(dreamerpro.sinkhorn(scores + 5, eps, 3), few, rtol=1e-3, atol=1e-4)


def test_assignments_are_balanced_over_the_rows_of_all_ranks(monkeypatch):
    torch.manual_seed(0)
    scores = torch.rand(2, 4, 3, 5)
    expected = dreamerpro.assign(scores)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    # the rows of both ranks lie one after the other, (B·T, 2, K)
    monkeypatch.setattr(distributed, "all_gather_rows", lambda x: scores.flatten(1, 2).transpose(0, 1))
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        mine = slice(2 * rank, 2 * rank + 2)
        torch.testing.assert_close(dreamerpro.assign(scores[:, mine]), expected[:, mine])


def test_views_are_compared_with_each_other_and_the_first_step_is_left_out():
    torch.manual_seed(0)
    prototypes = F.normalize(torch.randn(6, 4), dim=-1)
    embed, feat, target = F.normalize(torch.randn(3, 2, 3, 5, 4), dim=-1).unbind(0)
    expected = dreamerpro.prototype_losses(embed, feat, target, prototypes)
    embed, feat, target = (x.clone() for x in (embed, feat, target))
    for x in (embed, feat, target):
        x[:, :, 0] = -x[:, :, 0]
    found = dreamerpro.prototype_losses(embed, feat, target, prototypes)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    # the other view's assignments are those of its embedding, the own view's those of the features
    assignments = dreamerpro.assign(target[:, :, 1:] @ prototypes.T)
    logits = ((embed[:, :, 1:] @ prototypes.T) / 0.1).log_softmax(-1)
    by_hand = -0.5 * sum((assignments[1 - v] * logits[v]).sum(-1).mean() for v in range(2))
    torch.testing.assert_close(found["swav"], by_hand)
    logits = ((feat[:, :, 1:] @ prototypes.T) / 0.1).log_softmax(-1)
    by_hand = -0.5 * sum((assignments[v] * logits[v]).sum(-1).mean() for v in range(2))
    torch.testing.assert_close(found["temp"], by_hand)


def test_prototypes_of_any_length_give_the_same_losses():
    torch.manual_seed(0)
    prototypes, (embed, feat, target) = torch.randn(6, 4), torch.randn(3, 2, 3, 5, 4).unbind(0)
    scaled = prototypes * (torch.rand(6, 1) + 0.5)
    for a, b in zip(
        dreamerpro.prototype_losses(embed, feat, target, prototypes).values(),
        dreamerpro.prototype_losses(embed, feat, target, scaled).values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_random_shift_moves_a_sequence_alike_by_up_to_three_pixels():
    torch.manual_seed(0)
    # pixels that hold their own position: a shift shows as a difference, away from the edges
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    images = torch.stack([y, x], -1).expand(200, 3, 16, 20, 2)
    shift = (dreamerpro.random_shift(images, 3) - images)[:, :, 3:-3, 3:-3]
    # one offset for each sequence and direction
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), rtol=0, atol=1e-4)
    offsets = shift[:, 0, 0, 0]
    assert offsets.abs().max() <= 3 and (offsets.amax(0) > 2.8).all() and (offsets.amin(0) < -2.8).all()
    assert torch.corrcoef(offsets.T)[0, 1].abs() < 0.25
    assert (offsets.mean(0).abs() < 5 * 3 / 3**0.5 / 200**0.5).all()
    assert (offsets - offsets.round()).abs().mean() > 0.2  # not whole pixels alone


def test_random_shift_is_bilinear_and_repeats_the_edges():
    image = torch.rand(1, 1, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    padded = F.pad(image[0].permute(0, 3, 1, 2), (4, 4, 4, 4), mode="replicate")[0].permute(1, 2, 0)
    for seed in range(10):
        torch.manual_seed(seed)
        dx, dy = ((2 * torch.rand(2) - 1) * 3).tolist()
        (left, a), (top, b) = ((4 + math.floor(d), d - math.floor(d)) for d in (dx, dy))
        corners = [[padded[y : y + 12, x : x + 12] for x in (left, left + 1)] for y in (top, top + 1)]
        expected = sum(
            wy * wx * corners[i][j] for i, wy in enumerate((1 - b, b)) for j, wx in enumerate((1 - a, a))
        )
        torch.manual_seed(seed)
        torch.testing.assert_close(dreamerpro.random_shift(image, 3)[0, 0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(dreamerpro.random_shift(image, 0), image)
