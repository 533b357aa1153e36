"""Realistic ManiSkill on the real engine with real rendering; maniskill_assets builds stand-ins for the downloads."""

import os
import re
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from scan_files import CONVERTED, SHOWN, write_room

import envs
from envs import rms, vulkan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=900)


def test_without_the_packages_only_rms_tasks_fail_and_say_why():
    code = """
import sys
sys.modules["mani_skill2"] = sys.modules["sapien"] = None
import envs
envs.make("dmc_walker_walk", image=False).reset()
try:
    envs.make("rms_push_cube")
except ImportError as error:
    print(error)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert "mani_skill2" in line and "Python 3.8 to 3.11" in line and "bash setup/install_env.sh" in line


class TestVulkan:
    gpu = vulkan.Device("GPU", True, frozenset())
    old = vulkan.Device("old lavapipe", False, frozenset())
    new = vulkan.Device("lavapipe", False, frozenset({vulkan.INDEXING}))
    complete = vulkan.Device("lavapipe", False, frozenset({vulkan.INDEXING, vulkan.SEMAPHORE}))

    @pytest.mark.parametrize(
        "found, parts",
        [
            (None, ["loader", "driver", "layer"]),
            ([], ["driver", "layer"]),
            ([old], ["driver", "layer"]),
            ([new], ["layer"]),
            ([complete], []),
            ([old, gpu], []),
        ],
    )
    def test_missing(self, found, parts, monkeypatch, tmp_path):
        monkeypatch.setattr(vulkan, "LAYER_LIBRARY", tmp_path / "not_built.so")
        assert vulkan.missing(found) == parts

    def test_a_gpu_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(vulkan, "devices", lambda: [self.new, self.gpu])
        before = dict(os.environ)
        assert vulkan.prepare() is False
        assert dict(os.environ) == before

    def test_the_users_settings_are_kept(self, monkeypatch, tmp_path):
        monkeypatch.setattr(vulkan, "devices", lambda: [self.new])
        monkeypatch.setattr(vulkan, "missing", lambda found: [])
        for name, value in {"VK_ICD_FILENAMES": "mine", "VK_LAYER_PATH": "/a", "VK_INSTANCE_LAYERS": "B"}.items():
            monkeypatch.setenv(name, value)
        assert vulkan.prepare() is True
        assert os.environ["VK_ICD_FILENAMES"] == "mine"
        assert os.environ["VK_LAYER_PATH"] == f"{vulkan.LAYER_FOLDER}:/a"
        assert os.environ["VK_INSTANCE_LAYERS"] == f"{vulkan.LAYER}:B"

    def test_nothing_renders(self, monkeypatch, tmp_path):
        monkeypatch.setattr(vulkan, "devices", lambda: [self.old])
        monkeypatch.setattr(vulkan, "LAYER_LIBRARY", tmp_path / "not_built.so")
        with pytest.raises(ImportError, match=r"devices: old lavapipe.*driver, layer.*bash setup/install_vulkan.sh"):
            vulkan.prepare()

    def test_install_names_the_commands_where_it_may_not_install(self, tmp_path):
        for name, text in {"id": "echo 1000", "sudo": "exit 1", "python": "echo driver"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
        command = ["bash", str(ROOT / "setup" / "install_vulkan.sh")]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
        assert result.returncode == 1 and result.stdout == ""
        assert "mesa-vulkan-drivers" in result.stderr


TASKS = rms.TASKS
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> str:
    if sys.version_info >= (3, 12):
        pytest.skip("sapien 2.2.2 has no wheel for Python 3.12")
    from maniskill_assets import write_assets

    return str(write_assets(tmp_path_factory.mktemp("assets")))


@pytest.fixture(autouse=True)
def no_other_assets(monkeypatch):
    monkeypatch.delenv("MS2_ASSET_DIR", raising=False)


def make(task, assets, **settings):
    return envs.make(f"rms_{task}", **{"action_repeat": 1, "time_limit": 100, "assets": assets, **settings})


def bare(task, assets, **settings):
    """The env without the wrappers around it."""
    from envs.maniskill import RealisticManiSkill

    return RealisticManiSkill(task, assets=assets, **settings)


def put_cube(engine, place, x=0.0, y=0.0, z=0.0):
    from sapien.core import Pose

    engine.obj.set_pose(Pose(np.add(place, (x, y, z))))


def play(env, actions=ACTIONS, episode=None):
    """Images (T + 1, H, W, 3) and rewards (T,) of an episode."""
    images, rewards = [env.reset(episode)["image"]], []
    for action in actions:
        obs, reward, *_ = env.step({"action": action})
        images.append(obs["image"])
        rewards.append(reward)
    return np.stack(images), np.array(rewards)


@pytest.mark.usefixtures("assets")
class TestInstalled:
    def test_a_device_can_render(self):
        assert vulkan.missing(vulkan.devices()) == []

    def test_install_again_does_nothing(self):
        env = {**os.environ, "PYTHON": sys.executable}
        command = ["bash", str(ROOT / "setup" / "install_vulkan.sh")]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, cwd="/")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def test_install_builds_the_layer(self, tmp_path):
        if any(device.gpu for device in vulkan.devices()):
            pytest.skip("a GPU needs no layer")
        copy = tmp_path / "a folder"
        shutil.copytree(ROOT / "setup" / "vulkan", copy / "setup" / "vulkan", ignore=shutil.ignore_patterns("build"))
        shutil.copy(ROOT / "setup" / "install_vulkan.sh", copy / "setup")
        (copy / "envs").mkdir()
        shutil.copy(ROOT / "envs" / "vulkan.py", copy / "envs")
        env = {name: value for name, value in os.environ.items() if not name.startswith("VK_")}
        subprocess.run(
            ["bash", str(copy / "setup" / "install_vulkan.sh")],
            env={**env, "PYTHON": sys.executable},
            check=True,
            timeout=900,
        )
        code = "import vulkan as v; assert v.prepare(); print(any(v.SEMAPHORE in d.extensions for d in v.devices()))"
        env["PYTHONPATH"] = str(copy / "envs")
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert result.stdout == "True\n"

    def test_nothing_is_printed_and_torch_stays_out(self, assets):
        code = f"""
