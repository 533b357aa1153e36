"""A campaign against a run: kills, signals, disks, damaged files, odd command lines, at random.

    python tests/campaign.py [--scale 1.0] [--seed 0] [--only kills disks damage.config_yaml damage.config_yaml:17]

Each trial is a real command on real files and ends in one of three ways. *survived*: the command did its work, and the
result was compared with that of a run that nobody disturbed, or with what has to hold of any run. *refused*: exit
status 1 or 2, exactly one line on stderr, no traceback. Everything else has failed, and is listed with the words for
--only that repeat it. Trials whose legal settings are too large for this machine are counted apart.

Commands run in processes forked from this one, which has imported what they need: they start in no time, but are
processes of their own with the script as `__main__`, so that signals, limits and exits are real. `startup_*` start a
new Python. Full disks are small tmpfs mounts, which need root. The table of a campaign is in docs/robustness.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a thread pool does not survive a fork

import argparse
import contextlib
import functools
import io
import json
import math
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
MEMORY = 12 << 30  # bytes of address space for a trial of legal settings
SECONDS = 60  # of processor time for such a trial
STEPS = 240  # of a run
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # at which a run stops in order
SCRATCH = Path()  # folder of the campaign


class Failed(Exception):
    """A trial did not end as it must."""


class TooLarge(Exception):
    """Legal settings that this machine cannot try."""


class Skipped(Exception):
    """A trial that is impossible here; says why."""


def require(true: object, problem: str) -> None:
    if not true:
        raise Failed(problem)


class Trial:
    """What a scenario gets: a generator of its own, and an empty folder."""

    def __init__(self, name: str, seed: int, number: int):
        self.rng = random.Random(f"{seed} {name} {number}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-{number}-", dir=SCRATCH))
        self.logdir = self.folder / "run"
        self.inexact = False  # the run has fallen back to a checkpoint before


class Scenario(NamedTuple):
    group: str
    function: Callable[[Trial], str]
    trials: int  # at scale 1

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def title(self) -> str:
        return self.function.__doc__


SCENARIOS: list[Scenario] = []


def scenario(group: str, trials: int) -> Callable:
    """Registers a function of a trial that returns 'survived' or 'refused', or raises."""

    def register(function: Callable[[Trial], str]) -> Callable:
        SCENARIOS.append(Scenario(group, function, trials))
        return function

    return register


# ----------------------------------------------------------------------------------------------------------- processes


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return (
            f"exit status {self.code}; stderr: {self.err[-1500:].strip() or 'empty'}; stdout: {self.out[-300:].strip()}"
        )


class Process:
    """A call in a forked process, in a session of its own; its output goes to files.

    memory, seconds: limits of address space and of processor time, beyond which `wait` raises TooLarge.
    """

    def __init__(self, function: Callable, *args, memory: int = 0, seconds: int = 0):
        self.folder = Path(tempfile.mkdtemp(prefix="process-", dir=SCRATCH))
        self.limited = bool(memory or seconds)
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the child is ready for them
        self.pid = os.fork()
        if not self.pid:
            self._child(function, args, memory, seconds)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _child(self, function: Callable, args: tuple, memory: int, seconds: int) -> None:
        code: object = 1
        try:
            os.setsid()
            for fd, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_RDWR), (2, "err", os.O_RDWR)):
                os.dup2(os.open(self.folder / name, flags | (os.O_CREAT if fd else 0), 0o600), fd)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            if seconds:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            code = function(*args)
        except SystemExit as stop:
            code = stop.code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                if isinstance(code, str):
                    print(code, file=sys.stderr)
                sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1 if code else 0)

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def send(self, number: int, group: bool = False) -> None:
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Result:
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                self.send(signal.SIGKILL, group=True)
                self.wait(60)
                raise Failed(f"hung for {seconds:g} s: {self.output()}")
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers of a killed process, which end by themselves, a moment later
        result = self.output()
        shutil.rmtree(self.folder)
        if self.limited and (self.code == -signal.SIGXCPU or re.search("MemoryError|can't allocate", result.err)):
            raise TooLarge
        return result

    def output(self) -> Result:
        out, err = (
            path.read_text(errors="replace") if (path := self.folder / n).exists() else "" for n in ("out", "err")
        )
        return Result(self.code, out, err)

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


def as_main(script: str, words: list[str]) -> None:
    sys.argv = [str(ROOT / script), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def command(script: str, *words, **limits) -> Process:
    return Process(as_main, script, [str(word) for word in words], **limits)


def new_python(script: str, *words) -> Process:
    words = [sys.executable, "-u", str(ROOT / script), *map(str, words)]
    return Process(os.execv, sys.executable, words)


def refused(result: Result) -> str:
    """'refused', or Failed where that is not one line with exit status 1 or 2."""
    lines = result.err.strip().splitlines()
    require(result.code in (1, 2) and len(lines) == 1, f"expected one line on stderr and status 1 or 2: {result}")
    return "refused"


def survived_or_refused(result: Result, tried: str = "") -> str:
    """'survived', 'refused', or Failed with what was tried."""
    try:
        return "survived" if result.code == 0 else refused(result)
    except Failed as error:
        raise Failed(f"{tried}: {error}" if tried else str(error)) from None


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


@functools.cache
def reference(steps: int = STEPS) -> Path:
    """The folder of a run that nobody disturbs."""
    logdir = SCRATCH / f"reference{steps}"
    result = command("dreamer.py", *setup_runs(), "--steps", steps, "--logdir", logdir).wait()
    require(result.code == 0, f"the undisturbed run failed: {result}")
    return logdir


def train(t: Trial, *flags) -> Process:
    reference()  # not while this one runs
    return command("dreamer.py", *setup_runs(), "--logdir", t.logdir, *flags)


def count_rows(logdir: Path) -> int:
    path = logdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_rows(process: Process, logdir: Path, count: int) -> None:
    while process.running() and count_rows(logdir) < count:
        time.sleep(0.005)


def random_moment(t: Trial, process: Process) -> None:
    wait_for_rows(process, t.logdir, t.rng.randrange(len(rows(reference()))))
    time.sleep(t.rng.random() * 0.15)


class Snapshot(NamedTuple):
    episodes: dict[str, bytes]  # contents of the files
    lines: list[bytes]  # of the log, up to the newest checkpoint that is whole


def snapshot(logdir: Path) -> Snapshot:
    from run import checkpoint

    episodes = {path.name: path.read_bytes() for path in (logdir / "train_eps").glob("*.npz")}
    path, known = logdir / "metrics.jsonl", 0
    for name in ("latest.pt", "previous.pt"):
        with contextlib.suppress(OSError, ValueError):
            known = checkpoint.load_checkpoint(logdir / name)["lines"]
            break
    return Snapshot(episodes, path.read_bytes().splitlines(keepends=True)[:known] if known else [])


def fell_back(result: Result) -> bool:
    """Whether a run resumed with episodes newer than its checkpoint: its numbers are its own from there on."""
    return bool(re.search("newer than the checkpoint|lost with the last checkpoint", result.out))


def check_run(t: Trial, before: Snapshot, result: Result, exact: bool = False, steps: int = STEPS) -> str:
    """That a run which was disturbed, with what it had then, and resumed to its end has lost and doubled nothing.

    One that resumed from its last state has to equal the reference to the bit; `exact`: it must have done so.
    """
    import numpy as np

    import dreamer
    from run import checkpoint
    from run.episodes import read_episode

    require(result.code == 0, f"the run did not resume: {result}")
    lines, logdir = rows(t.logdir), t.logdir
    for name, content in before.episodes.items():
        path = logdir / "train_eps" / name
        require(path.exists() and path.read_bytes() == content, f"episode {name} was lost or changed")
    kept = (logdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)[: len(before.lines)]
    require(kept == before.lines, "rows of the log before the checkpoint were lost or changed")
    if exact or not (t.inexact or fell_back(result)):
        theirs = rows(reference(steps))
        differ = next((i for i, pair in enumerate(zip(lines, theirs, strict=False)) if pair[0] != pair[1]), None)
        require(
            lines == theirs, f"not the undisturbed run: {len(lines)} of {len(theirs)} rows, differs at row {differ}"
        )
    episodes = [line for line in lines if "train_episodes" in line]
    numbers = [line["train_episodes"] for line in episodes]
    require(numbers == list(range(1, len(numbers) + 1)), f"rows of episodes were lost or doubled: {numbers}")
    files = sorted((logdir / "train_eps").glob("*.npz"))
    require(len(files) == len(numbers), f"{len(files)} episode files and {len(numbers)} rows of episodes")
    for path, line in zip(files, episodes, strict=True):
        total = float(read_episode(path)["reward"].sum(dtype=np.float64))
        require(math.isclose(total, line["train_return"], rel_tol=1e-5), f"{path.name}: {total}, logged as {line}")
    for key in ("update_count", "eval_return"):
        at = [line["update_count" if key == "update_count" else "step"] for line in lines if key in line]
        require(at == sorted(set(at)), f"rows of {key} were doubled or disordered: {at}")
    order = [line["step"] for line in lines]
    require(order == sorted(order) and order[-1] >= steps, f"steps of the rows: {order}")
    require(
        lines[-1]["step"] == next(x for x in reversed(lines) if "eval_return" in x)["step"], "no evaluation at the end"
    )
    config = dreamer.load_config([*setup_runs(), "--steps", str(steps)])
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    due = dreamer.updates_due(config, state["step"])
    counted = next(line["update_count"] for line in reversed(lines) if "update_count" in line)
    require(state["updates"] == due == counted, f"{state['updates']} updates, {counted} logged, {due} due")
    require(not list(logdir.rglob("*.tmp")), "a temporary file was left behind")
    return "survived"


def resume(t: Trial, *flags, exact: bool = False) -> str:
    before = snapshot(t.logdir)
    return check_run(t, before, train(t, *flags).wait(), exact)


# --------------------------------------------------------------------------------------------------------------- kills


@scenario("kills", 30)
def killed(t: Trial) -> str:
    """a run killed at a random moment, and resumed"""
    process = train(t)
    random_moment(t, process)
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
            wait_for_rows(process, t.logdir, count_rows(t.logdir) + 1)
            time.sleep(t.rng.random() * 0.1)
        process.send(signal.SIGKILL)
        t.inexact |= fell_back(process.wait())
        now = snapshot(t.logdir).episodes
        require(all(now.get(name) == content for name, content in episodes.items()), "an episode was lost or changed")
        episodes = now
    return resume(t)


# ------------------------------------------------------------------------------------------------------------- signals


def stopped(t: Trial, process: Process) -> str:
    """Resumes a run that a signal has ended: to the bit, if it was stopped in order."""
    result = process.wait()
    orderly = "the same command resumes" in result.out
    before_the_loop = result.code == 130 or result.code in [-number for number in STOPPING]
    done = result.code == 0 and rows(t.logdir)[-1]["step"] >= STEPS
    require(orderly or before_the_loop or done, f"neither stopped nor done: {result}")
    require(before_the_loop or (result.code == 0 and not result.err), f"stopped with an error: {result}")
    return resume(t, exact=orderly)


@scenario("signals", 9)
def one_signal(t: Trial) -> str:
    """SIGINT, SIGTERM or SIGHUP at a random moment"""
    process = train(t)
    random_moment(t, process)
    process.send(t.rng.choice(STOPPING))
    return stopped(t, process)


@scenario("signals", 6)
def two_signals(t: Trial) -> str:
    """two of them, shortly after each other"""
    process = train(t)
    random_moment(t, process)
    for _ in range(2):
        process.send(t.rng.choice(STOPPING))
        time.sleep(t.rng.random() * 0.05)
    return stopped(t, process)


@scenario("signals", 6)
def in_an_evaluation(t: Trial) -> str:
    """a signal while an evaluation plays"""
    process = train(t)
    before = [i for i, row in enumerate(rows(reference())) if "eval_return" in row]
    wait_for_rows(process, t.logdir, t.rng.choice(before))
    process.send(t.rng.choice(STOPPING))
    return stopped(t, process)


@scenario("signals", 3)
def startup_signal(t: Trial) -> str:
    """a signal while Python starts and imports"""
    process = new_python("dreamer.py", *setup_runs(), "--logdir", t.logdir)
    time.sleep(t.rng.random() * 6)
    process.send(number := t.rng.choice(STOPPING))
    result = process.wait()
    ended = result.code in (130, -number) or "the same command resumes" in result.out
    ended |= result.code == 0 and rows(t.logdir)[-1]["step"] >= STEPS  # on a fast machine, before the signal
    require(ended or (number == signal.SIGINT and "KeyboardInterrupt" in result.err), f"{result}")
    return resume(t)


WORKERS = ("--parallel", "True")


@scenario("signals", 6)
def terminal(t: Trial) -> str:
    """a signal to the run and all of its workers, as of a terminal"""
    process = train(t, *WORKERS)
    random_moment(t, process)
    process.send(t.rng.choice(STOPPING), group=True)
    return stopped(t, process)


@scenario("signals", 4)
def to_a_worker(t: Trial) -> str:
    """SIGINT, SIGTERM, SIGHUP to a worker alone, which ignores them"""
    process = train(t, *WORKERS)
    wait_for_rows(process, t.logdir, 2)
    for _ in range(5):
        pids = process.children()
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(t.rng.choice(pids), t.rng.choice(STOPPING))
    return check_run(t, snapshot(t.logdir), process.wait(), exact=True)


@scenario("signals", 4)
def worker_killed(t: Trial) -> str:
    """a worker killed, in training or in an evaluation"""
    process = train(t, *WORKERS)
    random_moment(t, process)
    pids = process.children()
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(t.rng.choice(pids), signal.SIGKILL)
    result = process.wait()
    if result.code:
        refused(result)
        require("worker of env" in result.err, f"the line does not name the worker: {result}")
    return resume(t, exact="saved a checkpoint" in result.out)


@scenario("signals", 3)
def worker_hung(t: Trial) -> str:
    """a worker that hangs (SIGSTOP), and then a signal to the run"""
    process = train(t, *WORKERS)
    wait_for_rows(process, t.logdir, t.rng.randint(2, 8))
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(t.rng.choice(process.children()), signal.SIGSTOP)
    time.sleep(0.5)
    process.send(t.rng.choice(STOPPING))
    return stopped(t, process)


@scenario("signals", 3)
def suspended(t: Trial) -> str:
    """SIGSTOP and SIGCONT to all processes of a run"""
    process = train(t, *WORKERS)
    random_moment(t, process)
    for _ in range(3):
        process.send(signal.SIGSTOP, group=True)
        time.sleep(0.3)
        process.send(signal.SIGCONT, group=True)
    return check_run(t, snapshot(t.logdir), process.wait(), exact=True)


@scenario("signals", 3)
def storm(t: Trial) -> str:
    """signals and kills at any moment, until the run is done"""
    for _ in range(6):
        process = train(t)
        random_moment(t, process)
        for _ in range(t.rng.randint(1, 4)):
            process.send(t.rng.choice((*STOPPING, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH)))
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
        raise Skipped("mounting a disk needs root")

    def mount(*flags: str, **options) -> None:
        words = ",".join([*flags, *(f"{key}={value}" for key, value in options.items())])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            raise Skipped(f"mounting a disk failed: {done.stderr.strip()}")

    mount(**options)
    try:
        yield lambda *flags, **options: mount("remount", *flags, **options)
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def size_of(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@scenario("disks", 10)
def full_disk(t: Trial) -> str:
    """a disk that is full at a random moment, then larger"""
    total = size_of(reference()) + 300_000  # a checkpoint is written beside the two that there are
    with disk(t, size=t.rng.randint(4096, total)) as change:
        result = train(t).wait()
        end = survived_or_refused(result)
        if end == "survived":
            return check_run(t, Snapshot({}, []), result, exact=True)
        change(size="1g")
        resume(t)
        return end


@scenario("disks", 6)
def no_inodes(t: Trial) -> str:
    """a disk whose inodes are used up, then more of them"""
    with disk(t, size="1g", nr_inodes=t.rng.randint(2, 18)) as change:
        result = train(t).wait()
        end = survived_or_refused(result)
        if end == "survived":
            return check_run(t, Snapshot({}, []), result, exact=True)
        change(nr_inodes=1000)
        resume(t)
        return end


@scenario("disks", 4)
def filled_by_others(t: Trial) -> str:
    """another program fills the disk while the run trains, and leaves"""
    with disk(t, size="32m"):
        process = train(t)
        random_moment(t, process)
        with contextlib.suppress(OSError), open(t.logdir.parent / "others", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        result = process.wait()
        (t.logdir.parent / "others").unlink()
        end = survived_or_refused(result)
        resume(t)
        return end


@scenario("disks", 3)
def read_only(t: Trial) -> str:
    """a run on a read-only disk: resumed, evaluated; then writable again"""
    with disk(t, size="32m") as change:
        process = train(t)
        random_moment(t, process)
        process.send(signal.SIGTERM)
        process.wait()
        change("ro")
        refused(train(t).wait())
        if (t.logdir / "latest.pt").exists() and (t.logdir / "config.yaml").exists():
            refused(command("dreamer.py", "--eval_only", "--episodes", 1, "--logdir", t.logdir).wait())
        change("rw")
        resume(t)
        return "refused"


@scenario("disks", 3)
def disk_gone(t: Trial) -> str:
    """the disk is unmounted, or the folder deleted, while the run trains"""
    with disk(t, size="32m"):
        process = train(t)
        wait_for_rows(process, t.logdir, t.rng.randint(1, 12))
        if t.rng.random() < 0.5:
            subprocess.run(["umount", "-l", t.logdir.parent], check=True)
        else:
            shutil.rmtree(t.logdir, ignore_errors=True)
        return survived_or_refused(process.wait())


@scenario("disks", 12)
def impossible_folder(t: Trial) -> str:
    """a --logdir, or a file in it, that is a file, a folder, a dangling link, too long or in /proc"""
    target = t.logdir
    name = t.rng.choice(("", "train_eps", "metrics.jsonl", "config.yaml", "latest.pt", "previous.pt", ".pid"))
    if name:
        target.mkdir()
    path = target / name if name else target
    kind = t.rng.choice(("file", "folder", "link", "loop", "long", "proc"))
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(t.folder / "nowhere" / "deeper")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        t.logdir = t.folder / ("x" * 256) if kind == "long" else Path("/proc/run")
    return survived_or_refused(train(t, "--steps", "60").wait())


# -------------------------------------------------------------------------------------------------------------- damage


def mutate(data: bytes, rng: random.Random, most: int = 5) -> bytes:
    """Flips bits; loses, repeats, inserts or zeros bytes; cuts the end."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(data) + 1)
        count = rng.choice((1, 4, 100, 4096))
        match rng.randrange(7):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + count]
            case 2:
                data[at:at] = rng.randbytes(count)
            case 3:
                data[at : at + count] = bytes(len(data[at : at + count]))
            case 4:
                data[at:at] = data[at : at + count]
            case _ if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


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
    arrays, data = read_episode(path), mutate(path.read_bytes(), t.rng)
    (t.folder / path.name).write_bytes(data)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        replay = Replay(t.folder, 1000, spec=spec_of_episode(arrays))
        steps = replay.load()
    if not steps:
        require(err.getvalue().count("\n") == 1, f"expected one line on stderr: {err.getvalue()}")
        return "refused"
    require(not err.getvalue(), f"read, and yet: {err.getvalue()}")
    _, env, index, rows = re.split("-", path.stem)
    found = replay.gather([[(episode_key(int(env[3:]), int(index)), 0, int(rows))]])
    require(all(np.array_equal(found[key][0], array) for key, array in arrays.items()), "damage was read as it is")
    return "survived"


