#!/usr/bin/env bash
# highway-env forgets the seed of the action space. Each `reset` makes a new space with an unseeded generator, so
# `env.action_space.seed(0)` before `env.reset(seed=0)` has no effect, and after it, only until the next episode.
#
# 2026-11-30, highway-env 1.12.1, gymnasium 1.4.0, numpy 2.4.6. Both seeds 0, then two episodes of random actions; all
# that again in a new environment, 5 times. How many different sequences of actions? Seen:
#     highway-fast-v0, action_space.seed before reset: first episode 5, second episode 5
#     highway-fast-v0, action_space.seed after reset: first episode 1, second episode 5
#     parking-v0, action_space.seed before reset: first episode 5, second episode 5
#     CartPole-v1, action_space.seed before reset: first episode 1, second episode 1
#     starting observations of highway-fast-v0: 1
#
# What gymnasium documents of `Env.action_space`: "To get reproducible sampling of actions, a seed can be set with
# env.action_space.seed(123)". highway-env says nothing else.
#
# Why it matters: the random steps before training, epsilon-greedy of libraries that sample the space, random baselines
# and data sets of random play differ from run to run although all seeds are set; replays by seed fail. It looks like
# nondeterminism of the agent. A space that was kept from before `reset` is also no longer the environment's.
# Expected before: 1 throughout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile highway-env==1.12.1 gymnasium==1.4.0 numpy==2.4.6 \
    2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import gymnasium as gym
import highway_env  # noqa: F401
import numpy as np

for name in ("highway-env", "gymnasium", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
RUNS, STEPS = 5, 12


def play(name, before):
    """Actions of two episodes (of at most STEPS steps, padded by -9) and the first observation."""
    env = gym.make(name)
    if before:
        env.action_space.seed(0)
    first = env.reset(seed=0)[0]
    if not before:
        env.action_space.seed(0)
    episodes = []
    for _ in range(2):
        actions = [env.action_space.sample() for _ in range(STEPS)]
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        episodes.append(np.array(actions).tobytes())
        env.reset()
    return episodes[0], episodes[1], np.array(first).tobytes() if isinstance(first, np.ndarray) else None


right = True
for name, before, expected in (
    ("highway-fast-v0", True, (RUNS, RUNS)),
    ("highway-fast-v0", False, (1, RUNS)),
    ("parking-v0", True, (RUNS, RUNS)),
    ("CartPole-v1", True, (1, 1)),
):
    runs = [play(name, before) for _ in range(RUNS)]
    found = tuple(len({run[i] for run in runs}) for i in range(2))
    order = "before" if before else "after"
    print(f"{name}, action_space.seed {order} reset: first episode {found[0]}, second episode {found[1]}")
    right &= found == expected
    if name == "highway-fast-v0" and before:
        starts = len({run[2] for run in runs})
        right &= starts == 1
print("starting observations of highway-fast-v0:", starts)
sys.exit(0 if right else 1)
PYTHON
