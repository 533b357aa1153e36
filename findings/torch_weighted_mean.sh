#!/usr/bin/env bash
# With `weight` and the default reduction, `F.mse_loss` and `F.l1_loss` divide by the sum of the weights, `F.huber_loss`
# by the number of elements. Weights that are all 0.1 do nothing in the first two and make the third a tenth.
#
# 2026-11-30, torch 2.13.0 (CPU), numpy 2.4.6. 100,000 errors from a normal distribution; the loss with weights relative
# to the loss without, and whether it is the mean of what `reduction="none"` returns. "priorities": steps drawn by
# priority with weights p ** -0.4, divided by the largest. Seen:
#     all weights 0.1: mse_loss 1.00, l1_loss 1.00, huber_loss 0.10
#     all weights 3: mse_loss 1.00, l1_loss 1.00, huber_loss 3.00
#     half of the steps masked: mse_loss 1.00, l1_loss 1.00, huber_loss 0.50
#     priorities: mse_loss 1.00, l1_loss 1.00, huber_loss 0.09
#     the mean of reduction="none": mse_loss False, l1_loss False, huber_loss True
#
# Why it matters: importance weights of a prioritized replay are divided by their maximum so that they "only scale the
# update downwards". With one loss they do, here by a factor of ten, with the other two their size cancels: who swaps a
# squared error for a Huber loss changes the step size too. A weight for one term of a sum of losses, or for the steps
# of a sequence that gets shorter, is lost in the first two.
# Expected before: the mean of the weighted errors in all three, as "the mean of the output is taken" says for each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
COUNT = 100_000
LOSSES = (F.mse_loss, F.l1_loss, F.huber_loss)
errors, zeros = torch.randn(COUNT), torch.zeros(COUNT)
priorities = torch.rand(COUNT) ** 3 + 0.001
drawn = priorities[torch.multinomial(priorities, COUNT, replacement=True)] ** -0.4
cases = {
    "all weights 0.1": torch.full((COUNT,), 0.1),
    "all weights 3": torch.full((COUNT,), 3.0),
    "half of the steps masked": (torch.arange(COUNT) % 2).double(),
    "priorities": drawn / drawn.max(),
}
seen = []
for name, weight in cases.items():
    row = [(loss(errors, zeros, weight=weight) / loss(errors, zeros)).item() for loss in LOSSES]
    seen.append([round(value, 1) for value in row])
    print(f"{name}:", ", ".join(f"{loss.__name__} {value:.2f}" for loss, value in zip(LOSSES, row)))
weight = cases["priorities"]
parts = [loss(errors, zeros, weight=weight, reduction="none") for loss in LOSSES]
means = [torch.allclose(loss(errors, zeros, weight=weight), part.mean()) for loss, part in zip(LOSSES, parts)]
print('the mean of reduction="none":', ", ".join(f"{loss.__name__} {mean}" for loss, mean in zip(LOSSES, means)))
good = seen == [[1, 1, 0.1], [1, 1, 3], [1, 1, 0.5], [1, 1, 0.1]] and means == [False, False, True]
sys.exit(0 if good else 1)
PYTHON
