#!/usr/bin/env bash
# jumanji's dm_env wrapper never starts a new episode in `step`. Its docstring says that a step after the LAST one does,
# and that the action is then ignored. Instead the finished state is stepped on: each step is LAST again, with a reward.
#
# 2026-11-30, jumanji 1.1.2, dm-env 1.6, jax 0.10.2, numpy 2.4.6. A loop that only calls `step`, as dm_env allows, with
# 250 random legal actions; the types of the time steps. Episodes of both tasks end after 100 steps at most. Seen:
#     Maze-v0: FIRST 0, MID 99, LAST 151
#     Cleaner-v0: FIRST 0, MID 99, LAST 151; reward in LAST steps after the first: -51
#     Maze-v0, `reset` called after each LAST: FIRST 2, MID 246, LAST 2
#
# What the docstring of `JumanjiToDMEnvWrapper.step` says: if the last time step was LAST, the call "will start a new
# sequence and `action` will be ignored". The same is said of a call before the first `reset`. It is dm_env's contract.
#
# Why it matters: replay writers and agents for dm_env that rely on this contract see one episode, then episodes of one
# step without end, from a state that cannot occur. Nothing is raised, so the mean episode return is one of such steps.
# Expected before: FIRST after LAST.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile jumanji==1.1.2 dm-env==1.6 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
    gymnasium==1.4.0 2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import jax
import jumanji
import numpy as np
from jumanji.wrappers import JumanjiToDMEnvWrapper

STEPS = 250
print(*(f"{name} {version(name)}" for name in ("jumanji", "dm-env", "jax", "numpy")), sep=", ")


def play(name, reset):
    """Number of FIRST, MID and LAST steps, and the rewards of LAST steps after the first of them."""
    env = JumanjiToDMEnvWrapper(jumanji.make(name), key=jax.random.PRNGKey(0))
    draw = np.random.default_rng(0)
    timestep, counts, extra = env.reset(), [0, 0, 0], 0.0
    for _ in range(STEPS):
        if reset and timestep.last():
            timestep = env.reset()
        else:
            mask = np.asarray(timestep.observation.action_mask)
            legal = [draw.choice(np.flatnonzero(row)) if row.any() else 0 for row in np.atleast_2d(mask)]
            timestep = env.step(np.array(legal, np.int32) if mask.ndim > 1 else np.int32(legal[0]))
            extra += float(timestep.reward) if timestep.last() and counts[2] else 0.0
        counts[int(timestep.step_type)] += 1
    return counts, extra


maze, _ = play("Maze-v0", False)
cleaner, extra = play("Cleaner-v0", False)
good, _ = play("Maze-v0", True)
print("Maze-v0: FIRST {}, MID {}, LAST {}".format(*maze))
print("Cleaner-v0: FIRST {}, MID {}, LAST {}; reward in LAST steps after the first: {:.4g}".format(*cleaner, extra))
print("Maze-v0, `reset` called after each LAST: FIRST {}, MID {}, LAST {}".format(*good))
right = maze[0] == 0 and maze[2] > 100 and cleaner[0] == 0 and cleaner[2] > 100 and extra < -10
sys.exit(0 if right and good[0] >= 2 and good[2] <= 4 else 1)
PYTHON
