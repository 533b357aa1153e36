"""Gymnasium's envs: spaces, episodes from (seed, episode, actions), errors, and whole runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import agents
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_dreamer import TINY, entries, run, start, wait_for

import dreamer
import envs
import models
from envs import notes
from run import collect
from run.config import load_config, sees_images

ROOT = Path(__file__).resolve().parent.parent
BOX = spaces.Box(-1, 1, (2,))


class Spaces(gymnasium.Env):
    """An env with any spaces, which terminates or is truncated after 6 steps and keeps the actions it gets."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, observation, action=None, end="terminated", render_mode=None, info=None, frame=None):
        self.observation_space, self.render_mode = observation, render_mode
        self.action_space = action or spaces.Discrete(2)
        self.end, self.info, self.frame = end, info or {}, frame

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.actions = []
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        done = len(self.actions) == 6
        ended = done and self.end == "terminated", done and self.end == "truncated"
        return self.observation_space.sample(), float(len(self.actions)), *ended, self.info

    def render(self):
        return np.zeros((90, 120, 3), np.uint8) if self.frame is None else self.frame


class Blind(Spaces):
    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012


@pytest.fixture
def register():
    """Registers Spaces, or another class, with its own settings; returns the name of its task."""

    def register(cls=Spaces, **settings):
        gymnasium.register("Test-v0", cls, kwargs=settings)
        return "gym_Test-v0"

    yield register
    for name in ("Test-v0", "Drawn-v0"):
        gymnasium.registry.pop(name, None)
    notes._noted.clear()


def one_hot(n, index):
    return {"action": np.eye(n, dtype=np.float32)[index]}


def random_action(env, rng):
    space = env.action_space
    return (
        one_hot(space.n, rng.integers(space.n)) if hasattr(space, "n") else {"action": rng.uniform(-1, 1, space.shape)}
    )


def play(env, episode, steps):
    """Observations, rewards and ends from the start of an episode, under actions that depend on its number."""
    rng = np.random.default_rng(episode)
    seen = [(env.reset(episode), 0.0, False)]
    while len(seen) <= steps and not seen[-1][2]:
        seen.append(env.step(random_action(env, rng))[:3])
    return seen


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "InvertedPendulum-v5", "Taxi-v4"])
def test_the_protocol_on_real_envs(task, image):
    env, other, seeded = (envs.make(f"gym_{task}", seed=seed, size=(32, 48), image=image) for seed in (3, 3, 4))
    assert ("image" in env.observation_space.spaces) == image
    played = [play(env, episode, 8) for episode in range(3)]
    for obs, reward, done in played[0]:
        assert obs.keys() == {*env.observation_space.spaces, "is_first", "is_last", "is_terminal"}
        for key, space in env.observation_space.items():
            assert space.contains(obs[key]), key
        assert type(reward) is float and type(done) is bool and done is obs["is_last"]
    again, differs = play(other, 2, 8), False  # jumps to a later episode, then back
    for episode, seen in ((2, again), (0, play(other, 0, 8))):
        for (ours, our_reward, _), (theirs, their_reward, _) in zip(played[episode], seen, strict=True):
            assert our_reward == their_reward
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    for key in env.observation_space.spaces:
        firsts = [each[0][0][key] for each in (*played, play(seeded, 0, 0), play(seeded, 1, 0))]
        differs |= any((first != firsts[0]).any() for first in firsts)
    assert differs or task == "FrozenLake-v1"  # FrozenLake always starts on the same square
    for each in (env, other, seeded):
        each.close()


