"""Number for number against the public implementation; the numbers and what they mean: docs/algorithm.md, section 8.

PARITY_DIR names another folder of such numbers, of any sizes.
"""

import math
import re

import numpy as np
import pytest
import reference
import torch
from reference import TOLERANCE, close, load

import distributions as dists
import models
import tools
from run.public import import_checkpoint, public_name


@pytest.fixture(autouse=True)
def _most_probable(monkeypatch):
    """Draws as the reference made them: the most probable class, the mean action."""
    monkeypatch.setattr(dists, "draw_one_hot", lambda probs: dists.one_hot(probs.argmax(-1), probs.shape[-1]))
    monkeypatch.setattr(dists, "draw_normal", torch.zeros_like)


@pytest.fixture(scope="module")
def world():
    return load("world_model")


def world_model_pass(agent, arrays):
    data = models.preprocess(reference.batch())
    return agent.world_model.loss(data, torch.from_numpy(arrays["mask"]))


def test_parity_checkpoint_is_read_whole():
    # reference.agent asserts that no tensor of the file and no parameter of ours is left over
    agent = reference.agent()
    theirs = torch.load(reference.FOLDER / "reference_checkpoint.pt", weights_only=True)
    ours = agent.state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[public_name(name)], value), name


def test_parity_checkpoint_of_a_compiled_run(tmp_path):
    theirs = torch.load(reference.FOLDER / "reference_checkpoint.pt", weights_only=True)
    compiled = {(k.replace("_wm.", "_wm._orig_mod.", 1) if k.startswith("_wm.") else k): v for k, v in theirs.items()}
    torch.save({"agent_state_dict": compiled}, tmp_path / "latest.pt")
    agent = reference.agent()
    for param in agent.parameters():
        param.data.zero_()
    assert import_checkpoint(agent, tmp_path / "latest.pt") == []
    expected = reference.agent().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in agent.state_dict().items())


def test_parity_checkpoint_says_what_did_not_fit(tmp_path):
    theirs = torch.load(reference.FOLDER / "reference_checkpoint.pt", weights_only=True)
    theirs["_task_behavior.actor._dist_layer.bias"] = torch.zeros(99)
    theirs["_wm.something_else.weight"] = torch.zeros(3)
    del theirs["_wm.heads.cont.mean_layer.bias"]
    torch.save(theirs, tmp_path / "latest.pt")
    report = "\n".join(import_checkpoint(reference.agent(), tmp_path / "latest.pt"))
    actions = reference.sizes()["A"]
    assert f"_task_behavior.actor._dist_layer.bias (99,): behavior.actor.out.bias has shape ({2 * actions},)" in report
    assert "_wm.something_else.weight (3,): no such tensor here" in report
    assert "world_model.heads.cont.out.bias (1,): not in the checkpoint" in report
    assert len(report.splitlines()) == 3


def test_parity_embeddings(world):
    agent = reference.agent()
    data = models.preprocess(reference.batch())
    wm = agent.world_model
    close(wm.encoder(wm.apply_mask(data, torch.from_numpy(world["mask"]))), world["masked_embed"], "masked_embed")
    close(wm.target_encoder(data), world["target_embed"], "target_embed")


@pytest.mark.parametrize("branch", ["post", "prior", "target_post", "target_prior"])
def test_parity_states(world, branch):
    _, states, _ = world_model_pass(reference.agent(), world)
    for part in ("stoch", "deter", "logit"):
        close(states[branch][part], world[f"{branch}_{part}"], f"{branch}_{part}")


def test_parity_losses(world):
    total, _, metrics = world_model_pass(reference.agent(), world)
    close(total, world["model_loss"], "model_loss")
    names = [k for k in world if k.endswith("_loss") or k == "kl"]
    assert set(names) == {
        "reward_loss", "cont_loss", "mbr_loss", "simsr_loss", "dyn_loss", "rep_loss", "model_loss", "kl",
    }  # fmt: skip
    for name in names:
        close(metrics[name], world[name], name)


def test_parity_no_tensor_is_left_untested(world):
    states = {f"{b}_{p}" for b in ("post", "prior", "target_post", "target_prior") for p in ("stoch", "deter", "logit")}
    tested = {"mask", "masked_embed", "target_embed", "kl", "model_grad_norm", *states}
    assert {k for k in world if not k.endswith("_loss")} == tested


def parameters_by_public_name(agent, names, prefix):
    ours = dict(agent.named_parameters())
    return {name: ours[public_name(prefix + name)] for name in names}


