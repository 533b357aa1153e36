#!/usr/bin/env bash
# Noisy networks do not explore in tianshou. The collector puts the policy into eval mode for all data, those for
# training too, and a NoisyLinear in eval mode has no noise: it uses its mean weights. Updates have noise, actions
# never.
#
# 2026-12-01, tianshou 2.0.1, gymnasium 1.4.0, torch 2.13.0 (CPU), numpy 2.4.6. RainbowDQN with a network of two
# NoisyLinear (the default noise) and no epsilon, trained by the trainer of tianshou in CartPole-v1 for 2,000 steps.
# Each action of the training collector is compared with the greedy one of the mean weights, and with those of two
# networks with noise: the noise of the last update, and a new one. Seen:
#     actions in the buffer that are greedy without noise: 2000 of 2000
#     actions of the same network with noise of the last update that are: 1267 of 2000
#     actions of the same network with new noise that are: 1235 of 2000
#     updates whose forward pass has noise: 200 of 200
# (The policy's own flag of a training step is set while it collects; `eps_training` goes by that flag. The paper acts
# with noise. Documentation of NoisyLinear: "Implementation of Noisy Networks", with no word on data collection.)
#
# Why it matters: noise in the weights is the exploration of Rainbow and of NoisyNet, which set epsilon to 0. Here
# such an agent is greedy from the first step, and its sparse tasks fail. With epsilon, as in common scripts, an
# ablation of noisy layers measures something else: noise in the loss. Dropout or batch norm of a policy are switched
# over as well.
# Expected before: different weights act at different updates, which is what the layers are for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 tianshou==2.0.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import copy
import sys
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import RainbowDQN
from tianshou.algorithm.modelfree.c51 import C51Policy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.discrete import NoisyLinear

torch.set_num_threads(1)
torch.manual_seed(0)
np.random.seed(0)
ATOMS, STEPS, ACTIONS = 51, 2000, 2
modes = []


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(NoisyLinear(4, 32), torch.nn.ReLU(), NoisyLinear(32, ACTIONS * ATOMS))

    def forward(self, obs, state=None, info=None):
        if torch.is_grad_enabled() and len(obs) > 1:  # the forward pass of an update
            modes.append(all(layer.training for layer in self.layers))
        out = self.layers(torch.as_tensor(obs, dtype=torch.float32))
        return out.view(-1, ACTIONS, ATOMS).softmax(-1), state


def greedy(network, obs):
    with torch.no_grad():
        return int((network(obs)[0] * policy.support).sum(-1).argmax())


same = {"without": 0, "last": 0, "new": 0}


def compare(action_batch, rollout_batch):
    """Runs at each step of the training collector."""
    network = copy.deepcopy(policy.model)
    clean = greedy(network.eval(), rollout_batch.obs)
    same["without"] += int(rollout_batch.act[0]) == clean
    same["last"] += greedy(network.train(), rollout_batch.obs) == clean
    for layer in network.layers:
        if isinstance(layer, NoisyLinear):
            layer.sample()
    same["new"] += greedy(network, rollout_batch.obs) == clean


print(", ".join(f"{name} {version(name)}" for name in ("tianshou", "gymnasium", "torch", "numpy")))
space = gym.make("CartPole-v1").action_space
policy = C51Policy(model=Network(), action_space=space, num_atoms=ATOMS, v_min=0, v_max=100)
agent = RainbowDQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-4), target_update_freq=100)
envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")])
envs.seed(0)
collector = Collector(agent, envs, VectorReplayBuffer(STEPS, 1), exploration_noise=True, on_step_hook=compare)
params = OffPolicyTrainerParams(
    training_collector=collector,
    max_epochs=1,
    epoch_num_steps=STEPS,
    collection_step_num_env_steps=10,
    update_step_num_gradient_steps_per_sample=0.1,
    batch_size=32,
    verbose=False,
    show_progress=False,
)
agent.run_training(params)
size = len(collector.buffer)
print(f"actions in the buffer that are greedy without noise: {same['without']} of {size}")
print(f"actions of the same network with noise of the last update that are: {same['last']} of {size}")
print(f"actions of the same network with new noise that are: {same['new']} of {size}")
print(f"updates whose forward pass has noise: {sum(modes)} of {len(modes)}")
good = same["without"] == size == STEPS and max(same["last"], same["new"]) < 0.9 * size
sys.exit(0 if good and all(modes) and len(modes) >= 190 else 1)
PYTHON