def test_terminated_and_truncated():
    """CartPole falls, which is terminal; Pendulum's own limit of 200 steps is not, nor is a shorter one of ours."""
    cartpole, pendulum = envs.make("gym_CartPole-v1", image=False), envs.make("gym_Pendulum-v1", image=False)
    short = envs.make("gym_Pendulum-v1", image=False, time_limit=50)
    lengths, ends = [], []
    for env in (cartpole, pendulum, short):
        env.reset()
        for length in range(1, 1000):  # noqa: B007
            obs, _, done, _ = env.step({"action": np.eye(2)[0] if env is cartpole else np.zeros(1)})
            if done:
                break
        lengths.append(length)
        ends.append((obs["is_last"], obs["is_terminal"]))
    assert lengths[0] < 10 and lengths[1:] == [100, 25]  # agent steps of two environment steps
    assert ends == [(True, True), (True, False), (True, False)]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_action_repeat_sums_rewards_up_to_the_end(end, register):
    env = envs.make(register(observation=spaces.Box(-1, 1, (2,)), end=end), action_repeat=4, image=False)
    env.reset()
    obs, reward, done, _ = env.step(one_hot(2, 1))
    assert (reward, done, obs["is_last"], obs["is_terminal"]) == (1 + 2 + 3 + 4, False, False, False)
    obs, reward, done, _ = env.step(one_hot(2, 0))
    assert (reward, done, obs["is_last"], obs["is_terminal"]) == (5 + 6, True, True, end == "terminated")
    assert env._env.unwrapped.actions == [1] * 4 + [0] * 2


@pytest.mark.parametrize(
    "info, found", [({}, {}), ({"success": 1}, {"success": True}), ({"is_success": 0.0}, {"success": False})]
)
def test_success(info, found, register):
    env = envs.make(register(observation=spaces.Box(-1, 1, (2,)), info=info), image=False)
    env.reset()
    info = env.step(one_hot(2, 1))[3]
    assert info == (found and {**found, "success_once": found["success"]})


class Momentary(Spaces):
    """Solved in its third step alone."""

    def step(self, action):
        *result, _ = super().step(action)
        return *result, {"success": float(len(self.actions) == 3)}


def test_a_momentary_success_is_kept(register):
    env = envs.make(register(cls=Momentary, observation=BOX), image=False)
    for _ in range(2):  # an episode starts without
        env.reset()
        infos = [env.step(one_hot(2, 1))[3] for _ in range(3)]
        assert [info["success_once"] for info in infos] == [False, True, True]
        assert [info["success"] for info in infos] == [False, False, False]


def test_an_action_with_one_infinite_bound_stays_within_the_other(register):
    space = spaces.Box(np.array([0, -np.inf, -2], np.float32), np.array([np.inf, 0.5, np.inf], np.float32))
    _, got = actions_of(register, space, [[-1, -1, -1], [0.25, 0.25, 0.25], [1, 1, 1]])
    np.testing.assert_array_equal(got, np.array([[0, -1, -1], [0.25, 0.25, 0.25], [1, 0.5, 1]], np.float32))


class Camera(Spaces):
    """Images and vectors with names of their own; nothing to render."""

    metadata = {"render_modes": []}  # noqa: RUF012


def test_images_with_other_names_are_observed(register):
    """With and without rendering: the encoder's expressions choose among all observations."""
    pixels = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    task = register(cls=Camera, observation=spaces.Dict({"front": pixels, "back": pixels, "joints": BOX}))
    for image in (False, None):
        env = envs.make(task, image=image)
        assert {key: space.shape for key, space in env.observation_space.items()} == {
            "front": (64, 64, 3), "back": (64, 64, 3), "joints": (2,)
        }  # fmt: skip
        assert env.reset()["front"].shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"renders no images .*--encoder\.cnn_keys 'back\|front'"):
        envs.make(task)
    config = load_config(
        f"--configs dmc_vision debug --task {task} --encoder.cnn_keys front|back --encoder.mlp_keys joints "
        "--actor_dist onehot --parallel False --device cpu".split()
    )
    with collect.make_envs(config, "train", 1, sees_images(config)) as group:
        agent = dreamer.make_agent(config, group)
    assert sorted(agent.keys) == ["back", "front", "joints"]


class Sentence(spaces.Space):
    """Like MiniGrid's missions: it says nothing of its size."""

    def sample(self, mask=None, probability=None):
        return "go to the door"

    def contains(self, x):
        return isinstance(x, str)

    @property
    def is_np_flattenable(self):
        raise NotImplementedError


