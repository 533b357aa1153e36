"""The representation losses of other methods: numbers of the public R2-Dreamer code, properties, agents and runs."""

import functools
import math
import signal
from pathlib import Path

import agents
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_accel import needs_gpu
from test_dreamer import HERE, PIXELS, entries, main, start, wait_for

import accel
import baselines
import distributions as dists
import models
from baselines import augmentations, dreamerpro, infonce, r2dreamer, repo
from run import checkpoint, distributed
from run.config import LEGAL

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
    # the two terms, from two weights
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
    # (K, B, T), as in the public code
    scores = numbers()["sinkhorn_scores"].permute(1, 2, 0)
    found = dreamerpro.sinkhorn(scores.flatten(0, 1)).view_as(scores)
    close(found.permute(2, 0, 1), "sinkhorn_assignments")
    # both views at once, each balanced separately
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
    # regardless of the scale and the offset of a column
    found = r2dreamer.barlow_twins_loss(3 * columns + 1, 0.5 * columns - 2, off_diagonal=1.0)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert r2dreamer.barlow_twins_loss(columns, columns.roll(1, 1)) > columns.shape[1] / 2


def test_barlow_twins_handles_constant_columns():
    projected = torch.randn(8, 3)
    projected[:, 1] = 2.0
    projected.requires_grad_()
    loss = r2dreamer.barlow_twins_loss(projected, torch.zeros(8, 3))
    (grad,) = torch.autograd.grad(loss, projected)
    assert loss.isfinite() and grad.isfinite().all()


def test_infonce_of_rows_that_match_their_own_embedding():
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(12, 30), dim=-1)
    assert infonce.infonce_loss(200 * rows, rows) < 1e-3
    assert infonce.infonce_loss(200 * rows, rows.roll(1, 0)) > 50
    torch.testing.assert_close(infonce.infonce_loss(0 * rows, rows), torch.tensor(12.0).log())


