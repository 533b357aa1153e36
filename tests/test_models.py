"""The losses and updates of world model and behavior, beyond the reference numbers."""

import agents
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distributions as dists
import models
import tools
from baselines.augmentations import AUGMENTATIONS, augment
from run.config import LEGAL


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([1, 2, 4]), st.sampled_from([16, 32, 64]), st.integers(1, 16), st.floats(0, 1)
)
def test_cube_mask(blocks, block, size, patch, ratio):
    torch.manual_seed(0)
    mask = models.cube_mask(blocks * block, size, size, ratio, patch, block)
    assert mask.shape == (blocks * block, size, size) and mask.dtype == torch.bool
    grid = size // patch
    place = torch.tensor([y * grid // size for y in range(size)])  # patch row that a pixel row belongs to
    first = torch.searchsorted(place, torch.arange(grid))
    for t in range(blocks * block):
        assert torch.equal(mask[t], mask[t - t % block])  # held for a block of steps
        patches = mask[t][first][:, first]
        assert torch.equal(mask[t], patches[place][:, place])
        assert patches.sum() == int(ratio * grid * grid)


def test_cube_mask_of_the_paper_hides_18_of_36_patches_equally_often():
    torch.manual_seed(0)
    mask = models.cube_mask(4000, 64, 64, 0.5, 10, 4)
    centers = torch.tensor([5, 16, 26, 37, 48, 58])
    patches = mask[::4][:, centers][:, :, centers].float()  # (1000, 6, 6)
    assert (patches.sum((1, 2)) == 18).all()
    assert ((patches.mean(0) - 0.5).abs() < 5 * 0.5 / 1000**0.5).all()
    assert len({tuple(p.flatten().tolist()) for p in patches[:50]}) == 50


def test_cube_mask_refuses_an_uneven_length():
    with pytest.raises(ValueError, match="block_size"):
        models.cube_mask(10, 64, 64, block_size=4)


def test_masked_pixels_are_mid_gray_and_the_target_sees_them():
    agent = agents.agent()
    data = models.preprocess(agents.batch())
    assert data["image"].min() >= -0.5 and data["image"].max() <= 0.5
    mask = agent.world_model.draw_mask(data)
    hidden = agent.world_model.apply_mask(data, mask)["image"]
    assert (hidden[:, mask] == 0).all()
    assert torch.equal(hidden[:, ~mask], data["image"][:, ~mask])
    # other pixels under the mask change only the target branch
    changed = dict(data, image=torch.where(mask[..., None], -data["image"], data["image"]))
    outs = []
    for d in (data, changed):
        torch.manual_seed(5)
        outs.append(agent.world_model.loss(d, mask)[1])
    assert torch.equal(outs[0]["post"]["logit"], outs[1]["post"]["logit"])
    assert not torch.equal(outs[0]["target_post"]["logit"], outs[1]["target_post"]["logit"])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations(name):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32, 3) - 0.5
    out = augment(images, (name,), 1.0)
    assert out.shape == images.shape and out.isfinite().all()
    assert out.min() >= -0.56 and out.max() <= 0.56
    moved = [not torch.equal(a, b) for a, b in zip(out.flatten(0, 1), images.flatten(0, 1), strict=True)]
    assert sum(moved) >= 10  # a shift by 0 is possible
    assert torch.equal(augment(images, (name,), 0.0), images)
    flat = torch.full((2, 2, 32, 32, 3), 0.25)
    if name in ("crop", "rrc", "blur", "shift"):  # these only move and mix pixels
        torch.testing.assert_close(augment(flat, (name,)), flat)


def test_augmentations_change_a_share_of_the_images():
    torch.manual_seed(0)
    images = torch.rand(40, 25, 8, 8, 3) - 0.5
    out = augment(images, ("intensity",), 0.3)
    changed = (out != images).flatten(2).any(-1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.08)
    factors = (out / images).flatten(2).median(-1).values[changed]  # an image has its own: 1 + 0.05·N(0, 1) within ±2
    assert factors.std().item() == pytest.approx(0.05, rel=0.15) and (factors - 1).abs().max() < 0.1001


@pytest.mark.parametrize("name", ["crop", "rrc", "affine"])
def test_windows_of_images(name):
    torch.manual_seed(0)
    # pixel values are positions in units of half an image: what is seen is a linear function of them
    at = (torch.arange(32) + 0.5) / 16 - 1
    images = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).expand(25, 40, 32, 32, 2)
    out = augment(images, (name,)).flatten(0, 1)
    place = out[:, 15:17, 15:17].mean((1, 2))  # position seen at the center
    # (N, 2, 2): how the position seen changes along y and along x
    along = torch.stack([out[:, 20, 15] - out[:, 12, 15], out[:, 15, 20] - out[:, 15, 12]], 1) * 2
    size, skew = along.diagonal(dim1=1, dim2=2), torch.stack([along[:, 0, 1], along[:, 1, 0]], 1)

    def fills(values, low, high):
        assert low - 1e-3 <= values.min() < 0.9 * low + 0.1 * high and 0.1 * low + 0.9 * high < values.max()
        assert values.max() <= high + 1e-3

    if name == "affine":
        tilt = torch.atan2(along[:, 1, 0], along[:, 1, 1])  # rotation of the image's rows
        fills(torch.rad2deg(tilt), -5, 5)
        fills(torch.linalg.det(along), 1 / 1.1**2, 1 / 0.9**2)
        fills(place, -0.28, 0.28)
        return
    assert skew.abs().max() < 1e-4
    assert (place.abs() <= 1 - size + 1e-4).all()  # views stay within the image
    if name == "crop":
        torch.testing.assert_close(size, torch.full_like(size, 0.84))
        fills(place, -0.16, 0.16)
    else:
        fills(size, 0.6**0.5, 1)
        ratio = size[:, 1] / size[:, 0]
        assert ratio.max() <= 4 / 3 + 1e-3 and ratio.min() >= 3 / 4 - 1e-3 and size.prod(1).min() < 0.85


