"""Image and video sources: frames decoded once, cached on disk at frame size, shared by all env processes.

A cache file is an uncompressed .npy that every process maps read-only, so that the frames are in memory once for any
number of envs. The first process that needs it decodes; the others wait for it at a file lock.
"""

import bisect
import contextlib
import fcntl
import glob
import hashlib
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .notes import note
from .sources import IMG_SOURCES
from .videos import read_video

DECODING = 2  # part of a cached file's name: to be raised when the decoded frames change


class Frames:
    """Clips shown one after another, wrapping around: from the first frame, or after `reset` from a random one.

    clips: arrays (N, H, W, 3) uint8, or (N, H, W, 1) grayscale.
    """

    def __init__(self, clips: Sequence[np.ndarray]):
        self.clips = clips
        self._starts = [0, *itertools.accumulate(map(len, clips))]
        self._index = 0

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        clip = bisect.bisect_right(self._starts, index) - 1
        return self.clips[clip][index - self._starts[clip]]

    def reset(self, rng: np.random.Generator) -> None:
        self._index = int(rng.integers(len(self)))

    def next(self) -> np.ndarray:
        """The current frame (H, W, 3); advances to the next one."""
        frame = self[self._index]
        self._index = (self._index + 1) % len(self)
        return frame if frame.shape[-1] == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)


class Noise:
    """Uniform noise, new in each frame."""

    def __init__(self, size: tuple[int, int]):
        self._shape = (*size, 3)
        self._rng = np.random.default_rng(0)

    def reset(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def next(self) -> np.ndarray:
        return self._rng.integers(256, size=self._shape, dtype=np.uint8)


class Color:
    """One random color, new in each episode."""

    def __init__(self, size: tuple[int, int]):
        self._frame = np.zeros((*size, 3), np.uint8)

    def reset(self, rng: np.random.Generator) -> None:
        self._frame[:] = rng.integers(256, size=3, dtype=np.uint8)

    def next(self) -> np.ndarray:
        return self._frame


class Clouds:
    """Moving clouds with the statistics of natural images: amplitudes fall as 1/f, and large shapes last longer.

    Each spatial frequency f (cycles per image) is a complex Ornstein-Uhlenbeck process: it decorrelates over about
    80/f frames while the whole image drifts. Grayscale; an episode draws its own clouds, drift and brightness.
    """

    MEAN, STD = 128, 56  # gray levels, before clipping

    def __init__(self, size: tuple[int, int]):
        self.size = size
        fy, fx = np.fft.fftfreq(size[0], 1 / size[0])[:, None], np.fft.rfftfreq(size[1], 1 / size[1])[None]
        f = np.maximum(np.hypot(fy, fx), 1)  # (H, W // 2 + 1)
        self._frequency = fy, fx
        amplitude = 1 / f
        amplitude[0, 0] = 0
        # the frames' variance is the sum over both halves of the spectrum
        both = np.full(amplitude.shape[1], 2.0)
        both[0] = 1
        if size[1] % 2 == 0:
            both[-1] = 1
        self._amplitude = amplitude * (self.STD * math.prod(size) / math.sqrt((both * amplitude**2).sum()))
        self._kept = np.exp(-f / 80)
        self.reset(np.random.default_rng(0))

    def reset(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._level = self.MEAN + rng.uniform(-24, 24)
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.002, 0.012)  # image widths per frame
        fy, fx = self._frequency
        drift = np.exp(-2j * np.pi * speed * (fy * np.sin(angle) + fx * np.cos(angle)))
        self._move = (self._kept * drift).astype(np.complex64)
        self._renew = (self._amplitude * np.sqrt(1 - self._kept**2)).astype(np.float32)
        self._spectrum = self._noise() * self._amplitude.astype(np.float32)

    def _noise(self) -> np.ndarray:
        """Complex normal numbers of variance 1, (H, W // 2 + 1) complex64."""
        pairs = self._rng.standard_normal((*self._amplitude.shape, 2), np.float32)
        return pairs.view(np.complex64)[..., 0] / np.float32(math.sqrt(2))

    def next(self) -> np.ndarray:
        frame = np.fft.irfft2(self._spectrum, s=self.size) + self._level
        self._spectrum = self._move * self._spectrum + self._renew * self._noise()
        gray = np.clip(frame, 0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)


def make_source(
    img_source: str, size: tuple[int, int], *, seed: int = 0, evaluation: bool = False, resource_files: str = "",
    eval_resource_files: str = "", total_frames: int = 1000, cache: str | Path,
) -> Frames | Clouds | Noise | Color:  # fmt: skip
    """The background of a `_video` task.

    img_source: `video` (all frames of the files, the files in an order that depends on the seed, up to total_frames),
    `images` (a file per frame, in the order of their names, up to total_frames), both grayscale and resized to `size`;
    `clouds`, `noise` or `color`, which need no files. size: (height, width). seed: the env's. resource_files: glob, or
    a folder; eval_resource_files: those of an evaluation env, the same by default.

    Raises ValueError for an unknown img_source, total_frames below 1 and a file that is not a video or image;
    FileNotFoundError if there are no files.
    """
    if img_source not in IMG_SOURCES:
        raise ValueError(f"--img_source {img_source}: expected one of {', '.join(IMG_SOURCES)}")
    generated = {"clouds": Clouds, "noise": Noise, "color": Color}
    if img_source in generated:
        return generated[img_source](size)
    if total_frames != int(total_frames) or total_frames < 1:
        raise ValueError(f"--total_frames is {total_frames}: expected a whole number above 0")
    if eval_resource_files:  # a training env checks them too: a run fails at its start, not at its first evaluation
        held_out = find_files(eval_resource_files, img_source, "--eval_resource_files")
    files = held_out if evaluation and eval_resource_files else find_files(resource_files, img_source)
    settings = {"grayscale": True, "limit": int(total_frames), "cache": cache}
    if img_source == "images":
        return Frames(load_clips([files], size, read=read_image, **settings))
    order = np.random.default_rng([seed, 0, 1]).permutation(len(files))  # unlike the streams of episodes, [seed, n]
    return Frames(load_clips([[files[i]] for i in order], size, **settings))


def find_files(resource_files: str, img_source: str, flag: str = "--resource_files") -> list[Path]:
    """The files of a glob, or of a folder, sorted by path; hidden files are left out."""
    remedy = f"name your own, such as {flag} 'FOLDER/*.jpg'; --img_source clouds, noise or color needs none"
    if img_source == "video":
        remedy = (
            remedy.replace("jpg", "mp4") + "; python setup/download_assets.py kinetics --videos FOLDER shrinks them"
        )
    if not resource_files:
        raise FileNotFoundError(f"--img_source {img_source} needs {flag}: {remedy}")
    files = glob_files(resource_files)
    if not files:
        raise FileNotFoundError(f"{flag} {resource_files}: no file there; {remedy}")
    return files


def glob_files(pattern: str) -> list[Path]:
    """The files of a glob, or of a folder, as absolute paths in their order; hidden files are left out."""
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "*")
    return sorted(Path(name).absolute() for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))


