"""Colors and videos of the DMControl Generalization Benchmark with the real engine.

The benchmark's own files (assets/dmcgb, or dmcgb in the folder that HRSSM_ASSETS names) are tested too if they exist.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_backgrounds import flat_frames, write_video
from test_distracted import inside, of_material, play, segment

import envs
from envs import distracted
from envs.dmc import DMC

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("HRSSM_ASSETS", ROOT / "assets"))


def reference_green(frame: np.ndarray) -> np.ndarray:
    """Hue, saturation and value by their definitions, in floating point."""
    r, g, b = np.moveaxis(frame.astype(np.float64), -1, 0)
    v, least = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    delta = np.where(v > least, v - least, 1)
    hue = np.select([v == r, v == g], [((g - b) / delta) % 6, (b - r) / delta + 2], (r - g) / delta + 4) * 60
    hue = np.where(v > least, hue, 0).round(9)  # so that an exact 185 is not above 185
    saturation = 255 * (v - least) / np.maximum(v, 1)
    return (hue >= 100) & (hue <= 185) & (saturation.round(9) >= 80) & (v >= 70)


def test_green_mask_is_right_for_every_color():
    blue, green = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for red in range(256):
        frame = np.stack([np.full_like(green, red), green, blue], -1)
        np.testing.assert_array_equal(distracted.green_mask(frame), reference_green(frame))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_replacing_changes_only_the_masked_pixels(seed, height, width):
    rng = np.random.default_rng(seed)
    frame, background = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for mask_of in (distracted.green_mask, distracted.blue_mask):
        mask = mask_of(frame)
        expected = np.array([background[i] if mask[i] else frame[i] for i in np.ndindex(mask.shape)])
        shown = distracted.replace(frame.copy(), mask, background)
        np.testing.assert_array_equal(shown.reshape(-1, 3), expected)


def make_videos(folder: Path, mode: str, lengths) -> None:
    """Videos in gray levels that tell them apart, numbered without leading zeros as the benchmark's are."""
    folder = folder / "dmcgb" / mode
    folder.mkdir(parents=True)
    for i, length in enumerate(lengths):
        write_video(folder / f"video{i}.mp4", flat_frames([20 * i + 10 + 2 * t for t in range(length)], (40, 40)))