def test_shift_moves_whole_pixels():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 16, 16, 1)
    padded = torch.nn.functional.pad(image[0, 0, :, :, 0][None, None], (4, 4, 4, 4), mode="replicate")[0, 0]
    for _ in range(10):
        out = augment(image, ("shift",))[0, 0, :, :, 0]
        windows = [padded[y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
        assert any(torch.allclose(out, w, atol=1e-4) for w in windows)


@pytest.mark.parametrize("height, width", [(64, 64), (84, 60)])
def test_overlays_have_the_amplitudes_of_natural_images(height, width):
    torch.manual_seed(0)
    images = torch.rand(1, 200, height, width, 3) - 0.5
    mixed = 2 * augment(images, ("overlay",)) - images
    noise = mixed[0, :, :, :, 0]
    torch.testing.assert_close(mixed, noise[None, ..., None].expand_as(mixed), atol=1e-6, rtol=0)  # gray
    assert noise.abs().max() <= 0.5 + 1e-6 and noise.std().item() == pytest.approx(0.21, abs=0.02)
    assert abs(torch.corrcoef(noise[:2].flatten(1))[0, 1].item()) < 0.6  # each image has its own
    spectrum = torch.fft.rfft2(noise).abs().square().mean(0).sqrt()
    for amplitudes in (spectrum[1:25, 0], spectrum[0, 1:25]):
        flat = amplitudes * torch.arange(1, 25)
        assert flat.max() / flat.min() < 1.7


def test_free_nats_apply_to_each_element():
    logits = torch.zeros(2, 1, 3)
    far = torch.tensor([[[0.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]]], requires_grad=True)
    post, prior = dists.OneHot(far), dists.OneHot(logits.clone().requires_grad_())
    dyn, rep, value = models.kl_losses(post, prior, free=0.5)
    assert value[0] < 1e-6 and value[1] > 0.5
    torch.testing.assert_close(dyn, torch.stack([torch.tensor(0.5), value[1]]))
    torch.testing.assert_close(rep, dyn)
    assert torch.autograd.grad(dyn.sum(), far, allow_unused=True, retain_graph=True) == (None,)
    (grad,) = torch.autograd.grad(rep.sum(), far)
    assert (grad[0] == 0).all() and grad[1].abs().max() > 0


def test_bisimulation_loss_by_hand():
    torch.manual_seed(0)
    n, f = 5, 7
    a, b, a2, b2 = torch.randn(4, n, f).unbind(0)
    reward = torch.rand(n) * 2
    expected = 0.0
    cos = torch.nn.functional.cosine_similarity
    for i in range(n):
        for j in range(n):
            d = 1 - cos(a[i], b[j], 0)
            target = (reward[i] - reward[j]).abs() + 0.99 * (1 - cos(a2[i], b2[j], 0))
            error = (d - target).abs()
            expected += 0.5 * error**2 if error < 1 else error - 0.5
    torch.testing.assert_close(models.bisimulation_loss(a, b, a2, b2, reward, 0.99), expected / n**2)


def test_latent_reconstruction_of_tiny_vectors_divides_by_at_least_a_thousandth():
    small = torch.full((1, 4), 1e-5)
    torch.testing.assert_close(models.latent_reconstruction_loss(small, -small), ((2 * small / 1e-3) ** 2).sum(-1))


def test_target_branch_gets_no_gradient():
    agent = agents.agent()
    data = models.preprocess(agents.batch())
    _, states, _ = agent.world_model.loss(data, agent.world_model.draw_mask(data))
    for name in ("target_post", "target_prior"):
        assert not any(v.requires_grad for v in states[name].values())
    assert not states["embed"].requires_grad


@pytest.mark.parametrize("head", ["reward", "cont"])
def test_heads_outside_grad_heads_do_not_shape_the_features(head):
    other = "cont" if head == "reward" else "reward"
    flags = ("--mbr_scale", "0", "--simsr_scale", "0", "--dyn_scale", "0", "--rep_scale", "0", f"--{other}_scale", "0")
    for grad_heads, reaches in (([head], True), ([other], False)):
        agent = agents.agent(*flags, "--grad_heads", *grad_heads)
        torch.nn.init.normal_(agent.world_model.heads[head].out.weight)
        data = models.preprocess(agents.batch())
        total, _, _ = agent.world_model.loss(data, None)
        weights = [agent.world_model.encoder.cnn.convs[0].weight, agent.world_model.heads[head].out.weight]
        encoder, own = torch.autograd.grad(total, weights, allow_unused=True)
        assert own.abs().max() > 0
        assert (encoder is not None and encoder.abs().max() > 0) == reaches


def test_a_scale_of_zero_skips_the_loss():
    data = models.preprocess(agents.batch(agents.VECTORS))
    for name in ("mbr", "simsr"):
        agent = agents.agent(f"--{name}_scale", "0", shapes=agents.VECTORS, base=("dmc_proprio",))
        _, _, metrics = agent.world_model.loss(data, None)
        assert f"{name}_loss" not in metrics and "model_loss" in metrics
        _start, _, metrics = agent.world_model.update(agents.batch(agents.VECTORS))
        assert metrics["model_loss"].isfinite()


def test_rewards_outside_the_range_are_counted():
    model = agents.agent(shapes=agents.VECTORS, base=("dmc_proprio",)).world_model
    data = models.preprocess(agents.batch(agents.VECTORS))
    beyond = torch.where(torch.arange(8) == 2, 2.5, data["reward"])

    def compare(reward):
        torch.manual_seed(0)
        metrics = model.loss({**data, "reward": reward}, None)[2]
        return metrics["simsr_reward_out_of_range"], metrics["simsr_loss"]

    inside, outside = compare(data["reward"]), compare(beyond)
    assert (inside[0], outside[0]) == (0, 1)
    model.reward_to_simsr = 0.25  # scale for a task whose rewards reach 8
    assert compare(4 * data["reward"]) == inside and compare(4 * beyond) == outside


def test_ema_copies_move_after_the_step():
    agent = agents.agent()
    wm = agent.world_model
    before = [p.clone() for p in wm.target_encoder.parameters()]
    for p in wm.encoder.parameters():
        p.data.add_(1)
    wm.update(agents.batch())
    for old, online, new in zip(before, wm.encoder.parameters(), wm.target_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.05 * (online - old))


def test_a_parameter_that_the_loss_does_not_reach_is_an_error_unless_it_is_named():
    used, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    settings = {"lr": 0.1, "eps": 1e-8, "clip": 0}
    with pytest.raises(ValueError, match="the loss does not reach other:"):
        tools.Optimizer({"used": used, "other": other}, **settings).step(used.sum())
    assert torch.equal(used, torch.ones(2))
    tools.Optimizer({"used": used, "other": other}, unused=("other",), **settings).step(used.sum())
    assert not torch.equal(used, torch.ones(2)) and torch.equal(other, torch.ones(2))


def test_optimizer_steps_match_adam_for_any_gradient_strides():
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 4, 4)
    ours, theirs = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    opt, adam = tools.Optimizer({"w": ours}, 1e-2, 1e-8, 1000.0), torch.optim.Adam([theirs], 1e-2, eps=1e-8)
    x = torch.randn(2, 3, 16, 16)
    for _ in range(5):
        channels_last = x.to(memory_format=torch.channels_last)
        opt.step(torch.nn.functional.conv2d(channels_last, ours, stride=2).square().mean())
        adam.zero_grad()
        torch.nn.functional.conv2d(x, theirs, stride=2).square().mean().backward()
        adam.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def imagination(agent):
    start, _, _ = agent.world_model.update(agents.batch())
    return start


def test_return_scale_is_at_least_one():
    behavior = agents.agent().behavior
    behavior.return_ema.copy_(torch.tensor([1.0, 1.2]))
    offset, scale = behavior.return_range(torch.linspace(0, 2, 101).reshape(-1, 1, 1))
    torch.testing.assert_close(behavior.return_ema, torch.tensor([1.0 + 0.01 * (0.1 - 1.0), 1.2 + 0.01 * (1.9 - 1.2)]))
    assert scale == 1 and offset == behavior.return_ema[0]
    behavior.return_ema.copy_(torch.tensor([-1.0, 4.0]))
    _, scale = behavior.return_range(torch.linspace(-1, 4, 101).reshape(-1, 1, 1))
    assert scale.item() == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("gradient", LEGAL["imag_gradient"].choices)
@pytest.mark.parametrize("dist", ["normal", "onehot"])
def test_actor_gradients(gradient, dist):
    agent = agents.agent("--imag_gradient", gradient, "--imag_gradient_mix", "0.5", "--actor_dist", dist)
    batch = agents.batch(discrete=dist == "onehot")
    before = {k: v.clone() for k, v in agent.named_parameters()}
    metrics = agent.update(batch)
    assert all(v.isfinite() for v in metrics.values())
    changed = [k for k, v in agent.named_parameters() if not torch.equal(v, before[k])]
    moved = {".".join(k.split(".")[:2]) for k in changed}
    assert {"behavior.actor", "behavior.value", "world_model.encoder", "world_model.dynamics"} <= moved


def test_reinforce_and_dynamics_gradients_differ_as_they_should():
    found = {}
    for gradient in ("dynamics", "reinforce", "both"):
        agent = agents.agent("--imag_gradient", gradient, "--imag_gradient_mix", "0.25", "--actor_entropy", "0")
        torch.nn.init.normal_(agent.world_model.heads["reward"].out.weight)
        torch.nn.init.normal_(agent.behavior.value.out.weight)
        data = models.preprocess(agents.batch())
        states = agent.world_model.loss(data, None)[1]
        start = {k: v.flatten(0, 1) for k, v in states["target_post"].items()}
        torch.manual_seed(1)
        loss, *_ = agent.behavior.loss(agent.world_model, start)
        found[gradient] = torch.autograd.grad(loss, agent.behavior.actor.out.weight)[0]
        assert found[gradient].abs().max() > 0
    mixed = 0.25 * found["dynamics"] + 0.75 * found["reinforce"]
    torch.testing.assert_close(found["both"], mixed, rtol=1e-3, atol=1e-6)


def test_learning_behavior_does_not_change_the_world_model():
    agent = agents.agent()
    start = imagination(agent)
    before = {k: v.clone() for k, v in agent.world_model.state_dict().items()}
    agent.behavior.update(agent.world_model, start)
    assert all(torch.equal(v, before[k]) for k, v in agent.world_model.state_dict().items())


def test_imagination_starts_from_some_of_the_states():
    torch.manual_seed(0)
    states = {"stoch": 2.0 * torch.arange(24)[:, None, None].expand(24, 4, 5), "deter": torch.arange(24.0)[:, None]}
    counts = torch.zeros(24)
    for _ in range(400):
        picked = models.pick_starts(states, 6)
        rows = picked["deter"][:, 0]
        assert len(rows.unique()) == 6 and torch.equal(picked["stoch"][:, 0, 0], 2 * rows)
        counts[rows.long()] += 1
    assert (counts - 100).abs().max() < 5 * 75**0.5  # each with probability 1/4
    for count in (0, 24, 30):
        assert torch.equal(models.pick_starts(states, count)["deter"], states["deter"])

    agent, seen = agents.agent("--imag_starts", "5"), []
    agent.behavior.update(agent.world_model, imagination(agent), lambda feat, _: seen.append(feat) or feat[..., :1])
    assert seen[0].shape[:2] == (4, 5)


def test_the_slow_critic_moves_at_every_nth_update():
    behavior = agents.agent("--slow_target_update", "3", "--slow_target_fraction", "0.25").behavior
    behavior.value.out.bias.data.fill_(1)  # that of both was 0
    for update in range(7):
        behavior.move_slow_value()
        torch.testing.assert_close(1 - behavior.slow_value.out.bias, torch.full((255,), 0.75 ** (1 + update // 3)))


def test_lambda_return_limits():
    reward, value = torch.rand(2, 6, 4, 1).unbind(0)
    discount, bootstrap = torch.rand(6, 4, 1), torch.rand(4, 1)
    following = torch.cat([value[1:], bootstrap[None]])
    torch.testing.assert_close(
        models.lambda_return(reward, value, discount, bootstrap, 0.0), reward + discount * following
    )
    full = models.lambda_return(reward, value, discount, bootstrap, 1.0)
    torch.testing.assert_close(full[-1], reward[-1] + discount[-1] * bootstrap)
    torch.testing.assert_close(full[0], reward[0] + discount[0] * full[1])


SMALL = {"image": (16, 16, 3)}
READ = {  # flags, and other values of settings of which each changes what is learned with them
    "": {
        "kl_free": 1, "dyn_scale": 0.7, "rep_scale": 0.3, "reward_scale": 0.5, "cont_scale": 0.5, "mbr_scale": 0.5,
        "simsr_scale": 0.5, "simsr_discount": 0.5, "unimix_ratio": 0.2, "mask_ratio": 0.25, "patch_size": 8,
        "block_size": 2, "encoder_tau": 0.5, "dynamics_tau": 0.5, "model_lr": 1e-2, "opt_eps": 1e-3, "grad_clip": 1e-2,
        "weight_decay": 0.1, "value_lr": 1e-3, "actor_lr": 1e-3, "ac_opt_eps": 1e-2, "value_grad_clip": 1e-3,
        "actor_grad_clip": 1e-4, "slow_target_update": 2, "slow_target_fraction": 0.5, "discount": 0.5,
        "discount_lambda": 0.5, "imag_horizon": 3, "imag_starts": 5, "imag_gradient": "both", "actor_entropy": 0.1,
        "actor_min_std": 0.3, "actor_max_std": 0.6, "reward_EMA": False, "slow_value_target": False,
    },
    "--imag_gradient both": {"imag_gradient_mix": 0.5},
    "--augmentation shift": {"aug_prob": 0.3},
    "--actor_dist tanh_normal": {"actor_init_std": 0},
    "--dyn_discrete 0": {"dyn_min_std": 0.3, "dyn_std_act": "softplus", "dyn_mean_act": "tanh5"},
    "--mbr_loss barlow": {"barlow_lambda": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("flags", READ)
def test_every_setting_of_learning_is_read(flags):
    batch = agents.batch(SMALL)

    def learn(**changes):
        agent = agents.agent("--patch_size", "4", "--kl_free", "0", *flags.split(), shapes=SMALL, **changes)
        for seed in range(2):
            torch.manual_seed(seed)
            agent.update(batch)
        return agent.state_dict()

    usual = learn()
    for setting, value in READ[flags].items():
        found = learn(**{setting: value})
        assert any(name in found and not torch.equal(one, found[name]) for name, one in usual.items()), setting


@pytest.mark.parametrize(
    "flags, shapes, base",
    [
        ((), SMALL, ("dmc_vision",)),
        ((), agents.VECTORS, ("dmc_proprio",)),
        (("--encoder.mlp_keys", ".*"), {**SMALL, **agents.VECTORS}, ("dmc_vision",)),
        ((), SMALL, ("dmc_vision", "continuous")),
        (("--augmentation", *AUGMENTATIONS), SMALL, ("dmc_vision",)),
        (("--initial", "zeros"), SMALL, ("dmc_vision",)),
        (("--hybrid", "False"), SMALL, ("dmc_vision",)),
        (("--mask_ratio", "0"), SMALL, ("dmc_vision",)),
        (("--actor_dist", "trunc_normal"), SMALL, ("dmc_vision",)),
        (("--actor_dist", "tanh_normal"), SMALL, ("dmc_vision",)),
        (("--reward_EMA", "False", "--slow_value_target", "False"), SMALL, ("dmc_vision",)),
        (("--weight_decay", "0.1"), SMALL, ("dmc_vision",)),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_every_variant_learns_and_acts(flags, shapes, base):
    agent = agents.agent("--model_lr", "1e-3", "--patch_size", "4", *flags, shapes=shapes, base=base)
    batch = agents.batch(shapes)
    before = {k: v.clone() for k, v in agent.named_parameters()}
    losses = [agent.update(batch)["model_loss"].item() for _ in range(12)]
    assert sum(losses[-3:]) < 0.98 * sum(losses[:3]), losses
    decays = {opt.param_groups[0]["weight_decay"] for opt in agent.optimizers().values()}
    assert decays == {agent.config.weight_decay}
    still = {k for k, v in agent.named_parameters() if torch.equal(v, before[k])}
    unused = {f"world_model.{name}" for name in agent.world_model.opt.unused}
    assert still == unused if agent.config.weight_decay == 0 else still <= unused
    if not any(len(s) == 3 for s in shapes.values()):
        assert agent.world_model.draw_mask(models.preprocess(batch)) is None
    obs = {k: v[:, 0] for k, v in batch.items() if k in shapes or k == "is_first"}
    action, state = agent.act(obs, None, training=True)
    action, _ = agent.act(obs, state, training=False)
    assert action.shape == (3, 3) and action.isfinite().all()


def test_bfloat16_stays_close_to_float32(monkeypatch):
    monkeypatch.setattr(dists, "draw_one_hot", lambda probs: dists.one_hot(probs.argmax(-1), probs.shape[-1]))
    found = {}
    for precision in (32, 16):
        agent = agents.agent("--precision", str(precision), "--dyn_hidden", "64", "--dyn_deter", "64", "--units", "64")
        data = models.preprocess(agents.batch())
        total, states, metrics = agent.world_model.loss(data, None)
        heads = agent.world_model.heads
        weights = [agent.world_model.encoder.cnn.convs[0].weight, heads["reward"].layers[0].linear.weight]
        found[precision] = (total, metrics, torch.autograd.grad(total, weights))
        assert states["post"]["deter"].dtype == states["post"]["logit"].dtype == torch.float32
    torch.testing.assert_close(found[16][0], found[32][0], rtol=0.03, atol=0)
    for ours, exact in zip(found[16][2], found[32][2], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() <= 0.1 * exact.abs().max()
