"""Logging, checkpoints, random states, signals: utilities of a run besides the agent and its data.

Torch and TensorBoard are imported where they are used, so that config.py, which imports this file, is fast, and
dreamer.py can set up the process before importing torch.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

import distributed
import video

if TYPE_CHECKING:
    import torch


# Atomic files


@contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO]:
    """Opens a file that gets its name atomically, once it is complete and on disk; after an error, never."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename too
        finally:
            os.close(folder)
    finally:
        aside.unlink(missing_ok=True)


def save_checkpoint(path: Path | str, state: dict[str, Any], previous: Path | str | None = None) -> None:
    """Writes a checkpoint; a kill at any moment leaves the old file or the new one.

    The old file, if there is one, is kept as `previous`. Raises TypeError for contents that `load_checkpoint` would
    refuse, before anything is written.
    """
    import torch

    path = Path(path)
    _check_plain(state, "checkpoint")
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # after a write that failed, torch fails to end its archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if previous is not None and path.exists():
            aside = path.with_name(f".{Path(previous).name}.tmp")
            aside.unlink(missing_ok=True)
            try:
                os.link(path, aside)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, aside)
            os.replace(aside, previous)


def _check_plain(value: Any, where: str) -> None:
    import torch

    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str, torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, strings and lists")


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, without running code from it. Raises ValueError, one line, if it is damaged."""
    import torch

    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block, a device might never end
            raise ValueError("not a regular file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises various types for various kinds of damage
        raise ValueError(f"{path} is damaged or not a checkpoint ({first_line(error)})") from error


def find_nonfinite(value: Any, where: str = "") -> str | None:
    """The name of the first tensor in nested dicts and lists with an infinity or NaN in it, None if there is none."""
    import torch

    if isinstance(value, torch.Tensor):
        return where if value.is_floating_point() and not value.isfinite().all() else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        found = find_nonfinite(item, f"{where}.{key}" if where else str(key))
        if found is not None:
            return found
    return None


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; its file `.pid` names the one inside. Raises ValueError if there is one.

    The system releases the lock whenever and however the process ends. (`.lock` belongs to setup/sweep.py, which holds
    it while the processes that it started run.)
    """
    with open(folder / ".pid", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"--logdir {folder}: process {file.read().strip()} trains there; stop it or use another --logdir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log_line(f"--logdir {folder} cannot be locked ({error.strerror}): do not start a second process there")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


# Randomness


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch; `deterministic` makes torch choose deterministic kernels.

    An operation that has no such kernel on a GPU raises torch's error. Call it before the first use of the GPU.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def rng_state(**generators: np.random.Generator) -> dict[str, Any]:
    """States of torch's generators (CPU, every GPU), Python's, numpy's global one and the named generators."""
    import torch

    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "generators": {key: _plain(value.bit_generator.state) for key, value in generators.items()},
    }


def set_rng_state(state: dict[str, Any], **generators: np.random.Generator) -> None:
    """Restores the result of `rng_state`, the named generators in place; ignores states of absent GPUs."""
    import torch

    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
    for key, generator in generators.items():
        generator.bit_generator.state = state["generators"][key]


