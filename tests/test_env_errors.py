"""Errors of an env in training, in evaluation and while a run is restored: they cost an episode, not the run."""

import os
import sys
from functools import partial
from pathlib import Path

import gym
import numpy as np
import pytest
from test_dreamer import TINY, entries, run

from envs.parallel import SUBSTITUTE, EnvGroup
from envs.wrappers import ActionError, CheckAction, CheckFinite
from run import evaluate


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
    assert capfd.readouterr().err == ""  # of an env that cannot be closed


@pytest.mark.parametrize("parallel", [False, True])
def test_too_many_errors_in_a_row_are_raised(parallel):
    with EnvGroup([partial(make, every_step=True)], parallel, max_failures=2) as group:
        group.reset([0])
        assert [one.done for one in steps(group, 2)] == [True, True]
        with pytest.raises(RuntimeError, match="Physics state is invalid"):
            steps(group, 1)
    with EnvGroup([partial(make, steps=(0, 2, 4, 6))], parallel, max_failures=1) as group:  # not in a row
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
        (again, *_), = group.restore([3], [[]])
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
        import torch

        return torch.zeros(len(obs["is_first"]), 1), state


def test_an_evaluation_counts_the_episodes_that_did_not_fail(capsys):
    with EnvGroup([partial(make, steps=(2, 3))] * 2, False, max_failures=5) as group:
        scores, videos, _ = evaluate.play(Still(), group, 6, 0)
    assert scores == {"return": [5.0] * 4, "length": [5.0] * 4} and videos == []
    assert evaluate.summary(scores)["episodes"] == 4
    assert capsys.readouterr().err.count("of the evaluation failed and does not count: Physics state is invalid") == 2
    group = EnvGroup([partial(make, every_step=True)], False, max_failures=5)
    with pytest.raises(RuntimeError, match="every episode of the evaluation failed: Physics"):
        evaluate.play(Still(), group, 3, 0)


MODULE = '''
import gymnasium, numpy as np
from gymnasium import spaces

class Diverges(gymnasium.Env):
    """In about one of four episodes, at step 25."""
    metadata = {"render_modes": []}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start = 0, float(self.np_random.uniform())
        return self.observation(), {}

    def observation(self):
        return np.array([self.start, self.t / 40, 0], np.float32)

    def step(self, action):
        if self.t == 24 and self.start > 0.75:
            raise RuntimeError("Physics state is invalid. Warning(s) raised: mjWARN_BADQACC")
        self.t += 1
        return self.observation(), 0.1, False, self.t >= 40, {}

gymnasium.register("Diverges-v0", Diverges)
'''


@pytest.mark.slow
def test_a_run_survives_its_diverging_episodes(tmp_path, monkeypatch):
    (tmp_path / "diverging.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    flags = ["--configs", "dmc_proprio", "--task", "gym_diverging:Diverges-v0", *TINY, "--action_repeat", "1"]
    flags += ["--device", "cpu", "--compile", "False", "--steps", "600", "--logdir"]
    code, out, err = run(*flags, tmp_path / "run")
    assert code == 0, err
    cut = [line for line in entries(tmp_path / "run") if "train_failures" in line]
    assert len(cut) >= 2 and [line["train_failures"] for line in cut] == list(range(1, len(cut) + 1))
    assert all(line["train_length"] == 25 for line in cut)
    assert err.count("was cut at its step 25 by an error: Physics state is invalid.") == len(cut)
    terminal = [np.load(path)["is_terminal"].any() for path in (tmp_path / "run" / "train_eps").iterdir()]
    assert not any(terminal)
    # to the bit, whenever it stops
    assert run(*flags, tmp_path / "parts", "--steps", "250")[0] == 0
    assert run(*flags, tmp_path / "parts", "--parallel", "False")[0] == 0
    ours, theirs = ([x for x in entries(tmp_path / name) if "train_return" in x] for name in ("parts", "run"))
    assert ours == theirs
    code, out, err = run("--eval_only", "--logdir", tmp_path / "run", "--episodes", "24", "--device", "cpu")
    assert code == 0 and "more failed" in out, (out, err)
    code, _, err = run(*flags, tmp_path / "strict", "--env_failures", "0")
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("dreamer.py: ")
    assert "Physics state is invalid" in last and "the same command resumes from" in last
    assert err.count("Traceback") <= 2  # of the worker, and of what waited for it


sys.path.append(str(Path(__file__).parent))  # for the workers, which import `Fragile`
