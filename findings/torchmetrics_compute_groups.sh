#!/usr/bin/env bash
# A MetricCollection of TorchMetrics takes two metrics for the same one if their states are equal after the first batch.
# From then on it updates only one of them and reports its state for both, whatever later batches are, and even after
# `reset()`. A first batch without any event is enough: no end of an episode, or no reward. (Not if it is called, as in
# `collection(prediction, target)`: only `update` looks for groups.)
#
# 2026-11-30, torchmetrics 1.9.0, torch 2.13.0 (CPU), numpy 2.4.6. 100 batches; the first has no event. Seen, in a
# collection | with compute_groups=False or alone (the same) | in a collection with the first batch put last:
#     recall of the end of an episode, threshold 1/10: 0.899 | 0.899 | 0.899
#     recall of the end of an episode, threshold 1/2: 0.899 | 0.503 | 0.503
#     error of the reward, mape: 0.493 | 0.493 | 0.493
#     error of the reward, smape: 0.493 | 0.763 | 0.763
#     error of the reward, MinkowskiDistance p=2: 70.3 | 70.3 | 70.3
#     error of the reward, MinkowskiDistance p=8: 2.9 | 3.74 | 3.74
#     recall, threshold 1/2, after reset() and 100 batches that all have events: 0.9 | 0.471 | 0.471
#
# The docstring of MetricCollection names "multiple of the same metric with different parameters" as a use. It describes
# compute groups (on by default) as metrics that "share the same metric state and are therefore only different in their
# compute step". These differ in their update step. It does not say that the values after the first batch decide.
#
# Why it matters: ends of episodes and rewards are rare, and the heads of an agent like DreamerV3 start at exactly zero,
# so an empty first batch is the normal case. A better threshold then shows no effect, and the numbers depend on the
# order of the batches. Nothing warns; each number is in range.
# Expected before: each metric's own value, as the metric alone gives it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryRecall
from torchmetrics.regression import (
    MeanAbsolutePercentageError,
    MinkowskiDistance,
    SymmetricMeanAbsolutePercentageError,
)

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)


def ends(event):
    """Predicted probability that the episode ends, and whether it does: 8 of 64 times, or never."""
    chance, end = torch.rand(64, generator=random) * 0.05, torch.zeros(64, dtype=torch.int)
    if event:
        chance[:8], end[:8] = torch.rand(8, generator=random), 1
    return chance, end


def rewards(event):
    """Predicted and true rewards: from 1 to 2 and predicted too small, or all zero."""
    if not event:
        return torch.zeros(64), torch.zeros(64)
    reward = torch.rand(64, generator=random) + 1
    return reward * torch.rand(64, generator=random), reward


def thresholds():
    return {"threshold 1/10": BinaryRecall(threshold=0.1), "threshold 1/2": BinaryRecall(threshold=0.5)}


def percentages():
    return {"mape": MeanAbsolutePercentageError(), "smape": SymmetricMeanAbsolutePercentageError()}


def distances():
    return {"MinkowskiDistance p=2": MinkowskiDistance(p=2), "MinkowskiDistance p=8": MinkowskiDistance(p=8)}


def update(metrics, batches):
    for prediction, target in batches:
        for metric in metrics:
            metric.update(prediction, target)


def values(make, batches):
    """Values in a collection, in one without groups, and in one that sees the first batch last."""
    collection, last = MetricCollection(make()), MetricCollection(make())
    single = MetricCollection(make(), compute_groups=False)
    alone = make()
    update([collection, single, *alone.values()], batches)
    update([last], batches[1:] + batches[:1])
    seen = [{k: v.item() for k, v in metric.compute().items()} for metric in (collection, single, last)]
    assert seen[1] == {k: metric.compute().item() for k, metric in alone.items()}
    return collection, single, last, seen


print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
good = True
for title, make, draw in (
    ("recall of the end of an episode", thresholds, ends),
    ("error of the reward", percentages, rewards),
    ("error of the reward", distances, rewards),
):
    *collections, (grouped, single, last) = values(make, [draw(event=i > 0) for i in range(100)])
    for name in grouped:
        print(f"{title}, {name}: {grouped[name]:.3g} | {single[name]:.3g} | {last[name]:.3g}")
    one, other = grouped
    good &= abs(grouped[one] / single[one] - 1) < 1e-4 and abs(grouped[other] / single[other] - 1) > 0.1
    good &= all(abs(last[name] / single[name] - 1) < 1e-4 for name in last)
    if make is thresholds:
        kept = collections
for collection in kept:
    collection.reset()
update(kept, [ends(event=True) for _ in range(100)])
after = [collection.compute()["threshold 1/2"].item() for collection in kept]
recalls = " | ".join(f"{value:.3g}" for value in after)
print("recall, threshold 1/2, after reset() and 100 batches that all have events:", recalls)
good &= after[0] - after[1] > 0.2 and after[1] == after[2]
sys.exit(0 if good else 1)
PYTHON
