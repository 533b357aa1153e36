"""Distracted DMC (`_video`) with the real engine: appearance, matting, frames, seeds."""

import cv2
import numpy as np
import pytest
from test_backgrounds import flat_frames, write_video

import envs
from envs import backgrounds, distracted
from envs.dmc import DMC
from run.collect import make_envs
from run.config import load_config

SPARED = ("self", "effector", "target", "site")  # materials that a mask must spare


def segment(env: DMC, size=(128, 128)) -> np.ndarray:
    """(H, W) index of the geom at each pixel, or -1."""
    kinds = env.physics.render(*size, camera_id=env.camera, segmentation=True)
    return np.where(kinds[..., 1] == 5, kinds[..., 0], -1)  # 5 is mjOBJ_GEOM


def inside(mask: np.ndarray) -> np.ndarray:
    """Without the pixels at its edges, which the renderer blends with their neighbors."""
    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)


def of_material(env: DMC, geoms: np.ndarray, *names: str) -> np.ndarray:
    """(H, W) whether the geom at a pixel has one of these materials."""
    model = env.physics.model
    materials = {model.name2id(name, "material") for name in names}
    chosen = np.array([int(m) in materials for m in model.geom_matid] + [False])
    return chosen[geoms]


DOMAINS = {
    "walker": "walk",
    "hopper": "hop",
    "cheetah": "run",
    "stacker": "stack_2",
    "cartpole": "swingup",
    "finger": "spin",
    "reacher": "easy",
    "ball_in_cup": "catch",
    "pendulum": "swingup",
    "point_mass": "easy",
    "quadruped": "walk",
    "humanoid": "walk",
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_mask_takes_the_scene_and_spares_the_robot(domain):
    env = DMC(domain, DOMAINS[domain], size=(128, 128), camera=0, assets=distracted.altered_look(domain))
    for episode in range(2):
        frame = env.reset(episode)["image"]
        mask, geoms = distracted.blue_mask(frame), segment(env)
        sky, floor = inside(geoms == -1), inside(of_material(env, geoms, "grid"))
        robot = inside(of_material(env, geoms, *SPARED))
        assert robot.any()
        assert mask[robot].mean() <= 0.02
        if sky.any():
            assert mask[sky].mean() >= 0.98  # a few black marks may remain
        if domain == "stacker":  # its floor and walls are seen edge-on, its backdrop has its own texture
            continue
        assert floor.any()
        if domain in distracted.DARK_FLOOR_DOMAINS:
            assert mask[floor].mean() <= 0.02
        else:
            assert mask[floor].mean() >= 0.98
    env.close()


@pytest.mark.parametrize("mode", ["video", "color_easy", "color_hard", "video_easy", "video_hard"])
def test_the_distracted_quadruped_uses_camera_0(mode, tmp_path):
    """The plain quadruped is seen by `y`, camera 2; the replaced pixels of a distracted one are those of camera 0."""
    if mode.startswith("video_"):
        write_video(tmp_path / "dmcgb" / mode / "video0.mp4", flat_frames([90, 90]))
    env = envs.make(f"dmc_quadruped_walk_{mode}", img_source="noise", assets=str(tmp_path))
    env.reset()
    assert env.camera == "global" and DMC("quadruped", "walk").camera == "y"
    seen = DMC.render(env)
    np.testing.assert_array_equal(seen, env.physics.render(64, 64, camera_id=0))
    assert (seen != env.physics.render(64, 64, camera_id=2)).any()
    env.close()


def test_altered_look_does_not_affect_other_envs():
    plain = DMC("walker", "walk")
    before = plain.reset()["image"]
    altered = DMC("walker", "walk", assets=distracted.altered_look("walker"))
    assert (altered.reset()["image"] != before).mean() > 0.3
    after = DMC("walker", "walk")
    np.testing.assert_array_equal(after.reset()["image"], before)
    for env in (plain, altered, after):
        env.close()


def test_colors_of_the_altered_look():
    def colors(domain, task):
        env = DMC(domain, task, image=False, assets=distracted.altered_look(domain))
        model = env.physics.model
        grid = distracted.texture(model, model.name2id("grid", "texture")).reshape(-1, 3)
        sky = distracted.texture(model, model.name2id("skybox", "texture")).reshape(-1, 3)
        decoration = env.physics.named.model.mat_rgba["decoration"]
        return {tuple(int(x) for x in c) for c in np.unique(grid, axis=0)}, sky, decoration

    grid, sky, decoration = colors("cartpole", "swingup")
    assert grid == {(25, 25, 102), (51, 51, 204)}
    np.testing.assert_allclose(decoration, [0.7, 0.5, 0.3, 1], atol=1e-6)
    assert (sky != 255).any(1).all()  # no white marks,
    assert 0.005 < (sky[: 800 * 800] == 0).all(1).mean() < 0.02  # but black ones
    grid, _, decoration = colors("walker", "walk")
    assert grid == {(25, 25, 25), (51, 51, 51)}
    np.testing.assert_allclose(decoration, [0.3, 0.5, 0.7, 1], atol=1e-6)


@pytest.fixture
def settings(tmp_path) -> dict:
    """Settings of a `_video` task: two videos of twelve flat frames, all of different levels."""
    write_video(tmp_path / "a.mp4", flat_frames(range(20, 140, 10)))
    write_video(tmp_path / "b.mp4", flat_frames(range(145, 250, 9)))
    return {"resource_files": f"{tmp_path}/*.mp4", "assets": str(tmp_path)}


def play(env, episode: int, steps: int) -> np.ndarray:
    """The first frames of an episode under random actions that depend on its number."""
    rng = np.random.default_rng(episode)
    frames = [env.reset(episode)["image"]]
    for _ in range(steps):
        frames.append(env.step({"action": rng.uniform(-1, 1, env.action_space.shape)})[0]["image"])
    return np.stack(frames)


def test_background_shows_where_blue_is_and_moves_on_each_step(settings):
    env = envs.make("dmc_cartpole_swingup_video", seed=3, size=(48, 40), **settings)
    bare = DMC("cartpole", "swingup", seed=3, size=(48, 40), assets=distracted.altered_look("cartpole"))
    source = env._background
    starts = set()
    for episode in (0, 1):
        frames, stock = play(env, episode, 26), play(bare, episode, 26)
        assert frames.dtype == np.uint8 and frames.shape == (27, 48, 40, 3)
        mask = distracted.blue_mask(stock[0])
        start = [i for i, frame in enumerate(source) if (frames[0][mask] == frame[mask]).all()]
        assert len(start) == 1
        starts.add(start[0])
        for t, (frame, seen) in enumerate(zip(frames, stock, strict=True)):
            mask = distracted.blue_mask(seen)
            assert 0.5 < mask.mean() < 1
            background = np.broadcast_to(source[(start[0] + t) % 24], seen.shape)  # 27 frames: once around
            np.testing.assert_array_equal(frame, np.where(mask[..., None], background, seen))
    assert len(starts) > 1
    env.close()
    bare.close()


@pytest.mark.parametrize("img_source", backgrounds.IMG_SOURCES)
def test_a_seed_determines_the_stream_and_an_episode_needs_no_earlier_one(settings, tmp_path, img_source):
    if img_source == "images":
        for level in range(20, 220, 10):
            cv2.imwrite(str(tmp_path / f"{level}.png"), flat_frames([level])[0])
        settings["resource_files"] = f"{tmp_path}/*.png"
    task = {"task": "dmc_cartpole_swingup_video", "size": (32, 32), "img_source": img_source, **settings}
    first, second, other = (envs.make(seed=seed, **task) for seed in (5, 5, 6))
    episodes = [play(first, episode, 2) for episode in range(3)]
    for episode in (2, 0):
        np.testing.assert_array_equal(play(second, episode, 2), episodes[episode])
    assert (episodes[1] != episodes[2]).mean() > 0.5 and (play(other, 0, 2) != episodes[0]).mean() > 0.5
    for env in (first, second, other):
        env.close()


@pytest.mark.parametrize("img_source", ["video", "clouds", "noise", "color"])
def test_evaluation_has_its_own_backgrounds(settings, img_source):
    """In training, its evaluations, and an evaluation of the checkpoint: six episodes, six backgrounds."""
    flags = {"task": "dmc_cartpole_swingup_video", "img_source": img_source, "parallel": False, **settings}
    config = load_config([f"--{key}={value}" for key, value in flags.items()])
    corners = set()
    for mode in ("train", "eval", "eval_only"):
        with make_envs(config, mode, 2, image=True) as group:
            corners |= {obs["image"][:8, :8].tobytes() for obs in group.reset([0, 1])}  # sky
    assert len(corners) == 6


def test_held_out_files_are_for_evaluation_envs(settings, tmp_path):
    write_video(tmp_path / "held_out" / "c.mp4", flat_frames([255] * 3))
    settings["eval_resource_files"] = str(tmp_path / "held_out")
    for evaluation in (False, True):
        env = envs.make("dmc_cartpole_swingup_video", size=(32, 32), evaluation=evaluation, **settings)
        assert (env.reset()["image"][0, 0] > 250).all() == evaluation
        env.close()


def test_vector_agents_need_no_files():
    env = envs.make("dmc_cartpole_swingup_video", image=False)
    assert "image" not in env.reset() and "image" not in env.observation_space.spaces
    env.close()


def test_make_reports_missing_files():
    with pytest.raises(FileNotFoundError, match="--resource_files"):
        envs.make("dmc_cartpole_swingup_video")


def test_a_background_for_a_task_that_shows_none_is_said(capsys):
    for task, source, evaluation, said in (
        ("dmc_walker_stand", {"img_source": "clouds"}, False, True),
        ("dmc_walker_walk_color_easy", {"resource_files": "videos/*.mp4"}, False, True),
        ("dmc_walker_run_video", {"img_source": "clouds"}, False, False),
        ("dmc_cheetah_run", {"img_source": "clouds"}, True, False),
        ("dmc_cheetah_run", {}, False, False),
    ):
        envs.make(task, image=False, evaluation=evaluation, **source).close()
        assert ("are for tasks that end in _video" in capsys.readouterr().err) == said


@pytest.mark.parametrize("task", ["dmc_cartpole_balance_video", "dmc_cartpole_balance_video_easy"])
def test_an_evaluation_of_an_agent_that_sees_no_images_needs_no_files(task, tmp_path):
    env = envs.make(task, image=None, evaluation=True, size=(16, 16), assets=str(tmp_path))
    assert "image" not in env.reset(0)
