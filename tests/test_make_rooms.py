"""Rooms for Realistic ManiSkill that are made from a user's images."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from envs import scans
from setup import make_rooms

trimesh = pytest.importorskip("trimesh")
SCRIPT = Path(make_rooms.__file__)


@pytest.fixture
def images(tmp_path):
    """A red image, and a video whose first frame is green."""
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "red.png"), np.full((48, 96, 3), (0, 0, 255), np.uint8))
    writer = cv2.VideoWriter(str(folder / "green.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for color in ((0, 255, 0), (255, 0, 0), (255, 0, 0)):
        writer.write(np.full((48, 64, 3), color, np.uint8))
    writer.release()
    return folder


def run(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True)


def test_rooms_are_closed_around_the_robot_and_taken_as_they_are(images, tmp_path):
    result = run("--images", images / "*", "--to", tmp_path / "rooms", "--count", 4)
    assert result.returncode == 0 and result.stdout == f"4 rooms with the images of 2 files in {tmp_path / 'rooms'}\n"
    colors = set()
    for number in range(4):
        path = tmp_path / "rooms" / f"room{number}.glb"
        assert scans.check(scans.read_glb(path)) == []  # SAPIEN shows it as it is
        scene = trimesh.load_scene(path)
        boxes = [mesh.bounds for mesh in scene.dump()]
        walls = [box for box in boxes if np.ptp(box, 0).min() < 0.11]
        furniture = [box for box in boxes if np.ptp(box, 0).min() > 0.29]
        assert len(walls) == 6 and len(walls) + len(furniture) == len(boxes)
        low, high = np.min([b[0] for b in walls], 0) + 0.1, np.max([b[1] for b in walls], 0) - 0.1
        assert abs(low[2]) < 1e-6 and (low[:2] <= -2).all() and (high[:2] >= 2).all() and 2.5 <= high[2] <= 3.5
        for first, last in furniture:
            assert abs(first[2]) < 1e-6 and (first[:2] >= low[:2] - 1e-6).all() and (last <= high + 1e-6).all()
            assert np.linalg.norm(np.clip(0, first[:2], last[:2])) > make_rooms.FREE
        for mesh in scene.geometry.values():
            colors.add(tuple(np.asarray(mesh.visual.material.baseColorTexture)[0, 0, :3].astype(int) // 64))
            assert mesh.visual.uv.min() >= 0 and mesh.visual.uv.max() <= 1 and np.ptp(mesh.visual.uv, 0).min() == 1
    assert colors == {(3, 0, 0), (0, 3, 0)}  # the image and the first frame, in RGB


def test_a_room_of_the_same_number_is_the_same(images, tmp_path):
    for folder, count in (("a", 1), ("b", 3)):
        assert make_rooms.main(["--images", f"{images}/*", "--to", str(tmp_path / folder), "--count", str(count)]) == 0
    same = [(tmp_path / folder / "room0.glb").read_bytes() for folder in "ab"]
    assert same[0] == same[1] != (tmp_path / "b" / "room1.glb").read_bytes()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--images", "{}/*.jpg"], "error: --images {}/*.jpg: no file there; quote the pattern"),
        (["--images", "{}/*.png", "--count", "0"], "--count is 0: expected a number above 0"),
        (["--images", "{}/broken"], "error: {}/broken: not a"),
        (["--images", "{}/*.png", "--to", "{}/red.png"], "error: [Errno 17] File exists: '{}/red.png'"),
    ],
)
def test_mistakes_are_one_line(images, tmp_path, flags, message):
    (images / "broken").write_text("nothing to see")
    flags = [flag.format(images) for flag in flags]
    result = run(*(() if "--to" in flags else ("--to", tmp_path / "rooms")), *flags)
    assert result.returncode in (1, 2) and message.format(images) in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "rooms").exists()
