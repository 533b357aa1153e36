#!/usr/bin/env bash
# Hindsight replay of torchrl is one state late. `HERReplayBuffer` takes new goals from the `achieved_goal` at the root of
# a transition, the state before the action. The state in which an episode ends is never a goal, strategy "final" gives
# the last but one, and "future" gives the state that the transition starts from, which for its last step is all there is.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. Episodes of ten steps along a line, from
# 0 to 10; reward 1 if the state after the step is the goal; all of 20,000 samples relabeled. By default, seen:
#     final: goals 9; reward of the last step 0.00; goal is the start of the step 0.10, or lies behind it 0.00
#     future: goals 0 to 9; reward of the last step 0.00; goal is the start of the step 0.29, or lies behind it 0.00
# With achieved_goal_key=("next", "achieved_goal"):
#     final: goals 10; reward of the last step 1.00; goal is the start of the step 0.00, or lies behind it 0.00
#     future: goals 1 to 10; reward of the last step 1.00; goal is the start of the step 0.00, or lies behind it 0.00
# With the reward function of the docstring, which compares the root `achieved_goal` with the goal:
#     future: goals 0 to 9; rewarded steps that end in the goal 0.00, that leave it 1.00
# (Documented: FINAL is "the final achieved state of the episode", FUTURE "a future transition in the same episode".)
#
# Why it matters: in a goal-conditioned task the success at the end is what hindsight is to teach; just that step is
# never rewarded. In episodes of ten steps 29% of "future" goals, in 50 steps 9%, ask for what was there before. With the
# documented reward function each action in the goal is rewarded, and none for getting there, unlike the rewards that
# the environment gave for the other 20% of the batch. Published HER numbers are then not met, without an error.
# Expected before: goals from the states after the steps, as in the paper's and in other libraries' replay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import logging
import sys
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torchrl.data import HERReplayBuffer, LazyTensorStorage

logging.getLogger("torchrl").setLevel(logging.ERROR)
torch.set_num_threads(1)
STEPS, SAMPLES = 10, 20000
print(*(f"{name} {version(name)}" for name in ("torchrl", "tensordict", "torch", "numpy")), sep=", ")


def episode():
    """From 0 to STEPS, one further at each step; the goal is elsewhere; the last step is done."""
    state = torch.arange(STEPS + 1, dtype=torch.float32).unsqueeze(-1)
    end = (torch.arange(STEPS) == STEPS - 1).unsqueeze(-1)
    goal = torch.full((STEPS, 1), -100.0)
    following = {
        "observation": state[1:],
        "achieved_goal": state[1:],
        "desired_goal": goal,
        "reward": torch.zeros(STEPS, 1),
        "done": end,
        "terminated": torch.zeros_like(end),
        "truncated": end,
    }
    start = {"observation": state[:-1], "achieved_goal": state[:-1], "desired_goal": goal, "action": torch.ones(STEPS, 1)}
    return TensorDict({**start, "next": following}, [STEPS])


def reached(data):
    return (data["next", "achieved_goal"] == data["desired_goal"]).float()


def documented(data):
    """As in the docstring of HERReplayBuffer."""
    distance = (data["achieved_goal"] - data["desired_goal"]).norm(dim=-1, keepdim=True)
    return (distance < 0.05).float()


def sample(strategy, reward=reached, **options):
    torch.manual_seed(0)
    buffer = HERReplayBuffer(
        reward_fn=reward, strategy=strategy, her_ratio=1.0, storage=LazyTensorStorage(100), batch_size=SAMPLES, **options
    )
    for _ in range(5):
        buffer.extend(episode())
    data = buffer.sample()
    return [data[key].flatten() for key in ("desired_goal", "achieved_goal", ("next", "achieved_goal"), ("next", "reward"))]


def show(strategy, **options):
    goal, before, after, reward = sample(strategy, **options)
    low, high = int(goal.min()), int(goal.max())
    last = reward[after == STEPS].mean().item()
    start, behind = (goal == before).float().mean().item(), (goal < before).float().mean().item()
    print(f"{strategy}: goals {low if low == high else f'{low} to {high}'}; reward of the last step {last:.2f}; ", end="")
    print(f"goal is the start of the step {start:.2f}, or lies behind it {behind:.2f}")
    return low, high, last, start, behind


print("By default:")
final, future = show("final"), show("future")
print('With achieved_goal_key=("next", "achieved_goal"):')
key = {"achieved_goal_key": ("next", "achieved_goal")}
right_final, right_future = show("final", **key), show("future", **key)
goal, before, after, reward = sample("future", documented)
paid = reward == 1
ends, leaves = ((state == goal)[paid].float().mean().item() for state in (after, before))
print("With the reward function of the docstring:")
print(f"future: goals {int(goal.min())} to {int(goal.max())}; rewarded steps that end in the goal {ends:.2f}, ", end="")
print(f"that leave it {leaves:.2f}")
good = final[:3] == (STEPS - 1, STEPS - 1, 0.0) and future[:3] == (0, STEPS - 1, 0.0) and abs(future[3] - 0.293) < 0.02
good &= right_final == (STEPS, STEPS, 1.0, 0.0, 0.0) and right_future == (1, STEPS, 1.0, 0.0, 0.0)
sys.exit(0 if good and ends == 0 and leaves == 1 and paid.any() else 1)
PYTHON