@pytest.mark.parametrize(
    "loss",
    [
        r2dreamer.barlow_twins_loss,
        infonce.infonce_loss,
        lambda x, y: distributed.all_gather_rows_with_gradient(x).pow(3).mean(),
    ],
)
def test_ranks_average_to_the_loss_and_gradient_of_the_batch(monkeypatch, loss):
    """The mean over two ranks, each with its share, is the result of one process with the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(12, 5, requires_grad=True), torch.randn(12, 5)
    expected = loss(*whole)
    (expected_grad,) = torch.autograd.grad(expected, whole[0])
    monkeypatch.setattr(distributed, "_size", 2)
    found, grads = [], []
    for rank in range(2):
        mine = slice(6 * rank, 6 * rank + 6)
        monkeypatch.setattr(distributed, "_rank", rank)

        def all_gather_rows(x, mine=mine):
            return next(w.detach() for w in whole if torch.equal(w[mine], x))

        monkeypatch.setattr(distributed, "all_gather_rows", all_gather_rows)
        share = loss(*(x[mine] for x in whole))
        # only this rank's rows of the whole batch have a gradient
        grads.append(torch.autograd.grad(share, whole[0])[0])
        found.append(share.detach())
    torch.testing.assert_close(sum(found) / 2, expected.detach())
    torch.testing.assert_close(sum(grads) / 2, expected_grad)


# DreamerPro


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(2, 12), st.sampled_from([0.05, 0.1, 1.0]), st.integers(0, 1000))
def test_sinkhorn_balances_rows_and_columns(rows, prototypes, eps, seed):
    scores = torch.rand(rows, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    few = dreamerpro.sinkhorn(scores, eps, 3)
    torch.testing.assert_close(few.sum(1), torch.ones(rows))  # rows are normalized last
    balanced = dreamerpro.sinkhorn(scores.double(), eps, 1000)
    torch.testing.assert_close(balanced.sum(1), torch.ones(rows).double())
    share = torch.full((prototypes,), rows / prototypes).double()
    torch.testing.assert_close(balanced.sum(0), share, rtol=1e-2, atol=1e-2)
    # a constant added to all scores changes nothing
    torch.testing.assert_close(dreamerpro.sinkhorn(scores + 5, eps, 3), few, rtol=1e-3, atol=1e-4)


def test_assignments_are_balanced_over_the_rows_of_all_ranks(monkeypatch):
    torch.manual_seed(0)
    scores = torch.rand(2, 4, 3, 5)
    expected = dreamerpro.assign(scores)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    # the rows of both ranks, concatenated, (B·T, 2, K)
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
    # the embedding goes with the other view's assignments, the features with those of their own view
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


def test_random_shift_moves_a_whole_sequence_by_up_to_three_pixels():
    torch.manual_seed(0)
    # pixel values are positions: a shift shows as a difference, away from the edges
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    images = torch.stack([y, x], -1).expand(200, 3, 16, 20, 2)
    shift = (dreamerpro.random_shift(images, 3) - images)[:, :, 3:-3, 3:-3]
    # one offset for each sequence and direction
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), rtol=0, atol=1e-4)
    offsets = shift[:, 0, 0, 0]
    assert offsets.abs().max() <= 3 and (offsets.amax(0) > 2.8).all() and (offsets.amin(0) < -2.8).all()
    assert torch.corrcoef(offsets.T)[0, 1].abs() < 0.25
    assert (offsets.mean(0).abs() < 5 * 3 / 3**0.5 / 200**0.5).all()
    assert (offsets - offsets.round()).abs().mean() > 0.2  # not only whole pixels


def test_random_shift_is_bilinear_and_repeats_the_edges():
    image = torch.rand(1, 1, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    padded = F.pad(image[0].permute(0, 3, 1, 2), (4, 4, 4, 4), mode="replicate")[0].permute(1, 2, 0)
    for seed in range(10):
        torch.manual_seed(seed)
        dx, dy = ((2 * torch.rand(2) - 1) * 3).tolist()
        (left, a), (top, b) = ((4 + math.floor(d), d - math.floor(d)) for d in (dx, dy))
        corners = [[padded[y : y + 12, x : x + 12] for x in (left, left + 1)] for y in (top, top + 1)]
        expected = sum(wy * wx * corners[i][j] for i, wy in enumerate((1 - b, b)) for j, wx in enumerate((1 - a, a)))
        torch.manual_seed(seed)
        torch.testing.assert_close(dreamerpro.random_shift(image, 3)[0, 0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(dreamerpro.random_shift(image, 0), image)


# Agents

CHANGED = {"hybrid": False, "mask_ratio": 0.0, "mbr_scale": 0.0, "simsr_scale": 0.0}
EXPECTED = {  # settings that differ as well, losses
    "repo": ({"dyn_scale": 0.0, "rep_scale": 0.0}, {"repo"}),
    "r2dreamer": ({"dyn_scale": 1.0}, {"barlow"}),
    "infonce": ({"dyn_scale": 1.0}, {"infonce"}),
    "dreamerpro": ({}, {"swav", "temp", "norm"}),
}
FEW = ("--proto_count", "20", "--proto_size", "8")  # prototypes
SMALL = {"image": (16, 16, 3)}


def agent(name: str, *flags: str, **changes):
    return agents.agent(*FEW, *flags, shapes=SMALL, base=("dmc_vision", name), **changes)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    return agents.batch(SMALL, seed=seed)


def test_every_method_is_a_legal_value_and_a_config():
    assert LEGAL["baseline"].choices == ("none", *baselines.METHODS) == ("none", *EXPECTED)
    assert agents.config().baseline == "none" and agents.agent().world_model.baseline is None


@pytest.mark.parametrize("name", EXPECTED)
def test_a_method_changes_only_what_it_should_and_trains(name):
    also_changed, losses = EXPECTED[name]
    default, config = agents.config().flat(), agents.config(base=("dmc_vision", name)).flat()
    changed = {k: v for k, v in config.items() if v != default[k] and k != "configs"}
    assert changed == {**CHANGED, **also_changed, "baseline": name}

    ours, plain = agent(name), agents.agent(shapes=SMALL, base=("dmc_vision", "no_hybrid"))
    parameters, plain_parameters = dict(ours.named_parameters()), dict(plain.named_parameters())
    # the networks that all methods share start from the same numbers
    assert all(torch.equal(parameters.pop(k), v) for k, v in plain_parameters.items())
    assert parameters and all(k.startswith("world_model.baseline.") for k in parameters)

    before = {k: v.detach().clone() for k, v in ours.named_parameters()}
    metrics = [ours.update(batch(seed=seed)) for seed in range(3)]
    assert all(value.isfinite() for found in metrics for value in found.values())
    found = {k.removesuffix("_loss") for k in metrics[0] if k.endswith("_loss")}
    assert found == {"reward", "cont", "dyn", "rep", "model", "actor", "value"} | losses
    for one in metrics:
        scales = {k: ours.config[f"{k}_scale"] for k in ("reward", "cont", "dyn", "rep", *losses)}
        torch.testing.assert_close(one["model_loss"], sum(v * one[f"{k}_loss"] for k, v in scales.items()))
    same = {k for k, v in ours.named_parameters() if torch.equal(v, before[k])}
    assert same == {"world_model.dynamics.projection.weight"}  # which only the latent reconstruction uses


READ = {  # other values of a method's settings, of which each changes what is learned
    "repo": {"repo_scale": 2, "repo_target": 1, "repo_balance": 0.5, "repo_init_beta": 0.1, "repo_lr": 0.1},
    "r2dreamer": {"barlow_scale": 2, "barlow_lambda": 0.5},
    "infonce": {"infonce_scale": 2},
    "dreamerpro": {
        "swav_scale": 2, "temp_scale": 2, "norm_scale": 2, "proto_shift": 1, "proto_tau": 0.5, "proto_freeze": 0,
        "proto_temperature": 0.5, "sinkhorn_eps": 0.5, "sinkhorn_iterations": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_every_setting_of_a_method_is_read(name):
    def learn(**changes):
        made = agent(name, **changes)
        for seed in range(2):
            torch.manual_seed(seed)
            made.world_model.update(batch())
        return made.state_dict()

    usual = learn()
    for setting, value in READ[name].items():
        found = learn(**{setting: value})
        assert any(not torch.equal(one, found[k]) for k, one in usual.items()), setting


@pytest.mark.parametrize("name", EXPECTED)
def test_imagination_starts_from_the_posterior(name):
    model, data = agent(name).world_model, models.preprocess(batch())
    torch.manual_seed(3)
    _, states, _ = model.loss(data, model.draw_mask(data))
    torch.manual_seed(3)
    start, embed, _ = model.update(batch())
    assert all(torch.equal(v, states["post"][k].flatten(0, 1)) and not v.requires_grad for k, v in start.items())
    assert torch.equal(embed, states["embed"])


@pytest.mark.parametrize("name", EXPECTED)
def test_the_loss_by_itself_trains_encoder_and_dynamics(name):
    model = agent(name).world_model
    data = models.preprocess(batch())
    embed = model.encoder(data)
    post, prior = model.dynamics.observe(embed, data["action"], data["is_first"])
    losses, metrics = model.baseline.loss(model, data, post, prior, model.dynamics.feat(post), embed)
    assert not any(value.requires_grad for value in metrics.values())
    for loss in losses.values():
        assert loss.shape == ()
    total = sum(losses.values())
    for part in (model.encoder.cnn.convs[0].weight, model.dynamics.cell.linear.weight, model.dynamics.post_out.weight):
        assert torch.autograd.grad(total, part, retain_graph=True)[0].abs().max() > 0


@pytest.mark.parametrize("name", EXPECTED)
def test_a_checkpoint_holds_all_of_a_method(name, tmp_path):
    """Updates resumed from a checkpoint equal those without an interruption, bit for bit."""
    flags = ("--proto_freeze", "2")
    whole = agent(name, *flags)
    expected = []
    for seed in range(4):
        if seed == 2:
            checkpoint.save_checkpoint(tmp_path / "latest.pt", whole.state())
        torch.manual_seed(seed)
        expected.append(whole.update(batch(seed=seed)))
    resumed = agent(name, *flags, seed=1)
    resumed.load(checkpoint.load_checkpoint(tmp_path / "latest.pt"))
    for seed in range(2, 4):
        torch.manual_seed(seed)
        found = resumed.update(batch(seed=seed))
        assert all(torch.equal(found[k], v) for k, v in expected[seed].items())
    assert all(torch.equal(resumed.state_dict()[k], v) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("target, sign", [("0.001", 1), ("1000", -1)])
def test_beta_follows_the_budget(target, sign):
    ours = agent("repo", "--repo_target", target, "--repo_lr", "0.01", "--repo_init_beta", "0.1")
    found = [ours.update(batch(seed=seed)) for seed in range(5)]
    betas = torch.stack([metrics["repo_beta"] for metrics in found])
    assert all(metrics["repo_kl_excess"] * sign > 0 for metrics in found)
    torch.testing.assert_close(found[0]["kl"] - float(target), found[0]["repo_kl_excess"])
    assert betas[0] == pytest.approx(0.1)
    # Adam's first steps are about the learning rate
    torch.testing.assert_close(betas.log().diff(), torch.full((4,), 0.01 * sign), rtol=0.3, atol=0)
    # only its own optimizer trains it
    assert not any(ours.world_model.baseline.log_beta is p for p in ours.world_model.opt.params)


def test_prototypes_are_frozen_at_first_and_stay_unit_vectors():
    ours = agent("dreamerpro", "--proto_freeze", "2")
    baseline = ours.world_model.baseline
    for update in range(4):
        before, projection = baseline.prototypes.detach().clone(), baseline.feat_projection.weight.detach().clone()
        assert baseline.updates == update
        ours.update(batch(seed=update))
        torch.testing.assert_close(baseline.prototypes.norm(dim=-1), torch.ones(20))
        moved = (baseline.prototypes - before).abs().max()
        assert moved < 1e-6 if update < 2 else moved > 1e-5
        assert (baseline.prototypes.grad.abs().max() == 0) == (update < 2)
        assert not torch.equal(baseline.feat_projection.weight, projection)


def test_the_first_ema_update_is_a_copy():
    ours = agent("dreamerpro")
    model, baseline = ours.world_model, ours.world_model.baseline
    pairs = [(baseline.target_encoder, model.encoder), (baseline.target_projection, baseline.embed_projection)]
    with torch.no_grad():
        for online in (*model.encoder.parameters(), *baseline.embed_projection.parameters()):
            online += 0.1
    for update in range(3):
        expected = [
            torch.lerp(old, new, 0.05 if update else 1.0).detach().clone()
            for target, online in pairs
            for old, new in zip(target.parameters(), online.parameters(), strict=True)
        ]
        ours.update(batch(seed=update))
        found = [p for target, _ in pairs for p in target.parameters()]
        assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(found, expected, strict=True))


def test_assignments_are_those_of_the_ema_copies():
    model, data = agent("dreamerpro").world_model, models.preprocess(batch())

    def losses():
        torch.manual_seed(0)
        return model.baseline.loss(model, data, None, None, None, None)[0]

    before = losses()
    for copied in (model.baseline.target_encoder, model.baseline.target_projection):
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        after = losses()
        assert {name for name, loss in after.items() if loss != before[name]} == {"swav", "temp"}
        before = after


def test_views_are_two_shifts_of_each_sequence():
    baseline, data = agent("dreamerpro").world_model.baseline, models.preprocess(batch())
    views = baseline.views(data, ["image"])
    for key, value in data.items():
        assert views[key].shape == (6, *value.shape[1:])
        if key != "image":
            assert torch.equal(views[key][::2], value) and torch.equal(views[key][1::2], value)
    assert not torch.isclose(views["image"][::2], views["image"][1::2]).all(-1).all(-1).all(-1).any()
    # sequences of a single color do not change: no view mixes sequences
    data["image"] = torch.rand(3, 1, 1, 1, 3).expand_as(data["image"])
    views = baseline.views(data, ["image"])
    torch.testing.assert_close(views["image"], data["image"].repeat_interleave(2, 0))


# Backends


def updates(name: str, *flags: str, fast: bool = False, count: int = 2) -> list[dict[str, torch.Tensor]]:
    ours = agent(name, *flags)
    if fast:
        accel.install(ours, accel.choose_backend(True, ours.device))
    torch.manual_seed(1)
    batches = [{k: v.to(ours.device) for k, v in batch(seed).items()} for seed in range(count)]
    return [ours.update(one) for one in batches]


@pytest.mark.parametrize("name", EXPECTED)
def test_fast_updates_match_plain_pytorch(name):
    for plain, native in zip(updates(name), updates(name, fast=True), strict=True):
        for key in plain:
            torch.testing.assert_close(native[key], plain[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", EXPECTED)
def test_bfloat16_losses_are_close_to_float32(name):
    (single,), (half,) = (updates(name, "--precision", p, count=1) for p in ("32", "16"))
    for loss in EXPECTED[name][1]:
        assert half[f"{loss}_loss"].dtype == torch.float32
        assert half[f"{loss}_loss"].item() == pytest.approx(single[f"{loss}_loss"].item(), rel=0.05, abs=1e-5)


@needs_gpu
@pytest.mark.parametrize("name", EXPECTED)
def test_captured_updates_match_plain_pytorch(name):
    flags = ("--device", "cuda", "--proto_freeze", "2")
    for plain, captured in zip(updates(name, *flags, count=8), updates(name, *flags, fast=True, count=8), strict=True):
        for key in plain:
            assert captured[key].item() == pytest.approx(plain[key].item(), rel=1e-2, abs=1e-2), key


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repo", "dreamerpro"])  # which have state beyond networks and their optimizer
def test_a_stopped_run_resumes_to_the_same_numbers(name, tmp_path, capsys):
    flags = [*PIXELS, "--configs", name, *FEW, "--proto_freeze", "20", "--steps", "400"]
    assert main(*flags, *HERE, "--logdir", tmp_path / "whole") == 0
    process = start(*flags, "--logdir", tmp_path / "stopped")
    wait_for(tmp_path / "stopped", 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 0
    assert main(*flags, *HERE, "--logdir", tmp_path / "stopped") == 0
    assert "resumed at step" in capsys.readouterr().out
    lines = entries(tmp_path / "stopped")
    assert lines == entries(tmp_path / "whole")
    assert all(any(f"{loss}_loss" in line for line in lines) for loss in EXPECTED[name][1])


def test_dreamerpro_trains_on_augmented_views(monkeypatch):
    """The config `overlay` is over any method."""
    seen = []
    monkeypatch.setitem(augmentations.AUGMENTATIONS, "overlay", lambda image: seen.append(image.shape) or image)
    agent = agents.agent("--augmentation", "overlay", base=("dmc_vision", "dreamerpro"), proto_count=8, proto_size=4)
    agent.world_model.update(agents.batch())
    assert len(seen) == 2  # the views, and the images from which imagination starts
