"""Env workers: the same numbers as in one process, and what happens when an env, a worker or the parent fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import gym
import numpy as np
import pytest
from test_backgrounds import flat_frames, write_video

import envs
from envs import parallel
from envs.parallel import EnvGroup, Transition, WorkerDied

ROOT = Path(__file__).resolve().parent.parent


class Counter:
    """Counts its steps; an episode has 3. The action can make it fail, sleep, or report on its process."""

    observation_space = gym.spaces.Dict({"count": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, seed=0, fail=None, folder=None):
        self.seed, self.folder = seed, folder
        if fail is not None:
            raise fail

    def reset(self, episode=None):
        self.episode, self.count = episode, 0
        return self._obs()

    def step(self, action):
        self.count += 1
        info = {}
        match action.get("do"):
            case "sleep":
                time.sleep(action["seconds"])
            case "raise":
                raise action["error"]
            case "exit":
                os._exit(3)
            case "tell":
                info = {"modules": set(sys.modules), "pid": os.getpid(), "parent": os.getppid(), "path": sys.path}
            case "lambda":
                info = {"bad": lambda: None}
            case "spawn":  # a child that outlives a killed worker
                info = {"pid": subprocess.Popen(["sleep", "60"]).pid}
        return self._obs(), float(self.count), self.count == 3, info

    def close(self):
        if self.folder:
            (Path(self.folder) / f"closed{self.seed}").touch()

    def _obs(self):
        done = self.count == 3
        flags = {"is_first": self.count == 0, "is_last": done, "is_terminal": done}
        return {"count": np.array([self.episode, self.count], np.float32), **flags}


class TwoWords(Exception):
    """An exception that pickle cannot restore: its constructor takes two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class Unpicklable(Counter):
    def reset(self, episode=None):
        raise TwoWords("no", "reset")


def group(count=2, parallel=True, **settings):
    return EnvGroup([partial(Counter, seed=i, **settings) for i in range(count)], parallel)


def alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    else:
        assert a == b


def test_workers_and_one_process_give_the_same_transitions():
    """Two real envs across ends of episodes; restore reproduces what was played."""
    constructors = [partial(envs.make, "dmc_reacher_easy", seed=i, time_limit=8) for i in range(2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2))
    with EnvGroup(constructors, True) as apart, EnvGroup(constructors, False) as together:
        assert apart.observation_space == together.observation_space == envs.make("dmc_reacher_easy").observation_space
        assert apart.action_space == together.action_space and len(apart) == 2
        firsts = apart.reset([0, 5])
        for ours, theirs in zip(firsts, together.reset([0, 5]), strict=True):
            same(ours, theirs)
        played = []
        for pair in actions:
            for each in (apart, together):
                each.send([{"action": a} for a in pair])
            transitions = apart.receive()
            for ours, theirs in zip(transitions, together.receive(), strict=True):
                assert type(ours) is Transition
                for a, b in zip(ours, theirs, strict=True):
                    same(a, b)
            played.append(transitions)
        assert [t[0].done for t in played] == [False, False, False, True, False, False]
        assert all((t.first is not None) == t.done for pair in played for t in pair)
        assert played[3][0].first["is_first"] and played[3][0].obs["is_last"]

        # The episodes that were running (1 and 6), from their number and their actions.
        running = [[{"action": pair[i]} for pair in actions[4:]] for i in range(2)]
        for restored in (apart.restore([1, 6], running), together.restore([1, 6], running)):
            for i in range(2):
                assert [len(r) for r in restored] == [3, 3]
                same(restored[i][0].obs, played[3][i].first)
                assert restored[i][0][1:] == (0.0, False, {}, None)
                for t, (before, again) in enumerate(zip(played[4:], restored[i][1:], strict=True)):
                    same(before[i].obs, again.obs)
                    assert before[i].reward == again.reward, t


