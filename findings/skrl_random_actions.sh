#!/usr/bin/env bash
# skrl's random actions are the same ones at every step. `random_act`, which takes the first `random_timesteps` of SAC,
# TD3 and DDPG and the exploring steps of epsilon-greedy DQN, draws from gymnasium's `batch_space(space, n)`. That is a
# new space at each call, with a copy of the generator of `space`, which itself never moves on.
#
# 2026-11-30, skrl 2.1.1, gymnasium 1.4.0, torch 2.13.0 (CPU), tensorboard 2.21.0, numpy 2.4.6. DQN in four CartPole-v1
# with epsilon 1, i.e. nothing but random actions, for 500 steps. Seen:
#     different actions in each env: 1 1 1 1
#     mean length of an episode: 9.3 (actions of action_space.sample(): 22.7)
#     random_act, 1,000 times in Pendulum-v1: 1 different torque
#
# Why it matters: with one env, all data before the first update are the consequence of one action, and epsilon-greedy
# explores one action for the whole training; which one depends on the seed of the action space. It looks like a hard
# exploration problem, or like an agent with good and bad seeds, and nothing is logged that would show it.
# Expected before: an independent draw at each step.
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
STEPS, ENVS = 500, 4
torch.manual_seed(0)


class Network(DeterministicMixin, Model):
    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = torch.nn.Linear(self.num_observations, 2)

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


def make():
    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    return gym.make_vec("CartPole-v1", num_envs=ENVS, vectorization_mode="sync", vector_kwargs=mode)


env = wrap_env(make(), wrapper="gymnasium")
memory = RandomMemory(memory_size=STEPS, num_envs=ENVS, device="cpu")
agent = DQN(
    models={"q_network": Network(env), "target_q_network": Network(env)},
    memory=memory,
    cfg=DQN_CFG(
        exploration_scheduler=lambda timestep, timesteps: 1.0,
        learning_starts=STEPS,
        experiment={"write_interval": 0, "checkpoint_interval": 0},
    ),
    observation_space=env.observation_space,
    action_space=env.action_space,
    device="cpu",
)
cfg = SequentialTrainerCfg(timesteps=STEPS, headless=True, disable_progressbar=True)
SequentialTrainer(cfg=cfg, env=env, agents=agent).train()
taken = memory.get_tensor_by_name("actions").squeeze(-1)
length = STEPS * ENVS / memory.get_tensor_by_name("terminated").sum().item()

own = make()
own.reset(seed=0)
own.action_space.seed(0)
drawn = STEPS * ENVS / sum(own.step(own.action_space.sample())[2].sum() for _ in range(STEPS))
print("different actions in each env:", *(len(taken[:, i].unique()) for i in range(ENVS)))
print(f"mean length of an episode: {length:.1f} (actions of action_space.sample(): {drawn:.1f})")

pendulum = wrap_env(gym.make("Pendulum-v1"), wrapper="gymnasium")
policy = Network(pendulum)
inputs = {"observations": torch.zeros(1, 3)}
torques = torch.cat([policy.random_act(inputs)[0] for _ in range(1000)])
print(f"random_act, 1,000 times in Pendulum-v1: {len(torques.unique())} different torque")
sys.exit(0 if (taken == taken[0]).all() and length < 12 and drawn > 18 and len(torques.unique()) == 1 else 1)
PYTHON
