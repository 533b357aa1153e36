"""Episodes, their files, the folder that holds these, and what happens to damaged ones.

Files are uncompressed `.npz` archives named `{order}-env{env}-{episode}-{rows}.npz`, `order` counting the episodes in
the order in which they finished. That of a dropped episode ends in `.dropped` and holds no rows. They appear under
their names atomically (written aside, then renamed), so a killed process leaves no incomplete file. They are not synced
to disk: after a power failure, the files of the last seconds may be missing or damaged, which is reported.

Rows are read where they lie in the files. When a run starts, it reads the headers of the files; before the first rows
of a file are used, all of its checksums are compared, and again whenever its size or time has changed. Nothing is
mapped: a mapped file that somebody truncates kills the process.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import mmap
import os
import re
import resource
import stat
import struct
import threading
import zipfile
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from run.logs import log

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of each key of a row
Arrays = dict[str, np.ndarray]

FILE_NAME = re.compile(r"(\d+)-env(\d+)-(\d+)-(\d+)\.(?:npz|dropped)")  # order of finishing, env, episode, rows
WRITE_HINTS = {
    errno.ENOSPC: "free some space or inodes, or set --replay_dir_limit",
    errno.EDQUOT: "free some of your quota, or set --replay_dir_limit",
    errno.EROFS: "the file system is read-only; choose a --logdir that can be written",
    errno.EACCES: "choose a --logdir that you may write to",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine's limit of open files is reached (fs.file-max)",
}
OWN_LIMITS = errno.ENOMEM, errno.EMFILE, errno.ENFILE  # errors of a read that are not the file's
MAPPED_BYTES = 1 << 17  # a buffer of at least this size is its own mapping
ALIGNED = 64  # start of an array in memory and in a file: copies between others take up to three times as long
SMALL_BYTES = 256  # a key with rows up to this size stays in memory, as reading it takes longer than copying it
ZIP_HEADER = 30 + 4 + 20  # bytes before an array: fixed fields, those of the padding, those of large files
PADDING = 0xD935  # a zip archive's field that only aligns what follows
HEADER_BYTES = 4096  # maximum for the header of a .npy file
FILE_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_FILES = 1024 if FILE_LIMIT == resource.RLIM_INFINITY else min(1024, FILE_LIMIT // 2)  # kept open after a read


def episode_key(env: int, episode: int) -> str:
    """Name of an episode in segments: the same before and after it finishes, and after a restart."""
    return f"env{env:03d}-{episode:06d}"


def allocate(spec: Spec, rows: int, mapped: bool = True) -> Arrays:
    """Arrays of `rows` rows for each key, next to each other in one buffer.

    The buffer of a real episode is an anonymous mapping, not the allocator's: it costs memory only where it was
    written, and all of it returns to the system with the last reference, regardless of the process's heap settings.
    """
    lengths = [rows * math.prod(shape) * dtype.itemsize for shape, dtype in spec.values()]
    total, start = sum(-(-length // ALIGNED) * ALIGNED for length in lengths), 0
    if mapped and total >= MAPPED_BYTES:
        buffer = np.frombuffer(mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    else:
        buffer = np.empty(total + ALIGNED, np.uint8)
        start = -buffer.__array_interface__["data"][0] % ALIGNED
    arrays = {}
    for (key, (shape, dtype)), length in zip(spec.items(), lengths, strict=True):
        arrays[key] = buffer[start : start + length].view(dtype).reshape(rows, *shape)
        start += -(-length // ALIGNED) * ALIGNED
    return arrays


def spec_of(row: dict[str, np.ndarray]) -> Spec:
    """Shapes and types of a row as stored: float64 becomes float32."""
    arrays = {key: np.asarray(value) for key, value in row.items()}
    return {
        key: (value.shape, np.dtype(np.float32) if value.dtype == np.float64 else value.dtype)
        for key, value in arrays.items()
    }


def row_bytes(spec: Spec) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in spec.values())


def spec_of_episode(arrays: Arrays) -> Spec:
    return {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}


class EpisodeLost(Exception):
    """The rows of `episode` can no longer be read, because of `error`."""

    def __init__(self, episode: Episode, error: OSError | ValueError):
        super().__init__(f"{episode.path}: {error}")
        self.episode, self.error = episode, error


class OtherRows(ValueError):
    """An undamaged file that does not have the rows of this run."""


class Episode:
    """The rows of one episode: in memory, or the small keys there and the others in a file.

    A written row never changes, and `arrays` is replaced as a whole: `copy`, in another thread, needs no lock.
    """

    __slots__ = (
        "__weakref__", "_layout", "_lock", "arrays", "dropped_steps", "env", "index", "keep", "path", "rows", "spec"
    )  # fmt: skip

    def __init__(self, env: int, index: int, spec: Spec, rows: int = 0, path: Path | None = None):
        self.env, self.index, self.spec, self.rows, self.path = env, index, spec, rows, path
        self.arrays: Arrays = {}  # the keys in memory
        self.keep = True  # all of them may be there
        self.dropped_steps = 0  # agent steps of the episodes that were dropped between this one and the next
        self._layout: Layout | None = None  # layout of the file whose checksums were compared
        self._lock = threading.Lock()  # guards changes after the episode has finished

    @property
    def key(self) -> str:
        return episode_key(self.env, self.index)

    @property
    def steps(self) -> int:
        return self.rows - 1

    @property
    def whole(self) -> bool:
        """Whether all keys are in memory."""
        return len(self.arrays) == len(self.spec)

    def move(self, room: int) -> None:
        """Copies the rows to new arrays with space for `room` rows."""
        arrays = allocate(self.spec, room)
        for key, array in self.arrays.items():
            arrays[key][: self.rows] = array[: self.rows]
        self.arrays = arrays

    def copy(self, start: int, count: int, out: Arrays, at: tuple[int | slice, ...]) -> None:
        """Copies `count` rows from `start` on to `out[key][at]`, which is contiguous; raises EpisodeLost."""
        for _ in range(5):
            layout, arrays, missing = self._layout, self.arrays, {}
            for key, target in out.items():
                if key in arrays:
                    target[at] = arrays[key][start : start + count]
                else:
                    missing[key] = target[at]
            if not missing or (layout and self._read(layout, start, missing)):
                return
            self._load(layout)
        raise EpisodeLost(self, OSError(errno.EBUSY, "it changes all the time"))

    def _read(self, layout: Layout, start: int, into: Arrays) -> bool:
        """Reads rows from the file; False if it is no longer the one whose checksums were compared."""
        try:
            file = _open(self.path).number
            for key, target in into.items():
                size = target.nbytes
                if os.preadv(file, [target], layout.offsets[key] + start * (size // len(target))) != size:
                    return False
            return stamp(os.fstat(file)) == layout.stamp  # afterward, so that no change before is missed
        except (OSError, TypeError):  # TypeError: in memory by now
            return False

    def _load(self, known: Layout | None) -> None:
        """Reads the whole file, unless that was done since its layout was `known`; raises EpisodeLost."""
        with self._lock:
            if self.whole or self._layout is not known:
                return
            _open.cache_clear()
            try:
                layout, arrays = read_file(self.path, self.rows)
                check_spec(layout.spec, self.spec)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in OWN_LIMITS:
                    raise
                raise EpisodeLost(self, error) from error
            self.arrays = _copies(arrays if self.keep or not layout.plain else _small(arrays), self.rows)
            self._layout = layout

    def release(self) -> None:
        """Leaves all but the small keys to the file, unless that is compressed."""
        with self._lock:
            self.keep = False
            if self.path is not None and (self._layout is None or self._layout.plain):
                self.arrays = _copies(_small(self.arrays), self.rows)

    def is_gone(self) -> bool:
        """Whether it needs its file, and that is gone."""
        return not self.whole and not self.path.exists()

    def leave_file(self) -> None:
        """Takes the rows into memory: the file is no longer needed. Raises EpisodeLost."""
        self.keep = True
        while not self.whole:
            self._load(self._layout)
        self.path = None


class _OpenFile:
    """A file that is open for reading until nobody refers to it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for

    def __del__(self):
        if "number" in vars(self):
            os.close(self.number)


