#!/usr/bin/env bash
# mujoco 3.12.0 and later, 2026-11-29: the texture of a plane of finite size starts at the plane's corner, not its center.
#
# The same XML (a plane of half size 0.3 with a checkerboard, texuniform, seen from above) shows four squares with mujoco
# 3.11.0 and one square with 3.12.0. Output seen (gray levels of the four corners of the frame):
#
#     3.11.0: 2 levels
#     3.12.0: 1 levels
#
# It matters because dm_control's reacher, point_mass and fish have such floors: returns and checkpoints from pixels
# that were made before do not see what they were trained on. Exits non-zero if either version behaves otherwise.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import mujoco

XML = """<mujoco><asset>
<texture name="grid" type="2d" builtin="checker" rgb1="0 0 0" rgb2="1 1 1" width="300" height="300"/>
<material name="grid" texture="grid" texrepeat="1 1" texuniform="true"/></asset>
<visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual><worldbody>
<camera name="top" pos="0 0 .6"/><geom type="plane" size=".3 .3 .1" material="grid"/></worldbody></mujoco>"""
model = mujoco.MjModel.from_xml_string(XML)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data, "top")
    frame = renderer.render()
corners = {int(frame[y, x, 0]) // 64 for y in (20, 44) for x in (20, 44)}
print(f"{mujoco.__version__}: {len(corners)} levels")
PY
for version in 3.11.0 3.12.0; do
    python3 -m pip install --quiet --target "$folder/$version" "mujoco==$version" numpy==1.26.4 2> "$folder/log" || { cat "$folder/log"; exit 2; }
    PYTHONPATH="$folder/$version" MUJOCO_GL=egl python3 "$folder/try.py" 2> "$folder/log" | tee -a "$folder/out" || { cat "$folder/log"; exit 2; }
done
diff "$folder/out" - <<'OUT'
3.11.0: 2 levels
3.12.0: 1 levels
OUT
