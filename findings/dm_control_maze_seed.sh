#!/usr/bin/env bash
# dm_control's `random_state` does not determine the episodes of its maze tasks. The mazes come from a generator that
# NumPy's global one seeds, the textures of walls and floors from the global one itself, and so do the targets and the
# direction of the walker in `rodent_two_touch`.
#
# 2026-11-30, dm_control 1.0.50, mujoco 3.17.0, labmaze 1.0.6, numpy 2.4.6. Two envs with random_state=3, two episodes
# each (without images). Are the positions of all geoms and the state at the starts the same? Seen:
#     cmu_humanoid_run_gaps: geoms True, state True; with np.random.seed(3) before: geoms True, state True
#     cmu_humanoid_maze_forage: geoms False, state False; with np.random.seed(3) before: geoms True, state True
#     rodent_maze_forage: geoms False, state False; with np.random.seed(3) before: geoms True, state True
#     rodent_two_touch: geoms False, state False; with np.random.seed(3) before: geoms True, state True
# (`regenerate(random_state)` of the maze arenas deletes its argument. Corridors and floors do use theirs.)
#
# Why it matters: runs and evaluations "on the same seeds" are in other mazes each time, and a held-out set of mazes can
# not be named by its seeds. With NumPy's seed set, whatever else draws from it, such as an agent's exploration or its
# replay, chooses mazes and textures too.
# Expected before: `random_state`, "an int seed" of `composer.Environment`, is that of all that is random in the env.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile dm_control==1.0.50 mujoco==3.17.0 labmaze==1.0.6 numpy==2.4.6
MUJOCO_GL=disable "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import numpy as np
from dm_control import composer
from dm_control.locomotion.examples import basic_cmu_2019, basic_rodent_2020

SEED = 3


class Blind(composer.Environment):
    """An env without observations, so that nothing has to be rendered."""

    def __init__(self, task, **how):
        for entity in task.root_entity.iter_entities():
            if entity.observables:
                entity.observables.disable_all()
        super().__init__(task, **how)


composer.Environment = Blind


def starts(make):
    env = make(random_state=SEED)
    geoms, states = [], []
    for _ in range(2):
        env.reset()
        geoms.append(env.physics.model.geom_pos.copy())
        states.append(env.physics.get_state())
    return geoms, states


def equal(make):
    """Are geoms and states the same in two envs?"""
    return tuple(all(map(np.array_equal, *pair)) for pair in zip(starts(make), starts(make)))


def seeded(**how):
    np.random.seed(SEED)
    return make(**how)


good = True
for make, expected in (
    (basic_cmu_2019.cmu_humanoid_run_gaps, True),
    (basic_cmu_2019.cmu_humanoid_maze_forage, False),
    (basic_rodent_2020.rodent_maze_forage, False),
    (basic_rodent_2020.rodent_two_touch, False),
):
    alone, both = equal(make), equal(seeded)
    print(
        f"{make.__name__}: geoms {alone[0]}, state {alone[1]}; "
        f"with np.random.seed({SEED}) before: geoms {both[0]}, state {both[1]}"
    )
    good &= alone == (expected, expected) and all(both)
sys.exit(0 if good else 1)
PYTHON