def test_entries_of_no_fixed_size_are_left_out_with_a_line(register, capsys):
    space = spaces.Dict({"mission": Sentence(), "list": spaces.Sequence(BOX), "arm": BOX})
    env = envs.make(register(observation=space), image=False)
    assert list(env.observation_space.spaces) == ["arm"] and "arm" in env.reset()
    err = capsys.readouterr().err
    assert "gym_Test-v0: mission (Sentence) has no fixed size" in err and "list (Sequence)" in err
    assert err.count("\n") == 2
    with pytest.raises(ValueError, match=r"observes .*nothing of it has a fixed size.*--encoder\.cnn_keys image"):
        envs.make(register(observation=spaces.Dict({"mission": Sentence()})), image=False)
    assert list(envs.make("gym_Test-v0").observation_space.spaces) == ["image"]  # rendered


def test_grids_of_symbols_are_no_images(register):
    grid = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    for space, name in (
        (grid, "observation"),
        (spaces.Dict({"image": grid, "direction": spaces.Discrete(4)}), "symbols"),
    ):
        task = register(observation=space)
        env = envs.make(task)
        obs = env.reset()
        assert env.observation_space[name].shape == obs[name].shape == (147,) and obs["image"].shape == (64, 64, 3)
        assert name in envs.make(task, image=False).reset()


def test_an_image_of_one_color_through_an_episode_is_said(register, capsys):
    task = register(observation=BOX)  # renders black
    env = envs.make(task, time_limit=8, action_repeat=2)
    env.reset()
    for _ in range(3):
        env.step(one_hot(2, 1))
    assert capsys.readouterr().err == ""
    env.reset()
    err = capsys.readouterr().err
    assert "--task gym_Test-v0: image had one color through an episode" in err and err.count("\n") == 1
    gymnasium.register(
        "Drawn-v0", Spaces, kwargs={"observation": BOX, "frame": np.eye(90, dtype=np.uint8)[..., None].repeat(3, 2)}
    )
    drawn = envs.make("gym_Drawn-v0")
    for _ in range(2):
        drawn.reset()
        drawn.step(one_hot(2, 1))
    assert capsys.readouterr().err == ""


class World(Spaces):
    """Keeps a world from episode to episode, as simulators do."""

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.wear = getattr(self, "wear", 0) + 1
        return obs + np.float32(self.wear), info


class Clock(Spaces):
    """Looks at a clock."""

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs + np.float32(time.monotonic_ns() % 1000003), info


def test_an_env_that_keeps_its_world_is_made_again_for_each_episode(register, capsys):
    task = register(cls=World, observation=BOX)
    env, other = envs.make(task, image=False, seed=3), envs.make(task, seed=3)
    played = [env.reset(episode)["observation"] for episode in range(3)]
    np.testing.assert_array_equal(other.reset(2)["observation"], played[2])
    np.testing.assert_array_equal(other.reset(0)["observation"], played[0])
    assert capsys.readouterr().err == ""


def test_an_env_that_no_seed_determines_says_so(register, capsys):
    env = envs.make(register(cls=Clock, observation=BOX), image=False)
    assert "reset(seed) does not determine an episode" in capsys.readouterr().err
    assert (env.reset(1)["observation"] != env.reset(1)["observation"]).any()


def test_arguments_for_an_env():
    env = envs.make("gym_FrozenLake-v1", image=False, env_kwargs=["map_name=8x8", "is_slippery=False"])
    assert env.observation_space["observation"].shape == (64,)
    env.reset()
    before = [env.step(one_hot(4, 2))[0]["observation"].argmax() for _ in range(2)]
    assert before == [2, 4]  # moves right, two squares an agent step: no slipping
    with pytest.raises(ValueError, match=r"--env_kwargs is \['8x8'\]: expected .*difficulty=2"):
        envs.make("gym_FrozenLake-v1", env_kwargs=["8x8"])
    with pytest.raises(ValueError, match=r"does not start: TypeError: .*map_nam"):
        envs.make("gym_FrozenLake-v1", image=False, env_kwargs=["map_nam=8x8"])


def test_an_error_without_words_names_its_place(register):
    class Broken(Spaces):
        def __init__(self, observation, render_mode=None):
            raise AssertionError

    with pytest.raises(
        ValueError, match=r"does not start: AssertionError: at .*test_gym_env\.py:\d+, raise AssertionError"
    ):
        envs.make(register(cls=Broken, observation=BOX))