def test_parity_world_model_gradients(world):
    agent = reference.agent()
    total, _, _ = world_model_pass(agent, world)
    theirs = load("world_model_grads")
    ours = parameters_by_public_name(agent, theirs, "_wm.")
    assert len(ours) == len(agent.world_model.opt.params)
    grads = torch.autograd.grad(total, list(ours.values()))
    for name, grad in zip(ours, grads, strict=True):
        close(grad, theirs[name], f"gradient of {name}")


def named_tensors(agent, names, prefix):
    state = agent.state_dict()
    return {name: state[public_name(prefix + name)].clone() for name in names}


def changes_match(before, after, theirs, grads, lr, eps, clip):
    """Compares the change of each parameter, as far as the tolerance of its gradient determines it.

    Adam's first step is lr·g / (|g| + eps): of a gradient near 0 within its tolerance, even the sign is open.

    Args:
        grads: of each parameter that an optimizer moves, before clipping.
        lr: of each of them; that of an EMA copy is multiplied by its rate.
    """
    norm = math.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in {id(g): g for g in grads.values()}.values()))
    for name, reference_after in theirs.items():
        change = (after[name].double() - before[name].double()).numpy()
        expected = reference_after.astype(np.float64) - before[name].double().numpy()
        # a change is about the learning rate, of which float32 values near 1 keep about three digits: another CPU's
        # sums may round to a neighbor both before and after, two units in the last place
        bound = max(TOLERANCE * np.abs(expected).max(), 2 * np.spacing(np.abs(reference_after).max()))
        if name in grads:
            grad = grads[name].astype(np.float64) * min(1, clip / norm)
            off = TOLERANCE * np.abs(grad).max()
            low, found, high = (lr[name] * g / (np.abs(g) + eps) for g in (grad - off, grad, grad + off))
            bound = bound + np.maximum(high - found, found - low)
            assert np.median(bound) < 0.01 * np.abs(expected).max(), f"{name}: the bound says nothing"
        error = np.abs(change - expected)
        assert (error <= bound).all(), f"change of {name}: off by {(error - bound).max():.3g} more than the bound"
        assert np.abs(expected).max() > 0, name


def test_parity_world_model_after_update(world, monkeypatch):
    agent = reference.agent()
    theirs = load("world_model_after_update")
    before = named_tensors(agent, theirs, "_wm.")
    monkeypatch.setattr(agent.world_model, "draw_mask", lambda data: torch.from_numpy(world["mask"]))
    start, _, metrics = agent.world_model.update(reference.batch())
    close(metrics["model_grad_norm"], world["model_grad_norm"], "model_grad_norm")
    after = named_tensors(agent, theirs, "_wm.")
    grads = load("world_model_grads")
    # an EMA copy moves by a part of the gap to its online twin, on entries that the twin's gradient decides too
    online = {k: re.sub(r"^(MBR\.target_encoder|MBR\.encoder)\.", "encoder.", k) for k in theirs}
    online = {k: re.sub(r"^target_dynamics\.", "dynamics.", v) for k, v in online.items()}
    c = agent.config
    rates = {"target_dynamics.": c.dynamics_tau, "MBR.target_encoder.": c.encoder_tau}
    lr = {k: c.model_lr * next((rate for prefix, rate in rates.items() if k.startswith(prefix)), 1) for k in theirs}
    changes_match(before, after, theirs, {k: grads[v] for k, v in online.items()}, lr, c.opt_eps, c.grad_clip)
    for part in ("stoch", "deter", "logit"):
        close(start[part], world[f"target_post_{part}"].reshape(start[part].shape), f"start {part}")


def imagination_start():
    arrays = load("actor_critic")
    return {k: torch.from_numpy(arrays[f"start_{k}"]).flatten(0, 1) for k in ("stoch", "deter", "logit")}


