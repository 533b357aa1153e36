#!/usr/bin/env bash
# torchrl's TanhDelta, and its TanhNormal with `tanh_loc=True`, add the middle of the action range to the network's
# output BEFORE the tanh. The range is set after it, so the middle counts twice: with actions from 0 to 512, as in
# PushT, every action is 512, and hardly a gradient is left.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. Actions for the outputs -1, 0 and 1:
# as expected, TanhDelta, TanhNormal with tanh_loc=True and without. Then an actor of one number that starts at the
# output 1 and climbs -(action - middle)^2 with Adam, with TanhDelta and with TanhNormal. Seen:
#     -1..1:  -0.76 0.00 0.76  -0.76 0.00 0.76  -0.76 0.00 0.76  -0.76 0.00 0.76
#     0..1:  0.12 0.50 0.88  0.27 0.73 0.95  0.27 0.73 0.95  0.12 0.50 0.88
#     0..10:  1.19 5.00 8.81  10.00 10.00 10.00  10.00 10.00 10.00  1.19 5.00 8.81
#     0..512:  61.03 256.00 450.97  512.00 512.00 512.00  512.00 512.00 512.00  61.03 256.00 450.97
#     0..512, after 1,000 steps of Adam: TanhDelta 512.00, TanhNormal 256.00
# (Expected: low + (high - low) (tanh(output) + 1) / 2. The spread of TanhNormal is 1e-4, its sample deterministic.)
#
# What the docstrings say: TanhDelta "implements a Tanh transformed_in Delta distribution" with "minimum value" and
# "maximum value of the distribution"; TanhNormal: "the location is computed according to loc = tanh(loc / upscale) *
# upscale" if `tanh_loc`. No shift is mentioned.
#
# Why it matters: TanhDelta is the actor for deterministic policies, with `low` and `high` of the action spec. With a
# range that is not symmetric, the policy starts off the middle (CarRacing: gas and brake at 73%), gradients are uneven,
# and with a middle far from 0 it is stuck at one end. All actions are valid, so it looks like a hard task. With the
# default range -1..1, on which one tests, all is right. Expected before: an output of 0 is the middle of the range.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from torchrl.modules import TanhDelta, TanhNormal

torch.set_num_threads(1)
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")
outputs = torch.tensor([[-1.0], [0.0], [1.0]])


def climb(policy, low, high):
    """The action after 1,000 steps of Adam on -(action - middle)^2, from the output 1."""
    output = torch.nn.Parameter(torch.ones(1, 1))
    optimizer = torch.optim.Adam([output], lr=1e-2)
    for _ in range(1000):
        action = policy(output, low=low, high=high).deterministic_sample
        optimizer.zero_grad()
        ((action - (low + high) / 2) / (high - low)).square().sum().backward()
        optimizer.step()
    return action.item()


right = True
for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 10.0), (0.0, 512.0)):
    expected = low + (high - low) * (outputs.tanh() + 1) / 2
    delta = TanhDelta(outputs, low=low, high=high).deterministic_sample
    scaled = TanhNormal(outputs, 1e-4, low=low, high=high, tanh_loc=True).deterministic_sample
    plain = TanhNormal(outputs, 1e-4, low=low, high=high).deterministic_sample
    columns = (" ".join(f"{value:.2f}" for value in row.flatten().tolist()) for row in (expected, delta, scaled, plain))
    print(f"{low:g}..{high:g}:", *columns, sep="  ")
    right &= torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)
    shifted = low + (high - low) * ((outputs + (low + high) / 2).tanh() + 1) / 2
    right &= torch.allclose(delta, shifted, rtol=1e-3, atol=1e-3)
    right &= torch.allclose(scaled, shifted, rtol=2e-2, atol=1e-2)
    right &= bool((delta > 0.99 * high).all()) == (high >= 10)
ends = climb(TanhDelta, 0.0, 512.0), climb(lambda output, **limits: TanhNormal(output, 1e-4, **limits), 0.0, 512.0)
print(f"0..512, after 1,000 steps of Adam: TanhDelta {ends[0]:.2f}, TanhNormal {ends[1]:.2f}")
right &= abs(ends[0] - 512) < 1e-3 and abs(ends[1] - 256) < 1
sys.exit(0 if right else 1)
PYTHON
