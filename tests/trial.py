"""A trial of tests/campaign.py: a command that is disturbed, and what has to hold of its end.

It *survived* if it did its work, and the result equals that of a run that nobody disturbed, or has what must hold of
any run. It is *refused* by exit status 1 or 2 with exactly one line on stderr, no traceback. All else has failed.

Commands run in processes forked from this one, which has imported what they need: they start in no time, but are
processes of their own with the script as `__main__`, so that signals, limits and exits are real.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.utils.tensorboard  # noqa: F401
from test_dreamer import entries
from test_failures import SHORT

import dreamer  # noqa: F401
import envs.dmc  # noqa: F401
from run import checkpoint
from run.config import load_config
from run.episodes import read_episode
from run.trainer import Schedule

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 1800  # seconds after which a command is taken to hang
STEPS = 240
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a run stops in order on these
TINY = "--time_limit 40 --prefill 20 --train_ratio 4 --eval_every 80 --log_every 40 --checkpoint_every 60".split()
RUN = [*SHORT, *TINY, "--steps", str(STEPS)]  # a tiny agent, 15 rows of the log and 6 episodes
SCRATCH = Path()  # folder of the campaign

Failed = AssertionError  # a trial did not end as it must


class Untried(Exception):
    """A trial that is impossible here; says why."""


class Trial:
    """What a scenario gets: a generator of its own, and an empty folder."""

    def __init__(self, name: str, seed: int, number: int):
        self.rng = random.Random(f"{seed} {name} {number}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-{number}-", dir=SCRATCH))
        self.logdir = self.folder / "run"
        self.inexact = False  # the run has fallen back to a checkpoint before
        self.tried: object = ""  # a part of the reason why it failed

    def copy_run(self) -> Path:
        return shutil.copytree(reference(), self.logdir)


# Processes


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        err, out = self.err[-1500:].strip() or "empty", self.out[-300:].strip()
        return f"exit status {self.code}; stderr: {err}; stdout: {out}"


class Process(multiprocessing.get_context("fork").Process):
    """A call in a forked process, in a session of its own; its output goes to files.

    limits: memory (bytes of address space) and seconds (of processor time), beyond which `wait` raises Untried.
    """

    def __init__(self, function: Callable, *args, **limits: int):
        super().__init__()
        self.call, self.limits = functools.partial(function, *args), limits
        self.folder = Path(tempfile.mkdtemp(prefix="process-", dir=SCRATCH))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # held back until the child handles them
        self.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def run(self) -> None:
        os.setsid()
        for fd, path in enumerate((os.devnull, self.folder / "out", self.folder / "err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fd)
        for number in STOPPING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for kind, limit in (("memory", resource.RLIMIT_AS), ("seconds", resource.RLIMIT_CPU)):
            if kind in self.limits:
                resource.setrlimit(limit, (self.limits[kind], resource.RLIM_INFINITY))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        try:
            sys.exit(self.call())
        except KeyboardInterrupt:
            sys.exit(130)

    def send(self, number: int, to: str, rng: random.Random) -> None:
        """Sends a signal to the `run`, to it and its workers (`all`), or to one of them (`worker`)."""
        with contextlib.suppress(OSError, IndexError):
            if to == "worker":
                os.kill(int(rng.choice(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())), number)
            elif self.is_alive():
                (os.killpg if to == "all" else os.kill)(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Result:
        end = time.monotonic() + seconds
        while (hung := self.is_alive()) and time.monotonic() < end:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers of a killed process, which end by themselves, a moment later
        self.join(60)
        files = (self.folder / "out", self.folder / "err")
        result = Result(self.exitcode, *(path.read_text(errors="replace") if path.exists() else "" for path in files))
        shutil.rmtree(self.folder)
        assert not hung, f"hung for {seconds:g} s: {result}"
        out_of_memory = re.search("MemoryError|(can't|not) allocate", result.err)
        if self.limits and (out_of_memory or self.exitcode == -signal.SIGXCPU):
            raise Untried("too large for this machine")
        return result


def as_main(script: str, *words: str) -> None:
    sys.argv = [str(ROOT / script), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def command(script: str, *words, **limits: int) -> Process:
    return Process(as_main, script, *map(str, words), **limits)


def refused(result: Result, tried: object = "") -> str:
    """'refused', or Failed where that is not one line, apart from the warning of a small disk, and status 1 or 2."""
    lines = [line for line in result.err.strip().splitlines() if " grows by " not in line]
    one = result.code in (1, 2) and len(lines) == 1 and "Traceback" not in result.err
    assert one, f"{tried}: expected one line on stderr and status 1 or 2: {result}"
    return "refused"


def ended(result: Result, holds: Callable[[], object] = lambda: True, tried: object = "") -> str:
    """'refused', or 'survived' if something else holds too."""
    if result.code:
        return refused(result, tried)
    assert holds(), f"{tried}: not what an undisturbed command does: {result}"
    return "survived"


# Runs


@functools.cache
def reference() -> Path:
    """The folder of a run that nobody disturbs."""
    result = command("dreamer.py", *RUN, "--logdir", SCRATCH / "reference").wait()
    assert result.code == 0, f"the undisturbed run failed: {result}"
    return SCRATCH / "reference"


def train(t: Trial, *flags) -> Process:
    reference()  # not while this one runs
    return command("dreamer.py", *RUN, "--logdir", t.logdir, *flags)


def log_lines(logdir: Path) -> list[bytes]:
    path = logdir / "metrics.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


class Snapshot(NamedTuple):
    episodes: dict[str, bytes]  # contents of the files
    lines: list[bytes]  # the log up to the newest whole checkpoint


def snapshot(logdir: Path) -> Snapshot:
    episodes = {path.name: path.read_bytes() for path in (logdir / "train_eps").glob("*.npz")}
    for name in ("latest.pt", "previous.pt"):
        with contextlib.suppress(OSError, ValueError):
            return Snapshot(episodes, log_lines(logdir)[: checkpoint.load_checkpoint(logdir / name)["lines"]])
    return Snapshot(episodes, [])


def fell_back(result: Result) -> bool:
    """Whether a run resumed with episodes newer than its checkpoint: its numbers are its own from there on."""
    return bool(re.search("newer than the checkpoint|lost with the last checkpoint", result.out))


def trained_to(logdir: Path, steps: int) -> bool:
    last = entries(logdir)[-1]
    return last["step"] >= steps and all(value is None or math.isfinite(value) for value in last.values())


def check_run(t: Trial, before: Snapshot, result: Result, exact: bool = False) -> str:
    """That a run which was disturbed, with what it had then, and resumed to its end has lost and doubled nothing.

    One that resumed from its last state has to equal the reference to the bit; `exact`: it must have done so.
    """
    assert result.code == 0, f"the run did not resume: {result}"
    rows, wanted, state = entries(t.logdir), entries(reference()), checkpoint.load_checkpoint(t.logdir / "latest.pt")
    files = sorted((t.logdir / "train_eps").glob("*.npz"))
    now = {path.name: path.read_bytes() for path in files}
    totals = [float(read_episode(path)["reward"].sum(dtype=np.float64)) for path in files]

    def column(key: str, where: str) -> list:
        return [row[key] for row in rows if where in row]

    episodes, returns = column("train_episodes", "train_episodes"), column("train_return", "train_episodes")
    updates, evaluated = column("update_count", "update_count"), column("step", "eval_return")
    steps, due = column("step", "step"), Schedule.of(load_config(RUN)).due(state["step"])
    same_number = len(totals) == len(returns)
    differ = next((i for i, pair in enumerate(zip(rows, wanted, strict=False)) if pair[0] != pair[1]), "the end")
    own_numbers = not exact and (t.inexact or fell_back(result))
    holds = {
        "an episode was lost or changed": now | before.episodes == now,
        "rows before the checkpoint were lost or changed": log_lines(t.logdir)[: len(before.lines)] == before.lines,
        f"not the undisturbed run, from row {differ}": own_numbers or rows == wanted,
        f"rows of episodes were lost or doubled: {episodes}": episodes == list(range(1, len(episodes) + 1)),
        f"{len(files)} episode files and {len(episodes)} rows of episodes": same_number,
        f"returns {totals}, logged as {returns}": not same_number or np.allclose(totals, returns, 1e-5, 0),
        f"rows of update_count were doubled or disordered: {updates}": updates == sorted(set(updates)),
        f"rows of eval_return were doubled or disordered: {evaluated}": evaluated == sorted(set(evaluated)),
        f"steps of the rows: {steps}": steps == sorted(steps) and steps[-1] >= STEPS,
        "no evaluation at the end": steps[-1:] == evaluated[-1:],
        f"{state['updates']} updates, {updates[-1:]} logged, {due} due": [state["updates"]] == [due] == updates[-1:],
        "a temporary file was left behind": not list(t.logdir.rglob("*.tmp")),
    }
    assert all(holds.values()), "; ".join(words for words, held in holds.items() if not held)
    return "survived"


# Attacks

Scenario = Callable[[Trial], str]  # returns 'survived' or 'refused', or raises


@contextlib.contextmanager
def disk(t: Trial, options: dict) -> Iterator[Callable]:
    """Makes the parent of the run's folder a tmpfs of its own; yields a function that changes its options."""
    t.logdir = t.folder / "disk" / "run"
    (place := t.logdir.parent).mkdir()

    def mount(*flags: str, **options) -> None:
        words = ",".join([*flags, *(f"{key}={value}" for key, value in options.items())])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            raise Untried(f"mounting a disk, which needs root, failed: {done.stderr.strip()}")

    mount(**options)
    try:
        yield functools.partial(mount, "remount")
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def attack(
    *plan: tuple[str, Sequence[int], float], rounds: tuple[int, int] = (1, 1), flags: Sequence[str] = (),
    start: Callable[..., Process] = train, rows: Sequence[int] | str = "any", seconds: float = 0.15,
    options: Callable[[Trial], dict] | None = None, during: Callable[[Trial], None] | None = None,
    remedy: Callable[[Trial, Callable], None] | None = None, ends: bool = True, resumes: bool = True, says: str = "",
) -> Scenario:  # fmt: skip
    """A run that gets signals, or loses its disk, at some moment, and is resumed after its end.

    Args:
        plan: to whom (see `Process.send`) one of which signals is sent, and the most seconds until the next.
        rounds: how often that happens, at least and at most.
        flags, start: of the run.
        rows: the moment: when the log has one of these numbers of rows; `any`; the start or the `next` row; those
            before an `evaluation`. Then, at most, so many `seconds`.
        options: of a disk of its own.
        during: what else happens at that moment.
        remedy: what happens when the run has ended; gets a function that changes the disk's options.
        ends: False for a run that must continue to its end; resumes: False for one that cannot be resumed.
        says: what the line has to say by which the run ends if it is not stopped.
    """

    def trial(t: Trial) -> str:
        with disk(t, options(t)) if options else contextlib.nullcontext() as change:
            for _ in range(t.rng.randint(*rounds)):
                known = snapshot(t.logdir).episodes
                process, moment, wait = start(t, *flags), rows, seconds
                if rows == "any":
                    moment = range(len(log_lines(reference())))
                elif rows == "evaluation":
                    moment = [i for i, row in enumerate(entries(reference())) if "eval_return" in row]
                elif rows == "next":
                    moment, wait = t.rng.choice((([0], 0.5), ([len(log_lines(t.logdir)) + 1], 0.1)))
                count = t.rng.choice(moment)
                while process.is_alive() and len(log_lines(t.logdir)) < count:
                    time.sleep(0.005)
                time.sleep(t.rng.random() * wait)
                for to, numbers, pause in plan:
                    process.send(t.rng.choice(numbers), to, t.rng)
                    time.sleep(pause if to == "all" else t.rng.random() * pause)
                if during:
                    during(t)
                before, result = snapshot(t.logdir), process.wait()
                now = snapshot(t.logdir).episodes
                assert not resumes or now | known == now, "an episode was lost or changed"
                t.inexact |= fell_back(result)
            if not ends:
                return check_run(t, before, result, exact=True)
            at_once = result.code == 130 or -result.code in (signal.SIGKILL, *STOPPING)
            at_once |= start is not train and "KeyboardInterrupt" in result.err  # while a new Python imports
            orderly = not at_once and (result.code == 0 or "saved a checkpoint" in result.out)
            if not at_once:
                assert options or result.code or not result.err, f"stopped with an error: {result}"
                stopped = "the same command resumes" in result.out
                ended(result, lambda: not resumes or stopped or trained_to(t.logdir, STEPS))
                assert not result.code or says in result.err, f"expected {says!r}: {result}"
            if remedy:
                remedy(t, change)
            if resumes:
                check_run(t, snapshot(t.logdir), train(t).wait(), exact=orderly and not (t.inexact or options))
            return "refused" if result.code in (1, 2) and not at_once else "survived"

    return trial


def damaged(hurt: Callable[[Trial], object], steps: int = STEPS, check: Callable | None = None) -> Scenario:
    """A run that has ended, gets hurt, and is resumed to `steps`; if it is not refused, check(t, before, result)."""

    def trial(t: Trial) -> str:
        t.copy_run()
        t.tried = hurt(t)
        before = snapshot(t.logdir)
        result = train(t, "--steps", steps).wait()
        return ended(result, lambda: check(t, before, result) if check else trained_to(t.logdir, steps), t.tried)

    return trial
