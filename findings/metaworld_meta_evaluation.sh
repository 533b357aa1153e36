#!/usr/bin/env bash
# Meta-World's `metalearning_evaluation` reports far more success than there is. It counts the first three episodes that
# END among all environments of a task. A solved episode ends at once and its environment starts the next one, a failed
# one takes 500 steps: where one goal of four is solved within 166 steps, it is counted three times, and the rate is 1.
#
# 2026-11-30, metaworld 3.1.1, gymnasium 1.4.0, mujoco 3.3.0, numpy 2.4.6. Test goals of ML1 reach-v3 in 4 environments
# (what each task of ML10-test gets of a meta batch of 20), 2 evaluations of 4 goals each. The agent is Meta-World's own
# scripted policy for the goals of the first 0, 1 or 4 environments, and it stands still in the others. Seen:
#     goals solved: 0 of 8 (0.00), reported success rate 0.00
#     goals solved: 2 of 8 (0.25), reported success rate 1.00
#     goals solved: 8 of 8 (1.00), reported success rate 1.00
# (`goals solved`: the same goals, one episode of each. With 5 evaluations instead of 2: 5 of 20, reported 1.00.)
#
# What the documentation says: the function has no docstring. Its variables are success rates, and the comment at
# `num_evals=10` assumes 40 goals per test task and a meta batch of 20: 10 evaluations of 4 goals are to cover all 40.
# `evaluate_policy` of Stable-Baselines3 gives each environment its own number of episodes, "to remove bias".
#
# Why it matters: this is Meta-World's own test for ML1, ML10 and ML45. An agent that adapts to a quarter of the goals
# and one that adapts to all of them get the same 100%. What raises it is speed on the easiest goal, and the factor may
# reach the number of environments per task: a larger meta batch gives a better result for the same agent.
# Expected before: each goal counts alike, so that the rate is the share of goals that are solved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile metaworld==3.1.1 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 \
    scipy==1.17.1 packaging==26.4 2> "$folder/log" || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import metaworld
import numpy as np
from metaworld.evaluation import metalearning_evaluation
from metaworld.policies import ENV_POLICY_MAP

NAME, ENVS, EVALS = "reach-v3", 4, 2
print(*(f"{name} {version(name)}" for name in ("metaworld", "gymnasium", "mujoco", "numpy")), sep=", ")


class Agent:
    """Meta-World's scripted policy in the first `able` environments, no motion in the others."""

    def __init__(self, envs, able):
        self.envs, self.able, self.policy = envs.envs, able, ENV_POLICY_MAP[NAME]()

    def eval_action(self, observations):
        actions = np.zeros((ENVS, 4), np.float32)
        for index in range(self.able):
            seen = observations[index].copy()
            seen[-3:] = self.envs[index].unwrapped._target_pos  # the goal is hidden in ML1; the policy needs it
            actions[index] = np.clip(self.policy.get_action(seen), -1, 1)
        return actions

    def adapt_action(self, observations):
        return self.eval_action(observations), {}

    def init(self):
        pass

    def adapt(self):
        pass

    def step(self, timestep):
        pass

    def reset(self, env_mask):
        pass


def make():
    return metaworld.make_ml_envs_test(NAME, seed=0, meta_batch_size=ENVS, total_tasks_per_cls=40)


def one_episode_each(envs, agent):
    """Number of goals that are solved, with one episode of each goal."""
    envs.call("toggle_sample_tasks_on_reset", False)
    solved, goals = 0, set()
    for _ in range(EVALS):
        envs.call("sample_tasks")
        observations, _ = envs.reset()
        goals |= {tuple(env.unwrapped._target_pos) for env in envs.envs}
        done, won = np.zeros(ENVS, bool), np.zeros(ENVS, bool)
        while not done.all():
            observations, _, terminated, truncated, _ = envs.step(agent.eval_action(observations))
            won |= terminated & ~done
            done |= terminated | truncated
        solved += won.sum()
    assert len(goals) == ENVS * EVALS
    return int(solved)


right = True
for able, expected in ((0, 0.0), (1, 1.0), (4, 1.0)):
    envs = make()
    solved = one_episode_each(envs, Agent(envs, able))
    envs = make()  # the same goals again
    rate, _, _ = metalearning_evaluation(Agent(envs, able), envs, num_evals=EVALS, adaptation_steps=0)
    print(f"goals solved: {solved} of {ENVS * EVALS} ({solved / ENVS / EVALS:.2f}), reported success rate {rate:.2f}")
    right &= solved == able * EVALS and rate == expected
sys.exit(0 if right else 1)
PYTHON
