#!/usr/bin/env bash
# gymnasium's AtariPreprocessing and MaxAndSkipObservation do not show how an episode ends. Where it ends within a skip,
# they take the maximum of frames that are not the last two but, in part or all, those of the step before: the last
# observation often repeats the one before it. MaxAndSkipObservation even keeps its frames over a reset.
#
# 2026-11-30, gymnasium 1.4.0, ale-py 0.12.1, numpy 2.4.6, opencv-python-headless 5.0.0.93. Random actions, 4 frames each,
# no sticky actions. Last observations of episodes that are the same as the one before, how many are if they are made from
# the last two frames, and how many differ from those. Then observations of an env that counts its frames. Seen:
#     SpaceInvaders, of 8 episodes: 7 the same as before, 0 should be, 8 wrong
#     Qbert, of 8 episodes: 4 the same as before, 0 should be, 8 wrong
#     8 frames: observations [4, 8]
#     9 frames: observations [4, 8, 8]
#     10 frames: observations [4, 8, 8]
#     2 frames, after an episode of 10: observations [8]
# (AtariPreprocessing leaves the loop before it reads the screen, also where the fourth of four frames is the last.)
#
# Why it matters: a replay holds these observations. A world model learns that the reward and the end of an episode come
# with an image that shows neither the goal nor the crash; at a time limit, where the last observation does count, the
# value is that of an earlier state. (stable-baselines3 does the same, but says so in its code: it "doesn't matter".)
# Expected before: the maximum of the last two frames, as both document; of the frames there are, where it ends early.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile \
  gymnasium==1.4.0 ale-py==0.12.1 numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, MaxAndSkipObservation, TimeLimit

gym.register_envs(ale_py)
SKIP, EPISODES = 4, 8


class Frames(gym.Wrapper):
    """Keeps the last two frames."""

    def step(self, action):
        result = self.env.step(action)
        self.frames = [*getattr(self, "frames", [])[-1:], self.unwrapped.ale.getScreenGrayscale()]
        return result


class Counter(gym.Env):
    """Observes how many frames the episode has."""

    observation_space = gym.spaces.Box(0, 1000, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 0.0, False, False, {}


seen = {}
for game in ("SpaceInvaders", "Qbert"):
    frames = Frames(gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0))
    env = AtariPreprocessing(frames, frame_skip=SKIP)
    random = np.random.default_rng(0)
    same = still = differ = 0
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=episode)
        done = False
        while not done:
            before = observation
            observation, _, terminated, truncated, _ = env.step(random.integers(env.action_space.n))
            done = terminated or truncated
        right = cv2.resize(np.max(frames.frames, axis=0), (84, 84), interpolation=cv2.INTER_AREA)
        same += np.array_equal(observation, before)
        still += np.array_equal(right, before)
        differ += not np.array_equal(observation, right)
    seen[game] = same, still, differ
    print(f"{game}, of {EPISODES} episodes: {same} the same as before, {still} should be, {differ} wrong")
for limit in (8, 9, 10):
    env = MaxAndSkipObservation(TimeLimit(Counter(), limit), skip=SKIP)
    env.reset()
    seen[limit] = []
    truncated = False
    while not truncated:
        observation, _, _, truncated, _ = env.step(0)
        seen[limit].append(int(observation[0]))
    print(f"{limit} frames: observations {seen[limit]}")
short = TimeLimit(Counter(), 10)
env = MaxAndSkipObservation(short, skip=SKIP)
env.reset()
while not env.step(0)[3]:
    pass
short._max_episode_steps = 2
env.reset()
seen[2] = [int(env.step(0)[0][0])]
print(f"2 frames, after an episode of 10: observations {seen[2]}")
good = all(seen[game][0] >= EPISODES / 2 and seen[game][1:] == (0, EPISODES) for game in ("SpaceInvaders", "Qbert"))
sys.exit(0 if good and seen[8] == [4, 8] and seen[9] == seen[10] == [4, 8, 8] and seen[2] == [8] else 1)
PYTHON