import sys
import envs
for task in ("push_cube", "turn_faucet"):
    env = envs.make("rms_" + task, action_repeat=1, time_limit=100, assets={assets!r})
    env.reset()
    env.step({{"action": env.action_space.sample()}})
assert "torch" not in sys.modules
"""
        result = python(code)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("task", TASKS)
def test_task(task, assets):
    env = make(task, assets, time_limit=8, size=(48, 64))
    assert env.observation_space["image"].shape == (48, 64, 3)
    assert env.action_space.shape == (7,) and env.action_space.low.min() == -1 and env.action_space.high.max() == 1
    obs = env.reset()
    assert env.observation_space.contains({"image": obs["image"]}) and obs["is_first"] is True
    assert len(np.unique(obs["image"].reshape(-1, 3), axis=0)) > 50  # a robot in front of a room
    first = obs["image"]
    for t, action in enumerate(ACTIONS, start=1):
        obs, reward, done, info = env.step({"action": action})
        assert np.isfinite(reward) and isinstance(reward, float) and isinstance(info["success"], bool)
        assert obs["is_first"] is False and obs["is_terminal"] is False
        assert done is obs["is_last"] is (t == 8)
    assert (obs["image"] != first).mean() > 0.01
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_a_function_of_seed_and_number(task, assets):
    one, other = make(task, assets, seed=2, size=(32, 32)), make(task, assets, seed=2, size=(32, 32))
    played = [play(one, ACTIONS[:2]) for _ in range(3)]
    assert (played[0][0] != played[1][0]).any()
    for begin, episode in ((1, 1), (None, 2)):  # jumps to a later one, then goes to the next
        images, rewards = play(other, ACTIONS[:2], begin)
        np.testing.assert_array_equal(images, played[episode][0])
        np.testing.assert_array_equal(rewards, played[episode][1])


def test_seeds_differ(assets):
    first = [bare("peg_insertion_side", assets, seed=seed).reset()["image"] for seed in (0, 1)]
    assert (first[0] != first[1]).any()


def test_action_repeat_sums_rewards(assets):
    rewards = play(bare("push_cube", assets), np.repeat(ACTIONS[:3], 2, axis=0))[1]
    repeated = play(bare("push_cube", assets, action_repeat=2), ACTIONS[:3])[1]
    np.testing.assert_allclose(repeated, rewards.reshape(3, 2).sum(1))


def test_actions_are_clipped(assets):
    env = bare("push_cube", assets)
    np.testing.assert_array_equal(play(env, 5 * np.ones((2, 7)))[0], play(env, np.ones((2, 7)), 0)[0])


@pytest.mark.slow
def test_pixels_match_rgbd_observations(assets):
    """ManiSkill2's own observations: its shaders, all its cameras, its rgbd wrapper. Metal is the most specular."""
    env = bare("turn_faucet", assets)
    obs = env.reset()
    from mani_skill2.utils.wrappers.observation import RGBDObservationWrapper

    from envs.maniskill import BaseEnv, TurnFaucet

    pose = env._env._camera_cfgs["base_camera"].pose

    class Stock(TurnFaucet):
        _configure_cameras = BaseEnv._configure_cameras
        scan = env._env.scan

    camera = {"width": 64, "height": 64, "p": pose.p, "q": pose.q}
    settings = {"control_mode": "pd_ee_delta_pose", "reward_mode": "dense", "camera_cfgs": {"base_camera": camera}}
    faucet = {"asset_root": f"{assets}/maniskill2/partnet_mobility/dataset", "model_ids": ["5021"]}
    stock = RGBDObservationWrapper(Stock(obs_mode="image", **settings, **faucet))
    rgbd, _ = stock.reset(seed=env._env._episode_seed, options={"reconfigure": True})
    assert rgbd["image"].keys() == {"base_camera", "hand_camera"}
    for action in ACTIONS[:4]:
        np.testing.assert_array_equal(obs["image"], rgbd["image"]["base_camera"]["rgb"])
        obs, reward, *_ = env.step({"action": action})
        rgbd, stock_reward, *_ = stock.step(action)
        assert reward == stock_reward
    stock.close()


