"""Ablations and baselines as named configs, the decoder, and the probe that changes nothing else."""

import fnmatch
import math

import agents
import pytest
import torch
from test_dreamer import PIXELS, entries

import dreamer
import models
import networks
from run import checkpoint
from run.config import LEGAL, check_config, load_config, unread_flags, unread_settings
from run.prediction import video_pred

pytestmark = pytest.mark.slow

SHAPES = {**agents.IMAGE, **agents.VECTORS}
DEFAULT_LOSSES = {"reward_loss", "cont_loss", "mbr_loss", "simsr_loss", "dyn_loss", "rep_loss"}
DREAMER = {
    "hybrid": False, "mask_ratio": 0.0, "mbr_scale": 0.0, "simsr_scale": 0.0,
    "grad_heads": ["decoder", "reward", "cont"],
}  # fmt: skip


def losses(metrics) -> set[str]:
    return {k for k in metrics if k.endswith("_loss")} - {"model_loss", "actor_loss", "value_loss"}


def tops(names) -> set[str]:
    """`world_model.encoder.cnn.convs.0.weight` → `world_model.encoder`."""
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize(
    "name, changed, gone, new",
    [
        ("no_mask", {"mask_ratio": 0.0}, set(), set()),
        ("no_mbr", {"mbr_scale": 0.0}, {"mbr_loss"}, set()),
        ("mbr_fixed", {"mbr_projection": "fixed"}, set(), set()),
        ("mbr_barlow", {"mbr_loss": "barlow", "mbr_scale": 0.05}, set(), set()),
        ("mbr_barlow_strong", {"mbr_loss": "barlow"}, set(), set()),
        ("no_simsr", {"simsr_scale": 0.0}, {"simsr_loss"}, set()),
        ("no_hybrid", {"hybrid": False}, {"mbr_loss"}, set()),
        ("masked_start", {"imag_branch": "masked"}, set(), set()),
        ("masked_simsr", {"simsr_branch": "masked"}, set(), set()),
        ("overlay", {"augmentation": ["overlay"], "aug_prob": 0.5}, set(), set()),
        ("dreamerv3", DREAMER, {"mbr_loss", "simsr_loss"}, {"decoder_loss"}),
    ],
)
def test_a_variant_changes_only_what_it_should_and_trains(name, changed, gone, new):
    default, variant = agents.config(), agents.config(base=("dmc_vision", name))
    ours, theirs = default.flat(), variant.flat()
    assert {k: v for k, v in theirs.items() if v != ours[k] and k != "configs"} == changed

    agent, usual = agents.agent(base=("dmc_vision", name)), agents.agent()
    parameters, usual_parameters = dict(agent.named_parameters()), dict(usual.named_parameters())
    targets = {"world_model.target_encoder", "world_model.target_dynamics"}
    assert tops(usual_parameters) - tops(parameters) == (targets if "hybrid" in changed else set())
    assert tops(parameters) - tops(usual_parameters) == ({"world_model.decoder"} if new else set())
    # the networks that both share start from the same numbers
    assert all(torch.equal(v, usual_parameters[k]) for k, v in parameters.items() if k in usual_parameters)

    batch = agents.batch()
    mask = agent.world_model.draw_mask(models.preprocess(batch))
    assert (mask is None) == ("mask_ratio" in changed)
    before = {k: v.detach().clone() for k, v in parameters.items()}
    found = [agent.update(batch) for _ in range(3)]
    assert losses(found[0]) == (DEFAULT_LOSSES - gone) | new
    assert all(value.isfinite() for metrics in found for value in metrics.values())
    moved = {k for k, v in parameters.items() if not torch.equal(v, before[k])}
    unmoved = tops(parameters) - tops(moved)
    assert unmoved == set(), f"{unmoved} did not learn"
    # the projection learns nothing without the loss that reads it
    trained = "mbr_loss" not in gone and "mbr_projection" not in changed
    assert ("world_model.dynamics.projection.weight" in moved) == trained