@contextmanager
def own_randomness(device: torch.device, *seed: int) -> Iterator[None]:
    """Within it, torch draws from generators seeded with these numbers; afterwards, its previous state is restored."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# Metrics and schedules


class Metrics:
    """Means of scalars over many updates, summed on the device: nothing waits for the GPU before `result`.

    The sums are float64 and part of the state, so that a resumed run logs the same means, bit for bit.
    """

    def __init__(self):
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._numbers: dict[str, list[float]] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Adds a dict of scalar tensors (of one device) and numbers."""
        import torch

        tensors = {key: value.detach() for key, value in metrics.items() if isinstance(value, torch.Tensor)}
        for key, value in metrics.items():
            if key not in tensors:
                total = self._numbers.setdefault(key, [0.0, 0])
                total[0] += float(value)
                total[1] += 1
        if not tensors:
            return
        keys = tuple(tensors)
        values = torch.stack([value.reshape(()).float() for value in tensors.values()])  # (number of keys)
        if keys not in self._sums:
            self._sums[keys] = torch.zeros(len(keys), dtype=torch.float64, device=values.device)
            self._counts[keys] = 0
        elif self._sums[keys].device != values.device:  # after a resume
            self._sums[keys] = self._sums[keys].to(values.device)
        self._sums[keys] += values
        self._counts[keys] += 1

    def means(self) -> dict[str, float]:
        """The means since the last `result`."""
        totals = {key: list(total) for key, total in self._numbers.items()}
        for keys, sums in self._sums.items():
            for key, value in zip(keys, sums.tolist(), strict=True):
                total = totals.setdefault(key, [0.0, 0])
                total[0] += value
                total[1] += self._counts[keys]
        return {key: total / count for key, (total, count) in totals.items()}

    def result(self) -> dict[str, float]:
        """The means since the last call, which are then reset."""
        means = self.means()
        self._sums, self._numbers, self._counts = {}, {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        sums = [[list(keys), values.to("cpu", copy=True), self._counts[keys]] for keys, values in self._sums.items()]
        return {"sums": sums, "numbers": {key: list(total) for key, total in self._numbers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {tuple(keys): values.clone() for keys, values, _ in state["sums"]}
        self._counts = {tuple(keys): count for keys, _, count in state["sums"]}
        self._numbers = {key: list(total) for key, total in state["numbers"].items()}


class Interrupted(BaseException):
    """Signal within `Interrupt.immediate`; not an Exception, which env code may catch."""


class Interrupt:
    """Within it, Ctrl-C, SIGTERM and a closed terminal set `requested`, so that the loop can stop cleanly.

    A second Ctrl-C raises KeyboardInterrupt. A process that ignores SIGHUP (nohup) still does.
    """

    def __init__(self):
        self.requested = False
        self._immediate = False

    def __enter__(self) -> Interrupt:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within it, a past or new interrupt raises Interrupted: for waits that may never end."""
        self._immediate = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._immediate:
            sys.unraisablehook = lambda _: None  # destructors of what is left half made would print tracebacks
            raise Interrupted


# Logs


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


# The process


def tune_allocator() -> str:
    """Lets glibc keep freed memory, which it would otherwise map and fault again for every large tensor.

    For the command line, before torch is imported; the process's resident memory stays at its peak. Returns a line for
    the log, empty with another C library.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return ""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # of malloc.h
    done = mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1) and mallopt(m_top_pad, 256 << 20)
    return "allocator: freed memory is kept" if done else ""


def tune_matmul(device: torch.device) -> str:
    """Uses oneDNN for float32 matrix products on a CPU if that is as exact; disables TensorFloat-32 on a GPU.

    On a CPU with bfloat16 matrix units the faster backend rounds to bfloat16: this is measured. Returns a line for the
    log.
    """
    import torch

    if device.type != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return "matrix products and convolutions: float32 is exact"
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(256, 512, generator=generator)
    exact = a.double() @ b.double().T
    torch.set_float32_matmul_precision("medium")
    error = ((torch.nn.functional.linear(a, b) - exact).norm() / exact.norm()).item()
    if error < 2e-6:
        return f"matrix products: float32 by oneDNN (relative error {error:.1g})"
    torch.set_float32_matmul_precision("highest")
    return f"matrix products: float32 by torch's default (oneDNN would round to bfloat16 here: error {error:.1g})"


# Learning


def pick_device(name: str) -> torch.device:
    """The torch device of `--device`; `auto` is a GPU if there is one. Raises ValueError if it does not exist.

    With several ranks, each takes its own GPU.
    """
    import torch

    if distributed.size() > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        number, count = distributed.local_rank(), torch.cuda.device_count()
        if number >= count:
            raise ValueError(f"--device {name}: each process needs a GPU, and this machine has {count}; start {count}")
        return torch.device("cuda", number)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and distributed.size() > 1:
        raise ValueError(f"--device {name}: each process takes its own GPU; use auto, cuda or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


class Optimizer:
    """Adam (AdamW with weight decay) on fixed parameters, with gradient-norm clipping.

    The gradient is the mean over all ranks, so that they take the same step.

    Args:
        lr, eps: of Adam.
        clip: maximum 2-norm over all gradients; 0 for no clipping.
        weight_decay: decoupled.
    """

    def __init__(self, params, lr: float, eps: float, clip: float, weight_decay: float = 0.0):
        self.params = list(params)
        self.clip = clip
        self.settings = {"lr": lr, "eps": eps, "weight_decay": weight_decay}

    @functools.cached_property
    def adam(self) -> torch.optim.AdamW:
        """Created at its first use, when the parameters are on their device."""
        import torch

        cuda = self.params[0].is_cuda
        # the fused CPU kernel was no faster
        kernel = {"fused": True, "capturable": True} if cuda else {"foreach": True}
        return torch.optim.AdamW(self.params, **self.settings, **kernel)

    def step(self, loss: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
        """One step on the scalar `loss`; only these parameters get a gradient. Returns its norm before clipping."""
        import torch

        grads = torch.autograd.grad(loss, self.params, retain_graph=retain_graph, allow_unused=True)
        for param, grad in zip(self.params, grads, strict=True):
            # Adam assumes that gradients have the memory layout of their parameters; convolutions' may be channels last
            param.grad = torch.zeros_like(param) if grad is None else grad.contiguous()
        distributed.average(param.grad for param in self.params)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.clip or float("inf"))
        self.adam.step()
        return norm.detach()


def ema(target: torch.nn.Module, online: torch.nn.Module, rate: float) -> None:
    """target ← (1 - rate)·target + rate·online, parameter by parameter."""
    import torch

    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
