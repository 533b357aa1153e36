#!/usr/bin/env bash
# With one-hot actions, torchrl's greedy action is many-hot if values are equal, and the "chosen action value" is then
# the SUM of the equal ones. DQN bootstraps from it: where actions do not matter their values become equal, the target
# doubles, and training runs off to NaN. With categorical actions the same training ends at the right value.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. QValueModule on the values 10, 10, 3.
# Then values of six actions, normal with mean 10 and spread 0.5. Then DQNLoss on one state with four actions, reward 1
# for each of them, no end, discount 0.9, i.e. the value of each action is 10; SGD, 400 steps. Seen:
#     one-hot: action 1 1 0, chosen value 20; categorical: action 0, chosen value 10
#     float32: 0.0% many-hot, mean chosen value 10.63, mean maximum 10.63
#     bfloat16: 7.1% many-hot, mean chosen value 11.42, mean maximum 10.63
#     DQN float32, one-hot: largest value after 100, 200, 400 steps 2.9e+08 1.6e+30 nan
#     DQN float32, categorical: largest value after 100, 200, 400 steps 9.2 9.9 10
#     OneHotCategorical: mode of equal logits 1 1 1 1 (torch.distributions: 1 0 0 0)
# (The greedy action is `value == value.max()`, its value the sum of action times value. The four values draw together
# during the training, since each has the same target, and are equal to the last bit after some dozen steps.)
#
# What the docstrings say: QValueModule maps values "into its argmax component (i.e. the resulting greedy action)" and
# returns "the value of the chosen action"; OneHotCategorical "behaves exactly as torch.distributions.Categorical except
# that it reads and produces one-hot encodings".
#
# Why it matters: one-hot is the default of torchrl's GymEnv for discrete actions. Ties are no rare event: a constant
# output head, dead units, actions that do not matter, and above all bfloat16, where values near 10 lie 0.06 apart.
# Targets then jump by a factor of 2 or more, which reads as DQN's instability or overestimation. A latent mode with
# several ones is a code that no world model has seen. Expected before: exactly one 1, and the maximum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import math
import sys
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torchrl.modules import OneHotCategorical, QValueActor, QValueModule
from torchrl.objectives import DQNLoss

torch.set_num_threads(1)
torch.manual_seed(0)
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")

values = torch.tensor([10.0, 10.0, 3.0])
action, _, chosen = QValueModule(action_space="one-hot")(values)
other, _, right_one = QValueModule(action_space="categorical")(values)
print("one-hot: action", *action.tolist(), end=f", chosen value {chosen.item():g}; ")
print(f"categorical: action {other.item()}, chosen value {right_one.item():g}")
good = action.tolist() == [1, 1, 0] and chosen.item() == 20 and other.item() == 0 and right_one.item() == 10

draws = 10 + 0.5 * torch.randn(10000, 6)
rates = {}
for dtype in (torch.float32, torch.bfloat16):
    values = draws.to(dtype)
    action, _, chosen = QValueModule(action_space="one-hot")(values)
    many = (action.sum(-1) > 1).float().mean().item()
    means = chosen.float().mean().item(), values.float().amax(-1).mean().item()
    rates[dtype] = many, *means
    print(f"{str(dtype)[6:]}: {many:.1%} many-hot, mean chosen value {means[0]:.2f}, mean maximum {means[1]:.2f}")
good &= rates[torch.float32][0] == 0 and rates[torch.bfloat16][0] > 0.05
good &= rates[torch.bfloat16][1] > rates[torch.bfloat16][2] + 0.5


def train(space):
    """The largest of the four values after 100, 200 and 400 steps; the true one is 1 / (1 - 0.9) = 10."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 4, bias=False)
    actor = QValueActor(network, in_keys=["observation"], action_space=space)
    loss = DQNLoss(actor, action_space=space, delay_value=False, loss_function="l2")
    loss.make_value_estimator(gamma=0.9)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.25)
    state, flags = torch.ones(4, 2), torch.zeros(4, 1, dtype=torch.bool)
    actions = torch.arange(4)
    if space == "one-hot":
        actions = torch.nn.functional.one_hot(actions, 4)
    after = {"observation": state, "reward": torch.ones(4, 1), "done": flags, "terminated": flags}
    batch = TensorDict({"observation": state, "action": actions, "next": after}, [4])
    kept = []
    for step in range(1, 401):
        error = loss(batch)["loss"]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if step in (100, 200, 400):
            kept.append(network(state[:1]).max().item())
    return kept


ends = {}
for space in ("one-hot", "categorical"):
    ends[space] = train(space)
    print(f"DQN float32, {space}: largest value after 100, 200, 400 steps", *(f"{value:.2g}" for value in ends[space]))
good &= not math.isfinite(ends["one-hot"][2]) and abs(ends["categorical"][2] - 10) < 0.1

logits = torch.zeros(4)
modes = OneHotCategorical(logits=logits).mode, torch.distributions.OneHotCategorical(logits=logits).mode
texts = [" ".join(f"{value:g}" for value in mode.tolist()) for mode in modes]
print(f"OneHotCategorical: mode of equal logits {texts[0]} (torch.distributions: {texts[1]})")
good &= texts == ["1 1 1 1", "1 0 0 0"]
sys.exit(0 if good else 1)
PYTHON
