"""A small room as .glb in the forms that glTF 2.0 allows, written by hand."""

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

# Floor, ceiling, and the walls at x = -3, x = 3, y = -3, y = 3: a corner and the two sides that span it, z up.
SIDES = [
    ((-3, -3, 0), (6, 0, 0), (0, 6, 0)),
    ((-3, -3, 3), (0, 6, 0), (6, 0, 0)),
    ((-3, -3, 0), (0, 6, 0), (0, 0, 3)),
    ((3, -3, 0), (0, 0, 3), (0, 6, 0)),
    ((-3, -3, 0), (0, 0, 3), (6, 0, 0)),
    ((-3, 3, 0), (6, 0, 0), (0, 0, 3)),
]
COLORS = [(150, 110, 70), (200, 200, 210), (90, 120, 160), (160, 120, 90), (60, 140, 90), (170, 90, 150)]
GRID = 5  # vertices along an edge of a side
KINDS = {  # {name: (type, glTF's number of it)}
    "f": (np.float32, 5126),
    "H": (np.uint16, 5123),
    "B": (np.uint8, 5121),
    "h": (np.int16, 5122),
    "I": (np.uint32, 5125),
}


def write_glb(path: Path, content: dict, data: bytes, version: int = 2) -> Path:
    data = bytes(data) + bytes(-len(data) % 4)
    text = json.dumps({**content, "buffers": [{"byteLength": len(data)}]}).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", version, 28 + len(text) + len(data), len(text), b"JSON")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + text + struct.pack("<I4s", len(data), b"BIN\0") + data)
    return path