_open = functools.lru_cache(OPEN_FILES)(_OpenFile)


def _small(arrays: Arrays) -> Arrays:
    return {key: array for key, array in arrays.items() if array[:1].nbytes <= SMALL_BYTES}


def _copies(arrays: Arrays, rows: int) -> Arrays:
    """Copies of the first rows, in one buffer."""
    copies = allocate(spec_of_episode(arrays), rows)
    for key, array in copies.items():
        array[...] = arrays[key][:rows]
    return copies


class File(NamedTuple):
    """An episode file; in the order in which the episodes finished."""

    order: int  # position in the order of finishing
    env: int
    episode: int
    rows: int
    path: Path

    @property
    def key(self) -> str:
        return episode_key(self.env, self.episode)

    @property
    def dropped(self) -> bool:
        return self.path.suffix == ".dropped"


class EpisodeFiles:
    """The folder of the episode files.

    Args:
        folder: is made if it does not exist.
        limit: maximum number of agent steps kept as files, 0 for no limit. The oldest files are removed first, the
            newest stays.
        envs: whose files these are, where several replays share a folder; None for all.
    """

    def __init__(self, folder: Path, limit: int = 0, envs: Container[int] | None = None):
        self.folder, self.limit, self.envs = folder, limit, envs
        self._files: dict[str, File] = {}  # episode's key -> file, oldest first
        self._steps = 0
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def get(self, key: str) -> File | None:
        return self._files.get(key)

    def since(self, order: int) -> list[File]:
        """The files from place `order` on."""
        return [file for file in self._files.values() if file.order >= order]

    def write(self, order: int, episode: Episode, dropped: bool) -> None:
        """Writes an episode, which has its path then, or that it was dropped. Raises OSError, one line."""
        path = self.folder / f"{order:08d}-{episode.key}-{episode.rows}.{'dropped' if dropped else 'npz'}"
        aside = self.folder / f".{path.name}.tmp"
        try:
            # np.savez would neither close the file when a write fails nor align the arrays
            with open(aside, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for name, array in () if dropped else episode.arrays.items():
                    info = zipfile.ZipInfo(f"{name}.npy")
                    padding = -(file.tell() + ZIP_HEADER + len(info.filename)) % ALIGNED
                    info.extra = struct.pack(f"<HH{padding}x", PADDING, padding)
                    with archive.open(info, "w", force_zip64=True) as member:
                        rows = array[: episode.rows]
                        np.lib.format.write_array(member, rows, version=(1, 0), allow_pickle=False)
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            hint = f": {WRITE_HINTS[error.errno]}" if error.errno in WRITE_HINTS else ""
            raise OSError(error.errno, f"cannot write {path} ({error.strerror or error}){hint}") from error
        if dropped:
            return
        episode.path = path
        _open.cache_clear()  # an open file that is removed keeps its space on the disk
        self.add(File(order, episode.env, episode.index, episode.rows, path))

    def add(self, file: File) -> None:
        """Counts a file, the newest."""
        self._files[file.key] = file
        self._steps += file.rows - 1

    def forget(self, key: str) -> File | None:
        """Counts a file no longer; None if it was not counted."""
        file = self._files.pop(key, None)
        self._steps -= file.rows - 1 if file else 0
        return file

    def remove_excess(self) -> Iterator[str]:
        """Removes the oldest files beyond the limit; yields the key of each one before."""
        while self.limit and self._steps > self.limit and len(self._files) > 1:
            key = next(iter(self._files))
            yield key
            if file := self.forget(key):
                _open.cache_clear()  # an open file would keep its disk space
                file.path.unlink(missing_ok=True)

    def scan(self) -> tuple[list[File], int]:
        """The files, oldest first (of two for the same episode, the newer), and the place of the next one."""
        found: dict[str, File] = {}
        next_order = 0
        for path in (*self.folder.glob("*.npz"), *self.folder.glob("*.dropped")):
            match = FILE_NAME.fullmatch(path.name)
            if not match:
                log.warning(f"replay: {path} is not named like an episode: ignored")
                continue
            file = File(*map(int, match.groups()), path)
            if self.envs is not None and file.env not in self.envs:
                continue
            next_order = max(next_order, file.order + 1)
            try:
                status = path.stat()
            except OSError as error:
                report(path, error)
                continue
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block, a device might never end
                log.warning(f"replay: {path} is not a regular file: left out")
                continue
            if not file.dropped and not 2 <= file.rows <= status.st_size:
                report(path, ValueError(f"{file.rows} rows in {status.st_size} bytes"))
                continue
            if file.key in found:
                log.warning(f"replay: {path.name} and {found[file.key].path.name}: using the newer")
                file = max(file, found[file.key])
            found[file.key] = file
        return sorted(found.values()), next_order

    def check_newest(self, files: list[File], capacity: int, spec: Spec | None) -> tuple[dict[Path, bool], Spec | None]:
        """Reads the headers of the newest files that fit into `capacity` agent steps; True for those that can be used.

        A damaged file is reported, renamed to `*.damaged` and left out. One that cannot be read, or whose rows are not
        those of `spec` (None: of most of the files), is reported and left out. Returns the spec too.

        Raises ValueError if there are intact files but none with the rows of this run.
        """
        usable: dict[Path, bool] = {}
        others: dict[Path, OtherRows] = {}
        headers = functools.cache(functools.partial(read_file, whole=False))
        if spec is None:
            specs = []
            for file in reversed(files):
                with contextlib.suppress(OSError, ValueError):  # damaged, or of a dropped episode
                    specs.append(headers(file.path, file.rows)[0].spec)
            counts = Counter(frozenset(spec.items()) for spec in specs)
            spec = max(specs, key=lambda spec: counts[frozenset(spec.items())], default=None)
        steps = dropped = 0
        for file in reversed(files):
            if file.dropped:
                dropped += file.rows - 1
                continue
            if steps and steps + dropped + file.rows - 1 > capacity:
                break
            try:
                check_spec(headers(file.path, file.rows)[0].spec, spec)
                usable[file.path] = True
                steps, dropped = steps + dropped + file.rows - 1, 0
            except (OSError, ValueError) as error:
                usable[file.path] = False
                if isinstance(error, OtherRows):
                    others[file.path] = error
                else:
                    report(file.path, error)
        if others and not steps:
            raise ValueError(
                f"none of the episodes in {self.folder} has the rows of this run ({next(iter(others.values()))}): "
                "use the settings that they were collected with, or another --logdir"
            )
        for path, error in others.items():
            report(path, error)
        return usable, spec


def report(path: Path, error: OSError | ValueError, more: str = "") -> None:
    """Warns that a file is left out; a damaged one is renamed. Raises the error if it is a limit of this process."""
    if isinstance(error, OSError):
        if error.errno in OWN_LIMITS:
            raise error
        problem, done = f"cannot be read ({error.strerror or error})", "left out"
    elif isinstance(error, OtherRows):
        problem, done = f"does not have the rows of this run ({error})", "left out"
    else:
        aside = path.with_name(path.name + ".damaged")
        problem = f"is damaged ({error})"
        try:
            path.rename(aside)
            done = f"renamed to {aside.name}"
        except OSError as failure:
            done = f"left out, as renaming it failed ({failure.strerror})"
    log.warning(f"replay: {path} {problem}: {done}{more}")


# Reading


class Layout(NamedTuple):
    """What the headers of an episode file tell."""

    spec: Spec
    rows: int
    offsets: dict[str, int]  # where the rows of each key begin
    plain: bool  # rows lie as in memory, not compressed
    stamp: tuple[int, int]


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Size and time of a file: if they are the same, it was not changed."""
    return status.st_size, status.st_mtime_ns


def read_file(path: Path, rows: int | None = None, whole: bool = True) -> tuple[Layout, Arrays]:
    """Reads an episode file, with its checksums compared before anything is interpreted; or its headers alone.

    Raises ValueError if the file is damaged or does not hold `rows` rows, OSError if it cannot be read.
    """
    spec, arrays, offsets, counts, plain, end = {}, {}, {}, set(), True, 0
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # A small buffer: that of Python 3.14, 128 KiB, would be filled for each header
        with open(number, "rb", 4096) as file, zipfile.ZipFile(file) as archive:
            status = os.fstat(file.fileno())
            for info in archive.infolist():
                with archive.open(info) as member:
                    data = member.read() if whole else member.read(HEADER_BYTES)
                header = data[: 10 + int.from_bytes(data[8:10], "little")]
                shape, fortran_order, dtype = _read_header(header)
                if info.file_size != len(header) + math.prod(shape) * dtype.itemsize:
                    raise ValueError("an array does not have the size that its header tells")
                key = info.filename.removesuffix(".npy")
                start = info.header_offset + len(info.FileHeader(zip64=True))
                offsets[key], end = start + len(header), end + start - info.header_offset + info.compress_size
                spec[key] = (shape[1:], dtype)
                plain &= info.compress_type == zipfile.ZIP_STORED and not fortran_order
                counts.add(shape[0] if shape else 0)
                if whole:
                    array = np.frombuffer(data, dtype, offset=len(header))
                    arrays[key] = array.reshape(shape, order="F" if fortran_order else "C")
            if end != archive.start_dir:
                raise ValueError("its arrays do not fill it")
    except OSError:
        raise
    except Exception as error:  # zipfile and numpy raise almost anything for damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
    if len(counts) != 1 or 0 in counts:
        raise ValueError("its arrays are not those of an episode")
    (count,) = counts
    if rows is not None and count != rows:
        raise ValueError(f"its arrays have {count} rows, expected {rows}")
    return Layout(spec, count, offsets, plain, stamp(status)), arrays


@functools.lru_cache(1024)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of the array in a .npy file."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def read_episode(path: Path, rows: int | None = None) -> Arrays:
    """The arrays of an episode file, in one buffer. Errors as in `read_file`."""
    layout, arrays = read_file(path, rows)
    return _copies(arrays, layout.rows)


def check_spec(found: Spec, expected: Spec) -> None:
    """Raises OtherRows with the first difference between two specs in words, if there is one."""
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            theirs, ours = (
                "{1} of shape {0}".format(*spec[key]) if key in spec else "absent" for spec in (found, expected)
            )
            raise OtherRows(f"{key} is {theirs}, expected {ours}")