@pytest.mark.slow
def test_workers(assets):
    from envs.parallel import EnvGroup

    settings = {"action_repeat": 1, "time_limit": 100, "assets": assets, "size": (32, 32)}
    group = EnvGroup([partial(envs.make, "rms_lift_cube", seed=s, **settings) for s in (0, 1)], parallel=True)
    try:
        first = group.reset([0, 4])
        group.send([{"action": ACTIONS[0]}] * 2)
        steps = group.receive()
    finally:
        group.close()
    for seed, episode in ((0, 0), (1, 4)):
        images, rewards = play(make("lift_cube", assets, seed=seed, size=(32, 32)), ACTIONS[:1], episode)
        np.testing.assert_array_equal(first[seed]["image"], images[0])
        np.testing.assert_array_equal(steps[seed].obs["image"], images[1])
        assert steps[seed].reward == rewards[0]


class TestScene:
    def test_room(self, assets, tmp_path):
        """The scan fills the image, with the robot in front of it and no ground plane."""
        from maniskill_assets import write_scan

        red = write_scan(tmp_path / "red" / "deep" / "room.glb", (200, 0, 0), (200, 0, 0))
        green = write_scan(tmp_path / "green" / "room.glb", (0, 200, 0), (0, 200, 0))
        pictures = []
        for scan in (red, green):
            env = bare("push_cube", assets, scan_path=str(scan.parent if scan is green else tmp_path / "red"))
            pictures.append(env.reset()["image"].astype(int))
        differs = (pictures[0] != pictures[1]).any(-1)
        assert 0.4 < differs.mean() < 0.97
        lower = slice(40, 64)  # the ground would be visible here: the floor of the room is 0.8 m below
        red_floor = (pictures[0][lower, :, 0] > pictures[0][lower, :, 1] + 20) & differs[lower]
        assert red_floor.mean() > 0.3
        names = {actor.name: actor for actor in env._env._scene.get_all_actors()}
        assert names["ground"].get_visual_bodies() == [] and len(names["ground"].get_collision_shapes()) == 1
        assert names["scan"].get_collision_shapes() == []
        np.testing.assert_allclose(names["scan"].pose.p, [0, 0, -0.8])
        np.testing.assert_allclose(names["scan"].pose.q, [0, 0, 0, 1])

    def test_rooms_of_images_surround_the_robot(self, assets, tmp_path):
        """Rooms of setup/make_rooms.py: the pixels around the robot and the cube have the hue of the image."""
        from setup import make_rooms

        for name, color in (("blue", (200, 60, 20)), ("green", (20, 200, 60))):  # BGR
            cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((32, 32, 3), color, np.uint8))
            flags = ["--images", str(tmp_path / f"{name}.png"), "--to", str(tmp_path / name), "--count", "1"]
            assert make_rooms.main(flags) == 0
        scans = [str(tmp_path / name) for name in ("blue", "green")]
        blue, green = (bare("push_cube", assets, scan_path=scan).reset()["image"].astype(int) for scan in scans)
        room = (blue != green).any(-1)
        assert 0.4 < room.mean() < 0.97
        assert (blue[room].argmax(-1) == 2).mean() > 0.95 and (green[room].argmax(-1) == 1).mean() > 0.95

    @pytest.mark.slow
    def test_scans_are_drawn_at_each_reset(self, assets):
        env = bare("push_cube", assets, size=(32, 32))
        scans, pictures = [], {}
        for _ in range(9):
            image = env.reset()["image"]
            scans.append(env._env.scan.name)
            np.testing.assert_array_equal(pictures.setdefault(scans[-1], image), image)  # everything else is the same
        assert set(scans) == {"room_0.glb", "room_1.glb", "room_2.glb"}

    def test_an_env_survives_the_reset_of_another(self, assets):
        """They share one renderer, and a reset clears its cache."""
        one, other = bare("push_cube", assets, size=(32, 32)), bare("turn_faucet", assets, size=(32, 32))
        expected, _ = play(one, ACTIONS[:2])
        one.reset(0)
        other.reset()
        one.step({"action": ACTIONS[0]})
        other.reset()
        np.testing.assert_array_equal(one.step({"action": ACTIONS[1]})[0]["image"], expected[2])

    @pytest.mark.parametrize("task", ["push_cube", "turn_faucet"])
    def test_robot_and_camera(self, task, assets):
        env = bare(task, assets)
        env.reset()
        engine = env._env
        np.testing.assert_allclose(engine.agent.robot.pose.p, [-0.615, 0, 0.05], atol=1e-6)
        joints = {
            "push_cube": [0, 45, 0, -112.5, 0, 157.5, 45],
            "turn_faucet": [0, 22.5, 0, -112.5, 0, 135, 45],
        }[task]
        np.testing.assert_allclose(np.rad2deg(engine.agent.robot.get_qpos()[:7]), joints, atol=1e-4)
        np.testing.assert_allclose(engine.agent.robot.get_qpos()[7:], [0.04, 0.04], atol=1e-6)
        assert list(engine._cameras) == ["base_camera"]
        matrix = engine._cameras["base_camera"].camera.get_model_matrix()  # looks along its -z
        np.testing.assert_allclose(matrix[:3, 3], [0.2, -0.4, 0.4], atol=1e-6)
        toward = np.array([-0.2, 0.4, -0.1]) / np.sqrt(0.21)
        np.testing.assert_allclose(-matrix[:3, 2], toward, atol=1e-5)

    def test_other_tasks_keep_their_robot_and_camera(self, assets):
        env = bare("plug_charger", assets)
        env.reset()
        np.testing.assert_allclose(env._env.agent.robot.pose.p, [-0.615, 0, 0], atol=1e-6)
        matrix = env._env._cameras["base_camera"].camera.get_model_matrix()
        np.testing.assert_allclose(matrix[:3, 3], [-0.3, 0, 0.1], atol=1e-6)

    def test_faucet(self, assets):
        env = bare("turn_faucet", assets)
        env.reset()
        engine = env._env
        assert engine.model_id == "5021" and engine.target_link.name == "link_0"
        np.testing.assert_allclose(engine.faucet.pose.p, [0.1, 0, 0], atol=1e-6)
        np.testing.assert_allclose(engine.faucet.pose.q, [1, 0, 0, 0], atol=1e-6)
        assert engine.current_angle == 0 and engine.target_angle == pytest.approx(0.9 * 1.57, abs=1e-4)
        qpos = engine.faucet.get_qpos()
        qpos[engine.target_joint_idx] = engine.target_angle + 0.02
        engine.faucet.set_qpos(qpos)
        _, reward, done, info = env.step({"action": np.zeros(7)})
        assert info == {"success": True} and reward == 10 and done is False


