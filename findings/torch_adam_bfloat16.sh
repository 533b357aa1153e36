#!/usr/bin/env bash
# Adam of PyTorch never forgets a gradient if the weights are bfloat16. Its second moment, which has their dtype, is
# multiplied by 0.999 at each step, and rounding takes the 0.1% back: it only grows. A short burst of large gradients
# makes all later steps tiny, for good.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. Ten gradients of 100, then 0.1 at each step. The second moment after 10,
# 1,000 and 10,000 steps and the size of the last step, as a multiple of the learning rate (1 in the long run). Seen:
#     Adam, float32: 99.6 37 0.0145, last step 0.83
#     Adam, bfloat16: 100 100 100, last step 0.01
#     Adam, bfloat16, fused: 100 100 100, last step 0.01
#     AdamW, bfloat16: 100 100 100, last step 0.01
#     Adam, bfloat16, 0.99: 956 0.0767 0.0182, last step 0.76
#     constant, float32: 0.00996 0.632 1, last step 1
#     constant, bfloat16: 0.00995 0.5 0.5, last step 1.4
# (bfloat16 has 8 bits: a number and 0.999 of it are less than half of its last bit apart. With 0.99 they are not.
# `constant`: all gradients are 1; the moment stops where 0.001 of them is less than half of its last bit.)
#
# Why it matters: `model.to(torch.bfloat16)` or `set_default_dtype` saves memory, and runs. The first gradients of a
# training are often the largest, and rewards that are found late bring bursts: from then on a learning rate of 1e-4 is
# one of 1e-6, and the plateau looks like a local optimum. No NaN shows it, and a test over some steps neither.
# Expected before: v = 0.999 v + 0.001 g^2 up to 1%, with a memory of some thousand steps, as documented.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch

torch.set_num_threads(1)
RATE = 1e-3


def run(dtype, kind, burst=100.0, later=0.1, **options):
    """Second moment after 10, 1,000 and 10,000 steps, and the last step relative to the learning rate."""
    weight = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer = kind([weight], lr=RATE, **options)
    moments = []
    for step in range(1, 10001):
        with torch.no_grad():
            weight.zero_()  # so that the rounding of the weight itself does not count
        weight.grad = torch.full_like(weight, burst if step <= 10 else later)
        optimizer.step()
        if step in (10, 1000, 10000):
            moments.append(optimizer.state[weight]["exp_avg_sq"][0].item())
    return moments, abs(weight[0].item()) / RATE


seen = {}
for name, dtype, kind, options in (
    ("Adam, float32", torch.float32, torch.optim.Adam, {}),
    ("Adam, bfloat16", torch.bfloat16, torch.optim.Adam, {}),
    ("Adam, bfloat16, fused", torch.bfloat16, torch.optim.Adam, {"fused": True}),
    ("AdamW, bfloat16", torch.bfloat16, torch.optim.AdamW, {}),
    ("Adam, bfloat16, 0.99", torch.bfloat16, torch.optim.Adam, {"betas": (0.9, 0.99)}),
    ("constant, float32", torch.float32, torch.optim.Adam, {"burst": 1.0, "later": 1.0}),
    ("constant, bfloat16", torch.bfloat16, torch.optim.Adam, {"burst": 1.0, "later": 1.0}),
):
    moments, size = seen[name] = run(dtype, kind, **options)
    print(f"{name}: {moments[0]:.3g} {moments[1]:.3g} {moments[2]:.3g}, last step {size:.2g}")
good = 0.5 < seen["Adam, float32"][1] < 1 and abs(seen["constant, float32"][1] - 1) < 0.01
good &= all(seen[name][0][2] == seen[name][0][0] and seen[name][1] < 0.02 for name in list(seen)[1:4])
good &= seen["Adam, bfloat16, 0.99"][0][2] < 0.1 and 1.2 < seen["constant, bfloat16"][1] < 3
sys.exit(0 if good else 1)
PYTHON
