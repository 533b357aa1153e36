#!/usr/bin/env bash
# d3rlpy's InitialStateValueEstimationEvaluator takes more than initial states: it cuts each episode into windows of 1,024
# steps and takes the first state of every window for one. So a long episode counts several times, mostly with states
# from its middle.
#
# 2026-11-30, d3rlpy 2.8.1, torch 2.13.0 (CPU), gymnasium 1.0.0, numpy 2.4.6, scikit-learn 1.9.1. Reward 1 at each step,
# discount 0.999, and a Q function that is exact. The metric, and the mean of the values of the first states. Seen:
#     episodes of 1000 steps: 632.3, of the first states 632.3
#     episodes of 5000 steps: 874.5, of the first states 993.3
#     1000 and 5000 steps: 834.1, of the first states 812.8
#     nine of 200 and one of 18000 steps: 695.2, of the first states 263.2
# (DiscountedSumOfAdvantageEvaluator starts its sums anew at each window too. With a window as long as the longest
# episode, the first number is the second.)
#
# Why it matters: the metric stands for the return that a policy would get, to choose a checkpoint or hyperparameters
# offline (its docstring cites a paper on that). Games of Atari are often longer than 1,024 steps, most tasks of D4RL are
# not: in one it is what it says, in the other it drifts toward a mean over all states, and the longest episodes rule.
# Expected before: the mean of Q(s_0, pi(s_0)) over the episodes, as documented.
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
    from d3rlpy.dataset import Episode, create_fifo_replay_buffer
    from d3rlpy.metrics import InitialStateValueEstimationEvaluator, evaluators

GAMMA = 0.999


class Exact:
    """The values of a policy that gets a reward of 1 in each of the steps that are left, which it observes."""

    gamma, reward_scaler = GAMMA, None

    def predict(self, observations):
        return np.zeros((len(observations), 1), np.float32)

    def predict_value(self, observations, actions):
        return (1 - GAMMA ** observations[:, 0]) / (1 - GAMMA)


def metric(lengths):
    episodes = []
    for length in lengths:
        left = np.arange(length, 0, -1, dtype=np.float32)[:, None]
        episodes.append(Episode(left, np.zeros_like(left), np.ones_like(left), terminated=True))
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        dataset = create_fifo_replay_buffer(limit=sum(lengths), episodes=episodes)
    return InitialStateValueEstimationEvaluator()(Exact(), dataset)


cases = {
    "episodes of 1000 steps": [1000, 1000],
    "episodes of 5000 steps": [5000, 5000],
    "1000 and 5000 steps": [1000, 5000],
    "nine of 200 and one of 18000 steps": [200] * 9 + [18000],
}
seen, first = [], []
for name, lengths in cases.items():
    seen.append(metric(lengths))
    first.append(np.mean([(1 - GAMMA**length) / (1 - GAMMA) for length in lengths]))
    print(f"{name}: {seen[-1]:.1f}, of the first states {first[-1]:.1f}")
evaluators.WINDOW_SIZE = 18000
whole = [metric(lengths) for lengths in cases.values()]
good = np.allclose(whole, first) and np.isclose(seen[0], first[0])
good = good and seen[1] < 0.9 * first[1] and seen[2] > 1.02 * first[2] and seen[3] > 2 * first[3]
sys.exit(0 if good else 1)
PYTHON