def picture(color, form: str = "PNG", alpha: int | None = None) -> bytes:
    """A checkerboard of 8 x 8 tiles in a color and a third of it."""
    tile = np.arange(64) // 8 % 2
    board = np.where((tile[:, None] ^ tile)[..., None], np.uint8(color), np.uint8(color) // 3)
    image = Image.fromarray(board)
    if alpha is not None:
        image.putalpha(alpha)
    buffer = io.BytesIO()
    image.save(buffer, form, **({} if form == "PNG" else {"quality": 95}))
    return buffer.getvalue()


def write_room(
    path: Path,
    *,
    positions: str = "f",
    texcoords: str = "f",
    uv_scale: float = 1.0,
    uv_set: int = 0,
    mode: int = 4,
    inside: bool = True,
    mirror: bool = False,
    y_up: bool = False,
    colors: bool = False,
    texture: str = "PNG",
    alpha: int | None = None,
    texture_extension: str = "",
    material: dict | None = None,
    color: dict | None = None,
    coordinates: dict | None = None,
    node: dict | None = None,
    **content,
) -> Path:
    """A room of 6 x 6 x 3 m, seen from inside (or outside), each side with its own color.

    positions, texcoords: their type, f (float), H, B or h (normalized integers). uv_set: the set that the texture uses.
    mode: of the primitives. texture: file format, empty for none. texture_extension: names the image instead of glTF
    itself. material, color, coordinates, node, content: more entries for each material, its base color, its texture
    coordinates, each node, the file.
    """
    data = bytearray()
    gltf = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": list(range(6))}]}
    gltf |= {name: [] for name in ("nodes", "meshes", "materials", "accessors", "bufferViews")}

    def view(content: bytes, **more) -> int:
        data.extend(bytes(-len(data) % 4))
        gltf["bufferViews"].append({"buffer": 0, "byteOffset": len(data), "byteLength": len(content), **more})
        data.extend(content)
        return len(gltf["bufferViews"]) - 1

    def accessor(values: np.ndarray, kind: str, **more) -> int:
        dtype, component = KINDS[kind]
        columns = values.shape[1]
        if kind in "HBh":
            values = np.round(values * np.iinfo(dtype).max)
            more["normalized"] = True
        rows = np.zeros(
            (len(values), -(-columns * np.dtype(dtype).itemsize // 4) * 4 // np.dtype(dtype).itemsize), dtype
        )
        rows[:, :columns] = values
        stride = {"byteStride": rows.shape[1] * rows.itemsize} if rows.shape[1] != columns else {}
        name = "SCALAR" if columns == 1 else f"VEC{columns}"
        entry = {"bufferView": view(rows.tobytes(), **stride), "componentType": component, "count": len(rows)}
        gltf["accessors"].append({**entry, "type": name, **more})
        return len(gltf["accessors"]) - 1

    a, b = np.meshgrid(*[np.linspace(0, 1, GRID)] * 2, indexing="ij")
    uv = np.stack([a, b], -1).reshape(-1, 2)
    grid = np.arange(GRID**2).reshape(GRID, GRID)
    corners = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], -1).reshape(-1, 4)
    order = corners[:, [0, 1, 2, 0, 2, 3]].reshape(-1)
    if mode == 5:  # row by row, joined by triangles without an area
        rows = [np.stack([grid[i], grid[i + 1]], 1).reshape(-1) for i in range(GRID - 1)]
        order = np.concatenate([np.r_[row[0], row, row[-1]] for row in rows])[1:-1]
    if not inside:
        order = order.reshape(-1, 3)[:, ::-1].reshape(-1)
    for index, (corner, u, v) in enumerate(SIDES):
        place = np.array(corner) + uv @ np.array([u, v])
        if mirror:
            place[:, 0] *= -1
        if y_up:
            place = place[:, [0, 2, 1]] * [1, 1, -1]
        scale = 1.0 if positions == "f" else 3.0
        bounds = [place.min(0), place.max(0)]
        if scale != 1:
            bounds = [np.round(value / scale * np.iinfo(KINDS[positions][0]).max) for value in bounds]
        bounds = {"min": bounds[0].tolist(), "max": bounds[1].tolist()}
        attributes = {"POSITION": accessor(place / scale, positions, **bounds)}
        attributes[f"TEXCOORD_{uv_set}"] = accessor(uv * uv_scale, texcoords)
        if uv_set:
            attributes["TEXCOORD_0"] = accessor(np.zeros_like(uv), "f")
        if colors:
            attributes["COLOR_0"] = accessor(np.tile([*(np.array(COLORS[index]) / 255) ** 2.2, 1], (len(uv), 1)), "H")
        surface = {"metallicFactor": 0, "roughnessFactor": 0.9, **(color or {})}
        if texture:
            image = view(picture(COLORS[index], texture, alpha))
            gltf.setdefault("images", []).append({"bufferView": image, "mimeType": f"image/{texture.lower()}"})
            source = {"source": index}
            source = {"extensions": {texture_extension: source}} if texture_extension else source
            gltf.setdefault("textures", []).append(source)
            surface["baseColorTexture"] = {
                "index": index,
                **({"texCoord": uv_set} if uv_set else {}),
                **(coordinates or {}),
            }
        gltf["materials"].append({"pbrMetallicRoughness": surface, **(material or {})})
        primitive = {"attributes": attributes, "material": index, "mode": mode}
        if mode:
            primitive["indices"] = accessor(order[:, None], "I")
        gltf["meshes"].append({"primitives": [primitive]})
        gltf["nodes"].append({"mesh": index, **({"scale": [scale] * 3} if scale != 1 else {}), **(node or {})})
    return write_glb(path, {**gltf, **content}, data)


WEBP = {"texture": "WEBP", "texture_extension": "EXT_texture_webp"}
TRANSFORM = {"extensions": {"KHR_texture_transform": {"scale": [3, 3]}}}
# {name: (the room, another one that looks the same and that SAPIEN shows right as it is)}
CONVERTED = {
    "normalized shorts": ({"texcoords": "H"}, {}),
    "normalized bytes": ({"texcoords": "B"}, {}),
    "quantized": ({"positions": "h", "texcoords": "H", "extensionsRequired": ["KHR_mesh_quantization"]}, {}),
    "transparent factor": ({"color": {"baseColorFactor": [1, 1, 1, 0]}}, {}),
    "transparent texture": ({"alpha": 0}, {}),
    "WebP": ({**WEBP, "extensionsRequired": ["EXT_texture_webp"]}, {}),
    "WebP, optional": (WEBP, {}),
    "WebP, undeclared": ({"texture": "WEBP"}, {}),
    "AVIF": ({"texture": "AVIF", "texture_extension": "EXT_texture_avif"}, {}),
    "second texture coordinates": ({"uv_set": 1}, {}),
    "transformed texture": ({"coordinates": TRANSFORM}, {"uv_scale": 3}),
    "vertex colors": ({"colors": True, "texture": ""}, None),
    "tinted texture": ({"color": {"baseColorFactor": [0.3, 1, 0.3, 1]}}, None),
    "tinted vertex colors": ({"colors": True, "texture": "", "color": {"baseColorFactor": [0.3, 1, 0.3, 1]}}, None),
    "both sides": ({"inside": False, "material": {"doubleSided": True}}, {}),
    "mirrored node": ({"node": {"scale": [-1, 1, 1]}}, {"mirror": True, "inside": False}),
    "both, quantized": ({"positions": "h", "node": {"scale": [-3, 3, 3]}, "material": {"doubleSided": True}},
                        {"mirror": True, "inside": False}),
}  # fmt: skip
SHOWN = {
    "plain": {},
    "JPEG": {"texture": "JPEG"},
    "strips": {"mode": 5},
    "one side": {"material": {"doubleSided": False}},
    "unlit": {"extensionsRequired": ["KHR_materials_unlit"], "material": {"extensions": {"KHR_materials_unlit": {}}}},
    "cut out": {"alpha": 255, "material": {"alphaMode": "MASK"}},
    "plain color": {"texture": "", "color": {"baseColorFactor": [0.8, 0.3, 0.1, 1]}},
}
