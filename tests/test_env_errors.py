"""Errors of an env in training, in evaluation and while a run is restored: they cost an episode, not the run."""

import json
import os
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_distributed import run_ranks
from test_dreamer import TINY, entries, main, run, start
from test_replay import fill, make_row, rng

import dreamer
from envs.parallel import SUBSTITUTE, EnvGroup
from envs.wrappers import ActionError, CheckAction, CheckFinite
from run import checkpoint, evaluate
from run.episodes import FILE_NAME, episode_key
from run.prefetch import Prefetcher
from run.replay import Replay


class Fragile:
    """Fails in the third step of some episodes, at the reset of others, or in every step."""

    observation_space = gym.spaces.Dict({"count": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space, seed = gym.spaces.Box(-1.0, 1.0, (1,), np.float32), 0

    def __init__(self, steps=(), resets=(), every_step=False):
        self.steps, self.resets, self.every_step, self.episode, self.t = steps, resets, every_step, -1, 0

    def obs(self):
        flags = {"is_first": self.t == 0, "is_last": self.t == 5, "is_terminal": False}
        return {"count": np.array([self.episode, self.t], np.float32), **flags}

    def reset(self, episode=None):
        self.episode, self.t = self.episode + 1 if episode is None else episode, 0
        if episode in self.resets:
            raise RuntimeError(f"episode {episode} has no start")
        return self.obs()

    def step(self, action):
        self.t += 1
        if self.every_step or (self.episode in self.steps and self.t == 3):
            raise RuntimeError("Physics state is invalid.\nWarning(s) raised: mjWARN_BADQACC")
        return self.obs(), 1.0, self.t == 5, {}

    def close(self):
        raise RuntimeError("not closed")


class Infinite(Fragile):
    def step(self, action):
        obs, *rest = super().step(action)
        if self.episode in (0, 1) and self.t == 2:
            obs["count"] = np.array([np.inf, 0], np.float32)
        return obs, *rest


def checked(env):
    return CheckAction(CheckFinite(env, "fragile"))


def make(kind=Fragile, **settings):
    return checked(kind(**settings))


def steps(group, count):
    found = []
    for _ in range(count):
        group.send([{"action": np.zeros(1, np.float32)}])
        found += group.receive()
    return found


@pytest.mark.parametrize("parallel", [False, True])
def test_an_error_in_a_step_cuts_the_episode(parallel, capfd):
    with EnvGroup([partial(make, steps=(4,))], parallel, max_failures=1) as group:
        group.reset([4])
        *_, before, cut, after = steps(group, 4)
        assert cut.done and cut.reward == 0 and cut.info == {"failure": "Physics state is invalid."}
        np.testing.assert_array_equal(cut.obs["count"], before.obs["count"])
        assert (cut.obs["is_last"], cut.obs["is_terminal"]) == (True, False)
        assert cut.first["is_first"] and cut.first["count"].tolist() == [5, 0] and after.obs["count"].tolist() == [5, 1]
        # a resumed run steps it again
        (history,) = group.restore([4], [[{"action": np.zeros(1, np.float32)}] * 3])
        assert [one.done for one in history] == [False, False, False, True]
        assert history[-1].info == cut.info and history[-1].first["count"].tolist() == [5, 0]
    assert capfd.readouterr().err == ""  # an env that cannot be closed is not reported


@pytest.mark.parametrize("parallel", [False, True])
def test_too_many_errors_in_a_row_are_raised(parallel):
    with EnvGroup([partial(make, every_step=True)], parallel, max_failures=2) as group:
        group.reset([0])
        assert [one.done for one in steps(group, 2)] == [True, True]
        with pytest.raises(RuntimeError, match="Physics state is invalid"):
            steps(group, 1)
    with EnvGroup([partial(make, steps=(0, 2, 4, 6))], parallel, max_failures=1) as group:  # no two failures in a row
        group.reset([0])
        assert sum("failure" in one.info for one in steps(group, 40)) == 4
    with EnvGroup([partial(make, steps=(0,))], parallel) as group, pytest.raises(RuntimeError):
        group.reset([0])
        steps(group, 3)


def test_an_episode_that_does_not_start_is_replaced_by_the_same_one_every_time(capfd):
    with EnvGroup([partial(make, resets=(3, 3 + SUBSTITUTE))], False, max_failures=2) as group:
        (obs,) = group.reset([3])
        assert obs["count"].tolist() == np.float32([3 + 2 * SUBSTITUTE, 0]).tolist()
        *_, last = steps(group, 5)
        assert last.first["count"].tolist() == [4, 0]  # its number is the third's all the same
        ((again, *_),) = group.restore([3], [[]])
        np.testing.assert_array_equal(again.obs["count"], obs["count"])
    assert capfd.readouterr().err.count("episode 3 of an env does not start (episode 3") == 1
    with EnvGroup([partial(make, resets=(3,))], False) as group, pytest.raises(RuntimeError, match="no start"):
        group.reset([3])


def test_observations_that_are_not_finite_are_errors_and_bad_actions_are_not():
    with EnvGroup([partial(make, Infinite)], False, max_failures=2) as group:
        group.reset([0])
        found = steps(group, 4)
        assert [one.done for one in found] == [False, True, False, True]
        assert "count" in found[1].info["failure"] and np.isfinite(found[1].obs["count"]).all()
        group.send([{"action": np.array([np.nan], np.float32)}])
        with pytest.raises(ActionError, match="finite"):
            group.receive()


class Still:
    """An agent that does nothing."""

    keys, device = ("count",), "cpu"

    def act(self, obs, state, training):
        return torch.zeros(len(obs["is_first"]), 1), state


def test_an_evaluation_counts_the_episodes_that_did_not_fail(capsys):
    with EnvGroup([partial(make, steps=(2, 3))] * 2, False, max_failures=5) as group:
        scores, videos, _ = evaluate.play(Still(), group, 6, 0)
    assert scores == {"return": [5.0] * 4, "length": [5.0] * 4} and videos == []
    assert evaluate.summary(scores)["episodes"] == 4
    assert capsys.readouterr().err.count("of the evaluation failed and does not count: Physics state is invalid") == 2
    with EnvGroup([partial(make, every_step=True)], False, max_failures=5) as group:
        assert evaluate.summary(evaluate.play(Still(), group, 3, 0).scores) == {"episodes": 0}
        with pytest.raises(RuntimeError, match="Physics"):  # too many in a row
            evaluate.play(Still(), group, 3, 0)


def add(replay, episode, rows, dropped):
    for t in range(rows):
        replay.add(0, make_row(0, episode, t), episode, t == rows - 1, dropped)


@given(st.lists(st.tuples(st.integers(2, 12), st.booleans()), min_size=1, max_size=12), st.integers(1, 30))
def test_a_resumed_replay_holds_the_same_whatever_was_dropped(episodes, capacity):
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(folder, capacity)
        for number, (rows, dropped) in enumerate(episodes):
            add(replay, number, rows, dropped)
            again = Replay(folder, capacity)
            again.load_state_dict(replay.state_dict())
            again.load()
            for name in ("steps", "episodes", "total_steps", "total_episodes", "finished"):
                assert getattr(again, name) == getattr(replay, name), name
            if replay.steps:
                drawn = replay.draw(rng(), 8, 20)
                assert again.draw(rng(), 8, 20) == drawn and not replay.is_dropped(drawn)
        assert bool(replay.steps) == (not all(dropped for _, dropped in episodes))
        assert replay.total_steps == sum(rows - 1 for rows, _ in episodes)


def test_batches_drawn_ahead_are_none_of_a_dropped_episode(tmp_path):
    replay = Replay(tmp_path, 1000)
    prefetcher = Prefetcher(replay, rng(1), 4, 10, depth=2)
    fill(replay, 0, 0, 8)
    prefetcher.prefetch()
    fill(replay, 0, 1, 100, finish=False)
    prefetcher.next()
    prefetcher.prefetch()  # one of episode 0 and one of both
    state = prefetcher.state_dict()
    assert [episode_key(0, 1) in str(segments) for segments in state["pending"]] == [False, True]
    replay.add(0, make_row(0, 1, 100), 1, last=True, dropped=True)
    assert prefetcher.state_dict() == {**state, "pending": state["pending"][:1]}
    assert all((prefetcher.next()["id"][..., 1] == 0).all() for _ in range(3))
    prefetcher.close()


MODULE = '''
import gymnasium, numpy as np
from gymnasium import spaces

class Diverges(gymnasium.Env):
    """In about one of four episodes, at step 25."""
    metadata = {"render_modes": []}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    limit = 0.75

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start = 0, float(self.np_random.uniform())
        return self.observation(), {}

    def observation(self):
        return np.array([self.start, self.t / 40, 0], np.float32)

    def step(self, action):
        if self.t == 24 and self.start > self.limit:
            raise RuntimeError("Physics state is invalid. Warning(s) raised: mjWARN_BADQACC")
        self.t += 1
        return self.observation(), 0.1, False, self.t >= 40, {}

class Fails(Diverges):
    limit = 0

gymnasium.register("Diverges-v0", Diverges)
gymnasium.register("Fails-v0", Fails)
'''


FLAGS = ["--configs", "dmc_proprio", "--task", "gym_diverging:Diverges-v0", *TINY, "--action_repeat", "1"]
FLAGS += ["--device", "cpu", "--compile", "False"]
DROP = [*FLAGS, "--failed_episodes", "drop", "--parallel", "False"]


@pytest.fixture
def diverging(tmp_path, monkeypatch):
    """The module of the env, for this process and others."""
    (tmp_path / "diverging.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.syspath_prepend(tmp_path)


def episodes_of(logdir):
    return [row for row in entries(logdir) if "train_episodes" in row]


def agent_of(logdir):
    return checkpoint.load_checkpoint(logdir / "latest.pt")["agent"]["agent"]


@pytest.mark.slow
def test_a_dropped_episode_is_not_learned_from_and_a_run_resumes_to_the_bit(diverging, tmp_path, capsys):
    # seed 5: the first episodes of both envs fail, and then the fourth of the first env
    flags = [*DROP, "--seed", "5", "--log_every", "50", "--eval_every", "60", "--eval_episode_num", "1", "--steps"]
    assert dreamer.main([*flags, "300", "--logdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("was dropped at its step 25 by an error: Physics state is invalid.") == 3
    rows = episodes_of(tmp_path / "run")
    assert [row["train_episodes"] for row in rows] == [*range(1, 9)]
    dropped = [row for row in rows if "train_failures" in row]
    assert dropped == [
        {"step": step, "train_episodes": number, "train_failures": count}
        for count, (step, number) in enumerate([(50, 1), (50, 2), (260, 7)], 1)
    ]
    assert all(row["train_return"] == pytest.approx(4) for row in rows if row not in dropped)
    # the replay lacks the steps of dropped episodes: all of the first 50, and 75 of the 300
    replay_steps = {row["step"]: row["replay_steps"] for row in entries(tmp_path / "run") if "replay_steps" in row}
    assert replay_steps[50] == 0 and replay_steps[300] == 300 - 3 * 25
    failed = [row for row in entries(tmp_path / "run") if "eval_failures" in row]
    assert failed and all(row == {"step": row["step"], "eval_episodes": 0, "eval_failures": 1} for row in failed)
    # stopped before, within and after the steps that fail
    for steps in (46, 48, 50, 258, 260, 300):
        assert dreamer.main([*flags, str(steps), "--eval_episode_num", "0", "--logdir", str(tmp_path / "parts")]) == 0
    assert episodes_of(tmp_path / "parts") == rows
    torch.testing.assert_close(agent_of(tmp_path / "parts"), agent_of(tmp_path / "run"), rtol=0, atol=0)


@pytest.mark.slow
def test_a_set_whose_episodes_all_fail_is_named_and_the_others_are_played(diverging, tmp_path, monkeypatch, capsys):
    logdir = tmp_path / "run"
    assert dreamer.main([*DROP, "--steps", "60", "--eval_episode_num", "0", "--logdir", str(logdir)]) == 0
    sets = [f"gym_diverging:{name}-v0" for name in ("Fails", "Diverges")]
    monkeypatch.setattr(evaluate, "find_tasks", lambda *_: sets)  # stands in for the sets of a suite
    assert dreamer.main(["--eval_only", "--logdir", str(logdir), "--episodes", "4"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"dreamer.py: {sets[0]}: every episode of the evaluation failed"
    (row,) = (json.loads(line) for line in (logdir / "eval.jsonl").read_text().splitlines())
    assert row["task"] == sets[1] and row["episodes"] > 0


@pytest.mark.slow
def test_ranks_that_drop_episodes_resume_to_the_bit(diverging, tmp_path):
    # the first two episodes of rank 1 fail, none of rank 0
    flags = [*DROP, "--seed", "0", "--eval_episode_num", "0", "--steps"]
    for logdir, steps in (("run", 150), ("parts", 50), ("parts", 150)):
        code, _, err = run_ranks(*flags, steps, "--logdir", tmp_path / logdir)
        assert code == 0, err
    rows = episodes_of(tmp_path / "run")
    assert [row.get("train_failures") for row in rows] == [1, None, 2] and episodes_of(tmp_path / "parts") == rows
    torch.testing.assert_close(agent_of(tmp_path / "parts"), agent_of(tmp_path / "run"), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["cut", "drop"])
def test_a_killed_run_counts_its_failed_episodes(diverging, tmp_path, setting):
    logdir, flags = tmp_path / "run", [*DROP, "--failed_episodes", setting, "--seed", "5", "--train_ratio", "1"]
    flags += ["--envs", "1", "--checkpoint_every", "100000", "--eval_every", "0", "--logdir", logdir]
    process = start(*flags, "--steps", "100000")
    log = logdir / "metrics.jsonl"
    while not log.exists() or log.read_text().count("train_failures") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = episodes_of(logdir)
    code, _, err = run(*flags, "--steps", before[-1]["step"] + 200)
    assert code == 0, err
    files = [re.fullmatch(FILE_NAME, path.name) for path in (logdir / "train_eps").iterdir()]
    rows = episodes_of(logdir)
    assert rows[: len(before)] == before
    assert [row["train_episodes"] for row in rows] == [*range(1, len(rows) + 1)] and len(files) == len(rows)
    failed = [row for row in rows if "train_failures" in row]
    assert [row["train_failures"] for row in failed] == [*range(1, len(failed) + 1)] and len(failed) > 3
    # the steps of dropped episodes are counted
    assert rows[-1]["step"] == sum(int(name[4]) - 1 for name in files)


@pytest.mark.slow
def test_a_run_survives_its_diverging_episodes(diverging, tmp_path):
    flags = [*FLAGS, "--steps", "600", "--logdir"]
    code, out, err = run(*flags, tmp_path / "run")
    assert code == 0, err
    cut = [line for line in entries(tmp_path / "run") if "train_failures" in line]
    assert len(cut) >= 2 and [line["train_failures"] for line in cut] == list(range(1, len(cut) + 1))
    assert all(line["train_length"] == 25 for line in cut)
    assert err.count("was cut at its step 25 by an error: Physics state is invalid.") == len(cut)
    terminal = [np.load(path)["is_terminal"].any() for path in (tmp_path / "run" / "train_eps").iterdir()]
    assert not any(terminal)
    # a resumed run gives the same rows, wherever it stopped
    assert run(*flags, tmp_path / "parts", "--steps", "250")[0] == 0
    assert main(*flags, tmp_path / "parts", "--parallel", "False") == 0
    ours, theirs = ([x for x in entries(tmp_path / name) if "train_return" in x] for name in ("parts", "run"))
    assert ours == theirs
    code, out, err = run("--eval_only", "--logdir", tmp_path / "run", "--episodes", "24", "--device", "cpu")
    assert code == 0 and "more failed" in out, (out, err)
    code, _, err = run(*flags, tmp_path / "strict", "--env_failures", "0")
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("dreamer.py: ")
    assert "Physics state is invalid" in last and "the same command resumes from" in last
    assert err.count("Traceback") <= 2  # the worker's, and that of the code waiting for it


sys.path.append(str(Path(__file__).parent))  # workers import `Fragile` from here
