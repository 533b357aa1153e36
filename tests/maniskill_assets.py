"""Small stand-ins for what Realistic ManiSkill downloads, in the formats that ManiSkill2 and SAPIEN read."""

import gzip
import json
from pathlib import Path

import numpy as np
import trimesh

from setup.make_rooms import textured_box

FAUCET_URDF = """<?xml version="1.0"?>
<robot name="faucet">
  <link name="base"/>
  <link name="link_1">{base}</link>
  <joint name="joint_1" type="fixed"><parent link="base"/><child link="link_1"/></joint>
  <link name="link_0">{switch}</link>
  <joint name="joint_0" type="revolute">
    <origin xyz="0 0 1.0"/><axis xyz="0 0 1"/><parent link="link_1"/><child link="link_0"/>
    <limit lower="0" upper="1.57" effort="30" velocity="1"/>
  </joint>
</robot>
"""


# Floor and wall of the scans.
ROOMS = [((150, 110, 70), (90, 120, 160)), ((60, 140, 90), (180, 160, 120)), ((170, 90, 150), (110, 150, 110))]


def checkers(first, second, size: int = 64, tiles: int = 8) -> np.ndarray:
    """A checkerboard image in two colors."""
    tile = (np.arange(size) * tiles // size) % 2
    board = tile[:, None] ^ tile[None]
    return np.where(board[..., None], np.uint8(first), np.uint8(second))


def write_scan(path: Path, floor=ROOMS[0][0], wall=ROOMS[0][1]) -> Path:
    """A room of 6 x 6 x 3 m with a textured floor, four walls and a sofa, z up, floor at 0, as one .glb."""
    scene = trimesh.Scene()

    def add(name, size, center, color):
        box = textured_box(size, center, checkers(color, tuple(v // 3 for v in color)))
        scene.add_geometry(box, node_name=name, geom_name=name)

    add("floor", (6, 6, 0.1), (0, 0, -0.05), floor)
    for axis, side in ((0, -1), (0, 1), (1, -1), (1, 1)):
        size, center = np.array([6.0, 6.0, 3.0]), np.array([0, 0, 1.5])
        size[axis], center[axis] = 0.1, 3 * side
        add(f"wall_{axis}_{side}", tuple(size), center, wall if axis else tuple(reversed(wall)))
    add("sofa", (1, 2, 0.7), (-1.5, 1.5, 0.35), (160, 40, 60))
    path.parent.mkdir(parents=True, exist_ok=True)
    scene.export(path)
    return path


def write_faucet(root: Path) -> Path:
    """Model 5021 (link_0 is its switch, link_1 its base, as in the engine's table of models), below `root`."""
    folder = root / "partnet_mobility" / "dataset" / "5021"
    folder.mkdir(parents=True, exist_ok=True)

    def link(name, meshes):
        tags = []
        for i, mesh in enumerate(meshes):
            mesh.export(folder / f"{name}_{i}.obj")
            for tag in ("visual", "collision"):
                tags.append(f'<{tag}><geometry><mesh filename="{name}_{i}.obj"/></geometry></{tag}>')
        return "".join(tags)

    body = trimesh.creation.cylinder(0.2, 1.0)
    body.apply_translation([0, 0, 0.2])
    spout = trimesh.creation.box((0.9, 0.15, 0.15))
    spout.apply_translation([-0.45, 0, 0.5])
    switch = trimesh.creation.box((0.2, 0.9, 0.2))
    switch.apply_translation([0, 0.3, -0.1])
    urdf = FAUCET_URDF.format(base=link("base", [body, spout]), switch=link("switch", [switch]))
    (folder / "mobility_cvx.urdf").write_text(urdf)
    return folder


def write_kit(root: Path) -> Path:
    """A kit of a plate with two square holes, a bar to put into one, a cube in the other."""
    folder = root / "assembling_kits"
    for name in ("kits", "models/collision", "models/visual"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    holes = {0: [-0.06, 0.0], 1: [0.06, 0.0]}
    # The plate: five bars around holes of 5 cm.
    bars = [((0.24, 0.035, 0.02), (0, side * 0.0425, 0)) for side in (-1, 1)]
    bars += [((0.035, 0.05, 0.02), (side * 0.1025, 0, 0)) for side in (-1, 1)] + [((0.07, 0.05, 0.02), (0, 0, 0))]
    plate = trimesh.util.concatenate(
        [trimesh.creation.box(size, trimesh.transformations.translation_matrix(center)) for size, center in bars]
    )
    plate.export(folder / "kits" / "0.obj")
    objects = [{"object_id": i, "pos": [*xy, 0.0], "rot": 0.0} for i, xy in holes.items()]
    (folder / "kits" / "0.json").write_text(json.dumps({"objects": objects}))
    for i, size in ((0, (4.2, 4.2, 2.0)), (1, (4.0, 4.0, 2.0))):  # times object_scale
        for kind in ("collision", "visual"):
            trimesh.creation.box(size).export(folder / "models" / kind / f"{i:02d}.obj")
    episodes = {
        "config": {
            "symmetry": [np.pi / 2, np.pi / 2],
            "color": [[0.9, 0.1, 0.1, 1], [0.1, 0.2, 0.9, 1], [0.1, 0.7, 0.2, 1]],
            "object_scale": [0.01, 0.01, 0.01],
        },
        "episodes": [
            {"kit": 0, "spawn_pos": [x, 0.15, 0.02], "obj_to_place": 0, "obj_in_place": [1]} for x in (-0.1, 0.0, 0.1)
        ],
    }
    (folder / "episodes.json").write_text(json.dumps(episodes))
    return folder


def write_obstacles(root: Path) -> Path:
    """Two episodes with a wall and three obstacles each."""
    file = root / "avoid_obstacles" / "panda_train_2k.json.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    start = [0.0, np.pi / 8, 0, -np.pi * 5 / 8, 0, np.pi * 3 / 4, np.pi / 4, 0.04, 0.04]
    episodes = []
    for side in (-1, 1):
        obstacles = [
            {"half_size": [0.05, 0.05, 0.1], "pose": [0.45, side * y, z, 1, 0, 0, 0]}
            for y, z in ((0.2, 0.3), (0.35, 0.5), (-0.3, 0.6))
        ]
        episodes.append(
            {
                "wall": {"half_size": [0.02, 0.6, 0.05], "pose": [0.8, 0, 0.05, 1, 0, 0, 0]},
                "obstacles": obstacles,
                "start_qpos": start,
                "end_pose": [0.5, side * 0.35, 0.2, 0, 1, 0, 0],
            }
        )
    with gzip.open(file, "wt") as stream:
        json.dump(episodes, stream)
    return file


def write_assets(root: Path) -> Path:
    """An assets folder with all of it, and three scans."""
    for i, colors in enumerate(ROOMS):
        write_scan(root / "matterport" / f"room_{i}.glb", *colors)
    for write in (write_faucet, write_kit, write_obstacles):
        write(root / "maniskill2")
    return root
