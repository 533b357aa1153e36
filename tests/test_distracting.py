"""The Distracting Control Suite: walks stay in range, the seed determines the frames, the task is unchanged."""

import math
import shutil
from functools import partial

import cv2
import numpy as np
import pytest

import envs
from envs import distracting, notes
from envs.distracting import VIDEOS, CameraWalk, ColorWalk, DistractingCS, to_cartesian, to_sphere
from envs.dmc import DMC, TASKS
from envs.parallel import EnvGroup
from envs.suite import DOMAINS

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]  # RGB of each sequence's frames


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """A small DAVIS: five sequences of three plain frames, as the archive unpacks, one of them not for training."""
    root = tmp_path_factory.mktemp("davis")
    names = ["bear", "boat", "bus", "camel", "train"]
    for name in names:
        folder = root / "DAVIS" / "JPEGImages" / "480p" / name
        folder.mkdir(parents=True)
        for i, color in enumerate(COLORS):
            cv2.imwrite(str(folder / f"{i:05d}.jpg"), np.full((48, 85, 3), color[::-1], np.uint8))
    split = root / "DAVIS" / "ImageSets" / "2017" / "train.txt"
    split.parent.mkdir(parents=True)
    split.write_text("\n".join(name for name in names if name != "camel") + "\n")
    return root


@pytest.fixture
def make(davis, tmp_path_factory):
    def make(domain, mode="distracting_cs", task=None, **settings):
        settings = {"ds_resource_path": str(davis), "assets": str(davis), "seed": 3} | settings
        return DistractingCS(domain, task or TASKS[domain][0], mode, **settings)

    return make


@pytest.fixture(scope="module")
def stock():
    """{domain: the camera's offset from what it looks at}, from the suite's own models."""
    offsets = {}
    for domain in DOMAINS["sensor_cs"]:
        env = DMC(domain, TASKS[domain][0], image=False, seed=5)
        env.reset()
        data = env.physics.data
        camera, com = data.cam_xpos[0], data.subtree_com[1]
        if domain in ("walker", "cheetah"):  # the camera tracks the center of mass
            offsets[domain] = camera - com
        else:  # it looks along -z, at a point as far as the robot
            offsets[domain] = data.cam_xmat[0].reshape(3, 3)[:, 2] * np.linalg.norm(camera - com)
    return offsets


@pytest.mark.parametrize("intensity", VIDEOS)
@pytest.mark.parametrize("domain", DOMAINS["sensor_cs"])
def test_the_camera_stays_in_its_ranges(domain, intensity, stock):
    rng = np.random.default_rng(0)
    offset = stock[domain]
    radius = np.linalg.norm(offset)
    vertical, horizontal = math.acos(offset[2] / radius), math.atan2(offset[1], offset[0])
    walk = CameraWalk(offset, intensity, domain == "reacher", rng)
    places, rolls, before = [], [], to_cartesian(walk.place)
    for _ in range(1000):
        walk.move(rng)
        now = to_cartesian(walk.place)
        np.testing.assert_allclose(walk.velocity, now - before, atol=1e-9)
        before = now
        places.append(walk.place)
        rolls.append(walk.roll)
        assert abs(walk.roll_velocity) <= math.pi * intensity / 50 + 1e-9
    r, v, h = np.array(places).T
    eps, angle = 1e-9, math.pi / 2 * intensity
    assert radius * (1 - 0.5 * intensity) - eps <= r.min() and r.max() <= radius * (1 + 1.5 * intensity) + eps
    assert np.abs(v - vertical).max() <= angle + eps and np.abs(h - horizontal).max() <= angle + eps
    if domain == "reacher":
        assert np.abs(rolls).max() <= angle + eps and np.ptp(rolls) > angle
    else:
        assert v.min() >= 0 and v.max() <= math.pi / 2 and -math.pi <= h.min() and h.max() <= 0
        assert not np.any(rolls)
    # And it does move: the walk covers most of each range (reacher's is two wedges that meet at the pole).
    share = [0.5, 0.25 if domain == "reacher" else 0.5, 0.5]
    assert (np.ptp(places, axis=0) > share * (walk.high - walk.low)).all()


