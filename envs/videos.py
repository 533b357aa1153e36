"""Video files as frames, by the ffmpeg that imageio-ffmpeg brings along; where that decodes nothing, by scikit-video.

Where OpenCV's decoder is right, this one gives the same frames to the bit. But OpenCV 4.11 decodes no AV1, ignores full
range and some rotations, reads the first stream of a file whatever it is (a cover, a thumbnail), and does not tell when
a file is damaged.
"""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

from .notes import note


class Stream(NamedTuple):
    """The video stream of a file: its index in it, the number of frames that its length suggests (or 0), its codec."""

    index: int
    frames: int
    codec: str


def find_stream(path: Path) -> Stream | None:
    """The default video stream, of several the largest one; None if there is none. Covers do not count."""
    about = subprocess.run(_ffmpeg(path), capture_output=True, text=True, errors="replace").stderr
    duration = re.search(r"^ *Duration: (\d+):(\d+):([\d.]+)", about, re.MULTILINE)
    seconds = np.dot([3600, 60, 1], list(map(float, duration.groups()))) if duration else 0
    best, found = (False, -1), None
    for index, codec, text in re.findall(r"^ *Stream #0:(\d+)\S*: Video: (\w+)(.*)", about, re.MULTILINE):
        size, rate = re.search(r", (\d+)x(\d+)", text), re.search(r", ([\d.]+) fps", text)
        rank = "(default)" in text, int(size[1]) * int(size[2]) if size else 0
        if "(attached pic)" not in text and rank > best:
            best, found = rank, Stream(int(index), round(seconds * float(rate[1])) if rate else 0, codec)
    return found


def command(path: Path, stream: Stream, *output: str) -> list[str]:
    """The ffmpeg command that hands each frame of the stream, whatever its time, to the output with these options."""
    # With a thread for each frame, the decoder of Theora gives other pixels from run to run.
    threads = ["-thread_type", "slice"] if stream.codec in ("theora", "vp3", "vp4") else []
    return [*_ffmpeg(path, *threads), "-v", "error", "-map", f"0:{stream.index}", "-fps_mode", "passthrough", *output]


def _ffmpeg(path: Path, *options: str) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-y", *options, "-i", f"file:{path}"]


def damage(frames: int, stream: Stream, status: int, log: str) -> str:
    """The report on a file of which ffmpeg read `frames` frames; empty if it ended well and logged no error."""
    if not status and not log.strip():
        return ""
    return f"damaged, {frames} of about {max(frames, stream.frames)} frames"


def read_video(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, (h, w, 3) uint8 RGB, upright, each of them once.

    A line on stderr reports it if only a part could be decoded. Raises ValueError if there is no frame.
    """
    frames: Iterator[np.ndarray] = iter(())
    problem, advice = "no frame of it could be decoded", "repair or remove the file"
    try:
        stream = find_stream(path)
        if stream is None:
            raise ValueError(f"{path}: not a readable video (it has no video stream); repair or remove the file")
        frames = _read_ffmpeg(path, stream)
    except RuntimeError:
        problem, advice = "imageio-ffmpeg has no ffmpeg for this system", "install one, or name it: IMAGEIO_FFMPEG_EXE"
    first = next(frames, None)
    if first is None:
        frames = _read_skvideo(path)
        first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: not a readable video ({problem}); {advice}")
    yield first
    yield from frames


def _read_ffmpeg(path: Path, stream: Stream) -> Iterator[np.ndarray]:
    images = command(path, stream, *"-c:v ppm -pix_fmt rgb24 -f image2pipe -".split())  # they tell their size
    count = 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(images, stdout=subprocess.PIPE, stderr=log, bufsize=1 << 20)
        try:
            while process.stdout.readline():  # P6
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # the largest value, 255
                frame = np.frombuffer(process.stdout.read(height * width * 3), np.uint8)
                if frame.size < height * width * 3:
                    break
                count += 1
                yield frame.reshape(height, width, 3)
            status = process.wait()
        finally:  # runs too when no more frames are wanted
            process.kill()
            process.stdout.close()
            process.wait()
        log.seek(0)
        if count and (text := damage(count, stream, status, log.read().decode(errors="replace"))):
            note(f"{path}: {text}")


def _read_skvideo(path: Path) -> Iterator[np.ndarray]:
    if np.lib.NumpyVersion(np.__version__) >= "1.24.0":  # scikit-video uses names that numpy has removed
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised for those names
        try:
            import skvideo.io

            if "@rotation" in str(skvideo.io.ffprobe(str(path))):
                return  # ffmpeg turns the frames, and skvideo takes them for those of an upright video
            frames = skvideo.io.vreader(str(path))
            first = next(frames, None)
        except Exception:  # any type, as read_video raises its own error for a file without frames
            return
        if first is not None:
            yield first
            yield from frames
