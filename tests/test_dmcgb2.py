"""DMC-GB2 with the real engine: views, screens, episodes."""

import itertools

import numpy as np
import pytest
from test_backgrounds import write_video
from test_distracted import play

import envs
from envs import dmcgb2
from envs.dmc import DMC

TASKS = {"walker": "walk", "cheetah": "run", "cartpole": "swingup", "ball_in_cup": "catch", "finger": "spin"}


def quadrants() -> np.ndarray:
    """A picture whose quarters tell how it is turned: red, green, blue, white."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:32, :32, 0] = frame[:32, 32:, 1] = frame[32:, :32, 2] = 255
    frame[32:, 32:] = 255
    return frame


@pytest.fixture
def assets(tmp_path):
    for i in range(3):
        frames = np.stack([quadrants()] * 2 + [np.full((64, 64, 3), 60 * i + 60, np.uint8)])
        write_video(tmp_path / "dmcgb" / "video_easy" / f"video{i}.mp4", frames)
    return str(tmp_path)


@pytest.mark.parametrize("domain", TASKS)
def test_the_screen_fills_what_is_behind_the_robot_and_is_upright(domain, assets):
    env = envs.make(f"dmc_{domain}_{TASKS[domain]}_color_video_easy", assets=assets)
    plain = DMC(domain, TASKS[domain])
    for episode in range(2):
        frame, stock = env.reset(episode)["image"].astype(int), plain.reset(episode)["image"].astype(int)
        assert (np.abs(frame - stock).sum(-1) > 30).mean() > 0.8
        corners = {"left": frame[2:12, 4:24].mean((0, 1)), "right": frame[2:12, -24:-4].mean((0, 1))}
        assert corners["left"].argmax() == 0 and corners["right"].argmax() == 1  # red, green
        assert min(corners["left"].max(), corners["right"].max()) > 90  # and bright enough to be seen
    env.close()


@pytest.mark.parametrize("domain", ["walker", "cheetah"])
def test_the_screen_follows_the_robot(domain, assets):
    env = envs.make(f"dmc_{domain}_{TASKS[domain]}_color_video_easy", assets=assets)
    env.reset()
    x = env.physics.named.data.qpos["rootx"][0]
    with env.physics.reset_context():
        env.physics.named.data.qpos["rootx"] = x + 30
    frame = env.env.env.env.render()
    assert frame[2:12, 4:24].mean((0, 1)).argmax() == 0 and frame[2:12, -24:-4].mean((0, 1)).argmax() == 1


def test_videos_and_colors_change_with_the_episode_and_frames_with_the_step(assets):
    env, again = (envs.make("dmc_cartpole_swingup_color_video_easy", seed=4, assets=assets) for _ in range(2))
    episodes = [play(env, episode, 4) for episode in range(3)]
    np.testing.assert_array_equal(play(again, 2, 4), episodes[2])
    np.testing.assert_array_equal(play(again, 0, 4), episodes[0])
    sky = [frames[:, 3, 8].astype(int) for frames in episodes]
    for frames in sky:  # the third frame of a video is gray, and the first one follows it
        assert np.abs(frames[0] - frames[3]).max() < 12 and np.ptp(frames[2]) < 30 < np.ptp(frames[0])
    assert len({int(frames[2].mean()) // 10 for frames in sky}) == 3
    assert len({tuple(env.physics.named.model.mat_rgba["self"]) for e in range(3) if env.reset(e)}) > 1


@pytest.mark.parametrize("domain", TASKS)
@pytest.mark.parametrize("level", ["easy", "hard"])
def test_views(domain, level):
    """A rotation by a multiple of a right angle turns the picture; a shift keeps the robot in it, off the center."""
    plain, task = DMC(domain, TASKS[domain], seed=2), f"dmc_{domain}_{TASKS[domain]}"
    stock = plain.reset(0)["image"].astype(int)
    rotated = envs.make(f"{task}_rotate_{level}", seed=2)
    rotated.reset(0)
    inner = rotated.env.env.env
    for k in (0, 1, 2, 3):
        inner._turn = dmcgb2.turn(2, 90 * k)
        # the camera turns counterclockwise, the picture clockwise; edges and shadows are sampled again
        difference = np.abs(np.rot90(inner.render(), k).astype(int) - stock)
        assert difference.mean() < 4, k
    views = [rotated.reset(episode)["image"].tobytes() for episode in range(5)]
    assert len(set(views)) == 5 and rotated.reset(1)["image"].tobytes() == views[1]

    shifted = envs.make(f"{task}_shift_{level}", seed=2)
    own = [geom for geom in range(plain.physics.model.ngeom) if plain.physics.model.geom_bodyid[geom] > 0]
    for episode in range(4):
        shifted.reset(episode)
        axes = shifted.physics.data.cam_xmat[shifted._camera_id]
        stock_axes = axes.copy()
        axes[:] = (stock_axes.reshape(3, 3) @ shifted._turn).reshape(-1)
        seen = shifted.physics.render(64, 64, camera_id=shifted.camera, segmentation=True)
        axes[:] = stock_axes
        assert np.isin(seen[..., 0], own)[seen[..., 1] == 5].sum() > 5
    for env in (plain, rotated, shifted):
        env.close()


def test_sets_of_views():
    for maximum in (90, 180):
        angles = [np.degrees(np.arctan2(view[1, 0], view[0, 0])) for view in dmcgb2.rotation_views(maximum)]
        np.testing.assert_allclose(np.diff(np.unwrap(angles, period=360)), maximum / 50)
        assert angles[0] == pytest.approx(-maximum)
    for corners in dmcgb2.CORNERS.values():
        views = dmcgb2.shift_views(*corners)
        pitch = np.degrees([np.arcsin(-view[2, 0]) for view in views])
        roll = np.degrees([np.arctan2(view[2, 1], view[2, 2]) for view in views])
        low, high, left, right = corners
        assert (pitch.min(), pitch.max()) == pytest.approx((low, high), abs=0.5)
        assert (roll.min(), roll.max()) == pytest.approx((left, right), abs=0.5)
        on_border = np.isclose(pitch, low) | np.isclose(pitch, high) | np.isclose(roll, left) | np.isclose(roll, right)
        assert on_border.all()
    order = [envs.make("dmc_cartpole_swingup_rotate_easy", seed=seed, image=False)._orders for seed in (0, 1)]
    for level, divisor, maximum in (("easy", 1.5, 90), ("hard", 1, 180)):
        env = envs.make(f"dmc_cartpole_swingup_rotate_shift_{level}", image=False)
        assert np.degrees(max(np.arcsin(-view[2, 0]) for view in env._shifts)) == pytest.approx(8 / divisor, abs=0.5)
        np.testing.assert_allclose(env._rotations[0], dmcgb2.turn(2, -maximum), atol=1e-9)
        env.reset(3)  # the shift alone determines the optical axis: the camera rolls about it
        np.testing.assert_allclose(env._turn[:, 2], env._shifts[env._orders[0][3]][:, 2])
    assert all(sorted(each) == list(range(100)) for each in itertools.chain(*order))
    assert (order[0][0] != order[1][0]).any() and (order[0][0] != order[0][1]).any()


def test_geometry_does_not_touch_the_physics():
    plain, shifted = DMC("walker", "walk", seed=1), envs.make("dmc_walker_walk_rotate_shift_hard", seed=1)
    plain.reset(), shifted.reset()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        (ours, reward, *_), (theirs, their_reward, *_) = (
            shifted.step({"action": action}),
            plain.step({"action": action}),
        )
        assert reward == their_reward and (ours["image"] != theirs["image"]).any()
        np.testing.assert_array_equal(plain.physics.get_state(), shifted.physics.get_state())
        np.testing.assert_array_equal(plain.physics.data.cam_xmat, shifted.physics.data.cam_xmat)


def test_other_domains_and_missing_videos_are_one_line(tmp_path):
    for mode in ("rotate_easy", "shift_hard", "color_video_easy"):
        with pytest.raises(ValueError, match=rf"{mode} is defined for .*walker.*; not for reacher"):
            envs.make(f"dmc_reacher_easy_{mode}", assets=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"video_hard needs its 100 videos.*download_assets"):
        envs.make("dmc_walker_walk_color_video_hard", assets=str(tmp_path))
    assert "image" not in envs.make("dmc_walker_walk_color_video_hard", assets=str(tmp_path), image=False).reset()
