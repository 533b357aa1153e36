#!/usr/bin/env bash
# shimmy gives each dm_control env the control period in milliseconds as `render_fps`: 10 for cheetah, which runs at 100
# steps a second, 25 for walker, which runs at 40. gymnasium's RecordVideo writes its videos at that rate.
#
# 2026-11-30, shimmy 2.0.1, gymnasium 1.4.0, dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6. Rate in `metadata` against
# that of the control steps, and how much longer than the episode its video lasts. Seen:
#     cheetah-run-v0: render_fps 10, control steps 100 a second: 10 times as long
#     walker-walk-v0: render_fps 25, control steps 40 a second: 1.6 times as long
#     cartpole-swingup-v0: render_fps 10, control steps 100 a second: 10 times as long
#     humanoid-run-v0: render_fps 25, control steps 40 a second: 1.6 times as long
#     pendulum-swingup-v0: render_fps 20, control steps 50 a second: 2.5 times as long
# (All envs of a process share the dict: a cheetah env has 25 once a walker env was made.)
#
# Why it matters: gaits in recorded videos are up to ten times too slow, each task by another factor, so that videos
# look like the behavior of heavier robots; tools that take the time between frames from the rate are off as much.
# Expected before: 1 / control_timestep, as gymnasium's MuJoCo envs have it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile shimmy==2.0.1 "gymnasium[mujoco]==1.4.0" dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6
MUJOCO_GL=disabled "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import gymnasium as gym
import shimmy

gym.register_envs(shimmy)
good = True
for name in ("cheetah-run-v0", "walker-walk-v0", "cartpole-swingup-v0", "humanoid-run-v0", "pendulum-swingup-v0"):
    env = gym.make(f"dm_control/{name}")
    written, right = env.metadata["render_fps"], 1 / env.unwrapped.dt
    print(f"{name}: render_fps {written:g}, control steps {right:g} a second: {right / written:.2g} times as long")
    good &= abs(written - 1000 * env.unwrapped.dt) < 1e-9 and abs(written - right) > 1
sys.exit(0 if good else 1)
PYTHON
