#!/usr/bin/env bash
# robosuite's GymWrapper reports the time limit as an end of the task: after `horizon` steps it returns `terminated`
# True and `truncated` False, always. A success ends no episode, so that each `terminated` there is a time limit.
#
# 2026-11-30, robosuite 1.5.2, mujoco 3.3.0, gymnasium 1.4.0, numpy 1.26.4. Panda, `horizon=20`, no motion; in Lift the
# cube is put into the air from step 5 on, which is a success. Seen:
#     Door: no success, reward 0 at the last step; 20 steps, terminated True, truncated False
#     Lift: success at step 5, reward 1 at the last step; 20 steps, terminated True, truncated False
# (`step` of the wrapper passes on the `done` of the env, which is `timestep >= horizon`, and a constant False.)
#
# Why it matters: who bootstraps unless `terminated`, as gymnasium's API is for, values the state at the time limit at
# 0, a lifted cube that would go on to be rewarded like any other, and the same states earlier in the episode much
# higher. A world model has to predict this end from images that do not show the time.
# Expected before: `terminated` False and `truncated` True at the time limit, the "externally defined condition" of its
# docstring.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile robosuite==1.5.2 mujoco==3.3.0 gymnasium==1.4.0 numpy==1.26.4 numba==0.68.1 h5py
NUMBA_DISABLE_JIT=1 "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import numpy as np
import robosuite
from robosuite.wrappers import GymWrapper

HORIZON = 20


def episode(task):
    off = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "hard_reset": False}
    env = GymWrapper(robosuite.make(task, robots="Panda", horizon=HORIZON, **off))
    env.reset()
    first, steps, terminated, truncated = None, 0, False, False
    while not (terminated or truncated):
        steps += 1
        if task == "Lift" and steps >= 5:
            env.env.sim.data.set_joint_qpos("cube_joint0", np.array([0, 0, 1.5, 1, 0, 0, 0]))
        _, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
        if first is None and env.env._check_success():
            first = steps
    return first, reward, steps, terminated, truncated


good = True
for task, success in (("Door", None), ("Lift", 5)):
    first, reward, *end = episode(task)
    how = f"success at step {first}" if first else "no success"
    print(f"{task}: {how}, reward {reward:.0f} at the last step; {end[0]} steps, terminated {end[1]}, truncated {end[2]}")
    good &= first == success and end == [HORIZON, True, False]
sys.exit(0 if good else 1)
PYTHON
