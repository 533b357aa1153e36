#!/usr/bin/env bash
# MJX (its JAX implementation) accepts models with features that it lacks, and simulates them without. Delayed actuators
# and sensors, polynomial springs and dampers, the damping and armature of actuators, disabled groups of actuators and
# others have no effect; `put_model` is silent. The trajectory is that of C MuJoCo without the features in the file.
#
# 2026-11-30, mujoco-mjx 3.17.0 (newest), mujoco 3.17.0, jax 0.10.2 (CPU), numpy 2.4.6. One model, a separate pendulum
# for each feature, 100 steps from the same state under the same controls. Difference in joint angle (rad; the last: m):
#     feature                          C, with - without   MJX - C with   MJX - C without
#     none                                        0.0000         0.0000            0.0000
#     joint stiffness, polynomial                 2.1737         2.1737            0.0000
#     joint damping, polynomial                   2.1728         2.1728            0.0000
#     tendon stiffness, polynomial                2.1737         2.1737            0.0000
#     tendon damping, polynomial                  2.1730         2.1730            0.0000
#     actuator delay                              0.0581         0.0581            0.0000
#     actuator damping                            1.2552         1.2552            0.0000
#     actuator armature                           1.4667         1.4667            0.0000
#     actuator actearly                           0.0116         0.0116            0.0000
#     actuatorgroupdisable                        0.0079         0.0079            0.0000
#     sensor delay                                0.3243         0.3243            0.0000
#     surface velocity (conveyor)                 0.1390         0.1390            0.0000
#     the PGS solver, for comparison: NotImplementedError
#
# What the documentation says (MJX, Feature Parity): "MJX will raise an exception if asked to copy an mjModel to the
# device that references unsupported features". Its table of what is supported or not names none of the above.
#
# Why it matters: latency, damping and reflected inertia of motors are what models of real robots add for transfer. A
# policy that is trained in MJX never met them, while the file says so; evaluated in C MuJoCo, or on the robot, it faces
# other dynamics. A learned model or a system identification that compares the two blames itself.
# Expected before: NotImplementedError, as for the PGS solver.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile mujoco-mjx==3.17.0 mujoco==3.17.0 jax==0.10.2 jaxlib==0.10.2 \
    numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import jax
import mujoco
import numpy as np
from mujoco import mjx

STEPS = 100
FEATURES = (
    "none",
    "joint stiffness, polynomial",
    "joint damping, polynomial",
    "tendon stiffness, polynomial",
    "tendon damping, polynomial",
    "actuator delay",
    "actuator damping",
    "actuator armature",
    "actuator actearly",
    "actuatorgroupdisable",
)
EXTRA = ("sensor delay", "surface velocity (conveyor)")


def model(on):
    def only(text):
        return text if on else ""

    stiffness = 'stiffness="5 40 30"' if on else 'stiffness="5"'
    damping = 'damping=".1 2 3"' if on else 'damping=".1"'
    joints = {1: stiffness, 2: damping}
    pendulums = "".join(
        f"""<body pos="{i} 0 2"><joint name="{i}" axis="0 1 0" {joints.get(i, "")}/>
            <geom type="capsule" size=".05" fromto="0 0 0 .5 0 .1" contype="0" conaffinity="0"/></body>"""
        for i in range(len(FEATURES))
    )
    return mujoco.MjModel.from_xml_string(f"""
<mujoco>
  <option timestep=".005" {only('actuatorgroupdisable="3"')}/>
  <worldbody>
    {pendulums}
    <geom type="plane" size="20 20 1" {only('surfacevel="1 0 0"')}/>
    <body pos="0 5 .1"><freejoint/><geom size=".1"/></body>
  </worldbody>
  <tendon>
    <fixed {stiffness}><joint joint="3" coef="1"/></fixed>
    <fixed {damping}><joint joint="4" coef="1"/></fixed>
  </tendon>
  <actuator>
    <motor joint="0"/>
    <motor joint="5" gear="10" {only('delay=".05" nsample="12"')}/>
    <motor joint="6" {only('damping="2"')}/>
    <motor joint="7" {only('armature="1"')}/>
    <general joint="8" gear="10" dyntype="filter" dynprm=".05" {only('actearly="true"')}/>
    <motor joint="9" gear="10" group="3"/>
  </actuator>
  <sensor><jointpos joint="0" {only('delay=".05" nsample="12"')}/></sensor>
</mujoco>""")


def control(step, number):
    return 2 * np.sin(step * 0.1 + np.arange(number))


def start(m):
    data = mujoco.MjData(m)
    data.qvel[: len(FEATURES)] = 1
    return data


def result(qpos, sensordata):
    """Angle of each pendulum, the reading of the sensor, the ball's x."""
    return np.concatenate([qpos[: len(FEATURES)], sensordata, qpos[len(FEATURES) : len(FEATURES) + 1]])


def in_c(m):
    data = start(m)
    for step in range(STEPS):
        data.ctrl[:] = control(step, m.nu)
        mujoco.mj_step(m, data)
    return result(data.qpos, data.sensordata)


def in_mjx(m):
    on_device = mjx.put_model(m, impl="jax")

    def one(data, ctrl):
        return mjx.step(on_device, data.replace(ctrl=ctrl)), None

    controls = np.array([control(step, m.nu) for step in range(STEPS)], np.float32)
    data = jax.jit(lambda data: jax.lax.scan(one, data, controls)[0])(mjx.put_data(m, start(m), impl="jax"))
    return result(np.array(data.qpos), np.array(data.sensordata))


for name in ("mujoco-mjx", "mujoco", "jax", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
with_it, without, mjx_with = in_c(model(True)), in_c(model(False)), in_mjx(model(True))
print(f"{'feature':32} C, with - without   MJX - C with   MJX - C without")
right = True
for name, c_on, c_off, m_on in zip(FEATURES + EXTRA, with_it, without, mjx_with, strict=True):
    effect, missed, same = abs(c_on - c_off), abs(m_on - c_on), abs(m_on - c_off)
    print(f"{name:32} {effect:17.4f} {missed:14.4f} {same:17.4f}")
    right &= same < 1e-3 and (name == "none" or (effect > 5e-3 and missed > 5e-3))
try:
    mjx.put_model(mujoco.MjModel.from_xml_string('<mujoco><option solver="PGS"/></mujoco>'), impl="jax")
    right = False
except NotImplementedError as error:
    print(f"the PGS solver, for comparison: {type(error).__name__} {error}")
sys.exit(0 if right else 1)
PYTHON
