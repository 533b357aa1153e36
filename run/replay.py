"""Replay: episodes in memory and as files, sampling of sequences, and their transfer to the device.

Row t of an episode holds the observation at t, the action that led to it (zeros at t = 0) and the reward received on
reaching it (0 at t = 0), with `is_first` and whatever else the agent reads. An episode of n rows has n - 1 agent steps.
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
import sys
import zipfile
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch

Segment = tuple[str, int, int]  # key of the episode, its first row, number of rows
View = tuple[dict[str, np.ndarray], int, int]  # arrays of the episode, first row, number of rows
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]  # shape and type of each key of a row

FileEntry = tuple[int, int, int, int, Path]  # order of finishing, env, episode, rows, file

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
FIRST_ROWS = 128  # capacity for the first episode of a run


def episode_key(env: int, episode: int) -> str:
    """Name of an episode in segments: the same before and after it finishes, and after a restart."""
    return f"env{env:03d}-{episode:06d}"


def allocate(spec: Spec, rows: int) -> dict[str, np.ndarray]:
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


def spec_of_episode(arrays: dict[str, np.ndarray]) -> Spec:
    return {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}


def most_common_spec(episodes: Iterable[dict[str, np.ndarray]]) -> Spec:
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


class Episode:
    """The rows of one episode.

    `arrays` is replaced as a whole when more room is needed, and a written row never changes: a reader in another
    thread that holds `arrays` keeps every row that it has seen.
    """

    def __init__(self, env: int, index: int, arrays: dict[str, np.ndarray], rows: int):
        self.env, self.index, self.arrays, self.rows = env, index, arrays, rows

    @property
    def key(self) -> str:
        return episode_key(self.env, self.index)

    @property
    def steps(self) -> int:
        return self.rows - 1

    def move(self, spec: Spec, room: int) -> None:
        """Copies the rows to new arrays with space for `room` rows."""
        arrays = allocate(spec, room)
        for key, array in arrays.items():
            array[: self.rows] = self.arrays[key][: self.rows]
        self.arrays = arrays


class Replay:
    """First-in first-out store of episodes, sampled as sequences; every finished episode is also a file.

    Args:
        directory: folder of the episode files; None keeps them in memory only.
        capacity: maximum number of agent steps held in memory. Whole episodes are evicted, oldest first; unfinished
            ones and the newest finished one stay.
        directory_limit: maximum number of agent steps kept as files, 0 for no limit. The oldest files are removed
            first, the newest stays. Below `capacity`, a resumed run finds less than it had.
        envs: whose episodes it holds, where several replays share a directory; None for all.
        spec: keys, shapes and types of a row, which files must match. None takes those of the first row, or of most
            of the files.

    Files are uncompressed `.npz` archives named `{order}-env{env}-{episode}-{rows}.npz`, `order` counting the episodes
    in the order in which they finished. They appear under that name atomically (written aside, then renamed), so a
    killed process leaves no incomplete file. They are not synced to disk: after a power failure, the files of the last
    seconds may be missing or damaged, which `load` reports.
    """

    def __init__(
        self,
        directory: Path | str | None,
        capacity: int,
        directory_limit: int = 0,
        envs: Container[int] | None = None,
        spec: Spec | None = None,
    ):
        if capacity < 1:
            raise ValueError(f"dataset_size is {capacity}: expected at least one agent step")
        self.directory = None if directory is None else Path(directory)
        self.capacity = capacity
        self.directory_limit = directory_limit
        self.envs = envs
        self.finished: dict[int, tuple[int, int]] = {}  # env -> index and rows of its last finished episode
        self._spec = spec
        self._unfinished: dict[int, Episode] = {}  # env -> episode
        self._by_key: dict[str, Episode] = {}  # all held ones, finished or not
        self._held: list[Episode] = []  # finished, in order; those before _head are evicted
        self._ends: list[int] = []  # rows of all finished episodes up to and with the one at the same index in _held
        self._head = 0
        self._gone_rows = 0  # rows of the evicted ones, counted as in _ends
        self._finished_steps = 0  # agent steps held in finished episodes
        self._longest = FIRST_ROWS
        self._order = 0  # of the next episode to finish
        self._total_finished_steps = 0  # agent steps of all finished episodes of the run
        self._files: dict[str, tuple[Path, int]] = {}  # key -> file and its agent steps, oldest first
        self._file_steps = 0
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(".*.npz.tmp"):
                leftover.unlink(missing_ok=True)

    # Bookkeeping

    @property
    def steps(self) -> int:
        """Agent steps held, those of unfinished episodes included."""
        return self._finished_steps + sum(episode.steps for episode in self._unfinished.values())

    @property
    def total_steps(self) -> int:
        """Agent steps of the whole run, evicted ones included."""
        return self._total_finished_steps + sum(episode.steps for episode in self._unfinished.values())

    @property
    def episodes(self) -> int:
        """Episodes held, unfinished ones included."""
        return len(self._by_key)

    @property
    def total_episodes(self) -> int:
        """Episodes finished in the whole run, those that `skip` counted included."""
        return self._order

    def skip(self, episodes: int) -> None:
        """Counts episodes that finished in the other replays of the directory: their places in the order are used."""
        self._order += episodes

    def unfinished(self, env: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """Index and rows so far (views) of the env's unfinished episode, None without one.

        Its `action` rows after the first restore the environment.
        """
        episode = self._unfinished.get(env)
        if episode is None:
            return None
        return episode.index, {key: array[: episode.rows] for key, array in episode.arrays.items()}

    def rewards_since(self, order: int) -> Iterator[tuple[int, np.ndarray]]:
        """Place in the order of finishing and rewards (rows,) of each episode with a file, from place `order` on."""
        for key, (path, _) in self._files.items():
            place = int(FILE_NAME.fullmatch(path.name)[1])
            if place >= order:
                yield place, self._arrays(key)["reward"]

    def state_dict(self) -> dict[str, int]:
        """Counters of the finished episodes; their rows are in the files."""
        return {"order": self._order, "total_finished_steps": self._total_finished_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counters. Call it before `load`, which counts the episodes finished since."""
        if self._by_key:
            raise RuntimeError("Replay.load_state_dict must come before load and add")
        self._order = int(state["order"])
        self._total_finished_steps = int(state["total_finished_steps"])

    # Adding

    def add(self, env: int, row: dict[str, np.ndarray], episode: int, last: bool) -> None:
        """Appends a row to the env's episode.

        Args:
            env: index of the environment.
            row: one array or number for each key, the same keys, shapes and types at each call.
            episode: index of the episode, constant until `last`.
            last: the episode ends with this row, and is written to its file.

        Raises ValueError if a row or an episode index does not fit, OSError if the file cannot be written.
        """
        if self._spec is None:
            self._spec = spec_of(row)
        current = self._unfinished.get(env)
        if current is None:
            key = episode_key(env, episode)
            if key in self._by_key or key in self._files:
                raise ValueError(f"episode {episode} of env {env} is already in the replay")
            current = Episode(env, episode, allocate(self._spec, self._longest), 0)
            self._unfinished[env] = self._by_key[key] = current
        if current.index != episode:
            raise ValueError(f"row of episode {episode} for env {env}, whose episode {current.index} has not ended")
        self._check(row)
        if current.rows == len(current.arrays["is_first"]):
            current.move(self._spec, 2 * current.rows)
        for key, array in current.arrays.items():
            array[current.rows] = row[key]
        current.rows += 1
        if last:
            self._finish(current)
        self._evict()

    def _check(self, row: dict[str, np.ndarray]) -> None:
        place = f" in {self.directory}" if self.directory else ""
        if row.keys() != self._spec.keys():
            raise ValueError(f"row with keys {sorted(row)}: the replay{place} holds {sorted(self._spec)}")
        for key, (shape, dtype) in self._spec.items():
            value = np.asarray(row[key])
            if value.shape != shape or not np.can_cast(value.dtype, dtype, "same_kind"):
                raise ValueError(
                    f"{key} of shape {value.shape} and type {value.dtype}: the replay{place}"
                    f" holds shape {shape} and type {dtype}"
                )

    def _finish(self, episode: Episode) -> None:
        if episode.rows < 2:
            raise ValueError(f"episode {episode.index} of env {episode.env} ended without a step")
        self._longest = max(self._longest, episode.rows)
        if episode.rows < len(episode.arrays["is_first"]):
            episode.move(self._spec, episode.rows)
        if self.directory is not None:
            self._write(episode)
        del self._unfinished[episode.env]
        self._hold(episode)
        self._order += 1
        self._total_finished_steps += episode.steps

    def _hold(self, episode: Episode) -> None:
        self._by_key[episode.key] = episode
        self._ends.append((self._ends[-1] if self._ends else 0) + episode.rows)
        self._held.append(episode)
        self._finished_steps += episode.steps
        self.finished[episode.env] = (episode.index, episode.rows)

    def _evict(self) -> None:
        steps = self.steps
        while steps > self.capacity and self._head < len(self._held) - 1:
            episode = self._held[self._head]
            self._gone_rows = self._ends[self._head]
            self._held[self._head] = None
            self._head += 1
            del self._by_key[episode.key]
            self._finished_steps -= episode.steps
            steps -= episode.steps
        if self._head > len(self._held) // 2:
            del self._held[: self._head], self._ends[: self._head]
            self._head = 0

    # Files

    def _write(self, episode: Episode) -> None:
        path = self.directory / f"{self._order:08d}-{episode.key}-{episode.rows}.npz"
        aside = self.directory / f".{path.name}.tmp"
        try:
            with zipfile.ZipFile(aside, "w") as archive:  # as np.savez, which does not close it if a write fails
                for key, array in episode.arrays.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            hint = f": {WRITE_HINTS[error.errno]}" if error.errno in WRITE_HINTS else ""
            raise OSError(error.errno, f"cannot write {path} ({error.strerror or error}){hint}") from error
        self._list_file(episode.key, path, episode.steps)

    def _list_file(self, key: str, path: Path, steps: int) -> None:
        self._files[key] = (path, steps)
        self._file_steps += steps
        while self.directory_limit and self._file_steps > self.directory_limit and len(self._files) > 1:
            oldest = next(iter(self._files))
            path, steps = self._files.pop(oldest)
            path.unlink(missing_ok=True)
            self._file_steps -= steps

    def load(self) -> int:
        """Reads the newest files of the directory, as many as `capacity` allows, and returns their agent steps.

        They keep their places: the order of the files is the order of finishing. A damaged file is reported on
        stderr, renamed to `*.damaged` and left out. One that cannot be read, or whose arrays are not rows of this run,
        is reported and left out.

        Raises ValueError if there are intact files but none with the rows of this run.
        """
        if self.directory is None:
            return 0
        known_order = self._order
        entries = self._scan()
        read = self._read_newest(entries)
        for order, env, index, rows, path in entries:
            if path in read and read[path] is None:
                continue
            self._list_file(episode_key(env, index), path, rows - 1)
            self.finished[env] = (index, rows)
            if path in read:
                self._hold(Episode(env, index, read[path], rows))
                self._longest = max(self._longest, rows)
            if order >= known_order:
                self._total_finished_steps += rows - 1
        self._evict()
        return self._finished_steps

    def _scan(self) -> list[FileEntry]:
        """The episode files, oldest first; of two for the same episode, the newer. New ones get later numbers."""
        entries: dict[str, FileEntry] = {}
        for path in self.directory.glob("*.npz"):
            match = FILE_NAME.fullmatch(path.name)
            if not match:
                print(f"replay: {path} is not named like an episode: ignored", file=sys.stderr)
                continue
            order, env, index, rows = map(int, match.groups())
            if self.envs is not None and env not in self.envs:
                continue
            self._order = max(self._order, order + 1)
            try:
                status = path.stat()
            except OSError as error:
                print(f"replay: {path} cannot be read ({error.strerror}): left out", file=sys.stderr)
                continue
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would block, a device might never end
                print(f"replay: {path} is not a regular file: left out", file=sys.stderr)
                continue
            if not 2 <= rows <= status.st_size:
                self._set_aside(path, f"{rows} rows in {status.st_size} bytes")
                continue
            key, entry = episode_key(env, index), (order, env, index, rows, path)
            if key in entries:
                print(f"replay: {path.name} and {entries[key][-1].name}: using the newer", file=sys.stderr)
                entry = max(entry, entries[key])
            entries[key] = entry
        return sorted(entries.values())

    def _read_newest(self, entries: list[FileEntry]) -> dict[Path, dict[str, np.ndarray] | None]:
        """Arrays of the newest files that fit into `capacity`; None for one left out."""
        read: dict[Path, dict[str, np.ndarray] | None] = {}
        misfits: dict[Path, str] = {}
        rest, steps = list(entries), 0
        # In threads, as checksums cost about as much as the copies; each round replaces what the one before left out
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            while True:
                chosen, planned = [], steps
                while rest and (not planned or planned + rest[-1][3] - 1 <= self.capacity):
                    chosen.append(rest.pop())
                    planned += chosen[-1][3] - 1
                if not chosen:
                    break
                futures = [pool.submit(read_episode, path, rows) for *_, rows, path in chosen]
                whole = {
                    path: arrays
                    for (*_, path), future in zip(chosen, futures, strict=True)
                    if (arrays := self._take(path, future)) is not None
                }
                if self._spec is None and whole:
                    self._spec = most_common_spec(whole.values())
                for *_, rows, path in chosen:
                    read[path] = whole.get(path)
                    if path in whole and (difference := spec_difference(spec_of_episode(whole[path]), self._spec)):
                        read[path], misfits[path] = None, difference
                    steps += 0 if read[path] is None else rows - 1
        if misfits and not steps:
            path, difference = next(iter(misfits.items()))
            raise ValueError(
                f"none of the episodes in {self.directory} has the rows of this run ({path.name}: {difference}): "
                "use the settings that they were collected with, or another --logdir"
            )
        for path, difference in misfits.items():
            print(f"replay: {path} does not have the rows of this run ({difference}): left out", file=sys.stderr)
        return read

    def _take(self, path: Path, future: Future) -> dict[str, np.ndarray] | None:
        """The arrays of a file; None, with a report, if it is damaged or unreadable."""
        try:
            return future.result()
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise
            print(f"replay: {path} cannot be read ({error.strerror or error}): left out", file=sys.stderr)
        except ValueError as error:
            self._set_aside(path, str(error))
        return None

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(path.name + ".damaged")
        try:
            path.rename(aside)
            done = f"renamed to {aside.name}"
        except OSError as error:
            done = f"left out, as renaming it failed ({error.strerror})"
        print(f"replay: {path} is damaged ({reason}): {done}", file=sys.stderr)

    # Sampling

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> list[list[Segment]]:
        """Draws a batch of sequences, each a list of segments that add up to `length` rows.

        A sequence starts in an episode drawn with probability proportional to its rows, at a uniform row that is not
        its last; where the episode ends, it continues with the first row of another one drawn the same way. Unfinished
        episodes of two rows or more take part.
        """
        running = [self._unfinished[env] for env in sorted(self._unfinished) if self._unfinished[env].rows >= 2]
        finished_rows = self._ends[-1] - self._gone_rows if self._head < len(self._ends) else 0
        total = finished_rows + sum(episode.rows for episode in running)
        if not total:
            raise RuntimeError("the replay holds no step yet: prefill must come before the first batch")

        def draw_episode() -> Episode:
            row = int(rng.integers(total))
            if row < finished_rows:
                return self._held[bisect_right(self._ends, self._gone_rows + row, lo=self._head)]
            row -= finished_rows
            for episode in running:
                if row < episode.rows:
                    break
                row -= episode.rows
            return episode

        sequences = []
        for _ in range(batch):
            episode = draw_episode()
            start = int(rng.integers(episode.rows - 1))
            missing = length
            segments = []
            while True:
                count = min(episode.rows - start, missing)
                segments.append((episode.key, start, count))
                missing -= count
                if not missing:
                    break
                episode, start = draw_episode(), 0
            sequences.append(segments)
        return sequences

    def views(self, segments: Sequence[Sequence[Segment]]) -> list[list[View]]:
        """The arrays behind the segments, which stay readable whatever happens to the replay.

        An evicted episode is read from its file again; KeyError if that is gone too.
        """
        return [[(self._arrays(key), start, count) for key, start, count in sequence] for sequence in segments]

    def _arrays(self, key: str) -> dict[str, np.ndarray]:
        if key in self._by_key:
            return self._by_key[key].arrays
        if key in self._files:
            path, steps = self._files[key]
            arrays = read_episode(path, steps + 1)
            if difference := spec_difference(spec_of_episode(arrays), self._spec):
                raise ValueError(f"{path} does not have the rows of this run ({difference})")
            return arrays
        raise KeyError(f"episode {key} is no longer in the replay")

    def gather(
        self, segments: Sequence[Sequence[Segment]], out: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Rows of the segments as arrays of shape (B, T, ...), into `out` if given."""
        return collate(self.views(segments), out)


def read_episode(path: Path, rows: int | None = None) -> dict[str, np.ndarray]:
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


def collate(views: list[list[View]], out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Copies the rows of the views into arrays of shape (B, T, ...); `is_first` is set where each view starts."""
    out = batch_arrays(views) if out is None else out
    for key, target in out.items():
        for b, sequence in enumerate(views):
            t = 0
            for arrays, start, count in sequence:
                target[b, t : t + count] = arrays[key][start : start + count]
                if key == "is_first":
                    target[b, t] = True
                t += count
    return out


def batch_arrays(views: list[list[View]]) -> dict[str, np.ndarray]:
    """Empty arrays that hold the rows of the views: (B, T, ...) for each key."""
    size = (len(views), sum(count for _, _, count in views[0]))
    return {key: np.empty(size + array.shape[1:], array.dtype) for key, array in views[0][0][0].items()}


class Prefetcher:
    """Batches on the device, gathered and uploaded by a thread while the learner works.

    Only the calls determine the content of a batch: `prefetch` draws, in the caller's thread, and keeps references to
    the drawn episodes; the thread only copies. So a run is repeatable, and rows may be added and episodes evicted in
    the meantime.

    Args:
        replay: where the sequences come from.
        rng: generator of the draws, part of the state.
        batch, length: B sequences of T rows.
        device: of the tensors. On a GPU they go through pinned memory, on a separate stream.
        depth: number of batches prepared ahead.
    """

    def __init__(
        self,
        replay: Replay,
        rng: np.random.Generator,
        batch: int,
        length: int,
        device: torch.device | str = "cpu",
        depth: int = 1,
    ):
        self.replay, self.rng, self.batch, self.length, self.depth = replay, rng, batch, length, depth
        self.device = torch.device(device)
        self._pool = ThreadPoolExecutor(1, "replay")
        self._pending: deque[tuple[list[list[Segment]], Future]] = deque()
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            self._slots: deque[tuple[dict[str, torch.Tensor], torch.cuda.Event]] = deque()

    def prefetch(self) -> None:
        """Draws batches up to `depth`, and starts to gather them."""
        while len(self._pending) < self.depth:
            self._start(self.replay.draw(self.rng, self.batch, self.length))

    def next(self) -> dict[str, torch.Tensor]:
        """The oldest batch, (B, T, ...) for each key, drawn now if none is in flight; raises an error of its thread."""
        if not self._pending:
            self._start(self.replay.draw(self.rng, self.batch, self.length))
        _, future = self._pending.popleft()
        tensors, uploaded = future.result()
        if uploaded is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(uploaded)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        return tensors

    def wait(self) -> None:
        """Returns when the thread is idle, as it must be while a CUDA graph is captured."""
        wait([future for _, future in self._pending])

    def close(self) -> None:
        """Ends the thread."""
        self._pending.clear()
        self._pool.shutdown(cancel_futures=True)

    def state_dict(self) -> dict:
        """State of the generator, and the segments of the batches in flight: numbers and strings only."""
        return {"rng": self.rng.bit_generator.state, "pending": [segments for segments, _ in self._pending]}

    def load_state_dict(self, state: dict) -> None:
        """Gathers the batches again that were in flight. Call it when the replay holds the same episodes as then.

        A batch with an episode that no longer exists is drawn again.
        """
        self.wait()
        self._pending.clear()
        self.rng.bit_generator.state = state["rng"]
        for segments in state["pending"]:
            try:
                self._start([[tuple(segment) for segment in sequence] for sequence in segments])
            except (KeyError, OSError, ValueError) as error:
                print(f"replay: a prefetched batch is drawn again ({error})", file=sys.stderr)
                self._start(self.replay.draw(self.rng, self.batch, self.length))

    def _start(self, segments: list[list[Segment]]) -> None:
        self._pending.append((segments, self._pool.submit(self._prepare, self.replay.views(segments))))

    def _prepare(self, views: list[list[View]]) -> tuple[dict[str, torch.Tensor], torch.cuda.Event | None]:
        if self.device.type != "cuda":
            return {key: torch.from_numpy(array) for key, array in collate(views).items()}, None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            if len(self._slots) <= self.depth:
                pinned = {key: torch.from_numpy(array).pin_memory() for key, array in batch_arrays(views).items()}
                uploaded = torch.cuda.Event()
            else:
                pinned, uploaded = self._slots.popleft()
                uploaded.synchronize()  # the previous upload from this memory
            collate(views, {key: tensor.numpy() for key, tensor in pinned.items()})
            tensors = {key: tensor.to(self.device, non_blocking=True) for key, tensor in pinned.items()}
            uploaded.record(self._stream)
            self._slots.append((pinned, uploaded))
        return tensors, uploaded