@pytest.mark.parametrize("mode", ["video_easy", "video_hard"])
def test_videos_take_turns_and_play_from_their_first_frame(tmp_path, mode):
    make_videos(
        tmp_path, mode, [3, 4, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    )  # eleven: video10 comes after video9, not after video1
    env = envs.make(f"dmc_cartpole_swingup_{mode}", seed=9, size=(32, 40), assets=str(tmp_path))
    videos = distracted.load_videos(mode, (32, 40), str(tmp_path))
    assert [len(video) for video in videos] == [3, 4, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert all(round(video[0].mean()) == pytest.approx(20 * i + 10, abs=4) for i, video in enumerate(videos))
    for episode in range(4):
        video = videos[(9 + episode) % 11]
        for t, frame in enumerate(play(env, episode, 5)):
            np.testing.assert_array_equal(frame[0, 0], video[t % len(video)][0, 0])  # a corner: sky in both modes
    env.close()


@pytest.mark.parametrize(
    "domain, task", [("walker", "walk"), ("cheetah", "run"), ("cartpole", "swingup"), ("fish", "swim")]
)
def test_green_screen_is_the_sky_and_in_hard_mode_the_floor(tmp_path, domain, task):
    for mode in ("video_easy", "video_hard"):
        make_videos(tmp_path, mode, [3])
        env = distracted.DMCGS(domain, task, mode, size=(128, 128), assets=str(tmp_path))
        env.reset(0)
        frame = np.ascontiguousarray(DMC.render(env))
        mask, geoms = distracted.green_mask(frame), segment(env)
        sky, floor = inside(geoms == -1), inside(of_material(env, geoms, "grid"))
        robot = inside(of_material(env, geoms, "self", "effector", "decoration"))
        assert mask[sky].all() and not mask[robot].any()
        assert floor.any() and robot.any()
        if mode == "video_hard":
            assert mask[floor].mean() > 0.8  # all but the robot's shadow and reflection
        else:
            assert not mask[floor].any()
        env.close()


def test_a_video_seed_determines_the_stream_and_an_episode_needs_no_earlier_one(tmp_path):
    make_videos(tmp_path, "video_hard", [3, 3, 3])
    check_stream("video_hard", str(tmp_path))


@pytest.mark.parametrize("mode", ["color_easy", "color_hard"])
def test_a_color_seed_determines_the_stream_and_an_episode_needs_no_earlier_one(tmp_path, mode):
    check_stream(mode, str(tmp_path))


def check_stream(mode: str, assets: str) -> None:
    task = {"task": f"dmc_walker_walk_{mode}", "size": (32, 32), "assets": assets}
    first, second, other = (envs.make(seed=seed, **task) for seed in (5, 5, 6))
    episodes = [play(first, episode, 2) for episode in range(4)]
    for episode in (3, 0):
        np.testing.assert_array_equal(play(second, episode, 2), episodes[episode])
    assert (episodes[0] != episodes[1]).mean() > 0.5 and (play(other, 0, 2) != episodes[0]).mean() > 0.5
    for env in (first, second, other):
        env.close()


def test_colors_match_a_compiled_model(tmp_path):
    env = distracted.DMCGS("walker", "walk", "color_hard", seed=1, size=(48, 48), assets=str(tmp_path))
    sets = distracted.draw_colors("color_hard")
    chosen = set()
    for episode in range(3):
        frame = env.reset(episode)["image"]
        robot = env.physics.named.model.mat_rgba["self"]
        (index,) = np.flatnonzero(np.abs(sets["self_rgb"] - robot[:3]).max(1) < 1e-6)
        chosen.add(index)
        assert robot[3] == 1

        entry = {name: " ".join(map(str, colors[index])) for name, colors in sets.items()}
        grid = {"texture/grid": {"rgb1": entry["grid_rgb1"], "rgb2": entry["grid_rgb2"]}}
        skin = {"material/self": {"rgba": entry["self_rgb"] + " 1"}}
        compiled = DMC(
            *("walker", "walk"),
            seed=1,
            size=(48, 48),
            assets={
                "skybox.xml": distracted._edit_xml("skybox.xml", {"texture/skybox": {"rgb1": entry["skybox_rgb"]}}),
                "materials.xml": distracted._edit_xml("materials.xml", {**grid, **skin}),
            },
        )
        expected = compiled.reset(episode)["image"]
        for name, off in (("grid", 0), ("skybox", 1)):
            pixels = [
                distracted.texture(e.physics.model, e.physics.model.name2id(name, "texture")).astype(int)
                for e in (env, compiled)
            ]
            assert np.abs(pixels[0] - pixels[1]).max() <= off
        assert np.abs(frame.astype(int) - expected).max() <= 1  # rendered, so the upload is tested too
        compiled.close()
    assert len(chosen) > 1
    env.close()


def check_statistics(colors: dict[str, np.ndarray], std: float) -> None:
    """Mean and spread of each channel, and of all nine together, against stock + N(0, std^2) clipped to [0, 1].

    Within four standard errors: of a mean of n, std / sqrt(n); of a standard deviation, std / sqrt(2n).
    """
    draws = np.random.default_rng(0).normal(0, std, 1_000_000)
    shifts, spreads = [], []
    for name, stock in distracted.STOCK_COLORS.items():
        assert colors[name].shape == (100, 3) and colors[name].min() >= 0 and colors[name].max() <= 1
        for got, value in zip(colors[name].T, stock, strict=True):
            expected = np.clip(value + draws, 0, 1)
            shifts.append((got.mean() - expected.mean()) / expected.std())
            spreads.append(got.std() / expected.std())
    assert np.abs(shifts).max() <= 4 / np.sqrt(100) and abs(np.mean(shifts)) <= 4 / np.sqrt(900)
    assert np.abs(np.array(spreads) - 1).max() <= 4 / np.sqrt(200) and abs(np.mean(spreads) - 1) <= 4 / np.sqrt(1800)
    np.testing.assert_allclose(colors["grid_rgb2"], np.clip(colors["grid_rgb1"] + 0.1, 0, 1), atol=1e-12)


@pytest.mark.parametrize("mode, std", [("color_easy", 0.1), ("color_hard", 0.2)])
def test_drawn_color_sets(mode, std, tmp_path):
    colors = distracted.load_colors(mode, str(tmp_path))  # no files there
    check_statistics(colors, std)
    again = distracted.draw_colors(mode)
    assert all((again[name] == colors[name]).all() for name in colors)


@pytest.mark.parametrize("mode, std", [("color_easy", 0.1), ("color_hard", 0.2)])
def test_the_benchmarks_color_sets(mode, std):
    if not (REAL / "dmcgb" / f"{mode}.pt").exists():
        pytest.skip(f"{REAL}/dmcgb/{mode}.pt is missing")
    colors = distracted.load_colors(mode, str(REAL))
    check_statistics(colors, std)
    assert (colors["self_rgb"] != distracted.draw_colors(mode)["self_rgb"]).all()


@pytest.mark.parametrize("mode", ["video_easy", "video_hard"])
def test_the_benchmarks_videos(mode, tmp_path):
    if not list((REAL / "dmcgb" / mode).glob("*.mp4")):
        pytest.skip(f"{REAL}/dmcgb/{mode} has no videos")
    (tmp_path / "dmcgb").symlink_to(REAL.absolute() / "dmcgb")  # keeps the cache in the test's folder
    env = envs.make(f"dmc_walker_walk_{mode}", assets=str(tmp_path))
    bare = distracted.DMCGS("walker", "walk", mode, assets=str(tmp_path))
    for episode in range(2):
        frames = play(env, episode, 3)
        bare.reset(episode)
        mask = distracted.green_mask(np.ascontiguousarray(DMC.render(bare)))
        video = bare._videos[episode % len(bare._videos)]
        assert video.shape[1:] == (64, 64, 3) and len(video) >= 100 and mask.mean() > 0.5
        np.testing.assert_array_equal(frames[0][mask], video[0][mask])
        assert not distracted.green_mask(frames[0])[mask].all()
    env.close()
    bare.close()


def entries(seed=0, count=100) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{name: rng.uniform(0, 1, 3) for name in (*distracted.STOCK_COLORS, "grid_rgb2")} for _ in range(count)]


def save(tmp_path: Path, content, **kwargs) -> Path:
    path = tmp_path / "dmcgb" / "color_easy.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=False, **kwargs)
    return path


def test_env_processes_read_color_sets_without_torch(tmp_path):
    content = entries()
    save(tmp_path, content)
    colors = distracted.load_colors("color_easy", str(tmp_path))
    for name, values in colors.items():
        np.testing.assert_array_equal(values, [entry[name] for entry in content])
    code = (
        "import sys, envs; env = envs.make('dmc_walker_walk_color_easy', assets=sys.argv[1]); env.reset();"
        "assert 'torch' not in sys.modules; print(env.physics.named.model.mat_rgba['self'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = np.array(json.loads(done.stdout))[:3]
    assert np.isclose(colors["self_rgb"], shown, atol=1e-6).all(1).sum() == 1


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["HRSSM_TEST_TRAP"],)


def test_broken_color_sets_are_errors_and_run_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("HRSSM_TEST_TRAP", str(tmp_path / "trap"))

    def error():
        with pytest.raises(ValueError, match=r"color_easy\.pt.*download_assets.py dmcgb") as caught:
            distracted.DMCGS("walker", "walk", "color_easy", assets=str(tmp_path))
        assert "\n" not in str(caught.value)

    path = save(tmp_path, entries(count=3))
    error()
    save(tmp_path, [Malicious()])
    error()
    assert not (tmp_path / "trap").exists()
    path.write_bytes(pickle.dumps(entries())[:50])
    error()
    path.write_bytes(b"")
    error()
    path.write_text("<html>404</html>")
    error()


def test_missing_videos_are_reported_with_the_command(tmp_path):
    for mode in ("video_easy", "video_hard"):
        with pytest.raises(FileNotFoundError) as caught:
            envs.make(f"dmc_walker_walk_{mode}", assets=str(tmp_path))
        told = str(caught.value)
        assert str(tmp_path / "dmcgb" / mode) in told and "python setup/download_assets.py dmcgb" in told
        assert "\n" not in told
    with pytest.raises(ValueError, match="color_easy, color_hard, video_easy, video_hard"):
        distracted.DMCGS("walker", "walk", "video_medium", assets=str(tmp_path))


def test_unreadable_video_is_reported(tmp_path):
    make_videos(tmp_path, "video_easy", [2, 2])
    (tmp_path / "dmcgb" / "video_easy" / "video1.mp4").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"video1\.mp4"):
        envs.make("dmc_walker_walk_video_easy", assets=str(tmp_path))


def test_videos_are_resized_bilinearly(tmp_path):
    folder = tmp_path / "dmcgb" / "video_easy"
    folder.mkdir(parents=True)
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8)[None, :, None], (96, 1, 3))
    write_video(folder / "video0.mp4", np.stack([ramp, ramp]))
    (video,) = distracted.load_videos("video_easy", (32, 24), str(tmp_path))
    decoded = cv2.VideoCapture(str(folder / "video0.mp4")).read()[1][..., ::-1].astype(float)
    # bilinear at the center of each of 24 columns of 4 pixels: the mean of the middle two
    rows = decoded[1::3]  # and of each of 32 rows of 3 pixels: the middle one
    np.testing.assert_allclose(video[0], (rows[:, 1::4] + rows[:, 2::4]) / 2, atol=1)


def test_vector_agents_need_no_files(tmp_path):
    for mode in ("color_hard", "video_hard"):
        env = envs.make(f"dmc_walker_walk_{mode}", image=False, assets=str(tmp_path))
        assert "image" not in env.reset()
        env.close()
