#!/usr/bin/env bash
# Meta-World loses training goals when a checkpoint of its ML environments is loaded. Each environment looks up its own
# part by an id, but the id is the class and "None": all environments of a task take the part of the first one, with its
# goals. Those of the others are gone for the rest of the training.
#
# 2026-11-30, metaworld 3.1.1, gymnasium 1.4.0, mujoco 3.3.0, numpy 2.4.6. Training environments are made, a checkpoint
# is taken with `call("get_checkpoint")` and loaded again with `call("load_checkpoint", ...)`. Seen:
#     ML1 reach-v3, 10 environments: 10 parts, 1 id; 50 goals before, 5 goals after loading
#     ML10, 20 environments: 20 parts, 10 ids; 500 goals before, 250 goals after loading
#     ML1 again, each environment given only its own part: 50 goals after loading
#     MT10, 10 environments: 10 parts, 10 ids; 500 goals before, 500 goals after loading
# (20 is the default meta batch; the goals of a task are dealt out to its environments. `make_ml_envs` does not pass
# the number of an environment on, `make_mt_envs` does.)
#
# What the documentation says: nothing but the code. `load_checkpoint` takes the list of all parts, searches the one of
# its own id and raises an error if there is none, so that each environment is meant to get its own.
#
# Why it matters: a run that was resumed trains on half of the goals of ML10, or on a tenth of those of ML1, and the
# environments of a task then play the same goals in the same order. Nothing is raised or logged, the training return
# even rises, and the test result drops: it reads as overfitting of the method. Runs of one figure that were resumed a
# different number of times are not comparable. Making the environments anew without loading would have kept all goals.
# Expected before: a load restores what was saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile metaworld==3.1.1 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 \
    scipy==1.17.1 packaging==26.4 2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import metaworld

print(*(f"{name} {version(name)}" for name in ("metaworld", "gymnasium", "mujoco", "numpy")), sep=", ")


def goals(envs):
    """The goals of each environment."""
    return [{(task.env_name, task.data) for task in tasks} for tasks in envs.get_attr("tasks")]


def resume(title, make):
    envs = make()
    parts = list(envs.call("get_checkpoint"))
    before = len(set.union(*goals(envs)))
    envs.call("load_checkpoint", parts)
    after = len(set.union(*goals(envs)))
    ids = len({part[0] for part in parts})
    word = "id" if ids == 1 else "ids"
    print(f"{title}: {len(parts)} parts, {ids} {word}; {before} goals before, {after} goals after loading")
    return envs, parts, (len(parts), ids, before, after)


envs, parts, first = resume(
    "ML1 reach-v3, 10 environments", lambda: metaworld.make_ml_envs_train("reach-v3", seed=0, meta_batch_size=10)
)
_, _, second = resume("ML10, 20 environments", lambda: metaworld.make_ml_envs_train("ML10", seed=0))
for env, part in zip(envs.envs, parts):
    env.load_checkpoint([part])
own = len(set.union(*goals(envs)))
print(f"ML1 again, each environment given only its own part: {own} goals after loading")
_, _, third = resume("MT10, 10 environments", lambda: metaworld.make_mt_envs("MT10", seed=0))
right = first == (10, 1, 50, 5) and second == (20, 10, 500, 250) and own == 50 and third == (10, 10, 500, 500)
sys.exit(0 if right else 1)
PYTHON
