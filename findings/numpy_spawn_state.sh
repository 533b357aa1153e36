#!/usr/bin/env bash
# The state of a NumPy generator does not hold how many children it has spawned. After `generator.bit_generator.state =
# saved`, as in a run that is resumed, `spawn` returns the children of the run's start once more; from another seed they
# are those of that seed, whatever the state. A pickled generator goes on.
#
# 2026-11-30, numpy 2.4.6. In each epoch a number is drawn from the generator, and it spawns two others for the workers.
# After three of five epochs the run is resumed. The numbers of the generator and the first ones of worker 0. Seen:
#     uninterrupted: 0.637 0.270 0.041 0.017 0.813 worker 0.943 0.838 0.653 0.115 0.817
#     by state: 0.637 0.270 0.041 0.017 0.813 worker 0.943 0.838 0.653 0.943 0.838
#     by state, seed 1: 0.637 0.270 0.041 0.017 0.813 worker 0.943 0.838 0.653 0.699 0.233
#     by pickle: 0.637 0.270 0.041 0.017 0.813 worker 0.943 0.838 0.653 0.115 0.817
# (The children come from `bit_generator.seed_seq` and its `n_children_spawned`, which `state` leaves out.)
#
# Why it matters: the state is a dict of integers, which checkpoints hold in JSON, beside torch's state. The generator
# itself does go on, so that a test of resuming that looks at it passes. Workers, envs and augmentations get the numbers
# of the first epochs again, after each resume: a run that is stopped often sees the same few epochs over and over.
# Expected before: "new independent child generators", as the docstring of `spawn` says, also of earlier ones.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile numpy==2.4.6
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import json
import pickle
import sys

import numpy as np


def epochs(generator, count):
    """The generator's number and that of the first of two workers, for each epoch."""
    return [(generator.random(), [worker.random() for worker in generator.spawn(2)][0]) for _ in range(count)]


def by_state(generator, seed):
    state = json.loads(json.dumps(generator.bit_generator.state))
    resumed = np.random.default_rng(seed)
    resumed.bit_generator.state = state
    return resumed


plain = epochs(np.random.default_rng(0), 5)
rows = {"uninterrupted": plain}
for name, resume in (
    ("by state", lambda generator: by_state(generator, 0)),
    ("by state, seed 1", lambda generator: by_state(generator, 1)),
    ("by pickle", lambda generator: pickle.loads(pickle.dumps(generator))),
):
    generator = np.random.default_rng(0)
    rows[name] = epochs(generator, 3)
    rows[name] += epochs(resume(generator), 2)
for name, row in rows.items():
    print(f"{name}:", *(f"{own:.3f}" for own, _ in row), "worker", *(f"{worker:.3f}" for _, worker in row))
workers = {name: [worker for _, worker in row] for name, row in rows.items()}
good = all([own for own, _ in row] == [own for own, _ in plain] for row in rows.values())
good &= workers["by state"][3:] == workers["uninterrupted"][:2]
good &= workers["by state, seed 1"][3:] == [worker for _, worker in epochs(np.random.default_rng(1), 2)]
good &= workers["by pickle"] == workers["uninterrupted"]
sys.exit(0 if good else 1)
PYTHON
