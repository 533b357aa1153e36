"""Logs of a run: scalars, videos and text in `metrics.jsonl` and TensorBoard; progress and messages on the terminal."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from run import video
from run.files import replacing


class Logger:
    """Scalars, videos and text of a run, to TensorBoard and `metrics.jsonl`.

    Args:
        logdir: folder of the run.
        resume_step: environment step of the checkpoint that the run resumes from, None for a new run. Lines of
            `metrics.jsonl` beyond it (all, in a new run), and an incomplete last line, are removed; TensorBoard
            hides the data beyond it.
        resume_lines: number of lines at that checkpoint, if known: those after them are removed too.

    Attributes:
        lines: number of lines of `metrics.jsonl`.
        removed: the lines that were removed, as dicts of their numbers.

    A line of `metrics.jsonl` is one strict JSON object, `step` in environment steps first; a number that is not
    finite is null. `fps` and `updates_per_second` are measured; everything else is reproducible with the seed.
    """

    TIMED = ("fps", "updates_per_second")
    # Group, chart, regular expression of its scalars, for TensorBoard's CUSTOM SCALARS page; the names stay plain.
    CHARTS: ClassVar[dict[str, dict[str, str]]] = {
        "Episodes": {
            "return": "(train|eval)_return(/.*)?",
            "length": "(train|eval)_length(/.*)?",
            "success": "(train|eval)_success(/.*)?",
        },
        "Learning": {
            "losses": ".*_loss",
            "gradient norms": ".*_grad_norm",
            "divergence": "(.*_)?kl(_.*)?|.*_beta",
            "entropy": ".*_ent(ropy)?",
            "values": r"(?!.*imag_).*_mean|(.*_)?EMA_\d+",
            "imagination": "(.*_)?imag_.*",
        },
        "Progress": {
            "speed": "fps|.*_per_second",
            "counts": ".*_count|.*_steps|train_episodes",
        },
    }

    def __init__(self, logdir: Path | str, resume_step: int | None = None, resume_lines: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        self.logdir = Path(logdir)
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.path = self.logdir / "metrics.jsonl"
        last_step = -1 if resume_step is None else resume_step
        self.lines, self.removed = self._cut(last_step, resume_lines) if self.path.exists() else (0, [])
        if resume_step is not None and self.lines < (resume_lines or 0):
            log_line(f"{self.path} holds {self.lines} of the checkpoint's {resume_lines} lines: the others are lost")
        self._file = self.path.open("ab", buffering=0)
        self._writer = SummaryWriter(str(self.logdir), purge_step=last_step + 1)
        threading.excepthook = _without_disk_errors
        self._scalars: dict[str, float] = {}
        self._videos: dict[str, np.ndarray] = {}
        self._texts: dict[str, str] = {}
        self._fps_from: tuple[float, int, int] | None = None

    def _cut(self, last_step: int, limit: int | None) -> tuple[int, list[dict]]:
        kept, removed = [], []
        with open(self.path, "rb") as file:
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
        with replacing(self.path) as file:
            file.writelines(kept)
        return len(kept), removed

    def _append(self, line: bytes) -> None:
        """Adds a line atomically."""
        end = self.path.stat().st_size
        if self._file.write(line) != len(line):  # the disk is full
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.lines += 1

    def settings(self, settings: Mapping[str, Any], step: int) -> None:
        """Writes the run's settings to TensorBoard, as text and as hparams with metric `eval_return`, and chart groups.

        All of it belongs to the run itself, whereas `SummaryWriter.add_hparams` would create a second one.
        """
        from torch.utils.tensorboard.summary import custom_scalars, hparams

        rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
        self._writer.add_text("config", "\n".join(["| setting | value |", "|---|---|", *rows]), step)
        known = {name: value if type(value) in (int, float) else _cell(value) for name, value in settings.items()}
        layout = {
            group: {title: ["Multiline", [f"^({tags})$"]] for title, tags in charts.items()}
            for group, charts in self.CHARTS.items()
        }
        writer = self._writer._get_file_writer()
        for summary in (*hparams(known, {"eval_return": 0}), custom_scalars(layout)):
            writer.add_summary(summary, step)
        self._writer.flush()

    def scalar(self, name: str, value: Any) -> None:
        """A number, or a tensor or array of one, for the next `write`."""
        self._scalars[name] = float(value)

    def scalars(self, values: Mapping[str, Any]) -> None:
        """Several at once."""
        for name, value in values.items():
            self.scalar(name, value)

    def video(self, name: str, frames: np.ndarray) -> None:
        """uint8 frames (T, H, W, 3), or several side by side (B, T, H, W, 3), for the next `write`."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
            raise ValueError(f"video {name}: {frames.dtype} {frames.shape}, expected uint8 ([B,] T, H, W, 3)")
        self._videos[name] = frames if frames.ndim == 4 else np.concatenate(list(frames), axis=2)

    def text(self, name: str, text: str) -> None:
        """Markdown, for the next `write`."""
        self._texts[name] = text

    def write(self, step: int, fps: bool = False, updates: int | None = None) -> None:
        """Writes the collected values at an environment step.

        With `fps`, adds the environment steps per second since the last such call, and with `updates`, the number
        of updates so far, the updates per second too.
        """
        if fps:
            now = time.perf_counter()
            if self._fps_from is not None and now > self._fps_from[0]:
                then, from_step, from_updates = self._fps_from
                self._scalars["fps"] = (step - from_step) / (now - then)
                if updates is not None:
                    self._scalars["updates_per_second"] = (updates - from_updates) / (now - then)
            self._fps_from = (now, step, updates or 0)
        if self._scalars:
            values = {name: value if math.isfinite(value) else None for name, value in self._scalars.items()}
            self._append((json.dumps({"step": step, **values}, allow_nan=False) + "\n").encode())
        for name, value in self._scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, frames in self._videos.items():
            self._write_video(name, frames, step)
        for name, text in self._texts.items():
            self._writer.add_text(name, text, step)
        self._writer.flush()
        self._scalars, self._videos, self._texts = {}, {}, {}

    def _write_video(self, name: str, frames: np.ndarray, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=video.encode_gif(frames)
        )
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        with suppress(OSError):  # from a full disk, which `write` has raised
            self._writer.close()
        self._file.close()


