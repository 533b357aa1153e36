"""A run of a sweep: its folder, the process that trains there, and what the folder records about both.

Used on the user's machine and on the nodes of a cluster. Quick to import: nothing but the standard library.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STATES = ("waiting", "running", "stopping", "finished", "failed")
LARGEST = 1e30  # magnitude of a step or value that can be drawn
STOPPED = (0, -signal.SIGTERM)  # exit statuses of a run that can resume or is finished
STARTS, TRAINS = "the job starts", "the job trains"  # lines in the log of a SLURM job


Queue = dict[str, str]  # SLURM's, {id of a job, such as 12_0: its state, and in brackets why it waits}


@dataclass(frozen=True)
class Run:
    """A run, in {logdir}/{task}/{method}/seed{N}.

    steps: environment steps after which it is finished, None if unknown. command: what trains it, if it may be started.
    """

    folder: Path
    steps: int | None = None
    command: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, str, int]:
        """Task, method, seed."""
        task, method, seed = self.folder.parts[-3:]
        return task, method, int(seed.removeprefix("seed"))

    def __str__(self) -> str:
        return "{} {} seed {}".format(*self.names)

    # The process that trains there

    def try_lock(self, create: int = 0) -> int | None:
        """A descriptor that holds the folder's lock until it is closed; None if another process trains there."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | create, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # some network file systems have no locks
            pass
        return descriptor

    def lock(self) -> int:
        """Like `try_lock`, or BlockingIOError; --status holds the lock for a moment."""
        for _ in range(50):
            if (descriptor := self.try_lock(os.O_CREAT)) is not None:
                return descriptor
            time.sleep(0.1)
        raise BlockingIOError(f"another process trains in {self.folder}")

    def locked(self) -> bool:
        """Whether a process that a sweep started trains in the folder, on this machine or wherever its locks reach."""
        with contextlib.suppress(OSError):  # no sweep was there
            if (descriptor := self.try_lock()) is None:
                return True
            os.close(descriptor)
        return False

    def record(self) -> dict:
        """.sweep.json, of the process that trained there last, without damaged entries.

        `gpu`, `exit` status if it ended, `stopping`, `problem` in words, `vain`: starts in a row without a checkpoint.
        """
        try:
            found = json.loads((self.folder / ".sweep.json").read_text())
            types = {"gpu": str, "exit": int, "stopping": bool, "vain": int, "problem": str}
            return {name: found[name] for name, kind in types.items() if isinstance(found.get(name), kind)}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def write_record(self, entry: dict) -> None:
        aside = self.folder / ".sweep.json.tmp"  # no fsync, which may take seconds: signals wait for this
        aside.write_text(json.dumps(entry))
        os.replace(aside, self.folder / ".sweep.json")

    def slurm_job(self) -> str | None:
        """The id of the last SLURM job."""
        try:
            return (self.folder / ".slurm_job").read_text().strip()
        except (OSError, ValueError):
            return None

    def error_line(self) -> str:
        """The last line of stderr.log."""
        with contextlib.suppress(OSError):
            return last_lines((self.folder / "stderr.log").read_bytes()[-4096:].decode(errors="replace"), 1)
        return ""

    def ending(self, code: int) -> str:
        """How the process ended, in words: its exit status, or the signal that killed it; and its last line."""
        how = f"exit {code}: " if code >= 0 else f"killed by signal {-code} ({signal.strsignal(-code)}), after: "
        return how + self.error_line()

    # What it wrote

    def written(self, name: str) -> float | None:
        """When a file was written, in seconds; None if there is none."""
        with contextlib.suppress(OSError):
            return (self.folder / name).stat().st_mtime
        return None

    def rows(self) -> Iterator[dict]:
        """The rows of metrics.jsonl from its end; skips damaged ones, and the incomplete line of a killed run."""
        try:
            lines = (self.folder / "metrics.jsonl").read_bytes().splitlines()
        except OSError:
            return
        for line in reversed(lines):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and is_number(row.get("step")):
                yield {name: value for name, value in row.items() if value is None or is_number(value)}

    def progress(self) -> dict:
        """`step`, `eval_return` (the newest), `age` in seconds, `finished`, from the end of metrics.jsonl."""
        written, saved = self.written("metrics.jsonl"), self.written("latest.pt")
        rows = []
        for row in self.rows():
            rows.append(row)
            if row.get("eval_return") is not None:
                break
        # A run ends with its last updates, a row with their count, and a checkpoint.
        counted = max((row["step"] for row in rows if "update_count" in row), default=-1)
        ended = self.steps is not None and counted >= self.steps
        return {
            "step": rows[0]["step"] if rows else 0,
            "eval_return": rows[-1].get("eval_return") if rows else None,
            "age": None if written is None else time.time() - written,
            "finished": ended and (self.is_export() if saved is None else saved >= written),
        }

    def is_export(self) -> bool:
        """Whether --export wrote it: it has rows, but nothing to train from."""
        return not (self.folder / "train_eps").exists()

    # Its state. `queue`: the jobs that SLURM knows now, None if that is unknown

    def state(self, queue: Queue | None) -> str:
        """One of STATES. A run is waiting if it has not started or can resume."""
        job, locked, record = (queue or {}).get(self.slurm_job() or "", ""), self.locked(), self.record()
        if not locked and self.progress()["finished"]:
            return "finished"
        if job.startswith("COMPLETING") or (locked and record.get("stopping")):
            return "stopping"
        if locked or job.startswith("RUNNING"):
            return "running"
        return "failed" if not job and self.failure(queue) else "waiting"

    def note(self, state: str, queue: Queue | None) -> str:
        """What --status adds to a state."""
        job = self.slurm_job()
        if job in (queue or {}):
            return f"job {job} {queue[job]}"
        if state == "finished":
            return ""
        return self.failure(queue) or self.record().get("problem", "")

    def failure(self, queue: Queue | None) -> str | None:
        """Why the last process that trained there, or its SLURM job, failed."""
        job, record = self.slurm_job(), self.record()
        if job and queue is not None and (died := self.died_early(job)):
            return died
        if (code := record.get("exit", 0)) not in STOPPED:
            return record.get("problem") or self.ending(code)
        return None

    def died_early(self, job: str) -> str | None:
        """Why a job that is not in the queue ended before dreamer.py started; None if it did not, or was canceled."""
        log = self.folder.parents[2] / ".slurm" / f"{job}.log"
        try:
            text = log.read_text(errors="replace").rpartition(STARTS)[2]
        except (OSError, ValueError):  # canceled before it started
            return None
        if TRAINS in text or ("CANCELLED AT" in text and "DUE TO TIME LIMIT" not in text):
            return None
        return f"job {job} ended before dreamer.py started: {last_lines(text, 2)} ({log})"


