"""A campaign against a run: kills, signals, disks, damaged files, odd command lines, at random.

    python tests/campaign.py [--scale 1.0] [--seed 0] [--only kills disks damage.config_yaml damage.config_yaml:17]

Each trial is a real command on real files and ends in one of three ways. *survived*: the command did its work, and the
result was compared with that of a run that nobody disturbed, or with what has to hold of any run. *refused*: exit
status 1 or 2, exactly one line on stderr, no traceback. Everything else has failed, and is listed with the words for
--only that repeat it. Trials whose legal settings are too large for this machine are counted apart.

Commands run in processes forked from this one, which has imported what they need: they start in no time, but are
processes of their own with the script as `__main__`, so that signals, limits and exits are real. `startup_signal`
starts a new Python. Full disks are small tmpfs mounts, which need root. docs/robustness.md has the table of a campaign.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a thread pool does not survive a fork

import argparse
import contextlib
import functools
import io
import json
import math
import multiprocessing
import random
import re
import resource
import runpy
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
sys.path[:0] = [path for path in (str(ROOT), str(TESTS)) if path not in sys.path]

GROUPS = ("kills", "signals", "disks", "damage", "commands", "configs", "tools", "downloads")
PATIENCE = 1800  # seconds after which a command is taken to hang
LIMITS = {"memory": 12 << 30, "seconds": 60}  # address space and processor time of a trial of legal settings
STEPS = 240  # of a run
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # at which a run stops in order
EVALUATE = ("--eval_only", "--episodes", "1", "--parallel", "False", "--compile", "False", "--logdir")
WORKERS = ("--parallel", "True")
SCRATCH = Path()  # folder of the campaign
SCENARIOS: dict[str, tuple[Callable, int]] = {}  # "group.name": function of a trial, number of trials at scale 1

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


def scenario(group: str, trials: int) -> Callable:
    """Registers a function of a trial that returns 'survived' or 'refused', or raises."""

    def register(function: Callable[[Trial], str]) -> Callable:
        SCENARIOS[f"{group}.{function.__name__}"] = function, trials
        return function

    return register


# ----------------------------------------------------------------------------------------------------------- processes


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
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the child is ready for them
        self.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def run(self) -> None:
        os.setsid()
        for fd, path in enumerate((os.devnull, self.folder / "out", self.folder / "err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fd)
        for number in STOPPING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if self.limits:
            resource.setrlimit(resource.RLIMIT_AS, (self.limits["memory"],) * 2)
            seconds = self.limits.get("seconds", resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        try:
            sys.exit(self.call())
        except KeyboardInterrupt:
            sys.exit(130)

    def send(self, number: int, group: bool = False) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def send_worker(self, number: int, rng: random.Random) -> None:
        with contextlib.suppress(OSError, IndexError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            os.kill(int(rng.choice(children)), number)

    def wait(self, seconds: float = PATIENCE) -> Result:
        end = time.monotonic() + seconds
        while (hung := self.is_alive()) and time.monotonic() < end:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers of a killed process, which end by themselves, a moment later
        self.join(60)
        files = (self.folder / "out", self.folder / "err")
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in files]
        result = Result(self.exitcode, *texts)
        shutil.rmtree(self.folder)
        assert not hung, f"hung for {seconds:g} s: {result}"
        out_of_memory = re.search("MemoryError|(can't|not) allocate", result.err)
        if self.limits and (out_of_memory or self.exitcode == -signal.SIGXCPU):
            raise Untried("too large for this machine")
        return result


def as_main(script: str, words: list[str]) -> None:
    sys.argv = [str(ROOT / script), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def command(script: str, *words, **limits: int) -> Process:
    return Process(as_main, script, [str(word) for word in words], **limits)


def refused(result: Result, tried: object = "") -> str:
    """'refused', or Failed where that is not one line, apart from the warning of a small disk, and status 1 or 2."""
    lines = [line for line in result.err.strip().splitlines() if " grows by " not in line]
    one = result.code in (1, 2) and len(lines) == 1 and "Traceback" not in result.err
    assert one, f"{tried}: expected one line on stderr and status 1 or 2: {result}"
    return "refused"


def survived_or_refused(result: Result, tried: object = "") -> str:
    return "survived" if result.code == 0 else refused(result, tried)


# ---------------------------------------------------------------------------------------------------------------- runs


@functools.cache
def setup_runs() -> list[str]:
    """Imports what a run needs; the flags of a run of a tiny agent, 15 rows of the log and 6 episodes."""
    import torch.utils.tensorboard  # noqa: F401
    from test_failures import SHORT

    import dreamer  # noqa: F401
    import envs.dmc  # noqa: F401

    tiny = "--time_limit 40 --prefill 20 --train_ratio 4 --eval_every 80 --log_every 40 --checkpoint_every 60"
    return [*SHORT, *tiny.split(), "--steps", str(STEPS)]


def rows(logdir: Path) -> list[dict]:
    from test_dreamer import entries

    return entries(logdir)


def finite(row: dict) -> bool:
    return all(value is None or math.isfinite(value) for value in row.values())


@functools.cache
def reference(steps: int = STEPS) -> Path:
    """The folder of a run that nobody disturbs."""
    logdir = SCRATCH / f"reference{steps}"
    result = command("dreamer.py", *setup_runs(), "--steps", steps, "--logdir", logdir).wait()
    assert result.code == 0, f"the undisturbed run failed: {result}"
    return logdir


def train(t: Trial, *flags) -> Process:
    reference()  # not while this one runs
    return command("dreamer.py", *setup_runs(), "--logdir", t.logdir, *flags)


def wait_for_rows(process: Process, logdir: Path, count: int) -> Process:
    path = logdir / "metrics.jsonl"
    while process.is_alive() and (path.read_bytes().count(b"\n") if path.exists() else 0) < count:
        time.sleep(0.005)
    return process


def disturbed(t: Trial, *flags) -> Process:
    """A run at a random moment."""
    process = wait_for_rows(train(t, *flags), t.logdir, t.rng.randrange(len(rows(reference()))))
    time.sleep(t.rng.random() * 0.15)
    return process


class Snapshot(NamedTuple):
    episodes: dict[str, bytes]  # contents of the files
    lines: list[bytes]  # of the log, up to the newest checkpoint that is whole


def snapshot(logdir: Path) -> Snapshot:
    from run import checkpoint

    episodes = {path.name: path.read_bytes() for path in (logdir / "train_eps").glob("*.npz")}
    for name in ("latest.pt", "previous.pt"):
        with contextlib.suppress(OSError, ValueError):
            known = checkpoint.load_checkpoint(logdir / name)["lines"]
            return Snapshot(episodes, (logdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:known])
    return Snapshot(episodes, [])


def fell_back(result: Result) -> bool:
    """Whether a run resumed with episodes newer than its checkpoint: its numbers are its own from there on."""
    return bool(re.search("newer than the checkpoint|lost with the last checkpoint", result.out))


def check_run(t: Trial, before: Snapshot, result: Result, exact: bool = False) -> str:
    """That a run which was disturbed, with what it had then, and resumed to its end has lost and doubled nothing.

    One that resumed from its last state has to equal the reference to the bit; `exact`: it must have done so.
    """
    import numpy as np

    from run import checkpoint
    from run.config import load_config
    from run.episodes import read_episode
    from run.trainer import updates_due

    assert result.code == 0, f"the run did not resume: {result}"
    lines, logdir = rows(t.logdir), t.logdir
    for name, content in before.episodes.items():
        path = logdir / "train_eps" / name
        assert path.exists() and path.read_bytes() == content, f"episode {name} was lost or changed"
    kept = (logdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: len(before.lines)]
    assert kept == before.lines, "rows of the log before the checkpoint were lost or changed"
    if exact or not (t.inexact or fell_back(result)):
        theirs = rows(reference())
        differ = next((i for i, pair in enumerate(zip(lines, theirs, strict=False)) if pair[0] != pair[1]), None)
        counts = f"{len(lines)} of {len(theirs)} rows"
        assert lines == theirs, f"not the undisturbed run: {counts}, differs at row {differ}"
    episodes = [line for line in lines if "train_episodes" in line]
    numbers = [line["train_episodes"] for line in episodes]
    assert numbers == list(range(1, len(numbers) + 1)), f"rows of episodes were lost or doubled: {numbers}"
    files = sorted((logdir / "train_eps").glob("*.npz"))
    assert len(files) == len(numbers), f"{len(files)} episode files and {len(numbers)} rows of episodes"
    for path, line in zip(files, episodes, strict=True):
        total = float(read_episode(path)["reward"].sum(dtype=np.float64))
        assert math.isclose(total, line["train_return"], rel_tol=1e-5), f"{path.name}: {total}, logged as {line}"
    for key, where in (("update_count", "update_count"), ("eval_return", "step")):
        at = [line[where] for line in lines if key in line]
        assert at == sorted(set(at)), f"rows of {key} were doubled or disordered: {at}"
    order = [line["step"] for line in lines]
    assert order == sorted(order) and order[-1] >= STEPS, f"steps of the rows: {order}"
    evaluated = [line["step"] for line in lines if "eval_return" in line]
    assert lines[-1]["step"] == evaluated[-1], "no evaluation at the end"
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    due = updates_due(load_config(setup_runs()), state["step"])
    counted = [line["update_count"] for line in lines if "update_count" in line][-1]
    assert state["updates"] == due == counted, f"{state['updates']} updates, {counted} logged, {due} due"
    assert not list(logdir.rglob("*.tmp")), "a temporary file was left behind"
    return "survived"


def resume(t: Trial, exact: bool = False) -> str:
    return check_run(t, snapshot(t.logdir), train(t).wait(), exact)


# --------------------------------------------------------------------------------------------------------------- kills


@scenario("kills", 30)
def killed(t: Trial) -> str:
    """a run killed at a random moment, and resumed"""
    process = disturbed(t)
    process.send(signal.SIGKILL)
    process.wait()
    return resume(t)


@scenario("kills", 6)
def killed_again_and_again(t: Trial) -> str:
    """a run killed up to eight times, also while it resumes"""
    episodes: dict[str, bytes] = {}
    for _ in range(t.rng.randint(2, 8)):
        process = train(t)
        if t.rng.random() < 0.5:
            time.sleep(t.rng.random() * 0.5)
        else:
            log = t.logdir / "metrics.jsonl"
            wait_for_rows(process, t.logdir, 1 + (log.read_bytes().count(b"\n") if log.exists() else 0))
            time.sleep(t.rng.random() * 0.1)
        process.send(signal.SIGKILL)
        t.inexact |= fell_back(process.wait())
        now = snapshot(t.logdir).episodes
        assert now == now | episodes, "an episode was lost or changed"
        episodes = now
    return resume(t)


# ------------------------------------------------------------------------------------------------------------- signals


def stopped(t: Trial, process: Process, *numbers: int, group: bool = False) -> str:
    """Sends signals to a run and resumes it when it has ended: to the bit, if it was stopped in order."""
    for number in numbers or [t.rng.choice(STOPPING)]:
        process.send(number, group)
        time.sleep(t.rng.random() * 0.05 * (len(numbers) > 1))
    result = process.wait()
    orderly = "the same command resumes" in result.out
    before_the_loop = result.code == 130 or -result.code in STOPPING
    done = result.code == 0 and rows(t.logdir)[-1]["step"] >= STEPS
    assert orderly or before_the_loop or done, f"neither stopped nor done: {result}"
    assert before_the_loop or (result.code == 0 and not result.err), f"stopped with an error: {result}"
    return resume(t, exact=orderly)


@scenario("signals", 9)
def one_signal(t: Trial) -> str:
    """SIGINT, SIGTERM or SIGHUP at a random moment"""
    return stopped(t, disturbed(t))


@scenario("signals", 6)
def two_signals(t: Trial) -> str:
    """two of them, shortly after each other"""
    return stopped(t, disturbed(t), *t.rng.choices(STOPPING, k=2))


@scenario("signals", 6)
def in_an_evaluation(t: Trial) -> str:
    """a signal while an evaluation plays"""
    before = [i for i, row in enumerate(rows(reference())) if "eval_return" in row]
    return stopped(t, wait_for_rows(train(t), t.logdir, t.rng.choice(before)))


@scenario("signals", 3)
def startup_signal(t: Trial) -> str:
    """a signal while Python starts and imports"""
    words = [sys.executable, "-u", str(ROOT / "dreamer.py"), *setup_runs(), "--logdir", str(t.logdir)]
    process = Process(os.execv, sys.executable, words)
    time.sleep(t.rng.random() * 6)
    process.send(number := t.rng.choice(STOPPING))
    result = process.wait()
    ended = result.code in (130, -number) or "the same command resumes" in result.out
    ended |= result.code == 0 and rows(t.logdir)[-1]["step"] >= STEPS  # on a fast machine, before the signal
    assert ended or (number == signal.SIGINT and "KeyboardInterrupt" in result.err), f"{result}"
    return resume(t)


@scenario("signals", 6)
def terminal(t: Trial) -> str:
    """a signal to the run and all of its workers, as of a terminal"""
    return stopped(t, disturbed(t, *WORKERS), group=True)


@scenario("signals", 4)
def to_a_worker(t: Trial) -> str:
    """SIGINT, SIGTERM, SIGHUP to a worker alone, which ignores them"""
    process = wait_for_rows(train(t, *WORKERS), t.logdir, 2)
    for _ in range(5):
        process.send_worker(t.rng.choice(STOPPING), t.rng)
    return check_run(t, snapshot(t.logdir), process.wait(), exact=True)


@scenario("signals", 4)
def worker_killed(t: Trial) -> str:
    """a worker killed, in training or in an evaluation"""
    process = disturbed(t, *WORKERS)
    process.send_worker(signal.SIGKILL, t.rng)
    result = process.wait()
    if result.code:
        refused(result)
        assert "worker of env" in result.err, f"the line does not name the worker: {result}"
    return resume(t, exact="saved a checkpoint" in result.out)


@scenario("signals", 3)
def worker_hung(t: Trial) -> str:
    """a worker that hangs (SIGSTOP), and then a signal to the run"""
    process = wait_for_rows(train(t, *WORKERS), t.logdir, t.rng.randint(2, 8))
    process.send_worker(signal.SIGSTOP, t.rng)
    time.sleep(0.5)
    return stopped(t, process)


@scenario("signals", 3)
def suspended(t: Trial) -> str:
    """SIGSTOP and SIGCONT to all processes of a run"""
    process = disturbed(t, *WORKERS)
    for number in (signal.SIGSTOP, signal.SIGCONT) * 3:
        process.send(number, group=True)
        time.sleep(0.3 * (number == signal.SIGSTOP))
    return check_run(t, snapshot(t.logdir), process.wait(), exact=True)


@scenario("signals", 3)
def storm(t: Trial) -> str:
    """signals and kills at any moment, until the run is done"""
    others = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH)
    for _ in range(6):
        process = disturbed(t)
        for _ in range(t.rng.randint(1, 4)):
            process.send(t.rng.choice(STOPPING + others))
            time.sleep(t.rng.random() * 0.05)
        process.send(signal.SIGCONT)
        time.sleep(t.rng.random())
        process.send(signal.SIGKILL)
        t.inexact |= fell_back(process.wait())
    return resume(t)


# --------------------------------------------------------------------------------------------------------------- disks


@contextlib.contextmanager
def disk(t: Trial, **options) -> Iterator[Callable]:
    """Makes the parent of the run's folder a tmpfs of its own; yields a function that changes its options."""
    t.logdir = t.folder / "disk" / "run"
    place = t.logdir.parent
    place.mkdir()
    if os.geteuid():
        raise Untried("mounting a disk needs root")

    def mount(*flags: str, **options) -> None:
        words = ",".join([*flags, *(f"{key}={value}" for key, value in options.items())])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            raise Untried(f"mounting a disk failed: {done.stderr.strip()}")

    mount(**options)
    try:
        yield functools.partial(mount, "remount")
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def outgrow(t: Trial, larger: dict, **options) -> str:
    """A run on a disk that may be too small for it, and resumes on a larger one."""
    with disk(t, **options) as change:
        result = train(t).wait()
        if result.code == 0:
            return check_run(t, Snapshot({}, []), result, exact=True)
        refused(result)
        change(**larger)
        resume(t)
        return "refused"


