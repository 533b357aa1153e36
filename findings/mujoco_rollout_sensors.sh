#!/usr/bin/env bash
# `mujoco.rollout` returns states and sensor values that do not belong together: in each row the state is that after the
# step, but the sensor values are those of the state before it. Those of the last state are not returned at all.
#
# 2026-11-30, mujoco 3.17.0, numpy 2.4.6. A pendulum with sensors of its angle and its velocity, the position of its tip
# and the clock; 200 steps of 10 ms with random torques. Largest difference of a row's sensor values from those that
# `mj_forward` computes for the state of the same row and for the one before, and the largest value. Seen:
#     angle: 0.04 from the state of the same row, 0 from the one before, of 1.1
#     velocity: 0.68 from the state of the same row, 0 from the one before, of 4
#     tip: 0.035 from the state of the same row, 0 from the one before, of 1.5
#     clock: 0.01 from the state of the same row, 0 from the one before, of 2
#     the first row: clock 0, time of the state 0.01
# (`mj_step` computes sensors before it integrates; `rollout` copies both after it.)
#
# Why it matters: a data set for a world model, or a planner that takes its reward from sensors, pairs what is observed
# with the state, the action and the reward of another time; the effect of the last action is in no sensor value.
# Expected before: row t of both is of the time after t + 1 steps ("get subsequent states and sensor values").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile mujoco==3.17.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import mujoco
import numpy as np
from mujoco import rollout

XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body pos="0 0 2">
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05" mass="1"/>
      <site name="tip" pos="0 0 -1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="20"/></actuator>
  <sensor>
    <jointpos joint="hinge"/>
    <jointvel joint="hinge"/>
    <framepos objtype="site" objname="tip"/>
    <clock/>
  </sensor>
</mujoco>
"""
STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
model = mujoco.MjModel.from_xml_string(XML)
data = mujoco.MjData(model)
start = np.zeros(mujoco.mj_stateSize(model, STATE))
mujoco.mj_getState(model, data, start, STATE)
torques = np.random.default_rng(0).uniform(-1, 1, (1, 200, 1))
states, sensors = (each[0] for each in rollout.rollout(model, data, start[None], torques))


def sensors_of(state):
    mujoco.mj_setState(model, data, state, STATE)
    mujoco.mj_forward(model, data)
    return data.sensordata.copy()


true = np.array([sensors_of(state) for state in (start, *states)])
names = {"angle": slice(0, 1), "velocity": slice(1, 2), "tip": slice(2, 5), "clock": slice(5, 6)}
good = True
for name, part in names.items():
    after, before = (np.abs(sensors - each)[:, part].max() for each in (true[1:], true[:-1]))
    largest = np.abs(true[:, part]).max()
    print(f"{name}: {after:.2g} from the state of the same row, {before:.2g} from the one before, of {largest:.2g}")
    good &= before < 1e-12 and after > 1e-3
print(f"the first row: clock {sensors[0, 5]:.2g}, time of the state {states[0, 0]:.2g}")
sys.exit(0 if good else 1)
PYTHON
