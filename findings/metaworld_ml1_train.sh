#!/usr/bin/env bash
# Meta-World's registered "Meta-World/ML1-train" is the test split of ML1. It has the test goals, none of the training
# goals, and it ends an episode at success, which is meant for tests only. "Meta-World/ML1-test" is the same thing.
#
# 2026-11-30, metaworld 3.1.1 (3.0.0 has the same lines), gymnasium 1.4.0, mujoco 3.3.0, numpy 2.4.6. ML1 of
# reach-v3 with seed 0: which of the 50 training goals and 50 test goals of the benchmark (no goal is in both) do the
# environments hold? Seen (push-v3 is alike):
#     Meta-World/ML1-train: 0 training goals, 50 test goals, ends at success: True
#     Meta-World/ML1-test: 0 training goals, 50 test goals, ends at success: True
#     make_ml_envs_train: 50 training goals, 0 test goals, ends at success: False
#     make_ml_envs_test: 0 training goals, 50 test goals, ends at success: True
#     goals met in 50 episodes of ML1-train that are also met in 50 of ML1-test: 50 (of the two functions: 0)
# (Both are registered in a loop over the splits, with a lambda that looks up the loop's variable when it is called. By
# then it holds the last split. ML10, ML25 and ML45 bind it in time.)
#
# What the README says: "Each Meta-reinforcement learning benchmark has training and testing environments. These
# environments must be created separately", with ML1-train and ML1-test, and "ML1 benchmark tests for few-shot
# adaptation to goal variations". The class's docstring: "The train and test set contain different goal positions".
#
# Why it matters: meta-training runs on the very goals that the test measures, so the gap between the two, which is the
# result, is that of the training set. Nothing is raised or logged, shapes and rewards are right, the numbers come out
# better. Training also sees shorter episodes with terminal states, which no paper's ML1 has; ML10 trains without them.
# Expected before: the training goals, and no end at success, as from `make_ml_envs_train`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile metaworld==3.1.1 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 \
    scipy==1.17.1 packaging==26.4 2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import gymnasium as gym
import metaworld
import numpy as np

for name in ("metaworld", "gymnasium", "mujoco", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
right = True


def goals(tasks):
    return {task.data for task in tasks}


def goals_met(envs):
    """The goals of 50 episodes of one environment, each with a new task."""
    met = set()
    for _ in range(50):
        envs.call("sample_tasks")
        met.add(tuple(np.round(envs.envs[0].unwrapped._last_rand_vec, 9)))
    return met


for name in ("reach-v3",):
    benchmark = metaworld.ML1(name, seed=0)
    train, test = goals(benchmark.train_tasks), goals(benchmark.test_tasks)
    print(f"{name}: {len(train)} training goals, {len(test)} test goals, {len(train & test)} in both")
    right &= len(train) == len(test) == 50 and not train & test
    made = {
        "Meta-World/ML1-train": gym.make_vec("Meta-World/ML1-train", env_name=name, seed=0, meta_batch_size=1),
        "Meta-World/ML1-test": gym.make_vec("Meta-World/ML1-test", env_name=name, seed=0, meta_batch_size=1),
        "make_ml_envs_train": metaworld.make_ml_envs_train(name, seed=0, meta_batch_size=1),
        "make_ml_envs_test": metaworld.make_ml_envs_test(name, seed=0, meta_batch_size=1),
    }
    seen = {}
    for maker, envs in made.items():
        has = goals(envs.get_attr("tasks")[0])
        ends = bool(np.all(envs.get_attr("terminate_on_success")))
        seen[maker] = (len(has & train), len(has & test), ends)
        print(f"  {maker}: {seen[maker][0]} training goals, {seen[maker][1]} test goals, ends at success: {ends}")
    shared = goals_met(made["Meta-World/ML1-train"]) & goals_met(made["Meta-World/ML1-test"])
    own = goals_met(made["make_ml_envs_train"]) & goals_met(made["make_ml_envs_test"])
    print(f"  goals met in 50 episodes of ML1-train that are also met in 50 of ML1-test: {len(shared)}")
    print(f"  the same for make_ml_envs_train and make_ml_envs_test: {len(own)}")
    right &= seen["Meta-World/ML1-train"] == (0, 50, True) == seen["Meta-World/ML1-test"]
    right &= seen["make_ml_envs_train"] == (50, 0, False) and seen["make_ml_envs_test"] == (0, 50, True)
    right &= len(shared) == 50 and not own
sys.exit(0 if right else 1)
PYTHON