@scenario("disks", 10)
def full_disk(t: Trial) -> str:
    """a disk that is full at a random moment, then larger"""
    sizes = [-(-path.stat().st_size // 4096) * 4096 for path in reference().rglob("*") if path.is_file()]
    most = sum(sizes) + 300_000  # a checkpoint is written beside the two that there are
    return outgrow(t, {"size": "1g"}, size=t.rng.randint(4096, most))


@scenario("disks", 6)
def no_inodes(t: Trial) -> str:
    """a disk whose inodes are used up, then more of them"""
    return outgrow(t, {"nr_inodes": 1000}, size="1g", nr_inodes=t.rng.randint(2, 18))


@scenario("disks", 4)
def filled_by_others(t: Trial) -> str:
    """another program fills the disk while the run trains, and leaves"""
    with disk(t, size="32m"):
        process, others = disturbed(t), t.logdir.parent / "others"
        with contextlib.suppress(OSError), open(others, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        result = process.wait()
        others.unlink()
        resume(t)
        return survived_or_refused(result)


@scenario("disks", 3)
def read_only(t: Trial) -> str:
    """a run on a read-only disk: resumed, evaluated; then writable again"""
    with disk(t, size="32m") as change:
        process = disturbed(t)
        process.send(signal.SIGTERM)
        process.wait()
        change("ro")
        refused(train(t).wait())
        if (t.logdir / "latest.pt").exists() and (t.logdir / "config.yaml").exists():
            refused(command("dreamer.py", *EVALUATE, t.logdir).wait())
        change("rw")
        resume(t)
        return "refused"


@scenario("disks", 3)
def disk_gone(t: Trial) -> str:
    """the disk is unmounted, or the folder deleted, while the run trains"""
    with disk(t, size="32m"):
        process = wait_for_rows(train(t), t.logdir, t.rng.randint(1, 12))
        if t.rng.random() < 0.5:
            subprocess.run(["umount", "-l", t.logdir.parent], check=True)
        else:
            shutil.rmtree(t.logdir, ignore_errors=True)
        return survived_or_refused(process.wait())


@scenario("disks", 12)
def impossible_folder(t: Trial) -> str:
    """a --logdir, or a file in it, that is a file, a folder, a dangling link, too long or in /proc"""
    name = t.rng.choice(("", "train_eps", "metrics.jsonl", "config.yaml", "latest.pt", "previous.pt", ".pid"))
    if name:
        t.logdir.mkdir()
    path = t.logdir / name
    match t.rng.choice(("file", "folder", "link", "loop", "long", "proc")):
        case "file":
            path.touch()
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(t.folder / "nowhere" / "deeper")
        case "loop":
            path.symlink_to(path)
        case kind:
            t.logdir = t.folder / ("x" * 256) if kind == "long" else Path("/proc/run")
    return survived_or_refused(train(t, "--steps", "60").wait())


# -------------------------------------------------------------------------------------------------------------- damage


def mutate(data: bytes, rng: random.Random, most: int = 5) -> bytes:
    """Flips bits; loses, repeats, inserts or zeros bytes; cuts the end."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, count = rng.randrange(len(data) + 1), rng.choice((1, 4, 100, 4096))
        part = data[at : at + count]
        match rng.randrange(7):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + count]
            case 2:
                data[at:at] = rng.randbytes(count)
            case 3:
                data[at : at + count] = bytes(len(part))
            case 4:
                data[at:at] = part
            case _ if part:
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def damage(path: Path, rng: random.Random, most: int = 5) -> None:
    path.write_bytes(mutate(path.read_bytes(), rng, most))


def damage_file(path: Path, rng: random.Random, foreign: Path) -> None:
    """As `mutate`; or the file is gone, empty, another one, a pipe, a device or a dangling link."""
    kind = rng.randrange(8)
    if kind < 3:
        return damage(path, rng)
    path.unlink()
    if kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "nowhere", "/proc/self/mem")))
    elif kind == 5:
        path.touch()
    elif kind == 6:
        shutil.copy(foreign, path)


def copy_run(t: Trial) -> Path:
    shutil.copytree(reference(), t.logdir)
    return t.logdir


@scenario("damage", 400)
def episode_bytes(t: Trial) -> str:
    """the bytes of an episode file, read alone"""
    import numpy as np

    from run.episodes import episode_key, read_episode, spec_of_episode
    from run.replay import Replay

    path = t.rng.choice(sorted((reference() / "train_eps").glob("*.npz")))
    arrays = read_episode(path)
    (t.folder / path.name).write_bytes(mutate(path.read_bytes(), t.rng))
    with contextlib.redirect_stderr(err := io.StringIO()):
        replay = Replay(t.folder, 1000, spec=spec_of_episode(arrays))
        steps = replay.load()
    assert err.getvalue().count("\n") == (not steps), f"{steps} steps read: {err.getvalue()!r}"
    if not steps:
        return "refused"
    _, env, index, rows = path.stem.split("-")
    found = replay.gather([[(episode_key(int(env[3:]), int(index)), 0, int(rows))]])
    assert all(np.array_equal(found[key][0], array) for key, array in arrays.items()), "damage was read as it is"
    return "survived"


@scenario("damage", 12)
def episodes_of_a_run(t: Trial) -> str:
    """damaged episodes, pipes, devices and huge claimed sizes in a run that trains on"""
    import numpy as np

    from run.episodes import read_episode

    files = sorted((copy_run(t) / "train_eps").glob("*.npz"))
    chosen = t.rng.sample(files, t.rng.randint(1, 3))
    for path in chosen:
        if t.rng.random() < 0.2:
            path.rename(path.with_name(path.name.replace("-21.", "-9999999999999.")))
        else:
            damage_file(path, t.rng, foreign=t.logdir / "latest.pt")
    claims = list(t.logdir.rglob("*-9999999999999.npz"))
    result = train(t, "--steps", STEPS + 80).wait()
    if result.code:
        return refused(result)
    reported = result.err.strip().splitlines()
    assert all(line.startswith("replay: ") for line in reported), f"not lines about episodes: {result}"
    assert not claims or "9999999999999" in result.err, f"a wrong length was not reported: {result}"
    for path in files:
        meant = reference() / "train_eps" / path.name
        if path not in chosen:
            assert path.read_bytes() == meant.read_bytes(), f"episode {path.name} was lost or changed"
        elif path.name not in result.err and path.exists():
            pairs = zip(*(sorted(read_episode(p).items()) for p in (path, meant)), strict=True)
            same = all(a == b and np.array_equal(found, array) for (a, found), (b, array) in pairs)
            assert same, f"damage in {path.name} was not reported: {result}"
    last = rows(t.logdir)[-1]
    assert last["step"] >= STEPS + 80 and finite(last), f"the last row: {last}"
    return "survived"


def equal(a, b) -> bool:
    import torch

    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def read_damaged(path: Path) -> str | None:
    """None for what the reference's checkpoint holds; exits with a line otherwise."""
    from run import checkpoint

    try:
        found = checkpoint.load_checkpoint(path)
    except ValueError as error:
        return str(error)
    return None if equal(found, checkpoint.load_checkpoint(reference() / "latest.pt")) else "read\nas it is"


@scenario("damage", 300)
def checkpoint_bytes(t: Trial) -> str:
    """the bytes of a checkpoint, read alone"""
    shutil.copy(reference() / "latest.pt", t.folder)
    damage(t.folder / "latest.pt", t.rng)
    return survived_or_refused(Process(read_damaged, t.folder / "latest.pt", memory=LIMITS["memory"]).wait(300))


@scenario("damage", 10)
def checkpoints_of_a_run(t: Trial) -> str:
    """a damaged, missing or foreign latest.pt, sometimes previous.pt too, in a run that resumes"""
    foreign = t.rng.choice(sorted((copy_run(t) / "train_eps").glob("*.npz")))
    for name in ["latest.pt", "previous.pt"][: 1 + (t.rng.random() < 0.3)]:
        damage_file(t.logdir / name, t.rng, foreign)
    before = snapshot(t.logdir)
    result = train(t).wait()
    return check_run(t, before, result) if result.code == 0 else refused(result)


def change_layout(path: Path, rng: random.Random) -> str:
    """Takes a named part of a checkpoint away, or puts something else in its place; says what it did."""
    from run import checkpoint

    place = state = checkpoint.load_checkpoint(path)
    where = ""
    while True:
        key = rng.choice([key for key in place if isinstance(key, str)])
        where += f".{key}"
        inner = place[key][0] if isinstance(place[key], list) and place[key] else place[key]
        if not (isinstance(inner, dict) and any(isinstance(k, str) for k in inner) and rng.random() < 0.7):
            break
        place = inner
    if rng.random() < 0.7:
        del place[key]
    else:
        place[key] = rng.choice((None, {}, [], "text", {"a": 1}))
    checkpoint.save_checkpoint(path, state)
    return f"{where} now {place.get(key, 'missing')!r}"


@scenario("damage", 30)
def checkpoint_layout(t: Trial) -> str:
    """a whole checkpoint of another layout: parts missing, or something else in their place"""
    (copy_run(t) / "previous.pt").unlink()
    change = change_layout(t.logdir / "latest.pt", t.rng)
    end = survived_or_refused(train(t, "--steps", STEPS + 20).wait(), change)
    last = rows(t.logdir)[-1]
    assert end == "refused" or (last["step"] >= STEPS + 20 and finite(last)), f"{change}: {last}"
    return end


LINES = (
    "[" * 50_000, "{}", "null", '{"step": null}', '{"step": "60"}', '{"step": [1]}', '{"step": NaN}', '{"step": -1}',
    '{"step": 300, "train_episodes": [1], "train_return": "x"}', '{"step": 1e999, "train_episodes": 3}', "",
    '{"step": 360, "train_episodes": 5, "train_return": {}}', '{"step": true, "train_episodes": null}', '{"step": 99',
    "\x00" * 100, " ",
)  # fmt: skip


@scenario("damage", 16)
def metrics_lines(t: Trial) -> str:
    """damaged, foreign and lost lines in metrics.jsonl"""
    path = copy_run(t) / "metrics.jsonl"
    if t.rng.random() < 0.5:  # as after a kill: episodes are newer than the checkpoint
        shutil.copy(t.logdir / "previous.pt", t.logdir / "latest.pt")
    known = set(snapshot(t.logdir).lines)
    data = path.read_bytes().splitlines(keepends=True)
    for _ in range(t.rng.randint(0, 4)):
        data.insert(t.rng.randint(0, len(data)), t.rng.choice(LINES).encode() + b"\n")
    path.write_bytes(mutate(b"".join(data), t.rng) if t.rng.random() < 0.7 else b"".join(data))
    result = train(t).wait()
    if result.code:
        return refused(result)
    after = path.read_bytes().splitlines(keepends=True)
    assert all(type(json.loads(line)["step"]) is int for line in after), "damage was kept"
    lost = known - set(after)
    told = "lines: the others are lost" in result.out + result.err or len(after) >= len(known)
    assert not lost or told, f"rows lost unsaid: {lost}"
    return "survived"


@scenario("damage", 16)
def config_yaml(t: Trial) -> str:
    """damage in config.yaml of a run that resumes"""
    from run.config import read_config

    damage(copy_run(t) / "config.yaml", t.rng, 2)
    result = train(t).wait()
    if result.code:
        return refused(result)
    found, meant = ({**read_config(p / "config.yaml").flat(), "logdir": ""} for p in (t.logdir, reference()))
    assert found == meant, "the settings of the run are not those of its command line"
    return "survived"


@scenario("damage", 12)
def files_missing(t: Trial) -> str:
    """some files of a run missing"""
    files = sorted(path for path in copy_run(t).rglob("*") if path.is_file())
    for path in t.rng.sample(files, t.rng.randint(1, len(files))):
        path.unlink()
    result = train(t).wait()
    done = result.code == 0 and ("nothing left to train" in result.out or rows(t.logdir)[-1]["step"] >= STEPS)
    assert result.code or done, f"not trained to the end: {result}"
    return survived_or_refused(result)


@scenario("damage", 20)
def evaluated(t: Trial) -> str:
    """--eval_only on a run with one damaged file"""
    damage(copy_run(t) / t.rng.choice(("latest.pt", "config.yaml", "metrics.jsonl")), t.rng, 2)
    before = {path: path.read_bytes() for path in t.logdir.rglob("*") if path.is_file()}
    result = command("dreamer.py", *EVALUATE, t.logdir, **LIMITS).wait()
    assert all(path.read_bytes() == content for path, content in before.items()), "an evaluation changed the run"
    if result.code:
        return refused(result)
    (line,) = (t.logdir / "eval.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(line)["return"]), f"result: {line}"
    return "survived"


# ------------------------------------------------------------------------------------------------------------ commands

JUNK = (
    "", " ", "nan", "-inf", "1e999", "True", "none", "0x10", "1_000", "1,5", "٣", "--", "-", "é" * 300, "\n", "\x01",
    "'", "1 2", "1e-400", "9" * 400, "[1]", "{}", "1e", "+5", "../..", "%s", "$(reboot)",
)  # fmt: skip


@functools.cache
def settings() -> dict:
    """All settings and flags with their defaults; makes run/config.py read configs.yaml once for all trials."""
    from run import config

    config.ConfigFile = functools.cache(config.ConfigFile)
    defaults = config.ConfigFile(config.CONFIGS).defaults
    return {**defaults, **{name: value for name, (value, _) in config.ACTIONS.items()}}


def bounds(name: str) -> tuple[float, float] | None:
    """Those that --help shows."""
    from run import config

    match = re.fullmatch(r" from (\S+) to (\S+)", config.LEGAL[name].text) if name in config.LEGAL else None
    return (float(match[1]), float(match[2])) if match else None


def legal_value(name: str, default: object, rng: random.Random) -> str:
    """A legal value, often at a bound; numbers close to the default as often as far from it."""
    from run import config

    if isinstance(default, list):
        count = 2 if name == "size" else rng.randint(0, 2)
        values = [legal_value(name, (default or [""])[0], rng) for _ in range(count)]
        return " ".join([values[0]] * 2 if name == "size" and rng.random() < 0.8 else values)
    if isinstance(default, bool):
        return rng.choice(("True", "False"))
    if name in config.LEGAL and config.LEGAL[name].choices:
        return str(rng.choice(config.LEGAL[name].choices))
    if bounds(name) is None:
        return str(default)
    low, high = bounds(name)
    near = min(high, max(low, (default or 1) * rng.choice((0.25, 0.5, 2, 3, 4))))
    value = rng.choice((low, high, near, low + (high - low) * rng.random() ** 6))
    return str(int(value) if isinstance(default, int) else value)


def load(words: list[str], check: bool = True, **options) -> tuple[dict | None, str]:
    """Settings and flags of a command line, or None and the line by which it is refused; Failed if not in one line."""
    from run import config

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found, actions = config.load_config(words, extra=config.ACTIONS, **options)
            if check:
                config.check_config(found)
        return {**found.flat(), **actions}, ""
    except config.ConfigError as error:  # printed by dreamer.py
        assert str(error) and "\n" not in str(error), f"{words}: not one line: {error}"
        return None, str(error)
    except SystemExit as stop:
        shown = any(word in ("-h", "--help") for word in words) and stop.code == 0 and not err.getvalue()
        one = stop.code == 2 and not out.getvalue() and err.getvalue().count("\n") == 1
        assert shown or one, f"{words}: status {stop.code}, stderr {err.getvalue()!r}"
        return None, err.getvalue()


def check_values(found: dict, names: list[str]) -> None:
    """That settings have legal values of their default's type."""
    from run import config

    for name in names:
        default = settings()[name]
        values = found[name] if isinstance(default, list) else [found[name]]
        item = (default or [""])[0] if isinstance(default, list) else default
        for value in values:
            legal = name not in config.LEGAL or config.LEGAL[name].allows(value)
            assert type(value) is type(item) and legal, f"{name} became {value!r}"


@scenario("commands", 1500)
def one_setting(t: Trial) -> str:
    """every setting at, inside and outside of its bounds, and with junk"""
    name = t.rng.choice(sorted(settings()))
    default, limits = settings()[name], bounds(name)
    if t.rng.random() < 0.2 or not limits:
        word = t.rng.choice((t.rng.choice(JUNK), legal_value(name, default, t.rng)))
        found, _ = load([f"--{name}", *(word.split(" ") if isinstance(default, list) else [word])])
        if found is None:
            return "refused"
        check_values(found, [name])
        return "survived"
    low, high = limits
    item = default[0] if isinstance(default, list) else default
    whole, inside = isinstance(item, int), t.rng.random() < 0.6
    gap = 1 if whole else max(abs(low), abs(high)) * 1e-6
    good = [low, high, low + (high - low) * t.rng.random()]
    value = t.rng.choice(good if inside else [low - gap, high + max(gap, high * 1e-6), -1e300, 1e300])
    text = str(int(value)) if whole and abs(value) < 1e20 else repr(value)
    words = [f"--{name}", *[text] * (2 if name == "size" else 1)]
    found, line = load(words, check=False)
    assert (found is not None) == inside, f"{words} is {'refused' if inside else 'accepted'}: {line}"
    if not inside:
        assert f"--{name} is" in line, f"{words}: {line}"
        return "refused"
    held = found[name][0] if isinstance(default, list) else found[name]
    assert held == (int(text) if whole else float(text)), f"{words} became {held}"
    return "survived"


@scenario("commands", 1000)
def many_words(t: Trial) -> str:
    """random words: flags, values, groups, junk"""
    from run import config

    groups, words = list(config.ConfigFile(config.CONFIGS).groups), []
    for _ in range(t.rng.randint(1, 8)):
        name = t.rng.choice(list(settings()))
        text = "".join(t.rng.choice(string.printable) for _ in range(t.rng.randint(1, 8)))
        flag = t.rng.choice((f"--{name}", f"--{name}", f"--{name[:-1]}", f"--{name}={text}", "--configs", text))
        legal = legal_value(name, settings()[name], t.rng)
        value = t.rng.choice((legal, t.rng.choice(groups), t.rng.choice(JUNK), text))
        words += [flag, value] if t.rng.random() < 0.9 else [flag]
    return "refused" if load(words)[0] is None else "survived"


@scenario("commands", 20)
def refused_command(t: Trial) -> str:
    """command lines that are refused: by the command, with status 2 and without a folder"""
    setup_runs()
    names = sorted(settings().keys() - {"logdir", "configs", "eval_only"})
    while load(words := [f"--{t.rng.choice(names)}", t.rng.choice(JUNK)])[0] is not None:
        pass
    result = command("dreamer.py", *words, "--logdir", t.logdir).wait()
    assert not t.logdir.exists(), f"{words} made a folder"
    return refused(result)


FAMILIES = (
    "dmc_vision", "dmc_vision no_mask", "dmc_vision no_mbr", "dmc_vision no_simsr", "dmc_vision no_hybrid",
    "dmc_vision dreamerv3", "dmc_vision repo", "dmc_vision r2dreamer", "dmc_vision infonce", "dmc_vision dreamerpro",
    "dmc_vision continuous", "dmc_proprio", "dmc_proprio continuous", "dmc_vision dreamerv3 continuous",
)  # fmt: skip
OF_A_RUN = set(
    "logdir seed steps parallel eval_every eval_episode_num eval_envs eval_tasks log_every checkpoint_every device "
    "compile from_checkpoint replay_dir_limit allow_config_change task envs action_repeat time_limit shadow_size "
    "prefill img_source resource_files eval_resource_files total_frames distracting_cs_intensity ds_resource_path "
    "scan_path assets dataset_size pretrain eval_noise eval_state_mean expl_until video_pred_log".split()
)


def legal_words(t: Trial, names: set[str]) -> list[str]:
    """One to four of these settings with legal values."""
    chosen = t.rng.sample(sorted(names), t.rng.randint(1, 4))
    return [word for n in chosen for word in (f"--{n}", *legal_value(n, settings()[n], t.rng).split())]


def update_once(words: list[str]) -> str | None:
    """One update of an agent with these settings; the loop's line if it diverges."""
    import agents
    import torch

    import dreamer
    from run.config import check_config, load_config, sees_images

    config = load_config(words)
    check_config(config)
    shapes = {"image": (*config.size, 3)} if sees_images(config) else agents.VECTORS
    torch.manual_seed(0)
    agent = dreamer.Dreamer(config, shapes=shapes, actions=3)
    size, length, discrete = config.batch_size, config.batch_length, config.actor_dist == "onehot"
    batch = agents.batch(shapes, 3, max(size, 2), max(length, 4), discrete=discrete)
    metrics = agent.update({key: value[:size, :length] for key, value in batch.items()})
    values = {key: float(value) for key, value in metrics.items()}
    broken = sorted(key for key, value in values.items() if not math.isfinite(value))
    if any(key.endswith(("_loss", "_grad_norm")) for key in broken):  # as the loop does
        return f"training has diverged: {broken[0]} is {values[broken[0]]}"
    assert not broken, f"not finite: {broken}"
    return None


@scenario("commands", 60)
def legal_update(t: Trial) -> str:
    """legal settings of agent and training at random: an update of that agent with finite numbers"""
    setup_runs()
    import agents

    from run import config

    names = settings().keys() - OF_A_RUN - config.ACTIONS.keys()
    words = ["--configs", *t.rng.choice(FAMILIES).split(), *agents.SMALL, *legal_words(t, names)]
    if load(words)[0] is None:
        return "refused"
    return survived_or_refused(Process(update_once, words, **LIMITS).wait(), words)


@scenario("commands", 12)
def legal_run(t: Trial) -> str:
    """legal settings of the run at random: a short run, to its end"""
    fixed = {"logdir", "task", "device", "steps", "from_checkpoint", "eval_tasks", "compile", "img_source"}
    words = [*setup_runs(), "--steps", "100", *legal_words(t, (OF_A_RUN - fixed) & settings().keys())]
    if load(words)[0] is None:
        return "refused"
    end = survived_or_refused(command("dreamer.py", *words, "--logdir", t.logdir, **LIMITS).wait(), words)
    assert end == "refused" or finite(rows(t.logdir)[-1]), f"{words}: {rows(t.logdir)[-1]}"
    return end


# ------------------------------------------------------------------------------------------------------------- configs


def edit(data: bytes, rng: random.Random) -> bytes:
    """As `mutate`, and as an editor would: lines moved, doubled, indented, characters of YAML inserted."""
    if rng.random() < 0.3:
        return mutate(data, rng, 2)
    lines = data.decode().splitlines(keepends=True)
    for _ in range(rng.randint(1, 3)):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        at = rng.randrange(len(lines[i]))
        match rng.randrange(6):
            case 0:
                lines[i], lines[j] = lines[j], lines[i]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i] = rng.choice(("  ", "\t", " ", "- ", "&a ", "*a ", "? ", "! ", "%")) + lines[i]
            case 3:
                value = rng.choice((*JUNK, "[1, [2]]", "{a: {b: 1}}", "|", ">", "~"))
                lines[i] = f"{lines[i].split(':')[0]}: {value}\n"
            case _:
                character = rng.choice("{}[]&*!|>'\"%@`,:#-?\\\t\0\x07\ufeff\u2028é")
                lines[i] = lines[i][:at] + character + lines[i][at:]
    return "".join(lines).encode()


@scenario("configs", 120)
def configs_file(t: Trial) -> str:
    """configs.yaml, mutated"""
    path = t.folder / "configs.yaml"
    path.write_bytes(edit((ROOT / "configs.yaml").read_bytes(), t.rng))
    found, line = load([], check=False, path=path)
    if found is None:
        assert str(path) in line, f"the line does not name the file: {line}"
        return "refused"
    check_values(found, [name for name in found if name in settings()])
    return "survived"


@scenario("configs", 200)
def saved_config(t: Trial) -> str:
    """config.yaml of a run, mutated, read by the code of --eval_only and of a resumed run"""
    from run import config

    path = t.folder / "config.yaml"
    config.save_config(config.load_config(["--configs", "dmc_vision"]), path)
    path.write_bytes(edit(path.read_bytes(), t.rng))
    try:
        found = config.read_config(path)
    except config.ConfigError as error:
        assert "\n" not in str(error) and str(path) in str(error), f"not one line that names the file: {error}"
        return "refused"
    return "refused" if load([], check=False, base=found)[0] is None else "survived"


# --------------------------------------------------------------------------------------------------------------- tools


def small_runs(t: Trial) -> Path:
    """Three runs of a sweep with a few rows each."""
    from run import config

    for seed in range(3):
        folder = t.folder / "log" / "dmc_walker_walk" / "hrssm" / f"seed{seed}"
        flags = ["--configs", "dmc_vision", "--task", "dmc_walker_walk", "--seed", str(seed), "--steps", "400"]
        config.save_config(config.load_config(flags), folder / "config.yaml")
        lines = [{"step": step, "eval_return": step / 10 + seed, "update_count": step} for step in range(100, 500, 100)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "latest.pt").touch()
        (folder / ".sweep.json").write_text('{"gpu": null, "exit": 0}')
        (folder / "eval.jsonl").write_text('{"step": 400, "task": "dmc_walker_walk", "return": 40.0}\n')
    return t.folder / "log"


def damage_small_runs(t: Trial) -> Path:
    log = small_runs(t)
    files = sorted(path for path in log.rglob("*") if path.is_file() and path.stat().st_size)
    for path in t.rng.sample(files, t.rng.randint(1, 3)):
        match t.rng.randrange(5):
            case 0:
                path.unlink()
            case 1:
                path.write_text("\n".join(t.rng.sample(LINES, 5)) + "\n")
            case _:
                damage(path, t.rng)
    return log


@scenario("tools", 16)
def plot_arguments(t: Trial) -> str:
    """figures/plot.py with odd arguments"""
    from figures import plot  # noqa: F401

    log, rng, folder = small_runs(t), t.rng, t.folder
    junk = functools.partial(rng.choice, JUNK)
    runs = rng.choice(([log], [f"a={log}"], [f"={log}"], [f"$x${junk()}={log}"], [log, log], [folder], [junk()]))
    out = rng.choice((folder / "a.png", folder / "a.svg", folder / "a.gif", folder, "/nowhere/a.png", junk()))
    metric = rng.choice(("update_count", "nothing", "step", junk()))
    pool = ([], ["--at", "200"], ["--at", junk()], ["--at", "1e99", "-1"], ["--window", junk()], ["--metric", metric])
    more = ([], ["--label", junk()], ["--published"], ["--suite"], ["--suite", "--others"], ["--unknown"])
    result = command("figures/plot.py", *runs, "--out", out, *rng.choice(pool), *rng.choice(more)).wait()
    assert result.code or Path(out).stat().st_size > 0, f"no figure: {result}"
    return survived_or_refused(result)


@scenario("tools", 16)
def plot_damaged(t: Trial) -> str:
    """figures/plot.py on damaged runs"""
    from figures import plot  # noqa: F401

    words = [*t.rng.choice(([], ["--suite"])), damage_small_runs(t), "--out", t.folder / "a.png"]
    return survived_or_refused(command("figures/plot.py", *words).wait())


@scenario("tools", 30)
def sweep_arguments(t: Trial) -> str:
    """setup/sweep.py --status, --export and --dry_run with odd arguments"""
    import envs  # noqa: F401

    log, rng = small_runs(t), t.rng
    junk = functools.partial(rng.choice, JUNK)
    action = rng.choice((["--status"], ["--export", t.folder / "out"], ["--export", log / "file" / "x"], ["--dry_run"]))
    pool = [
        ["--tasks", "dmc_walker_walk", "--dry_run"], ["--tasks", junk(), "--dry_run"], ["--methods", junk()],
        ["--methods", "hrssm", "M+small"], ["--seeds", "0-2"], ["--seeds", "3-1"], ["--seeds", junk()],
        ["--max_parallel", junk()], ["--executor", junk()], ["--slurm", junk()], ["--configs", junk()], ["--unknown"],
    ]  # fmt: skip
    flags = [*action, *(word for words in rng.sample(pool, rng.randint(0, 3)) for word in words)]
    run = log / "dmc_walker_walk" / "hrssm" / "seed0"
    folder = rng.choice((log, log, log, t.folder / "nowhere", run / "config.yaml"))
    tail = rng.choice(([], [], ["--", "--steps", "400"], ["--", "--seed", "3"], ["--", "--batch_size", junk()]))
    return survived_or_refused(command("setup/sweep.py", "--logdir", folder, *flags, *tail).wait())


@scenario("tools", 30)
def sweep_damaged(t: Trial) -> str:
    """setup/sweep.py --status and --export on damaged runs"""
    flags = t.rng.choice((["--status"], ["--export", t.folder / "out"]))
    result = command("setup/sweep.py", "--logdir", damage_small_runs(t), *flags).wait()
    whole = result.code or flags != ["--status"] or result.out.count("\ndmc_walker_walk") == 3
    assert whole, f"not a row for each run: {result}"
    return survived_or_refused(result)


@scenario("tools", 12)
def export_agent(t: Trial) -> str:
    """setup/export_agent.py on damaged and foreign runs; what it exports can be evaluated"""
    path = copy_run(t) / "latest.pt"
    match t.rng.randrange(4):
        case 0:
            damage(path, t.rng)
        case 1:
            change_layout(path, t.rng)
        case 2:
            (t.logdir / t.rng.choice(("config.yaml", "latest.pt"))).unlink()
    result = command("setup/export_agent.py", t.logdir, t.folder / "agent").wait()
    if result.code == 0:
        result = command("dreamer.py", *EVALUATE, t.folder / "agent").wait()
    return survived_or_refused(result)


# ----------------------------------------------------------------------------------------------------------- downloads


@contextlib.contextmanager
def server(t: Trial) -> Iterator:
    from test_download_assets import Dmcgb, Server

    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Dmcgb(t.folder, serving)
        finally:
            serving.shutdown()
            thread.join()


def fetch_all(dmcgb) -> None:
    dmcgb.server.faults = {}
    code, said = dmcgb.run()
    assert code == 0 and dmcgb.on_disk() == dmcgb.files, f"not whole after a retry: {said}"


FAULTS = (
    "short", "whole", "whole, short", "503", "500", "429", "page", "changed", "other range", "no length", "length many",
    "length -5", "odd range", "redirect http://[", "slow", "",
)  # fmt: skip


@scenario("downloads", 16)
def bad_answers(t: Trial) -> str:
    """a server that breaks, shortens and falsifies its answers, then does not"""
    with server(t) as dmcgb:
        dmcgb.server.faults = {name: t.rng.choices(FAULTS, k=t.rng.randint(1, 6)) for name in dmcgb.files}
        code, said = dmcgb.run()
        finals = {name: content for name, content in dmcgb.on_disk().items() if not name.endswith(".part")}
        assert all(dmcgb.files[name] == content for name, content in finals.items()), "a wrong file has a final name"
        last = said.strip().splitlines()[-1]
        assert not code or (code == 1 and last.startswith("download_assets.py: ")), f"status {code}: {last}"
        fetch_all(dmcgb)
        return "refused" if code else "survived"


@scenario("downloads", 6)
def killed_download(t: Trial) -> str:
    """a download killed at random moments, a file damaged between them"""
    with server(t) as dmcgb:
        root = dmcgb.assets / "dmcgb"
        for _ in range(3):
            dmcgb.server.faults = {name: ["slow"] * 9 for name in dmcgb.files}
            process, moment = dmcgb.start(), dmcgb.server.sent + t.rng.randint(1, 400_000)
            while process.poll() is None and dmcgb.server.sent < moment:
                time.sleep(0.002)
            process.kill()
            process.communicate()
            files = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
            for path in files:
                whole = path.suffix == ".part" or path.read_bytes() == dmcgb.files[str(path.relative_to(root))]
                assert whole, f"{path.name} is not whole"
            if files and t.rng.random() < 0.5:
                damage(t.rng.choice(files), t.rng)
        fetch_all(dmcgb)
        return "survived"


# ------------------------------------------------------------------------------------------------------------ campaign

ENDS = ("survived", "refused", "untried", "failed")


def run_scenario(name: str, numbers: list[int], seed: int) -> tuple[Counter, list[tuple[str, str]], set[str]]:
    """How often the trials of a scenario ended in each way; failures, each with its words for --only; notes."""
    ends, failures, notes, begin = Counter(), [], set(), time.monotonic()
    for number in numbers:
        t = Trial(name.split(".")[1], seed, number)
        try:
            end = SCENARIOS[name][0](t)
        except Untried as reason:
            end = "untried"
            notes.add(str(reason))
        except Exception as error:
            end = "failed"
            reason = str(error) if isinstance(error, Failed) else traceback.format_exc()
            failures.append((f"{name}:{number}", reason))
            print(f"{name}:{number}: {reason}", file=sys.stderr, flush=True)
        ends[end] += 1
        shutil.rmtree(t.folder, ignore_errors=True)
    said = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{name}: {said} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    return ends, failures, notes


def choose(words: list[str], scale: float) -> dict[str, list[int]]:
    """Trials of the scenarios that `--only` names: group, group.scenario or group.scenario:trial."""
    chosen = {}
    for name, (_, trials) in SCENARIOS.items():
        if not words or name in words or name.split(".")[0] in words:
            chosen[name] = list(range(max(1, round(trials * scale))))
        elif only := [int(word.split(":")[1]) for word in words if word.startswith(f"{name}:")]:
            chosen[name] = only
    return chosen


def table(counts: dict[str, Counter]) -> str:
    """Markdown: a bold row for each group, then its scenarios."""

    def numbers(ends: Counter) -> list[int]:
        return [ends.total(), *(ends[end] for end in ENDS)]

    lines = ["| scenario | trials | survived | refused in one line | not tried | failed |", "|---" + "|---:" * 5 + "|"]
    for group in GROUPS:
        members = {name: ends for name, ends in counts.items() if name.startswith(f"{group}.")}
        if members:
            total = sum(members.values(), Counter())
            lines.append(f"| **{group}** | {' | '.join(f'**{n}**' for n in numbers(total))} |")
        for name, ends in members.items():
            title = f"{SCENARIOS[name][0].__doc__} (`{name.split('.')[1]}`)"
            lines.append(f"| {title} | {' | '.join(map(str, numbers(ends)))} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    global SCRATCH
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of trials (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=f"{', '.join(GROUPS)}; see above")
    args = parser.parse_args(argv)
    chosen = choose(args.only, args.scale)
    if not chosen:
        parser.error(f"--only {' '.join(args.only)}: no such scenario")
    counts, failures, notes = {}, [], set()
    stop = contextlib.suppress(KeyboardInterrupt)  # Ctrl-C: the table of what was tried so far
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in a shell's background ignores it
    with stop, tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as folder:
        SCRATCH = Path(folder)
        for name, numbers in chosen.items():
            counts[name], failed, noted = run_scenario(name, numbers, args.seed)
            failures += failed
            notes |= noted
    print(table(counts))
    for note in sorted(notes):
        print(f"\nNot tried: {note}.")
    for name, reason in failures:
        print(f"\nFAILED: {reason}\n    python tests/campaign.py --seed {args.seed} --only {name}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