@pytest.mark.parametrize("name", ["no_hybrid", "dreamerv3", "masked_start"])
def test_imagination_starts_from_the_masked_posterior(name):
    model = agents.agent(base=("dmc_vision", name)).world_model
    batch = agents.batch()
    data = models.preprocess(batch)
    torch.manual_seed(3)
    _, states, _ = model.loss(data, model.draw_mask(data))
    assert ("target_post" in states) == (name == "masked_start")
    torch.manual_seed(3)
    start, embed, _ = model.update(batch)
    for key, value in start.items():
        assert torch.equal(value, states["post"][key].flatten(0, 1)) and not value.requires_grad
    assert torch.equal(embed, states["embed"])


@pytest.mark.parametrize("name", ["no_hybrid", "masked_simsr"])
def test_bisimulation_within_one_branch(name):
    """Its own states replace the target branch's, without gradient."""
    model = agents.agent(base=("dmc_vision", name)).world_model
    data = models.preprocess(agents.batch())
    _, states, metrics = model.loss(data, None)
    feat, ahead = states["feat"], model.dynamics.feat(states["prior"])
    a, b = feat[:, :-1].flatten(0, 1), feat[:, :-1].flatten(0, 1).detach()
    n = ahead[:, 1:].flatten(0, 1).detach()
    expected = models.bisimulation_loss(a, b, n, n, data["reward"][:, :-1].flatten(), 0.99)
    torch.testing.assert_close(metrics["simsr_loss"], expected.detach())


def test_decoder_scale_weighs_the_reconstruction():
    data = models.preprocess(agents.batch())
    found = {}
    for scale in ("0", "1", "2.5"):
        model = agents.agent("--decoder_scale", scale, base=("dmc_vision", "dreamerv3")).world_model
        torch.manual_seed(0)
        total, _, metrics = model.loss(data, None)
        found[scale] = total.item(), metrics["decoder_loss"].item()
    assert found["0"][1] == found["1"][1]
    assert found["1"][0] - found["0"][0] == pytest.approx(found["1"][1], rel=1e-4)
    assert found["2.5"][0] - found["0"][0] == pytest.approx(2.5 * found["1"][1], rel=1e-4)


# The decoder


@pytest.mark.parametrize("kernel_size", [3, 4, 5, 6])
@pytest.mark.parametrize("size, minres", [(16, 4), (64, 4), (96, 6)])
def test_decoder_mirrors_the_encoder(size, minres, kernel_size):
    shape = (size, size, 3)
    encoder = networks.ConvEncoder(shape, 2, kernel_size, minres)
    decoder = networks.ConvDecoder(7, shape, 2, kernel_size, minres)
    assert decoder.start.out_features == encoder.outputs
    down = [c.weight.shape[0] for c in encoder.convs]
    up = [c.weight.shape[0] for c in [*decoder.convs, decoder.out]]
    assert up == down[::-1]
    assert all(c.weight.shape[2:] == (kernel_size, kernel_size) for c in [*decoder.convs, decoder.out])
    out = decoder(torch.randn(2, 3, 7))
    assert out.shape == (2, 3, *shape) and out.dtype == torch.float32


def test_decoder_is_initialized_like_the_other_networks():
    torch.manual_seed(0)
    decoder = networks.ConvDecoder(64, (64, 64, 3), 32, 4, 4)
    cut = {}
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all() and module.eps == 1e-3
        elif hasattr(module, "weight"):
            a, b, *area = module.weight.shape
            fans = (a + b) * math.prod(area)
            std = math.sqrt(2 / fans)
            if isinstance(module, torch.nn.ConvTranspose2d) and name != "out":
                std /= networks.TRUNC_STD  # truncated at ±2.0, far out
                assert module.bias is None
            else:
                assert (module.bias == 0).all()
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count)), name
            cut[name] = module.weight.abs().max().item() / std
    # uniform, and normal truncated at two standard deviations before the correction
    assert 0.98 * math.sqrt(3) < cut["out"] <= math.sqrt(3) * (1 + 1e-6)
    assert 0.97 * 2 < cut["start"] * networks.TRUNC_STD <= 2 * (1 + 1e-6)