@pytest.mark.parametrize("parallel", [True, False])
def test_a_done_env_begins_its_next_episode(parallel):
    with group(2, parallel) as g:
        g.reset([4, 9], stride=5)
        for step in range(1, 8):
            g.send([{}, {}])
            for i, t in enumerate(g.receive()):
                episode = (4, 9)[i] + 5 * ((step - 1) // 3)
                np.testing.assert_array_equal(t.obs["count"], [episode, (step - 1) % 3 + 1])
                assert t.done == (step % 3 == 0)
                if t.done:
                    np.testing.assert_array_equal(t.first["count"], [episode + 5, 0])
        with pytest.raises(ValueError, match="2"):
            g.send([{}])


class Meeting(Counter):
    """Steps by waiting for its partner's file, after writing its own."""

    def __init__(self, me):
        super().__init__()
        self.me = me

    def step(self, action):
        folder = Path(action["folder"])
        (folder / str(self.me)).touch()
        wait_until(lambda: (folder / str(1 - self.me)).exists())
        return super().step(action)


def test_all_envs_step_at_the_same_time_and_send_does_not_wait(tmp_path):
    """Each of two envs ends its step only when the other has begun its own."""
    with EnvGroup([partial(Meeting, me) for me in range(2)], True) as g:
        g.reset([0, 0])
        g.send([{"folder": tmp_path}, {"folder": tmp_path}])
        assert [t.reward for t in g.receive()] == [1, 1]


def test_restore_works_in_all_envs_at_once(tmp_path):
    with EnvGroup([partial(Meeting, me) for me in range(2)], True) as g:
        restored = g.restore([2, 3], [[{"folder": tmp_path}], [{"folder": tmp_path}] * 2])
    assert [len(r) for r in restored] == [2, 3]
    np.testing.assert_array_equal(restored[1][2].obs["count"], [3, 2])


def test_workers_do_not_import_the_agent_and_find_the_parents_modules():
    with group(1) as g:
        g.reset([0])
        g.send([{"do": "tell"}])
        info = g.receive()[0].info
        assert info["parent"] == os.getpid() != info["pid"]
        assert info["path"] == sys.path  # or Counter, a class of this test, would not be there
        assert not {"torch", "dreamer", "models", "networks", "tools"} & info["modules"]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError])
def test_a_users_error_is_passed_on_unchanged(kind, parallel):
    with pytest.raises(kind) as error:
        group(3, parallel, fail=kind("--flag is wrong: expected right"))
    assert str(error.value) == "--flag is wrong: expected right"
    if parallel:
        assert "in the worker of env 0" in str(error.value.__cause__)
        assert "Traceback" in str(error.value.__cause__) and "test_parallel.py" in str(error.value.__cause__)


def test_a_users_error_in_a_real_worker():
    with pytest.raises(ValueError, match="no such mode"):
        EnvGroup([partial(envs.make, "dmc_walker_walk_vdeo")] * 2, True)
    with EnvGroup([partial(envs.make, "dmc_cup_catch", image=False)], True) as g:
        g.reset([0])
        g.send([{"action": np.array([np.nan, 0])}])
        with pytest.raises(ValueError, match="finite"):
            g.receive()


def test_another_exception_names_the_env_and_includes_the_traceback():
    with group() as g:
        g.reset([0, 0])
        g.send([{}, {"do": "raise", "error": KeyError("lost")}])
        with pytest.raises(RuntimeError, match=r"env 1 raised KeyError\('lost'\)") as error:
            g.receive()
        assert 'raise action["error"]' in str(error.value)
        g.send([{}, {}])  # the caller may catch it and continue
        assert [t.reward for t in g.receive()] == [2, 2]


def test_a_broken_pipe_within_an_env_is_not_mistaken_for_a_dead_parent():
    with group(1) as g:
        g.reset([0])
        g.send([{"do": "raise", "error": BrokenPipeError("ffmpeg")}])
        with pytest.raises(RuntimeError, match=r"env 0 raised BrokenPipeError\('ffmpeg'\)"):
            g.receive()


def test_a_result_that_does_not_pickle():
    with group(1) as g:
        g.reset([0])
        g.send([{"do": "lambda"}])
        with pytest.raises(RuntimeError, match=r"(?s)env 0 raised .*lambda"):
            g.receive()


def test_an_exception_that_does_not_pickle():
    with EnvGroup([Unpicklable], True) as g, pytest.raises(RuntimeError, match=r"TwoWords.*no reset"):
        g.reset([0])