def test_time_limits():
    """An env's own, unless the flag is given: the program's 1000 is for the suite."""
    assert load_config(["--task", "gym_Pendulum-v1"]).time_limit == 0
    assert load_config(["--task", "gym_Pendulum-v1", "--time_limit", "50"]).time_limit == 50
    assert load_config(["--task", "dmc_walker_walk"]).time_limit == 1000
    assert load_config(["--task", "rms_push_cube"]).time_limit == 100
    for flags, length in (({}, 500), ({"time_limit": 40}, 10)):  # Acrobot's own limit is 500
        env = envs.make("gym_Acrobot-v1", image=False, action_repeat=4 if flags else 1, **flags)
        env.reset(0)
        steps = next(n for n in range(1, 1000) if env.step(one_hot(3, 1))[2])
        assert steps == length


def test_pygame_draws():
    """Through a driver that reads back what is drawn, which `dummy` does not for all envs."""
    code = (
        "import os, envs; env = envs.make('gym_MountainCar-v0'); "
        "print(os.environ['SDL_VIDEODRIVER'], env.reset()['image'].std() > 5)"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("SDL_VIDEODRIVER", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("offscreen True\n", "")


def actions_of(register, space, actions):
    """What the env gets for the agent's actions."""
    env = envs.make(register(observation=spaces.Box(-1, 1, (2,)), action=space), action_repeat=1, image=False)
    env.reset()
    for action in actions:
        env.step({"action": np.array(action, np.float32)})
    return env, env._env.unwrapped.actions


def test_continuous_actions_are_scaled_to_their_bounds(register):
    low, high = np.array([[-2, 0], [10, -np.inf]], np.float32), np.array([[2, 0.3], [12, np.inf]], np.float32)
    env, got = actions_of(register, spaces.Box(low, high), [[-1, -1, -1, -1], [1, 1, 1, 1], [0, 0.5, -3, 0.25]])
    assert env.action_space.shape == (4,)
    np.testing.assert_array_equal(got[0], [[-2, 0], [10, -1]])
    np.testing.assert_array_equal(got[1], np.array([[2, 0.3], [12, 1]], np.float32))
    np.testing.assert_allclose(got[2], [[0, 0.225], [10, 0.25]], rtol=1e-6)


def test_discrete_actions_are_one_hot(register):
    env, got = actions_of(register, spaces.Discrete(3, start=5), [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert env.action_space.n == 3 and got == [5, 7, 6]
    for bad in ([1, 1, 0], [0, 0, 0], [0.5, 0.5, 0], [0, 0, 2], [0, -1, 0], 2, [1, 0]):
        with pytest.raises(ValueError, match=r"one-hot|shape"):
            env.step({"action": np.array(bad, np.float32)})
    assert len(got) == 3


def test_observations(register):
    pixels = spaces.Box(0, 255, (40, 60, 3), np.uint8)
    task = register(
        observation=spaces.Dict(
            {
                "arm": spaces.Box(-5, 5, (2, 3), np.float64),
                "gear": spaces.Discrete(4, start=1),
                "lamps": spaces.MultiBinary(3),
                "gray": spaces.Box(0, 255, (16, 16), np.uint8),
                "image": pixels,
            }
        )
    )
    env = envs.make(task, size=(20, 30))
    shapes = {key: (space.shape, space.dtype) for key, space in env.observation_space.items()}
    vector, frame = np.dtype(np.float32), ((20, 30, 3), np.dtype(np.uint8))
    assert shapes == {
        "arm": ((6,), vector), "gear": ((4,), vector), "lamps": ((3,), vector), "gray": frame, "image": frame
    }  # fmt: skip
    obs = env.reset(3)
    inner = env._env.observation_space
    inner.seed(int(np.random.default_rng([0, 3]).integers(2**31)))
    sample = inner.sample()  # what the env returned
    np.testing.assert_array_equal(obs["arm"], sample["arm"].astype(np.float32).reshape(-1))
    np.testing.assert_array_equal(obs["gear"], np.eye(4)[sample["gear"] - 1])
    np.testing.assert_allclose(obs["image"], sample["image"].reshape(20, 2, 30, 2, 3).mean((1, 3)), atol=1)
    assert (obs["gray"] == obs["gray"][..., :1]).all()
    unrendered = envs.make(task, image=False)  # what the env observes stays
    assert unrendered.reset().keys() == obs.keys()


def test_an_observation_that_is_an_image_is_not_rendered(register):
    task = register(observation=spaces.Box(0, 255, (16, 16, 1), np.uint8))
    for image in (True, False):
        env = envs.make(task, size=(16, 16), image=image)
        assert (
            list(env.observation_space.spaces) == ["image"] and env.reset()["image"].std() > 50
        )  # the rendering is black


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"action": spaces.MultiDiscrete([2, 3])}, ["MultiDiscrete([2 3])", "expected a Box of floats or Discrete"]),
        ({"action": spaces.Tuple([BOX, BOX])}, ["Tuple", "expected a Box"]),
        ({"action": spaces.Box(0, 9, (2,), np.int32)}, ["int32", "expected a Box of floats"]),
        ({"action": spaces.Box(2, np.inf, (2,))}, ["expected both bounds"]),
        ({"observation": spaces.Box(0, 255, (4, 84, 84), np.uint8)}, ["(4, 84, 84)", "(H, W, 3)"]),
        ({"observation": spaces.Dict({"reward": BOX})}, ["called reward"]),
        ({"observation": spaces.Dict({"image": BOX})}, ["called image"]),
        ({"frame": "text"}, ["renders str", "uint8"]),
        ({"frame": np.zeros((4, 4))}, ["renders ndarray", "uint8"]),
        ({"cls": Blind}, ["renders no images", "ansi", "--configs dmc_proprio"]),
        ({"cls": int}, ["does not start", "TypeError"]),
    ],
)
def test_what_does_not_fit_is_one_line(settings, words, register):
    task = register(**{"observation": BOX, **settings})
    with pytest.raises(ValueError, match=r"^--task gym_Test-v0 ") as error:
        envs.make(task)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "task, kind, words",
    [
        ("gym_CartPol-v1", ValueError, "not registered with Gymnasium; did you mean CartPole-v1"),
        ("gym_CartPole-v99", ValueError, "did you mean CartPole-v1"),
        ("gym_", ValueError, "gym_{id}"),
        ("gym_nowhere:Env-v0", ImportError, "No module named 'nowhere'"),
        ("gym_phys2d/CartPole-v1", ImportError, "jax"),
        ("gym_ALE/Pong-v5", ValueError, "a module comes first: gym_ale_py:ALE/Pong-v5"),
        ("gym_mine/Env-v0", ValueError, "the module that registers it comes first: gym_MODULE:mine/Env-v0"),
    ],
)
def test_unknown_ids_and_missing_packages_are_one_line(task, kind, words):
    with pytest.raises(kind) as error:
        envs.make(task)
    assert words in str(error.value) and task in str(error.value) and "\n" not in str(error.value)


