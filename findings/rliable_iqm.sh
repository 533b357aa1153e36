#!/usr/bin/env bash
# rliable's interquartile mean is not that of the middle half unless four divides the number of scores: it cuts int(n / 4)
# of them at each end, none of three, one of seven. So the IQM of three runs of a task is their mean, and between
# multiples of four more runs make an agent look worse that has failed seeds.
#
# 2026-11-30, rliable 1.2.0, scipy 1.17.1, numpy 2.4.6. Runs of one task end at 900, three of ten at 100. The expected
# `metrics.aggregate_iqm` for a number of runs, exactly (a sum over how many fail), the scores that it is the mean of,
# and the expected mean of the middle half where a score that a quartile divides counts in part. Seen:
#     3 runs: 660, the mean of 3 (100%); with weights 694
#     4 runs: 727, the mean of 2 (50%); with weights 727
#     5 runs: 722, the mean of 3 (60%); with weights 727
#     7 runs: 711, the mean of 5 (71%); with weights 745
#     8 runs: 758, the mean of 4 (50%); with weights 758
#     11 runs: 736, the mean of 7 (64%); with weights 767
#     12 runs: 773, the mean of 6 (50%); with weights 773
#     100 runs: 815, the mean of 50 (50%); with weights 815
#     100, 900, 900: 633; with weights 767
# (scipy's `trim_mean`, which does it, says so; rliable does not. Over six tasks with five runs it cuts 7 of 30.)
#
# Why it matters: curves and tables for a task show the IQM of three or five seeds. A failed seed, against which it is
# chosen, counts in full with three; one method with 7 and with 8 seeds differs from itself by 47 points (13 with weights).
# Expected before: "performance on middle 50% of combined runs", as its README says, for any number of runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile --no-deps rliable==1.2.0 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys

import numpy as np
from rliable import metrics

GOOD, BAD, FAIL = 900.0, 100.0, 0.3


def weighted(scores):
    """The mean of the middle half, where a score that a quartile divides counts in part."""
    edges = np.arange(len(scores) + 1).clip(len(scores) / 4, len(scores) * 3 / 4)
    return np.average(np.sort(scores, axis=None), weights=np.diff(edges))


def expected(estimate, runs):
    total = 0.0
    for failed in range(runs + 1):
        scores = np.array([BAD] * failed + [GOOD] * (runs - failed))[:, None]
        total += math.comb(runs, failed) * FAIL**failed * (1 - FAIL) ** (runs - failed) * estimate(scores)
    return total


def used(runs):
    """How many of the scores the result depends on."""
    scores = np.arange(runs, dtype=float)[:, None] ** 2
    moved = scores + 0.1 * np.eye(runs)[:, :, None]
    return sum(metrics.aggregate_iqm(each) != metrics.aggregate_iqm(scores) for each in moved)


seen = {}
for runs in (3, 4, 5, 7, 8, 11, 12, 100):
    seen[runs] = expected(metrics.aggregate_iqm, runs)
    share = f"the mean of {used(runs)} ({used(runs) / runs:.0%})"
    print(f"{runs} runs: {seen[runs]:.0f}, {share}; with weights {expected(weighted, runs):.0f}")
three = np.array([100.0, 900.0, 900.0])[:, None]
print(f"100, 900, 900: {metrics.aggregate_iqm(three):.0f}; with weights {weighted(three):.0f}")
mean = FAIL * BAD + (1 - FAIL) * GOOD
good = math.isclose(seen[3], mean) and seen[4] > seen[5] > seen[7] and [used(runs) for runs in (3, 5, 7)] == [3, 3, 5]
sys.exit(0 if good else 1)
PYTHON
