#!/usr/bin/env bash
# gymnasium's MuJoCo envs with the Euler integrator (HalfCheetah-v5, Pusher-v5) render the state of one physics step
# before the observation that `step` returns; the frame after `reset` is of the observation itself. The positions of
# bodies, from which MuJoCo renders, are those at the start of the last physics step, and nothing calls `mj_forward`.
#
# 2026-11-30, gymnasium 1.4.0, mujoco 3.17.0, numpy 2.4.6, EGL (Mesa's software rendering), 84x84. 20 random steps of
# HalfCheetah-v5 (5 physics steps each). Seen, as the mean share of pixels that differ by more than 10 levels:
#     the frame against the one after mj_forward, i.e. of the observation: 2.2%
#     the frame against the one before the last of the 5 physics steps: 0.0%
#     one frame against the next one: 4.0%
#     after reset, the frame against the one of the observation: 0.0%
# (dm_control computes positions anew before it observes and renders. The other nine MuJoCo envs have the RK4
# integrator, whose last stage leaves positions next to those at the end.)
#
# Why it matters: pixels and state of one step are not of one moment, so that a probe or a decoder from pixels to state
# has an error that no training removes; after a reset they are. A frame that is rendered again from a saved state
# (`set_state`) is another picture than the one that the agent saw.
# Expected before: the frame shows the state that is returned with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile "gymnasium[mujoco]==1.4.0" mujoco==3.17.0 numpy==2.4.6
MUJOCO_GL=${MUJOCO_GL:-egl} "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import gymnasium as gym
import mujoco
import numpy as np

env = gym.make("HalfCheetah-v5", render_mode="rgb_array", width=84, height=84)
env.reset(seed=0)
env.action_space.seed(0)
model, data = env.unwrapped.model, env.unwrapped.data
assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
whole = mujoco.mjtState.mjSTATE_INTEGRATION
before, after = (np.empty(mujoco.mj_stateSize(model, whole)) for _ in range(2))


def now():
    """The frame of the current state. It leaves this state's positions of bodies in `data`."""
    mujoco.mj_forward(model, data)
    return env.render()


def differ(a, b):
    return (np.abs(a.astype(int) - b).max(-1) > 10).mean()


reset = differ(env.render(), now())
shares, last = [], env.render()
for _ in range(20):
    mujoco.mj_getState(model, data, before, whole)
    action = env.action_space.sample()
    env.step(action)
    frame = env.render()
    mujoco.mj_getState(model, data, after, whole)
    mujoco.mj_setState(model, data, before, whole)
    data.ctrl[:] = action
    mujoco.mj_step(model, data, nstep=env.unwrapped.frame_skip - 1)
    earlier = now()
    mujoco.mj_setState(model, data, after, whole)
    shares.append((differ(frame, now()), differ(frame, earlier), differ(frame, last)))
    last = frame
observed, earlier, change = np.mean(shares, 0)
print(f"the frame against the one after mj_forward, i.e. of the observation: {observed:.1%}")
print(f"the frame against the one before the last of the 5 physics steps: {earlier:.1%}")
print(f"one frame against the next one: {change:.1%}")
print(f"after reset, the frame against the one of the observation: {reset:.1%}")
sys.exit(0 if reset == earlier == 0 and observed > 0.01 else 1)
PYTHON
