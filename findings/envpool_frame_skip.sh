#!/usr/bin/env bash
# EnvPool's `frame_skip` of DeepMind Control tasks throws away the rewards of the steps that it skips: it returns that
# of the last one, not the sum. And the time limit counts its own steps: an episode is `frame_skip` times as long.
#
# 2026-11-30, envpool 1.2.5, gymnasium 1.4.0, numpy 2.4.6. CartpoleBalance-v1 with the same seed and the same actions,
# once with frame_skip=2, once with each action given twice. Seen:
#     positions differ by 0.0 up to the end of the plain episode
#     rewards of the first pairs of steps: 1.964 1.909 1.651 with frame_skip: 0.982 0.954 0.824
#     rewards with frame_skip differ from those of the second steps by 0.0
#     control steps in an episode: 1000, with frame_skip: 2000
#     return: 191.7, with frame_skip: 137.7
# (An agent that balances from start to end gets 1,000 in both cases, in 10 and in 20 seconds of simulation.)
#
# Why it matters: returns with an action repeat are not those of the benchmark, although they end at 1,000 as well: half
# of their steps come after its time limit, and what happens in the skipped steps, a short touch of a sparse target,
# does not count. `max_episode_steps=500` brings the time limit back, and halves the scores.
# Expected before: an action repeat of 2, as agents from pixels use it: 500 steps, each with the sum of two rewards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile envpool==1.2.5 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import envpool
import numpy as np

SKIP = 2


def episode(**how):
    """Positions and rewards of one episode; each action is given twice without frame_skip."""
    env = envpool.make_gymnasium("CartpoleBalance-v1", num_envs=1, seed=1, **how)
    env.reset()
    positions, rewards = [], []
    for action in np.random.default_rng(0).uniform(-1, 1, (1000, 1, 1)):
        for _ in range(1 if how else SKIP):
            obs, reward, terminated, truncated, _ = env.step(action)
            positions.append(obs["position"][0])
            rewards.append(float(reward[0]))
        if (terminated | truncated).any():
            return np.array(positions), np.array(rewards)


positions, rewards = episode()
skip_positions, skip_rewards = episode(frame_skip=SKIP)
last = np.abs(skip_positions[: len(positions) // SKIP] - positions[SKIP - 1 :: SKIP]).max()
print("positions differ by", last, "up to the end of the plain episode")
pairs = rewards.reshape(-1, SKIP)
sums = pairs[:3].sum(1)
print("rewards of the first pairs of steps:", *np.round(sums, 3), "with frame_skip:", *np.round(skip_rewards[:3], 3))
off = np.abs(skip_rewards[: len(pairs)] - pairs[:, -1]).max()
print("rewards with frame_skip differ from those of the second steps by", off)
print(f"control steps in an episode: {len(rewards)}, with frame_skip: {len(skip_rewards) * SKIP}")
print(f"return: {rewards.sum():.1f}, with frame_skip: {skip_rewards.sum():.1f}")
summed = pairs.sum(1).mean() > 1.2 * pairs[:, -1].mean()  # else nothing would be lost
sys.exit(0 if last == off == 0 and summed and len(skip_rewards) == len(rewards) else 1)
PYTHON
