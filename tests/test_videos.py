"""Reading video files of the kinds that people have, made here by ffmpeg."""

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from envs import videos

LEVELS = np.arange(20, 220, 10)  # 20 flat gray frames: the values say which frame it is, and whether colors are right


def encode(path: Path, frames, *options: str, rate: int = 10) -> Path:
    """frames (N, h, w, 3) uint8, or gray levels (N,), as a video that ffmpeg writes with the options."""
    frames = np.asarray(frames, np.uint8)
    if frames.ndim == 1:
        frames = np.broadcast_to(frames[:, None, None, None], (len(frames), 96, 160, 3))
    path.parent.mkdir(exist_ok=True)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(rate), "-i", "pipe:0"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True, capture_output=True)
    return path


def ffmpeg(*options) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *map(str, options)]
    subprocess.run(command, check=True, capture_output=True)


AV1 = ("-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "20", "-pix_fmt", "yuv420p")
H264 = ("-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p")


MOVING = ("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=30:duration=4")


@pytest.fixture(scope="module")
def cover(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cover") / "cover.jpg"
    cv2.imwrite(str(path), np.full((300, 300, 3), 255, np.uint8))
    return path


def levels(path: Path) -> np.ndarray:
    frames = list(videos.read_video(path))
    assert all(frame.dtype == np.uint8 and frame.std() < 45 for frame in frames)  # a GIF dithers
    return np.array([frame.mean() for frame in frames])


def check(path: Path, expected=LEVELS) -> None:
    read = levels(path)
    assert len(read) == len(expected)
    np.testing.assert_allclose(read, expected, atol=4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("av1.mp4", AV1),
        ("h264.mp4", H264),
        ("vp8.webm", ("-c:v", "libvpx", "-b:v", "2M")),
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-crf", "10")),
        ("mpeg4.avi", ("-c:v", "mpeg4", "-q:v", "2")),
        ("theora.ogv", ("-c:v", "libtheora", "-q:v", "9")),
        ("h264.ts", H264),
        ("h264.m2ts", H264),
        ("pal8.gif", ()),
        ("full_range.webm", ("-vf", "scale=out_range=full,format=yuv420p", "-color_range", "pc", "-c:v", "libvpx-vp9")),
        # every third frame is shown three times as long
        ("variable.mp4", ("-vf", "setpts=(N+4*floor(N/3))/10/TB", "-fps_mode", "vfr", *AV1)),
        ("variable.webm", ("-vf", "setpts=(N+4*floor(N/3))/10/TB", "-fps_mode", "vfr", "-c:v", "libvpx-vp9")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_frame_once_with_its_colors(name, options, tmp_path, capsys):
    check(encode(tmp_path / name, LEVELS, *options))
    assert capsys.readouterr().err == ""


def test_theora_gives_the_same_pixels_each_time(tmp_path):
    """Its decoder does not, with a thread for each frame: one time in about five, for this video."""
    path = encode(tmp_path / "a.ogv", LEVELS, "-c:v", "libtheora", "-q:v", "5", "-b:v", "2M")
    assert len({b"".join(frame.tobytes() for frame in videos.read_video(path)) for _ in range(20)}) == 1


def test_the_extremes_of_full_range(tmp_path):
    options = ("-vf", "scale=out_range=full,format=yuv420p", "-color_range", "pc", "-c:v", "libvpx-vp9", "-crf", "4")
    check(encode(tmp_path / "full.webm", [0, 20, 235, 255] * 5, *options), [0, 20, 235, 255] * 5)


def test_a_cover_is_not_the_video(cover, tmp_path):
    encode(tmp_path / "a.mp4", LEVELS, *AV1)
    for first in (0, 1):  # the cover before and after the video
        inputs = [cover, tmp_path / "a.mp4"] if first == 0 else [tmp_path / "a.mp4", cover]
        out = tmp_path / f"cover{first}.mp4"
        ffmpeg("-i", inputs[0], "-i", inputs[1], *"-map 0 -map 1 -c copy".split(), f"-disposition:v:{first}",
               "attached_pic", out)  # fmt: skip
        check(out)


def test_sound_with_a_cover_is_no_video(cover, tmp_path):
    path = tmp_path / "song.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-i", cover, *"-map 0 -map 1 -c:v copy -disposition:v:0".split(),
           "attached_pic", path)  # fmt: skip
    with pytest.raises(ValueError, match=r"song\.m4a: not a readable video \(it has no video stream\)"):
        next(videos.read_video(path))


@pytest.mark.parametrize("codec", [AV1, H264], ids=["av1", "h264"])
@pytest.mark.parametrize(("turn", "corner"), [(90, (1, 0)), (-90, (0, 1)), (180, (1, 1))])
def test_phone_videos_are_upright(codec, turn, corner, tmp_path):
    """A bright upper left quarter, which the file says to turn by so many degrees counterclockwise."""
    frame = np.full((96, 160, 3), 40, np.uint8)
    frame[:48, :80] = 220
    encode(tmp_path / "a.mp4", np.repeat(frame[None], 5, 0), *codec)
    ffmpeg("-display_rotation", turn, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    frames = list(videos.read_video(tmp_path / "b.mp4"))
    assert len(frames) == 5
    np.testing.assert_allclose(frames[2], np.rot90(frame, turn // 90), atol=60)  # edges blur
    quarters = frames[2].reshape(2, frames[2].shape[0] // 2, 2, -1, 3).mean((1, 3, 4))
    assert quarters[corner] > 200 and np.sort(quarters.reshape(-1))[2] < 60


def test_a_video_that_changes_its_size(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=30:duration=1", "-c:v", "libvpx", tmp_path / "a.webm")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=320x192:rate=30:duration=1", "-c:v", "libvpx", tmp_path / "b.webm")
    (tmp_path / "list.txt").write_text("file a.webm\nfile b.webm\n")
    ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / "ab.webm")
    frames = list(videos.read_video(tmp_path / "ab.webm"))
    assert len(frames) == 60 and len({frame.tobytes() for frame in frames}) == 60


@pytest.mark.parametrize(
    ("default", "expected"), [(0, 96), (1, 192), (None, 192)], ids=["the small one", "the large one", "none"]
)
def test_of_two_streams_the_default_or_largest(default, expected, tmp_path):
    flags = [
        ["-disposition:v:0", "default" if default == 0 else "0"],
        ["-disposition:v:1", "default" if default else "0"],
    ]
    path = tmp_path / "two.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=1", "-f", "lavfi", "-i",
           "testsrc2=size=320x192:rate=10:duration=1", "-map", 0, "-map", 1, *flags[0], *flags[1], path)  # fmt: skip
    frames = list(videos.read_video(path))
    assert len(frames) == 10 and frames[0].shape[0] == expected


def test_the_frames_of_opencv_where_it_is_right(tmp_path):
    path = tmp_path / "a.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=30:duration=1", *H264, path)
    capture, count = cv2.VideoCapture(str(path)), 0
    for frame in videos.read_video(path):
        np.testing.assert_array_equal(frame, capture.read()[1][..., ::-1])
        count += 1
    assert count == 30 and not capture.read()[0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_a_cut_file_is_read_as_far_as_it_goes_and_said(suffix, tmp_path, capfd):
    path = tmp_path / f"clip{suffix}"
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=160x96:rate=30:duration=4", *H264, "-g", 10, "-movflags", "faststart", path
    )
    assert len(list(videos.read_video(path))) == 120 and capfd.readouterr().err == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    count = len(list(videos.read_video(path)))
    said = re.fullmatch(rf"{path}: damaged, {count} of about (\d+) frames\n", capfd.readouterr().err)
    assert 40 < count < 100
    assert int(said[1]) == pytest.approx(count if suffix == ".ts" else 120, abs=4)  # .ts does not hold its length


def test_damage_within_is_said(tmp_path, capfd):
    path = tmp_path / "clip.mkv"
    ffmpeg(*MOVING, *H264, "-g", 10, path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    count = len(list(videos.read_video(path)))
    assert capfd.readouterr().err == f"{path}: damaged, {count} of about 120 frames\n"


def commands_of_children() -> bytes:
    children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    return b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)


def test_reading_a_part_ends_ffmpeg(tmp_path, capfd):
    path = encode(tmp_path / "a.mp4", np.tile(LEVELS, 50), *H264)
    frames = videos.read_video(path)
    assert [round(next(frames).mean(), -1) for _ in range(3)] == [20, 30, 40]
    assert bytes(path) in commands_of_children()
    frames.close()
    assert bytes(path) not in commands_of_children() and capfd.readouterr().err == ""


def test_a_file_name_is_never_an_option_or_an_address(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", LEVELS, *H264)
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "http:x.mp4", "100%d.mp4", "a b'\"|c.mp4"):
        Path(name).write_bytes(Path("a.mp4").read_bytes())
        check(Path(name))


def test_no_ffmpeg_is_needed_on_the_path(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", LEVELS, *AV1)
    monkeypatch.setenv("PATH", "")
    check(path)


def test_scikit_video_reads_where_there_is_no_ffmpeg_of_imageio(tmp_path, monkeypatch):
    if np.lib.NumpyVersion(np.__version__) >= "1.24.0":
        pytest.skip("scikit-video does not work with numpy 1.24 and later")
    if shutil.which("ffprobe") is None:
        pytest.skip("scikit-video needs the system's ffmpeg")
    path = encode(tmp_path / "a.mp4", LEVELS, *H264)
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "true")  # it decodes nothing
    monkeypatch.setattr(videos, "find_stream", lambda path: videos.Stream(0, 0, "h264"))
    check(path)
    with pytest.raises(ValueError, match=r"turned\.mp4: not a readable video"):  # skvideo's frames would be scrambled
        next(videos.read_video(tmp_path / "turned.mp4"))


def test_a_system_without_ffmpeg_is_said(tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    path = encode(tmp_path / "a.mp4", LEVELS, *H264)
    monkeypatch.setattr(videos.imageio_ffmpeg, "get_ffmpeg_exe", missing)
    monkeypatch.setattr(videos, "_read_skvideo", lambda path: iter(()))  # skvideo needs the system's ffmpeg
    with pytest.raises(ValueError, match=r"a.mp4: .*no ffmpeg for this system\); install one"):
        next(videos.read_video(path))
