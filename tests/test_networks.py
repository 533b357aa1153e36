"""Networks: initialization, shapes, and the RSSM over whole sequences and step by step."""

import copy
import math

import agents
import pytest
import torch

import distributions as dists
import networks
from run.config import LEGAL


@pytest.mark.parametrize("cell", networks.CELLS)
def test_initialization_moments_of_each_layer(cell):
    torch.manual_seed(0)
    agent = agents.agent(
        "--dyn_cell", cell, "--dyn_hidden", "256", "--dyn_deter", "256", "--units", "256", "--encoder.cnn_depth", "32",
        "--dyn_stoch", "16", "--dyn_discrete", "16",
    )  # fmt: skip
    seen = set()
    for name, module in agent.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all() and module.eps == 1e-3, name
            continue
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, networks.BlockLinear)):
            continue
        assert module.bias is None or (module.bias == 0).all(), name
        weight = module.weight
        if isinstance(module, torch.nn.Conv2d):
            area = math.prod(module.kernel_size)
            # truncated at ±2.0, far out: the std is that of the untruncated normal
            std = math.sqrt(2 / (area * (module.in_channels + module.out_channels))) / networks.TRUNC_STD
            kind = "conv"
            assert weight.abs().max() <= 2.0
        else:
            fans = sum(weight.shape[-2:])  # of a block, where there are some
            last = name.rsplit(".", 1)[-1]
            if last == "out" and ("reward" in name or "value" in name):
                assert (weight == 0).all(), name
                seen.add("zero")
                continue
            if last == "out":  # uniform
                limit = math.sqrt(3 * 2 / fans)
                assert limit * 0.9 < weight.abs().max() <= limit, name
                std, kind = limit / math.sqrt(3), "uniform"
            else:
                std, kind = math.sqrt(2 / fans), "linear"
                cut = 2 * std / networks.TRUNC_STD
                # the largest of this many draws is close to the truncation
                assert weight.abs().max() <= cut and (weight.numel() < 5000 or weight.abs().max() > 0.97 * cut), name
        seen.add(kind)
        count = weight.numel()
        assert weight.mean().abs() < 5 * std / math.sqrt(count), name
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count)), name
    assert seen == {"conv", "linear", "uniform", "zero"}
    assert (agent.world_model.dynamics.initial_deter == 0).all()


def test_norms_use_their_epsilon():
    # a signal of variance 1e-4 is shrunk by eps 1e-3 to a third
    norm = networks.NormSiLU(64)
    x = torch.randn(10, 64) * 0.01
    expected = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-3)
    torch.testing.assert_close(norm(x), torch.nn.functional.silu(expected))


@pytest.mark.parametrize("size, kernel, minres", [(64, 4, 4), (32, 4, 4), (96, 4, 3), (64, 3, 4), (64, 5, 8)])
def test_conv_encoder_halves_down_to_minres(size, kernel, minres):
    encoder = networks.ConvEncoder((size, size, 3), depth=4, kernel_size=kernel, minres=minres)
    out = encoder(torch.rand(2, 5, size, size, 3) - 0.5)
    stages = int(math.log2(size // minres))
    assert out.shape == (2, 5, encoder.outputs) and encoder.outputs == 4 * 2 ** (stages - 1) * minres**2
    assert out.isfinite().all()


@pytest.mark.parametrize("kernel, pad", [(4, (1, 1, 1, 1)), (3, (0, 1, 0, 1)), (5, (1, 2, 1, 2))])
def test_conv_encoder_is_flattened_channel_first(kernel, pad):
    """With "same" padding, as TensorFlow has it: what is odd goes to the right and the bottom."""
    encoder = networks.ConvEncoder((16, 16, 3), depth=4, kernel_size=kernel, minres=4)
    image = torch.rand(1, 16, 16, 3)
    x = image.permute(0, 3, 1, 2)
    for conv, norm in zip(encoder.convs, encoder.norms, strict=True):
        x = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad), conv.weight, stride=2)
        x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(image), x.reshape(1, -1))


def test_image_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="50 pixels"):
        networks.count_stages(50, 4)