def test_speed():
    """After one step of noise no move is longer than 0.4 i scale; clipping can only make it shorter."""
    rng = np.random.default_rng(1)
    walk = CameraWalk(np.array([0.0, -4.0, 1.0]), 0.2, False, rng)
    limit = 0.4 * 0.2 * math.sqrt(17) / 4
    before, moves = to_cartesian(walk.place), []
    for _ in range(3000):
        walk.move(rng)
        moves.append(np.linalg.norm(to_cartesian(walk.place) - before))
        before = to_cartesian(walk.place)
    assert max(moves) <= limit * 1.01 and max(moves) > 0.9 * limit


@pytest.mark.parametrize("free", [True, False])
def test_the_camera_looks_at_its_target(free):
    rng = np.random.default_rng(2)
    walk = CameraWalk(np.array([0.0, 0.0, 0.75]) if free else np.array([0.0, -1.0, 0.5]), 0.5, free, rng)
    for _ in range(200):
        walk.move(rng)
        offset, axes = walk.pose()
        x, y, z = axes.reshape(3, 3).T
        np.testing.assert_allclose(axes.reshape(3, 3).T @ axes.reshape(3, 3), np.eye(3), atol=1e-12)
        np.testing.assert_allclose(np.cross(x, y), z, atol=1e-12)
        np.testing.assert_allclose(z * np.linalg.norm(offset), offset)
        if not free:
            assert abs(x[2]) < 1e-12 and y[2] > 0  # upright
    assert free == (walk.roll != 0)


def test_spherical_coordinates():
    for position in np.random.default_rng(0).normal(size=(100, 3)):
        np.testing.assert_allclose(to_cartesian(to_sphere(position)), position, atol=1e-12)
    assert to_sphere((0, 0, 2)) == (2, 0, 0)
    np.testing.assert_allclose(to_sphere((0, -3, 0)), (3, math.pi / 2, -math.pi / 2))


def test_the_walk_continues_straight_over_the_pole():
    """Directly above its target, a camera that keeps its direction comes out on the other side."""
    walk = CameraWalk(np.array([0.0, 0.0, 1.0]), 0.5, True, np.random.default_rng(0))
    walk.place, walk.velocity = np.array([1.0, 0.04, 0.0]), np.array([-0.03, 0.0, 0.0])

    class Still:
        def normal(self, size=None):
            return np.zeros(size) if size else 0.0

    xs = []
    for _ in range(4):
        walk.move(Still())
        xs.append(to_cartesian(walk.place)[0])
    np.testing.assert_allclose(xs, [0.01, -0.02, -0.05, -0.08], atol=2e-3)


@pytest.mark.parametrize("intensity", VIDEOS)
def test_colors_stay_in_their_ranges(intensity):
    rng = np.random.default_rng(0)
    stock = DMC("walker", "walk", image=False).physics.model.mat_rgba[:, :3]
    walk = ColorWalk(stock, intensity, rng)
    seen = [walk.colors]
    for _ in range(3000):
        walk.move(rng)
        seen.append(walk.colors)
    seen = np.array(seen)
    assert np.abs(seen - stock).max() <= intensity + 1e-7 and seen.min() >= 0 and seen.max() <= 1
    steps = np.diff(seen, axis=0)
    inside = (
        (np.abs(seen[:-1] - stock) < 0.8 * intensity)
        & (seen[:-1] > 0.1 * intensity)
        & (seen[:-1] < 1 - 0.1 * intensity)
    )
    assert steps[inside].std() == pytest.approx(0.03 * intensity, rel=0.03)
    assert (np.ptp(seen, axis=0) > 0.5 * intensity).mean() > 0.9


@pytest.mark.parametrize("mode", ["distracting_cs", "sensor_cs"])
@pytest.mark.parametrize("domain", DOMAINS["sensor_cs"])
def test_the_seed_determines_episodes_and_the_task_is_unchanged(domain, mode, make):
    played, jumped, other = make(domain, mode), make(domain, mode), make(domain, mode, seed=4)
    plain = DMC(domain, TASKS[domain][0], seed=3, image=False)
    rng = np.random.default_rng(0)
    actions = [{"action": rng.uniform(-1, 1, played.action_space.shape)} for _ in range(2)]
    played.reset()
    played.step(actions[0])
    first = played.reset(), jumped.reset(episode=1), other.reset(episode=1), plain.reset(episode=1)
    frames = [first]
    for action in actions:
        steps = [env.step(action) for env in (played, jumped, other, plain)]
        assert steps[0][1] == steps[3][1]  # the reward
        frames.append([step[0] for step in steps])
    for ours, theirs, others, stock in frames:
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        assert (ours["image"] != others["image"]).any()
        for key in stock:
            np.testing.assert_array_equal(ours[key], stock[key], err_msg=key)
    np.testing.assert_array_equal(played.physics.get_state(), plain.physics.get_state())
    assert (frames[0][0]["image"] != frames[1][0]["image"]).mean() > 0.1


