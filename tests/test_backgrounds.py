"""Image and video sources, from files that the tests make, in real processes."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from envs import backgrounds

ROOT = Path(__file__).parent.parent
SIZE = (20, 24)  # height and width differ, so that a mix-up shows


def write_video(path: Path, frames) -> Path:
    """frames: (N, h, w, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def flat_frames(levels, size=(48, 64)) -> np.ndarray:
    """A flat gray frame for each level."""
    return np.broadcast_to(np.array(levels).astype(np.uint8)[:, None, None, None], (len(levels), *size, 3)).copy()


@pytest.fixture
def videos(tmp_path) -> Path:
    """Six videos of three flat frames: 10, 12, 14; 40, 42, 44; ... 160, 162, 164."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(6):
        write_video(folder / f"clip{i}.mp4", flat_frames([10 + 30 * i, 12 + 30 * i, 14 + 30 * i]))
    return folder


def levels(frames) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


def source(folder: Path, cache: Path, **kwargs):
    return backgrounds.make_source("video", SIZE, resource_files=f"{folder}/*.mp4", cache=cache, **kwargs)


def test_videos_play_whole_in_shuffled_order(videos, tmp_path):
    frames = source(videos, tmp_path / "cache")
    assert len(frames) == len(list(frames)) == 18
    assert frames[0].shape == (*SIZE, 1) and frames[0].dtype == np.uint8 and not frames[0].flags.writeable
    got = np.array(levels(frames)).reshape(6, 3)
    assert np.abs(np.sort(got[:, 0]) - np.arange(10, 190, 30)).max() <= 4  # every file, once
    assert list(got[:, 0]) != sorted(got[:, 0])  # not in the order of the names
    assert np.abs(np.diff(got) - 2).max() <= 1  # and the frames of a file in their own order


def test_the_seed_determines_the_order_of_the_videos(videos, tmp_path):
    """Each env has its own order; the decoded files are shared."""
    orders = [tuple(levels(source(videos, tmp_path / "cache", seed=seed))[::3]) for seed in (0, 1, 2, 3, 0)]
    assert orders[0] == orders[4] and len(set(orders)) == 4 and len({tuple(sorted(order)) for order in orders}) == 1
    firsts = {tuple(levels(source(videos, tmp_path / "cache", seed=seed, total_frames=3))) for seed in range(20)}
    assert len(firsts) == 6  # envs that show few of many files show different ones
    cached = list((tmp_path / "cache").glob("clip*.npy"))
    assert len(cached) == 12  # one per file and limit, whatever the seed


def test_evaluation_shows_held_out_files(videos, tmp_path):
    write_video(tmp_path / "held_out" / "a.mp4", flat_frames([230, 232]))
    held_out = {"eval_resource_files": f"{tmp_path}/held_out/*.mp4"}
    cache = tmp_path / "cache"
    assert max(levels(source(videos, cache, **held_out))) < 200
    assert min(levels(source(videos, cache, evaluation=True, **held_out))) > 200
    assert len(source(videos, cache, evaluation=True)) == 18  # none named: the same files
    # evaluation alone needs no training files; training reports missing evaluation files at its start
    assert len(source(tmp_path / "nothing", cache, evaluation=True, **held_out)) == 2
    with pytest.raises(FileNotFoundError, match=r"--eval_resource_files .*nowhere: no file there"):
        source(videos, cache, eval_resource_files="nowhere")


def test_total_frames_cuts_the_same_sequence(videos, tmp_path):
    whole, cut = (source(videos, tmp_path / "cache", total_frames=n) for n in (1000, 7))
    assert len(cut) == 7 and len(whole) == 18
    np.testing.assert_array_equal(np.stack(list(cut)), np.stack(list(whole))[:7])


def test_files_beyond_total_frames_are_not_read(videos, tmp_path):
    for path in videos.iterdir():
        path.write_bytes(path.read_bytes() if path.name == "clip0.mp4" else b"unreadable")
    seed = next(s for s in range(50) if np.random.default_rng([s, 0, 1]).permutation(6)[0] == 0)
    assert len(source(videos, tmp_path / "cache", seed=seed, total_frames=3)) == 3
    with pytest.raises(ValueError, match="not a readable video"):
        source(videos, tmp_path / "cache", seed=seed, total_frames=4)


def test_one_frame_a_step_wrapping_from_a_random_start(videos, tmp_path):
    background = source(videos, tmp_path / "cache")
    starts = []
    for episode in range(20):
        background.reset(np.random.default_rng(episode))
        shown = [background.next().copy() for _ in range(20)]
        assert shown[0].shape == (*SIZE, 3) and (shown[0][..., :1] == shown[0]).all()
        starts.append(next(i for i in range(18) if (background[i] == shown[0][..., :1]).all()))
        for t, frame in enumerate(shown):
            np.testing.assert_array_equal(frame[..., :1], background[(starts[-1] + t) % 18])
    assert len(set(starts)) > 5
    background.reset(np.random.default_rng(3))
    np.testing.assert_array_equal(background.next()[..., :1], background[starts[3]])


def test_grayscale_is_luminance_and_color_keeps_its_channels(tmp_path):
    rgb = np.zeros((2, 48, 64, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = 200, 100, 30
    path = write_video(tmp_path / "a.mp4", rgb)
    (color,) = backgrounds.load_clips([[path]], SIZE, cache=tmp_path)
    (gray,) = backgrounds.load_clips([[path]], SIZE, grayscale=True, cache=tmp_path)
    assert color.shape == (2, *SIZE, 3) and gray.shape == (2, *SIZE, 1)
    np.testing.assert_allclose(color[0, 5, 5], [200, 100, 30], atol=8)
    np.testing.assert_allclose(gray.mean(), 0.299 * 200 + 0.587 * 100 + 0.114 * 30, atol=4)


def test_images_are_the_frames_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, suffix in enumerate(("jpg", "png", "jpg")):
        cv2.imwrite(str(folder / f"{i}.{suffix}"), flat_frames([50 * i + 20])[0])
    images = {"resource_files": str(folder), "cache": tmp_path / "cache"}  # a folder is as good as a glob
    assert levels(backgrounds.make_source("images", SIZE, **images)) == [20, 70, 120]
    assert levels(backgrounds.make_source("images", SIZE, total_frames=2, **images)) == [20, 70]


def test_noise_and_color_need_no_files(tmp_path):
    noise = backgrounds.make_source("noise", SIZE, cache=tmp_path / "none")
    noise.reset(np.random.default_rng(0))
    first, second = noise.next(), noise.next()
    assert first.shape == (*SIZE, 3) and first.dtype == np.uint8 and (first != second).mean() > 0.9
    assert first.min() == 0 and first.max() == 255 and abs(first.mean() - 127.5) < 10
    noise.reset(np.random.default_rng(0))
    np.testing.assert_array_equal(noise.next(), first)

    color = backgrounds.make_source("color", SIZE, cache=tmp_path / "none")
    shown = []
    for seed in range(5):
        color.reset(np.random.default_rng(seed))
        first, second = color.next().copy(), color.next().copy()
        assert first.shape == (*SIZE, 3) and (first == first[0, 0]).all()
        np.testing.assert_array_equal(first, second)
        shown.append(tuple(first[0, 0]))
    assert len(set(shown)) == 5
    assert not (tmp_path / "none").exists()


def clouds(size, seed=0) -> backgrounds.Clouds:
    source = backgrounds.make_source("clouds", size, cache="none")
    source.reset(np.random.default_rng(seed))
    return source


def rings(size) -> np.ndarray:
    """Whole cycles per image of each frequency that np.fft.rfft2 returns, (H, W // 2 + 1)."""
    vertical, horizontal = np.fft.fftfreq(size[0], 1 / size[0])[:, None], np.fft.rfftfreq(size[1], 1 / size[1])
    return np.hypot(vertical, horizontal).astype(int)


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (33, 47)])
def test_clouds_look_like_natural_images(size):
    """Amplitudes fall as 1/f, in frames that fill the range of gray levels."""
    frames = np.stack([clouds(size, seed).next() for seed in range(100)])
    assert frames.shape == (100, *size, 3) and frames.dtype == np.uint8 and (frames == frames[..., :1]).all()
    gray = frames[..., 0].astype(float)
    brightness = gray.mean((1, 2))
    assert brightness.mean() == pytest.approx(128, abs=5)
    assert brightness.std() == pytest.approx(48 / np.sqrt(12), rel=0.2)  # uniform in 48 levels
    assert gray.std((1, 2)).mean() == pytest.approx(52, abs=3)  # 56 before clipping to 0 ... 255
    power = (np.abs(np.fft.rfft2(gray)) ** 2).mean(0)
    f = np.arange(1, min(size) // 2)
    amplitude = np.sqrt([power[rings(size) == ring].mean() for ring in f])
    slope, _ = np.polyfit(np.log(f + 0.5), np.log(amplitude), 1)
    assert slope == pytest.approx(-1, abs=0.1)


def test_small_clouds_decorrelate_faster_than_large_ones():
    """A frequency f decorrelates as exp(-f t / 80), apart from the drift, which only rotates its phase."""
    source = clouds((64, 64), 1)
    spectra = np.stack([np.fft.rfft2(source.next()[..., 0].astype(float)) for _ in range(500)])
    lag, ring = 5, rings((64, 64))
    correlation = np.abs((spectra[lag:] * spectra[:-lag].conj()).mean(0)) / (np.abs(spectra) ** 2).mean(0)
    for f in (2, 4, 8, 16):
        assert correlation[ring == f].mean() == pytest.approx(np.exp(-(f + 0.5) * lag / 80), abs=0.08)


def test_each_episode_has_its_own_clouds():
    def play(seed):
        source = clouds(SIZE, seed)
        return np.stack([source.next() for _ in range(4)]).astype(int)

    np.testing.assert_array_equal(play([3, 5]), play([3, 5]))
    frames = play([3, 5])
    step, other = np.abs(np.diff(frames, axis=0)).mean(), np.abs(frames - play([3, 6])).mean()
    assert 0 < step < 0.5 * other  # moves, and slowly
    source = clouds(SIZE, [3, 6])
    source.next()
    source.reset(np.random.default_rng([3, 5]))
    np.testing.assert_array_equal(source.next(), frames[0])  # regardless of what was shown before


def test_files_are_decoded_once_and_again_when_they_change(videos, tmp_path):
    cache = tmp_path / "cache"
    frames = np.stack(list(source(videos, cache)))

    def inodes():
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.glob("*.npy")}

    before = inodes()
    assert len(before) == 6
    np.testing.assert_array_equal(np.stack(list(source(videos, cache))), frames)
    assert inodes() == before

    write_video(videos / "clip0.mp4", flat_frames([250, 252]))
    assert max(levels(source(videos, cache))) > 240
    assert len(inodes()) == 7

    for content in (lambda path: path.read_bytes()[:100], lambda path: b""):  # truncated, as by a crash of the machine
        for path in cache.glob("*.npy"):
            path.write_bytes(content(path))
        assert len(source(videos, cache)) == 17
    assert not list(cache.glob("*.tmp"))


