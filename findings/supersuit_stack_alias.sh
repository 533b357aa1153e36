#!/usr/bin/env bash
# SuperSuit's frame_stack returns one and the same array at every step of an episode and writes into it. The
# observation that a script holds from the last step becomes the next one: of a transition, obs and next_obs are
# equal.
#
# 2026-12-01, supersuit 3.11.0, pettingzoo 1.27.0, gymnasium 1.4.0, numpy 2.4.6. CartPole-v1 with a stack of four;
# 1,000 transitions (obs, action, reward, next_obs) go to a list, as in most short replay buffers. Seen:
#     frame_stack_v2: obs equals next_obs in 1000 of 1000, different observations 46
#     frame_stack_v1: obs equals next_obs in 1000 of 1000, different observations 46
#     frame_stack_v2, copied by the script: obs equals next_obs in 0 of 1000, different observations 1000
#     FrameStackObservation of gymnasium: obs equals next_obs in 0 of 1000, different observations 1000
#     no stack: obs equals next_obs in 0 of 1000, different observations 1000
#     frame_stack_v2 of a parallel env of PettingZoo: obs equals next_obs in 1000 of 1000, different observations 46
# (One array for each of the 46 episodes, with its last frames. The documentation does not speak of it. Vector envs
# copy, and hide it.)
#
# Why it matters: all of an episode's stored observations turn into its last one, also those of past transitions. A Q
# function sees no change from state to next state, a world model learns that nothing ever moves, and reaches a loss
# of nearly zero doing so. Code that was right with another env fails without an error when this wrapper is put around
# it.
# Expected before: a new array at each step, like CartPole without the wrapper, and like gymnasium's stack.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import supersuit
from pettingzoo import ParallelEnv

STEPS = 1000


class Parallel(ParallelEnv):
    """CartPole as a parallel env with one agent."""

    metadata = {"name": "cartpole"}
    possible_agents = ["a"]

    def __init__(self):
        self.env = gym.make("CartPole-v1")

    def observation_space(self, agent):
        return self.env.observation_space

    def action_space(self, agent):
        return self.env.action_space

    def reset(self, seed=None, options=None):
        self.agents = ["a"]
        obs, info = self.env.reset(seed=seed)
        return {"a": obs}, {"a": info}

    def step(self, actions):
        values = self.env.step(actions["a"])
        if values[2] or values[3]:
            self.agents = []
        return tuple({"a": value} for value in values)


def collect(env, copy=False, agent=None):
    """Transitions in a list: how many with obs equal to next_obs, and how many different observations."""
    take = (lambda value: value[agent]) if agent else (lambda value: value)
    keep = np.copy if copy else (lambda obs: obs)
    rng = np.random.default_rng(0)
    transitions = []
    obs = keep(take(env.reset(seed=0)[0]))
    while len(transitions) < STEPS:
        action = int(rng.integers(2))
        values = env.step({agent: action} if agent else action)
        new, reward, terminated, truncated, _ = map(take, values)
        new = keep(new)
        transitions.append((obs, action, reward, new))
        obs = keep(take(env.reset()[0])) if terminated or truncated else new
    same = sum(np.array_equal(first, last) for first, _, _, last in transitions)
    return same, len({np.asarray(first).tobytes() for first, _, _, _ in transitions})


def make():
    return gym.make("CartPole-v1")


print(", ".join(f"{name} {version(name)}" for name in ("supersuit", "pettingzoo", "gymnasium", "numpy")))
V1, V2 = supersuit.frame_stack_v1, supersuit.frame_stack_v2
seen = {
    "frame_stack_v2": collect(V2(make(), 4)),
    "frame_stack_v1": collect(V1(make(), 4)),
    "frame_stack_v2, copied by the script": collect(V2(make(), 4), copy=True),
    "FrameStackObservation of gymnasium": collect(gym.wrappers.FrameStackObservation(make(), 4)),
    "no stack": collect(make()),
    "frame_stack_v2 of a parallel env of PettingZoo": collect(V2(Parallel(), 4), agent="a"),
}
for name, (same, different) in seen.items():
    print(f"{name}: obs equals next_obs in {same} of {STEPS}, different observations {different}")
names = list(seen)
good = all(seen[name][0] == STEPS and seen[name][1] < 100 for name in (*names[:2], names[5]))
good &= all(seen[name] == (0, STEPS) for name in names[2:5])
sys.exit(0 if good else 1)
PYTHON
