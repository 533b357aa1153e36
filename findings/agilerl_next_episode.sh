#!/usr/bin/env bash
# AgileRL's n-step replay buffer runs over the end of an episode. For the last step of each episode it adds the rewards
# of the first steps of the next one, bootstraps from a state of the next one, and clears the done flag. With a vector
# of environments, the end of one also cuts the returns of all others short, with the discount of n steps.
#
# 2026-11-30, agilerl 2.58.0, agilerl-arena 1.29.0, tensordict 0.13.0, torch 2.13.0 (CPU), gymnasium 1.4.0, numpy 2.4.6.
# n = 3, gamma 0.9. Two episodes of four steps that end in a terminal state; each step of the first pays 1, of the
# second 100. For the env that never ends: the targets of the first steps, which are the stored return + 0.9^3 of the value
# of the stored next state; the reward is 1 and the value 10, so 10 is right. Seen:
#     one env: step 0: return 2.71, next state 3, done no
#     one env: step 1: return 2.71, next state 4, done yes
#     one env: step 2: return 1.9, next state 4, done yes
#     one env: step 3, the last one: return 172, next state 6, done no (right: 1, 4, yes)
#     CartPole-v1, random actions, 1,000 steps: 45 episodes ended, 0 of their last steps stored as done
#     env that never ends, alone: 10 10 10 10
#     env that never ends, beside one that ends at step 3: 10 10 9.19 10
#
# Why it matters: `train_off_policy` trains RainbowDQN on it. The step that ends an episode, e.g. by falling over, gets the
# value of a fresh start: of n transitions that show the end to the agent, one denies it. The two before it are right, so
# it still learns, but to the wrong values, the more so the shorter the episodes. And the targets of one environment
# depend on how many others run beside it, and how often they end.
# Expected before: a return stops at the end of its own episode ("Stop if episode terminated", says the code).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
# (Without the rest of what agilerl requires, which the buffer does not use: pip would fetch gigabytes.)
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 tensordict==0.13.0 gymnasium==1.4.0 accelerate==1.15.0 \
    lazy-loader==0.6 pydantic==2.14.4 packaging==26.4 numpy==2.4.6
"$folder/venv/bin/pip" -q install --no-compile --no-deps agilerl==2.58.0 agilerl-arena==1.29.0
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import gymnasium as gym
import torch
from agilerl.components.replay_buffer import MultiStepReplayBuffer
from tensordict import TensorDict

STEPS, GAMMA = 3, 0.9


def fill(steps):
    """The buffer's contents after `steps`: lists of (state, reward, next state, done), one of each per environment."""
    buffer = MultiStepReplayBuffer(10000, n_step=STEPS, gamma=GAMMA)
    for states, rewards, following, dones in steps:
        columns = {"obs": states, "reward": rewards, "next_obs": following, "done": dones}
        columns = {key: torch.tensor(value, dtype=torch.float32).unsqueeze(-1) for key, value in columns.items()}
        buffer.add(TensorDict(columns, [len(states)]))
    return buffer.sample_from_indices(torch.arange(buffer.size))


print("agilerl", version("agilerl"), "tensordict", version("tensordict"), "torch", torch.__version__)
held = fill([([t], [1.0 if t < 4 else 100.0], [t + 1], [t % 4 == 3]) for t in range(8)])
seen = []
for state in range(4):
    row = tuple(round(held[key][state].item(), 3) for key in ("obs", "reward", "next_obs", "done"))
    seen.append(row[1:])
    right = ", the last one" if state == 3 else ""
    tail = " (right: 1, 4, yes)" if state == 3 else ""
    print(f"one env: step {state}{right}: return {row[1]:.4g}, next state {row[2]:.0f}, done {'yes' if row[3] else 'no'}{tail}")

env = gym.make("CartPole-v1")
env.reset(seed=0)
env.action_space.seed(0)
steps, number, ends = [], 0, []
for _ in range(1000):
    _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    steps.append(([number], [reward], [number + 1], [terminated]))
    if terminated or truncated:
        ends.append(number)
        number += 1  # the first state of the next episode
        env.reset()
    number += 1
held = fill(steps)
ends = [end for end in ends if end <= held["obs"].max()]
kept = sum(held["done"][held["obs"] == end].item() for end in ends)
print(f"CartPole-v1, random actions, 1,000 steps: {len(ends)} episodes ended, {kept:.0f} of their last steps stored as done")

targets = {}
for name, count in (("alone", 1), ("beside one that ends at step 3", 2)):
    held = fill([([t] * count, [1.0] * count, [t + 1] * count, [0, t == 3][:count]) for t in range(6)])
    target = held["reward"] + (1 - held["done"]) * GAMMA**STEPS * 10
    targets[name] = [round(value.item(), 3) for value in target.view(-1, count)[:, 0]]
    print(f"env that never ends, {name}:", *(f"{value:.3g}" for value in targets[name]))

good = seen == [(2.71, 3, 0), (2.71, 4, 1), (1.9, 4, 1), (172, 6, 0)] and len(ends) > 20 and kept == 0
good &= targets["alone"] == [10, 10, 10, 10] and targets["beside one that ends at step 3"] == [10, 10, 9.19, 10]
sys.exit(0 if good else 1)
PYTHON
