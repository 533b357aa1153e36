#!/usr/bin/env bash
# A StatefulDataLoader of torchdata that has a generator of its own and no workers goes on right after a stop, but only
# to the end of that epoch. The order of all later epochs is not that of a run without a stop. Each epoch takes from the
# generator first the order and then a seed for workers. Resume puts the generator back to its state before the order,
# draws the order again, and leaves out the seed.
#
# 2026-11-30, torchdata 0.11.0, torch 2.13.0 (CPU), numpy 2.4.6. 32 items, batches of 4, six epochs. The stop comes
# after 3 batches of the second epoch. Is each epoch, that one with its part before the stop, as without a stop? Seen:
#     no generator, no workers: yes yes yes yes yes yes
#     no generator, 2 workers: yes yes yes yes yes yes
#     generator, 2 workers: yes yes yes yes yes yes
#     generator, no workers: yes yes no no no no
#     generator, no workers, its state restored too: yes yes no no no no
#     generator, no workers, one random number drawn after the resumed epoch: yes yes yes yes yes yes
#
# The docstring and the README call it a drop-in replacement that enables "mid-epoch checkpointing". Of generator the
# docstring says: "If not None, this RNG will be used by RandomSampler to generate random indexes and multiprocessing to
# generate base_seed for workers". Without workers no base seed is needed.
#
# Why it matters: who passes a seeded generator wants a training that can be repeated. A run that the queue stopped and
# one that it did not are two different experiments from the next epoch on, although all random states were saved. A
# test of resume that compares the rest of the epoch passes, and so does one with workers.
# Expected before: the same order in all epochs, as in the other four settings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchdata==0.11.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

EPOCHS, STOP = 6, 3


class Items(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return index


def make(workers, own):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0) if own else None
    return StatefulDataLoader(Items(), batch_size=4, shuffle=True, num_workers=workers, generator=generator)


def epoch(batches):
    return [index for batch in batches for index in batch.tolist()]


def compare(title, workers, own, restore=False, draw=False):
    """Which epochs of a run that stops in its second one and goes on are those of a run without a stop."""
    whole = make(workers, own)
    expected = [epoch(whole) for _ in range(EPOCHS)]
    before = make(workers, own)
    order = [epoch(before)]
    iterator = iter(before)
    begun = epoch(next(iterator) for _ in range(STOP))
    state, random = before.state_dict(), torch.get_rng_state()
    generator = before.generator.get_state() if own else None
    after = make(workers, own)
    after.load_state_dict(state)
    torch.set_rng_state(random)
    if restore:
        after.generator.set_state(generator)
    order.append(begun + epoch(after))
    if draw:
        torch.empty((), dtype=torch.int64).random_(generator=after.generator)
    order += [epoch(after) for _ in range(EPOCHS - 2)]
    assert all(sorted(items) == list(range(32)) for items in order)
    same = [a == b for a, b in zip(order, expected)]
    print(f"{title}:", *("yes" if equal else "no" for equal in same))
    return same


print("torchdata", version("torchdata"), "torch", torch.__version__)
right = [
    compare("no generator, no workers", 0, own=False),
    compare("no generator, 2 workers", 2, own=False),
    compare("generator, 2 workers", 2, own=True),
]
wrong = [
    compare("generator, no workers", 0, own=True),
    compare("generator, no workers, its state restored too", 0, own=True, restore=True),
]
title = "generator, no workers, one random number drawn after the resumed epoch"
right.append(compare(title, 0, own=True, draw=True))
good = all(map(all, right)) and all(same == [True] * 2 + [False] * (EPOCHS - 2) for same in wrong)
sys.exit(0 if good else 1)
PYTHON