def test_reconstruction_loss_by_hand():
    data = models.preprocess(agents.batch(SHAPES))
    model = agents.agent("--encoder.mlp_keys", ".*", shapes=SHAPES, base=("dmc_vision", "dreamerv3")).world_model
    _, states, metrics = model.loss(data, None)
    predicted = model.decoder(states["feat"])
    assert set(predicted) == set(SHAPES)
    expected = 0.0
    for key, shape in SHAPES.items():
        assert predicted[key].shape == (3, 8, *shape)
        target = data[key] if key == "image" else torch.sign(data[key]) * torch.log(1 + data[key].abs())
        expected = expected + ((predicted[key] - target) ** 2).reshape(3 * 8, -1).sum(1).mean()
    torch.testing.assert_close(metrics["decoder_loss"], expected.detach())


def test_the_decoder_trains_the_encoder():
    flags = ("--dyn_scale", "0", "--rep_scale", "0", "--reward_scale", "0", "--cont_scale", "0")
    model = agents.agent(*flags, base=("dmc_vision", "dreamerv3")).world_model
    total, _, _ = model.loss(models.preprocess(agents.batch()), None)
    weights = {k: v for k, v in model.named_parameters() if k.startswith(("encoder", "decoder", "dynamics.post"))}
    grads = torch.autograd.grad(total, list(weights.values()))
    assert all(grad.abs().max() > 0 for grad in grads)


def test_reconstruction_improves():
    flags = ("--model_lr", "4e-3", "--size", "16", "16", "--patch_size", "4")
    shapes = {"image": (16, 16, 3)}
    model = agents.agent(*flags, shapes=shapes, base=("dmc_vision", "dreamerv3")).world_model
    batch = agents.batch(shapes)
    batch["image"] = (torch.arange(24).reshape(3, 8, 1, 1, 1) * 10).expand(3, 8, 16, 16, 3).to(torch.uint8)
    found = [model.update(batch)[2]["decoder_loss"].item() for _ in range(60)]
    assert found[-1] < 0.5 * found[0]


# The probe


@pytest.mark.parametrize("flags, shapes", [((), agents.IMAGE), (("--expl_behavior", "plan2explore"), agents.VECTORS)])
def test_a_probe_changes_nothing_else(flags, shapes):
    base = ("dmc_vision",) if "image" in shapes else ("dmc_proprio",)
    found = {}
    for probe in ("False", "True"):
        agent = agents.agent("--probe_decoder", probe, *flags, shapes=shapes, base=base)
        metrics = [agent.update(agents.batch(shapes, seed=i)) for i in range(3)]
        found[probe] = agent, metrics, torch.rand(5)
    (plain, plain_metrics, plain_draw), (probed, probed_metrics, probed_draw) = found.values()
    assert torch.equal(plain_draw, probed_draw)
    parameters = dict(probed.named_parameters())
    for name, value in plain.named_parameters():
        assert torch.equal(value, parameters[name]), name
    extra = {k for k in parameters if "decoder" in k}
    assert parameters.keys() - extra == dict(plain.named_parameters()).keys() and extra
    for ours, theirs in zip(plain_metrics, probed_metrics, strict=True):
        assert theirs.keys() - ours.keys() == {"probe_loss", "probe_grad_norm"}
        assert all(torch.equal(value, theirs[k]) for k, value in ours.items())


def test_a_probe_learns_and_is_part_of_the_checkpoint(tmp_path):
    agent = agents.agent("--probe_decoder", "True")
    batch = agents.batch()
    start = {k: v.detach().clone() for k, v in agent.world_model.decoder.named_parameters()}
    agent.update(batch)
    assert all(not torch.equal(v, start[k]) for k, v in agent.world_model.decoder.named_parameters())
    checkpoint.save_checkpoint(tmp_path / "latest.pt", agent.state())
    other = agents.agent("--probe_decoder", "True", seed=1)
    other.load(checkpoint.load_checkpoint(tmp_path / "latest.pt"))
    for one in (agent, other):
        torch.manual_seed(0)
        one.update(batch)
    ours, theirs = agent.state_dict(), other.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.mark.parametrize("base, rows", [(("dmc_vision",), 6), (("dmc_vision", "dreamerv3"), 3)])