def test_vector_and_mixed_observations():
    def settings(mlp_keys, cnn_keys):
        return agents.config("--encoder.mlp_keys", mlp_keys, "--encoder.cnn_keys", cnn_keys).encoder

    shapes = {**agents.IMAGE, **agents.VECTORS}
    batch = agents.batch(shapes)
    batch["image"] = batch["image"].float() / 255 - 0.5
    vector = networks.Encoder(shapes, settings(".*", "$^"))
    both = networks.Encoder(shapes, settings(".*", "image"))
    assert vector(batch).shape == (3, 8, 16)
    assert both(batch).shape == (3, 8, 16 + both.cnn.outputs)
    torch.testing.assert_close(both(batch)[..., : both.cnn.outputs], both.cnn(batch["image"]))
    batch["position"] = batch["position"] * 1e6
    squashed = {key: dists.symlog(batch[key]) for key in vector.mlp_keys}
    assert vector.symlog_inputs and vector(batch).isfinite().all()
    seen, vector.symlog_inputs = vector(batch), False
    torch.testing.assert_close(seen, vector(squashed))
    assert not torch.allclose(seen, vector(batch), atol=0.01)
    with pytest.raises(ValueError, match=r"--encoder\.cnn_keys \$\^ and .* observations: image, "):
        networks.Encoder(shapes, settings("$^", "$^"))


def rssm(**changes):
    torch.manual_seed(0)
    sizes = {"stoch": 4, "discrete": 5, "deter": 24, "hidden": 16, "projection": 6} | changes
    made = networks.RSSM(32, 3, networks.GRU(sizes["hidden"], sizes["deter"]), **sizes)
    if made.initial_state == "learned":
        torch.nn.init.normal_(made.initial_deter)
    return made


def inputs(batch=3, length=8):
    g = torch.Generator().manual_seed(1)
    is_first = torch.zeros(batch, length, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[1, 4:5] = True
    return torch.randn(batch, length, 32, generator=g), torch.randn(batch, length, 3, generator=g) * 2, is_first


@pytest.mark.parametrize("changes", [{}, {"discrete": 0}, {"initial": "zeros"}, {"mean_act": "tanh5", "discrete": 0}])
def test_observing_at_once_and_step_by_step_agree(changes, monkeypatch):
    monkeypatch.setattr(dists, "draw_one_hot", lambda probs: dists.one_hot(probs.argmax(-1), probs.shape[-1]))
    monkeypatch.setattr(dists, "draw_normal", torch.zeros_like)
    dynamics = rssm(**changes)
    embed, action, is_first = inputs()
    post, prior = dynamics.observe(embed, action, is_first)
    state = None
    for t in range(8):
        now = slice(t, t + 1)
        one, one_prior = dynamics.observe(embed[:, now], action[:, now], is_first[:, now], state)
        state = {k: v[:, 0] for k, v in one.items()}
        for key in post:
            torch.testing.assert_close(one[key][:, 0], post[key][:, t], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one_prior[key][:, 0], prior[key][:, t], rtol=1e-5, atol=1e-5)


def test_an_episode_start_resets_the_state():
    dynamics = rssm()
    embed, action, is_first = inputs()
    torch.manual_seed(3)
    a, _ = dynamics.observe(embed, action, is_first)
    changed = embed.clone()
    changed[1, :4] += 1
    action[1, 4] += 5  # the action that leads into an episode's start is ignored
    torch.manual_seed(3)
    b, _ = dynamics.observe(changed, action, is_first)
    assert not torch.equal(a["deter"][1, 2], b["deter"][1, 2])
    torch.testing.assert_close(a["deter"][1, 4:], b["deter"][1, 4:])


def test_a_sequence_that_starts_mid_episode_takes_the_given_state():
    dynamics = rssm()
    embed, action, _ = inputs(length=1)
    is_first = torch.zeros(3, 1, dtype=torch.bool)
    state = {"stoch": torch.zeros(3, 4, 5), "deter": torch.randn(3, 24)}
    state["stoch"][..., 2] = 1
    given, _ = dynamics.observe(embed, action, is_first, state)
    fresh, _ = dynamics.observe(embed, action, is_first)
    expected = dynamics.img_step(state, action[:, 0])["deter"]
    torch.testing.assert_close(given["deter"][:, 0], expected)
    assert not torch.allclose(given["deter"], fresh["deter"])


def test_large_actions_are_scaled_to_one_without_gradient():
    dynamics = rssm()
    action = torch.tensor([[5.0, -0.5, -3.0]], requires_grad=True)
    scaled = torch.tensor([[1.0, -0.5, -1.0]])
    torch.testing.assert_close(dynamics.action_input(action), dynamics.action_input(scaled))
    (grad,) = torch.autograd.grad(dynamics.action_input(action).sum(), action)
    weight = dynamics.input.linear.weight[:, dynamics.stoch_size :]
    torch.testing.assert_close(grad[0], weight.sum(0) / torch.tensor([5.0, 1.0, 3.0]))


def test_initial_state_learns_from_every_start():
    dynamics = rssm()
    embed, action, is_first = inputs()
    post, _ = dynamics.observe(embed, action, is_first)
    loss = post["deter"][1, 4].sum()  # an episode that starts mid-sequence
    grads = torch.autograd.grad(loss, [dynamics.initial_deter, dynamics.prior_out.weight], allow_unused=True)
    assert all(g is not None and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("act", ["sigmoid2", "sigmoid", "softplus", "abs"])
def test_continuous_latents(act):
    dynamics = rssm(discrete=0, std_act=act)
    latent = dynamics.latent(torch.linspace(-4, 4, 8)[None])
    raw = torch.linspace(-4, 4, 8)[4:]
    expected = {
        "sigmoid2": 2 * torch.sigmoid(raw / 2),
        "sigmoid": torch.sigmoid(raw),
        "softplus": torch.nn.functional.softplus(raw),
        "abs": (raw + 1).abs(),
    }[act]
    torch.testing.assert_close(latent["std"][0], expected + 0.1)
    state = dynamics.sample_state(latent, {"deter": torch.zeros(1, 24)})
    assert state["stoch"].shape == (1, 4) and dynamics.feat(state).shape == (1, 28)


def test_a_copy_of_dynamics_imagines_with_its_own_weights():
    made = rssm()
    assert all((ours != 0).any() for ours in made.frozen.parameters() if ours.ndim > 1)
    copied = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert all((ours == 0).all() for ours in copied.frozen.parameters())
    assert all((ours != 0).any() for ours in made.frozen.parameters() if ours.ndim > 1)


def test_imagination_acts_without_gradient_to_the_features():
    dynamics = rssm()
    start = {"stoch": torch.zeros(6, 4, 5), "deter": torch.randn(6, 24, requires_grad=True)}
    actor = networks.Actor(44, 16, 1, 3)
    feat, action, policy = dynamics.imagine(actor, start, 5)
    assert feat.shape == (5, 6, 44) and action.shape == policy.mean.shape == (5, 6, 3)
    assert torch.autograd.grad(action[0].sum(), start["deter"], retain_graph=True, allow_unused=True) == (None,)
    for wanted in (start["deter"], actor.out.weight):
        assert torch.autograd.grad(feat[1].sum(), wanted, retain_graph=True)[0].abs().max() > 0


@pytest.mark.parametrize("dist", LEGAL["actor_dist"].choices)
def test_actors(dist):
    actor = networks.Actor(10, 16, 2, 4, dist=dist)
    policy = actor(torch.randn(7, 10))
    for action in (policy.sample(), policy.mode()):
        assert action.shape == (7, 4) and action.isfinite().all()
        assert policy.log_prob(action).shape == (7,) and policy.entropy().shape == (7,)
    if dist == "normal":
        assert (policy.std >= 0.1).all() and (policy.std <= 1).all()
        assert policy.std.mean().item() == pytest.approx(0.9 / (1 + math.exp(-2)) + 0.1, abs=0.1)


def test_bounds_of_actors():
    """From output layers of known values: 5·tanh(m / 5) and softplus(s + 1) + 0.1; 1% uniform."""
    made = {dist: networks.Actor(10, 16, 1, 4, dist=dist) for dist in ("tanh_normal", "onehot")}
    for actor in made.values():
        torch.nn.init.zeros_(actor.out.weight)
        actor.out.bias.data[0] = 20
    policies = {dist: actor(torch.randn(1, 10)) for dist, actor in made.items()}
    torch.testing.assert_close(policies["tanh_normal"].mean[0], torch.tensor([4.996646, 0, 0, 0]))
    torch.testing.assert_close(policies["tanh_normal"].std[0], torch.full((4,), 1.4132617))
    torch.testing.assert_close(policies["onehot"].probs[0], torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]))


