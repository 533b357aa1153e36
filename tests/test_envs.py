"""Task names and settings, their errors, and the protocol that every env follows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import gym
import numpy as np
import pytest
from PIL import Image

import envs
import envs.__main__ as watch
from envs import subtle
from envs.dmc import suite
from envs.suite import DOMAINS, MODES
from envs.wrappers import CheckAction, TimeLimit
from run import video

ROOT = Path(__file__).resolve().parent.parent
SLOW_TO_COMPILE = ("dmc_dog_run", "dmc_quadruped_fetch")


def test_every_name_is_parsed():
    for domain, task in suite.ALL_TASKS:
        for mode in ("", *MODES):
            name = "_".join(filter(None, ["dmc", domain, task, mode]))
            if domain in DOMAINS.get(mode, (domain,)):
                assert envs.parse(name)[1] == (domain, task, mode, None)
            else:
                with pytest.raises(ValueError, match=f"{mode} is defined for the domains"):
                    envs.parse(name)
    assert envs.parse("dmc_cup_catch_video")[1] == ("ball_in_cup", "catch", "video", None)
    assert envs.parse("rms_push_cube")[1] == "push_cube"
    assert envs.parse("gym_some_module:Env-v0")[1] == "some_module:Env-v0"
    for name, shrunk in subtle.TASKS.items():
        for mode in ("", "video"):
            task = "_".join(filter(None, ["dmc", name, "subtle", mode]))
            assert envs.parse(task)[1] == (shrunk.domain, shrunk.task, mode, shrunk)


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
        ("dmc_walker_walk_subtle", ["no such task of DMC-Subtle", "reacher"]),
        ("dmc_reacher_subtle_color_easy", ["reacher has no such task"]),
    ],
)
def test_an_unknown_name_is_one_line_with_the_closest_match(task, words):
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
        {"shadow_size": -1},
        {"shadow_size": 1e5},
    ],
)
def test_an_impossible_setting_is_reported_by_its_flag(settings):
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


@pytest.mark.parametrize("key, value", [("reward", np.nan), ("position", np.inf), ("position", -np.inf)])
def test_numbers_that_are_not_finite_are_refused(key, value, env):
    """At their source, so that they never reach the replay."""
    inside = env.env.env.env
    step = type(inside).step

    def broken(action):
        obs, reward, done, info = step(inside, action)
        if key == "reward":
            return obs, value, done, info
        obs[key][1] = value
        return obs, reward, done, info

    action = {"action": np.zeros(2)}
    for _ in range(2):
        env.reset()
    env.step(action)
    inside.step = broken
    message = f"--task dmc_cup_catch gave {value} as {key}, at step 2 of episode 1 of the env with seed 0: "
    with pytest.raises(ValueError, match=message) as error:
        env.step(action)
    assert "\n" not in str(error.value)
    inside.reset = lambda episode: {"position": np.array([np.nan])}
    with pytest.raises(ValueError, match="gave nan as position, at step 0 of episode 7 "):
        env.reset(7)


def test_wrappers_expose_the_env_inside(env):
    assert isinstance(env, TimeLimit) and isinstance(env.env, CheckAction)
    assert env.seed == 0 and env.action_repeat == 3
    with pytest.raises(AttributeError):
        _ = env.no_such_thing


@pytest.mark.parametrize(
    "task",
    ["dmc_humanoid_CMU_run", "gym_CartPole-v1", *(pytest.param(t, marks=pytest.mark.slow) for t in SLOW_TO_COMPILE)],
)
def test_starting_prints_nothing(task):
    code = (
        f"import envs, numpy; env = envs.make({task!r}); env.reset();"
        "n = getattr(env.action_space, 'n', None);"
        "env.step({'action': numpy.eye(n)[0] if n else env.action_space.sample()})"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    frames = []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return fourcc, capture.get(cv2.CAP_PROP_FPS), frames


def test_recording_a_task_as_a_video(tmp_path):
    """From the command line: H.264 in yuv420p, which browsers play, with exactly the env's frames."""
    out = tmp_path / "clip.mp4"
    for name in ("envs", "run", "legal"):  # a caller's modules of the same names
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    command = [sys.executable, ROOT / "envs", "--task", "dmc_cup_catch_video", "--img_source", "color", "--steps", "5"]
    run = subprocess.run([*command, "--out", out], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{out}: 6 frames\n", "")
    fourcc, fps, frames = read_video(out)
    assert fourcc.lower() in ("avc1", "h264") and fps == 20
    assert len(frames) == 6 and frames[0].shape == (256, 256, 3)
    env = envs.make("dmc_cup_catch_video", img_source="color")
    expected = video.enlarge(env.reset()["image"], 4)[..., ::-1]
    assert np.abs(frames[0].astype(int) - expected).mean() < 6  # lossy, colors at half the resolution


def test_an_odd_size_is_recorded_too(tmp_path):
    out = tmp_path / "clip.mp4"
    watch.main(["--task", "dmc_cup_catch", "--out", str(out), "--steps", "2", "--size", "33", "47", "--zoom", "1"])
    assert [frame.shape for frame in read_video(out)[2]] == [(34, 48, 3)] * 3


def test_episodes_as_a_gif(tmp_path, capsys):
    out = tmp_path / "clip.gif"
    watch.main(["--task", "dmc_cartpole_balance", "--out", str(out), "--episodes", "2", "--time_limit", "6"])
    assert Image.open(out).n_frames == 8 and Image.open(out).size == (256, 256)
    assert "8 frames, episode returns: " in capsys.readouterr().out


def test_discrete_actions_are_recorded_too(tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    watch.main(["--task", "gym_CartPole-v1", "--out", str(out), "--episodes", "1", "--zoom", "1"])
    frames = read_video(out)[2]
    assert f"{out}: {len(frames)} frames, episode returns: " in capsys.readouterr().out and len(frames) > 4


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_full_disk_is_an_error_and_leaves_the_old_video(suffix, tmp_path):
    """A limit on the process's file size stands in for a full disk."""
    out = tmp_path / f"clip{suffix}"
    out.write_text("an older video")
    flags = ["--task", "dmc_cup_catch_video", "--img_source", "noise", "--out", str(out), "--zoom", "1"]
    limited = f"ulimit -f 20; exec {shlex.join([sys.executable, 'envs', *flags])}"
    run = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"python envs: {out}: the video cannot be written: ")
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_text() == "an older video"


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_at_an_impossible_path(suffix, tmp_path):
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    (tmp_path / f"folder{suffix}").mkdir()
    for path in (tmp_path / f"folder{suffix}", tmp_path / "missing" / f"clip{suffix}"):
        with pytest.raises(OSError, match=rf"{re.escape(str(path))}: the video cannot be written: ") as error:
            video.write(path, frames, 20)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"folder{suffix}"]