def damage_episodes(t: Trial) -> list[str]:
    files = sorted((t.logdir / "train_eps").glob("*.npz"))
    chosen = t.rng.sample(files, t.rng.randint(1, 3))
    for path in chosen:
        match t.rng.randrange(6):
            case 0:
                path.unlink()
                os.mkfifo(path)
            case 1:
                path.unlink()
                path.symlink_to(t.rng.choice(("/dev/zero", "/dev/null", "nowhere", "/proc/self/mem")))
            case 2:
                path.write_bytes(b"")
            case 3:
                path.rename(path.with_name(path.name.replace("-21.", "-9999999999999.")))
            case _:
                path.write_bytes(mutate(path.read_bytes(), t.rng))
    return [path.name for path in chosen]


@scenario("damage", 12)
def episodes_of_a_run(t: Trial) -> str:
    """damaged episodes, pipes, devices and huge claimed sizes in a run that trains on"""
    import numpy as np

    from run.episodes import read_episode

    copy_run(t)
    chosen = damage_episodes(t)
    whole = {name: content for name, content in snapshot(reference()).episodes.items() if name not in chosen}
    result = train(t, "--steps", STEPS + 80).wait()
    if result.code:
        return refused(result)
    reported = result.err.strip().splitlines()
    require(all(line.startswith("replay: ") for line in reported), f"not lines about episodes: {result}")
    for name in chosen:
        path = t.logdir / "train_eps" / name
        if name not in result.err and (path.exists() or "9999999999999" not in result.err):
            found, meant = (read_episode(p) for p in (path, reference() / "train_eps" / name))
            same = all(np.array_equal(found[key], array) for key, array in meant.items())
            require(same, f"damage in {name} was not reported: {result}")
    for name, content in whole.items():
        require((t.logdir / "train_eps" / name).read_bytes() == content, f"episode {name} was lost or changed")
    last = rows(t.logdir)[-1]
    require(
        last["step"] >= STEPS + 80 and all(math.isfinite(value) for value in last.values()), f"the last row: {last}"
    )
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


