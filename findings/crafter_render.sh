#!/usr/bin/env bash
# Crafter draws the noise of its night images from the generator of the world. An extra `render()`, as for a video, moves
# it on, and so does another image size: from the first dusk on, the same seed and actions give another episode.
#
# 2026-11-30, crafter 1.8.3, numpy 2.4.6, opensimplex 0.4.5.1, Python 3.11.7. Seeds 0 to 5, the same random actions, up to
# 300 or to the end of the episode. The first step at which the map (`info["semantic"]`) differs from that of a plain
# env. (In this script creatures keep the order in which they came, or else two plain envs differ too.) Seen:
#     again: None None None None None None
#     with render(): 149 149 149 149 149 149
#     size=(96, 96): 149 149 149 149 149 149
#     length of the plain episodes: 160 222 162 217 185 156
# (`crafter.Recorder` with `save_video`, the default, renders once more at each step.)
#
# Why it matters: a run with videos and one without are not the same run, an evaluation that is filmed is of other
# episodes, and agents that see 64 and 96 pixels meet other creatures on the same seeds, all from step 149 on.
# Expected before: to look at the world does not change it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile crafter==1.8.3 numpy==2.4.6 opensimplex==0.4.5.1 imageio==2.38.1 pillow==13.0.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import collections
import sys

import crafter
import numpy as np
from crafter import engine


class Ordered(dict):
    """A set that keeps the order in which its members came."""

    def add(self, member):
        self[member] = None

    remove = dict.pop


class World(engine.World):
    def reset(self, seed=None):
        super().reset(seed)
        self._chunks = collections.defaultdict(Ordered)


engine.World = World


def maps(seed, render=False, **how):
    env = crafter.Env(seed=seed, **how)
    env.reset()
    seen = []
    for action in np.random.RandomState(seed).randint(17, size=300):
        _, _, done, info = env.step(action)
        seen.append(info["semantic"])
        if render:
            env.render()
        if done:
            break
    return seen


def parted(first, second):
    for step, (a, b) in enumerate(zip(first, second), 1):
        if (a != b).any():
            return step


results = {"again": {}, "with render()": {"render": True}, "size=(96, 96)": {"size": (96, 96)}}
plain = [maps(seed) for seed in range(6)]
for name, how in results.items():
    results[name] = [parted(first, maps(seed, **how)) for seed, first in enumerate(plain)]
    print(f"{name}:", *results[name])
print("length of the plain episodes:", *map(len, plain))
changed = [step for name in ("with render()", "size=(96, 96)") for step in results[name]]
sys.exit(0 if not any(results["again"]) and sum(step is not None and step > 140 for step in changed) >= 4 else 1)
PYTHON
