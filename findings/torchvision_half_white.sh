#!/usr/bin/env bash
# torchvision turns white to black where it converts an image in bfloat16 or float16 to integers:
# `v2.ToDtype(torch.uint8, scale=True)` multiplies by 255.999, which in these dtypes is 256, and 256 in uint8 is 0. So
# do `ConvertImageDtype`, and RandomEqualize, which goes through uint8 and back. To uint16, float32 does the same.
#
# 2026-11-30, torchvision 0.28.0, torch 2.13.0 (CPU), numpy 2.4.6. Gray levels in [0, 1], each of the 256 of uint8.
# Seen:
#     float32 to uint8: 0.5 is 128, 0.992 253, 1 255
#     bfloat16 to uint8: 0.5 is 129, 0.992 254, 1 0
#     float16 to uint8: 0.5 is 128, 0.992 254, 1 0
#     bfloat16 to int16: 0.5 is 16512, 0.992 32512, 1 -32768
#     float32 to uint16: 0.5 is 32896, 0.992 65021, 1 0
#     RandomEqualize in float32: white is 1
#     RandomEqualize in bfloat16: white is 0
#     RandomEqualize in float16: white is 0
# (In bfloat16 all above 0.998 is 1. In float32 the product is 255.999, and right.)
#
# Why it matters: under `torch.autocast` a decoder's images are bfloat16, and frames are stored in half to save memory.
# Where they are written to a video, logged, scored or augmented, what is saturated, as the sky, highlights or a white
# background, is black. A good decoder looks broken, one whose output is clipped most of all.
# Expected before: 255, as in float32; `scale=True` is documented as "scaling the values for images or videos".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torchvision==0.28.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import glob
import importlib.util
import os
import sys

import torch

try:
    for path in glob.glob(os.path.join(os.path.dirname(importlib.util.find_spec("torchvision").origin), "_C*.so")):
        torch.ops.load_library(path)
except OSError:  # operators for CUDA beside a torch for the CPU: only their names are needed, by the import
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision import transforms
from torchvision.transforms import v2

levels = torch.arange(256) / 255
rows = {}
for source, target in (
    ("float32", "uint8"), ("bfloat16", "uint8"), ("float16", "uint8"),
    ("bfloat16", "int16"), ("float32", "uint16"),
):
    image = levels.to(getattr(torch, source)).view(1, 16, 16)
    new = v2.ToDtype(getattr(torch, target), scale=True)(image).flatten().tolist()
    old = transforms.ConvertImageDtype(getattr(torch, target))(image).flatten().tolist()
    assert new == old
    rows[source, target] = new
    print(f"{source} to {target}: 0.5 is {new[128]}, 0.992 {new[253]}, 1 {new[255]}")
image = torch.ones(3, 64, 64)
image[:, :32] = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0)) / 2
for name in ("float32", "bfloat16", "float16"):
    rows[name] = v2.RandomEqualize(p=1)(image.to(getattr(torch, name)))[:, 32:].float().mean().item()
    print(f"RandomEqualize in {name}: white is {rows[name]:g}")
good = rows["float32", "uint8"] == list(range(256)) and rows["float32"] == 1
good &= all(rows[name, "uint8"][255] == 0 and rows[name] < 0.1 for name in ("bfloat16", "float16"))
good &= rows["bfloat16", "int16"][255] < 0 and rows["float32", "uint16"][255] == 0
sys.exit(0 if good else 1)
PYTHON