def read_damaged(path: Path) -> int:
    from run import checkpoint

    try:
        found = checkpoint.load_checkpoint(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if equal(found, checkpoint.load_checkpoint(reference() / "latest.pt")) else 3


@scenario("damage", 300)
def checkpoint_bytes(t: Trial) -> str:
    """the bytes of a checkpoint, read alone"""
    data = mutate((reference() / "latest.pt").read_bytes(), t.rng)
    (t.folder / "latest.pt").write_bytes(data)
    result = Process(read_damaged, t.folder / "latest.pt", memory=MEMORY).wait(300)
    require(result.code != 3, "damage was read as it is")
    return survived_or_refused(result)


@scenario("damage", 10)
def checkpoints_of_a_run(t: Trial) -> str:
    """a damaged, missing or foreign latest.pt, sometimes previous.pt too, in a run that resumes"""
    copy_run(t)
    names = ["latest.pt", "previous.pt"] if t.rng.random() < 0.3 else ["latest.pt"]
    for name in names:
        path = t.logdir / name
        match t.rng.randrange(6):
            case 0:
                path.unlink()
            case 1:
                path.unlink()
                os.mkfifo(path)
            case 2:
                shutil.copy(t.rng.choice(sorted((t.logdir / "train_eps").glob("*.npz"))), path)
            case _:
                path.write_bytes(mutate(path.read_bytes(), t.rng))
    before = snapshot(t.logdir)
    result = train(t).wait()
    return check_run(t, before, result) if result.code == 0 else refused(result)


def change_layout(state: dict, rng: random.Random) -> str:
    """Takes a named part of a checkpoint away, or puts something else in its place; says what it did."""
    place, where = state, ""
    while True:
        key = rng.choice([key for key in place if isinstance(key, str)])
        where += f".{key}"
        inner = place[key][0] if isinstance(place[key], list) and place[key] else place[key]
        if isinstance(inner, dict) and any(isinstance(k, str) for k in inner) and rng.random() < 0.7:
            place = inner
            continue
        if rng.random() < 0.7:
            del place[key]
            return f"without {where}"
        place[key] = rng.choice((None, {}, [], "text", {"a": 1}))
        return f"{where} replaced by {place[key]!r}"


def write_changed(source: Path, path: Path, seed: float) -> None:
    from run import checkpoint

    state = checkpoint.load_checkpoint(source)
    print(change_layout(state, random.Random(seed)))
    checkpoint.save_checkpoint(path, state)


@scenario("damage", 30)
def checkpoint_layout(t: Trial) -> str:
    """a whole checkpoint of another layout: parts missing, or something else in their place"""
    copy_run(t)
    (t.logdir / "previous.pt").unlink()
    source, seed = reference() / "latest.pt", t.rng.random()
    change = Process(write_changed, source, t.logdir / "latest.pt", seed).wait().out.strip()
    result = train(t, "--steps", STEPS + 20).wait()
    end = survived_or_refused(result, change)
    if end == "survived":
        last = rows(t.logdir)[-1]
        require(last["step"] >= STEPS + 20 and all(map(math.isfinite, last.values())), f"{change}: {last}")
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
    copy_run(t)
    path = t.logdir / "metrics.jsonl"
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
    require(all(type(json.loads(line)["step"]) is int for line in after), "damage was kept")
    lost = known - set(after)
    require(
        not lost or "lines: the others are lost" in result.out or len(after) >= len(known), f"rows lost unsaid: {lost}"
    )
    require(not result.err, f"stderr: {result}")
    return "survived"


@scenario("damage", 16)
def config_yaml(t: Trial) -> str:
    """damage in config.yaml of a run that resumes"""
    from run.config import ConfigError, read_config

    copy_run(t)
    path = t.logdir / "config.yaml"
    path.write_bytes(mutate(path.read_bytes(), t.rng, 2))
    result = train(t).wait()
    if result.code == 0:
        with contextlib.suppress(ConfigError):
            found, meant = ({**read_config(p / "config.yaml").flat(), "logdir": ""} for p in (t.logdir, reference()))
            require(found == meant, "the settings of the run are not those of its command line")
            return "survived"
        raise Failed("config.yaml was left damaged")
    return refused(result)


@scenario("damage", 12)
def files_missing(t: Trial) -> str:
    """some files of a run missing"""
    copy_run(t)
    files = sorted(path for path in t.logdir.rglob("*") if path.is_file())
    for path in t.rng.sample(files, t.rng.randint(1, len(files))):
        path.unlink()
    result = train(t).wait()
    if result.code:
        return refused(result)
    require("nothing is left" in result.out or rows(t.logdir)[-1]["step"] >= STEPS, f"not trained to the end: {result}")
    return "survived"


@scenario("damage", 20)
def evaluated(t: Trial) -> str:
    """--eval_only on a run with one damaged file"""
    copy_run(t)
    files = [t.logdir / name for name in ("latest.pt", "config.yaml", "metrics.jsonl")]
    path = t.rng.choice(files)
    path.write_bytes(mutate(path.read_bytes(), t.rng, 2))
    before = {path: path.read_bytes() for path in t.logdir.rglob("*") if path.is_file()}
    flags = ["--eval_only", "--episodes", 1, "--parallel", "False", "--compile", "False", "--logdir", t.logdir]
    result = command("dreamer.py", *flags, memory=MEMORY, seconds=SECONDS).wait()
    require(all(path.read_bytes() == content for path, content in before.items()), "an evaluation changed the run")
    if result.code:
        return refused(result)
    (line,) = (t.logdir / "eval.jsonl").read_text().splitlines()
    require(math.isfinite(json.loads(line)["return"]), f"result: {line}")
    return "survived"


# ------------------------------------------------------------------------------------------------------------ commands

JUNK = (
    "", " ", "nan", "-inf", "1e999", "True", "none", "0x10", "1_000", "1,5", "٣", "--", "-", "é" * 300, "\n", "\x01",
    "'", "1 2", "1e-400", "9" * 400, "[1]", "{}", "1e", "+5", "../..", "%s", "$(reboot)",
)  # fmt: skip


@functools.cache
def setup_config():
    """run/config.py, which reads configs.yaml once for all trials."""
    from run import config

    config.ConfigFile = functools.cache(config.ConfigFile)
    return config


def settings() -> dict:
    config = setup_config()
    return {
        **config.ConfigFile(config.CONFIGS).defaults,
        **{name: value for name, (value, _) in config.ACTIONS.items()},
    }


def bounds(name: str) -> tuple[float, float] | None:
    """Those that --help shows."""
    config = setup_config()
    match = re.fullmatch(r" from (\S+) to (\S+)", config.LEGAL[name].text) if name in config.LEGAL else None
    return (float(match[1]), float(match[2])) if match else None


def legal_value(name: str, default: object, rng: random.Random) -> str:
    """A legal value, often at a bound; numbers close to the default as often as far from it."""
    config = setup_config()
    if isinstance(default, list):
        count = 2 if name == "size" else rng.randint(0, 2)
        item = default[0] if default else ""
        values = [legal_value(name, item, rng) for _ in range(count)]
        return " ".join([values[0]] * 2 if name == "size" and rng.random() < 0.8 else values)
    if isinstance(default, bool):
        return rng.choice(("True", "False"))
    if name in config.LEGAL and config.LEGAL[name].choices:
        return str(rng.choice(config.LEGAL[name].choices))
    limits = bounds(name)
    if limits is None:
        return str(default)
    low, high = limits
    match rng.randrange(4):
        case 0:
            value = low
        case 1:
            value = high
        case 2:
            value = min(high, max(low, (default or 1) * rng.choice((0.25, 0.5, 2, 3, 4))))
        case _:
            value = low + (high - low) * rng.random() ** 6
    return str(int(value) if isinstance(default, int) else value)


def load(words: list[str]):
    """The config of a command line, None if it is refused; Failed if that is not in one line."""
    config, out, err = setup_config(), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found, _ = config.load_config(words, extra=config.ACTIONS)
            config.check_config(found)
    except config.ConfigError as error:  # printed by dreamer.py
        require(str(error) and "\n" not in str(error), f"{words}: not one line: {error}")
        return None
    except SystemExit as stop:
        shown = any(word in ("-h", "--help") for word in words) and stop.code == 0 and not err.getvalue()
        one = stop.code == 2 and not out.getvalue() and err.getvalue().count("\n") == 1
        require(shown or one, f"{words}: status {stop.code}, stderr {err.getvalue()!r}")
        return None
    return found


@scenario("commands", 1500)
def one_setting(t: Trial) -> str:
    """every setting at, inside and outside of its bounds, and with junk"""
    config, names = setup_config(), sorted(settings())
    name = names[t.rng.randrange(len(names))]
    default = settings()[name]
    item = (default or [""])[0] if isinstance(default, list) else default
    limits, whole = bounds(name), isinstance(item, int) and not isinstance(item, bool)
    if t.rng.random() < 0.2 or not limits:
        word = t.rng.choice((t.rng.choice(JUNK), legal_value(name, default, t.rng)))
        found = load([f"--{name}", *(word.split(" ") if isinstance(default, list) else [word])])
        if found is None:
            return "refused"
        value = {**found.flat(), name: found.flat().get(name, item)}[name]
        for one in value if isinstance(value, list) else [value]:
            require(type(one) is type(item), f"--{name} {word!r} became {one!r}")
            require(name not in config.LEGAL or config.LEGAL[name].allows(one), f"--{name} {word!r} became {one!r}")
        return "survived"
    low, high = limits
    gap = 1 if whole else max(abs(low), abs(high)) * 1e-6
    good = [low, high, low + (high - low) * t.rng.random()]
    bad = [low - gap, high + max(gap, high * 1e-6), -1e300, 1e300]
    inside = t.rng.random() < 0.6
    value = t.rng.choice(good if inside else bad)
    text = str(int(value)) if whole and abs(value) < 1e20 else repr(value)
    err, words = io.StringIO(), [f"--{name}", *[text] * (2 if name == "size" else 1)]
    try:
        with contextlib.redirect_stderr(err):
            found, actions = config.load_config(words, extra=config.ACTIONS)
    except SystemExit as stop:
        require(stop.code == 2 and err.getvalue().count("\n") == 1, f"{words}: {err.getvalue()!r}")
        require(not inside and f"--{name} is" in err.getvalue(), f"{words} is legal, and refused: {err.getvalue()}")
        return "refused"
    require(inside, f"{words} is beyond its bounds, and accepted")
    held = {**found.flat(), **actions}[name]
    meant = float(text) if not whole else int(text)
    require((held[0] if isinstance(held, list) else held) == meant, f"{words} became {held}")
    return "survived"


@scenario("commands", 1000)
def many_words(t: Trial) -> str:
    """random words: flags, values, groups, junk"""
    config, known = setup_config(), settings()
    groups, names = list(config.ConfigFile(config.CONFIGS).groups), list(known)
    words = []
    for _ in range(t.rng.randint(1, 8)):
        name = t.rng.choice(names)
        text = "".join(t.rng.choice(string.printable) for _ in range(t.rng.randint(1, 8)))
        flag = t.rng.choice((f"--{name}", f"--{name}", f"--{name[:-1]}", f"--{name}={text}", "--configs", text))
        value = t.rng.choice((legal_value(name, known[name], t.rng), t.rng.choice(groups), t.rng.choice(JUNK), text))
        words += [flag, value] if t.rng.random() < 0.9 else [flag]
    return "refused" if load(words) is None else "survived"


@scenario("commands", 20)
def refused_command(t: Trial) -> str:
    """command lines that are refused: by the command, with status 2 and without a folder"""
    setup_runs()
    known = settings()
    while True:
        name = t.rng.choice(list(known))
        words = [f"--{name}", t.rng.choice(JUNK)]
        if name not in ("logdir", "configs", "eval_only") and load(words) is None:
            break
    result = command("dreamer.py", *words, "--logdir", t.logdir).wait()
    require(not t.logdir.exists(), f"{words} made a folder")
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


def update_once(words: list[str]) -> int:
    """One update of an agent with these settings; status 1 and the loop's line if it diverges."""
    import agents
    import torch

    import dreamer

    config = dreamer.load_config(words)
    dreamer.check_config(config)
    pixels = dreamer.sees_images(config)
    shapes = {"image": (*config.size, 3)} if pixels else agents.VECTORS
    torch.manual_seed(0)
    agent = dreamer.Dreamer(config, shapes=shapes, actions=3)
    size, length = config.batch_size, config.batch_length
    discrete = config.actor_dist == "onehot"
    batch = agents.batch(shapes, 3, max(size, 2), max(length, 4), discrete=discrete)
    metrics = agent.update({key: value[:size, :length] for key, value in batch.items()})
    values = {key: float(value) for key, value in metrics.items()}
    broken = sorted(key for key, value in values.items() if not math.isfinite(value))
    if any(key.endswith(("_loss", "_grad_norm")) for key in broken):  # Trainer.check_losses
        print(f"training has diverged: {broken[0]} is {values[broken[0]]}", file=sys.stderr)
        return 1
    require(not broken, f"not finite: {broken}")
    return 0


@scenario("commands", 60)
def legal_update(t: Trial) -> str:
    """legal settings of agent and training at random: an update of that agent with finite numbers"""
    setup_runs()
    import agents

    known, family = settings(), t.rng.choice(FAMILIES).split()
    names = [name for name in known if name not in OF_A_RUN and name not in setup_config().ACTIONS]
    words = ["--configs", *family, *agents.SMALL]
    for name in t.rng.sample(names, t.rng.randint(1, 4)):
        words += [f"--{name}", *legal_value(name, known[name], t.rng).split()]
    if load(words) is None:
        return "refused"
    result = Process(update_once, words, memory=MEMORY, seconds=SECONDS).wait()
    return survived_or_refused(result, " ".join(words))


@scenario("commands", 12)
def legal_run(t: Trial) -> str:
    """legal settings of the run at random: a short run, to its end"""
    known = settings()
    words = []
    names = sorted(
        OF_A_RUN - {"logdir", "task", "device", "steps", "from_checkpoint", "eval_tasks", "compile", "img_source"}
    )
    for name in t.rng.sample(names, t.rng.randint(1, 4)):
        words += [f"--{name}", *legal_value(name, known[name], t.rng).split()]
    flags = [*setup_runs(), "--steps", "100", *words]
    if load(flags) is None:
        return "refused"
    result = command("dreamer.py", *flags, "--logdir", t.logdir, memory=MEMORY, seconds=SECONDS).wait()
    end = survived_or_refused(result, " ".join(words))
    if end == "survived":
        last = rows(t.logdir)[-1]
        require(all(value is None or math.isfinite(value) for value in last.values()), f"{words}: {last}")
    return end


# ------------------------------------------------------------------------------------------------------------- configs


@scenario("configs", 120)
def configs_file(t: Trial) -> str:
    """configs.yaml, mutated"""
    from run import config

    path, err = t.folder / "configs.yaml", io.StringIO()
    path.write_bytes(mutate_text((ROOT / "configs.yaml").read_bytes(), t.rng))
    try:
        with contextlib.redirect_stderr(err):
            found = config.load_config([], path)
    except SystemExit as stop:
        require(stop.code == 2 and err.getvalue().count("\n") == 1, f"{path}: {err.getvalue()!r}")
        require(str(path) in err.getvalue(), f"the line does not name the file: {err.getvalue()}")
        return "refused"
    for name, value in found.flat().items():
        for one in value if isinstance(value, list) else [value]:
            require(name not in config.LEGAL or config.LEGAL[name].allows(one), f"{name} became {one!r}")
    return "survived"


@scenario("configs", 200)
def saved_config(t: Trial) -> str:
    """config.yaml of a run, mutated, read by the code of --eval_only and of a resumed run"""
    config = setup_config()
    path = t.folder / "config.yaml"
    config.save_config(config.load_config(["--configs", "dmc_vision"]), path)
    path.write_bytes(mutate_text(path.read_bytes(), t.rng))
    try:
        found = config.read_config(path)
        with contextlib.redirect_stderr(err := io.StringIO()):
            config.load_config([], base=found)
    except config.ConfigError as error:
        require("\n" not in str(error) and str(path) in str(error), f"not one line that names the file: {error}")
        return "refused"
    except SystemExit as stop:
        require(stop.code == 2 and err.getvalue().count("\n") == 1, f"{err.getvalue()!r}")
        return "refused"
    return "survived"


def mutate_text(data: bytes, rng: random.Random) -> bytes:
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
                lines[i] = (
                    lines[i].split(":")[0] + ": " + rng.choice((*JUNK, "[1, [2]]", "{a: {b: 1}}", "|", ">", "~")) + "\n"
                )
            case _:
                lines[i] = lines[i][:at] + rng.choice("{}[]&*!|>'\"%@`,:#-?\\\t\0\x07\ufeff\u2028é") + lines[i][at:]
    return "".join(lines).encode()


# --------------------------------------------------------------------------------------------------------------- tools


def small_runs(t: Trial) -> Path:
    """Three runs of a sweep with a few rows each."""
    config = setup_config()
    for seed in range(3):
        folder = t.folder / "log" / "dmc_walker_walk" / "hrssm" / f"seed{seed}"
        flags = ["--configs", "dmc_vision", "--task", "dmc_walker_walk", "--seed", str(seed), "--steps", "400"]
        config.save_config(config.load_config(flags), folder / "config.yaml")
        lines = [{"step": step, "eval_return": step / 10 + seed, "update_count": step} for step in range(100, 500, 100)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "latest.pt").touch()
        (folder / ".sweep.json").write_text('{"gpu": null, "exit": 0}')
        (folder / "eval.jsonl").write_text('{"step": 400}\n')
    return t.folder / "log"


def damage_small_runs(t: Trial, log: Path) -> None:
    files = sorted(path for path in log.rglob("*") if path.is_file() and path.stat().st_size)
    for path in t.rng.sample(files, t.rng.randint(1, 3)):
        match t.rng.randrange(5):
            case 0:
                path.unlink()
            case 1:
                path.write_text("\n".join(t.rng.sample(LINES, 5)) + "\n")
            case _:
                path.write_bytes(mutate(path.read_bytes(), t.rng))


def check_tool(result: Result) -> str:
    require("Traceback" not in result.err, f"{result}")
    return survived_or_refused(result)


@scenario("tools", 16)
def plot_arguments(t: Trial) -> str:
    """figures/plot.py with odd arguments"""
    from figures import plot  # noqa: F401

    log, rng = small_runs(t), t.rng
    runs = rng.choice(
        ([log], [f"a={log}"], [f"={log}"], [f"$x${rng.choice(JUNK)}={log}"], [log, log], [t.folder], [rng.choice(JUNK)])
    )
    out = rng.choice(
        (t.folder / "a.png", t.folder / "a.svg", t.folder / "a.gif", t.folder, "/nowhere/a.png", rng.choice(JUNK))
    )
    flags = rng.choice(
        ([], ["--at", "200"], ["--at", rng.choice(JUNK)], ["--at", "1e99", "-1"], ["--window", rng.choice(JUNK)])
    )
    flags += rng.choice(
        ([], ["--metric", rng.choice(("update_count", "nothing", "step", *JUNK))], ["--label", rng.choice(JUNK)])
    )
    flags += rng.choice(([], ["--published"], ["--unknown"]))
    result = command("figures/plot.py", *runs, "--out", out, *flags).wait()
    end = check_tool(result)
    require(end == "refused" or Path(out).stat().st_size > 0, f"no figure: {result}")
    return end


@scenario("tools", 16)
def plot_damaged(t: Trial) -> str:
    """figures/plot.py on damaged runs"""
    from figures import plot  # noqa: F401

    log = small_runs(t)
    damage_small_runs(t, log)
    return check_tool(command("figures/plot.py", log, "--out", t.folder / "a.png").wait())


@scenario("tools", 30)
def sweep_arguments(t: Trial) -> str:
    """setup/sweep.py --status, --export and --dry_run with odd arguments"""
    import envs  # noqa: F401

    log, rng = small_runs(t), t.rng
    flags = rng.choice(
        (["--status"], ["--export", t.folder / "out"], ["--export", log / "file" / "x"], ["--dry_run"], [])
    )
    junk = functools.partial(rng.choice, JUNK)
    pool = [
        ["--tasks", "dmc_walker_walk", "--dry_run"], ["--tasks", junk(), "--dry_run"], ["--methods", junk()],
        ["--methods", "hrssm", "M+small"], ["--seeds", "0-2"], ["--seeds", "3-1"], ["--seeds", junk()],
        ["--max_parallel", junk()], ["--executor", junk()], ["--slurm", junk()], ["--configs", junk()], ["--unknown"],
    ]  # fmt: skip
    for words in rng.sample(pool, rng.randint(0, 3)):
        flags = [*flags, *words]
    if not {"--status", "--export", "--dry_run"} & set(map(str, flags)):
        flags = [*flags, "--status"]
    folder = rng.choice(
        (log, log, log, t.folder / "nowhere", log / "dmc_walker_walk" / "hrssm" / "seed0" / "config.yaml")
    )
    tail = rng.choice(([], [], ["--", "--steps", "400"], ["--", "--seed", "3"], ["--", "--batch_size", junk()]))
    return check_tool(command("setup/sweep.py", "--logdir", folder, *flags, *tail).wait())


@scenario("tools", 30)
def sweep_damaged(t: Trial) -> str:
    """setup/sweep.py --status and --export on damaged runs"""
    log = small_runs(t)
    damage_small_runs(t, log)
    flags = t.rng.choice((["--status"], ["--export", t.folder / "out"]))
    result = command("setup/sweep.py", "--logdir", log, *flags).wait()
    end = check_tool(result)
    if end == "survived" and flags == ["--status"]:
        require(result.out.count("\ndmc_walker_walk") == 3, f"not a row for each run: {result}")
    return end


@scenario("tools", 12)
def export_agent(t: Trial) -> str:
    """setup/export_agent.py on damaged and foreign runs; what it exports can be evaluated"""
    copy_run(t)
    path = t.logdir / "latest.pt"
    match t.rng.randrange(4):
        case 0:
            path.write_bytes(mutate(path.read_bytes(), t.rng))
        case 1:
            Process(write_changed, reference() / "latest.pt", path, t.rng.random()).wait()
        case 2:
            (t.logdir / t.rng.choice(("config.yaml", "latest.pt"))).unlink()
    result = command("setup/export_agent.py", t.logdir, t.folder / "agent").wait()
    if result.code:
        return refused(result)
    flags = [
        "--eval_only",
        "--episodes",
        1,
        "--parallel",
        "False",
        "--compile",
        "False",
        "--logdir",
        t.folder / "agent",
    ]
    return survived_or_refused(command("dreamer.py", *flags).wait())


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
        require(all(dmcgb.files[name] == content for name, content in finals.items()), "a wrong file has a final name")
        if code:
            last = said.strip().splitlines()[-1]
            require(code == 1 and last.startswith("download_assets.py: "), f"status {code}: {last}")
        dmcgb.server.faults = {}
        again, said = dmcgb.run()
        require(again == 0 and dmcgb.on_disk() == dmcgb.files, f"not whole after a retry: {said}")
        return "refused" if code else "survived"


@scenario("downloads", 6)
def killed_download(t: Trial) -> str:
    """a download killed at random moments, a file damaged between them"""
    with server(t) as dmcgb:
        for _ in range(3):
            dmcgb.server.faults = {name: ["slow"] * 9 for name in dmcgb.files}
            process = dmcgb.start()
            moment = dmcgb.server.sent + t.rng.randint(1, 400_000)
            while process.poll() is None and dmcgb.server.sent < moment:
                time.sleep(0.002)
            process.kill()
            process.communicate()
            root = dmcgb.assets / "dmcgb"
            files = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]
            for path in files:
                final = not path.name.endswith(".part")
                require(
                    not final or path.read_bytes() == dmcgb.files[str(path.relative_to(root))],
                    f"{path.name} is not whole",
                )
            if files and t.rng.random() < 0.5:
                path = t.rng.choice(files)
                path.write_bytes(mutate(path.read_bytes(), t.rng))
        dmcgb.server.faults = {}
        code, said = dmcgb.run()
        require(code == 0 and dmcgb.on_disk() == dmcgb.files, f"not whole after restarts: {said}")
        return "survived"