@pytest.fixture(scope="module")
def show(assets, tmp_path_factory):
    """show(room) is the first image in front of a room that `write_room` makes with these settings."""
    folder, pictures = tmp_path_factory.mktemp("rooms"), {}

    def show(scan_up="z", **room) -> np.ndarray:
        key = repr((scan_up, room))
        if key not in pictures:
            path = folder / str(len(pictures)) / "room.glb"
            write_room(path, **room)
            env = bare("push_cube", assets, scan_path=str(path.parent), scan_up=scan_up)
            pictures[key] = env.reset()["image"].astype(int)
            env.close()
        return pictures[key]

    return show


class TestScans:
    """Rooms as SAPIEN shows them; tests/test_scans.py has which of them are converted."""

    @pytest.mark.parametrize("name", [name for name, (_, same) in CONVERTED.items() if same is not None])
    def test_a_converted_room_looks_like_the_same_one_in_a_plain_file(self, name, show, capsys):
        room, same = CONVERTED[name]
        picture, expected = show(**room), show(**same)
        assert "behind the robot" not in capsys.readouterr().err
        assert len(np.unique(expected.reshape(-1, 3), axis=0)) > 200
        assert np.abs(picture - expected).mean() < 2

    @pytest.mark.parametrize("name", [name for name in SHOWN if name != "plain color"])
    def test_a_room_that_is_taken_as_it_is(self, name, show):
        assert np.abs(show(**SHOWN[name]) - show()).mean() < 2

    def test_vertex_colors(self, show):
        plain = show(texture="", color={"baseColorFactor": [1, 1, 1, 1]})
        colored = show(**CONVERTED["vertex colors"][0])
        shade = np.minimum(colored / np.maximum(plain, 1), 1)  # reflected share of white light, by channel
        floor, green_wall = shade[-4, 10], shade[10, -10]
        tinted = [show(**CONVERTED[name][0]) for name in ("tinted vertex colors", "tinted texture")]
        for picture, clear in zip(tinted, (colored, show()), strict=True):
            ratio = picture[-4, 10] / clear[-4, 10]
            assert ratio[0] < 0.85 and ratio[1] > 0.95 and ratio[2] < 0.85
        assert floor[0] > floor[1] > floor[2]  # (150, 110, 70)
        assert green_wall[1] > green_wall[2] > green_wall[0]  # (60, 140, 90)

    def test_rooms_with_y_up(self, show):
        upright = show(y_up=True, scan_up="y")
        assert np.abs(upright - show()).mean() < 2
        assert np.abs(show(y_up=True) - show()).mean() > 20  # lies on its side

    def test_a_background_of_one_color_is_said_once(self, assets, tmp_path, capsys):
        rooms = {
            "outside": ({"inside": False}, "behind the robot, nothing of it is seen: (0, 0, 0)"),
            "far": ({"node": {"translation": [900, 0, 0]}}, "behind the robot, nothing of it is seen: (0, 0, 0)"),
            "transparent": ({"alpha": 0, "material": {"alphaMode": "MASK"}}, "nothing of it is seen"),
        }
        for name, (room, said) in rooms.items():
            path = write_room(tmp_path / name / "room.glb", **room)
            env = bare("push_cube", assets, scan_path=str(path.parent))
            env.reset()
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and err.startswith(f"{path}: ") and said in err, err
            env.reset()
            assert capsys.readouterr().err == ""
            env.close()

    def test_positions_that_are_not_finite_are_said(self, assets, tmp_path, capsys):
        path = write_room(tmp_path / "room.glb")
        content = bytearray(path.read_bytes())
        corner = struct.pack("<3f", -3, -3, 0)
        content[content.rindex(corner) : content.rindex(corner) + 4] = struct.pack("<f", np.nan)
        path.write_bytes(content)
        bare("push_cube", assets, scan_path=str(tmp_path)).reset()
        assert "room.glb: its vertices or texture coordinates are not finite" in capsys.readouterr().err

    def test_a_scan_that_cannot_be_shown_ends_the_run_at_its_start(self, assets, tmp_path):
        for i, room in enumerate(({}, {"extensionsRequired": ["KHR_draco_mesh_compression"]})):
            write_room(tmp_path / f"{i}.glb", **room)
        with pytest.raises(ValueError, match=r"1\.glb: it requires KHR_draco_mesh_compression.*copy IN OUT"):
            make("push_cube", assets, scan_path=str(tmp_path))
        with pytest.raises(ValueError, match="--scan_up is x: expected one of z, y"):
            make("push_cube", assets, scan_up="x")


