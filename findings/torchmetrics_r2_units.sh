#!/usr/bin/env bash
# torchmetrics' R2Score depends on the unit of the targets. It returns 1 where the sum of squared errors is below 1e-4,
# however bad the prediction, and 0 where only that of the targets is. Far from zero it loses the variance in `sum(y^2)
# - sum(y)^2 / n`, which it computes in float32; ExplainedVariance does too.
#
# 2026-11-30, torchmetrics 1.9.0, torch 2.13.0 (CPU), scikit-learn 1.9.1, numpy 2.4.6. 1,000 targets, in batches of 50,
# with predictions that explain three quarters of their variance and with predictions that have nothing to do with them.
# Seen:
#     0 + 1 x: R2Score 0.73, ExplainedVariance 0.73, scikit-learn 0.73; unrelated: -1.12, -1.12, -1.12
#     0 + 0.001 x: R2Score 0.73, ExplainedVariance 0.73, scikit-learn 0.73; unrelated: -1.12, -1.12, -1.12
#     0 + 0.00025 x: R2Score 1.00, ExplainedVariance 0.73, scikit-learn 0.73; unrelated: 0.00, -1.12, -1.12
#     0 + 0.0001 x: R2Score 1.00, ExplainedVariance 0.73, scikit-learn 0.73; unrelated: 1.00, -1.12, -1.12
#     100 + 1 x: R2Score 0.73, ExplainedVariance 0.73, scikit-learn 0.73; unrelated: -1.11, -1.11, -1.12
#     1000 + 1 x: R2Score 0.74, ExplainedVariance 0.74, scikit-learn 0.73; unrelated: -0.97, -1.02, -1.12
#     3000 + 1 x: R2Score 0.74, ExplainedVariance 0.87, scikit-learn 0.73; unrelated: -0.97, -0.01, -1.12
#     10000 + 1 x: R2Score 0.98, ExplainedVariance 0.98, scikit-learn 0.73; unrelated: 0.88, 0.87, -1.12
# (One and the same data in each row, up to a factor and an offset, on which R2 does not depend. No warning is printed.)
#
# Why it matters: R2 of a probe from latents to states tells whether a world model knows the state. Changes from step to
# step, positions in meters and forces have other scales: the small ones come out perfect for a model that knows
# nothing, the more so the fewer the samples, and raise the mean over targets. Times and step counts lie far from zero.
# Expected before: as scikit-learn's `r2_score`; both are documented as 1 - SS_res / SS_tot.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torchmetrics==1.9.0 torch==2.13.0 scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import numpy as np
import torch
from sklearn.metrics import r2_score
from torchmetrics import ExplainedVariance, R2Score

torch.set_num_threads(1)


def score(metric, prediction, target):
    for part in range(0, len(target), 50):
        metric.update(prediction[part:part + 50], target[part:part + 50])
    return metric.compute().item()


generator = np.random.default_rng(0)
base, error, other = generator.normal(size=(3, 1000))
seen = []
for factor, offset in ((1, 0), (1e-3, 0), (2.5e-4, 0), (1e-4, 0), (1, 100), (1, 1000), (1, 3000), (1, 10000)):
    target = torch.tensor(offset + factor * base).float()
    row = []
    for guess in (base + 0.5 * error, other):
        prediction = torch.tensor(offset + factor * guess).float()
        row += [score(R2Score(), prediction, target), score(ExplainedVariance(), prediction, target)]
        row.append(r2_score(target.double(), prediction.double()))
    seen.append(row)
    names = "R2Score {:.2f}, ExplainedVariance {:.2f}, scikit-learn {:.2f}; unrelated: {:.2f}, {:.2f}, {:.2f}"
    print(f"{offset} + {factor:g} x:", names.format(*row))
right = all(abs(row[2] - seen[0][2]) < 0.01 and abs(row[5] - seen[0][5]) < 0.01 for row in seen)
small, far = seen[3], seen[-1]
good = right and small[0] == small[3] == 1 and seen[2][3] == 0
good &= abs(far[0] - far[2]) > 0.1 and abs(seen[0][0] - seen[0][2]) < 1e-3
sys.exit(0 if good else 1)
PYTHON
