"""Task names and settings, what is refused, and the protocol that every env speaks."""

import os
import subprocess
import sys
from pathlib import Path

import gym
import numpy as np
import pytest

import envs
from envs.dmc import suite
from envs.wrappers import CheckAction, TimeLimit

ROOT = Path(__file__).resolve().parent.parent


def test_every_name_is_taken_apart():
    for domain, task in suite.ALL_TASKS:
        for mode in ("", *envs.MODES):
            name = "_".join(filter(None, ["dmc", domain, task, mode]))
            assert envs._parse(name) == ("dmc", (domain, task, mode))
    assert envs._parse("dmc_cup_catch_video") == ("dmc", ("ball_in_cup", "catch", "video"))
    assert envs._parse("rms_push_cube") == ("rms", "push_cube")


@pytest.mark.parametrize(
    "task, words",
    [
        ("walker_walk", ["walker_walk", "dmc_{domain}"]),
        ("dmc", ["--task dmc"]),
        ("dmc_", ["no such domain", "walker"]),
        ("dmc_wolker_walk", ["no such domain", "walker"]),
        ("dmc_walker_wlak", ["walker has no such task", "walk"]),
        ("dmc_walker", ["walker has no such task", "run"]),
        ("dmc_walker_walkvideo", ["no such task", "walk"]),
        ("dmc_walker_walk_colour_easy", ["no such mode 'colour_easy'", "color_easy"]),
        ("dmc_walker_walk_", ["--task dmc_walker_walk_"]),
        ("rms_push_cubes", ["no such task", "rms_push_cube"]),
        ("rms", ["--task rms"]),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(task, words):
    with pytest.raises(ValueError) as error:
        envs.make(task)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (64,)},
        {"size": 64},
        {"size": (64, 0)},
        {"size": (64, 10**6)},
        {"size": (64.5, 64)},
        {"size": ("64", "64")},
        {"seed": -1},
        {"seed": 0.5},
        {"action_repeat": 0},
        {"action_repeat": float("nan")},
        {"time_limit": 1},
        {"time_limit": "long"},
    ],
)
def test_a_setting_that_cannot_be_names_its_flag(settings):
    with pytest.raises(ValueError, match=f"--{next(iter(settings))} .*expected") as error:
        envs.make("dmc_walker_walk", **settings)
    assert "\n" not in str(error.value)


@pytest.fixture
def env():
    env = envs.make("dmc_cup_catch", image=False, time_limit=10, action_repeat=3)
    yield env
    env.close()


def test_the_protocol(env):
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert env.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    obs = env.reset()
    for step in range(3):  # 10 environment steps are three whole agent steps of 3
        assert obs.keys() == {*env.observation_space.keys(), "is_first", "is_last", "is_terminal"}
        for key, space in env.observation_space.items():
            assert space.contains(obs[key])
        assert (obs["is_first"], obs["is_last"], obs["is_terminal"]) == (step == 0, False, False)
        obs, reward, done, info = env.step({"action": env.action_space.sample()})
        assert type(reward) is float and type(done) is bool and type(info) is dict
        assert done == obs["is_last"]
    assert done and not obs["is_terminal"]


def test_no_step_without_an_episode(env):
    action = {"action": np.zeros(2)}
    with pytest.raises(RuntimeError, match="reset"):
        env.step(action)
    env.reset()
    while not env.step(action)[2]:
        pass
    with pytest.raises(RuntimeError, match="reset"):
        env.step(action)
    env.reset()
    env.step(action)


@pytest.mark.parametrize(
    "action, message",
    [
        ({"action": np.zeros(3)}, r"shape \(3,\), expected \(2,\)"),
        ({"action": 0.5}, r"shape \(\), expected \(2,\)"),
        ({"action": np.array([0, np.nan])}, "finite"),
        ({"action": np.array([np.inf, 0])}, "finite"),
        ({"action": np.array(["a", "b"])}, "finite numbers"),
        (np.zeros(2), "ndarray"),
        ({}, "action"),
    ],
)
def test_a_bad_action_is_refused(env, action, message):
    env.reset()
    before = env.physics.get_state()
    with pytest.raises(ValueError, match=message) as error:
        env.step(action)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(env.physics.get_state(), before)


def test_wrappers_show_the_env_inside(env):
    assert isinstance(env, TimeLimit) and isinstance(env.env, CheckAction)
    assert env.seed == 0 and env.action_repeat == 3
    with pytest.raises(AttributeError):
        _ = env.no_such_thing


@pytest.mark.parametrize("task", ["dmc_humanoid_CMU_run", "dmc_dog_run", "dmc_quadruped_fetch"])
def test_starting_prints_nothing(task):
    code = f"import envs; env = envs.make({task!r}); env.reset(); env.step({{'action': env.action_space.sample()}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