# ------------------------------------------------------------------------------------------------------------ campaign


class Count(NamedTuple):
    scenario: Scenario
    ends: Counter  # survived, refused, untried, failed
    failures: list[tuple[str, str]]  # name for --only, reason
    notes: set[str]


def run_scenario(count: Count, numbers: list[int], seed: int) -> None:
    scenario = count.scenario
    for number in numbers:
        t = Trial(scenario.name, seed, number)
        try:
            end = scenario.function(t)
        except (TooLarge, Skipped) as reason:
            end = "untried"
            count.notes.add(str(reason) or "too large for this machine")
        except Exception as error:
            end, reason = "failed", str(error) if isinstance(error, Failed) else traceback.format_exc()
            count.failures.append((f"{scenario.group}.{scenario.name}:{number}", reason))
            print(f"{count.failures[-1][0]}: {reason}", file=sys.stderr, flush=True)
        count.ends[end] += 1
        shutil.rmtree(t.folder, ignore_errors=True)


def choose(words: list[str], scale: float) -> list[tuple[Scenario, list[int]]]:
    """Scenarios and trials that `--only` names: group, group.scenario or group.scenario:trial."""
    chosen = []
    for item in SCENARIOS:
        numbers = list(range(max(1, round(item.trials * scale))))
        full = f"{item.group}.{item.name}"
        if not words or item.group in words or full in words:
            chosen.append((item, numbers))
        elif only := [int(word.partition(":")[2]) for word in words if word.startswith(f"{full}:")]:
            chosen.append((item, only))
    return chosen


