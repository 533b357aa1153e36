#!/usr/bin/env bash
# dm_control's arenas take degrees for radians. A model without an `angle` is in degrees, MJCF's default, as the robots
# of dm_control's own suite are; attached to an arena, which is in radians, its numbers stay as they are. Joint limits
# become 57.3 times as wide, and Euler angles others. With `angle="degree"` written out, `attach` raises.
#
# 2026-11-30, dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6. Models alone and attached to `floors.Floor()`: limits of
# the last hinge in degrees, and the share of joint angles outside of the right limits in 500 random steps. Seen:
#     walker: -45 to 45, attached -2578 to 2578; outside 3%, attached 72%
#     hopper: -45 to 45, attached -2578 to 2578; outside 0%, attached 80%
#     cheetah: -28 to 28, attached -1604 to 1604; outside 0%, attached 5%
#     a scene in degrees: -30 to 30, with an arm in radians attached -1719 to 1719
#     angle written out: Conflicting values for attribute `angle`: radian vs degree
#     MjSpec, degrees in radians: -30 to 30
# (What is left out is no value, so that there is no conflict. `mujoco.MjSpec.attach` converts each model by its own.)
#
# Why it matters: an arena is there to put robots and props from files into it. Knees bend backward and legs turn
# through the body, nothing warns, and an agent learns all the same, with a robot that is not the one of the file. The
# other way round, an arm in radians changes the limits of the scene that it is put in.
# Expected before: the same robot, or the error for conflicting values that the explicit attribute gives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6
MUJOCO_GL=disabled "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import os
import sys

import dm_control
import mujoco
import numpy as np
from dm_control import mjcf
from dm_control.locomotion.arenas import floors


def compiled(root):
    return mjcf.Physics.from_mjcf_model(root)


def hinges(model):
    return [i for i in range(model.njnt) if model.jnt_limited[i] and model.jnt_type[i] == mujoco.mjtJoint.mjJNT_HINGE]


def outside(physics, limits):
    """Share of the angles of limited hinges that are more than 0.1 rad outside of `limits`."""
    generator, count = np.random.default_rng(0), []
    joints = hinges(physics.model)
    for _ in range(500):
        physics.set_control(generator.uniform(-1, 1, physics.model.nu))
        physics.step(10)
        angle = physics.data.qpos[physics.model.jnt_qposadr[joints]]
        count.append((angle < limits[:, 0] - 0.1) | (angle > limits[:, 1] + 0.1))
    return np.mean(count)


def text(limits):
    return "{:.0f} to {:.0f}".format(*np.degrees(limits) + 0.0)


good = True
for name in ("walker", "hopper", "cheetah"):
    path = os.path.join(os.path.dirname(dm_control.__file__), "suite", f"{name}.xml")
    alone = compiled(mjcf.from_path(path))
    limits = alone.model.jnt_range[hinges(alone.model)].copy()
    arena = floors.Floor().mjcf_model
    arena.worldbody.attach(mjcf.from_path(path))
    attached = compiled(arena)
    wide = attached.model.jnt_range[hinges(attached.model)]
    shares = outside(alone, limits), outside(attached, limits)
    print(f"{name}: {text(limits[-1])}, attached {text(wide[-1])}; outside {shares[0]:.0%}, attached {shares[1]:.0%}")
    good &= np.allclose(wide, np.degrees(limits)) and shares[0] < 0.05 and shares[1] > shares[0] + 0.02

ARM = """<mujoco model="{}">{}<worldbody><body><joint type="hinge" limited="true" range="{}"/>
<geom type="capsule" size=".02" fromto="0 0 0 0 0 .3"/></body></worldbody></mujoco>"""
degrees, radians = ARM.format("a", "", "-30 30"), ARM.format("b", '<compiler angle="radian"/>', "-.5 .5")
scene = mjcf.from_xml_string(degrees)
before = compiled(scene).model.jnt_range[0].copy()
scene.worldbody.attach(mjcf.from_xml_string(radians))
after = compiled(scene).model.jnt_range[0].copy()
print(f"a scene in degrees: {text(before)}, with an arm in radians attached {text(after)}")
good &= np.allclose(after, np.degrees(before))
arena = floors.Floor().mjcf_model
try:
    arena.worldbody.attach(mjcf.from_xml_string(ARM.format("a", '<compiler angle="degree"/>', "-30 30")))
    good = False
except ValueError as error:
    print("angle written out:", error)
spec = mujoco.MjSpec.from_string(radians)
spec.attach(mujoco.MjSpec.from_string(degrees), frame=spec.worldbody.add_frame(), prefix="a/")
right = spec.compile().jnt_range[-1]
print("MjSpec, degrees in radians:", text(right))
sys.exit(0 if good and np.allclose(right, before) else 1)
PYTHON