class Process:
    """dreamer.py in the folder of a run, which it keeps locked while it runs, whatever happens to this process.

    Attributes:
        code: exit status, None while it runs.
        gpu: value of CUDA_VISIBLE_DEVICES, None if it was left as it is.
        stopping: it was told to save a checkpoint and to exit.

    Raises OSError, if another process trains in the folder BlockingIOError.
    """

    def __init__(self, run: Run, gpu: str | None = None, threads: int | None = None, new_session: bool = True):
        self.run, self.gpu, self.code, self.stopping = run, gpu, None, False
        run.folder.mkdir(parents=True, exist_ok=True)
        env = dict(os.environ)
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        if threads is not None:
            env.setdefault("OMP_NUM_THREADS", str(threads))
        self._lock = run.lock()
        with open(run.folder / "stdout.log", "ab") as out, open(run.folder / "stderr.log", "ab") as err:
            self._process = subprocess.Popen(
                run.command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=[self._lock],
                start_new_session=new_session, preexec_fn=ignore(signal.SIGUSR2),
            )  # fmt: skip
        self.record()

    def poll(self) -> int | None:
        """The exit status, recorded when the process has ended."""
        if self.code is None and (code := self._process.poll()) is not None:
            self.code = code
            self.record()
            os.close(self._lock)
        return self.code

    def stop(self, sent: bool = False) -> None:
        """Sends SIGTERM, once: a second one could hit it after the checkpoint. `sent`: somebody else did."""
        if self.poll() is None and not self.stopping:
            self.stopping = True
            self.record()
            if not sent:
                self._process.terminate()

    def record(self, **more: object) -> None:
        """Writes .sweep.json for `sweep.py --status`."""
        self.run.write_record({"gpu": self.gpu, "stopping": self.stopping, "exit": self.code, **more})


def is_number(value: object) -> bool:
    """Whether it is a finite number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def last_lines(text: str, count: int) -> str:
    """The last lines of text in a log in one, cut to a readable length."""
    lines = [line.strip()[:300] for line in text.split("\n") if line.strip()]
    return "; ".join(lines[-count:])


def ask(*command: str, before_start: Callable[[], None] | None = None) -> subprocess.CompletedProcess:
    """The answer of a program within a minute; if it cannot be run, no `returncode` and the reason in `stderr`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=before_start)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, None, "", str(error))


def ignore(*numbers: int) -> Callable[[], None]:
    """What a child does before it starts: SLURM sends signals to all processes of a job, which would kill it."""

    def before_start() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return before_start
