#!/usr/bin/env bash
# ViZDoom's gymnasium envs report a time limit as an end of the game: at the timeout both `terminated` and `truncated`
# are True, although `treat_episode_timeout_as_truncation` is True by default, and the last image is black.
#
# 2026-11-30, vizdoom 1.3.2, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.7. No button is pressed until the episode ends.
# The mean gray level is that of the last image and of the one before. Seen:
#     VizdoomBasic-v1: 300 steps, terminated True, truncated True, player dead False, image 61 then 0
#     VizdoomHealthGathering-v1: 384 steps, terminated True, truncated False, player dead True, image 26 then 0
#     VizdoomBasic-v1, option off: 300 steps, terminated True, truncated False, player dead False, image 61 then 0
# (`terminated` is the game's `is_episode_finished()`, which is True at a timeout as well. The game has no state then.)
#
# Why it matters: who bootstraps unless `terminated` values the end of a whole, survived episode at 0, as the versions
# before the option did, and who bootstraps all the same does it from a black image. A world model learns from both that
# the game is over.
# Expected before: `terminated` is False and `truncated` True at a timeout, as the option says, and the last image is
# the last one of the game.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile vizdoom==1.3.2 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import gymnasium as gym
import numpy as np
from vizdoom import gymnasium_wrapper  # noqa: F401


def last_step(name, **how):
    env = gym.make(name, **how)
    images = [env.reset(seed=0)[0]["screen"].mean()]
    idle = np.zeros(env.action_space.shape, env.action_space.dtype)
    terminated = truncated = False
    while not (terminated or truncated):
        obs, _, terminated, truncated, _ = env.step(idle)
        images.append(obs["screen"].mean())
    dead = env.unwrapped.game.is_player_dead()
    env.close()
    return len(images) - 1, terminated, truncated, dead, images[-2:]


good = True
for name, how, expected in (
    ("VizdoomBasic-v1", {}, (True, True, False)),
    ("VizdoomHealthGathering-v1", {}, (True, False, True)),
    ("VizdoomBasic-v1", {"treat_episode_timeout_as_truncation": False}, (True, False, False)),
):
    steps, *flags, (before, last) = last_step(name, **how)
    print(
        f"{name}{', option off' if how else ''}: {steps} steps, terminated {flags[0]}, truncated {flags[1]}, "
        f"player dead {flags[2]}, image {before:.0f} then {last:.0f}"
    )
    good &= tuple(map(bool, flags)) == expected and last == 0 < before
sys.exit(0 if good else 1)
PYTHON
