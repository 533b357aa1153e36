"""The process of a run, without torch: its memory, the lock on its folder, signals."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from run import distributed
from run.logs import log


def tune_allocator() -> None:
    """Lets glibc keep freed memory, which it would otherwise map and fault again for every large tensor.

    For the command line, before torch is imported; the process's resident memory stays at its peak. Does nothing with
    another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # constants of malloc.h
    if mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1):
        mallopt(m_top_pad, 256 << 20)


def available_memory(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still use: what the machine has, or less if a cgroup (a container's) limits it."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = [1024 * int(meminfo["MemAvailable"].split()[0])]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            root, limit, usage, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")  # a container may see its own group as the root
        for folder in [group, *group.parents][: len(group.parts) - len(root.parts) + 1]:
            with suppress(OSError, ValueError):  # no limit, which version 2 writes as "max"
                free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append(free + int(stat[cache]))
    return max(min(found), 0)


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
            log.info(f"--logdir {folder} cannot be locked ({error.strerror}): do not start a second process there")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def open_logdir(logdir: Path) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes out of it. Raises ValueError if that is impossible."""
    with ExitStack() as stack:
        if distributed.is_main():
            try:
                logdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_folder(logdir))
            except OSError as error:
                raise ValueError(
                    f"--logdir {logdir}: {error.strerror}; expected a folder that can be made and written"
                ) from None
            for path in (logdir / "config.yaml", logdir / "metrics.jsonl"):
                if path.exists() and not path.is_file():
                    raise ValueError(f"{path} is not a regular file: move it away, or use another --logdir")
        yield


def silence_destructors() -> None:
    """For a process that is about to end: destructors of what is left half made would print tracebacks."""
    sys.unraisablehook = lambda _: None


def interrupt_quietly(number: int, frame) -> None:
    """A handler of SIGINT: raises KeyboardInterrupt."""
    silence_destructors()
    raise KeyboardInterrupt


class Interrupted(BaseException):
    """The run is asked to stop; not an Exception, which env code may catch."""


class Interrupt:
    """Within it, Ctrl-C, SIGTERM and a closed terminal set `requested`: the loop stops where it calls `check`.

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

    def check(self) -> None:
        """Raises Interrupted, in all ranks, if any of them was asked to stop."""
        if distributed.any_rank(self.requested):
            raise Interrupted

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
            interrupt_quietly(number, frame)
        self.requested = True
        if self._immediate:
            silence_destructors()
            raise Interrupted
