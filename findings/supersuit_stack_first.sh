#!/usr/bin/env bash
# SuperSuit's frame_stack(stack_dim=0) of gray images holds no past. It copies the new frame into all places but the
# last, and the last stays black for ever. Color images, vectors and stack_dim=-1 are right.
#
# 2026-12-01, supersuit 3.11.0, pettingzoo 1.27.0, gymnasium 1.4.0, numpy 2.4.6. Frame number i of an episode is an
# image with the value i in all pixels. A stack of four after the reset (i = 1) and five steps later (i = 6); the
# value of each frame from the first place on. Seen:
#     gray (8, 8), stack_dim=-1, v1: 0 0 0 1; 3 4 5 6
#     gray (8, 8), stack_dim=0, v1: 1 1 1 0; 6 6 6 0
#     gray (8, 8), stack_dim=-1, v2: 1 1 1 1; 3 4 5 6
#     gray (8, 8), stack_dim=0, v2: 1 1 1 0; 6 6 6 0
#     color (3, 8, 8), stack_dim=0, v2: 1 1 1 1; 3 4 5 6
#     gray, two agents, stack_dim=0, v2: 1 1 1 0; 6 6 6 0
#     right, v1: 0 0 0 1; 3 4 5 6
#     right, v2: 1 1 1 1; 3 4 5 6
# (A comment in its source says that the new observation goes to the end and the oldest is thrown away. The shape,
# (4, 8, 8), and the observation space are right. v1 fills with zeros at the start of an episode, v2 with the first
# frame.)
#
# Why it matters: gray frames with channels first are what a torch network reads, after `color_reduction_v0`. No
# velocity is left in such a stack, so that Pong and its like turn into partially observed tasks. Shapes, types and
# ranges pass every check, three frames look like a slow game, and training runs: the algorithm gets the blame. A
# comparison of a world model with memory to a stacked policy is won by memory alone.
# Expected before: the last four frames in their order, for both values of stack_dim.
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

STACK, STEPS = 4, 5


class Single(gym.Env):
    """Frame i of an episode has the value i in all pixels."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape):
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def frame(self):
        return np.full(self.observation_space.shape, self.count, np.uint8)

    def reset(self, *, seed=None, options=None):
        self.count = 1
        return self.frame(), {}

    def step(self, action):
        self.count += 1
        return self.frame(), 0.0, False, False, {}


class Several(ParallelEnv):
    """The same for two agents."""

    metadata = {"name": "several"}
    possible_agents = ["a", "b"]

    def __init__(self, shape):
        self.env = Single(shape)

    def observation_space(self, agent):
        return self.env.observation_space

    def action_space(self, agent):
        return self.env.action_space

    def each(self, value):
        return {agent: value for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.agents = self.possible_agents[:]
        return self.each(self.env.reset()[0]), self.each({})

    def step(self, actions):
        obs, reward, terminated, truncated, _ = self.env.step(0)
        return tuple(map(self.each, (obs, reward, terminated, truncated, {})))


def frames(obs, axis, shape):
    """Value of each frame; every frame must be of one value."""
    obs = obs["a"] if isinstance(obs, dict) else obs
    channels = shape[0] if len(shape) == 3 else 1
    parts = [part for part in np.split(np.moveaxis(obs, axis, 0), obs.shape[axis] // channels)]
    assert len(parts) == STACK and all((part == part.flat[0]).all() for part in parts)
    return [int(part.flat[0]) for part in parts]


def look(kind, wrap, shape, axis):
    env = wrap(kind(shape), STACK, axis)
    obs, _ = env.reset(seed=0)
    first = frames(obs, axis, shape)
    for _ in range(STEPS):
        obs = env.step({"a": 0, "b": 0} if kind is Several else 0)[0]
    return first, frames(obs, axis, shape)


GRAY, COLOR = (8, 8), (3, 8, 8)
V1, V2 = supersuit.frame_stack_v1, supersuit.frame_stack_v2
print(", ".join(f"{name} {version(name)}" for name in ("supersuit", "pettingzoo", "gymnasium", "numpy")))
seen = {
    "gray (8, 8), stack_dim=-1, v1": look(Single, V1, GRAY, -1),
    "gray (8, 8), stack_dim=0, v1": look(Single, V1, GRAY, 0),
    "gray (8, 8), stack_dim=-1, v2": look(Single, V2, GRAY, -1),
    "gray (8, 8), stack_dim=0, v2": look(Single, V2, GRAY, 0),
    "color (3, 8, 8), stack_dim=0, v2": look(Single, V2, COLOR, 0),
    "gray, two agents, stack_dim=0, v2": look(Several, V2, GRAY, 0),
    "right, v1": ([0, 0, 0, 1], [3, 4, 5, 6]),
    "right, v2": ([1, 1, 1, 1], [3, 4, 5, 6]),
}
for name, (first, later) in seen.items():
    print(f"{name}:", *first, end="; ")
    print(*later)
wrong = ([1, 1, 1, 0], [6, 6, 6, 0])
good = seen["gray (8, 8), stack_dim=-1, v1"] == seen["right, v1"]
good &= seen["gray (8, 8), stack_dim=-1, v2"] == seen["color (3, 8, 8), stack_dim=0, v2"] == seen["right, v2"]
good &= all(look(kind, wrap, GRAY, 0) == wrong for kind in (Single, Several) for wrap in (V1, V2))
sys.exit(0 if good else 1)
PYTHON