def test_a_block_gru_by_hand():
    torch.manual_seed(0)
    cell = networks.BlockGRU(6, 8, blocks=2)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, deter = torch.randn(3, 6), torch.randn(3, 8)
    silu, norm, cat = torch.nn.functional.silu, torch.nn.functional.layer_norm, torch.cat
    mixed = deter @ cell.mix.linear.weight.T
    mixed = silu(norm(mixed, (6,), cell.mix.norm.weight, cell.mix.norm.bias, 1e-3))
    halves, weight, bias = (slice(0, 4), slice(4, 8)), cell.hidden.weight, cell.hidden.bias
    hidden = [cat([deter[:, own], mixed, x], 1) @ weight[i] + bias[own] for i, own in enumerate(halves)]
    hidden = silu(norm(cat(hidden, 1), (8,), cell.norm.weight, cell.norm.bias, 1e-3))
    expected = []
    for i, own in enumerate(halves):  # each has its own reset, candidate and update
        parts = hidden[:, own] @ cell.parts.weight[i] + cell.parts.bias[12 * i : 12 * i + 12]
        reset, cand, update = parts.split(4, 1)
        update = torch.sigmoid(update - 1)
        expected.append(update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * deter[:, own])
    torch.testing.assert_close(cell(x, {"deter": deter})["deter"], cat(expected, 1))
