#!/usr/bin/env bash
# A video that moviepy writes from a list of frames (`ImageSequenceClip(frames, fps=fps).write_videofile`) lacks the
# last frame for many lengths: the duration is a sum of floats, and int(duration * fps) rounds it down. Which lengths
# depends on Python, whose `sum` of floats is more exact since 3.12. gymnasium's RecordVideo writes with it.
#
# 2026-11-30, moviepy 2.2.1, gymnasium 1.4.0, imageio-ffmpeg 0.8.1, numpy 2.4.6. Seen with Python 3.11.7; of the lengths
# from 1 to 1001 frames, as many lack their last frame (`iter_frames`):
#     20 fps: 393, 30 fps: 437, 50 fps: 799
# (Python 3.12.1 and 3.13.0: 0, 50, 21.) Written to mp4 and read back by ffmpeg:
#     ImageSequenceClip, 15 frames at 30 fps: 14 in the file
#     RecordVideo, an episode of 15 frames at 30 fps: 14 in the file
#
# Why it matters: the frame that is missing is the one in which the episode ends, the reason for many a video; a dataset
# of such videos has one frame less than it has observations, in some episodes and not in others.
# Expected before: as many frames in the file as in the list.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile moviepy==2.2.1 gymnasium==1.4.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import subprocess
import sys

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

SIZE = (48, 64, 3)


class Gray(gym.Env):
    """An episode of as many frames as `length` (the first one is of the reset), each a little brighter."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    render_mode = "rgb_array"
    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, length):
        self.length = length

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 0.0, self.time == self.length - 1, False, {}

    def render(self):
        return np.full(SIZE, 10 * self.time % 250, np.uint8)


def levels(path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, *"-fps_mode passthrough -pix_fmt gray".split()]
    raw = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *SIZE[:2]).mean((1, 2))


counts = {}
for fps in (20, 30, 50):
    clips = (ImageSequenceClip([np.zeros((2, 2, 3), np.uint8)] * n, fps=fps) for n in range(1, 1002))
    counts[fps] = sum(int(clip.duration * fps) != len(clip.sequence) for clip in clips)
print(", ".join(f"{fps} fps: {count}" for fps, count in counts.items()))

lengths = (n for n in range(10, 1002) if int(sum([1 / 30] * n) * 30) != n)  # the duration, as moviepy sums it
length = 15 if sys.version_info < (3, 12) else next(lengths)
frames = [np.full(SIZE, 10 * t % 250, np.uint8) for t in range(length)]
ImageSequenceClip(frames, fps=30).write_videofile(sys.argv[1] + "/clip.mp4", logger=None)
clip = levels(sys.argv[1] + "/clip.mp4")
print(f"ImageSequenceClip, {length} frames at 30 fps: {len(clip)} in the file")

env = gym.wrappers.RecordVideo(Gray(length), sys.argv[1] + "/videos", episode_trigger=lambda _: True, disable_logger=True)
env.reset(seed=0)
while not env.step(env.action_space.sample())[2]:
    pass
env.close()
recorded = levels(sys.argv[1] + "/videos/rl-video-episode-0.mp4")
print(f"RecordVideo, an episode of {length} frames at 30 fps: {len(recorded)} in the file")
first = len(clip) == length - 1 and np.abs(clip - [frame.mean() for frame in frames[:-1]]).max() < 4
sys.exit(0 if counts[30] > 0 and first and len(recorded) == length - 1 else 1)
PYTHON
