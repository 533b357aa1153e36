#!/usr/bin/env bash
# MuJoCo's `camprojection` sensor, "pixel coordinates of a site in the camera image", is not where the site is in the
# image of cameras with a principal point or an orthographic projection. It takes the center of the image for the
# principal point, and the height of an orthographic view, in length units, for an angle in degrees.
#
# 2026-11-30, mujoco 3.17.0, numpy 2.4.6, MUJOCO_GL=egl. Cameras of 320 x 240 pixels above a small site. The value of
# the sensor, and the mean of the site's pixels in `mujoco.Renderer`'s segmentation of the same camera. Seen:
#     fovy: sensor 132.0 95.5, drawn 132.0 95.5
#     focal, sensorsize: sensor 127.7 91.7, drawn 127.7 91.6
#     principal: sensor 127.7 91.7, drawn 87.7 67.7
#     principalpixel: sensor 127.7 91.7, drawn 87.8 67.7
#     orthographic: sensor -457.2 -420.0, drawn 128.0 92.0
# (`cam_intrinsic` has the principal point, and the renderer shifts the image by it; the sensor reads the focal lengths.
# So do the sensors of MJX and of MuJoCo Warp.)
#
# Why it matters: a principal point off the center is what a calibrated camera has, and the offset is the same at each
# step: keypoint labels, rewards for what is in view and crops around a site are shifted by it. A policy that was
# trained on the sensor then gets the true pixels of a detector. With a center that is off by a few pixels, as in most
# calibrations, no picture shows it. A map from above, which is orthographic, has coordinates outside of the image.
# Expected before: the pixel where the site is drawn, as for the first two cameras.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile mujoco==3.17.0 numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
MUJOCO_GL=${MUJOCO_GL:-egl} "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import mujoco
import numpy as np

WIDTH, HEIGHT = 320, 240
LENS = 'sensorsize="4 3" focal="3 3"'
CAMERAS = {
    "fovy": 'fovy="60"',
    "focal, sensorsize": LENS,
    "principal": f'{LENS} principal=".5 .3"',
    "principalpixel": f'{LENS} principalpixel="40 24"',
    "orthographic": 'projection="orthographic" fovy="3"',
}
cameras = "".join(
    f'<camera name="{name}" pos="0 0 3" resolution="{WIDTH} {HEIGHT}" {more}/>' for name, more in CAMERAS.items()
)
sensors = "".join(f'<camprojection site="mark" camera="{name}"/>' for name in CAMERAS)
model = mujoco.MjModel.from_xml_string(
    f'<mujoco><worldbody><geom type="plane" size="5 5 .1"/><site name="mark" size=".03" pos="-.4 .35 .03"/>{cameras}'
    f"</worldbody><sensor>{sensors}</sensor></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
print("mujoco", mujoco.__version__, "numpy", np.__version__)
error = {}
with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
    renderer.enable_segmentation_rendering()
    for name, sensor in zip(CAMERAS, data.sensordata.reshape(-1, 2)):
        renderer.update_scene(data, name)
        rows, columns = np.nonzero(renderer.render()[..., 1] == mujoco.mjtObj.mjOBJ_SITE)
        drawn = np.array([columns.mean(), rows.mean()]) + 0.5  # (the center of the first pixel is 0.5)
        error[name] = np.abs(sensor - drawn)
        print(f"{name}: sensor {sensor[0]:.1f} {sensor[1]:.1f}, drawn {drawn[0]:.1f} {drawn[1]:.1f}")
right = all(error[name].max() < 1 for name in ("fovy", "focal, sensorsize"))
off = all(np.abs(error[name] - (40, 24)).max() < 1 for name in ("principal", "principalpixel"))
sys.exit(0 if right and off and error["orthographic"].min() > 100 else 1)
PYTHON