def test_a_constructor_that_does_not_unpickle():
    class Local(Counter):
        pass

    with pytest.raises(Exception, match="Local"):
        EnvGroup([Local], True)
    code = "from envs.parallel import EnvGroup\ndef make(): pass\nEnvGroup([make], True)"  # make is in __main__
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 1 and "env 0 raised AttributeError" in run.stderr and "make" in run.stderr


@pytest.mark.parametrize("moment", ["idle", "stepping"])
def test_a_killed_worker_is_an_error_not_a_hang(moment):
    with group() as g:
        g.reset([0, 0])
        victim = g.hosts[1].process.pid
        if moment == "stepping":
            g.send([{}, {"do": "sleep", "seconds": 60}])
            threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
            with pytest.raises(WorkerDied, match=r"env 1 died \(exit code -9\)"):
                g.receive()
        else:
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(WorkerDied, match=r"env 1 died \(exit code -9\)"):
                g.send([{}, {}])
                g.receive()
        pids = [host.process.pid for host in g.hosts]
    assert not any(map(alive, pids))
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)  # and no zombies


def test_a_worker_that_exits_and_leaves_a_child_behind():
    with group(1) as g:
        g.reset([0])
        g.send([{"do": "spawn"}])
        child = g.receive()[0].info["pid"]
        try:
            g.send([{"do": "exit"}])
            with pytest.raises(WorkerDied, match=r"exit code 3"):
                g.receive()
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_signal_ends_the_wait_for_workers_that_hang(monkeypatch):
    """Handlers that raise, like those of a run; closing then waits for all workers at once, and kills them."""
    monkeypatch.setattr(parallel, "PATIENCE", 0.5)

    class Signal(Exception):
        pass

    def handle(*_):
        raise Signal

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        g = group(3)
        g.reset([0, 0, 0])
        pids = [host.process.pid for host in g.hosts]
        g.send([{"do": "sleep", "seconds": 600}] * 3)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Signal):
            g.receive()
        g.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


def test_close_ends_all_workers(tmp_path):
    g = group(3, folder=tmp_path)
    pids = [host.process.pid for host in g.hosts]
    g.close()
    g.close()
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed0", "closed1", "closed2"]


def test_a_failed_start_leaves_no_worker():
    before = children()
    with pytest.raises(RuntimeError, match="env 1 raised ZeroDivisionError"):
        EnvGroup([Counter, partial(Counter, fail=ZeroDivisionError("1/0")), Counter], True)
    assert children() <= before


def children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("parallel", [True, False])
def test_envs_change_in_the_same_processes(parallel, tmp_path):
    """To the numbers of new envs; the newest that is not wanted any more is closed."""
    tasks = {name: partial(envs.make, f"dmc_{name}", image=False) for name in ("cartpole_balance", "reacher_easy")}

    def first(group):
        return [obs["position"].tolist() for obs in group.reset([3, 4])]

    with EnvGroup([partial(Counter, folder=tmp_path)] * 2, parallel) as g:
        processes = [host.process.pid for host in g.hosts] if parallel else []
        for keep in (1, 2):
            for name, make in tasks.items():
                g.change(name, [make] * 2, keep)
                with EnvGroup([make] * 2, False) as new:
                    assert first(g) == first(new)
                    assert (g.observation_space, g.action_space) == (new.observation_space, new.action_space)
            assert (tmp_path / "closed0").exists()
        g.change("", [Counter] * 2, 2)
        assert g.reset([7, 8])[1]["count"].tolist() == [8, 0]
        with pytest.raises((RuntimeError, ZeroDivisionError), match="1/0"):
            g.change("bad", [partial(Counter, fail=ZeroDivisionError("1/0"))] * 2)
        assert processes == ([host.process.pid for host in g.hosts] if parallel else [])


