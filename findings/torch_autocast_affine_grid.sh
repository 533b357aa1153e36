#!/usr/bin/env bash
# Autocast moves the points at which PyTorch samples an image. `F.affine_grid` multiplies matrices, so it makes a
# bfloat16 grid of float32 angles and shifts; `F.grid_sample`, which autocast runs in float32, gets that. Crops, shifts
# and rotations on the accelerator are off by up to a quarter of a pixel, and the more so the farther from the center.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. Random images, with a grid from inside autocast to bfloat16 and one from
# outside it (grid_sample in autocast for both). Seen:
#     64 pixels, shift 0, 0 degrees: torch.bfloat16, then torch.float32; points off by up to 0.00 pixels, over 0.1 for 0%; noise by up to 0 of 255
#     84 pixels, shift 0, 0 degrees: torch.bfloat16, then torch.float32; points off by up to 0.11 pixels, over 0.1 for 1%; noise by up to 31 of 255
#         grid from outside autocast: image back up to 0.00 of 255
#     84 pixels, shift 4, 0 degrees: torch.bfloat16, then torch.float32; points off by up to 0.17 pixels, over 0.1 for 21%; noise by up to 41 of 255
#     84 pixels, shift 0, 5 degrees: torch.bfloat16, then torch.float32; points off by up to 0.20 pixels, over 0.1 for 19%; noise by up to 44 of 255
#     96 pixels, shift 4, 0 degrees: torch.bfloat16, then torch.float32; points off by up to 0.14 pixels, over 0.1 for 16%; noise by up to 42 of 255
#     224 pixels, shift 0, 0 degrees: torch.bfloat16, then torch.float32; points off by up to 0.27 pixels, over 0.1 for 53%; noise by up to 79 of 255
# (The centers of the pixels of an image of 64, 128 or 256 are bfloat16 numbers: without shift these show nothing.)
#
# Documentation: affine_grid is in none of autocast's lists, and ops that are not run in the type of their inputs.
# grid_sampler is in the list of float32, for the sake of precision.
#
# Why it matters: random shifts and rotations as augmentation (DrQ), spatial transformers and the crops of objects in
# object-centric world models run inside the autocast of the training step. The identity is a blur that depends on the
# place in the image, and evaluation in float32 sees sharper images than the training did.
# Expected before: float32 in, float32 out, and the identity gives the image back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
seen = {}
for size, shift, degrees in ((64, 0, 0), (84, 0, 0), (84, 4, 0), (84, 0, 5), (96, 4, 0), (224, 0, 0)):
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    sine, cosine = angle.sin().item(), angle.cos().item()
    theta = torch.tensor([[[cosine, -sine, 2 * shift / size], [sine, cosine, 0.0]]])
    torch.manual_seed(0)
    image = torch.rand(1, 3, size, size)
    points, shown = {}, {}
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            grid = F.affine_grid(theta, image.shape, align_corners=False)
        with torch.autocast("cpu", torch.bfloat16):
            shown[inside] = F.grid_sample(image, grid, align_corners=False)
        points[inside] = grid.double() * size / 2
    with torch.autocast("cpu", torch.bfloat16):
        types = F.affine_grid(theta, image.shape, align_corners=False).dtype, shown[True].dtype
    off = (points[True] - points[False]).norm(dim=-1)
    gray = 255 * (shown[True] - shown[False]).abs().max().item()
    seen[size, shift, degrees] = types, off.max().item(), gray
    print(
        f"{size} pixels, shift {shift}, {degrees} degrees: {types[0]}, then {types[1]}; points off by up to "
        f"{off.max():.2f} pixels, over 0.1 for {100 * (off > 0.1).double().mean():.0f}%; noise by up to {gray:.0f} of 255"
    )
    if (size, shift, degrees) == (84, 0, 0):
        control = 255 * (shown[False] - image).abs().max().item()
        print(f"    grid from outside autocast: image back up to {control:.2f} of 255")
good = control < 0.1 and all(types == (torch.bfloat16, torch.float32) for types, _, _ in seen.values())
good &= seen[64, 0, 0][1] < 1e-3 and seen[84, 4, 0][1] > 0.1 and seen[224, 0, 0][1] > 0.2 and seen[224, 0, 0][2] > 40
sys.exit(0 if good else 1)
PYTHON
