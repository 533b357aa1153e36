#!/usr/bin/env bash
# scikit-video returns scrambled frames for a video that its file says to turn by 90 degrees, as every upright phone
# video does: ffmpeg turns the frames, scikit-video cuts the bytes at the width and height from before.
#
# 2026-11-29, scikit-video 1.1.11, numpy 1.23.5, Python 3.11, ffmpeg and ffprobe 5.1.9 (Debian 12). The video is 160 x 96
# with the upper left quarter bright, to be turned to 96 x 160 with the lower left quarter bright. Seen by vread:
#     shape (5, 96, 160, 3); bright are 0% of the upper half, 50% of the lower
#     columns of the lower half with both bright and dark pixels: 160
# As 160 rows of 96 pixels, the same bytes are the right picture.
#
# Why it matters: shape and number of frames look right, no error, no warning; the pictures are stripes.
# Expected before: frames as stored (on their side), or turned with the new shape.
#
# Needs Python 3.11 (scikit-video uses names that numpy 1.24 removed), ffmpeg and ffprobe on PATH.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install scikit-video==1.1.11 numpy==1.23.5 scipy==1.15.3 pillow==13.0.0 imageio-ffmpeg==0.8.1
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import skvideo.io

exe, flat, turned = imageio_ffmpeg.get_ffmpeg_exe(), sys.argv[1] + "/flat.mp4", sys.argv[1] + "/turned.mp4"
frames = np.full((5, 96, 160, 3), 40, np.uint8)
frames[:, :48, :80] = 220
source = "-f rawvideo -pix_fmt rgb24 -video_size 160x96 -framerate 10 -i pipe:0".split()
coder = "-c:v libx264 -crf 10 -pix_fmt yuv420p".split()
subprocess.run([exe, "-v", "error", *source, *coder, flat], input=frames.tobytes(), check=True)
subprocess.run([exe, "-v", "error", "-display_rotation", "90", "-i", flat, "-c", "copy", turned], check=True)

read = skvideo.io.vread(turned)
bright = read[2, ..., 0] > 130
upper, lower = bright[:48].mean(), bright[48:].mean()
print(f"shape {read.shape}; bright are {upper:.0%} of the upper half, {lower:.0%} of the lower")
print(f"columns of the lower half with both bright and dark pixels: {(np.ptp(bright[48:].astype(int), 0) == 1).sum()}")
picture = read.reshape(5, 160, 96, 3)[2, ..., 0].astype(int)
right = np.abs(picture - np.rot90(frames[2, ..., 0])).mean() < 3
print(f"as 160 rows of 96 pixels, the picture is {'right' if right else 'wrong'}")
sys.exit(0 if read.shape == (5, 96, 160, 3) and right and not np.allclose(read[2], frames[2], atol=60) else 1)
PYTHON
