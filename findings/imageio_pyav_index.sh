#!/usr/bin/env bash
# imageio's pyav plugin returns another frame than the one asked for in WebM and Matroska files: `imread(path, index=i)`
# gives frame i + 1. It takes the number of the key frame that it seeks to from its time, rounded down, and these files
# round times to milliseconds. The frames of a whole `imread(path)` are right.
#
# 2026-11-30, imageio 2.38.1, av 18.1.0, numpy 2.4.6. Videos of 180 frames, written by the same plugin, each frame with
# its number in black and white. How many of every fifth frame, read one at a time, have another number. Seen:
#     webm, 24 a second: 10 of 36 wrong: frame 131 for 130 to frame 176 for 175
#     webm, 30 a second: 0 of 36 wrong
#     webm, 60 a second: 10 of 36 wrong: frame 131 for 130 to frame 176 for 175
#     mkv, 30 a second: 11 of 36 wrong: frame 66 for 65 to frame 176 for 175
#     mp4, 60 a second: 0 of 36 wrong
#     webm, 60 a second, constant_framerate=False: 0 of 36 wrong
# (Frame 128 at 60 a second is at 2,133.33 ms and stored as 2,133, which is 127.98 frames. The plugin's documentation
# warns of B-frames; VP9 has none.)
#
# Why it matters: frames are read one at a time where a data set of videos holds the observations, to draw a slice for a
# batch. Actions and rewards are then paired with the next frame, in a part of each video only: up to the first such key
# frame, as in a short test video, all is right. Whether it happens at all depends on the frame rate.
# Expected before: frame i of the video, as from `imread(path)[i]`; the plugin says that it reads "the index-th frame".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile imageio==2.38.1 av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import imageio.v3 as iio
import numpy as np

FRAMES = 180
bits = np.arange(FRAMES)[:, None] >> np.arange(8) & 1
frames = np.repeat(np.repeat(bits[:, None, :, None], 8, axis=2), 3, axis=3).repeat(64, axis=1).astype(np.uint8) * 255


def number(frame):
    """The number in a frame: eight bars of eight pixels, bright for 1."""
    return int((frame[:, 4::8].mean(axis=(0, 2)) > 127) @ (1 << np.arange(8)))


seen = {}
for path, codec, rate, more in (
    ("a.webm", "libvpx-vp9", 24, {}),
    ("a.webm", "libvpx-vp9", 30, {}),
    ("a.webm", "libvpx-vp9", 60, {}),
    ("a.mkv", "libx264", 30, {}),
    ("a.mp4", "libx264", 60, {}),
    ("a.webm", "libvpx-vp9", 60, {"constant_framerate": False}),
):
    iio.imwrite(path, frames, plugin="pyav", codec=codec, fps=rate)
    whole = [number(frame) for frame in iio.imread(path, plugin="pyav")]
    if whole != list(range(FRAMES)):
        sys.exit(f"{path}: the frames in order are {whole}")
    single = {index: number(iio.imread(path, plugin="pyav", index=index, **more)) for index in range(0, FRAMES, 5)}
    wrong = [index for index, shown in single.items() if shown != index]
    seen[path, rate, *more] = {single[index] - index for index in wrong}
    which = f": frame {single[wrong[0]]} for {wrong[0]} to frame {single[wrong[-1]]} for {wrong[-1]}" if wrong else ""
    options = "".join(f", {key}={value}" for key, value in more.items())
    print(f"{path[2:]}, {rate} a second{options}: {len(wrong)} of {len(single)} wrong{which}")
good = seen["a.webm", 24] == seen["a.webm", 60] == seen["a.mkv", 30] == {1}
right = [seen["a.webm", 30], seen["a.mp4", 60], seen["a.webm", 60, "constant_framerate"]]
sys.exit(0 if good and not any(right) else 1)
PYTHON
