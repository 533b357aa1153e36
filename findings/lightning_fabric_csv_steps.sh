#!/usr/bin/env bash
# Lightning Fabric's CSVLogger numbers the points 0 to 99 over and over. Without a step of the caller, `fabric.log` and
# `fabric.log_dict` take the number of points that wait in memory, and each flush to disk (every 100) empties that
# list. If the caller gives the steps, the flush comes when (step + 1) is a multiple of 100: never if all are even.
#
# 2026-11-30, lightning-fabric 2.6.6, torch 2.13.0 (CPU), tensorboard 2.21.0, numpy 2.4.6. Seen:
#     250 times fabric.log, CSVLogger: 250 rows, 100 different steps, the last one is 49
#     values at step 49: 49 149 249
#     250 times fabric.log, TensorBoardLogger: 250 points, 1 different step
#     with step=0, 1, ...: CSVLogger 250 different steps, TensorBoardLogger 250
#     killed after 10,000 points, steps 1, 2, 3, ...: 9,999 rows on disk
#     killed after 10,000 points, steps 2, 4, 6, ...: 0 rows on disk
#
# The docstring of `Fabric.log` says of `step`: "Most Logger implementations auto-increment the step value by one with
# every log call." These two are Fabric's own, and none does. That of CSVLogger: "How often to flush logs to disk
# (defaults to every 100 steps)".
#
# Why it matters: the file of a long training has many values for each of 100 steps. A curve by step is a tangle, a mean
# by step (what seaborn draws, with a confidence band) averages the start of the training with its end, and a join with
# other metrics by step keeps wrong pairs. With an action repeat of 2 or 4 all steps of the environment are even: a run
# that is killed, by the queue's time limit say, leaves no metrics at all.
# Expected before: steps 0 to 249, and at most 100 points lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 lightning-fabric==2.6.6 tensorboard==2.21.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import csv
import os
import sys
from importlib.metadata import version

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

POINTS = 250


def rows(logger):
    path = os.path.join(logger.log_dir, "metrics.csv")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def points(logger):
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def log(given):
    """Log the values 0 to 249 in two loggers, with or without a step, and read them back."""
    loggers = [CSVLogger("csv"), TensorBoardLogger("board")]
    fabric = Fabric(accelerator="cpu", devices=1, loggers=loggers)
    for i in range(POINTS):
        fabric.log("loss", float(i), step=i if given else None)
    for logger in loggers:
        logger.finalize("success")
    return rows(loggers[0]), points(loggers[1])


def killed(stride):
    """Rows on disk of a process that logs 10,000 points and ends without a goodbye."""
    logger = CSVLogger("killed", name=str(stride), version=0)
    child = os.fork()
    if child == 0:
        fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
        for i in range(1, 10001):
            fabric.log("loss", float(i), step=stride * i)
        os._exit(1)
    os.waitpid(child, 0)
    return len(rows(logger))


print("lightning-fabric", version("lightning-fabric"), "torch", torch.__version__)
table, board = log(given=False)
different = len({step for step, _ in table})
counts = f"{len(table)} rows, {different} different steps, the last one is {table[-1][0]}"
print(f"{POINTS} times fabric.log, CSVLogger: {counts}")
again = [value for step, value in table if step == 49]
print("values at step 49:", *(f"{value:g}" for value in again))
alone = len({step for step, _ in board})
print(f"{POINTS} times fabric.log, TensorBoardLogger: {len(board)} points, {alone} different step")
given = [len({step for step, _ in found}) for found in log(given=True)]
print(f"with step=0, 1, ...: CSVLogger {given[0]} different steps, TensorBoardLogger {given[1]}")
odd, even = killed(1), killed(2)
print(f"killed after 10,000 points, steps 1, 2, 3, ...: {odd:,} rows on disk")
print(f"killed after 10,000 points, steps 2, 4, 6, ...: {even:,} rows on disk")
good = [value for _, value in table] == list(range(POINTS)) and different == 100 and again == [49, 149, 249]
good &= len(board) == POINTS and alone == 1 and given == [POINTS, POINTS] and odd == 9999 and even == 0
sys.exit(0 if good else 1)
PYTHON
