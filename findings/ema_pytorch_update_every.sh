#!/usr/bin/env bash
# The post-hoc EMA of ema-pytorch averages over another window than asked for, unless it is updated at each step. The
# decay of Karras et al. depends on the step, and is the decay for one step; with `update_every` n it is still that,
# but applied only at each n-th. The average forgets n times too slowly, and the weights that combine the checkpoints
# to one of another width assume the right windows.
#
# 2026-11-30, ema-pytorch 0.8.3, torch 2.13.0 (CPU), numpy 2.4.6. A model whose weights are the time, from 0 to 1 in
# 10,000 steps, and its square: their averages tell the mean and the width of the window. sigma_rel is that width by
# definition. Checkpoints at each 1,000 steps, in float64. Seen:
#     update_every 1
#         kept, sigma_rel 0.05: mean 0.947 (right: 0.947), width 0.050
#         kept, sigma_rel 0.28: mean 0.539 (right: 0.539), width 0.280
#         synthesized, sigma_rel 0.15: mean 0.820 (right: 0.820), width 0.150
#     update_every 10
#         kept, sigma_rel 0.05: mean 0.642 (right: 0.947), width 0.246
#         kept, sigma_rel 0.28: mean 0.105 (right: 0.539), width 0.210
#         synthesized, sigma_rel 0.15: mean 0.242 (right: 0.820), width 0.317
#     update_every 100 (default)
#         kept, sigma_rel 0.05: mean 0.151 (right: 0.947), width 0.242
#         kept, sigma_rel 0.28: mean 0.012 (right: 0.539), width 0.075
#         synthesized, sigma_rel 0.15: mean 0.041 (right: 0.820), width 0.142
# (With (1 - 1 / t) ** (1 + gamma) at each n-th step the weight of time t goes as t ** ((1 + gamma) / n - 1), not as
# t ** gamma. 10 is what the README uses.)
#
# Documentation: "how often to actually update, to save on compute", nothing on the width.
#
# Why it matters: this EMA is taken for diffusion world models and their like. With the default the "EMA weights" are
# those of the first percents of the training, so they look worse than the last ones at any width. A search over
# sigma_rel, which is the point of it, compares averages that are none of those named.
# Expected before: the same window for each `update_every` that is short beside it, just more coarsely sampled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 ema-pytorch==0.8.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
import tempfile

import torch
from ema_pytorch import PostHocEMA

torch.set_num_threads(1)
STEPS, WIDTHS, WANTED = 10000, (0.05, 0.28), 0.15


class Clock(torch.nn.Module):
    """A model with two weights: the time and its square, so that their averages tell mean and width of the window."""

    def __init__(self):
        super().__init__()
        self.time = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))


def window(average):
    mean, square = average.ema_model.time.tolist()
    return mean, max(square - mean * mean, 0.0) ** 0.5


def mean_of(gamma):
    """Mean of the weighting t ** gamma of the paper, on [0, 1]; its standard deviation is sigma_rel by definition."""
    return (gamma + 1) / (gamma + 2)


seen = {}
for every in (1, 10, None):
    model = Clock()
    with tempfile.TemporaryDirectory() as folder:
        averages = PostHocEMA(
            model,
            sigma_rels=WIDTHS,
            checkpoint_every_num_steps=1000,
            checkpoint_folder=folder,
            checkpoint_dtype=torch.float64,
            **({} if every is None else {"update_every": every}),
        )
        for step in range(1, STEPS + 1):
            with torch.no_grad():
                model.time[:] = torch.tensor([step / STEPS, (step / STEPS) ** 2])
            averages.update()
        pairs = [*zip(WIDTHS, averages.ema_models), (WANTED, averages.synthesize_ema_model(sigma_rel=WANTED))]
    print("update_every", "100 (default)" if every is None else every)
    for width, average in pairs:
        mean, deviation = seen[every, width] = window(average)
        kind = "synthesized" if width == WANTED else "kept"
        right = mean_of(average.gamma)
        print(f"    {kind}, sigma_rel {width}: mean {mean:.3f} (right: {right:.3f}), width {deviation:.3f}")
        seen[every, width] += (right,)
good = all(abs(seen[1, w][0] - seen[1, w][2]) < 0.005 and abs(seen[1, w][1] - w) < 0.005 for w in (*WIDTHS, WANTED))
good &= 0.55 < seen[10, 0.05][0] < 0.75 and seen[10, 0.05][1] > 0.2 and seen[10, WANTED][0] < 0.4
good &= seen[None, 0.05][0] < 0.25 and seen[None, 0.28][0] < 0.05 and seen[None, WANTED][0] < 0.1
sys.exit(0 if good else 1)
PYTHON