def table(counts: list[Count]) -> str:
    lines = [
        "| scenario | trials | survived | refused in one line | not tried | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ends = ("survived", "refused", "untried", "failed")
    for group in GROUPS:
        members = [count for count in counts if count.scenario.group == group]
        if members:
            total = sum((count.ends for count in members), Counter())
            lines.append(
                f"| **{group}** | {' | '.join(f'**{n}**' for n in [total.total(), *(total[e] for e in ends)])} |"
            )
        for count in members:
            lines.append(
                f"| {count.scenario.title} (`{count.scenario.name}`) | "
                f"{' | '.join(map(str, [count.ends.total(), *(count.ends[e] for e in ends)]))} |"
            )
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
    counts = []
    stop = contextlib.suppress(KeyboardInterrupt)  # Ctrl-C: the table of what was tried so far
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in a shell's background ignores it
    with stop, tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as folder:
        SCRATCH = Path(folder)
        for item, numbers in chosen:
            begin = time.monotonic()
            counts.append(Count(item, Counter(), [], set()))
            run_scenario(counts[-1], numbers, args.seed)
            ends = ", ".join(f"{n} {end}" for end, n in sorted(counts[-1].ends.items()))
            print(f"{item.group}.{item.name}: {ends} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    print(table(counts))
    for note in sorted(set().union(*(count.notes for count in counts))):
        print(f"\nNot tried: {note}.")
    failures = [failure for count in counts for failure in count.failures]
    for name, reason in failures:
        print(f"\nFAILED: {reason}\n    python tests/campaign.py --seed {args.seed} --only {name}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
