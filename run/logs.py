"""Logs of a run: messages, and numbers and videos by environment step.

`log` prints messages. `Logger` hands numbers and videos to writers: one class each, named in `WRITERS` and chosen by
the setting `loggers`.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import secrets
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from run import video
from run.files import RecordFile, replacing

# Messages


class Terminal(logging.Handler):
    """Prints messages on stdout and warnings on stderr, around a progress bar.

    A closed or full stdout does not end a run.
    """

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            with tqdm.external_write_mode(file=stream):
                print(self.format(record), file=stream, flush=True)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # discards the buffered output and all that follows
            os.close(null)
            if stream is sys.stdout:
                log.warning(f"stdout cannot be written ({error.strerror}): the run continues without it")


log = logging.getLogger("hrssm")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(Terminal())


def progress_bar(total: int | None, **settings: Any) -> tqdm:
    """A progress bar of steps on stderr, if that is a terminal."""
    shown, size = sys.stderr.isatty(), {"dynamic_ncols": True}
    if shown and 0 in os.get_terminal_size(sys.stderr.fileno()):  # terminals of some containers have no size
        size = {"ncols": 100, "nrows": 20}
    return tqdm(total=total, unit="step", disable=not shown, **size, **settings)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


# Numbers

TIMED = ("fps", "updates_per_second")  # measured; every other number is reproducible with the seed
GIF_FRAMES = 128  # maximum for a logged video: every fourth frame of an episode of 500

# Group of a scalar on pages that sort by group: the first one whose pattern matches the whole name; videos are one more
GROUPS = (
    ("episode", r"(train|eval)_(return|success).*"),
    ("grad", r".*_grad_norm"),
    ("loss", r".*_loss"),
    ("latent", r"kl|(prior|post)_ent|repo_.*"),
    ("imagination", r"(.*_)?imag_.*|.*_mean|(.*_)?EMA_\d+|.*_entropy"),
    ("progress", r"fps|.*_per_second|.*_count|.*_steps|(train|eval)_.*"),
    ("other", r".*"),
)


def grouped(name: str) -> str:
    """The name of a scalar of metrics.jsonl under its group: `model_loss` → `loss/model_loss`."""
    return next(f"{group}/{name}" for group, pattern in GROUPS if re.fullmatch(pattern, name))


class Writer:
    """One place for the numbers of a run; subclasses override what they can show.

    Args:
        logdir: folder of the run.
        resume_step: environment step of the checkpoint that the run resumes from, -1 for a new run. What was written
            beyond it must not count any more.
        resume_lines: number of rows of metrics.jsonl at that checkpoint, None if unknown.
    """

    def __init__(self, logdir: Path, resume_step: int, resume_lines: int | None):
        pass

    def begin(self, settings: Mapping[str, Any], step: int, updates: int) -> None:
        """Takes the run's settings, by dotted names, and where it starts; before the first `write`."""

    def write(self, step: int, scalars: dict[str, float], videos: dict[str, np.ndarray]) -> None:
        """Writes a row of numbers, finite or not, and videos, (T, H, W, 3) uint8, of an environment step."""

    def progress(self, step: int, updates: int) -> None:
        """Takes the counters after each of them changed."""

    def close(self) -> None:
        """Writes what is left."""


class JsonLines(Writer):
    """`metrics.jsonl`: a strict JSON object for each row, `step` first; a number that is not finite is null.

    In a resumed run, rows beyond the checkpoint (all, in a new run) and damaged ones are removed.

    Attributes:
        lines: number of rows.
        removed: the rows that were removed, as dicts of their numbers.
    """

    def __init__(self, logdir: Path, resume_step: int, resume_lines: int | None):
        path = logdir / "metrics.jsonl"
        self.lines, self.removed = self._cut(path, resume_step, resume_lines) if path.exists() else (0, [])
        if resume_step >= 0 and self.lines < (resume_lines or 0):
            log.info(f"{path} holds {self.lines} of the checkpoint's {resume_lines} lines: the others are lost")
        self._file = RecordFile(path)

    @staticmethod
    def _cut(path: Path, last_step: int, limit: int | None) -> tuple[int, list[dict]]:
        kept, removed = [], []
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if not (line.endswith(b"\n") and isinstance(entry, dict) and type(entry.get("step")) is int):
                    continue
                if entry["step"] <= last_step and (limit is None or number < limit):
                    kept.append(line)
                else:
                    removed.append({k: v for k, v in entry.items() if type(v) in (int, float)})
        with replacing(path) as file:
            file.writelines(kept)
        return len(kept), removed

    def write(self, step: int, scalars: dict[str, float], videos: dict[str, np.ndarray]) -> None:
        if scalars:
            values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            self._file.write((json.dumps({"step": step, **values}, allow_nan=False) + "\n").encode())
            self.lines += 1

    def close(self) -> None:
        self._file.close()


