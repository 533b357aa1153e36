#!/usr/bin/env bash
# n-step returns of torchrl bootstrap from states in which the episode has terminated. `MultiStepTransform` (replay
# buffer) and `MultiStep` (collector) sum n rewards and move the next observation n steps ahead, or to the last of the
# episode, but leave `("next", "terminated")` as it was after one step. torchrl's losses read just that.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. An episode of five steps that
# terminates, reward 1 for the last one; gamma 0.9; a value function that says 10 everywhere. Targets by step, seen:
#     one step, TD0Estimator: 9 9 9 9 1
#     three steps, right: 7.29 7.29 0.81 0.9 1
#     three steps, TD0Estimator: 7.29 7.29 8.1 9 1
#     three steps, DQNLoss: 7.29 7.29 8.1 9 1
#     three steps, MultiStep, TD0Estimator: 7.29 7.29 8.1 9 1
#     three steps, terminated moved by hand, TD0Estimator: 7.29 7.29 0.81 0.9 1
#     three steps, next observation: 3 4 5 5 5, terminated: 0 0 0 0 1
# (The discount is right: the losses raise gamma to `steps_to_next_obs`. TD0Estimator is the default of DQN, SAC, TD3,
# DDPG. `MultiStepTransform` documents that it leaves the done keys untouched, not that the targets are then wrong;
# `nonterminal`, which both write, is False at the last step only, and no loss reads it.)
#
# Why it matters: of the n transitions that see the end of an episode only the last one learns that it is the end. The
# others add the value of a state that is never trained, as nothing starts from it: a network takes it from similar
# states, so that a fall costs hardly anything. It looks like overestimation, or as if n-step returns did not help. Tasks
# that never terminate (DeepMind Control) are not touched; CartPole, Hopper, Walker2d, Atari are.
# Expected before: no bootstrap if the episode terminates within the n steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import logging
import sys
from importlib.metadata import version

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Categorical, LazyTensorStorage, ReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.envs.transforms import MultiStepTransform
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss
from torchrl.objectives.value import TD0Estimator

logging.getLogger("torchrl").setLevel(logging.ERROR)
torch.set_num_threads(1)
STEPS, GAMMA, VALUE = 5, 0.9, 10.0
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")


def column(values, dtype):
    return torch.tensor(values, dtype=dtype).unsqueeze(-1)


def episodes(count):
    """Observation t at step t; the last of the five steps gives 1 and terminates."""
    end = [0, 0, 0, 0, 1]
    following = {
        "observation": column([1, 2, 3, 4, 5], torch.float32),
        "reward": column(end, torch.float32),
        "done": column(end, torch.bool),
        "terminated": column(end, torch.bool),
        "truncated": torch.zeros(STEPS, 1, dtype=torch.bool),
    }
    start = {"observation": column([0, 1, 2, 3, 4], torch.float32), "action": column([0] * STEPS, torch.int64)}
    return torch.cat([TensorDict({**start, "next": following}, [STEPS]) for _ in range(count)])


def stored(steps):
    """The first episode as it comes out of a replay buffer with n-step returns."""
    transform = MultiStepTransform(n_steps=steps, gamma=GAMMA)
    buffer = ReplayBuffer(storage=LazyTensorStorage(100), transform=transform)
    buffer.extend(episodes(4))
    return buffer[:][:STEPS]


class Constant(torch.nn.Module):
    def forward(self, observation):
        return torch.full_like(observation, VALUE)


def by_estimator(data):
    network = TensorDictModule(Constant(), in_keys=["observation"], out_keys=["state_value"])
    return TD0Estimator(gamma=GAMMA, value_network=network).value_estimate(data.clone()).squeeze(-1)


def by_dqn(data):
    """The root of DQNLoss's squared error, for an online network of 0 and a target network of 10."""
    loss = DQNLoss(QValueActor(torch.nn.Linear(1, 2), in_keys=["observation"], spec=Categorical(2)), action_space="categorical")
    loss.make_value_estimator(gamma=GAMMA)
    for params, bias in ((loss.value_network_params, 0.0), (loss.target_value_network_params, VALUE)):
        for name, weight in params.items(True, True):
            weight.data.fill_(bias if "bias" in name else 0.0)
    data = data.clone()
    loss(data)
    return data["td_error"].flatten().sqrt()


def show(name, values):
    print(f"{name}:", *(f"{value:.3g}" for value in values.tolist()))
    return values


three = stored(3)
moved = three.clone()
last = torch.arange(STEPS) + three["steps_to_next_obs"].flatten() - 1
moved["next", "terminated"] = three["next", "terminated"][last]
right = torch.tensor([GAMMA**3 * VALUE, GAMMA**3 * VALUE, GAMMA**2, GAMMA, 1.0])
wrong = torch.tensor([GAMMA**3 * VALUE, GAMMA**3 * VALUE, GAMMA**2 + GAMMA**3 * VALUE, GAMMA + GAMMA**2 * VALUE, 1.0])

single = show("one step, TD0Estimator", by_estimator(stored(1)))
show("three steps, right", right)
seen = [
    show("three steps, TD0Estimator", by_estimator(three)),
    show("three steps, DQNLoss", by_dqn(three)),
    show("three steps, MultiStep, TD0Estimator", by_estimator(MultiStep(GAMMA, 3)(episodes(1).unsqueeze(0))[0])),
]
mended = show("three steps, terminated moved by hand, TD0Estimator", by_estimator(moved))
ends = three["next", "terminated"].flatten().int().tolist()
print("three steps, next observation:", *three["next", "observation"].flatten().int().tolist(), end="")
print(", terminated:", *ends)
good = torch.allclose(single, torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0])) and torch.allclose(mended, right)
good &= all(torch.allclose(values, wrong, atol=1e-4) for values in seen) and ends == [0, 0, 0, 0, 1]
sys.exit(0 if good else 1)
PYTHON
