#!/usr/bin/env bash
# C51 and Rainbow of tianshou bootstrap an n-step return from the wrong state. Rewards and discount are those of n
# steps, but the distribution of values, and the greedy action, are taken at s_{t+1} instead of s_{t+n}.
#
# 2026-12-01, tianshou 2.0.1, gymnasium 1.4.0, torch 2.13.0 (CPU), numpy 2.4.6. A chain of 12 states with one action,
# a reward of 1 at its end, discount 0.9, a table as network, 1,000 updates. The learned values of states 0, 3, 6, 9
# and 11. Seen:
#     right: 0.31 0.43 0.59 0.81 1.00
#     DQN, 1 step: 0.31 0.43 0.59 0.81 1.00
#     DQN, 3 steps: 0.31 0.43 0.59 0.81 1.00
#     C51, 1 step: 0.31 0.43 0.59 0.81 1.00
#     C51, 3 steps: 0.05 0.12 0.31 0.81 1.00
#     RainbowDQN, 3 steps: 0.05 0.12 0.31 0.81 1.00
#     wrong by formula, 3 steps: 0.05 0.12 0.31 0.81 1.00
# (The formula: each step back costs discount^3 instead of discount, except for the last three states. The
# documentation of `n_step_return_horizon` and the formula of `compute_nstep_return`, with Q at s_{t+n}, are the same
# for all. The support is moved by the n-step return as it should; the probabilities come from `batch.obs_next`, one
# step on.)
#
# Why it matters: three steps are part of Rainbow, a usual baseline for Atari 100k, and the agent learns and looks
# healthy. But its discount is the n-th power of the one that is set: 0.99 acts like 0.97, so rewards far away are
# lost. A study of n finds that larger n hurts, and a comparison of DQN with C51 at n = 3 compares two discounts.
# Expected before: C51 and DQN agree on the mean in a deterministic chain, for any n.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 tianshou==2.0.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import C51, DQN, RainbowDQN
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.c51 import C51Policy
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, ReplayBuffer

torch.set_num_threads(1)
GAMMA, LENGTH, ATOMS = 0.9, 12, 51
SPACE = gym.spaces.Discrete(1)
SHOWN = [0, 3, 6, 9, 11]


class Table(torch.nn.Module):
    """A value of each state, or a distribution over the atoms."""

    def __init__(self, atoms):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(LENGTH + 1, 1, atoms))

    def forward(self, obs, state=None, info=None):
        out = self.table[torch.as_tensor(obs).long().flatten()]
        return (out.squeeze(-1) if out.shape[-1] == 1 else out.softmax(-1)), state


def learn(kind, steps):
    """Values of all states after 1,000 updates through the public interface."""
    if kind is DQN:
        policy = DiscreteQLearningPolicy(model=Table(1), action_space=SPACE)
    else:
        policy = C51Policy(model=Table(ATOMS), action_space=SPACE, num_atoms=ATOMS, v_min=0, v_max=1)
    optim = AdamOptimizerFactory(lr=0.03)
    agent = kind(policy=policy, optim=optim, gamma=GAMMA, n_step_return_horizon=steps)
    with policy_within_training_step(agent.policy):
        for _ in range(1000):
            agent.update(buffer, 32)
    with torch.no_grad():
        out, _ = policy.model(np.arange(LENGTH)[:, None])
    return (out.flatten() if kind is DQN else (out * policy.support).sum(-1).flatten()).numpy()


print(", ".join(f"{name} {version(name)}" for name in ("tianshou", "gymnasium", "torch", "numpy")))
buffer = ReplayBuffer(LENGTH)
for i in range(LENGTH):
    row = {"obs": np.array([i]), "obs_next": np.array([i + 1]), "act": 0, "rew": float(i == LENGTH - 1)}
    buffer.add(Batch(**row, terminated=i == LENGTH - 1, truncated=False))

left = np.arange(LENGTH - 1, -1, -1)  # steps to the reward
right = GAMMA**left
wrong = GAMMA ** np.where(left < 3, left, 2 + 3 * (left - 2))
seen = {"right": right}
for kind, steps in ((DQN, 1), (DQN, 3), (C51, 1), (C51, 3), (RainbowDQN, 3)):
    seen[f"{kind.__name__}, {steps} step{'s' * (steps > 1)}"] = learn(kind, steps)
seen["wrong by formula, 3 steps"] = wrong
for name, values in seen.items():
    print(f"{name}:", *(f"{values[i]:.2f}" for i in SHOWN))
good = all(np.abs(seen[name] - right).max() < 0.05 for name in ("DQN, 1 step", "DQN, 3 steps", "C51, 1 step"))
good &= all(np.abs(seen[name] - wrong).max() < 0.05 for name in ("C51, 3 steps", "RainbowDQN, 3 steps"))
sys.exit(0 if good and right[0] - wrong[0] > 0.2 else 1)
PYTHON