def read_image(path: Path) -> Iterator[np.ndarray]:
    """The one frame of an image file, (h, w, 3) uint8 RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not a readable image; repair or remove the file")
    yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_clips(
    clips: Sequence[Sequence[Path]], size: tuple[int, int], *, grayscale: bool = False, limit: int | None = None,
    cache: str | Path, read=read_video,
) -> list[np.ndarray]:  # fmt: skip
    """Clips as read-only arrays (N, H, W, 3), or (N, H, W, 1) in grayscale, that all processes share.

    A clip is a list of files whose frames follow one another, resized bilinearly to `size` (height, width). `limit` is
    the maximum number of frames of all clips together: the last clip is cut, and those after it are not read. A clip is
    decoded at its first use and then found in the folder `cache`, named after its files' paths, sizes and times. If
    that folder cannot be written, ~/.cache/hrssm or a temporary one replaces it, with a line on stderr.
    """
    folder, bar, decoded = Path(cache), None, False
    arrays, left = [], limit or sys.maxsize
    with contextlib.ExitStack() as on_exit:
        for clip in clips:
            name = cache_name(clip, f"{size[0]}x{size[1]}", grayscale, limit, read.__name__, DECODING)
            array = _open_cached(folder / name)
            if array is None and bar is None:  # other processes wait from here on, as this one may decode
                folder = on_exit.enter_context(locked_folder(folder))
                # A progress bar on a terminal: of frames if their number is known, else of files.
                total, unit = (limit, "frame") if limit else (sum(map(len, clips)), "file")
                bar = on_exit.enter_context(tqdm(total=total, unit=unit, desc="decoding backgrounds", disable=None))
                array = _open_cached(folder / name)
            if array is None:
                if folder != Path(cache) and not decoded:
                    note(f"{Path(cache).absolute()} cannot be written: decoded frames go to {folder}")
                _save(folder / name, _decode(clip, size, grayscale, limit, read, bar))
                array, decoded = _open_cached(folder / name), True
            arrays.append(array[:left])
            left -= len(arrays[-1])
            if not left:
                break
        if bar is not None:
            bar.total = bar.n  # fewer than the limit
    return arrays


def _decode(clip, size: tuple[int, int], grayscale: bool, limit: int | None, read, bar) -> np.ndarray:
    frames = []
    for path in clip:
        for frame in read(path):
            if grayscale:
                frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
            frames.append(frame.reshape(*size, -1))
            if limit:
                bar.update()
                if len(frames) == limit:
                    return np.stack(frames)
        if not limit:
            bar.update()
    return np.stack(frames)


def cache_name(files: Sequence[Path], label: str, *settings, suffix: str = ".npy") -> str:
    """A name for what is made of files with these settings: another one if a file's path, size or time changes."""
    stats = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((stats, label, settings)).encode()).hexdigest()[:20]
    return f"{files[0].stem[:40]}-{label}-{key}{suffix}"


def _open_cached(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):  # missing, or truncated by a crash of the machine: decode (again)
        return None


def _save(path: Path, frames: np.ndarray) -> None:
    """Writes under another name first, so that no process sees an incomplete file."""
    part = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            np.save(file, frames)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: cannot write {frames.nbytes / 2**20:.0f} MiB of decoded frames ({error})") from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(cache: Path) -> Iterator[Path]:
    """The first of three folders that can be written, with its lock held: `cache`, the user's own, a temporary one."""
    choices = (lambda: cache, lambda: Path.home() / ".cache" / "hrssm", lambda: Path(tempfile.mkdtemp(prefix="hrssm-")))
    for choose in choices:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
            folder = choose()
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("a")
            break
    else:
        raise OSError(f"{cache.absolute()} cannot be written, nor the home, nor the temporary folder")
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks: envs that start together decode twice
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes or its process dies
        yield folder
