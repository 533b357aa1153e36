"""Replay: episodes, in memory and in files, and sampling of sequences.

Row t of an episode holds the observation at t, the action that led to it (zeros at t = 0) and the reward received on
reaching it (0 at t = 0), with `is_first` and whatever else the agent reads. An episode of n rows has n - 1 agent steps.
"""

from __future__ import annotations

import errno
import itertools
import math
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from run.episodes import (
    SMALL_BYTES,
    Arrays,
    Episode,
    EpisodeFiles,
    EpisodeLost,
    Spec,
    allocate,
    episode_key,
    report,
    row_bytes,
    spec_of,
)

if TYPE_CHECKING:
    from run.config import Config

Segment = tuple[str, int, int]  # key of the episode, its first row, number of rows
View = tuple[Episode, int, int]  # the episode, first row, number of rows

FIRST_ROWS = 128  # capacity for the first episode of a run


class Replay:
    """First-in first-out store of episodes, sampled as sequences; every finished episode is also a file.

    Args:
        directory: folder of the episode files; None keeps them in memory only.
        capacity: maximum number of agent steps held. Whole episodes are evicted, oldest first; unfinished ones and the
            newest finished one stay. Dropped ones count until those before them are evicted, so that what is held
            depends on the files alone.
        directory_limit: maximum number of agent steps kept as files, 0 for no limit. The oldest files are removed
            first, the newest stays. Below `capacity`, episodes without a file stay in memory, and a resumed run finds
            less than it had.
        envs: whose episodes it holds, where several replays share a directory; None for all.
        spec: keys, shapes and types of a row, which files must match. None takes those of the first row, or of most
            of the files.
        memory: bytes that the newest finished episodes may take; rows of older ones are read from the files. Those of
            a resumed run come into memory as they are drawn.
    """

    def __init__(
        self,
        directory: Path | str | None,
        capacity: int,
        directory_limit: int = 0,
        envs: Container[int] | None = None,
        spec: Spec | None = None,
        memory: float = 0,
    ):
        if capacity < 1:
            raise ValueError(f"dataset_size is {capacity}: expected at least one agent step")
        self.directory = None if directory is None else Path(directory)
        self.capacity, self.memory = capacity, memory
        self.finished: dict[int, tuple[int, int]] = {}  # env -> index and rows of its last finished episode
        self._spec = spec
        self._unfinished: dict[int, Episode] = {}  # env -> episode
        self._by_key: WeakValueDictionary[str, Episode] = WeakValueDictionary()  # all that are held or in a view
        self._dropped: dict[str, int] = {}  # key -> place in the order of finishing
        self._held: list[Episode] = []  # finished, in order
        self._ends: list[int] = []  # rows of all finished episodes up to and with the one at the same index in _held
        self._gone_rows = 0  # rows of the evicted ones, counted as in _ends
        self._released = 0  # index in _held of the oldest one that may stay in memory
        self._finished_steps = 0  # agent steps held in finished episodes
        self._dropped_steps = 0  # agent steps of the episodes that were dropped after any of these
        self._longest = FIRST_ROWS
        self._order = 0  # number of the next episode to finish
        self._total_finished_steps = 0  # agent steps of all finished episodes of the run
        self._files = None if directory is None else EpisodeFiles(Path(directory), directory_limit, envs)

    # Bookkeeping

    @property
    def steps(self) -> int:
        """Agent steps held, those of unfinished episodes included."""
        return self._finished_steps + sum(episode.steps for episode in self._unfinished.values())

    @property
    def total_steps(self) -> int:
        """Agent steps of the whole run, evicted and dropped ones included."""
        return self._total_finished_steps + sum(episode.steps for episode in self._unfinished.values())

    @property
    def episodes(self) -> int:
        """Episodes held, unfinished ones included."""
        return len(self._held) + len(self._unfinished)

    @property
    def total_episodes(self) -> int:
        """Episodes finished in the whole run, those that `skip` counted included."""
        return self._order

    def skip(self, episodes: int) -> None:
        """Counts episodes that finished in the other replays of the directory: their places in the order are used."""
        self._order += episodes

    def rewards_since(self, order: int) -> Iterator[tuple[int, np.ndarray]]:
        """Place in the order of finishing and rewards (rows,) of each episode with a file, from place `order` on."""
        for file in self._files.since(order) if self._files else ():
            reward = np.empty(file.rows, self._spec["reward"][1])
            try:
                self._episode(file.key).copy(0, file.rows, {"reward": reward}, ())
            except EpisodeLost as lost:
                self.drop(lost)
            else:
                yield file.order, reward

    def dropped_since(self, order: int) -> list[int]:
        """Places in the order of finishing of the dropped episodes, from place `order` on."""
        return [place for place in self._dropped.values() if place >= order]

    def state_dict(self) -> dict[str, int]:
        """Counters of the finished episodes; their rows are in the files."""
        return {"order": self._order, "total_finished_steps": self._total_finished_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the counters. Call it before `load`, which counts the episodes finished since."""
        if self.episodes:
            raise RuntimeError("Replay.load_state_dict must come before load and add")
        self._order = int(state["order"])
        self._total_finished_steps = int(state["total_finished_steps"])

    # Adding

    def add(self, env: int, row: Arrays, episode: int, last: bool, dropped: bool = False) -> None:
        """Appends a row to the env's episode.

        Args:
            env: index of the environment.
            row: one array or number for each key, the same keys, shapes and types at each call.
            episode: index of the episode, constant until `last`.
            last: the episode ends with this row, and is written to its file.
            dropped: it also leaves the replay. Its number and steps stay counted; its `.dropped` file holds no rows.

        Raises ValueError if a row or an episode index does not fit, OSError if the file cannot be written.
        """
        if self._spec is None:
            self._spec = spec_of(row)
        current = self._unfinished.get(env)
        if current is None:
            key = episode_key(env, episode)
            if key in self._by_key or (self._files and self._files.get(key)):
                raise ValueError(f"episode {episode} of env {env} is already in the replay")
            current = Episode(env, episode, self._spec)
            current.move(self._longest)
            self._unfinished[env] = self._by_key[key] = current
        if current.index != episode:
            raise ValueError(f"row of episode {episode} for env {env}, whose episode {current.index} has not ended")
        self._check(row)
        if current.rows == len(current.arrays["is_first"]):
            current.move(2 * current.rows)
        for key, array in current.arrays.items():
            array[current.rows] = row[key]
        current.rows += 1
        if last:
            self._finish(current, dropped)
        self._evict()

    def _check(self, row: Arrays) -> None:
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

    def _finish(self, episode: Episode, dropped: bool) -> None:
        if episode.rows < 2:
            raise ValueError(f"episode {episode.index} of env {episode.env} ended without a step")
        self._longest = max(self._longest, episode.rows)
        if self._files is not None:
            self._files.write(self._order, episode, dropped)
        del self._unfinished[episode.env]
        self.finished[episode.env] = (episode.index, episode.rows)
        if dropped:
            self._drop(episode.key, self._order, episode.steps)
        else:
            self._hold(episode)
            if episode.rows < len(episode.arrays["is_first"]):
                episode.move(episode.rows)
            self._remove_excess()
        self._order += 1
        self._total_finished_steps += episode.steps

    def _drop(self, key: str, order: int, steps: int) -> None:
        self._dropped[key] = order
        if self._held:
            self._held[-1].dropped_steps += steps
            self._dropped_steps += steps

    def _hold(self, episode: Episode) -> None:
        self._by_key[episode.key] = episode
        self._ends.append((self._ends[-1] if self._ends else 0) + episode.rows)
        self._held.append(episode)
        self._finished_steps += episode.steps
        self._dropped_steps += episode.dropped_steps
        rows = self.memory // row_bytes(self._spec)
        while self._released < len(self._held):
            oldest = self._held[self._released]
            if self._ends[-1] - self._ends[self._released] + oldest.rows <= rows:
                break
            oldest.release()
            self._released += 1

    def _evict(self) -> None:
        steps = self.steps + self._dropped_steps
        while steps > self.capacity and len(self._held) > 1:
            episode, self._gone_rows = self._held.pop(0), self._ends.pop(0)
            self._released = max(0, self._released - 1)
            self._finished_steps -= episode.steps
            self._dropped_steps -= episode.dropped_steps
            steps -= episode.steps + episode.dropped_steps

    def _remove_excess(self) -> None:
        for key in self._files.remove_excess() if self._files else ():
            if episode := self._by_key.get(key):
                try:
                    episode.leave_file()
                except EpisodeLost as lost:
                    self.drop(lost)

    def drop(self, lost: EpisodeLost) -> None:
        """Reports an episode whose file was damaged or removed, and holds it no longer."""
        if not self._files.forget(lost.episode.key):
            return  # reported already
        gone = {lost.episode}
        if isinstance(lost.error, FileNotFoundError):  # one line for all that went with it
            gone |= {e for e in self._held if e.is_gone() and self._files.forget(e.key)}
        report(lost.episode.path, lost.error, f", and {len(gone) - 1} more" if len(gone) > 1 else "")
        kept = [episode for episode in self._held if episode not in gone]
        self._held, self._ends = [], []
        self._gone_rows = self._released = self._finished_steps = self._dropped_steps = 0
        for episode in kept:
            self._hold(episode)

    # Files

    def load(self) -> int:
        """Takes in the newest files, as many as `capacity` allows, and returns their agent steps.

        Their rows stay where they are. They keep their places: the order of the files is the order of finishing. Those
        that cannot be used are reported and left out, see `EpisodeFiles.check_newest`.

        Raises ValueError if there are intact files but none with the rows of this run.
        """
        if self._files is None:
            return 0
        known_order = self._order
        files, next_order = self._files.scan()
        self._order = max(self._order, next_order)
        usable, self._spec = self._files.check_newest(files, self.capacity, self._spec)
        for file in files:
            if not usable.get(file.path, True):
                continue
            if file.dropped:
                self._drop(file.key, file.order, file.rows - 1)
            else:
                self._files.add(file)
            self.finished[file.env] = (file.episode, file.rows)
            if file.path in usable:
                self._hold(Episode(file.env, file.episode, self._spec, file.rows, file.path))
                self._longest = max(self._longest, file.rows)
            if file.order >= known_order:
                self._total_finished_steps += file.rows - 1
        self._remove_excess()
        self._evict()
        return self._finished_steps

    # Sampling

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> list[list[Segment]]:
        """Draws a batch of sequences, each a list of segments that add up to `length` rows.

        A sequence starts in an episode drawn with probability proportional to its rows, at a uniform row that is not
        its last; where the episode ends, it continues with the first row of another one drawn the same way. Unfinished
        episodes of two rows or more take part.
        """
        running = [self._unfinished[env] for env in sorted(self._unfinished) if self._unfinished[env].rows >= 2]
        finished_rows = self._ends[-1] - self._gone_rows if self._ends else 0
        total = finished_rows + sum(episode.rows for episode in running)
        if not total and self._total_finished_steps:
            raise FileNotFoundError(errno.ENOENT, "no episode is left to train on", str(self.directory))
        if not total:
            raise RuntimeError("the replay holds no step yet: prefill must come before the first batch")

        def draw_episode() -> Episode:
            row = int(rng.integers(total))
            if row < finished_rows:
                return self._held[bisect_right(self._ends, self._gone_rows + row)]
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

    def is_dropped(self, segments: Sequence[Sequence[Segment]]) -> bool:
        """Whether any of the segments is of an episode that was dropped after they were drawn."""
        return any(key in self._dropped for key, _, _ in itertools.chain(*segments))

    def views(self, segments: Sequence[Sequence[Segment]]) -> list[list[View]]:
        """The episodes behind the segments, which stay readable whatever happens to the replay.

        An evicted episode is read from its file; KeyError if that is gone too, ValueError for rows that it lacks.
        """
        views = [[(self._episode(key), start, count) for key, start, count in sequence] for sequence in segments]
        for episode, start, count in itertools.chain(*views):
            if not 0 <= start < start + count <= episode.rows:
                raise ValueError(f"episode {episode.key} has no rows from {start} to {start + count}")
        return views

    def _episode(self, key: str) -> Episode:
        episode = self._by_key.get(key)
        if episode is None:
            file = self._files and self._files.get(key)
            if not file:
                raise KeyError(f"episode {key} is no longer in the replay")
            episode = self._by_key[key] = Episode(file.env, file.episode, self._spec, file.rows, file.path)
            episode.release()
        return episode

    def gather(self, segments: Sequence[Sequence[Segment]], out: Arrays | None = None) -> Arrays:
        """Rows of the segments as arrays of shape (B, T, ...), into `out` if given; EpisodeLost if a file is."""
        return collate(self.views(segments), out)

    def sample(self, rng: np.random.Generator, batch: int, length: int, candidates: int = 0) -> Arrays:
        """A batch (B, T, ...), of lasting episodes; those with the fewest seams of so many `candidates`."""
        while True:
            segments = self.draw(rng, candidates or batch, length)
            if candidates:
                segments = sorted(segments, key=len)[:batch]
            try:
                return self.gather(segments)
            except EpisodeLost as lost:
                self.drop(lost)


def collate(views: list[list[View]], out: Arrays | None = None) -> Arrays:
    """Copies the rows of the views into arrays of shape (B, T, ...); `is_first` is set where each view starts."""
    out = batch_arrays(views) if out is None else out
    for b, sequence in enumerate(views):
        t = 0
        for episode, start, count in sequence:
            episode.copy(start, count, out, (b, slice(t, t + count)))
            out["is_first"][b, t] = True
            t += count
    return out


def bytes_needed(config: Config, spec: Spec) -> tuple[float, float]:
    """Bytes of memory and of files that the replay of a whole run grows to, over all ranks."""
    steps = config.steps / config.action_repeat
    held, filed = (min(limit or steps, steps) for limit in (config.dataset_size, config.replay_dir_limit))
    kept = max(held - filed, min(held, config.replay_memory * 1e9 / row_bytes(spec)))
    small = {key: one for key, one in spec.items() if row_bytes({key: one}) <= SMALL_BYTES}
    return kept * row_bytes(spec) + (held - kept) * row_bytes(small), filed * row_bytes(spec)


def batch_arrays(views: list[list[View]]) -> Arrays:
    """Empty arrays that hold the rows of the views: (B, T, ...) for each key."""
    size = (len(views), sum(count for _, _, count in views[0]))
    arrays = allocate(views[0][0][0].spec, math.prod(size), mapped=False)
    return {key: array.reshape(*size, *array.shape[1:]) for key, array in arrays.items()}
