#!/usr/bin/env bash
# FFmpeg decodes one and the same Theora video to other pixels from run to run, with its default of a thread for each
# frame. With `-threads 1` or `-thread_type slice` the pixels are always the same.
#
# 2026-11-29, ffmpeg 9.0.2 as in imageio-ffmpeg 0.8.1 (and 5.1.9 of Debian 12), 2 cores. The video is made here by
# libtheora: 20 flat gray frames, most blocks of which are coded as unchanged. Seen, of 100 runs each:
#     default threads: 8 different results, the most frequent one 83 times
#     -thread_type slice: 1 result
# ffmpeg logs nothing and ends with status 0; some frames are off by 45 gray levels of 255.
#
# Why it matters: a video dataset that is decoded twice, in two processes or runs, is not the same; so is a checksum of it.
# Expected before: the decoder's output is determined by the file, whatever the threads.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install imageio-ffmpeg==0.8.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import collections
import hashlib
import subprocess
import sys

import imageio_ffmpeg

exe, video = imageio_ffmpeg.get_ffmpeg_exe(), sys.argv[1] + "/gray.ogv"
frames = b"".join(bytes([level]) * (160 * 96 * 3) for level in range(20, 220, 10))
source = "-f rawvideo -pix_fmt rgb24 -video_size 160x96 -framerate 10 -i pipe:0".split()
coder = "-c:v libtheora -q:v 5 -b:v 2M".split()
subprocess.run([exe, "-v", "error", *source, *coder, video], input=frames, check=True)


def results(*threads):
    seen = collections.Counter()
    for _ in range(100):
        command = [exe, "-nostdin", "-v", "error", *threads, "-i", video, *"-pix_fmt rgb24 -f rawvideo -".split()]
        run = subprocess.run(command, capture_output=True, check=True)
        assert not run.stderr and len(run.stdout) == len(frames)
        seen[hashlib.sha256(run.stdout).hexdigest()] += 1
    return seen


default, slices = results(), results("-thread_type", "slice")
print(f"default threads: {len(default)} different results, the most frequent one {max(default.values())} times")
print(f"-thread_type slice: {len(slices)} result")
sys.exit(0 if len(default) > 1 and len(slices) == 1 else 1)
PYTHON