def test_parity_actor_critic():
    agent = reference.agent()
    theirs = load("actor_critic")
    behavior = agent.behavior
    before_slow = {k: v.clone() for k, v in behavior.slow_value.named_parameters()}
    world = load("world_model")
    for part in ("stoch", "deter", "logit"):
        assert np.array_equal(theirs[f"start_{part}"], world[f"target_post_{part}"])
    tools.ema(behavior.slow_value, behavior.value, agent.config.slow_target_fraction)
    assert any(not torch.equal(v, before_slow[k]) for k, v in behavior.slow_value.named_parameters())
    actor_loss, value_loss, trajectory, metrics = behavior.loss(agent.world_model, imagination_start())
    close(trajectory["feat"], theirs["imag_feat"], "imag_feat")
    close(trajectory["action"], theirs["imag_action"], "imag_action")
    for name in ("weights", "target", "base"):
        close(trajectory[name], theirs[name], name)
    close(actor_loss, theirs["actor_loss"], "actor_loss")
    close(value_loss, theirs["value_loss"], "value_loss")
    close(behavior.return_ema, theirs["return_ema"], "return_ema")
    close(metrics["actor_entropy"], theirs["actor_entropy"], "actor_entropy")
    tested = {"start_stoch", "start_deter", "start_logit", "imag_feat", "imag_action", "weights", "target", "base"}
    assert set(theirs) == tested | {"actor_loss", "value_loss", "return_ema", "actor_entropy"}

    grads = load("actor_critic_grads")
    ours = parameters_by_public_name(agent, grads, "_task_behavior.")
    assert len(ours) == len(behavior.actor_opt.params) + len(behavior.value_opt.params)
    for prefix, loss in (("actor.", actor_loss), ("value.", value_loss)):
        names = [k for k in ours if k.startswith(prefix)]
        found = torch.autograd.grad(loss, [ours[k] for k in names], retain_graph=True)
        for name, grad in zip(names, found, strict=True):
            close(grad, grads[name], f"gradient of {name}")


def test_parity_actor_critic_after_update():
    agent = reference.agent()
    theirs = load("actor_critic_after_update")
    before = named_tensors(agent, theirs, "_task_behavior.")
    agent.behavior.update(agent.world_model, imagination_start())
    after = named_tensors(agent, theirs, "_task_behavior.")
    c, grads = agent.config, load("actor_critic_grads")
    for part, lr, clip in (("actor", c.actor_lr, c.actor_grad_clip), ("value", c.value_lr, c.value_grad_clip)):
        own = {name: grad for name, grad in grads.items() if name.startswith(part)}
        moved = {name: value for name, value in theirs.items() if name.startswith(part)}
        changes_match(before, after, moved, own, dict.fromkeys(own, lr), c.ac_opt_eps, clip)
    changes_match(before, after, {k: v for k, v in theirs.items() if k not in grads}, {}, {}, 0, 0)
    close(agent.behavior.return_ema, load("actor_critic")["return_ema"], "return_ema")


def test_parity_policy():
    agent = reference.agent()
    theirs = load("policy")
    state = None
    for t in range(theirs["image"].shape[0]):
        obs = {k: torch.from_numpy(theirs[k][t]) for k in ("image", "is_first")}
        action, state = agent.act(obs, state, training=False)
        feat = agent.world_model.dynamics.feat(state)
        close(action, theirs["action"][t], f"action {t}")
        close(feat, theirs["feat"][t], f"feat {t}")
        close(agent.behavior.value(feat).mode(), theirs["value"][t], f"value {t}")
        close(agent.world_model.heads["reward"](feat).mode(), theirs["reward"][t], f"reward {t}")
        close(agent.world_model.heads["cont"](feat).mean, theirs["cont"][t], f"cont {t}")
    assert set(theirs) == {"image", "is_first", "action", "feat", "value", "reward", "cont"}


def test_parity_distributions():
    theirs = {k: torch.from_numpy(np.asarray(v)) for k, v in load("distributions").items()}
    arrays = load("distributions")
    twohot = dists.TwoHotSymlog(theirs["twohot_logits"])
    close(twohot.mode(), arrays["twohot_mode"], "twohot_mode")
    close(twohot.log_prob(theirs["twohot_x"]), arrays["twohot_log_prob"], "twohot_log_prob")
    unimix = float(theirs["unimix"])
    one, other = dists.OneHot(theirs["onehot_logits"], unimix), dists.OneHot(theirs["onehot_other_logits"], unimix)
    close(one.entropy(), arrays["onehot_entropy"], "onehot_entropy")
    close(one.kl(other), arrays["onehot_kl"], "onehot_kl")
    assert set(arrays) == {
        "twohot_logits", "twohot_x", "twohot_log_prob", "twohot_mode", "onehot_logits", "onehot_other_logits",
        "unimix", "onehot_entropy", "onehot_kl",
    }  # fmt: skip


def test_parity_lambda_return():
    theirs = load("lambda_return")
    tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in theirs.items()}
    ours = models.lambda_return(
        tensors["reward"], tensors["value"], tensors["discount"], tensors["bootstrap"], float(theirs["lambda_"])
    )
    close(ours, theirs["expected"], "lambda_return")
    assert set(theirs) == {"reward", "value", "discount", "bootstrap", "lambda_", "expected"}
