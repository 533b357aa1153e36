"""The runs of one task of a SLURM array, on its node: `python setup/sweep_job.py TASKS`, started by setup/sweep.py.

TASKS is a JSON file: for each task of the array its runs, each a `command` and a `folder`. All runs of a task train at
once and share its GPUs and CPUs.

SIGUSR2 (the warning) and the SIGTERM of a preemption save the checkpoints and requeue the job. The SIGTERM of scancel
saves them and ends it. Only the standard library is imported, so that the handlers are there within milliseconds.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STOPPED = (0, -signal.SIGTERM)  # exit statuses of a run that can resume or is finished
STARTS, TRAINS = "the job starts", "the job trains"  # in the job's log
MAX_VAIN = 3  # starts in a row that SLURM's warning ends before a checkpoint is saved


class FolderInUse(Exception):
    """Another process trains in the folder."""


class Process:
    """dreamer.py in the folder of a run, which it keeps locked while it runs, whatever happens to this process.

    Attributes:
        code: exit status, None while it runs.
        gpu: value of CUDA_VISIBLE_DEVICES, None if it was left as it is.
        stopping: it was told to save a checkpoint and to exit.

    Raises FolderInUse or OSError.
    """

    def __init__(
        self, command: list[str], folder: Path, gpu: str | None = None, threads: int | None = None,
        new_session: bool = True,
    ):  # fmt: skip
        self.folder, self.gpu, self.code, self.stopping = folder, gpu, None, False
        folder.mkdir(parents=True, exist_ok=True)
        env = dict(os.environ)
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        if threads is not None:
            env.setdefault("OMP_NUM_THREADS", str(threads))
        self._lock = lock(folder)
        with open(folder / "stdout.log", "ab") as out, open(folder / "stderr.log", "ab") as err:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=[self._lock],
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
        write_record(self.folder, {"gpu": self.gpu, "stopping": self.stopping, "exit": self.code, **more})


def try_lock(folder: Path, create: int = 0) -> int | None:
    """A descriptor that holds the lock of a run's folder until it is closed; None if another process trains there."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | create, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # some network file systems have no locks
        pass
    return descriptor


def lock(folder: Path) -> int:
    """Like `try_lock`, but FolderInUse if another process trains there; --status holds the lock for a moment."""
    for _ in range(50):
        if (descriptor := try_lock(folder, os.O_CREAT)) is not None:
            return descriptor
        time.sleep(0.1)
    raise FolderInUse(f"another process trains in {folder}")


def read_record(folder: Path) -> dict:
    """.sweep.json without damaged entries: `gpu`, `exit` status if it ended, `stopping`, `problem` in words, `vain`."""
    try:
        found = json.loads((folder / ".sweep.json").read_text())
        types = {"gpu": str, "exit": int, "stopping": bool, "vain": int, "problem": str}
        return {name: found[name] for name, kind in types.items() if isinstance(found.get(name), kind)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def write_record(folder: Path, entry: dict) -> None:
    aside = folder / ".sweep.json.tmp"
    aside.write_text(json.dumps(entry))
    os.replace(aside, folder / ".sweep.json")


def error_line(folder: Path) -> str:
    """The last line of stderr.log."""
    with contextlib.suppress(OSError):
        return last_lines((folder / "stderr.log").read_bytes()[-4096:].decode(errors="replace"), 1)
    return ""


def last_lines(text: str, count: int) -> str:
    """The last lines of text in a log in one, cut to a readable length."""
    lines = [line.strip()[:300] for line in text.split("\n") if line.strip()]
    return "; ".join(lines[-count:])


def modified(path: Path) -> float | None:
    """When a file was written, in seconds; None if there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None


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


# ------------------------------------------------------------------------------------------------------------ the job


def start(commands: dict[Path, list[str]], received: set[int]) -> list[Process]:
    """Starts the runs, a command for each folder, evenly over the job's GPUs and CPUs; a run alone gets all of them."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    threads = int(os.environ.get("SLURM_CPUS_ON_NODE", 1)) // max(1, len(commands))
    processes = []
    for number, (folder, command) in enumerate(commands.items()):
        shared = (gpus[number % len(gpus)] or None, max(1, threads)) if len(commands) > 1 else (None, None)
        try:
            processes.append(Process(command, folder, *shared, new_session=False))
            if received:  # maybe before the process was there to get it
                processes[-1].stop()
        except (FolderInUse, OSError) as error:
            print(f"sweep: {error}")
            with contextlib.suppress(OSError):
                write_record(folder, {"exit": 1, "problem": str(error)})
    return processes


def main(path: str) -> int:
    """Trains until all runs have ended; returns the exit status of the job."""
    received: set[int] = set()
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.add(number))
    task = json.loads(Path(path).read_text())[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    commands = {Path(run["folder"]): run["command"] for run in task}
    before = {folder: read_record(folder) | {"saved": modified(folder / "latest.pt")} for folder in commands}
    print(f"sweep: {TRAINS} {', '.join(map(str, commands))}")
    # all but those that had ended by themselves when the job was requeued
    left = [folder for folder, found in before.items() if "exit" not in found or found.get("stopping")]
    processes = start({folder: commands[folder] for folder in left}, received)
    while [process for process in processes if process.poll() is None]:
        if received:
            for process in processes:
                process.stop(sent=signal.SIGTERM in received)  # SLURM sends it to all processes of a job
        time.sleep(0.2)

    stopped = [process for process in processes if process.stopping and process.code in STOPPED]
    if warned := signal.SIGUSR2 in received:
        stopped = [process for process in stopped if not in_vain(process, before[process.folder])]
    if stopped and (warned or is_preempted()):
        refused = requeue()
        if refused is None:
            print("sweep: checkpoints saved, the job is requeued")
            return 0
        problem = f"checkpoint saved, but the job could not be requeued ({refused}): repeat the command to resume"
        for process in stopped:
            process.record(problem=problem)
        print(f"sweep: {problem}")
        return 1
    codes = [read_record(folder).get("exit") for folder in commands]
    print(f"sweep: ended with exit status {', '.join(map(str, codes))}")
    return 0 if all(code in STOPPED for code in codes) else 1


def in_vain(process: Process, before: dict) -> bool:
    """Counts the starts without a checkpoint; whether they were too many, of which the run's record then tells."""
    vain = before.get("vain", 0) + 1 if modified(process.folder / "latest.pt") == before["saved"] else 0
    if vain < MAX_VAIN:
        process.record(vain=vain)
        return False
    problem = f"{vain} starts in a row came to the time limit before a checkpoint: give more, --slurm time=MINUTES"
    print(f"sweep: {process.folder}: {problem}")
    write_record(process.folder, {"exit": 1, "problem": problem})
    return True


def scontrol(*words: str) -> subprocess.CompletedProcess:
    """The answer of `scontrol WORDS JOB` about this job."""
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    survive = ignore(signal.SIGUSR2, signal.SIGTERM)  # the latter as soon as a requeue is granted
    return ask("scontrol", *words, job, before_start=survive)


def is_preempted() -> bool:
    """Whether the job still runs, in the grace time of a preemption."""
    shown = dict(word.split("=", 1) for word in scontrol("show", "job").stdout.split() if "=" in word)
    return shown.get("JobState") == "RUNNING" and shown.get("PreemptTime", "None") != "None"


def requeue() -> str | None:
    """Asks SLURM to start this job again later; returns its reason if it refuses."""
    answer = scontrol("requeue")
    return None if answer.returncode == 0 else " ".join(answer.stderr.split()) or f"exit {answer.returncode}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
