"""Batches for the learner: gathered and uploaded by a thread while it works."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from run.episodes import EpisodeLost
from run.logs import log
from run.replay import Replay, Segment, View, batch_arrays, collate


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
        """The oldest batch, (B, T, ...) for each key, drawn now if none is in flight; raises an error of its thread.

        A batch with an episode that was dropped, or whose file is damaged or gone, is left out.
        """
        self._leave_out_dropped()
        while True:
            if not self._pending:
                self._start(self.replay.draw(self.rng, self.batch, self.length))
            _, future = self._pending.popleft()
            try:
                tensors, uploaded = future.result()
                break
            except EpisodeLost as lost:
                self.replay.drop(lost)
        if uploaded is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(uploaded)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        return tensors

    def close(self) -> None:
        """Ends the thread."""
        self._pending.clear()
        self._pool.shutdown(cancel_futures=True)

    def state_dict(self) -> dict:
        """State of the generator, and the segments of the batches in flight: numbers and strings only."""
        self._leave_out_dropped()
        return {"rng": self.rng.bit_generator.state, "pending": [segments for segments, _ in self._pending]}

    def load_state_dict(self, state: dict) -> None:
        """Gathers the batches again that were in flight. Call it when the replay holds the same episodes as then.

        A batch with an episode that no longer exists, or of another size, is drawn again.
        """
        self._pending.clear()
        self.rng.bit_generator.state = state["rng"]
        for segments in state["pending"]:
            if [sum(rows for _, _, rows in sequence) for sequence in segments] != [self.length] * self.batch:
                continue  # settings have changed: `next` draws
            try:
                self._start([[tuple(segment) for segment in sequence] for sequence in segments])
            except (KeyError, OSError, ValueError) as error:
                log.warning(f"replay: a prefetched batch is drawn again ({error})")
                self._start(self.replay.draw(self.rng, self.batch, self.length))

    def _leave_out_dropped(self) -> None:
        self._pending = deque(one for one in self._pending if not self.replay.is_dropped(one[0]))

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
