"""Video files: frames to MP4 or GIF."""

import contextlib
import io
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def enlarge(frame: np.ndarray, zoom: int) -> np.ndarray:
    """Each pixel as zoom x zoom pixels: (H, W, 3) → (zoom·H, zoom·W, 3)."""
    return frame.repeat(zoom, axis=0).repeat(zoom, axis=1)


def write(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes (H, W, 3) uint8 frames as a video that browsers play: .gif, or H.264 in yuv420p. Returns their number.

    The file is written atomically. Raises OSError, one line, if it cannot be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix.lower() == ".gif":
            frames = list(frames)
            part.write_bytes(encode_gif(frames, fps))
            count = len(frames)
        else:
            count = _write_h264(part, frames, fps)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: the video cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _write_h264(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    import imageio_ffmpeg

    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    # yuv420p halves the resolution of color: an odd side repeats its last line
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    size = f"{width + width % 2}x{height + height % 2}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(fps), "-i", "pipe:0"]
    target = ["-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p", "-r", str(fps), "-y", str(path)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *target]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        count = 0
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended; its log tells why
                for frame in itertools.chain([first], frames):
                    process.stdin.write(np.pad(frame, pad, mode="edge").tobytes())
                    count += 1
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        if status:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines() or [f"ffmpeg ended with status {status}"]
            raise OSError(re.sub(r"^\[.*?\] ", "", lines[0]))  # drops the name of the ffmpeg component
    return count


def encode_gif(frames: Sequence[np.ndarray], fps: float = 20, max_frames: int | None = None) -> bytes:
    """An endless animated GIF of uint8 frames (T, H, W, 3).

    max_frames: for logs, every nth frame, so that there are at most so many, each in 64 colors. An episode of 500
    frames in front of clouds takes 0.3 MB and 0.6 s with 128, and 2.4 MB and 10 s without.
    """
    step = -(-len(frames) // max_frames) if max_frames else 1
    images = [Image.fromarray(frame) for frame in frames[::step]]
    if max_frames:
        images = [image.quantize(64, Image.Quantize.MAXCOVERAGE) for image in images]
    buffer, duration = io.BytesIO(), round(1000 * step / fps)
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()
