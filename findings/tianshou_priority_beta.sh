#!/usr/bin/env bash
# `set_beta` of tianshou's PrioritizedVectorReplayBuffer changes nothing. It sets beta of the buffers inside, but the
# importance weights come from the outer buffer, which keeps the beta of its start. `weight_norm=False` is lost too.
#
# 2026-12-01, tianshou 2.0.1, gymnasium 1.4.0, torch 2.13.0 (CPU), numpy 2.4.6. Four transitions with priorities 1, 2,
# 4 and 8, alpha 1, beta 0.4 at first; their weights at once and after `set_beta(1.0)`. Seen:
#     one buffer: 1.000 0.758 0.574 0.435; 1.000 0.500 0.250 0.125
#     vector buffer, 1 env: 1.000 0.758 0.574 0.435; 1.000 0.758 0.574 0.435
#     vector buffer, 4 envs: 1.000 0.758 0.574 0.435; 1.000 0.758 0.574 0.435
#     mean of 0, 0, 0 and 8 fitted with these weights at beta 1 (right: 2.0): one buffer 2.0, vector buffer 3.4
#     weight_norm=False, weights of the last three: one buffer 0.500 0.250 0.125, vector buffer 1.000 0.500 0.250
# (Documented: "Other input arguments (alpha/beta/...) are the same as PrioritizedReplayBuffer", whose `weight_norm`
# is "whether to normalize returned weights with the maximum weight value within the batch". The mean of four rewards
# is the minimum of the weighted loss over samples drawn by priority.)
#
# Why it matters: growing beta to 1 is part of prioritized replay and of Rainbow. With more than one env the collector
# asks for a vector buffer, so beta stays at 0.4, and the loss is a biased one to the end: rare transitions with large
# errors count too much. An ablation of beta schedules finds no difference at all, bit for bit, and concludes that beta
# is unimportant.
# Expected before: the weights of both buffers are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 tianshou==2.0.1 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import numpy as np
from tianshou.data import Batch, PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer

PRIORITIES = np.array([1.0, 2.0, 4.0, 8.0])
REWARDS = np.array([0.0, 0.0, 0.0, 8.0])
INDICES = np.arange(4)


def make(envs, **options):
    """A buffer with four transitions, which lie in the first of the inner buffers; envs = 0: without inner buffers."""
    options = {"alpha": 1.0, "beta": 0.4, **options}
    if envs:
        buffer = PrioritizedVectorReplayBuffer(4 * envs, envs, **options)
    else:
        buffer = PrioritizedReplayBuffer(4, **options)
    for reward in REWARDS:
        shape = {"act": 0, "terminated": True, "truncated": False}
        if envs:
            row = {key: np.array([value]) for key, value in shape.items()}
            row.update(obs=np.zeros((1, 1)), obs_next=np.zeros((1, 1)), rew=np.array([reward]))
            buffer.add(Batch(**row), buffer_ids=[0])
        else:
            buffer.add(Batch(**shape, obs=np.zeros(1), obs_next=np.zeros(1), rew=reward))
    buffer.update_weight(INDICES, PRIORITIES)
    return buffer


def text(values):
    return " ".join(f"{value:.3f}" for value in values)


print(", ".join(f"{name} {version(name)}" for name in ("tianshou", "gymnasium", "torch", "numpy")))
first, later, means = {}, {}, {}
for name, envs in (("one buffer", 0), ("vector buffer, 1 env", 1), ("vector buffer, 4 envs", 4)):
    buffer = make(envs)
    first[name] = buffer[INDICES].weight
    buffer.set_beta(1.0)
    later[name] = buffer[INDICES].weight
    print(f"{name}: {text(first[name])}; {text(later[name])}")
    np.random.seed(0)
    batch, _ = buffer.sample(400000)
    means[name] = (batch.weight * batch.rew).sum() / batch.weight.sum()
one, many = "one buffer", "vector buffer, 4 envs"
print(
    "mean of 0, 0, 0 and 8 fitted with these weights at beta 1 (right: 2.0):",
    f"one buffer {means[one]:.1f}, vector buffer {means[many]:.1f}",
)
raw = [make(envs, beta=1.0, weight_norm=False)[INDICES[1:]].weight for envs in (0, 4)]
print(f"weight_norm=False, weights of the last three: one buffer {text(raw[0])}, vector buffer {text(raw[1])}")
good = np.allclose(first[one], PRIORITIES**-0.4, atol=1e-5) and np.allclose(later[one], 1 / PRIORITIES, atol=1e-5)
good &= all((first[name] == later[name]).all() for name in list(first)[1:]) and np.allclose(first[many], first[one])
good &= abs(means[one] - 2) < 0.1 and means[many] > 3.2
good &= np.allclose(raw[0], [0.5, 0.25, 0.125], atol=1e-5) and np.allclose(raw[1], [1, 0.5, 0.25], atol=1e-5)
sys.exit(0 if good else 1)
PYTHON