def test_vectors_work_without_pygame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"--task gym_CartPole-v1 .*pygame"):
        envs.make("gym_CartPole-v1")
    for image in (False, None):
        assert "image" not in envs.make("gym_CartPole-v1", image=image).reset()


def test_image_none_renders_where_possible(register):
    assert "image" in envs.make("gym_CartPole-v1", image=None).reset()
    assert "image" not in envs.make(register(cls=Blind, observation=BOX), image=None).reset()
    assert "image" in envs.make("dmc_cartpole_swingup", image=None).reset()


def test_a_module_that_registers_its_envs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registers.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=7)\n"
    )
    env = envs.make("gym_registers:Mine-v0", image=False, action_repeat=1)
    env.reset()
    assert not any(env.step(one_hot(2, t % 2))[2] for t in range(6)) and env.step(one_hot(2, 0))[2]


def test_simsr_does_not_scale_the_rewards():
    assert models.reward_to_simsr(envs.reward_range("gym_Pendulum-v1"), 4) == 1


RUNS = {
    "discrete, from pixels": "dmc_vision --task gym_CartPole-v1 --actor_dist onehot --size 16 16 --patch_size 4",
    "continuous, from vectors": "dmc_proprio --task gym_Pendulum-v1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_resumes_to_the_same_numbers(name, tmp_path):
    flags = ["--configs", *RUNS[name].split(), *TINY, "--steps", "480", "--eval_every", "240", "--log_every", "120"]
    code, _, err = run(*flags, "--logdir", tmp_path / "whole")
    assert code == 0 and "arning" not in err, err
    expected = entries(tmp_path / "whole")
    keys = set().union(*expected)
    assert {"train_return", "eval_return", "model_loss", "actor_loss"} <= keys and expected[-1]["step"] == 480

    process = start(*flags, "--logdir", tmp_path / "stopped")
    wait_for(tmp_path / "stopped", 4, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 0 and entries(tmp_path / "stopped")[-1]["step"] < 480
    code, _, err = run(*flags, "--logdir", tmp_path / "stopped")
    assert code == 0, err
    assert entries(tmp_path / "stopped") == expected


UNSEEDED = """
import random
import gymnasium
import numpy as np


class Unseeded(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        return np.float32([random.SystemRandom().random(), 0]), {}

    def step(self, action):
        return np.float32([random.SystemRandom().random(), 0]), 0.1, random.SystemRandom().random() < 0.05, False, {}


gymnasium.register("Unseeded-v0", Unseeded, max_episode_steps=60)
"""


@pytest.mark.slow
def test_a_run_resumes_where_no_seed_determines_an_episode(tmp_path, monkeypatch):
    (tmp_path / "unseeded_env.py").write_text(UNSEEDED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = (
        f"--configs dmc_proprio --task gym_unseeded_env:Unseeded-v0 --steps 960 --log_every 120 --logdir {tmp_path}/run"
    )
    flags = [*flags.split()[:4], *TINY, *flags.split()[4:]]
    process = start(*flags)
    wait_for(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and "reset(seed) does not determine an episode" in err
    code, out, err = run(*flags)
    assert code == 0, err
    assert "did not go as before" in out + err and entries(tmp_path / "run")[-1]["step"] >= 960


@pytest.mark.parametrize("task, dist", [("CartPole-v1", "normal"), ("Pendulum-v1", "onehot")])
def test_an_actor_that_does_not_fit_the_actions(task, dist, tmp_path, capsys):
    flags = ["--configs", "dmc_proprio", "--task", f"gym_{task}", "--actor_dist", dist, *TINY]
    other = {"normal": "onehot", "onehot": "normal"}[dist]
    assert dreamer.main([*flags, "--parallel", "False", "--logdir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"--actor_dist {dist} does not fit" in err and f"use {other}" in err and err.count("\n") == 1


def test_a_time_limit_above_the_registered_one_holds():
    env = envs.make("gym_Pendulum-v1", image=False, size=(16, 16), action_repeat=1, time_limit=230)
    env.reset(0)
    action = {"action": np.zeros(1, np.float32)}
    assert next(n for n in range(1, 1000) if env.step(action)[2]) == 230


class Rgb(gymnasium.Env):
    """Its images are not called `image`."""

    observation_space = spaces.Dict({"rgb": spaces.Box(0, 255, (16, 16, 3), np.uint8)})
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def observe(self):
        return {"rgb": self.np_random.integers(0, 256, (16, 16, 3), dtype=np.uint8)}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 1.0, False, False, {}


gymnasium.register("Rgb-v0", entry_point=Rgb, max_episode_steps=20)
RGB = [
    *agents.SMALL,
    *"--task gym_Rgb-v0 --encoder.cnn_keys rgb --size 16 16 --patch_size 4 --prefill 8 --steps 40".split(),
    *"--action_repeat 1 --pretrain 1 --train_ratio 1 --parallel False --eval_episode_num 1".split(),
]


@pytest.mark.parametrize("flags", ["--batch_length 7", "--patch_size 17", "--size 16 24"])
def test_images_of_any_name_are_checked(flags, tmp_path, capfd):
    assert dreamer.main([*RGB, *flags.split(), "--logdir", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"dreamer.py: {flags.split()[0]} ") and error.count("\n") == 1


def test_images_of_any_name_are_shown(tmp_path):
    assert dreamer.main([*RGB, "--probe_decoder", "True", "--logdir", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert "video/video_pred" in events.Tags()["images"]