@pytest.mark.parametrize("repeat, moves", [(1, [0, 1, 1, 2, 2]), (2, [1, 2, 3, 4, 5]), (4, [2, 4, 6, 8, 10])])
def test_the_camera_moves_every_second_environment_step(repeat, moves, make):
    env = make("reacher", action_repeat=repeat, size=(8, 8))
    env.reset()
    counted, walk = [0], env._camera_walk.move
    env._camera_walk.move = lambda rng: (counted.append(counted[-1] + 1), walk(rng))
    assert [(env.step({"action": np.zeros(2)}), counted[-1])[1] for _ in range(5)] == moves


def test_the_video_plays_back_and_forth_on_the_sky(make):
    """Reacher's floor is invisible: what the camera sees is sky, in the colors of the frames and in their order."""
    env = make("reacher", distracting_cs_intensity=0.1, size=(16, 16))
    orders = set()
    for _ in range(5):
        obs = env.reset()
        indices = []
        for _ in range(5):
            pixel = np.median(obs["image"].reshape(-1, 3), axis=0)
            indices.append(int(np.argmin(np.abs(pixel - COLORS).sum(1))))
            assert np.abs(pixel - COLORS[indices[-1]]).max() < 10
            obs = env.step({"action": np.zeros(2)})[0]
        steps = np.abs(np.diff(indices))
        assert (steps == 1).all()  # no frame comes twice, and the last is never followed by the first
        orders.add(tuple(indices[:2]))
    assert len(orders) >= 3  # starts and directions differ


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_video_reverses_at_its_ends(frames, make):
    env = make("walker", image=False)
    env._videos, env._names = [np.zeros((frames, 2, 2, 3), np.uint8)], ["video"]
    env.reset()
    indices = [env._frame]
    for _ in range(30):
        env.step({"action": np.zeros(6)})
        indices.append(env._frame)
    assert set(indices) == set(range(frames))
    if frames > 1:
        assert set(np.abs(np.diff(indices))) == {1}
        turns = np.flatnonzero(np.diff(np.sign(np.diff(indices)))) + 1
        assert {indices[i] for i in turns} == {0, frames - 1}


def test_the_background_of_the_previous_episode_does_not_persist(make):
    """Two episodes that begin on the same frame of the same video are identical in every pixel (see the seeds' test);
    an episode that begins on another frame shows that one immediately."""
    env = make("reacher", size=(32, 32))
    for episode in range(3):
        pixel = np.median(env.reset(episode)["image"].reshape(-1, 3), axis=0)
        assert np.abs(pixel - COLORS[env._frame]).max() < 10


def test_sensor_cs_moves_only_the_camera(make):
    env = make("walker", "sensor_cs", distracting_cs_intensity=0.5, ds_resource_path="nowhere")
    stock = DMC("walker", "walk", seed=3)
    env.reset(), stock.reset()
    np.testing.assert_array_equal(env.physics.model.mat_rgba, stock.physics.model.mat_rgba)
    np.testing.assert_array_equal(env.physics.model.tex_data, stock.physics.model.tex_data)
    data = env.physics.data
    offset, axes = env._camera_walk.pose()
    np.testing.assert_allclose(data.cam_xpos[0], data.subtree_com[1] + offset)
    np.testing.assert_allclose(data.cam_xmat[0], axes)
    # A stock camera that is put there by hand sees the same.
    stock.physics.data.cam_xpos[0], stock.physics.data.cam_xmat[0] = data.cam_xpos[0], data.cam_xmat[0]
    np.testing.assert_array_equal(env.render(), stock.render())