def test_an_unread_result_is_not_mistaken_for_the_next_one():
    with group(1) as g:
        g.reset([0])
        g.send([{}])  # an interrupt here: never received
        np.testing.assert_array_equal(g.reset([7])[0]["count"], [7, 0])
        g.send([{}])
        np.testing.assert_array_equal(g.receive()[0].obs["count"], [7, 1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_ignore_signals_that_the_parent_handles(number):
    with group(1) as g:
        g.reset([0])
        g.send([{"do": "sleep", "seconds": 0.3}])
        os.kill(g.hosts[0].process.pid, number)
        assert g.receive()[0].reward == 1
        os.kill(g.hosts[0].process.pid, number)
        g.send([{}])
        assert g.receive()[0].reward == 2


def test_signals_while_the_worker_still_imports():
    """The signal mask that the worker inherits blocks them until it ignores them."""
    g = None
    seen = []

    def interrupt():
        wait_until(lambda: children() - before)
        pid = int((children() - before).pop())
        for _ in range(50):
            os.kill(pid, signal.SIGINT)
            time.sleep(0.01)
        seen.append(pid)

    before = children()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        g = group(1)
        assert len(g.reset([0])) == 1
        thread.join()
        assert seen == [g.hosts[0].process.pid]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}
    finally:
        thread.join()
        if g:
            g.close()


@pytest.mark.slow
def test_a_slow_import(tmp_path, monkeypatch):
    (tmp_path / "slowly.py").write_text("import time; time.sleep(2)\nfrom test_parallel import Counter\n")
    monkeypatch.syspath_prepend(tmp_path)
    import slowly  # found in the worker by our sys.path

    with EnvGroup([slowly.Counter, slowly.Counter], True) as g:
        assert len(g.reset([0, 0])) == 2


PARENT = """
import os, sys
from functools import partial
from envs.parallel import EnvGroup
from test_parallel import Counter
g = EnvGroup([partial(Counter, seed=i) for i in range(2)], True)
g.reset([0, 0])
if sys.argv[1] == "stepping":
    g.send([{"do": "sleep", "seconds": 1}] * 2)
print(*[host.process.pid for host in g.hosts], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["idle", "stepping"])
def test_workers_end_with_a_killed_parent(moment):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, moment], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_parent_that_forgets_to_close_leaves_no_worker(tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    run = subprocess.run(
        [sys.executable, "-c", PARENT, "idle"], env=environ, input="", capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0 and run.stderr == ""
    wait_until(lambda: not any(alive(int(pid)) for pid in run.stdout.split()))


def test_an_envs_folder_where_the_program_was_started_is_not_imported(tmp_path):
    """A worker runs the program's own code, wherever the user stands."""
    (tmp_path / "here" / "envs").mkdir(parents=True)
    (tmp_path / "here" / "envs" / "__init__.py").write_text("raise SystemExit('the wrong envs')")
    program = tmp_path / "program.py"
    program.write_text(
        f"import functools, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport envs\nfrom envs.parallel import EnvGroup\n"
        "make = functools.partial(envs.make, 'dmc_cartpole_balance', image=False)\n"
        "with EnvGroup([make] * 2, parallel=True) as group:\n    print(len(group.reset([0, 1])))\n"
    )
    done = subprocess.run([sys.executable, program], cwd=tmp_path / "here", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_note_of_a_worker_is_printed_once_by_its_parent(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import functools, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport envs\nfrom envs.parallel import EnvGroup\n"
        "make = functools.partial(envs.make, sys.argv[1], size=(16, 16), assets=sys.argv[2])\n"
        "with EnvGroup([make] * 2, parallel=sys.argv[3] == 'parallel') as group:\n"
        "    group.reset([0, 1])\n"
        "    for _ in range(12):\n"
        "        group.send([{'action': group.action_space.sample()}] * 2)\n"
        "        group.receive()\n"
    )
    for i in range(10):
        write_video(tmp_path / "dmcgb" / "video_easy" / f"video{i}.mp4", flat_frames([90, 90]))
    for task, lines in (("dmc_reacher_easy_video_easy", 1), ("dmc_cartpole_swingup_video_easy", 0)):
        for where in ("parallel", "here"):
            command = [sys.executable, program, task, tmp_path, where]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0 and done.stderr.count("\n") == lines, done.stderr
            assert not lines or f"{task}: the distraction replaces 0.0% of the pixels" in done.stderr
