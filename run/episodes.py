"""Episode files: their format, their names, the folder that holds them, and what happens to damaged ones.

Files are uncompressed `.npz` archives named `{order}-env{env}-{episode}-{rows}.npz`, `order` counting the episodes in
the order in which they finished. They appear under that name atomically (written aside, then renamed), so a killed
process leaves no incomplete file. They are not synced to disk: after a power failure, the files of the last seconds may
be missing or damaged, which is reported.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import mmap
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from run.logs import log

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of each key of a row
Arrays = dict[str, np.ndarray]

FILE_NAME = re.compile(r"(\d+)-env(\d+)-(\d+)-(\d+)\.npz")  # order of finishing, env, episode, rows
WRITE_HINTS = {
    errno.ENOSPC: "free some space or inodes, or set --replay_dir_limit",
    errno.EDQUOT: "free some of your quota, or set --replay_dir_limit",
    errno.EROFS: "the file system is read-only; choose a --logdir that can be written",
    errno.EACCES: "choose a --logdir that you may write to",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine's limit of open files is reached (fs.file-max)",
}
MAPPED_BYTES = 1 << 17  # a buffer of at least this size is its own mapping


def episode_key(env: int, episode: int) -> str:
    """Name of an episode in segments: the same before and after it finishes, and after a restart."""
    return f"env{env:03d}-{episode:06d}"


def allocate(spec: Spec, rows: int) -> Arrays:
    """Arrays of `rows` rows for each key, next to each other in one buffer.

    The buffer of a real episode is an anonymous mapping, not the allocator's: it costs memory only where it was
    written, and all of it returns to the system with the last reference, regardless of the process's heap settings.
    """
    lengths = [rows * math.prod(shape) * dtype.itemsize for shape, dtype in spec.values()]
    starts = np.cumsum([0] + [-(-length // 64) * 64 for length in lengths])
    total = max(int(starts[-1]), 1)
    if total < MAPPED_BYTES:
        buffer = np.empty(total, np.uint8)
    else:
        buffer = np.frombuffer(mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    return {
        key: buffer[start : start + length].view(dtype).reshape(rows, *shape)
        for (key, (shape, dtype)), start, length in zip(spec.items(), starts.tolist(), lengths, strict=False)
    }


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


def most_common_spec(episodes: Iterable[Arrays]) -> Spec:
    """Spec of the rows of most of the episodes; the first one's in a tie."""
    specs = [spec_of_episode(arrays) for arrays in episodes]
    most = Counter(frozenset(spec.items()) for spec in specs).most_common(1)[0][0]
    return next(spec for spec in specs if spec.items() == most)


def spec_difference(found: Spec, expected: Spec) -> str:
    """The first difference between two specs in words, "" if there is none."""
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            theirs, ours = (
                "{1} of shape {0}".format(*spec[key]) if key in spec else "absent" for spec in (found, expected)
            )
            return f"{key} is {theirs}, expected {ours}"
    return ""


