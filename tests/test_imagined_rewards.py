"""figures/imagined_rewards.py: predicted and real rewards of the same steps; the table of real runs."""

import sys

import agents
import numpy as np
import pytest
import torch
from test_dreamer import VECTORS

import dreamer
from figures import imagined_rewards

H, N, LENGTH = 4, 3, 23


def deterministic_agent() -> dreamer.Dreamer:
    """Its latents have one class each, so that the same actions always lead to the same states."""
    agent = agents.agent("--imag_horizon", str(H), dyn_discrete=1)
    for parameter in agent.world_model.heads["reward"].parameters():  # its output layer starts at 0
        torch.nn.init.normal_(parameter)
    return agent


@torch.no_grad()
def world(agent: dreamer.Dreamer) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Episodes in a world that is as the agent predicts it, with random actions."""
    dynamics, head = agent.world_model.dynamics, agent.world_model.heads["reward"]
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(LENGTH, N, 3, generator=generator) * 2 - 1
    state = {k: v.expand(N, *v.shape[1:]) for k, v in dynamics.initial(agent.device).items()}
    states, rewards = [], []
    for action in actions:
        states.append({k: state[k] for k in dynamics.carried})
        state = dynamics.img_step(state, action)
        rewards.append(head(dynamics.feat(state)).mode()[:, 0])
    return {k: torch.stack([one[k] for one in states]) for k in states[0]}, actions, torch.stack(rewards)


def test_a_perfect_model_predicts_the_rewards_of_real_actions_and_its_own_of_others():
    agent = deterministic_agent()
    states, actions, rewards = world(agent)
    assert rewards.std() > 0.01
    torch.manual_seed(1)
    imagined, replayed = imagined_rewards.gaps(agent, states, actions, rewards)
    assert imagined.shape == replayed.shape == (H - 1, N)
    np.testing.assert_allclose(replayed, 0, atol=1e-4)

    starts = range(0, LENGTH - H + 2, imagined_rewards.STRIDE)
    torch.manual_seed(1)  # the same random actions
    start = {k: torch.cat([v[t] for t in starts]) for k, v in states.items()}
    feats, _, _ = agent.world_model.dynamics.imagine(agent.behavior.actor, start, H)
    wanted = agent.world_model.heads["reward"](feats).mode()[..., 0].detach()
    for k in range(1, H):
        for episode in range(N):
            gap = [wanted[k, i * N + episode] - rewards[t + k - 1, episode] for i, t in enumerate(starts)]
            assert imagined[k - 1, episode] == pytest.approx(np.mean(gap), abs=1e-4)
    assert abs(imagined).max() > 0.01


def test_rewards_of_a_worse_world_and_of_an_episode_that_ends():
    agent = deterministic_agent()
    states, actions, rewards = world(agent)
    ended = rewards - 0.5
    ended[12:, 1] = torch.nan
    _, replayed = imagined_rewards.gaps(agent, states, actions, ended)
    np.testing.assert_allclose(replayed, 0.5, atol=1e-4)


@pytest.mark.slow
def test_table_of_runs(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    flags = ["--parallel", "False", "--device", "cpu", "--steps", "240", "--imag_horizon", "15", "--logdir", str(run)]
    assert dreamer.main([*VECTORS, *flags]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["imagined_rewards.py", str(run), str(run), "--episodes", "2"])
    imagined_rewards.main()
    head, _, first, second = capsys.readouterr().out.strip().splitlines()[-4:]
    names = [f"{kind} actions, {k} ahead" for kind in ("imagined", "real") for k in (1, 4, 14)]
    assert head == f"| run | step | reward | {' | '.join(names)} |"
    assert first.startswith(f"| {run} | 240 | ") and first == second  # of the same seed
    monkeypatch.setattr(sys, "argv", ["imagined_rewards.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        imagined_rewards.main()
    assert capsys.readouterr().err == (
        f"imagined_rewards.py: --logdir {tmp_path} holds no run (there is no config.yaml): pass the folder of a run\n"
    )
