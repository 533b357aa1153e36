"""Envs in parallel, each in its own process or all in this one, behind one interface.

A worker is started as `python -P -m envs.parallel FD` and exchanges pickles over a pipe. It is a fresh interpreter, not
a fork: it imports what its env needs and nothing of the agent (no torch), and shares no renderer with the parent.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

from envs import notes
from envs.wrappers import ActionError

# Raised unchanged in the parent; all others as RuntimeError.
USER_ERRORS = (ValueError, FileNotFoundError, ImportError)
PATIENCE = 10  # seconds that workers have to close their envs
SUBSTITUTE = 10**9  # added to an episode's number where its reset fails
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that only the parent acts on


class WorkerDied(RuntimeError):
    """The process of an env died; the message has the env and its exit code."""


class Transition(NamedTuple):
    """The result of a step.

    first: when done, the first observation of the next episode, which has already begun.
    info: with `failure`, what went wrong, if the episode was cut by an error of its env.
    """

    obs: dict
    reward: float
    done: bool
    info: dict
    first: dict | None


class Host:
    """An env and the requests that it serves; others wait in `envs` for their turn.

    An error of the env in a step cuts the episode: it ends with the observation before, not as terminal. Where a reset
    fails, another episode takes the place, the same one every time.

    Args:
        max_failures: episodes in a row that may fail; the next error is raised.
    """

    def __init__(self, constructor: Callable[[], Any], max_failures: int = 0):
        self.envs: dict[str, Any] = {}
        self.max_failures = max_failures
        self.episode, self.stride = None, 1
        self.obs: dict = {}  # the newest
        self.change("", constructor)

    def change(self, name: str, constructor: Callable[[], Any], keep: int = 1) -> tuple:
        if name not in self.envs:
            self.close(keep - 1)
            self.envs[name] = constructor()
        self.env, self.failures = self.envs[name], 0  # failures: episodes in a row that failed
        return self.spaces()

    def spaces(self) -> tuple:
        return self.env.observation_space, self.env.action_space

    def reset(self, episode: int, stride: int = 1) -> dict:
        self.episode, self.stride = episode, stride
        problem = ""
        while True:
            try:
                self.obs = self.env.reset(episode)
                break
            except (FileNotFoundError, ImportError):  # fails for every episode
                raise
            except Exception as error:
                failure = self._failed(error)
                problem, episode = problem or failure, episode + SUBSTITUTE
        if problem:
            notes.note(f"episode {self.episode} of an env does not start ({problem}): another one takes its place")
        return self.obs

    def step(self, action: dict | None) -> Transition | None:
        if action is None:
            return None
        try:
            self.obs, reward, done, info = self.env.step(action)
            self.failures = 0 if done else self.failures
        except ActionError:
            raise
        except Exception as error:
            reward, done, info = 0.0, True, {"failure": self._failed(error)}
            self.obs = {**self.obs, "is_first": False, "is_last": True, "is_terminal": False}
        obs = self.obs
        return Transition(
            obs, reward, done, info, self.reset(self.episode + self.stride, self.stride) if done else None
        )

    def _failed(self, error: Exception) -> str:
        """Counts an error of the env, and raises it if there are too many. Returns its first line."""
        self.failures += 1
        if self.failures > self.max_failures:
            raise error
        return (str(error).strip() or type(error).__name__).splitlines()[0]

    def restore(self, episode: int, actions: list[dict]) -> list[Transition]:
        self.failures = 0
        return [Transition(self.reset(episode), 0.0, False, {}, None), *map(self.step, actions)]

    def close(self, keep: int = 0) -> None:
        """Closes all envs but the `keep` oldest: who takes turns finds the oldest again."""
        while len(self.envs) > keep:
            with contextlib.suppress(Exception):  # nothing of the env is needed any more
                self.envs.popitem()[1].close()


class InProcess:
    """A host in this process: works when its result is fetched."""

    def __init__(self, constructor: Callable[[], Any], index: int, max_failures: int):
        self.host = Host(constructor, max_failures)
        self.request = ("spaces", ())

    def post(self, method: str, *args) -> None:
        self.request = (method, args)

    def result(self):
        method, args = self.request
        return getattr(self.host, method)(*args)

    def stop(self) -> None:
        self.host.close()

    def join(self, deadline: float) -> None:
        pass


class Worker:
    """A host in its own process: works from `post` on, `result` waits for it."""

    def __init__(self, constructor: Callable[[], Any], index: int, max_failures: int):
        self.index = index
        self.pipe, theirs = Pipe()
        root = str(Path(__file__).resolve().parent.parent)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        env.setdefault("OMP_NUM_THREADS", "1")  # the parallelism is in the workers
        # What an env leaves behind goes back to the system: with thresholds that move, a worker that changes its env a
        # few times holds twice the memory.
        env.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 20))
        env.setdefault("MALLOC_TRIM_THRESHOLD_", str(32 << 20))
        # -P: not the folder where the program was started, which may hold another `envs`
        command = [sys.executable, "-P", "-m", "envs.parallel", str(theirs.fileno())]
        # A child inherits its parent's mask: blocked here, Ctrl-C cannot reach it before it ignores signals itself.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()  # so that the pipe ends when the worker does
        self.pending = False
        # Pickled twice: the worker can only unpickle the constructor once it has our sys.path.
        self._send((sys.path, pickle.dumps((constructor, max_failures))))

    def post(self, method: str, *args) -> None:
        if self.pending:  # interrupted between send and receive
            self.result()
        self._send((method, args))

    def result(self):
        try:
            answer = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self._died()
        self.pending = False
        value, error, lines = pickle.loads(answer)
        for line in lines:
            notes.note(line)
        if error is None:
            return value
        kind, message, where = error
        if kind:
            raise kind(message) from RuntimeError(f"in the worker of env {self.index}:\n{where}")
        raise RuntimeError(f"env {self.index} raised {message}\nin its worker:\n{where}")

    def stop(self) -> None:
        self.pipe.close()  # ends the worker after its current request

    def join(self, deadline: float) -> None:
        """Waits for the process to end until `deadline` (time.monotonic()), then kills it."""
        try:
            self.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _send(self, message) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            self._died()
        self.pending = True

    def _died(self):
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "unknown: it closed its pipe"
        raise WorkerDied(f"the worker of env {self.index} died (exit code {code})") from None


class EnvGroup:
    """Envs that step together; constructors are picklable, e.g. `functools.partial(envs.make, task, seed=1)`.

    An error of an env ends its episode (`Host`), until `max_failures` episodes in a row have failed.

    Raises what an env raises: ValueError, FileNotFoundError and ImportError unchanged, others as RuntimeError; each
    with the worker's traceback. A worker that dies raises WorkerDied. A worker that hangs is waited for: a signal
    handler that raises ends the wait, and then the group can only be closed.
    """

    def __init__(self, constructors: list[Callable[[], Any]], parallel: bool, max_failures: int = 0):
        self.hosts = []
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            for index, constructor in enumerate(constructors):  # all workers import at the same time
                self.hosts.append((Worker if parallel else InProcess)(constructor, index, max_failures))
            self.observation_space, self.action_space = self._results()[0]
            on_error.pop_all()

    def __len__(self) -> int:
        return len(self.hosts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def change(self, name: str, constructors: list[Callable[[], Any]], keep: int = 1) -> None:
        """Puts other envs into the same processes, which saves their imports; `reset` must follow.

        name: of these envs; "" are the first ones. A group holds up to `keep` sets of envs, and makes one that it does
        not hold in place of the newest.
        """
        self._post("change", [(name, constructor, keep) for constructor in constructors])
        self.observation_space, self.action_space = self._results()[0]

    def reset(self, episodes: list[int], stride: int = 1) -> list[dict]:
        """Resets each env to its given episode; first observations, in env order.

        stride: difference between the numbers of an env's following episodes.
        """
        self._post("reset", [(episode, stride) for episode in episodes])
        return self._results()

    def send(self, actions: list[dict | None]) -> None:
        """Starts a step in every env, without waiting for it. None: that env does nothing and returns None."""
        self._post("step", [(action,) for action in actions])

    def receive(self) -> list[Transition | None]:
        """Waits for the steps that `send` started, in env order. An env that is done has started its next episode."""
        return self._results()

    def restore(self, episodes: list[int], actions: list[list[dict]]) -> list[list[Transition]]:
        """Per env: resets to an episode (a Transition of the first obs, reward 0), then steps the recorded actions."""
        self._post("restore", list(zip(episodes, actions, strict=True)))
        return self._results()

    def close(self) -> None:
        """Closes all envs and ends their processes, by force after PATIENCE. Can be called again."""
        hosts, self.hosts = self.hosts, []
        for host in hosts:
            host.stop()
        deadline = time.monotonic() + PATIENCE
        for host in hosts:
            host.join(deadline)

    def _post(self, method: str, args: list[tuple]) -> None:
        if len(args) != len(self.hosts):
            raise ValueError(f"{method} for {len(args)} envs, but the group has {len(self.hosts)}")
        for host, arg in zip(self.hosts, args, strict=True):
            host.post(method, *arg)

    def _results(self) -> list:
        return [host.result() for host in self.hosts]


def work(fd: int) -> None:
    """A worker's loop: make the env, then answer each (method, args) with (value, error, notes), pickled."""
    notes.outbox = []
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.set_inheritable(fd, False)  # otherwise a child of the env would hold the pipe open
    pipe, host = Connection(fd), None
    try:
        sys.path[:], constructor = pipe.recv()
        method, args = "spaces", ()
        while True:
            try:
                host = host or Host(*pickle.loads(constructor))
                answer = pickle.dumps((getattr(host, method)(*args), None, notes.outbox))
            except Exception as error:
                kind = next((k for k in USER_ERRORS if isinstance(error, k)), None)
                message = str(error) if kind else repr(error)
                answer = pickle.dumps((None, (kind, message, traceback.format_exc()), notes.outbox))
            notes.outbox.clear()
            pipe.send_bytes(answer)
            method, args = pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the pipe or is gone
    finally:
        if host is not None:
            host.close()


if __name__ == "__main__":
    from envs.parallel import work as _work  # imported as a module, so that a Transition unpickles in the parent

    _work(int(sys.argv[1]))