def start(code: str, *arguments, **kwargs) -> subprocess.Popen:
    """A new process that runs the code in the repository."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, **pipes)


LOAD = """
import os, sys
from envs import backgrounds
files, cache = sys.argv[1:]
frames = backgrounds.make_source("video", (64, 64), resource_files=files, total_frames=4000, cache=cache)
paths = {line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith(".npy")}
print(len(frames), sum(int(frame.sum()) for frame in frames), *sorted((os.stat(path).st_ino, path) for path in paths))
"""


@pytest.fixture
def long_video(tmp_path) -> Path:
    """1000 frames, which take about a second to decode."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), dtype=np.uint8)
    return write_video(tmp_path / "long.mp4", np.tile(noise, (100, 1, 1, 1)))


def test_four_processes_that_start_together_decode_once(long_video, tmp_path):
    processes = [start(LOAD, long_video, tmp_path / "cache") for _ in range(4)]
    results = [process.communicate(timeout=900) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    assert all(err == "" for _, err in results)  # no progress bar where there is no terminal
    assert len({out for out, _ in results}) == 1, results  # one file (inode), never replaced; the same frames
    assert results[0][0].startswith("1000 ")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_process_killed_while_decoding_does_not_affect_the_next_one(long_video, tmp_path):
    process = start(LOAD, long_video, tmp_path / "cache")
    while not (tmp_path / "cache" / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = start(LOAD, long_video, tmp_path / "cache").communicate(timeout=900)
    assert out.startswith("1000 "), err


SHARE = """
import sys
from envs.distracted import DistractedDMC
files, assets = sys.argv[1:]
env = DistractedDMC("cartpole", "swingup", resource_files=files, total_frames=4000, assets=assets)
print(sum(int(frame.sum()) for frame in env._background), flush=True)  # touches every page
sys.stdin.readline()
entry, pss, rss = False, 0, 0
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        entry = line.rstrip().endswith(".npy")
    elif entry and line.startswith("Pss:"):
        pss += int(line.split()[1])
    elif entry and line.startswith("Rss:"):
        rss += int(line.split()[1])
print(pss, rss, sum(clip.nbytes for clip in env._background.clips) // 1024, flush=True)
sys.stdin.readline()
"""


def test_four_envs_hold_one_copy(long_video, tmp_path):
    """Proportional set size: a page that n processes map counts 1/n in each of them."""
    assert start(LOAD, long_video, tmp_path / "cache").wait(timeout=900) == 0
    processes = [start(SHARE, long_video, tmp_path) for _ in range(4)]

    def notify_all():
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()

    try:
        assert len({process.stdout.readline() for process in processes}) == 1
        notify_all()
        pss, rss, size = np.array([process.stdout.readline().split() for process in processes], int).T
        notify_all()
    finally:
        for process in processes:
            process.communicate(timeout=900)
    assert (size == 1000 * 64 * 64 // 1024).all()
    assert (rss >= size).all()  # each of them sees all frames
    assert pss.sum() <= 1.05 * size[0], (pss, rss, size)  # and together they hold them once


def test_progress_bar_on_a_terminal(videos, tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(LOAD, f"{videos}/*.mp4", tmp_path / "cache", stderr=end)
    os.close(end)
    out, _ = process.communicate(timeout=900)
    shown = os.read(terminal, 10000).decode()
    os.close(terminal)
    assert out.startswith("18 ") and "decoding backgrounds" in shown and "18/18" in shown


def test_a_cache_folder_that_cannot_be_written(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "cache"
    frames = np.stack(list(source(videos, cache)))
    assert len(frames) == 18
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(cache) in said and f"{tmp_path}/home/.cache/hrssm" in said
    np.testing.assert_array_equal(np.stack(list(source(videos, cache))), frames)
    assert capsys.readouterr().err == ""  # reported when decoding, not by every env

    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.testing.assert_array_equal(np.stack(list(source(videos, cache))), frames)
    (folder,) = tmp_path.glob("hrssm-*")
    assert str(folder) in capsys.readouterr().err and folder.stat().st_mode & 0o777 == 0o700


def test_bad_input_is_one_line(videos, tmp_path):
    def error(kind, img_source="video", **kwargs):
        with pytest.raises(kind) as caught:
            backgrounds.make_source(img_source, SIZE, cache=tmp_path / "cache", **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--img_source vidoe" in error(ValueError, "vidoe")
    assert "--resource_files" in error(FileNotFoundError)
    assert "/nowhere/*.mp4" in error(FileNotFoundError, resource_files="/nowhere/*.mp4")
    (tmp_path / "empty").mkdir()
    assert "empty" in error(FileNotFoundError, resource_files=str(tmp_path / "empty"))
    assert "--total_frames" in error(ValueError, resource_files=str(videos), total_frames=0)

    (tmp_path / "text.mp4").write_text("no video at all")
    assert "text.mp4" in error(ValueError, resource_files=str(tmp_path / "text.mp4"))
    (tmp_path / "nothing.mp4").write_bytes(b"")
    assert "nothing.mp4" in error(ValueError, resource_files=str(tmp_path / "nothing.mp4"))
    whole = (videos / "clip0.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 3])
    assert "half.mp4" in error(ValueError, resource_files=str(tmp_path / "half.mp4"))
    cv2.VideoWriter(str(tmp_path / "zero.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48)).release()
    assert "zero.mp4" in error(ValueError, resource_files=str(tmp_path / "zero.mp4"))
    (tmp_path / "text.jpg").write_text("no image at all")
    assert "text.jpg" in error(ValueError, "images", resource_files=str(tmp_path / "text.jpg"))
    assert not list((tmp_path / "cache").glob("*.npy"))
