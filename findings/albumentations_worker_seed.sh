#!/usr/bin/env bash
# Albumentations gives all workers of a DataLoader the same random numbers, and gives them again in each epoch. Compose
# has a generator of its own. Each worker starts from the copy that the process had when the epoch began, and that one
# never moves on, as the main process draws nothing. PyTorch seeds its workers, but it cannot reach this generator.
#
# 2026-11-30, albumentations 2.0.8, torch 2.13.0 (CPU), numpy 2.4.6. RandomCrop of 64 x 64 from 128 x 128 (4,225 places)
# for 64 frames, batches of 8, in three epochs. Seen (the number of values of torch.rand that the same items draw: 192):
#     no workers: 188 different crops of 192, 64 of 64 in the first epoch, all epochs alike: no
#     4 workers: 16 different crops of 192, 16 of 64 in the first epoch, all epochs alike: yes
#     4 workers, shuffle=True: 16 different crops of 192, 16 of 64 in the first epoch, all epochs alike: yes
#     4 workers, Compose(seed=1): 16 different crops of 192, 16 of 64 in the first epoch, all epochs alike: yes
#     4 workers, kept: 47 different crops of 192, 16 of 64 in the first epoch, all epochs alike: no
#     4 workers, seeded by us: 189 different crops of 192, 63 of 64 in the first epoch, all epochs alike: no
# (kept: persistent_workers=True. Seeded by us: worker_init_fn calls Compose.set_random_seed with torch's seed.)
#
# The docstring of Compose says for seed=None, the default, "Generates a new internal random state on each Compose
# creation", and for a seed "Each call to the same Compose instance still produces random augmentations". Neither the
# docstrings of the package nor its README mention workers. Its successor, albumentationsx 2.5.1, gives 189 different
# crops of 192 with 4 workers.
#
# Why it matters: an agent from pixels with random shifts, or a contrastive loss on two views, learns from 16 crops in
# place of fresh ones, and frames of different workers get equal ones. More epochs do not help. It looks like
# overfitting, or like an augmentation that has no effect. With num_workers=0, as in a test, all is well.
# Expected before: about 190 different crops, as without workers and as transforms of torch give.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export NO_ALBUMENTATIONS_UPDATE=1
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 albumentations==2.0.8 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import albumentations as A
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

ITEMS, EPOCHS = 64, 3


class Frames(Dataset):
    """Each item: where a crop starts, in a picture whose pixels tell their place, and a number of torch's generator."""

    def __init__(self, seed):
        self.crop = A.Compose([A.RandomCrop(64, 64)], seed=seed)
        self.picture = np.zeros((128, 128, 3), np.uint8)
        self.picture[..., 0], self.picture[..., 1] = np.mgrid[:128, :128]

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        row, column, _ = self.crop(image=self.picture)["image"][0, 0].tolist()
        return row, column, torch.rand(()).item()


def train(seed, workers, init=None, **options):
    """Crops and random numbers of three epochs."""
    torch.manual_seed(0)
    loader = DataLoader(Frames(seed), batch_size=8, num_workers=workers, worker_init_fn=init, **options)
    epochs = []
    for _ in range(EPOCHS):
        rows = [torch.stack(batch, 1) for batch in loader]
        epochs.append(torch.cat(rows).tolist())
    return epochs


def reseed(worker):
    torch.utils.data.get_worker_info().dataset.crop.set_random_seed(torch.initial_seed() % 2**32)


def show(title, epochs):
    crops = [[(row, column) for row, column, _ in epoch] for epoch in epochs]
    different, first = len({crop for epoch in crops for crop in epoch}), len(set(crops[0]))
    alike = crops[0] == crops[1] == crops[2]
    print(
        f"{title}: {different} different crops of {ITEMS * EPOCHS}, {first} of {ITEMS} in the first epoch, "
        f"all epochs alike: {'yes' if alike else 'no'}"
    )
    assert len({number for epoch in epochs for _, _, number in epoch}) == ITEMS * EPOCHS
    return different, first, alike


print("albumentations", A.__version__, "torch", torch.__version__)
alone = show("no workers", train(None, 0))
wrong = [
    show("4 workers", train(None, 4)),
    show("4 workers, shuffle=True", train(None, 4, shuffle=True)),
    show("4 workers, Compose(seed=1)", train(1, 4)),
]
kept = show("4 workers, kept", train(None, 4, persistent_workers=True))
seeded = show("4 workers, seeded by us", train(None, 4, reseed))
good = all(different <= ITEMS // 4 and first <= ITEMS // 4 and alike for different, first, alike in wrong)
good &= kept[0] <= ITEMS * EPOCHS // 4 and kept[1] <= ITEMS // 4 and not kept[2]
good &= all(different > 170 and first > 55 and not alike for different, first, alike in (alone, seeded))
sys.exit(0 if good else 1)
PYTHON
