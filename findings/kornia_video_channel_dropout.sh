#!/usr/bin/env bash
# kornia's RandomChannelDropout leaves nearly all frames of a batch of videos as they are. VideoSequential with
# `same_on_frame=True`, its default, draws once for each of B clips and repeats the draw for the frames; the indices of
# the images, which this augmentation draws with the channels, stay 0 to B - 1. So B of B * T frames lose a channel: the
# first ones of the batch, each the channel that was drawn for another clip.
#
# 2026-11-30, kornia 0.9.0, torch 2.13.0 (CPU), numpy 2.4.6. Four clips of six frames, p=1. The number of frames that
# change in each clip (6 6 6 6 is right). Seen:
#     RandomHorizontalFlip, same_on_frame=True: BTCHW 6 6 6 6, BCTHW 6 6 6 6
#     RandomHorizontalFlip, same_on_frame=False: BTCHW 6 6 6 6, BCTHW 6 6 6 6
#     RandomBrightness, same_on_frame=True: BTCHW 6 6 6 6, BCTHW 6 6 6 6
#     RandomBrightness, same_on_frame=False: BTCHW 6 6 6 6, BCTHW 6 6 6 6
#     RandomChannelDropout, same_on_frame=True: BTCHW 4 0 0 0, BCTHW 4 0 0 0
#     RandomChannelDropout, same_on_frame=False: BTCHW 6 6 6 6, BCTHW 6 6 6 6
# (45 other augmentations that were tried in VideoSequential treat all frames of a clip alike. No warning is printed.)
#
# Why it matters: with sequences of 64 frames, as world models train on, 1 of 64 frames is augmented instead of all. An
# ablation finds that it neither helps nor hurts; and the first clip flickers, which nothing in the data does.
# Expected before: as VideoSequential says, "one draw is shared by every frame of a clip and the clip stays temporally
# consistent", which has no exception for this augmentation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 kornia==0.9.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import kornia.augmentation as K
import torch

torch.set_num_threads(1)
CLIPS, FRAMES = 4, 6
videos = torch.full((CLIPS, FRAMES, 3, 16, 16), 0.5)
good = True
for name, augmentation, all_frames in (
    ("RandomHorizontalFlip", lambda: K.RandomHorizontalFlip(p=1.0), True),
    ("RandomBrightness", lambda: K.RandomBrightness((1.5, 1.5), p=1.0), True),
    ("RandomChannelDropout", lambda: K.RandomChannelDropout(p=1.0), False),
):
    inputs = videos + torch.arange(16) / 100 if "Flip" in name else videos  # a gradient, so that a flip is seen
    for same in (True, False):
        torch.manual_seed(0)
        seen = {}
        for data_format in ("BTCHW", "BCTHW"):
            sequence = K.VideoSequential(augmentation(), data_format=data_format, same_on_frame=same)
            result = sequence(inputs if data_format == "BTCHW" else inputs.transpose(1, 2).contiguous())
            result = result if data_format == "BTCHW" else result.transpose(1, 2)
            counts = seen[data_format] = (result != inputs).flatten(2).any(-1).sum(1).tolist()
            good &= counts == ([FRAMES] * CLIPS if all_frames or not same else [CLIPS] + [0] * (CLIPS - 1))
        texts = (f"{data_format} {' '.join(map(str, counts))}" for data_format, counts in seen.items())
        print(f"{name}, same_on_frame={same}:", ", ".join(texts))
sys.exit(0 if good else 1)
PYTHON
