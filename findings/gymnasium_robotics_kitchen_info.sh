#!/usr/bin/env bash
# FrankaKitchen's `info["episode_task_completions"]` is one list for the life of the environment. It is written into
# every info, grows in those that were returned before, and `reset` empties it. In the `final_info` of gymnasium's
# vector environments that reset in the same step, it is always empty: no episode has ever completed a task.
#
# 2026-11-30, gymnasium-robotics 1.4.2, gymnasium 1.4.0, mujoco 3.3.0, numpy 2.4.6. FrankaKitchen-v1 with the tasks
# microwave and light switch; the microwave is set open before step 3 and the switch before step 5. Seen:
#     tasks completed so far at steps 1 to 5, read at once: 0 0 1 1 2
#     the same infos, read when the episode is over: 2 2 2 2 2
#     the same infos, read after reset(): 0 0 0 0 0
#     return of the episode 2, its last step_task_completions ['light switch']
#     two vector environments, reset in the same step: final_info has [] for both, at returns of 2
#     two vector environments, reset in the next step: ['microwave', 'light switch'], and [] a step later
# (`step_task_completions`, in the line before, is copied.)
#
# What the docstring says: "list of tasks completed during the episode uptil the current step".
#
# Why it matters: the number of tasks completed is the metric of this benchmark. Who logs it from `final_info`, as for
# any episode's end, reports 0% for a policy that solves everything, and AsyncVectorEnv, whose worker resets before it
# sends, must do the same (read, not run). Infos that are kept per step for a data set say of the first step of an episode which tasks
# its last step completed, a leak from the future, or say nothing once the next episode has begun.
# Expected before: a list that stays what it was when it was returned.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile gymnasium-robotics==1.4.2 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 \
    2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import importlib.metadata as metadata
import sys

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

for name in ("gymnasium-robotics", "gymnasium", "mujoco", "numpy"):
    print(name, metadata.version(name), end=" ")
print()
gym.register_envs(gymnasium_robotics)
KEY = "episode_task_completions"
OPEN = {3: ([22], [-0.75]), 5: ([17, 18], [-0.69, -0.05])}  # The goals of the microwave and of the switch.
NONE = np.zeros(9)


class Helper(gym.Wrapper):
    """Does the tasks of FrankaKitchen by hand, before the steps of OPEN."""

    def reset(self, **keywords):
        self.steps = 0
        return self.env.reset(**keywords)

    def step(self, action):
        self.steps += 1
        if self.steps in OPEN:
            joints, values = OPEN[self.steps]
            self.unwrapped.data.qpos[joints] = values
        return self.env.step(action)


def make():
    return Helper(gym.make("FrankaKitchen-v1", tasks_to_complete=["microwave", "light switch"]))


def counts(infos):
    return [len(info[KEY]) for info in infos]


env = make()
env.reset(seed=0)
infos, at_once, total, terminated = [], [], 0, False
while not terminated and len(infos) < 9:
    _, reward, terminated, _, info = env.step(NONE)
    total += reward
    infos.append(info)
    at_once.append(len(info[KEY]))
at_end = counts(infos)
env.reset()
after = counts(infos)
print("tasks completed so far at steps 1 to 5, read at once:", *at_once)
print("the same infos, read when the episode is over:", *at_end)
print("the same infos, read after reset():", *after)
print(f"return of the episode {total:.0f}, its last step_task_completions {infos[-1]['step_task_completions']}")
right = at_once == [0, 0, 1, 1, 2] and at_end == [2] * 5 and after == [0] * 5 and total == 2
right &= infos[-1]["step_task_completions"] == ["light switch"] and infos[2]["step_task_completions"] == ["microwave"]

for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
    envs = SyncVectorEnv([make, make], autoreset_mode=mode)
    envs.reset(seed=0)
    total, ended = np.zeros(2), np.zeros(2, bool)
    while not ended.any():
        _, reward, ended, _, info = envs.step(np.zeros((2, 9)))
        total += reward
    last = info["final_info"] if mode is AutoresetMode.SAME_STEP else info
    found, step = [list(names) for names in last[KEY]], list(last["step_task_completions"])
    print(f"{mode.value}: at the end {KEY} {found}, step_task_completions {step}, returns {total}")
    right &= step == [["light switch"]] * 2 and (total == 2).all()
    right &= found == ([[], []] if mode is AutoresetMode.SAME_STEP else [["microwave", "light switch"]] * 2)
    if mode is AutoresetMode.NEXT_STEP:
        envs.step(np.zeros((2, 9)))
        print("  a step later, the same info:", [list(names) for names in last[KEY]])
        right &= not any(last[KEY])
sys.exit(0 if right else 1)
PYTHON
