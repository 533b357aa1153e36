#!/usr/bin/env bash
# gymnasium's AtariPreprocessing(terminal_on_life_loss=True) starts a new game after each lost life: `step` returns
# `terminated`, and `reset`, which has to follow, resets the game itself. Only first lives are ever played. ale-py's
# AtariVectorEnv with `episodic_life=True` does the same by itself.
#
# 2026-11-30, gymnasium 1.4.0, ale-py 0.12.1, numpy 2.4.6, opencv-python-headless 5.0.0.93. 2,000 random steps (4 frames
# each, no sticky actions) of Breakout and Space Invaders. Share of the steps that are played with the lives of a fresh
# game, and lives after the resets. Seen:
#     Breakout, terminal_on_life_loss: 100% of the steps with 5 lives, 49 resets to {5}
#     Breakout, AtariVectorEnv: 100% of the steps with 5 lives, 91 resets to {5}
#     Breakout, whole games: 23% of the steps with 5 lives, 10 resets to {5}
#     SpaceInvaders, terminal_on_life_loss: 100% of the steps with 3 lives, 9 resets to {3}
#     SpaceInvaders, AtariVectorEnv: 100% of the steps with 3 lives, 11 resets to {3}
#     SpaceInvaders, whole games: 49% of the steps with 3 lives, 3 resets to {3}
# ("whole games": terminal_on_life_loss=False. With EpisodicLifeEnv of Baselines and Stable-Baselines3, and in Dopamine, the
# next life goes on with the same game, which is reset when it is over. AtariVectorEnv has `life_loss_info` for that.)
#
# Why it matters: the agent learns from the beginnings of games alone, never from the thinned walls and few enemies that
# later lives start with, and is then evaluated on whole games. A return that is logged in training is that of the first
# life. Two libraries whose options say the same train on different data.
# Expected before: as in those wrappers, the end of a life is an end for the value only, and the next life follows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile gymnasium==1.4.0 ale-py==0.12.1 numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing

gym.register_envs(ale_py)
STEPS = 2000


def wrapper(game, **options):
    """Lives at each step, and after each reset but the first, of gymnasium's wrapper."""
    env = AtariPreprocessing(gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0), **options)
    env.action_space.seed(0)
    lives, starts = [env.reset(seed=0)[1]["lives"]], []
    for _ in range(STEPS):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            info = env.reset()[1]
            starts.append(info["lives"])
        lives.append(info["lives"])
    return np.array(lives), starts


def vector(name):
    """The same of ale-py's vector env, which resets in the step after an end."""
    env = AtariVectorEnv(name, num_envs=1, episodic_life=True, repeat_action_probability=0.0)
    random = np.random.default_rng(0)
    lives, starts, ended = [int(env.reset(seed=0)[1]["lives"][0])], [], False
    for _ in range(STEPS):
        *_, terminated, truncated, info = env.step(random.integers(env.single_action_space.n, size=1))
        if ended:
            starts.append(int(info["lives"][0]))
        ended = bool(terminated[0] or truncated[0])
        if not ended:
            lives.append(int(info["lives"][0]))
    return np.array(lives), starts


good = True
for game, name in (("Breakout", "breakout"), ("SpaceInvaders", "space_invaders")):
    results = {"terminal_on_life_loss": wrapper(game, terminal_on_life_loss=True), "AtariVectorEnv": vector(name),
               "whole games": wrapper(game)}
    for kind, (lives, starts) in results.items():
        share = (lives == lives[0]).mean()
        print(f"{game}, {kind}: {share:.0%} of the steps with {lives[0]} lives, {len(starts)} resets to {set(starts)}")
        good &= set(starts) == {int(lives[0])} and (share < 0.6 if kind == "whole games" else share == 1)
sys.exit(0 if good else 1)
PYTHON
