#!/usr/bin/env bash
# With n-step returns, cpprb loses the observation at a time limit. The last n - 1 transitions of an episode that ends
# without `done` get a next observation of all ones, which no environment gave, and are to be bootstrapped from it. Their
# returns are of fewer than n steps, and nothing stored tells of how many.
#
# 2026-11-30, cpprb 11.0.0, gymnasium 1.4.0, numpy 2.4.6. Pendulum-v1 in episodes of 50 steps by its time limit, with
# random actions; `add` at each step and `on_episode_end` at each end, as documented. Seen:
#     1-step: 2000 transitions, next observation of all ones: 0, not of this environment (cos^2 + sin^2 = 1): 0
#     3-step: 2000 transitions, next observation of all ones: 80, not of this environment (cos^2 + sin^2 = 1): 80
#     5-step: 2000 transitions, next observation of all ones: 160, not of this environment (cos^2 + sin^2 = 1): 160
#     5-step: the last five of the first episode are for 5 4 3 2 1 steps, next observations with ones: no yes yes yes yes
#     5-step: keys stored: act done next_obs obs rew
# (The one transition that is right ends at the last step, with the true last observation.)
#
# Why it matters: 8% of the targets of these episodes are r + gamma^n Q(ones, a), of a point that the network never sees as
# a state, and with a discount that does not fit the return. With `done` it would not matter, since nothing is
# bootstrapped. The loss stays finite, and the longer n, the worse: it looks like the bias of long returns.
# Documented: `on_episode_end` moves the "remaining Nstep buffer transitions", and is there just because an "episode
# exploration can be terminated at certain length even though any done flags from environment is not set".
# Expected before: the last observation, for each of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile cpprb==11.0.0 gymnasium==1.4.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import gymnasium as gym
import numpy as np
from cpprb import ReplayBuffer

LENGTH, EPISODES, GAMMA = 50, 40, 0.99


def fill(n, reward_of_one=False):
    """All transitions of some episodes of Pendulum-v1, in the order in which they were added."""
    env = gym.make("Pendulum-v1", max_episode_steps=LENGTH)
    env.action_space.seed(0)
    columns = {"obs": {"shape": 3}, "act": {"shape": 1}, "rew": {}, "next_obs": {"shape": 3}, "done": {}}
    options = {} if n == 1 else {"Nstep": {"size": n, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}}
    buffer = ReplayBuffer(LENGTH * EPISODES, columns, **options)
    for episode in range(EPISODES):
        state, _ = env.reset(seed=episode)
        over = False
        while not over:
            action = env.action_space.sample()
            then, reward, terminated, truncated, _ = env.step(action)
            buffer.add(obs=state, act=action, rew=1.0 if reward_of_one else reward, next_obs=then, done=terminated)
            state, over = then, terminated or truncated
        buffer.on_episode_end()
    return buffer.get_all_transitions()


print("cpprb", version("cpprb"), "gymnasium", gym.__version__, "numpy", np.__version__)
good = True
for n in (1, 3, 5):
    held = fill(n)
    then, count = held["next_obs"], len(held["rew"])
    ones = (then == 1).all(axis=1)
    foreign = np.abs((then[:, :2] ** 2).sum(axis=1) - 1) > 1e-3
    print(
        f"{n}-step: {count} transitions, next observation of all ones: {ones.sum()}, "
        f"not of this environment (cos^2 + sin^2 = 1): {foreign.sum()}"
    )
    good &= count == LENGTH * EPISODES and ones.sum() == foreign.sum() == (n - 1) * EPISODES and not held["done"].any()
held = fill(5, reward_of_one=True)
sums = [round(sum(GAMMA**i for i in range(k)), 3) for k in range(6)]
steps = [sums.index(round(float(value), 3)) for value in held["rew"].ravel()[LENGTH - 5 : LENGTH]]
ones = (held["next_obs"][LENGTH - 5 : LENGTH] == 1).all(axis=1)
answers = " ".join("yes" if each else "no" for each in ones)
print(f"5-step: the last five of the first episode are for {' '.join(map(str, steps))} steps, next observations with ones: {answers}")
print("5-step: keys stored:", *sorted(held))
good &= steps == [5, 4, 3, 2, 1] and ones.tolist() == [False, True, True, True, True]
good &= sorted(held) == ["act", "done", "next_obs", "obs", "rew"]
sys.exit(0 if good else 1)
PYTHON
