#!/usr/bin/env bash
# TorchRL's DreamerV3 heads (`two_hot_decode`, `SymExpTwoHot`) decode every logits in float16 to NaN. The bins go up to
# symexp(20) = 4.9e8 and are cast to the logits' dtype: where they exceed 65,504 they become infinite, and the sum of
# each with its mirror image is inf - inf. Under `torch.autocast` with float16 the logits of a linear head are float16.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. The value 3, encoded, as logits. Seen:
#     float32: 3.0000
#     bfloat16: 3.0000
#     float16: nan
#     a linear head under autocast(float16): nan for 4 of 4 inputs
#     the same logits, cast to float32 before: finite for 4 of 4 inputs
# (The finite ones, up to 11.1 of the 20 in symlog space, would do for values up to 65,504.)
#
# Why it matters: on GPUs without bfloat16 float16 is the choice for mixed precision. Rewards and values are NaN from the
# first step; `GradScaler` takes the NaN for an overflow, skips each update and halves its scale, and nothing is raised.
# Expected before: the value, within the precision of float16; the docstring promises to keep the logits' dtype.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torchrl.modules import SymExpTwoHot

head = SymExpTwoHot(255)
logits = (head.encode(torch.tensor([3.0])) + 1e-8).log()
values = {dtype: head.decode(logits.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
for dtype, value in values.items():
    print(f"{str(dtype).removeprefix('torch.')}: {value.item():.4f}")

torch.manual_seed(0)
linear = torch.nn.Linear(8, 255)
with torch.autocast("cpu", dtype=torch.float16):
    logits = linear(torch.randn(4, 8))
assert logits.dtype == torch.float16 and logits.isfinite().all()
lost, kept = head(logits).isnan().sum().item(), head(logits.float()).isfinite().sum().item()
print(f"a linear head under autocast(float16): nan for {lost} of 4 inputs")
print(f"the same logits, cast to float32 before: finite for {kept} of 4 inputs")
right = all(abs(values[dtype].item() - 3) < 0.05 for dtype in (torch.float32, torch.bfloat16))
sys.exit(0 if right and values[torch.float16].isnan().all() and lost == kept == 4 else 1)
PYTHON