class TensorBoard(Writer):
    """An event file: scalars under their groups, videos as GIFs, and the settings as text and as hparams.

    The settings belong to the run itself, whereas `SummaryWriter.add_hparams` would create a second one. In a resumed
    run, the events of older files beyond the checkpoint are removed: the page would show them.
    """

    def __init__(self, logdir: Path, resume_step: int, resume_lines: int | None):
        from tensorboard.summary.writer.record_writer import RecordWriter

        rows = sys.maxsize
        if resume_lines is not None and (logdir / "metrics.jsonl").is_file():
            lines = (logdir / "metrics.jsonl").read_bytes().splitlines()[:resume_lines]
            rows = sum(f'"step": {resume_step},'.encode() in line for line in lines)
        for path in sorted(logdir.glob("events.out.tfevents.*")):
            if path.is_file():
                rows -= self._cut(path, resume_step, rows)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(RecordFile(logdir / name))
        self._add(0, file_version="brain.Event:2")

    @staticmethod
    def _cut(path: Path, last_step: int, rows: int) -> int:
        """Removes the events beyond a step, its numbers after the first `rows`, and half an event at the end.

        Returns how many rows of numbers of that step it holds.
        """
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        data, kept, start, found = path.read_bytes(), [], 0, 0
        while start + 12 <= len(data):  # length and its checksum, event and its checksum
            end = start + 16 + struct.unpack_from("<Q", data, start)[0]
            try:
                event = Event.FromString(data[start + 12 : end - 4])
            except DecodeError:
                break
            of_step = event.step == last_step and any(v.HasField("simple_value") for v in event.summary.value)
            found += of_step
            if end <= len(data) and (event.step <= last_step or event.file_version) and not (of_step and found > rows):
                kept.append(data[start:end])
            start = end
        if len(kept) <= 1:  # the version alone
            path.unlink()
        elif sum(map(len, kept)) < len(data):
            with replacing(path) as file:
                file.writelines(kept)
        return min(found, rows)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def begin(self, settings: Mapping[str, Any], step: int, updates: int) -> None:
        from torch.utils.tensorboard.summary import hparams, text

        rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
        known = {name: value if type(value) in (int, float) else _cell(value) for name, value in settings.items()}
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        for summary in (text("config", table), *hparams(known, {grouped("eval_return"): 0})):
            self._add(step, summary=summary)

    def write(self, step: int, scalars: dict[str, float], videos: dict[str, np.ndarray]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=grouped(name), simple_value=value) for name, value in scalars.items()]
        for name, frames in videos.items():
            gif = Summary.Image(
                height=frames.shape[1], width=frames.shape[2], colorspace=3,
                encoded_image_string=video.encode_gif(frames, max_frames=GIF_FRAMES),
            )  # fmt: skip
            values.append(Summary.Value(tag=f"video/{name}", image=gif))
        self._add(step, summary=Summary(value=values))

    def close(self) -> None:
        self._records.close()


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Console(Writer):
    """The terminal: a line for each evaluation and each row of the losses, and a progress bar on stderr."""

    SHOWN = ("model_loss", "actor_loss", "value_loss")

    def __init__(self, logdir: Path, resume_step: int, resume_lines: int | None):
        self._return: float | None = None
        self._bar: tqdm | None = None

    def begin(self, settings: Mapping[str, Any], step: int, updates: int) -> None:
        self.total, self.step, self.updates = settings["steps"], step, updates
        # time, step and updates of the start and of the latest rows: speeds are since the first of them
        self._marks = deque([(time.perf_counter(), step, updates)], maxlen=5)
        self._bar = progress_bar(self.total, initial=step, smoothing=0.05)

    def progress(self, step: int, updates: int) -> None:
        self.step, self.updates = step, updates
        if self._bar is not None:
            try:
                self._bar.set_postfix_str(self._state(), refresh=False)
                self._bar.update(step - self._bar.n)
            except OSError:  # the terminal is gone
                self._bar = None

    def write(self, step: int, scalars: dict[str, float], videos: dict[str, np.ndarray]) -> None:
        self._return = scalars.get("train_return", self._return)
        for name, value in scalars.items():
            kind, _, task = name.partition("/")
            if kind == "eval_return":
                std, count = (scalars[f"{other}/{task}".rstrip("/")] for other in ("eval_return_std", "eval_episodes"))
                log.info(f"step {step}: {name} {value:.1f} ± {std:.1f} ({count:.0f} episodes)")
        if "update_count" in scalars:
            self._report({name: scalars[name] for name in self.SHOWN if name in scalars})

    def _report(self, losses: dict[str, float]) -> None:
        """Step, losses, latest return, and speed and time left by the last few rows."""
        share = 100 * self.step / max(self.total, 1)
        parts = [f"step {self.step}/{self.total} ({share:.1f}%)"]
        parts += [*(f"{name} {value:.4g}" for name, value in losses.items()), self._state()]
        now, (then, before, _) = time.perf_counter(), self._marks[0]
        if self.step > before:
            parts.append(f"{_clock((now - then) / (self.step - before) * (self.total - self.step))} left")
        self._marks.append((now, self.step, self.updates))
        log.info(", ".join(parts))

    def _state(self) -> str:
        then, _, before = self._marks[0]
        rate = (self.updates - before) / max(time.perf_counter() - then, 1e-9)
        known = "" if self._return is None else f"train_return {self._return:.1f}, "
        return f"{known}{rate:.2f} updates/s"

    def close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class WeightsAndBiases(Writer):
    """A run of wandb, under one id whenever the run of this folder resumes; WANDB_PROJECT names its project."""

    def __init__(self, logdir: Path, resume_step: int, resume_lines: int | None):
        self._logdir, self._id, self._run = logdir, logdir / "wandb_id", None

    def begin(self, settings: Mapping[str, Any], step: int, updates: int) -> None:
        import wandb

        if not self._id.exists():
            with replacing(self._id, "w") as file:
                file.write(secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hrssm"),
            id=self._id.read_text().strip(),
            resume="allow",
            dir=self._logdir,
            config=dict(settings),
            settings=wandb.Settings(console="off", quiet=True),
        )
        # a row may repeat a step that wandb knows already, after a kill: its own counter only grows
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: dict[str, float], videos: dict[str, np.ndarray]) -> None:
        import wandb

        row = {grouped(name): value for name, value in scalars.items()}
        for name, frames in videos.items():
            gif = io.BytesIO(video.encode_gif(frames, max_frames=GIF_FRAMES))
            row[f"video/{name}"] = wandb.Video(gif, format="gif")
        self._run.log({"step": step, **row})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


