#!/usr/bin/env bash
# sheeprl's wrapper of dm_control seeds the first episode alone. Each `reset` without a seed, i.e. that of every later
# episode of a run, gives the task a new generator that the operating system seeds: its start is another one each time.
#
# 2026-11-30, sheeprl 0.8.4, dm_control 1.0.50, mujoco 3.17.0, gymnasium 1.4.0, torch 2.13.0 (CPU), numpy 2.4.6. Two envs
# of walker walk, both made with seed=5 and reset with seed=5, then reset twice more. First observations equal? Seen:
#     sheeprl's DMCWrapper: True False False
#     a dm_control task with random=5: True True True
# (`seed` of the constructor seeds the spaces only. Nothing else draws from the generator.)
#
# Why it matters: the `seed` of a run does not repeat it, not even on one thread of one machine, and what looks like the
# noise of a GPU is that of other episodes. Two methods on one seed share the start of their first episode alone.
# Expected before: as gymnasium's `Env.reset` says: without a seed, an env that has a generator goes on with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile sheeprl==0.8.4 dm_control==1.0.50 mujoco==3.17.0 gymnasium==1.4.0 torch==2.13.0 numpy==2.4.6
MUJOCO_GL=disabled "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import numpy as np
from dm_control import suite
from sheeprl.envs.dmc import DMCWrapper


def wrapped():
    env = DMCWrapper("walker", "walk", from_pixels=False, from_vectors=True, seed=5)
    return [env.reset(**seed)[0]["state"] for seed in ({"seed": 5}, {}, {})]


def own():
    env = suite.load("walker", "walk", task_kwargs={"random": 5})
    return [np.concatenate([np.ravel(part) for part in env.reset().observation.values()]) for _ in range(3)]


seen = {}
for name, starts in (("sheeprl's DMCWrapper", wrapped), ("a dm_control task with random=5", own)):
    seen[name] = [bool((a == b).all()) for a, b in zip(starts(), starts())]
    print(f"{name}:", *seen[name])
sys.exit(0 if list(seen.values()) == [[True, False, False], [True, True, True]] else 1)
PYTHON
