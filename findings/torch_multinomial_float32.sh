#!/usr/bin/env bash
# `torch.multinomial(weights, n, replacement=True)` on a CPU adds up float32 weights one after the other in float32. In a
# replay of a million transitions the sum is soon so large that a small weight is rounded to a multiple of its last bit:
# where a transition lies decides whether it is drawn too often, too rarely or never. Weights in float64 come out right.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. Priorities in random order: half of them between 0.5 and 1.5, half 0.005.
# How often the small ones of each tenth of the buffer are drawn, relative to their share. Seen:
#     10000 in float32: 1.00 0.99 1.01 1.01 0.97 1.01 0.96 1.00 0.97 0.97
#     200000 in float32: 0.95 1.07 1.15 0.90 0.79 0.79 1.12 1.54 1.54 1.57
#     1000000 in float32: 1.00 1.38 0.96 0.00 0.00 0.00 0.00 0.00 0.00 0.00
#     1000000 in float64: 1.00 1.02 1.00 0.99 1.02 1.02 0.97 1.01 1.02 1.00
# (From a sum of 131,072 on, float32 has steps of 1/64, and 0.005 is less than half of one. One draw, or draws without
# replacement, go another way, without a sum. `WeightedRandomSampler` keeps its weights in float64.)
#
# Why it matters: prioritized replay draws its batch so. The smallest priority is there to keep transitions with small
# errors in the data; from most of the buffer they are never drawn. It goes by position, so that a ring buffer leaves out
# one age now and another one later, and importance weights, which are computed from the priorities, do not correct it.
# With 10,000 transitions, as in a test, all is right.
# Expected before: each with the probability of its weight, up to some 1e-4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
DRAWS = 6_000_000


def ratios(count, dtype):
    """Draws of the small weights of each tenth, relative to their share of the sum."""
    weights = torch.rand(count, dtype=torch.float64) + 0.5
    small = torch.rand(count) < 0.5
    weights[small] = 0.005
    weights = weights.to(dtype)
    drawn = torch.zeros(count)
    for _ in range(6):
        drawn += torch.multinomial(weights, DRAWS // 6, replacement=True).bincount(minlength=count)
    share = weights.double() / weights.double().sum() * DRAWS
    tenths = small.view(10, -1)
    return [(drawn.view(10, -1)[i][tenths[i]].sum() / share.view(10, -1)[i][tenths[i]].sum()).item() for i in range(10)]


seen = {}
for count, dtype in ((10000, "float32"), (200000, "float32"), (1000000, "float32"), (1000000, "float64")):
    seen[count, dtype] = row = ratios(count, getattr(torch, dtype))
    print(f"{count} in {dtype}:", " ".join(f"{value:.2f}" for value in row))
wrong = seen[1000000, "float32"]
right = seen[10000, "float32"] + seen[1000000, "float64"]
sys.exit(0 if max(wrong[4:]) == 0 and max(wrong) > 1.3 and max(abs(value - 1) for value in right) < 0.15 else 1)
PYTHON
