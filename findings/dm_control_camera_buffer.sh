#!/usr/bin/env bash
# dm_control's `Camera.render` returns the same array at each call. Frames that are kept, in a list or a replay, all turn
# into the newest one. `physics.render` and depth and segmentation images of the same camera are new arrays.
#
# 2026-11-30, dm_control 1.0.50, mujoco 3.17.0, numpy 2.4.6, MUJOCO_GL=egl. cartpole-swingup, 20 steps with action 1; a
# frame of each, kept in a list. How many of the 20 are different, and is the first still what it was? Seen:
#     Camera.render: 1 different, the first is what it was: False
#     Camera.render, copied: 20 different, the first is what it was: True
#     Camera.render, depth: 20 different, the first is what it was: True
#     Camera.render, segmentation: 19 different, the first is what it was: True
#     physics.render: 20 different, the first is what it was: True
#     np.stack of two frames: their difference 0, of copies 2.1e+02
# (The result is a flipped view of the camera's buffer of RGB values. The docstring says "The rendered scene".)
#
# Why it matters: `mujoco.Camera` is the class to use where the same view is rendered at each step, since
# `physics.render` makes a scene anew each time. A frame stack, the pair (s, s') of a transition and an episode that is
# written at its end then hold one image, with states, actions and rewards that differ. A model that is trained on it
# learns that nothing moves; what is shown live looks right.
# Expected before: an array of one's own, as from `physics.render` and `mujoco.Renderer.render`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6 2> "$folder/log" || { cat "$folder/log"; exit 1; }
MUJOCO_GL=${MUJOCO_GL:-egl} "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import numpy as np
from dm_control import mujoco, suite

for name in ("dm_control", "mujoco", "numpy"):
    print(name, metadata.version(name), end=" ")
print()


def film(take):
    env = suite.load("cartpole", "swingup", task_kwargs={"random": 0})
    env.reset()
    camera = mujoco.Camera(env.physics, 64, 64, camera_id=0)
    kept, copies = [], []
    for _ in range(20):
        env.step([1.0])
        kept.append(take(camera, env.physics))
        copies.append(kept[-1].copy())
    return len({frame.tobytes() for frame in kept}), bool((kept[0] == copies[0]).all()), kept, copies


seen = {}
for name, take in {
    "Camera.render": lambda camera, physics: camera.render(),
    "Camera.render, copied": lambda camera, physics: camera.render().copy(),
    "Camera.render, depth": lambda camera, physics: camera.render(depth=True),
    "Camera.render, segmentation": lambda camera, physics: camera.render(segmentation=True),
    "physics.render": lambda camera, physics: physics.render(64, 64, camera_id=0),
}.items():
    *seen[name], kept, copies = film(take)
    print(f"{name}: {seen[name][0]} different, the first is what it was: {seen[name][1]}")
    if name == "Camera.render":
        stacks = [np.stack([frames[0], frames[-1]]).astype(int) for frames in (kept, copies)]
        moved = [np.abs(stack[0] - stack[1]).max() for stack in stacks]
print(f"np.stack of two frames: their difference {moved[0]:.2g}, of copies {moved[1]:.2g}")
fine = all(different > 15 and same for name, (different, same) in seen.items() if name != "Camera.render")
sys.exit(0 if seen["Camera.render"] == [1, False] and fine and moved[0] == 0 and moved[1] > 50 else 1)
PYTHON
