#!/usr/bin/env bash
# pytorch-msssim says that any two pictures of uint8 are alike: their SSIM is exactly 1. It casts its Gaussian window to
# the dtype of the pictures. The largest of the 11 weights is 0.27, so as uint8 all are 0. Then means, variances and the
# covariance are 0, and only the constants that keep the quotients finite are left.
#
# 2026-11-30, pytorch-msssim 1.0.0, torch 2.13.0 (CPU), numpy 2.4.6. Eight frames, 64 x 64, default arguments. Seen:
#     frames and their prediction, off by 25 levels: uint8 1.000, float32 0.648
#     frames and others: uint8 1.000, float32 0.040
#     black and white: uint8 1.000, float32 0.000
#     sum of the window: uint8 0, float32 1
#
# The docstring of ssim says of X and Y "a batch of images, (N,C,H,W)" and of data_range, 255 by default, "value range
# of input images". The example of the README has "a batch of non-negative RGB images (0~255)". Neither names a dtype.
# Its ms_ssim raises an error for uint8, as does the SSIM of TorchMetrics. Those of piq and Ignite convert.
#
# Why it matters: SSIM is the usual number for the quality of predicted video. Frames of a replay buffer or a decoded
# video are uint8 from 0 to 255, just what the default asks for. The table then reads 1.00 for each model and horizon.
# If one model's frames come as float and another's as uint8, it ranks them for that.
# Expected before: the value of the same frames as float32, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 pytorch-msssim==1.0.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from pytorch_msssim import SSIM, ssim

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)


def frames():
    """Smooth random colors with values from 0 to 255."""
    coarse = torch.rand(8, 3, 12, 12, generator=random) * 255
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear").to(torch.uint8)


print("pytorch-msssim", version("pytorch-msssim"), "torch", torch.__version__)
first = frames()
noise = torch.randn(first.shape, generator=random) * 25
near = (first + noise).clamp(0, 255).to(torch.uint8)
good = True
for title, one, other, top in (
    ("frames and their prediction, off by 25 levels", first, near, 0.7),
    ("frames and others", first, frames(), 0.3),
    ("black and white", torch.zeros_like(first), torch.full_like(first, 255), 0.001),
):
    wrong, right = ssim(one, other).item(), ssim(one.float(), other.float()).item()
    print(f"{title}: uint8 {wrong:.3f}, float32 {right:.3f}")
    good &= wrong == 1 and right < top and abs(ssim(one.float(), one.float()).item() - 1) < 1e-6
window = SSIM(data_range=255).win[0, 0, 0]
print(f"sum of the window: uint8 {window.to(torch.uint8).sum().item()}, float32 {window.sum().item():.0f}")
sys.exit(0 if good and window.to(torch.uint8).sum() == 0 else 1)
PYTHON