def test_video_of_truth_reconstruction_and_prediction(base, rows):
    flags = ("--probe_decoder", "True") if "dreamerv3" not in base else ()
    model = agents.agent(*flags, base=base).world_model
    batch = agents.batch()
    torch.manual_seed(0)
    frames = video_pred(model, batch)
    assert frames.shape == (8, rows * 64, 3 * 64, 3) and frames.dtype == torch.uint8
    # (rows, T, B, H, W, 3)
    cells = frames.unflatten(1, (rows, 64)).unflatten(3, (3, 64)).permute(1, 0, 3, 2, 4, 5)
    assert torch.equal(cells[0], batch["image"].transpose(0, 1))
    for truth in range(0, rows, 3):
        reconstruction, prediction = cells[truth + 1], cells[truth + 2]
        assert torch.equal(reconstruction[:5], prediction[:5]) and not torch.equal(reconstruction, prediction)
    if rows == 6:
        hidden = (cells[3] != cells[0]).any(-1)
        assert hidden.float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert ((cells[3][hidden] == 127) | (cells[3][hidden] == 128)).all()
    # images after the context change only the reconstruction, actions the prediction too
    later = {**batch, "image": torch.cat([batch["image"][:, :5], 255 - batch["image"][:, 5:]], 1)}
    moved = {**batch, "action": torch.cat([batch["action"][:, :5], -batch["action"][:, 5:]], 1)}
    for changed, predicts in ((later, False), (moved, True)):
        torch.manual_seed(0)
        other = video_pred(model, changed).unflatten(1, (rows, 64))
        assert not torch.equal(other[:, 1], frames.unflatten(1, (rows, 64))[:, 1])
        assert torch.equal(other[:, 2], frames.unflatten(1, (rows, 64))[:, 2]) != predicts


def test_a_probe_in_a_run_logs_videos_and_changes_no_number(tmp_path):
    from io import BytesIO

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*PIXELS, "--parallel", "False", "--device", "cpu", "--time_limit", "20", "--pretrain", "1"]
    flags += ["--prefill", "10", "--steps", "60", "--eval_every", "60", "--eval_episode_num", "1"]
    assert dreamer.main([*flags, "--logdir", str(tmp_path / "plain")]) == 0
    assert dreamer.main([*flags, "--logdir", str(tmp_path / "probed"), "--probe_decoder", "True"]) == 0
    plain, probed = entries(tmp_path / "plain"), entries(tmp_path / "probed")
    assert [{k: v for k, v in line.items() if not k.startswith("probe_")} for line in probed] == plain
    assert any("probe_loss" in line for line in probed)
    events = EventAccumulator(str(tmp_path / "probed"), size_guidance={"images": 0}).Reload()
    assert [video.step for video in events.Images("video/video_pred")] == [60]
    gif = Image.open(BytesIO(events.Images("video/video_pred")[0].encoded_image_string))
    assert gif.n_frames == 8 and gif.size == (4 * 16, 6 * 16)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--video_pred_log", "True"], ["--video_pred_log", "--probe_decoder"]),
        (["--probe_decoder", "True", "--configs", "dreamerv3"], ["--probe_decoder", "--grad_heads"]),
        (["--probe_decoder", "True", "--batch_length", "4"], ["--batch_length"]),
    ],
)
def test_impossible_settings_of_a_decoder(flags, words):
    with pytest.raises(ValueError) as error:
        check_config(load_config(["--configs", "dmc_vision", *flags]))
    assert all(word in str(error.value) for word in words)


