#!/usr/bin/env bash
# d3rlpy's TDErrorEvaluator discounts the next value by gamma, whatever the number of steps to it. With a
# MultiStepTransitionPicker the reward is the sum of n steps and the next observation is n steps ahead, so that a Q
# function without any error has a large one. (Training takes gamma ** n.)
#
# 2026-11-30, d3rlpy 2.8.1, torch 2.13.0 (CPU), gymnasium 1.0.0, numpy 2.4.6, scikit-learn 1.9.1. Reward 1 at each of
# 500 steps, which end by a time limit, discount 0.99: each state has the value 100. The metric for the Q function that is
# 100 everywhere, and the constant Q, in steps of 50, that has the smallest. Seen:
#     1 step: 0.0 for Q = 100 (with gamma ** n 0.0), smallest for Q = 100
#     3 steps: 3.9 for Q = 100 (with gamma ** n 0.0), smallest for Q = 300
#     5 steps: 15.1 for Q = 100 (with gamma ** n 0.0), smallest for Q = 500
#     10 steps: 72.4 for Q = 100 (with gamma ** n 0.0), smallest for Q = 950
#
# Why it matters: the metric tells how well a Q function fits held-out data, and is used to compare runs and to stop them.
# With n-step returns it is smallest for a Q function that is about n times too high, an overestimate as offline RL
# fears it, and an agent that gets better at its own loss gets worse in it.
# Expected before: the error of the target that the same transitions train, r + gamma ** n * max Q.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile \
  d3rlpy==2.8.1 torch==2.13.0 gymnasium==1.0.0 gym==0.26.2 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import contextlib
import os
import sys

with contextlib.redirect_stdout(open(os.devnull, "w")):  # messages about the shapes of the data
    import numpy as np
    from d3rlpy.dataset import Episode, MultiStepTransitionPicker, create_fifo_replay_buffer
    from d3rlpy.metrics import TDErrorEvaluator

GAMMA, STEPS = 0.99, 500


class Constant:
    """A Q function that has one value everywhere."""

    gamma, reward_scaler = GAMMA, None

    def __init__(self, value):
        self.value = value

    def predict(self, observations):
        return np.zeros((len(observations), 1), np.float32)

    def predict_value(self, observations, actions):
        return np.full(len(observations), self.value)


seen = {}
zeros = np.zeros((STEPS, 1), np.float32)
for count in (1, 3, 5, 10):
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        picker = MultiStepTransitionPicker(n_steps=count, gamma=GAMMA)
        episode = Episode(zeros, zeros, np.ones_like(zeros), terminated=False)
        dataset = create_fifo_replay_buffer(limit=STEPS, episodes=[episode], transition_picker=picker)
    metric = lambda value: TDErrorEvaluator()(Constant(value), dataset)
    transitions = [picker(episode, index) for index in range(episode.transition_count)]
    right = np.mean([(100 - each.reward - GAMMA**each.interval * 100) ** 2 for each in transitions])
    values = np.arange(0.0, 1001.0, 50.0)
    best = values[np.argmin([metric(value) for value in values])]
    seen[count] = metric(100.0), right, best
    steps = f"{count} step{'s' if count > 1 else ''}"
    print(f"{steps}: {metric(100.0):.1f} for Q = 100 (with gamma ** n {right:.1f}), smallest for Q = {best:.0f}")
good = all(right < 1e-6 for _, right, _ in seen.values()) and seen[1][0] < 1e-6 and seen[1][2] == 100
sys.exit(0 if good and seen[3][0] > 3 and seen[5][0] > 14 and seen[10][2] > 800 else 1)
PYTHON