class TestCubeRewards:
    """States set by hand; the expected numbers follow from the definition: linear falls to 0.1 at one margin."""

    @pytest.fixture(params=["push_cube", "lift_cube", "pick_cube"])
    def engine(self, request, assets):
        env = bare(request.param, assets, size=(16, 16))
        env.reset()
        yield env._env
        env.close()

    def reward(self, engine):
        return engine.compute_dense_reward(info=engine.get_info())

    def test_start(self, engine):
        np.testing.assert_allclose(engine.obj.pose.p, [0, 0, 0.02], atol=1e-6)
        goals = {"PushCube": [0.2, 0.2, 0], "LiftCube": [0, 0, 0.3], "PickCube": [0.1, 0, 0.3]}
        np.testing.assert_allclose(engine.goal_pos, goals[type(engine).__name__])
        np.testing.assert_allclose(engine.goal_site.pose.p, engine.goal_pos, atol=1e-6)

    def test_reach(self, engine):
        """Long tail: 1 / (1 + 9 x²), x = (distance - 0.02) / 0.6157, the cube's initial distance from the base."""
        for distance, expected in ((0.1, 0.8681), (0.3, 0.3495), (0.6357, 0.1), (1.0, 0.0420)):
            put_cube(engine, engine.tcp.pose.p, y=distance)
            assert self.reward(engine) == pytest.approx(expected, abs=1e-4)

    def test_grip(self, engine):
        """Within 2 cm of the cube, the fingers' distance counts: all of 0.5 up to 4 cm, a tenth of it at 6 cm."""
        for opening, expected in ((0.08, 0), (0.06, 0.05), (0.05, 0.275), (0.04, 0.5), (0, 0.5)):
            qpos = engine.agent.robot.get_qpos()
            qpos[-2:] = opening / 2
            engine.agent.robot.set_qpos(qpos)
            put_cube(engine, engine.tcp.pose.p, z=0.019)
            assert self.reward(engine) == pytest.approx(1 + expected, abs=1e-4)
            put_cube(engine, engine.tcp.pose.p, z=0.0201)
            assert self.reward(engine) == pytest.approx(1, abs=1e-4)

    def test_grasp(self, engine):
        """The fingers really close on the cube; then start and goal are moved so that the errors are known."""
        put_cube(engine, engine.tcp.pose.p, z=0.006)
        assert self.reward(engine) == pytest.approx(1)  # open fingers around it
        for _ in range(6):
            engine.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
        assert engine.agent.check_grasp(engine.obj, max_angle=30)
        cube, kind = engine.obj.pose.p, type(engine).__name__
        engine.start_pos = np.add(cube, (-0.3, 0, -0.4))  # reach and grip are within their bounds anyway
        engine.goal_pos = np.add(cube, (0.3, 0, 0.4))
        away = 0.5 if kind == "PushCube" else 0.4  # and twice that at the start
        assert self.reward(engine) == pytest.approx(1.5 + 5 * (1 - 0.9 * (away - 0.025) / (2 * away)), abs=1e-3)
        engine.goal_pos = np.add(cube, (0, 0, 0.02))
        assert self.reward(engine) == pytest.approx(11.5 if kind == "PickCube" else 6.5, abs=1e-3)

    def test_goal(self, engine):
        kind = type(engine).__name__
        start = engine.start_pos
        if kind == "PushCube":
            length = np.linalg.norm([0.2, 0.2, -0.02])
            unit = np.array([0.2, 0.2, -0.02]) / length
            cases = [(engine.goal_pos, 5), (engine.goal_pos - 0.024 * unit, 5), (start - 0.025 * unit, 0.5)]
            cases += [(engine.goal_pos - (0.025 + length / 2) * unit, 5 * 0.55), (start - 0.5 * unit, 0)]
        elif kind == "LiftCube":
            cases = [((0, 0, 0.3), 5), ((0.4, -0.2, 0.28), 5), ((0, 0, 0.3 - 0.025 - 0.14), 5 * 0.55)]
            cases += [((0, 0, -0.005), 0.5), ((0, 0, 0.3 + 0.025 + 0.14), 5 * 0.55)]
        else:
            cases = [((0.1, 0, 0.3), 10), ((0, 0, 0.3 - 0.025 - 0.14), 5 * 0.55), ((0.1, 0, 0.135), 5 * 0.55)]
            cases += [((0.1, 0.075, 0.29), 5 + 5 * 0.55), ((0.1, -0.125, 0.31), 5 + 0.5), ((0.5, 0, 0.3), 5)]
        for cube, expected in cases:
            assert engine.goal_reward(np.array(cube, float)) == pytest.approx(expected, abs=1e-3), cube

    def test_success(self, engine):
        assert not engine.get_info()["success"]
        put_cube(engine, engine.goal_pos, y=0.02)
        assert engine.get_info()["success"]
        put_cube(engine, engine.goal_pos, y=0.03)
        assert engine.get_info()["success"] == (type(engine).__name__ == "LiftCube")
        put_cube(engine, engine.goal_pos, z=0.03)
        assert not engine.get_info()["success"]


