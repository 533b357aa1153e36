#!/usr/bin/env bash
# SuperSuit gives several of its parallel envs the same seed: `concat_vec_envs_v1(env, 8, num_cpus=4).reset(seed=0)` seeds
# the first env of process i with i, and the j-th env of that process with i + j. Of eight envs five are different.
#
# 2026-11-30, supersuit 3.11.0, pettingzoo 1.27.0, gymnasium 1.4.0, numpy 2.4.6. The env draws an integer at its reset
# and at each step. Different sequences of 20 integers, of the number of envs. Seen:
#     8 envs, num_cpus=1: 8
#     8 envs, num_cpus=2: 5
#     8 envs, num_cpus=4: 5
#     8 envs, num_cpus=8: 8
#     32 envs, num_cpus=4: 11
#
# Why it matters: many of the envs repeat what others draw, from the start of the first episode on, and that is
# counted as independent experience: a batch holds less than its size says, errors of means come out too small. It
# depends on the number of processes, so that a result changes with the machine, and a test in one process shows nothing.
# Expected before: seed, seed + 1, ..., as with num_cpus=1 and as in gymnasium's vector envs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.4.0 numpy==2.4.6
cat > try.py <<'PYTHON'
import sys

import gymnasium as gym
import numpy as np
import supersuit
from pettingzoo import ParallelEnv


class Draws(ParallelEnv):
    metadata, render_mode = {"name": "draws"}, None
    possible_agents = ["one"]

    def observation_space(self, agent):
        return gym.spaces.Box(0, 1e6, (1,), np.float64)

    def action_space(self, agent):
        return gym.spaces.Discrete(2)

    def draw(self):
        return {"one": np.array([self.random.integers(10**6)], np.float64)}

    def reset(self, seed=None, options=None):
        self.agents = self.possible_agents[:]
        self.random = np.random.default_rng(seed)
        return self.draw(), {"one": {}}

    def step(self, actions):
        return self.draw(), {"one": 0.0}, {"one": False}, {"one": False}, {"one": {}}


def different(envs, processes):
    vector = supersuit.concat_vec_envs_v1(supersuit.pettingzoo_env_to_vec_env_v1(Draws()), envs, num_cpus=processes)
    rows = [vector.reset(seed=0)[0].copy()]
    rows += [vector.step(np.zeros(envs, int))[0].copy() for _ in range(19)]
    vector.close()
    return len(np.unique(np.stack(rows, 1)[..., 0], axis=0))


if __name__ == "__main__":
    seen = {}
    for envs, processes in ((8, 1), (8, 2), (8, 4), (8, 8), (32, 4)):
        seen[envs, processes] = different(envs, processes)
        print(f"{envs} envs, num_cpus={processes}: {seen[envs, processes]}")
    sys.exit(0 if list(seen.values()) == [8, 5, 5, 8, 11] else 1)
PYTHON
"$folder/venv/bin/python" -W ignore try.py 2> "$folder/log" || { cat "$folder/log"; exit 1; }
