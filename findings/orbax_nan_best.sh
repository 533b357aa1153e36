#!/usr/bin/env bash
# One NaN metric makes orbax delete the best checkpoint. `CheckpointManager` with `best_fn` sorts the checkpoints by their
# metric and keeps the last ones. Nothing is smaller than NaN and NaN is smaller than nothing, so that a NaN stays where
# it was, at the end, and counts as the best, with `best_mode` "max" and "min" alike. No error or warning.
#
# 2026-11-30, orbax-checkpoint 0.12.8, jax 0.10.2 (CPU), numpy 2.4.6. Returns of the saved steps 0, 1, ..; steps that are
# left on the disk and `best_step()`. Seen:
#     returns 100 90 80, keep 1, max: steps 0, best 0
#     returns 100 nan, keep 1, max: steps 1, best 1
#     returns 100 nan 80, keep 1, max: steps 2, best 2
#     returns 1 nan, keep 1, min: steps 1, best 1
#     returns 100 90 nan 80, keep 2, max: steps 2 3, best 3
#     returns 100 nan 80, keep all, max: steps 0 1 2, best 2
#     returns 100 nan 80, keep 1, max, NaN as -inf in best_fn: steps 0, best 0
# (The docstrings of `best_fn`, `best_step`, `BestN` do not mention NaN.)
#
# Why it matters: a return is NaN as soon as one evaluation finishes no episode (the mean of nothing), or once a run has
# diverged, which is when one wants the best checkpoint from before. It is gone; what is restored as the best is the
# diverged one, or a worse one from after. Reported best returns are too low without a hint.
# Expected before: the checkpoint with the best finite metric is kept and is `best_step()`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import math
import sys
import tempfile
from importlib.metadata import version

import numpy as np
import orbax.checkpoint as ocp

print(*(f"{name} {version(name)}" for name in ("orbax-checkpoint", "jax", "numpy")), sep=", ")
NAN = math.nan


def run(returns, keep, mode, finite=False):
    """Steps on the disk and the best one, after one checkpoint for each return."""

    def best(metrics):
        value = metrics["return"]
        return -math.inf if finite and math.isnan(value) else value

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, best_fn=best, best_mode=mode)
    with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder, options=options) as manager:
        for step, value in enumerate(returns):
            weights = {"step": np.array([step])}
            manager.save(step, args=ocp.args.StandardSave(weights), metrics={"return": float(value)})
            manager.wait_until_finished()
        left, chosen = sorted(manager.all_steps()), manager.best_step()
        assert manager.restore(chosen)["step"][0] == chosen
    ending = ", NaN as -inf in best_fn" if finite else ""
    print(f"returns {' '.join(map(str, returns))}, keep {keep or 'all'}, {mode}{ending}: steps", *left, end="")
    print(f", best {chosen}")
    return left, chosen


seen = [
    run([100, 90, 80], 1, "max"),
    run([100, NAN], 1, "max"),
    run([100, NAN, 80], 1, "max"),
    run([1, NAN], 1, "min"),
    run([100, 90, NAN, 80], 2, "max"),
    run([100, NAN, 80], None, "max"),
    run([100, NAN, 80], 1, "max", finite=True),
]
expected = [([0], 0), ([1], 1), ([2], 2), ([1], 1), ([2, 3], 3), ([0, 1, 2], 2), ([0], 0)]
sys.exit(0 if seen == expected else 1)
PYTHON