class TestBadInput:
    def test_no_scans(self, assets, tmp_path):
        message = re.escape(str(tmp_path)) + r".*download_assets.py matterport.*--scan_path"
        with pytest.raises(FileNotFoundError, match=message):
            make("push_cube", assets, scan_path=str(tmp_path))
        with pytest.raises(FileNotFoundError, match="matterport"):
            make("push_cube", str(tmp_path / "nothing"))

    @pytest.mark.parametrize(
        "task, file",
        [
            ("turn_faucet", "partnet_mobility/dataset/5021/mobility_cvx.urdf"),
            ("assembling_kits", "assembling_kits/episodes.json"),
            ("panda_avoid_obstacles", "avoid_obstacles/panda_train_2k.json.gz"),
        ],
    )
    def test_missing_assets(self, task, file, assets, tmp_path, monkeypatch):
        scans = str(Path(assets, "matterport"))
        for root in (tmp_path / "maniskill2", tmp_path / "elsewhere"):
            message = rf"rms_{task} .*{re.escape(str(root / file))}.*download_assets.py maniskill2"
            with pytest.raises(FileNotFoundError, match=message):
                make(task, str(tmp_path), scan_path=scans)
            monkeypatch.setenv("MS2_ASSET_DIR", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("MS2_ASSET_DIR", str(Path(assets, "maniskill2")))
        make(task, str(tmp_path), scan_path=scans).reset()

    def test_vectors(self, assets):
        with pytest.raises(ValueError, match="cnn_keys"):
            make("push_cube", assets, image=False)

    def test_task(self, assets):
        with pytest.raises(ValueError, match="rms_push_cube"):
            make("push_cub", assets)

    @pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
    def test_action(self, action, assets):
        env = make("push_cube", assets)
        env.reset()
        with pytest.raises(ValueError, match="action"):
            env.step({"action": action})