def test_a_fixed_projection_leaves_the_loss_to_the_latents():
    found = {}
    for name in ("trained", "fixed"):
        model = agents.agent("--mbr_projection", name, "--simsr_scale", "0").world_model
        torch.manual_seed(0)
        total, states, metrics = model.loss(models.preprocess(agents.batch()), None)
        weights = [model.dynamics.projection.weight, states["post"]["logit"]]
        found[name] = metrics["mbr_loss"], *torch.autograd.grad(total, weights, allow_unused=True)
    torch.testing.assert_close(found["fixed"][0], found["trained"][0])
    torch.testing.assert_close(found["fixed"][2], found["trained"][2])
    assert found["trained"][1].abs().max() > 0 and found["fixed"][1] is None


def test_barlow_twins_of_the_latents_do_not_read_the_shared_recurrent_state():
    model = agents.agent(base=("dmc_vision", "mbr_barlow")).world_model
    states = [torch.randn(3, 8, model.dynamics.feat_size) for _ in range(2)]
    other = [state.clone() for state in states]
    for state in other:
        state[..., model.dynamics.stoch_size :] = torch.randn(3, 8, model.dynamics.deter)
    torch.testing.assert_close(model.latent_reconstruction(*other), model.latent_reconstruction(*states))
    # equal latents have the smallest loss; a projection to one point has that of no correlation at all
    same = model.latent_reconstruction(states[0], states[0])
    assert same < model.latent_reconstruction(*states)
    with torch.no_grad():
        for dynamics in (model.dynamics, model.target_dynamics):
            dynamics.projection.weight.zero_()
    assert model.latent_reconstruction(*states).item() == pytest.approx(model.config.dyn_cont_stoch_size)


def other_value(name: str, value):
    """A legal value of a setting that differs from this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return ["blur"]
    legal = LEGAL[name]
    candidates = legal.choices or (value * 2, value / 2, value + 1)
    return next(x for x in candidates if x != value and type(x) is type(value) and legal.allows(x))


@pytest.mark.parametrize(
    "base, changes",
    [
        (("dmc_vision",), {}),
        *((("dmc_vision", name), {}) for name in ("no_hybrid", "no_mbr", "no_simsr", "no_mask", "continuous")),
        *((("dmc_vision", name), {}) for name in ("dreamerv3", "repo", "r2dreamer", "infonce", "dreamerpro")),
        (("dmc_proprio",), {}),
        (("dmc_vision",), {"slow_value_target": False}),
        (("dmc_vision",), {"actor_dist": "tanh_normal"}),
        (("dmc_vision",), {"actor_dist": "onehot"}),
        (("dmc_vision",), {"expl_behavior": "random"}),
    ],
)  # fmt: skip
def test_settings_that_are_said_to_have_no_effect_have_none(base, changes):
    """Two updates leave the same agent, whatever values these settings have."""
    shapes = agents.VECTORS if base == ("dmc_proprio",) else agents.IMAGE
    config = agents.config(base=base).replace(**changes)
    flat, patterns = config.flat(), [pattern for _, pattern in unread_settings(config)]
    names = {name for pattern in patterns for name in fnmatch.filter(flat, pattern)}
    assert len(names) > 20
    others = {name: other_value(name, flat[name]) for name in sorted(names)}
    states = []
    for settings in (changes, {**changes, **others}):
        agent = agents.agent(base=base, shapes=shapes, **settings)
        for seed in range(2):
            agent.update(agents.batch(shapes, seed=seed, discrete=flat["actor_dist"] == "onehot"))
        states.append(agent.state_dict())
    assert states[0].keys() == states[1].keys()
    assert [name for name, value in states[0].items() if not torch.equal(value, states[1][name])] == []


def test_flags_without_effect_are_named():
    line = "--configs dmc_vision no_hybrid --mbr_scale 3 --encoder_tau=0.1 --aug_prob 0.5 --model_lr 1e-3".split()
    assert unread_flags(load_config(line), line) == (
        "--aug_prob has no effect: --augmentation is empty; --encoder_tau has no effect: --hybrid is False; "
        "--mbr_scale has no effect: --hybrid is False"
    )
    line = "--configs dmc_vision --mbr_scale 3 --encoder_tau=0.1 --augmentation blur --aug_prob 0.5".split()
    assert unread_flags(load_config(line), line) == ""
