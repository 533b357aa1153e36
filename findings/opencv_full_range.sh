#!/usr/bin/env bash
# OpenCV's VideoCapture decodes a full-range VP9 video as if it were limited-range: gray 20 comes out as 2, gray 235 as
# 253, and what is below 16 or above 235 is lost. The same frames in H.264 with the same flag come out right.
#
# 2026-11-29, opencv-python-headless 4.11.0.86 (its ffmpeg 59.x), the videos are made and checked by ffmpeg 9.0.2 of
# imageio-ffmpeg 0.8.1. Both files say that they are full-range (ffmpeg: "yuv420p(pc"). Seen, for gray 20 and 235:
#     VP9: ffmpeg [19, 234], OpenCV [2, 253]
#     H.264: ffmpeg [19, 234], OpenCV [19, 234]
#
# Why it matters: phones and screen recorders write full range. The frames look plausible, only with more contrast.
# Expected before: both right, or both wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install imageio-ffmpeg==0.8.1 opencv-python-headless==4.11.0.86 numpy==2.2.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import subprocess
import sys

import cv2
import imageio_ffmpeg
import numpy as np

exe = imageio_ffmpeg.get_ffmpeg_exe()
frames = np.empty((2, 96, 160, 3), np.uint8)
frames[0], frames[1] = 20, 235
seen = {}
for name, coder in (("VP9", ["-c:v", "libvpx-vp9", "-crf", "4"]), ("H.264", ["-c:v", "libx264", "-crf", "4"])):
    video = f"{sys.argv[1]}/{name}.mkv"
    source = "-f rawvideo -pix_fmt rgb24 -video_size 160x96 -framerate 10 -i pipe:0".split()
    full = ["-vf", "scale=out_range=full,format=yuv420p", "-color_range", "pc"]
    subprocess.run([exe, "-v", "error", *source, *full, *coder, video], input=frames.tobytes(), check=True)
    about = subprocess.run([exe, "-hide_banner", "-i", video], capture_output=True, text=True).stderr
    assert "yuv420p(pc" in about or "yuvj420p(pc" in about, about
    raw = subprocess.run([exe, "-v", "error", "-i", video, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"],
                         capture_output=True, check=True).stdout
    ffmpeg = np.frombuffer(raw, np.uint8).reshape(frames.shape)
    capture = cv2.VideoCapture(video)
    opencv = np.stack([capture.read()[1] for _ in frames])
    seen[name] = [[round(float(frame.mean())) for frame in read] for read in (ffmpeg, opencv)]
    print(f"{name}: ffmpeg {seen[name][0]}, OpenCV {seen[name][1]}")
close = lambda values, expected: np.abs(np.subtract(values, expected)).max() <= 2
good = close(seen["VP9"][0], [20, 235]) and close(seen["H.264"], [[20, 235]] * 2)
sys.exit(0 if good and close(seen["VP9"][1], [2, 253]) else 1)
PYTHON
