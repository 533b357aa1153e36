#!/usr/bin/env bash
# gymnasium's NormalizeReward does not begin a new return with a new episode. Neither a time limit nor `reset` ends it.
# Where episodes end by a limit alone it runs on for ever, and for a constant reward the scale by which it divides goes
# to zero. A real end clears it too early: the last reward counts for the next episode, not for its own.
#
# 2026-11-30, gymnasium 1.4.0, numpy 2.4.6. A reward of 1 at each of the 100 steps of an episode; the normalized one at
# step 100, 1,000, 10,000 and 40,000, and the return that the wrapper holds after the first step of the second episode
# (1 is right). Of one env, and of vector envs with one. Seen:
#     time limit, one env: 0.055 0.050 0.144 0.286 return 63.76
#     time limit, NEXT_STEP: 0.055 0.050 0.144 0.286 return 63.76
#     time limit, SAME_STEP: 0.055 0.055 0.055 0.055 return 1.00
#     end of the task, one env: 0.055 0.055 0.055 0.055 return 1.99
#     at the end alone, one env: 10.050 3.893 return 0.99
#     at the end alone, NEXT_STEP: 10.050 3.893 return 0.99
#     at the end alone, SAME_STEP: 10.050 10.050 return 0.00
# ("at the end alone": a reward at the last step only, where 0 is right. With SAME_STEP the vector version begins anew;
# the others just multiply by `1 - terminated`, before they add the reward.)
#
# Why it matters: in tasks with a time limit, such as HalfCheetah or those of dm_control, the rewards of an agent that
# gets good and even grow with the square root of time, here to five times the right ones, and value targets and
# gradients with them: it unlearns, and looks unstable. A sparse task's scale is off by about two. And one wrapper gives
# two scales for one task, by the mode of the vector env.
# Expected before: a return of each episode, as in `VecNormalize` of Baselines and Stable-Baselines3, from which it
# comes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.vector import NormalizeReward as VectorNormalizeReward

LENGTH = 100


class Env(gym.Env):
    """Episodes of 100 steps, which end by a time limit or by an end of the task."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, end, sparse):
        self.end, self.sparse = end, sparse

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        last = self.count == LENGTH
        reward = float(last) if self.sparse else 1.0
        return np.zeros(1, np.float32), reward, last and self.end, last and not self.end, {}


def single(end, sparse, marks):
    env = NormalizeReward(Env(end, sparse))
    env.reset()
    seen = []
    for step in range(1, marks[-1] + 1):
        _, reward, terminated, truncated, _ = env.step(0)
        if step in marks:
            seen.append(float(reward))
        if step == LENGTH + 1:
            first = float(env.discounted_reward[0])
        if terminated or truncated:
            env.reset()
    return seen, first


def vector(end, sparse, mode, marks):
    """`marks` are steps of the env: the step that only resets does not count."""
    env = VectorNormalizeReward(SyncVectorEnv([lambda: Env(end, sparse)], autoreset_mode=mode))
    env.reset()
    seen, step, ended = [], 0, False
    while step < marks[-1]:
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, int))
        if not (ended and mode == AutoresetMode.NEXT_STEP):
            step += 1
            if step in marks:
                seen.append(float(reward[0]))
            if step == LENGTH + 1:
                first = float(env.accumulated_reward[0])
        ended = bool(terminated[0] or truncated[0])
    return seen, first


LONG, SHORT = (100, 1000, 10000, 40000), (100, 1000)
rows = {
    ("time limit", "one env"): single(False, False, LONG),
    ("time limit", "NEXT_STEP"): vector(False, False, AutoresetMode.NEXT_STEP, LONG),
    ("time limit", "SAME_STEP"): vector(False, False, AutoresetMode.SAME_STEP, LONG),
    ("end of the task", "one env"): single(True, False, LONG),
    ("at the end alone", "one env"): single(True, True, SHORT),
    ("at the end alone", "NEXT_STEP"): vector(True, True, AutoresetMode.NEXT_STEP, SHORT),
    ("at the end alone", "SAME_STEP"): vector(True, True, AutoresetMode.SAME_STEP, SHORT),
}
for (title, name), (seen, first) in rows.items():
    print(f"{title}, {name}:", *(f"{value:.3f}" for value in seen), f"return {first:.2f}")
limit, sparse = rows["time limit", "one env"], rows["at the end alone", "one env"]
right = rows["time limit", "SAME_STEP"]
good = limit[0][3] > 4 * right[0][3] and limit[0][3] > 1.8 * limit[0][2] and abs(right[0][3] / right[0][0] - 1) < 0.01
good &= limit[1] > 50 and right[1] == 1 and abs(sparse[1] - 0.99) < 1e-9
good &= abs(rows["at the end alone", "SAME_STEP"][1]) < 1e-9
sys.exit(0 if good else 1)
PYTHON