@pytest.mark.parametrize("domain, alpha", [("reacher", 0), ("walker", 1), ("cheetah", 1), ("finger", 0.3)])
def test_the_floors_alpha(domain, alpha, make):
    assert make(domain).physics.named.model.mat_rgba["grid", 3] == pytest.approx(alpha)


def test_colors_reach_the_image(make):
    env = make("cheetah", distracting_cs_intensity=0.5)
    env.reset()
    model = env.physics.model
    np.testing.assert_allclose(model.mat_rgba[:, :3], env._color_walk.colors, atol=1e-7)
    assert np.abs(model.mat_rgba[:, :3] - env._stock_colors).max() > 0.2


def test_davis_is_found_in_its_layouts(davis, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notes, "_noted", set())
    names = [clip[0].parent.name for clip in distracting.find_davis(davis, 60)]
    assert names == ["bear", "boat", "bus", "train"]  # only the training split, in order
    assert [clip[0].parent.name for clip in distracting.find_davis(davis / "DAVIS", 2)] == ["bear", "boat"]
    frames = distracting.find_davis(davis / "DAVIS" / "JPEGImages" / "480p", 60)
    assert len(frames) == 4 and [path.name for path in frames[0]] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    (tmp_path / "mine").mkdir()
    cv2.imwrite(str(tmp_path / "mine" / "a.jpg"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    assert [clip[0].parent.name for clip in distracting.find_davis(tmp_path, 60)] == ["mine"]
    said = capsys.readouterr().err
    assert "480p: 4 of 60 sequences" in said and f"{tmp_path}: 1 of 60 sequences" in said and said.count("\n") == 2


def test_davis_without_the_list_of_its_training_split(davis, tmp_path, monkeypatch, capsys):
    """Its validation sequences are among the first ones, which is told."""
    monkeypatch.setattr(notes, "_noted", set())
    shutil.copytree(davis / "DAVIS" / "JPEGImages", tmp_path / "JPEGImages")
    names = [clip[0].parent.name for clip in distracting.find_davis(tmp_path, 4)]
    assert names == ["bear", "boat", "bus", "camel"]
    assert "no list of the training split (train.txt), so validation sequences are shown too" in capsys.readouterr().err


@pytest.mark.parametrize("intensity, count", [(0.025, 2), (0.05, 2), (0.1, 4), (0.5, 4)])
def test_the_intensity_chooses_the_videos(intensity, count, make):
    assert len(make("reacher", distracting_cs_intensity=intensity)._videos) == count


def test_make_and_its_errors(davis, tmp_path):
    settings = {"assets": str(tmp_path), "size": (16, 16)}
    with pytest.raises(FileNotFoundError) as error:
        envs.make("dmc_walker_walk_distracting_cs", **settings)
    for words in (str(tmp_path / "davis"), "python setup/download_assets.py davis", "--ds_resource_path"):
        assert words in str(error.value)
    with pytest.raises(ValueError, match=r"reacher, cartpole.*not for hopper"):
        envs.make("dmc_hopper_hop_sensor_cs", **settings)
    for intensity in (0.11, -1, "much", float("nan")):
        with pytest.raises(ValueError, match=r"--distracting_cs_intensity is .*expected one of 0\.025"):
            envs.make("dmc_walker_walk_sensor_cs", distracting_cs_intensity=intensity, **settings)
    with pytest.raises(ValueError, match="--distracting_cs_intensity"):
        EnvGroup([partial(envs.make, "dmc_walker_walk_sensor_cs", distracting_cs_intensity=7)], True)
    envs.make("dmc_walker_walk_distracting_cs", image=False, **settings).reset()  # vectors need no videos
    envs.make("dmc_cup_catch_sensor_cs", **settings).reset()


def test_workers_share_the_frames_and_show_the_same(davis, tmp_path):
    """Two workers that start together with an empty cache: decoded once, and each renders what one process renders."""
    settings = {"ds_resource_path": str(davis), "assets": str(tmp_path), "distracting_cs_intensity": 0.05}
    constructors = [partial(envs.make, "dmc_reacher_easy_distracting_cs", seed=i, **settings) for i in range(2)]
    with EnvGroup(constructors, True) as apart, EnvGroup(constructors, False) as together:
        for ours, theirs in zip(apart.reset([2, 0]), together.reset([2, 0]), strict=True):
            np.testing.assert_array_equal(ours["image"], theirs["image"])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
