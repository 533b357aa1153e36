"""Which scans are taken as they are, converted or refused. tests/test_maniskill.py renders them."""

import re
import struct

import numpy as np
import pytest
from scan_files import COLORS, CONVERTED, SHOWN, write_glb, write_room

from envs import scans


def prepare(path, cache):
    return scans.prepare([path], cache)[path]


def triangles(path) -> list[np.ndarray]:
    """Corners (N, 3, 3) in the world of each primitive's triangles, read by trimesh."""
    trimesh = pytest.importorskip("trimesh")
    scene = trimesh.load_scene(path)
    meshes = [scene.geometry[scene.graph[node][1]].copy().apply_transform(scene.graph[node][0])
              for node in sorted(scene.graph.nodes_geometry)]  # fmt: skip
    return [mesh.triangles for mesh in meshes]


@pytest.mark.parametrize("name", SHOWN)
def test_what_sapien_shows_right_is_left_alone(name, tmp_path, capsys):
    path = write_room(tmp_path / "room.glb", **SHOWN[name])
    assert prepare(path, tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", CONVERTED)
def test_what_it_shows_wrong_is_converted_once_and_said(name, tmp_path, capsys):
    path = write_room(tmp_path / "room.glb", **CONVERTED[name][0])
    file = prepare(path, tmp_path / "cache")
    assert file.parent == tmp_path / "cache" and re.match(
        rf"{path}: converted for SAPIEN \(.+\)\n", capsys.readouterr().err
    )
    assert scans.check(scans.read_glb(file)) == []
    if CONVERTED[name][1] is not None:
        expected = triangles(write_room(tmp_path / "expected.glb", **CONVERTED[name][1]))
        for ours, theirs in zip(triangles(file), expected, strict=True):
            ours = ours[: len(theirs)] if "sides" not in name and "both" not in name else ours
            distance = np.abs(ours[:, None] - theirs[None]).max((2, 3))  # each triangle to each, corner by corner
            rolled = np.minimum(distance, np.abs(ours[:, None] - np.roll(theirs, 1, 1)[None]).max((2, 3)))
            rolled = np.minimum(rolled, np.abs(ours[:, None] - np.roll(theirs, 2, 1)[None]).max((2, 3)))
            assert (rolled.min(0) < 1e-3).all()  # each of theirs is there, with the same side to the front
    written = file.stat().st_mtime_ns
    assert prepare(path, tmp_path / "cache") == file and file.stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""
    path.touch()
    assert prepare(path, tmp_path / "cache") != file  # a file that changed


def test_normals_and_both_sides(tmp_path):
    """Each triangle is doubled, the second one facing the other way, with the opposite normals."""
    path = write_room(tmp_path / "room.glb", material={"doubleSided": True})
    glb = scans.read_glb(prepare(path, tmp_path / "cache"))
    for primitive, _ in scans.instances(glb):
        place, normal = (scans.read_accessor(glb, primitive["attributes"][name]) for name in ("POSITION", "NORMAL"))
        faces = scans.read_accessor(glb, primitive["indices"]).astype(int).reshape(-1, 3)
        corners = place[faces]
        facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.einsum("ni,nki->nk", facing, normal[faces]) > 0).all()
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(facing.sum(0), 0, atol=1e-5)
        assert len(faces) == 2 * 32


def linear(color) -> np.ndarray:
    color = np.asarray(color) / 255
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("tint", [(1, 1, 1), (0.3, 1, 0.5)])
@pytest.mark.parametrize("kind", ["texture", "vertices"])
def test_colors_are_those_of_texture_or_vertices_times_the_factor(kind, tint, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    room = {"texcoords": "H"} if kind == "texture" else {"colors": True, "texture": ""}
    path = write_room(tmp_path / "room.glb", color={"baseColorFactor": [*tint, 1]}, **room)
    scene = trimesh.load_scene(prepare(path, tmp_path / "cache"))
    for name, color in zip(sorted(scene.geometry), COLORS, strict=True):
        visual = scene.geometry[name].visual
        assert visual.material.baseColorFactor is None or (visual.material.baseColorFactor == 255).all()
        if kind == "texture":
            shown = np.asarray(visual.material.baseColorTexture)[0, 8:16, :3]  # a bright tile
        else:
            shown = visual.to_color().vertex_colors[:, :3]
        np.testing.assert_allclose(linear(shown), np.tile(linear(color) * tint, (len(shown), 1)), atol=0.02)


def refused(path, *words):
    with pytest.raises(ValueError) as error:
        prepare(path, path.parent / "cache")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_files_that_are_not_whole(tmp_path):
    path = write_room(tmp_path / "room.glb")
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:19], whole[:100], whole[:-1], b"{}" + whole[2:]):
        path.write_bytes(content)
        refused(path, "not a complete glTF 2.0 file", "again")
    for version, said in ((1, "its version is 1"), (3, "its version is 3")):
        path.write_bytes(whole[:4] + struct.pack("<I", version) + whole[8:])
        refused(path, said)
    path.write_bytes(whole[:20] + b"[" + whole[21:])
    refused(path, "its JSON is damaged")
    write_room(path, asset={"version": "1.0"})
    refused(path, "its version is 1.0")


@pytest.mark.parametrize(
    ("room", "words"),
    [
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, ["KHR_draco", "npx @gltf-transform/cli copy IN OUT"]),
        ({"extensionsRequired": ["EXT_meshopt_compression"]}, ["EXT_meshopt", "npx @gltf-transform/cli copy IN OUT"]),
        ({"extensionsRequired": ["EXT_mesh_gpu_instancing"]}, ["EXT_mesh_gpu_instancing", "without it"]),
        ({"texture_extension": "KHR_texture_basisu"}, ["KHR_texture_basisu", "npx @gltf-transform/cli ktxdecompress"]),
        ({"mode": 0}, ["no triangles", "point cloud"]),
        ({"mode": 1}, ["no triangles"]),
        ({"node": {"scale": [0, 0, 1]}}, ["no extent", "0 x 0 x 3 m"]),
        ({"scenes": [{"nodes": [17]}]}, ["not valid glTF 2.0"]),
        ({"scenes": [{}]}, ["no triangles"]),
        ({"accessors": []}, ["not valid glTF 2.0"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_shown_is_refused_with_a_remedy(room, words, tmp_path):
    refused(write_room(tmp_path / "room.glb", **room), *words)


def test_an_image_that_is_none(tmp_path):
    path = write_room(tmp_path / "room.glb")
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\x89GNP"))
    refused(path, "it cannot be converted for SAPIEN", "image")
    assert not list((tmp_path / "cache").glob("*.glb")) and not list((tmp_path / "cache").glob("*.tmp"))


def test_one_bad_scan_of_many_is_found_before_any_is_shown(tmp_path):
    paths = [write_room(tmp_path / f"{i}.glb") for i in range(3)]
    write_glb(paths[1], {"asset": {"version": "2.0"}}, b"")
    with pytest.raises(ValueError, match=r"1\.glb: it has no triangles"):
        scans.prepare(paths, tmp_path / "cache")
