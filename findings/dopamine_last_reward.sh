#!/usr/bin/env bash
# Dopamine's JAX replay buffer never stores the last transition of an episode. Its accumulator takes the reward of a step
# and the terminal flag of the step after it, so the second-to-last action is stored as the terminal one, with its own
# reward, and the reward of the last action is lost. With 1-step returns, the default of JaxDQNAgent, no sample ever
# holds it.
#
# 2026-11-30, dopamine-rl 4.1.2, jax 0.10.2, flax 0.12.8, orbax-checkpoint 0.12.8, gin-config 0.5.0, numpy 2.4.6 (without
# TensorFlow: the buffer does not need it). A corridor of five steps; the last one ends the episode and pays 1. Steps go
# in as JaxDQNAgent.step and .end_episode put them: (observation, action, reward of that action, terminal). Seen:
#     1-step: stored (state, reward, next state, terminal): (0, 0, 1, no) (1, 0, 2, no) (2, 0, 3, no) (3, 0, 4, yes)
#     1-step: values of the five states, from all that is stored: 0 0 0 0 none; of the five real steps: 0.66 0.73 0.81 0.9 1
#     3-step: stored (state, reward, next state, terminal): (0, 0, 3, no) (1, 0, 4, yes) (2, 0.81, 4, yes) (3, 0.9, 4, yes)
#     3-step: values of the five states, from all that is stored: 0.66 0 0.81 0.9 none; of the five real steps: 0.66 0.73 0.81 0.9 1
#     1-step, reward and terminal with the state that they lead to: (0, 0, 1, no) ... (3, 0, 4, no) (4, 0, 5, yes)
# (The last line is the other convention, and the reward of 1 is lost there too: the reward is taken from the slot of the
# state, the flag from the slot after it.)
#
# Why it matters: a task that pays at the end (mazes, goals, board games, the last point of Pong) is not in the data, and
# the agent learns that the state before the last one is worth nothing more. The returns in the log come from the
# environment and look right. With 3-step returns some states see the reward, but that of four steps before the end is cut
# off from it.
# Expected before: "validly stacked frames ... valid n-step returns", one for each step of an episode that terminates.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile jax==0.10.2 flax==0.12.8 orbax-checkpoint==0.12.8 gin-config==0.5.0 \
    python-snappy==0.7.3 absl-py==2.5.1 numpy==2.4.6
"$folder/venv/bin/pip" -q install --no-compile --no-deps dopamine-rl==4.1.2
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import numpy as np
from dopamine.jax.replay_memory import accumulator, elements, replay_buffer, samplers

LENGTH, GAMMA = 5, 0.9


def stored(steps, n):
    """All that the buffer holds after one episode: (state, reward, next state, terminal)."""
    buffer = replay_buffer.ReplayBuffer(
        accumulator.TransitionAccumulator(stack_size=1, update_horizon=n, gamma=GAMMA),
        samplers.SequentialSamplingDistribution(seed=0),
        batch_size=1,
        max_capacity=100,
    )
    for state, reward, terminal in steps:
        state = np.array([state], np.uint8)
        buffer.add(elements.TransitionElement(state, 0, reward, terminal, terminal))
    batch = buffer.sample(buffer.add_count)
    columns = batch.state.ravel(), batch.reward, batch.next_state.ravel(), batch.is_terminal
    return [(int(s), round(float(r), 4), int(t), bool(d)) for s, r, t, d in zip(*columns)]


def values(transitions, n):
    """The value of each state: one action, so no maximum. Sweeps of r + gamma^n v until they no longer change it."""
    table = {}
    for _ in range(50):
        for state, reward, then, terminal in transitions:
            table[state] = reward + (0 if terminal else GAMMA**n * table.get(then, 0.0))
    return " ".join(f"{table[s]:.2g}" if s in table else "none" for s in range(LENGTH))


def show(transitions):
    return " ".join(f"({s}, {r:.2g}, {t}, {'yes' if d else 'no'})" for s, r, t, d in transitions)


print("dopamine-rl", version("dopamine-rl"), "jax", version("jax"), "flax", version("flax"))
agent = [(t, float(t == LENGTH - 1), t == LENGTH - 1) for t in range(LENGTH)]
real = values([(t, reward, t + 1, terminal) for t, reward, terminal in agent], 1)
seen = {}
for n in (1, 3):
    seen[n] = stored(agent, n)
    print(f"{n}-step: stored (state, reward, next state, terminal): {show(seen[n])}")
    print(f"{n}-step: values of the five states, from all that is stored: {values(seen[n], n)}; of the five real steps: {real}")
other = stored([(t, float(t == LENGTH), t == LENGTH) for t in range(LENGTH + 1)], 1)
print(f"1-step, reward and terminal with the state that they lead to: {show(other)}")

good = real == "0.66 0.73 0.81 0.9 1" and values(seen[1], 1) == "0 0 0 0 none"
good &= seen[1] == [(0, 0, 1, False), (1, 0, 2, False), (2, 0, 3, False), (3, 0, 4, True)]
good &= seen[3] == [(0, 0, 3, False), (1, 0, 4, True), (2, 0.81, 4, True), (3, 0.9, 4, True)]
good &= other[-1] == (4, 0, 5, True) and not any(reward for _, reward, _, _ in other)
sys.exit(0 if good else 1)
PYTHON