class File(NamedTuple):
    """An episode file; in the order in which the episodes finished."""

    order: int  # of finishing
    env: int
    episode: int
    rows: int
    path: Path

    @property
    def key(self) -> str:
        return episode_key(self.env, self.episode)


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
        self._files: dict[str, tuple[Path, int]] = {}  # key -> file and its agent steps, oldest first
        self._steps = 0
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.npz.tmp"):
            leftover.unlink(missing_ok=True)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def since(self, order: int) -> Iterator[tuple[int, str]]:
        """Place in the order of finishing and key of each episode with a file, from place `order` on."""
        for key, (path, _) in self._files.items():
            place = int(FILE_NAME.fullmatch(path.name)[1])
            if place >= order:
                yield place, key

    def write(self, order: int, key: str, arrays: Arrays, rows: int) -> None:
        """Writes an episode. Raises OSError, one line, if that fails."""
        path = self.folder / f"{order:08d}-{key}-{rows}.npz"
        aside = self.folder / f".{path.name}.tmp"
        try:
            with zipfile.ZipFile(aside, "w") as archive:  # as np.savez, which does not close it if a write fails
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            hint = f": {WRITE_HINTS[error.errno]}" if error.errno in WRITE_HINTS else ""
            raise OSError(error.errno, f"cannot write {path} ({error.strerror or error}){hint}") from error
        self.add(key, path, rows - 1)

    def add(self, key: str, path: Path, steps: int) -> None:
        """Counts a file, the newest; removes the oldest ones beyond the limit."""
        self._files[key] = (path, steps)
        self._steps += steps
        while self.limit and self._steps > self.limit and len(self._files) > 1:
            oldest = next(iter(self._files))
            path, steps = self._files.pop(oldest)
            path.unlink(missing_ok=True)
            self._steps -= steps

    def read(self, key: str, spec: Spec) -> Arrays:
        """The arrays of an episode. Raises OSError or ValueError if its file is gone, damaged or of other rows."""
        path, steps = self._files[key]
        arrays = read_episode(path, steps + 1)
        if difference := spec_difference(spec_of_episode(arrays), spec):
            raise ValueError(f"{path} does not have the rows of this run ({difference})")
        return arrays

    def scan(self) -> tuple[list[File], int]:
        """The episode files, oldest first (of two for the same episode, the newer), and the place of the next one."""
        found: dict[str, File] = {}
        next_order = 0
        for path in self.folder.glob("*.npz"):
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
                log.warning(f"replay: {path} cannot be read ({error.strerror}): left out")
                continue
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block, a device might never end
                log.warning(f"replay: {path} is not a regular file: left out")
                continue
            if not 2 <= file.rows <= status.st_size:
                _set_aside(path, f"{file.rows} rows in {status.st_size} bytes")
                continue
            if file.key in found:
                log.warning(f"replay: {path.name} and {found[file.key].path.name}: using the newer")
                file = max(file, found[file.key])
            found[file.key] = file
        return sorted(found.values()), next_order

    def read_newest(
        self, files: list[File], capacity: int, spec: Spec | None
    ) -> tuple[dict[Path, Arrays | None], Spec | None]:
        """Arrays of the newest files that fit into `capacity` agent steps; None for one left out.

        A damaged file is reported, renamed to `*.damaged` and left out. One that cannot be read, or whose rows are not
        those of `spec` (None: of most of the files), is reported and left out. Returns the spec too.

        Raises ValueError if there are intact files but none with the rows of this run.
        """
        read: dict[Path, Arrays | None] = {}
        misfits: dict[Path, str] = {}
        rest, steps = list(files), 0
        # In threads, as checksums cost about as much as the copies; each round replaces what the one before left out
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            while True:
                chosen, planned = [], steps
                while rest and (not planned or planned + rest[-1].rows - 1 <= capacity):
                    chosen.append(rest.pop())
                    planned += chosen[-1].rows - 1
                if not chosen:
                    break
                futures = [pool.submit(read_episode, file.path, file.rows) for file in chosen]
                whole = {
                    file.path: arrays
                    for file, future in zip(chosen, futures, strict=True)
                    if (arrays := _take(file.path, future)) is not None
                }
                if spec is None and whole:
                    spec = most_common_spec(whole.values())
                for file in chosen:
                    arrays = whole.get(file.path)
                    if arrays is not None and (difference := spec_difference(spec_of_episode(arrays), spec)):
                        arrays, misfits[file.path] = None, difference
                    read[file.path] = arrays
                    steps += 0 if arrays is None else file.rows - 1
        if misfits and not steps:
            path, difference = next(iter(misfits.items()))
            raise ValueError(
                f"none of the episodes in {self.folder} has the rows of this run ({path.name}: {difference}): "
                "use the settings that they were collected with, or another --logdir"
            )
        for path, difference in misfits.items():
            log.warning(f"replay: {path} does not have the rows of this run ({difference}): left out")
        return read, spec


def _take(path: Path, future: Future) -> Arrays | None:
    """The arrays of a file; None, with a report, if it is damaged or unreadable."""
    try:
        return future.result()
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        log.warning(f"replay: {path} cannot be read ({error.strerror or error}): left out")
    except ValueError as error:
        _set_aside(path, str(error))
    return None


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(path.name + ".damaged")
    try:
        path.rename(aside)
        done = f"renamed to {aside.name}"
    except OSError as error:
        done = f"left out, as renaming it failed ({error.strerror})"
    log.warning(f"replay: {path} is damaged ({reason}): {done}")


def read_episode(path: Path, rows: int | None = None) -> Arrays:
    """Reads the arrays of a .npz file into one buffer.

    Raises ValueError if the file is damaged or does not hold `rows` rows, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [len(info.FileHeader(zip64=True)) + info.compress_size for info in archive.infolist()]
            if sum(sizes) != archive.start_dir:
                raise ValueError("its arrays do not fill it")
            # whole, and thus with a verified checksum, before anything is interpreted
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        found = {key: _array(data) for key, data in members.items()}
    except OSError:
        raise
    except Exception as error:  # zipfile and numpy raise almost anything for damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
    counts = {len(array) if array.ndim else 0 for array in found.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("its arrays are not those of an episode")
    (count,) = counts
    if rows is not None and count != rows:
        raise ValueError(f"its arrays have {count} rows, expected {rows}")
    arrays = allocate(spec_of_episode(found), count)
    for key, array in arrays.items():
        array[...] = found[key]
    return arrays


def _array(data: bytes) -> np.ndarray:
    """The array of the contents of a .npy file, without a copy."""
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran_order else "C")
