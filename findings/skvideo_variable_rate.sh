#!/usr/bin/env bash
# scikit-video reads a video of variable frame rate wrong without a word: it repeats frames that last longer, and cuts
# as many off at the end, so that the number of frames looks right.
#
# 2026-11-29, scikit-video 1.1.11, numpy 1.23.5, Python 3.11, ffmpeg and ffprobe 5.1.9 (Debian 12). The video has 20 gray
# frames, 20, 30, ... 210; every third one lasts five times as long. Seen by vread:
#     20 frames, 9 different ones, gray levels 19 to 100
# ffmpeg itself, with -fps_mode passthrough: 20 frames, 20 different ones, gray levels 19 to 209.
#
# Why it matters: phones and screen recorders write variable rates. Half of such a video is missing, and the rest stands
# still in between.
# Expected before: each frame once, or more frames than the file has.
#
# Needs Python 3.11 (scikit-video uses names that numpy 1.24 removed), ffmpeg and ffprobe on PATH.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install scikit-video==1.1.11 numpy==1.23.5 scipy==1.15.3 pillow==13.0.0
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import subprocess
import sys

import numpy as np
import skvideo.io

video = sys.argv[1] + "/variable.mp4"
frames = np.repeat(np.arange(20, 220, 10, dtype=np.uint8), 96 * 160 * 3).tobytes()
source = "-f rawvideo -pix_fmt rgb24 -video_size 160x96 -framerate 10 -i pipe:0".split()
times = ["-vf", "setpts=(N+4*floor(N/3))/10/TB", "-fps_mode", "vfr"]
coder = "-c:v libx264 -crf 10 -pix_fmt yuv420p".split()
subprocess.run(["ffmpeg", "-v", "error", *source, *times, *coder, video], input=frames, check=True)


def describe(name, frames):
    levels = frames.mean((1, 2, 3)).round().astype(int)
    print(f"{name}: {len(levels)} frames, {len(set(levels))} different ones, gray levels {min(levels)} to {max(levels)}")
    return len(levels), len(set(levels)), max(levels)


command = ["ffmpeg", "-v", "error", "-i", video, *"-fps_mode passthrough -pix_fmt rgb24 -f rawvideo -".split()]
raw = subprocess.run(command, capture_output=True, check=True).stdout
right = describe("ffmpeg", np.frombuffer(raw, np.uint8).reshape(-1, 96, 160, 3))
wrong = describe("scikit-video", skvideo.io.vread(video))
sys.exit(0 if right[:2] == (20, 20) and wrong[0] == 20 and wrong[1] < 15 and wrong[2] < 150 else 1)
PYTHON
