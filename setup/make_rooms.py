"""Makes rooms for the Realistic ManiSkill tasks from images or videos of your own, where no scans are at hand:

    python setup/make_rooms.py --images 'assets/dmcgb/video_hard/*.mp4' --to assets/rooms
    python dreamer.py --configs realistic_maniskill --task rms_push_cube --scan_path assets/rooms

A room is a box of random size with furniture of boxes, and an image on each side of them. A room of the same number is
always the same. They are no scans: returns in front of them compare with each other alone.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from envs.backgrounds import glob_files, read_image
from envs.videos import read_video

TEXTURE = 256  # pixels of a side
FREE = 1.2  # meters around the robot without furniture


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a glob of images or videos (their first frames)")
    parser.add_argument("--to", type=Path, required=True, help="folder of the rooms, room0.glb and so on")
    parser.add_argument("--count", type=int, default=20, help="number of rooms (20)")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error(f"--count is {args.count}: expected a number above 0")
    try:
        textures = [read_texture(path) for path in glob_files(args.images)]
        if not textures:
            raise FileNotFoundError(f"--images {args.images}: no file there; quote the pattern, such as 'FOLDER/*.jpg'")
        args.to.mkdir(parents=True, exist_ok=True)
        for number in range(args.count):
            make_room(np.random.default_rng(number), textures).export(args.to / f"room{number}.glb")
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.count} rooms with the images of {len(textures)} files in {args.to}")
    return 0


def read_texture(path: Path) -> np.ndarray:
    """The image, or the first frame of the video, as a square texture (TEXTURE, TEXTURE, 3)."""
    frames: Iterator[np.ndarray] = read_image(path) if cv2.haveImageReader(str(path)) else read_video(path)
    return cv2.resize(next(iter(frames)), (TEXTURE, TEXTURE), interpolation=cv2.INTER_AREA)


def make_room(rng: np.random.Generator, textures: list[np.ndarray]):
    """A trimesh.Scene, z up, floor at z = 0, with the robot's place at the origin."""
    import trimesh  # installed for Realistic ManiSkill only

    scene = trimesh.Scene()

    def add(low: np.ndarray, high: np.ndarray) -> None:
        texture = textures[rng.integers(len(textures))]
        scene.add_geometry(textured_box(np.subtract(high, low), np.add(low, high) / 2, texture))

    # the robot stands at least 2 m from each wall
    low, high = np.array([*-rng.uniform(2, 5, 2), 0]), np.array([*rng.uniform(2, 5, 2), rng.uniform(2.5, 3.5)])
    for axis in range(3):
        for side, out in ((low, -0.1), (high, 0.1)):  # walls, floor and ceiling are 0.1 m thick
            first, last = low.copy(), high.copy()
            first[axis], last[axis] = sorted((side[axis], side[axis] + out))
            add(first, last)
    for _ in range(rng.integers(3, 9)):
        size = rng.uniform((0.3, 0.3, 0.3), (1.5, 1.5, 1.8))
        corner = rng.uniform(low[:2], high[:2] - size[:2])
        nearest = np.clip(0, corner, corner + size[:2])  # point of the box that is closest to the robot
        if np.linalg.norm(nearest) > FREE:
            add(np.array([*corner, 0]), np.array([*(corner + size[:2]), size[2]]))
    return scene


def textured_box(size, center, picture: np.ndarray):
    """A box, a trimesh.Trimesh, each of whose faces shows the whole picture (H, W, 3) uint8 on its two long axes."""
    import trimesh
    from PIL import Image

    box = trimesh.creation.box(size)
    box.unmerge_vertices()  # a face has vertices of its own, and so its own texture coordinates
    normals = np.abs(np.repeat(box.face_normals, 3, axis=0)).argmax(1)
    uv = np.take_along_axis(box.vertices / size + 0.5, np.array([[1, 2], [0, 2], [0, 1]])[normals], axis=1)
    texture = Image.fromarray(picture)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=0.9)
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return box.apply_translation(center)


if __name__ == "__main__":
    sys.exit(main())
