#!/usr/bin/env bash
# dm_control's depth images "in meters" are not in meters for an orthographic camera: it undoes a perspective that is not
# there. A floor at 3 m is at 22 mm, and a box of 1 m is 0.2 mm nearer.
#
# 2026-11-30, dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6, MUJOCO_GL=egl. Two cameras 3 m above a floor with boxes of
# 0.5 m and 1 m. Depths of the floor and of both boxes from `physics.render(depth=True)` and from `mujoco.Renderer`. Seen:
#     perspective: dm_control 3.0000 2.5000 2.0000 Renderer 3.0000 2.5000 2.0000
#     orthographic: dm_control 0.0221 0.0220 0.0219 Renderer 3.0000 2.5000 2.0000
# (dm_control has one formula, near / (1 - d (1 - near / far)); that of an orthographic camera is linear.)
#
# Why it matters: an orthographic camera from above is the way to a height map, as locomotion and manipulation observe
# it. All values are positive and in order, and scaled to an image they look right where all depths are similar; heights
# that are computed from them are flat, and thresholds such as "nearer than 0.5 m" hold everywhere.
# Expected before: the distance along the view in meters, as documented ("depth values (in meters)") and as in Renderer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
MUJOCO_GL=${MUJOCO_GL:-egl} "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import mujoco
import numpy as np
from dm_control import mujoco as control

for name in ("dm_control", "mujoco", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
CAMERAS = {"perspective": 'fovy="60"', "orthographic": 'fovy="3" projection="orthographic"'}
cameras = "".join(f'<camera name="{name}" pos="0 0 3" {more}/>' for name, more in CAMERAS.items())
boxes = "".join(
    f'<geom type="box" size=".3 .3 {height / 2}" pos="{x} 0 {height / 2}"/>' for x, height in ((-0.5, 0.5), (0.5, 1))
)
xml = f'<mujoco><worldbody><geom type="plane" size="5 5 .1"/>{boxes}{cameras}</worldbody></mujoco>'
physics = control.Physics.from_xml_string(xml)
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
seen, right = {}, {}
with mujoco.Renderer(model, 120, 160) as renderer:
    renderer.enable_depth_rendering()
    for name in CAMERAS:
        renderer.update_scene(data, name)
        depths = physics.render(120, 160, camera_id=name, depth=True), renderer.render()
        # The floor, the low box and the high box: above the center, to the left and to the right of it.
        seen[name], right[name] = ([float(depth[y, x]) for y, x in ((5, 80), (60, 58), (60, 102))] for depth in depths)
        print(f"{name}: dm_control", *(f"{x:.4f}" for x in seen[name]), "Renderer", *(f"{x:.4f}" for x in right[name]))
fine = all(np.allclose(x, (3, 2.5, 2), atol=0.001) for x in (seen["perspective"], *right.values()))
sys.exit(0 if fine and np.ptp(seen["orthographic"]) < 0.001 and max(seen["orthographic"]) < 0.2 else 1)
PYTHON
