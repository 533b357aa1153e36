#!/usr/bin/env bash
# TorchRL's FrameSkipTransform does not stop at the end of an episode. On a dm_control task, which starts anew when it is
# stepped after its last step, the end is lost where the skip does not divide the length: two episodes become one, which
# has the rewards of both. The argument `frame_skip` of the env itself stops.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6.
# cartpole balance (1,000 steps, a reward of at most 1 each), action 0, an action repeat of 3. Seen:
#     DMControlEnv(frame_skip=3): done after 334 steps, return 773
#     FrameSkipTransform(3): done after 667 steps, return 1545
# No warning, and `rollout` and the collectors, which rely on `done`, see nothing either.
#
# Why it matters: the return is more than an episode can have (1,000), a sequence model learns a transition from the last
# state to a fresh one, and the steps of a task with a real end are rewarded beyond it.
# Expected before: the same as with the env's own `frame_skip`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6
MUJOCO_GL=disabled "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torchrl.envs import DMControlEnv, FrameSkipTransform, TransformedEnv


def episode(env):
    env.set_seed(0)
    rollout = env.rollout(1200, policy=lambda position, velocity: torch.zeros(1, dtype=torch.float64))
    return rollout.shape[0], rollout["next", "reward"].sum().item(), bool(rollout["next", "done"][-1])


own = episode(DMControlEnv("cartpole", "balance", frame_skip=3))
transform = episode(TransformedEnv(DMControlEnv("cartpole", "balance"), FrameSkipTransform(3)))
for name, (steps, total, done) in (("DMControlEnv(frame_skip=3)", own), ("FrameSkipTransform(3)", transform)):
    print(f"{name}: {'done' if done else 'not done'} after {steps} steps, return {total:.0f}")
sys.exit(0 if own[0] == 334 and own[2] and transform[0] > 334 and transform[1] > own[1] else 1)
PYTHON