def _without_disk_errors(args: threading.ExceptHookArgs) -> None:
    """A threading.excepthook: what TensorBoard's thread could not write, `Logger.write` raises in the main thread."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
        threading.__excepthook__(args)


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Progress:
    """Progress of the run: a bar on stderr if that is a terminal, and a line on stdout at each call of `report`.

    Args:
        total_steps: environment steps of the run.
        initial, updates: environment step and number of updates that it starts from.
    """

    def __init__(self, total_steps: int, initial: int = 0, updates: int = 0):
        from tqdm import tqdm

        self.total, self.step, self.updates = total_steps, initial, updates
        # time, step and updates of the start and of the latest reports: speeds are since the first of them
        self._marks = deque([(time.perf_counter(), initial, updates)], maxlen=5)
        self._episode_return: float | None = None
        self._bar = None
        if sys.stderr.isatty():
            known = os.get_terminal_size(sys.stderr.fileno()).columns > 0  # terminals of some containers have no size
            width = {"dynamic_ncols": True} if known else {"ncols": 100, "nrows": 20}
            self._bar = tqdm(total=total_steps, initial=initial, unit="step", smoothing=0.05, **width)

    def update(self, step: int, updates: int, episode_return: float | None = None) -> None:
        """Environment step and updates so far, and the latest return if there is a new one. Cheap: call it often."""
        self.step, self.updates = step, updates
        if episode_return is not None:
            self._episode_return = episode_return
        if self._bar is not None:
            try:
                self._bar.set_postfix_str(self._state(), refresh=False)
                self._bar.update(step - self._bar.n)
            except OSError:  # the terminal is gone
                self._bar = None

    def report(self, values: Mapping[str, float]) -> None:
        """Prints one short line: step, these values, latest return, and speed and time left by the last few rows."""
        share = 100 * self.step / max(self.total, 1)
        parts = [f"step {self.step}/{self.total} ({share:.1f}%)", self._state()]
        parts[1:1] = [f"{name} {value:.4g}" for name, value in values.items()]
        now, (then, before, _) = time.perf_counter(), self._marks[0]
        if self.step > before:
            parts.append(f"{_clock((now - then) / (self.step - before) * (self.total - self.step))} left")
        self._marks.append((now, self.step, self.updates))
        log_line(", ".join(parts))

    def _state(self) -> str:
        then, _, before = self._marks[0]
        rate = (self.updates - before) / max(time.perf_counter() - then, 1e-9)
        known = "" if self._episode_return is None else f"train_return {self._episode_return:.1f}, "
        return f"{known}{rate:.2f} updates/s"

    def close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def log_line(line: str) -> None:
    """Prints a line on stdout, around a progress bar. A closed or full stdout does not end a run."""
    from tqdm import tqdm

    try:
        with tqdm.external_write_mode(file=sys.stdout):
            print(line, flush=True)
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # discards the buffered output and all that follows
        os.close(null)
        with suppress(OSError):
            print(f"stdout cannot be written ({error.strerror}): the run continues without it", file=sys.stderr)