WRITERS = {"jsonl": JsonLines, "tensorboard": TensorBoard, "console": Console, "wandb": WeightsAndBiases}


def check_loggers(names: Collection[str]) -> None:
    """Raises ValueError, one line, for a writer that there is not, or whose package is missing."""
    for name in names:
        if name not in WRITERS:
            raise ValueError(f"--loggers {name}: choose from {', '.join(WRITERS)}")
    if "wandb" in names and find_spec("wandb") is None:
        raise ValueError("--loggers wandb: the package is missing; `.venv/bin/python -m pip install wandb` installs it")


class Logger:
    """The writers of a run.

    Args:
        logdir: folder of the run.
        names: writers, of `WRITERS`.
        resume_step, resume_lines: see `Writer`.
    """

    def __init__(
        self,
        logdir: Path | str,
        names: Collection[str] = ("jsonl", "tensorboard"),
        resume_step: int = -1,
        resume_lines: int | None = None,
    ):
        logdir = Path(logdir)
        logdir.mkdir(parents=True, exist_ok=True)
        self.writers = {name: WRITERS[name](logdir, resume_step, resume_lines) for name in names}
        self._mark: tuple[float, int, int] | None = None

    @property
    def lines(self) -> int | None:
        """Rows of metrics.jsonl, None without that file."""
        return self.writers["jsonl"].lines if "jsonl" in self.writers else None

    @property
    def removed(self) -> list[dict[str, float]]:
        """Rows of metrics.jsonl that were beyond the checkpoint."""
        return self.writers["jsonl"].removed if "jsonl" in self.writers else []

    def begin(self, settings: Mapping[str, Any], step: int, updates: int) -> None:
        """Hands the settings, by dotted names, and the first environment step and update to the writers."""
        for writer in self.writers.values():
            writer.begin(settings, step, updates)

    def write(self, step: int, scalars: Mapping[str, Any], videos: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes a row of an environment step.

        Args:
            scalars: numbers, or tensors or arrays of one.
            videos: uint8 frames (T, H, W, 3), or several to show side by side (B, T, H, W, 3).
        """
        scalars = {name: float(value) for name, value in scalars.items()}
        videos = {name: _side_by_side(name, frames) for name, frames in (videos or {}).items()}
        if scalars or videos:
            for writer in self.writers.values():
                writer.write(step, scalars, videos)

    def speed(self, step: int, updates: int) -> dict[str, float]:
        """Environment steps and updates per second since the last call; nothing at the first one."""
        now, before = time.perf_counter(), self._mark
        self._mark = (now, step, updates)
        if before is None or now <= before[0]:
            return {}
        then, from_step, from_updates = before
        rates = (step - from_step) / (now - then), (updates - from_updates) / (now - then)
        return dict(zip(TIMED, rates, strict=True))

    def progress(self, step: int, updates: int) -> None:
        """Hands the counters to the writers. Cheap: call it often."""
        for writer in self.writers.values():
            writer.progress(step, updates)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _side_by_side(name: str, frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError(f"video {name}: {frames.dtype} {frames.shape}, expected uint8 ([B,] T, H, W, 3)")
    return frames if frames.ndim == 4 else np.concatenate(list(frames), axis=2)
