#!/usr/bin/env bash
# TorchRL's SliceSampler draws an episode first, each with the same probability, and a slice in it second: the steps of a
# short episode are replayed many times as often as those of a long one. What the ring buffer has half overwritten and
# the episode that has just begun count as whole episodes too.
#
# 2026-11-30, torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0 (CPU), numpy 2.4.6. Slices of 50 steps, as for a recurrent
# world model. For each episode, how often a slice of it is drawn, per possible slice, relative to those of 1,000
# steps. Seen:
#     terminations: 1000 steps 1, 500 steps 2.2, 200 steps 6.3, 100 steps 20, 60 steps 87
#     fixed length, the last one has just begun: 1000 steps 1, 1000 steps 0.99, 1000 steps 0.99, 60 steps 85
#     fixed length, the first one is nearly overwritten: 60 steps 87, 1000 steps 1, 1000 steps 1, 940 steps 1.1
# (So a step of the episode of 60 is replayed 17 times as often as one of the episode of 1,000.)
#
# Why it matters: with early terminations a model is trained mostly on failures; where all episodes have 1,000 steps, the
# first steps of each get far more than their share while it is the current one. The sampler's documentation is silent.
# Expected before: every slice that fits into an episode is equally likely ("samples sub-trajectories with replacement").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import logging
import sys

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SliceSampler

logging.getLogger("torchrl").setLevel(logging.ERROR)
LENGTH, DRAWS = 50, 40000


def rates(lengths, size):
    """(steps that the buffer holds, draws per possible slice) of each episode; the last one is unfinished."""
    sampler = SliceSampler(slice_len=LENGTH, end_key=("next", "done"))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(size), sampler=sampler, batch_size=LENGTH * DRAWS)
    for number, length in enumerate(lengths):
        done = torch.zeros(length, 1, dtype=torch.bool)
        done[-1] = number < len(lengths) - 1
        buffer.extend(TensorDict({"number": torch.full((length,), number), "next": {"done": done}}, [length]))
    held = buffer[:]["number"].bincount()
    drawn = buffer.sample()["number"].view(DRAWS, LENGTH)
    assert (drawn == drawn[:, :1]).all()
    return held.tolist(), (drawn[:, 0].bincount() / (held - LENGTH + 1)).tolist()


torch.manual_seed(0)
good = True
for name, lengths, size in (
    ("terminations", [1000, 500, 200, 100, 60], 2000),
    ("fixed length, the last one has just begun", [1000, 1000, 1000, 60], 5000),
    ("fixed length, the first one is nearly overwritten", [1000, 1000, 1000, 940], 3000),
):
    held, rate = rates(lengths, size)
    ratios = [each / rate[held.index(1000)] for each in rate]
    print(f"{name}:", ", ".join(f"{steps} steps {ratio:.2g}" for steps, ratio in zip(held, ratios)))
    good &= max(ratios) > 20
sys.exit(0 if good else 1)
PYTHON
