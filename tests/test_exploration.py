"""Exploration: noise on actions, the two ways to act, Plan2Explore."""

import agents
import pytest
import torch

import exploration

OBSERVED = (*agents.VECTORS, "is_first")
PROPRIO = {"shapes": agents.VECTORS, "base": ("dmc_proprio",)}


def test_noise_on_actions():
    torch.manual_seed(0)
    action = torch.tensor([0.0, 0.5, -1.0]).expand(20_000, 3)
    assert exploration.add_noise(action, 0.0, False) is action
    noisy = exploration.add_noise(action, 0.1, False)
    torch.testing.assert_close(noisy[:, :2].mean(0), action[0, :2], rtol=0, atol=0.005)
    torch.testing.assert_close(noisy[:, :2].std(0), torch.tensor([0.1, 0.1]), rtol=0.05, atol=0)
    assert noisy.min() == -1 and (noisy[:, 2] == -1).float().mean().item() == pytest.approx(0.5, abs=0.02)
    choice = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(20_000, 4)
    shares = exploration.add_noise(choice, 0.2, True).mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.85, 0.05, 0.05]), rtol=0, atol=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_each_way_to_act_has_its_own_noise(training):
    obs = {k: v[:1, 0].expand(2000, *v.shape[2:]) for k, v in agents.batch(agents.VECTORS).items() if k in OBSERVED}
    for flag in ("--expl_amount", "--eval_noise"):
        agent = agents.agent(flag, "0.2", "--eval_state_mean", "True", **PROPRIO)
        action, state = agent.act(obs, None, training)
        spread = action.std(0)
        if training:  # samples of the policy, which go beyond 1 without noise that keeps them within
            assert (spread > 0.5).all() and (action.abs().max() <= 1) == (flag == "--expl_amount")
        else:  # its mean in the most probable state
            assert (state["stoch"] == state["stoch"][0]).all()
            torch.testing.assert_close(spread, torch.full((3,), 0.2 * (flag == "--eval_noise")), rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("target, offset, conditioned", [("stoch", 1, True), ("embed", 2, True), ("feat", 1, False)])
def test_the_ensemble_predicts_what_follows(target, offset, conditioned):
    flags = ("--disag_target", target, "--disag_offset", str(offset), "--disag_action_cond", str(conditioned))
    agent = agents.agent("--expl_behavior", "plan2explore", *flags, **PROPRIO)
    model, batch = agent.world_model, agents.batch(agents.VECTORS)
    start, embed, _ = model.update(batch)
    stoch, deter = start["stoch"].reshape(3, 8, -1), start["deter"].reshape(3, 8, -1)
    feat = torch.cat([stoch, deter], -1)
    wanted, expected = {"stoch": stoch, "embed": embed, "feat": feat}[target], 0.0
    for member in agent.explorer.ensemble:
        for b in range(3):
            for t in range(8 - offset):
                inputs = [feat[b, t], batch["action"][b, t + 1]] if conditioned else [feat[b, t]]
                error = member(torch.cat(inputs)) - wanted[b, t + offset]
                expected += 0.5 * (error**2).sum().item() / (3 * (8 - offset))
    metrics = agent.explorer.update(model, start, embed, batch)
    assert metrics["disag_loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("log", [True, False])
def test_disagreement_is_rewarded(log):
    flags = ("--disag_log", str(log), "--expl_intr_scale", "0.5", "--expl_extr_scale", "2")
    agent = agents.agent("--expl_behavior", "plan2explore", *flags, **PROPRIO)
    reward = agent.world_model.heads["reward"]
    torch.nn.init.normal_(reward.out.weight)
    feat, action = torch.randn(2, 5, agent.world_model.dynamics.feat_size), torch.zeros(2, 5, 3)
    values = [member(feat) for member in agent.explorer.ensemble]
    middle = sum(values) / 3
    spread = (sum((value - middle) ** 2 for value in values) / 2).sqrt().mean(-1, keepdim=True)
    expected = 0.5 * (spread.log() if log else spread) + 2 * reward(feat).mode()
    torch.testing.assert_close(agent.explorer.intrinsic_reward(agent.world_model, feat, action), expected)
