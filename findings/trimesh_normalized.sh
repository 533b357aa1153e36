#!/usr/bin/env bash
# trimesh does not read `normalized` of a glTF accessor: texture coordinates in normalized unsigned shorts, which core
# glTF 2.0 allows, come out 65,535 times too large.
#
# 2026-11-29, trimesh 5.2.0, numpy 2.2.6. The file has one triangle with TEXCOORD_0 (0, 0), (1, 0), (0, 1), stored as
# normalized unsigned shorts. Seen:
#     floats: 0 to 1
#     normalized shorts: 0 to 65535, expected 0 to 1
# No warning. Texture coordinates in floats are right. (Positions in normalized shorts, KHR_mesh_quantization, are 32,767
# times too large in the same way.)
#
# Why it matters: `gltf-transform quantize` and `optimize` write such files; a scan converted by trimesh has its texture
# tiled 65,535 times, which looks like noise or one color.
# Expected before: 0 to 1, as glTF 2.0 (3.11, "Accessor data types") says: f = c / 65535.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install trimesh==5.2.0 numpy==2.2.6 pillow==13.0.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import io
import json
import struct
import sys

import numpy as np
import trimesh
from PIL import Image


def write(path, texcoords, component, normalized):
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    parts = [np.eye(3, dtype=np.float32).tobytes(), texcoords.tobytes(), picture.getvalue()]
    views, data = [], b""
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(part)})
        data += part + bytes(-len(part) % 4)
    gltf = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 2, "mimeType": "image/png"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 1]},
            {"bufferView": 1, "componentType": component, "count": 3, "type": "VEC2", "normalized": normalized},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(data), len(text), b"JSON")
    with open(path, "wb") as file:
        file.write(head + text + struct.pack("<I4s", len(data), b"BIN\0") + data)


def read(path):
    (mesh,) = trimesh.load_scene(path).geometry.values()
    return mesh.visual.uv


corners = np.array([[0, 0], [1, 0], [0, 1]])
write(sys.argv[1] + "/float.glb", corners.astype(np.float32), 5126, False)
write(sys.argv[1] + "/short.glb", (corners * 65535).astype(np.uint16), 5123, True)
right, wrong = read(sys.argv[1] + "/float.glb"), read(sys.argv[1] + "/short.glb")
print(f"floats: {right.min():g} to {right.max():g}")
print(f"normalized shorts: {wrong.min():g} to {wrong.max():g}, expected 0 to 1")
sys.exit(0 if right.max() == 1 and wrong.max() > 65000 else 1)
PYTHON
