#!/usr/bin/env bash
# skrl learns from a step that is none: gymnasium's vector envs use the step after an episode's end to reset (the action
# is ignored, the reward is 0), and skrl stores it as a transition from the last state of the episode to the first state
# of the next one, not terminated. Episodes are one step longer in its logs, all but the first.
#
# 2026-11-30, skrl 2.1.1, gymnasium 1.4.0, torch 2.13.0 (CPU), tensorboard 2.21.0, numpy 2.4.6. DQN with epsilon 1,
# 500 steps of `gymnasium.make_vec("CartPole-v1", num_envs=4)`, where each step's reward is 1. In its memory. Seen:
#     make_vec: 189 ends, 189 transitions with reward 0 of 2000
#         terminated: 0 of them
#         pole leans by 0.24 before and by 0.05 at most after it
#     make_vec, SAME_STEP: 210 ends, 0 transitions with reward 0 of 2000
# (The number of ends changes a little from run to run.)
#
# Why it matters: after a time limit the value of the last state is bootstrapped, and what this value is trained on is
# that of a fresh start. Where episodes are short, as many of the samples are of this kind as 1 / (length + 1); the same
# agent with one env has none of them.
# Expected before: the step is left out, or cut from the target, as gymnasium's notes on autoreset ask of a learner.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile skrl==2.1.1 gymnasium==1.4.0 torch==2.13.0 tensorboard==2.21.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import logging
import sys

import gymnasium as gym
import torch
from skrl.agents.torch.dqn import DQN, DQN_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg

logging.getLogger("skrl").setLevel(logging.ERROR)
STEPS = 500


class Values(DeterministicMixin, Model):
    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = torch.nn.Linear(4, 2)

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


def memory(**mode):
    torch.manual_seed(0)
    env = wrap_env(gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync", vector_kwargs=mode), wrapper="gymnasium")
    memory = RandomMemory(memory_size=STEPS, num_envs=4, device="cpu")
    experiment = {"directory": ".", "experiment_name": "run", "write_interval": 0, "checkpoint_interval": 0}
    agent = DQN(
        models={"q_network": Values(env), "target_q_network": Values(env)},
        memory=memory,
        cfg=DQN_CFG(exploration_scheduler=lambda *_: 1.0, learning_starts=STEPS, experiment=experiment),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
    )
    cfg = SequentialTrainerCfg(timesteps=STEPS, headless=True, disable_progressbar=True)
    SequentialTrainer(cfg=cfg, env=env, agents=agent).train()
    return {name: memory.get_tensor_by_name(name) for name in ("observations", "next_observations", "rewards", "terminated")}


good = True
for name, mode in (("make_vec", {}), ("make_vec, SAME_STEP", {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})):
    data = memory(**mode)
    ends = int(data["terminated"].sum())
    fake = (data["rewards"] == 0).squeeze(-1)
    starts, fallen = data["next_observations"][fake].abs(), data["observations"][fake][:, 2].abs()
    print(f"{name}: {ends} ends, {int(fake.sum())} transitions with reward 0 of {fake.numel()}")
    if mode:
        good &= not fake.any()
    else:
        print(f"    terminated: {int(data['terminated'][fake].sum())} of them")
        print(f"    pole leans by {fallen.mean():.2f} before and by {starts[:, 2].max():.2f} at most after it")
        good &= ends - 4 <= fake.sum() <= ends and not data["terminated"][fake].any() and bool((starts <= 0.05).all())
sys.exit(0 if good else 1)
PYTHON