def test_a_failure_between_frames_leaves_no_video(tmp_path):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise ZeroDivisionError

    for name in ("clip.mp4", "clip.gif"):
        with pytest.raises(ZeroDivisionError):
            video.write(tmp_path / name, frames(), 20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--out", "clip.avi"], ["--out clip.avi", ".mp4", ".gif"]),
        (["--out", "clip"], ["--out clip", ".mp4"]),
        (["--out", "no/such/folder/clip.mp4"], ["--out", "no such folder"]),
        (["--out", "clip.mp4", "--steps", "0"], ["--steps is 0"]),
        (["--out", "clip.mp4", "--fps", "nan"], ["--fps is nan", "from 0.1 to 1000"]),
        (["--out", "clip.mp4", "--fps", "inf"], ["--fps is inf"]),
        (["--out", "clip.mp4", "--fps", "0"], ["--fps is 0.0"]),
        (["--out", "clip.mp4", "--zoom", "1000000"], ["--zoom is 1000000", "4096 pixels"]),
        (["--out", "clip.mp4", "--zoom", "-1"], ["--zoom is -1"]),
        (["--out", "clip.mp4", "--episodes", "0"], ["--episodes is 0"]),
        (["--out", "clip.mp4", "--time_limit", "1"], ["--time_limit is 1"]),
        (["--out", "clip.mp4", "--seed", "-1"], ["--seed is -1"]),
        (["--out", "clip.mp4", "--sede", "1"], ["--sede", "did you mean --seed"]),
        (["--out", "clip.mp4", "--task", "gym_CartPol-v1"], ["did you mean CartPole-v1"]),
        (["--out", "clip.mp4", "--task", "dmc_cup_cach"], ["did you mean catch"]),
        (["--out", "clip.mp4", "--size", "0", "64"], ["--size is 0"]),
        (["--out", "clip.mp4", "--task", "dmc_cup_catch_video", "--resource_files", "none/*.mp4"], ["none/*.mp4"]),
    ],
)
def test_recording_with_bad_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        watch.main(["--task", "dmc_cup_catch", *flags])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in message
    assert not Path("clip.mp4").exists()
