#!/usr/bin/env bash
# EnvPool pays the last reward of an episode twice in DeepMind Control tasks: the step after the end only resets, the
# action is ignored, and yet its reward is that of the step before. In its Gym and Atari tasks it is 0, as in gymnasium.
#
# 2026-11-30, envpool 1.2.5, gymnasium 1.4.0, numpy 2.4.6. Four envs, random actions; for each env the reward of the
# last step of its first episode and of the reset step after it. With the dm_env API the action is 0.1. Seen:
#     CartpoleBalance-v1: 0.100 then 0.100, 0.383 then 0.383, 0.151 then 0.151, 0.679 then 0.679
#     WalkerStand-v1: 0.155 then 0.155, 0.125 then 0.125, 0.145 then 0.145, 0.080 then 0.080
#     HalfCheetah-v4: -0.631 then 0.000, -1.158 then 0.000, 0.325 then 0.000, -0.368 then 0.000
#     CartPole-v1: 1.000 then 0.000, 1.000 then 0.000, 1.000 then 0.000, 1.000 then 0.000
#     dm_env API: LAST 0.086 then FIRST 0.086, LAST 0.044 then FIRST 0.044, LAST 0.103 then FIRST 0.103, ...
# (In the dm_env API the FIRST step of the very first episode has the reward that happens to be in memory.)
#
# Why it matters: a loop that adds up rewards until the next end credits each episode but the first with one of the
# episode before. A learner that stores the reset step as well learns that an episode's last state is rewarded for any
# action and is followed by a start, most of all where the end is a success, with a reward of 1.
# Expected before: reward 0 and no effect, as in EnvPool's own Gym tasks and gymnasium's vector envs (next-step mode).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile envpool==1.2.5 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import envpool
import numpy as np

ENVS = 4


def ends(name):
    """Rewards of the last step of each env's first episode and of the reset step after it."""
    env = envpool.make_gymnasium(name, num_envs=ENVS, seed=1)
    env.action_space.seed(0)
    env.reset()
    found, done = {}, np.zeros(ENVS, bool)
    while len(found) < ENVS:
        action = np.array([env.action_space.sample() for _ in range(ENVS)])
        _, reward, terminated, truncated, info = env.step(action)
        for index in np.flatnonzero(done):
            assert info["elapsed_step"][index] == 0  # it is a reset step
            found.setdefault(index, (float(before[index]), float(reward[index])))
        before, done = reward, terminated | truncated
    return [found[index] for index in range(ENVS)]


good = True
for name, twice in (
    ("CartpoleBalance-v1", True),
    ("WalkerStand-v1", True),
    ("HalfCheetah-v4", False),
    ("CartPole-v1", False),
):
    pairs = ends(name)
    print(f"{name}:", ", ".join(f"{last:.3f} then {reset:.3f}" for last, reset in pairs))
    good &= all(last != 0 and reset == (last if twice else 0) for last, reset in pairs)

env = envpool.make_dm("CartpoleBalance-v1", num_envs=ENVS, seed=1)
env.reset()
for _ in range(1000):
    last = env.step(np.full((ENVS, 1), 0.1))
first = env.step(np.full((ENVS, 1), 0.1))
assert last.last().all() and first.first().all()
print("dm_env API:", ", ".join(f"LAST {a:.3f} then FIRST {b:.3f}" for a, b in zip(last.reward, first.reward)))
good &= bool((last.reward == first.reward).all() and (last.reward != 0).any())
sys.exit(0 if good else 1)
PYTHON
