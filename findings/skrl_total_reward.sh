#!/usr/bin/env bash
# skrl's "Reward / Total reward (mean)" is not the mean of the episodes' returns. At each step of an interval it keeps the
# mean over the episodes that ended in the interval so far, and it logs the mean of those means: an episode counts for as
# many steps as are left in the interval after it, and short ones, which end early, count most.
#
# 2026-11-30, skrl 2.1.1, gymnasium 1.4.0, torch 2.13.0 (CPU), tensorboard 2.21.0, numpy 2.4.6. One env, a write interval
# of 1,000 steps with two whole episodes in it: one of 10 steps and return 0, one of 990 steps and return 100. Seen:
#     the short one first: 0.05 of a mean of 50
#     the long one first: 95.46 of a mean of 50
# and two parallel envs, episodes of 10 and of 100 steps with a reward of 1 a step, interval 100:
#     11 episodes with a mean return of 18.18: 10.09
# ("(max)" and "(min)" are right. "Episode / Total timesteps (mean)" goes the same way, and so does "best_agent.pt".)
#
# Why it matters: this is the learning curve of every skrl agent. Where failing ends an episode, failures weigh more than
# successes, by an amount that depends on the write interval, so that two runs with other intervals are not comparable.
# Expected before: the mean over the episodes that ended since the last point, as the name says.
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
import numpy as np
import torch
from skrl.agents.torch.dqn import DQN, DQN_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

logging.getLogger("skrl").setLevel(logging.ERROR)


class Episodes(gym.Env):
    """Episodes of the given lengths and returns, in turn."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, *episodes):
        self.episodes, self.number = episodes, -1

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.number += 1
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        length, total = self.episodes[self.number % len(self.episodes)]
        self.time += 1
        return np.zeros(1, np.float32), total / length, self.time == length, False, {}


class Values(DeterministicMixin, Model):
    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = torch.nn.Linear(1, 2)

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


def logged(name, env, interval):
    env = wrap_env(env, wrapper="gymnasium")
    experiment = {"directory": ".", "experiment_name": name, "write_interval": interval, "checkpoint_interval": 0}
    agent = DQN(
        models={"q_network": Values(env), "target_q_network": Values(env)},
        memory=RandomMemory(memory_size=interval, num_envs=env.num_envs, device="cpu"),
        cfg=DQN_CFG(random_timesteps=interval, learning_starts=interval, experiment=experiment),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
    )
    cfg = SequentialTrainerCfg(timesteps=interval, headless=True, disable_progressbar=True)
    SequentialTrainer(cfg=cfg, env=env, agents=agent).train()
    agent.writer.close()
    (point,) = EventAccumulator(name).Reload().Scalars("Reward / Total reward (mean)")
    return point.value


short, long = (10, 0.0), (990, 100.0)
first = logged("short", Episodes(short, long), 1000)
last = logged("long", Episodes(long, short), 1000)
same = gym.vector.AutoresetMode.SAME_STEP
pair = gym.vector.SyncVectorEnv([lambda n=n: Episodes((n, float(n))) for n in (10, 100)], autoreset_mode=same)
both = logged("pair", pair, 100)
print(f"the short one first: {first:.2f} of a mean of 50")
print(f"the long one first: {last:.2f} of a mean of 50")
print(f"11 episodes with a mean return of {(10 * 10 + 100) / 11:.2f}: {both:.2f}")
sys.exit(0 if first < 1 and last > 90 and both < 11 else 1)
PYTHON
