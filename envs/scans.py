"""Scans of rooms (.glb): which ones SAPIEN 2.2.2 shows as they are, which are converted first, which cannot be shown.

SAPIEN reads positions, texture coordinates and base colors through assimp, and ignores or misreads some of what glTF
2.0 allows, without a word: the room is black, white, or lacks walls. All of it can be read off a file's header and
JSON chunk. `prepare` converts what can be converted to the form that SAPIEN shows right: floating-point positions,
normals and texture coordinates in world space, single-sided triangles, opaque RGB textures in PNG or JPEG.
"""

import base64
import io
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .backgrounds import cache_name, locked_folder
from .notes import note

CONVERSION = 1  # part of a converted file's name: to be raised when the content changes
TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
COUNTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
IMAGES = {b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}  # first bytes of what SAPIEN reads
WEBP, AVIF = "EXT_texture_webp", "EXT_texture_avif"
SPECULAR = "KHR_materials_pbrSpecularGlossiness"
QUANTIZED, TRANSFORM = "KHR_mesh_quantization", "KHR_texture_transform"
# Required extensions that are no obstacle: without effect on geometry and base colors, or converted here.
HARMLESS = {f"KHR_materials_{name}" for name in "unlit specular ior clearcoat sheen iridescence anisotropy".split()}
HARMLESS |= {"KHR_materials_emissive_strength", "KHR_lights_punctual", "KHR_xmp_json_ld", "KHR_animation_pointer"}
CONVERTED = {WEBP, AVIF, SPECULAR, QUANTIZED, TRANSFORM}
TOOL = "npx @gltf-transform/cli"
REMEDIES = {
    "KHR_draco_mesh_compression": f"`{TOOL} copy IN OUT` decompresses it",
    "EXT_meshopt_compression": f"`{TOOL} copy IN OUT` decompresses it",
    "KHR_meshopt_compression": f"`{TOOL} copy IN OUT` decompresses it",
    "KHR_texture_basisu": f"with KTX-Software installed, `{TOOL} ktxdecompress IN OUT` makes its images PNG",
}


class Glb(NamedTuple):
    """A binary glTF: its path, the JSON chunk, and where its binary chunk begins (0: there is none) and ends."""

    path: Path
    json: dict[str, Any]
    start: int
    end: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the binary chunk."""
        with open(self.path, "rb") as file:
            file.seek(self.start + offset)
            return file.read(length)


class Instance(NamedTuple):
    """A primitive in the scene: its JSON, the matrix (4, 4) of its node."""

    primitive: dict[str, Any]
    matrix: np.ndarray


def prepare(paths: Iterable[Path], cache: Path) -> dict[Path, Path]:
    """{scan: the file that SAPIEN is to load}, which is the scan itself or its conversion in the folder `cache`.

    Raises ValueError, with the remedy, for a scan that cannot be shown.
    """
    needed = {path: needs for path in paths if (needs := check(read_glb(path)))}
    files = {path: path for path in paths}
    if not needed:
        return files
    name = {path: cache_name([path], "scan", CONVERSION, suffix=".glb") for path in needed}
    files |= {path: cache / name[path] for path in needed}
    missing = [path for path in needed if not files[path].exists()]
    if missing:
        with locked_folder(cache) as folder:  # the first process converts, the others wait
            for path in tqdm(missing, desc="converting scans", disable=None):
                files[path] = folder / name[path]
                if not files[path].exists():
                    note(f"{path}: converted for SAPIEN ({', '.join(needed[path])})")
                    convert(read_glb(path), files[path])
    return files


def read_glb(path: Path) -> Glb:
    """Reads header and JSON chunk. Raises ValueError if the file is no complete glTF 2.0."""

    def bad(reason: str) -> ValueError:
        return ValueError(
            f"{path}: not a complete glTF 2.0 file ({reason}); download or export it again, as binary .glb"
        )

    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            raise bad("it does not begin with glTF")
        version, length, json_length, kind = struct.unpack("<III4s", head[4:])
        if version != 2:
            raise bad(f"its version is {version}")
        if length > size or 20 + json_length > size:
            raise bad(f"it has {size} of {max(length, 20 + json_length)} bytes")
        if kind != b"JSON":
            raise bad("it has no JSON")
        try:
            content = json.loads(file.read(json_length))
            version = content["asset"]["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise bad("its JSON is damaged") from None
        if not str(version).startswith("2."):
            raise bad(f"its version is {version}")
        head, start = file.read(8), 0
        if len(head) == 8 and head[4:] == b"BIN\0":
            start = 28 + json_length
            length = struct.unpack("<I", head[:4])[0]
            if start + length > size:
                raise bad(f"it has {size} of {start + length} bytes")
    return Glb(path, content, start, start + length)


def check(glb: Glb) -> list[str]:
    """Why a scan has to be converted for SAPIEN; empty if it is shown right as it is.

    Reads no geometry. Raises ValueError for a scan that cannot be converted.
    """
    try:
        return list(dict.fromkeys(_check(glb)))
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{glb.path}: its JSON is not valid glTF 2.0 ({type(error).__name__}: {error})") from error


def _check(glb: Glb) -> Iterator[str]:
    j = glb.json
    for name in j.get("extensionsRequired", []):
        if name not in HARMLESS | CONVERTED:
            remedy = REMEDIES.get(name, f"`{TOOL} inspect IN` shows what uses it; export the scan without it")
            raise ValueError(f"{glb.path}: it requires {name}, which SAPIEN does not read; {remedy}")
    parts = [instance for instance in instances(glb) if instance.primitive.get("mode", 4) >= 4]
    if not parts:
        raise ValueError(f"{glb.path}: it has no triangles, only which SAPIEN shows (a point cloud?); mesh it")
    corners = []
    for primitive, matrix in parts:
        attributes = primitive["attributes"]
        position = j["accessors"][attributes["POSITION"]]
        material = j["materials"][primitive["material"]] if "material" in primitive else {}
        for accessor in (position, *(j["accessors"][i] for i in attributes.values())):
            if "bufferView" not in accessor and "sparse" not in accessor:
                raise ValueError(f"{glb.path}: its geometry is compressed; {REMEDIES['KHR_draco_mesh_compression']}")
            view = j["bufferViews"][accessor["bufferView"]] if "bufferView" in accessor else {}
            if view.get("buffer", 0) or "uri" in j["buffers"][0]:
                raise ValueError(f"{glb.path}: its geometry is in another file; `{TOOL} copy IN OUT` packs it in")
        low, high = (_decode(np.array(position.get(key, [0, 0, 0]), float), position) for key in ("min", "max"))
        box = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3)
        corners.append(box @ matrix[:3, :3].T + matrix[:3, 3])
        if position["componentType"] != 5126:
            yield "quantized positions"
        for name in ("TEXCOORD_0", "TEXCOORD_1"):
            if name in attributes and j["accessors"][attributes[name]]["componentType"] != 5126:
                yield "normalized texture coordinates"
        if np.linalg.det(matrix[:3, :3]) < 0:
            yield "a mirrored node"
        if material.get("doubleSided"):
            yield "doubleSided"
        color = _base_color(material)
        opaque = material.get("alphaMode", "OPAQUE") == "OPAQUE"
        if opaque and color["factor"][3] < 1:
            yield "alpha in an opaque material"
        texture = color["texture"]
        if texture is None:
            if "COLOR_0" in attributes:
                yield "vertex colors"
            continue
        if any(value != 1 for value in color["factor"][:3]):
            yield "a tinted texture"
        if texture.get("texCoord", 0) or texture.get("extensions", {}).get(TRANSFORM, {}) not in ({}, IDENTITY):
            yield "texture coordinates"
        head = _image_bytes(glb, _image(glb, texture), 26)
        if not any(head.startswith(first) for first in IMAGES):
            yield "an image that is neither PNG nor JPEG"
        elif opaque and head[:4] == b"\x89PNG" and head[25] in (3, 4, 6):  # palette, gray and RGB with alpha
            yield "alpha in an opaque material"
    extent = np.ptp(np.concatenate(corners), axis=0)
    if not (np.isfinite(extent).all() and (extent > 0).sum() >= 2):
        raise ValueError(f"{glb.path}: the room has no extent ({' x '.join(f'{v:g}' for v in extent)} m)")


IDENTITY = {"offset": [0, 0], "rotation": 0, "scale": [1, 1]}


def instances(glb: Glb) -> Iterator[Instance]:
    """The primitives of the default scene."""
    j = glb.json
    nodes = j.get("nodes", [])
    if "scenes" in j:
        roots = j["scenes"][j.get("scene", 0)].get("nodes", [])
    else:
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [i for i in range(len(nodes)) if i not in children]
    stack = [(root, np.eye(4)) for root in reversed(roots)]
    while stack:
        index, parent = stack.pop()
        node = nodes[index]
        matrix = parent @ _node_matrix(node)
        stack += [(child, matrix) for child in reversed(node.get("children", []))]
        if "mesh" in node:
            yield from (Instance(primitive, matrix) for primitive in j["meshes"][node["mesh"]]["primitives"])


def _node_matrix(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= node.get("scale", (1, 1, 1))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _base_color(material: dict) -> dict[str, Any]:
    """The factor (4,) and the texture (its JSON, or None) of a material's base color."""
    if SPECULAR in material.get("extensions", {}):
        source, names = material["extensions"][SPECULAR], ("diffuseFactor", "diffuseTexture")
    else:
        source, names = material.get("pbrMetallicRoughness", {}), ("baseColorFactor", "baseColorTexture")
    return {"factor": source.get(names[0], [1, 1, 1, 1]), "texture": source.get(names[1])}


def _image(glb: Glb, texture: dict) -> int:
    """The index of a texture's image: that of an extension which is read here, else the fallback."""
    info = glb.json["textures"][texture["index"]]
    for name in (WEBP, AVIF):
        if name in info.get("extensions", {}):
            return info["extensions"][name]["source"]
    if "source" not in info:
        name = next(iter(info.get("extensions", {})), "no image")
        remedy = REMEDIES.get(name, "export the scan with PNG or JPEG images")
        raise ValueError(f"{glb.path}: its images are in {name}, which SAPIEN does not read; {remedy}")
    return info["source"]


def _image_bytes(glb: Glb, index: int, length: int | None = None) -> bytes:
    """The first `length` bytes of an image file, all by default."""
    image = glb.json["images"][index]
    if "bufferView" in image:
        view = glb.json["bufferViews"][image["bufferView"]]
        return glb.read(view.get("byteOffset", 0), min(length or math.inf, view["byteLength"]))
    if image["uri"].startswith("data:"):
        return base64.b64decode(image["uri"].partition(",")[2])[:length]
    path = glb.path.parent / image["uri"]
    try:
        with open(path, "rb") as file:
            return file.read(-1 if length is None else length)
    except OSError as error:
        raise ValueError(f"{glb.path}: its image {path} cannot be read ({error.strerror})") from None


# --------------------------------------------------------------------------------------------------------- conversion


def convert(glb: Glb, path: Path) -> None:
    """Writes the triangles of a scan in the form that SAPIEN shows right."""
    j, out = glb.json, _Writer()
    materials: dict[Any, int] = {}
    try:
        for primitive, matrix in instances(glb):
            if primitive.get("mode", 4) < 4:
                continue
            index = primitive.get("material")
            material = {} if index is None else j["materials"][index]
            mesh, palette = _geometry(glb, primitive, matrix, material)
            key = (index, palette is not None)
            if key not in materials:
                materials[key] = out.material(glb, material, palette)
            out.mesh(mesh, materials[key])
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{glb.path}: it cannot be converted for SAPIEN: {' '.join(str(error).split())}") from error
    part = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        part.write_bytes(out.finish())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _geometry(glb: Glb, primitive: dict, matrix: np.ndarray, material: dict) -> tuple[dict, np.ndarray | None]:
    """{attribute: array} and the triangles of a primitive in world space; the colors (N, 3) that its texture shows."""
    attributes = primitive["attributes"]
    position = read_accessor(glb, attributes["POSITION"])
    if not np.isfinite(position).all():
        raise ValueError("its positions are not finite")
    order = np.arange(len(position))
    if "indices" in primitive:
        order = read_accessor(glb, primitive["indices"])[:, 0].astype(int)
    triangles = _triangles(order, primitive.get("mode", 4))
    linear = matrix[:3, :3]
    if np.linalg.det(linear) < 0:
        triangles = triangles[:, ::-1]

    texture, palette = _base_color(material)["texture"], None
    uv = np.zeros((len(position), 2))
    if texture is not None:
        transform = texture.get("extensions", {}).get(TRANSFORM, {})
        uv = read_accessor(glb, attributes[f"TEXCOORD_{transform.get('texCoord', texture.get('texCoord', 0))}"])
        uv = _transform_uv(uv, transform)
    world = position @ linear.T + matrix[:3, 3]
    normal = read_accessor(glb, attributes["NORMAL"]) @ np.linalg.pinv(linear) if "NORMAL" in attributes else None
    if normal is None or (texture is None and "COLOR_0" in attributes):  # faces are flat, or of one color each
        flat = np.cross(*(world[triangles[:, i]] - world[triangles[:, 0]] for i in (1, 2)))
        normal = np.repeat(flat, 3, axis=0) if normal is None else normal[triangles.reshape(-1)]
        if texture is None and "COLOR_0" in attributes:
            colors = read_accessor(glb, attributes["COLOR_0"])[:, :3][triangles].mean(1)
            colors = colors * _base_color(material)["factor"][:3]
            palette, uv = _palette(colors)
        else:
            uv = uv[triangles.reshape(-1)]
        world = world[triangles.reshape(-1)]
        triangles = np.arange(len(world)).reshape(-1, 3)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    if material.get("doubleSided"):
        triangles = np.concatenate([triangles, triangles[:, ::-1] + len(world)])
        world, uv, normal = np.tile(world, (2, 1)), np.tile(uv, (2, 1)), np.concatenate([normal, -normal])
    return {"POSITION": world, "NORMAL": normal, "TEXCOORD_0": uv, "triangles": triangles}, palette


def read_accessor(glb: Glb, index: int) -> np.ndarray:
    """An accessor's elements (N, components), normalized integers as floats."""
    accessor = glb.json["accessors"][index]
    count, columns, dtype = accessor["count"], COUNTS[accessor["type"]], np.dtype(TYPES[accessor["componentType"]])

    def elements(view_index: int, offset: int, count: int, columns: int, dtype: np.dtype) -> np.ndarray:
        view = glb.json["bufferViews"][view_index]
        row = columns * dtype.itemsize
        stride = view.get("byteStride", row)
        data = glb.read(view.get("byteOffset", 0) + offset, (count - 1) * stride + row)
        return np.ndarray((count, columns), dtype, data, strides=(stride, dtype.itemsize))

    values = np.zeros((count, columns), dtype)
    if "bufferView" in accessor:
        values = elements(accessor["bufferView"], accessor.get("byteOffset", 0), count, columns, dtype)
    if sparse := accessor.get("sparse"):
        where, new = sparse["indices"], sparse["values"]
        kind = np.dtype(TYPES[where["componentType"]])
        rows = elements(where["bufferView"], where.get("byteOffset", 0), sparse["count"], 1, kind)[:, 0]
        values = values.copy()
        values[rows] = elements(new["bufferView"], new.get("byteOffset", 0), sparse["count"], columns, dtype)
    return _decode(values, accessor)


def _decode(values: np.ndarray, accessor: dict) -> np.ndarray:
    values = values.astype(float)
    if not accessor.get("normalized"):
        return values
    return np.maximum(values / np.iinfo(TYPES[accessor["componentType"]]).max, -1)


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    """Vertices of triangles (N, 3), from those of a list (mode 4), strip (5) or fan (6)."""
    if mode == 4:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    first, second, third = order[:-2], order[1:-1], order[2:]
    if mode == 6:
        return np.stack([np.full_like(first, order[0]), second, third], 1)
    odd = np.arange(len(first)) % 2 == 1
    triangles = np.stack([first, np.where(odd, third, second), np.where(odd, second, third)], 1)
    return triangles[(first != second) & (second != third) & (first != third)]


def _transform_uv(uv: np.ndarray, transform: dict) -> np.ndarray:
    cos, sin = np.cos(transform.get("rotation", 0)), np.sin(transform.get("rotation", 0))
    uv = uv * transform.get("scale", (1, 1)) @ np.array([[cos, -sin], [sin, cos]])
    return uv + transform.get("offset", (0, 0))


def _palette(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All colors in steps of 4 levels (512, 512, 3), and where triangles of linear `colors` find theirs."""
    r, g, b = np.round(_srgb(colors) * 63).astype(int).T
    x, y = (b % 8) * 64 + r, (b // 8) * 64 + g
    all_colors = np.arange(64) * 4 + 2
    table = np.zeros((8, 64, 8, 64, 3), np.uint8)
    table[..., 0] = all_colors
    table[..., 1] = all_colors[:, None, None]
    table[..., 2] = all_colors.reshape(8, 1, 8, 1)
    uv = (np.stack([x, y], 1) + 0.5) / 512
    return table.reshape(512, 512, 3), np.repeat(uv, 3, axis=0)


class _Writer:
    """A binary glTF that grows mesh by mesh."""

    def __init__(self):
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.json |= {name: [] for name in ("nodes", "meshes", "materials", "accessors", "bufferViews")}
        self.json |= {"textures": [], "images": []}
        self.images: dict[Any, int] = {}
        self.data = io.BytesIO()

    def view(self, data: bytes) -> int:
        self.data.write(bytes(-self.data.tell() % 4))
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": self.data.tell(), "byteLength": len(data)})
        self.data.write(data)
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, kind: str, component: int) -> int:
        values = np.ascontiguousarray(values, TYPES[component])
        bounds = {"min": values.min(0).tolist(), "max": values.max(0).tolist()} if kind == "VEC3" else {}
        entry = {"bufferView": self.view(values.tobytes()), "componentType": component, "count": len(values)}
        self.json["accessors"].append({**entry, "type": kind, **bounds})
        return len(self.json["accessors"]) - 1

    def mesh(self, mesh: dict[str, np.ndarray], material: int) -> None:
        indices = self.accessor(mesh.pop("triangles").reshape(-1, 1), "SCALAR", 5125)
        attributes = {name: self.accessor(values, f"VEC{values.shape[1]}", 5126) for name, values in mesh.items()}
        primitive = {"attributes": attributes, "indices": indices, "material": material}
        self.json["meshes"].append({"primitives": [primitive]})
        self.json["scenes"][0]["nodes"].append(len(self.json["nodes"]))
        self.json["nodes"].append({"mesh": len(self.json["meshes"]) - 1})

    def material(self, glb: Glb, material: dict, palette: np.ndarray | None) -> int:
        """The base color, roughness and transparency of a material."""
        color, mode = _base_color(material), material.get("alphaMode", "OPAQUE")
        *tint, alpha = color["factor"]
        surface = dict(material.get("pbrMetallicRoughness", {"metallicFactor": 0}))
        if SPECULAR in material.get("extensions", {}):
            glossiness = material["extensions"][SPECULAR].get("glossinessFactor", 1)
            surface = {"metallicFactor": 0, "roughnessFactor": 1 - glossiness}
        surface = {name: value for name, value in surface.items() if name.endswith("Factor")}
        if palette is not None:
            surface["baseColorTexture"] = {"index": self.image(_png(palette), None)}
        elif color["texture"] is not None:
            index, opaque = _image(glb, color["texture"]), mode == "OPAQUE"
            data = _for_sapien(_image_bytes(glb, index), opaque, tint)
            surface["baseColorTexture"] = {"index": self.image(data, (index, opaque, *tint))}
        if "baseColorTexture" in surface:
            tint = [1, 1, 1]  # SAPIEN would ignore a tint beside a texture
        surface["baseColorFactor"] = [*tint, 1 if mode == "OPAQUE" else alpha]
        entry = {"pbrMetallicRoughness": surface, "alphaMode": mode}
        if "alphaCutoff" in material:
            entry["alphaCutoff"] = material["alphaCutoff"]
        self.json["materials"].append(entry)
        return len(self.json["materials"]) - 1

    def image(self, data: bytes, key: Any) -> int:
        if key not in self.images:
            kind = next(kind for first, kind in IMAGES.items() if data.startswith(first))
            self.json["images"].append({"bufferView": self.view(data), "mimeType": kind})
            self.json["textures"].append({"source": len(self.json["images"]) - 1})
            self.images[key] = len(self.json["textures"]) - 1
        return self.images[key]

    def finish(self) -> bytes:
        data = self.data.getvalue() + bytes(-self.data.tell() % 4)
        content = {name: value for name, value in self.json.items() if value != []}
        text = json.dumps({**content, "buffers": [{"byteLength": len(data)}]}).encode()
        text += b" " * (-len(text) % 4)
        head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(data), len(text), b"JSON")
        return head + text + struct.pack("<I4s", len(data), b"BIN\0") + data


def _for_sapien(data: bytes, opaque: bool, tint: Sequence[float]) -> bytes:
    """An image file as PNG or JPEG, without alpha where it has no meaning, multiplied by a linear color."""
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    plain = all(value == 1 for value in tint)
    if image.format in ("PNG", "JPEG") and image.mode == "RGB" and plain:
        return data
    image = image.convert("RGB" if opaque or image.mode not in ("RGBA", "LA", "P", "PA") else "RGBA")
    if plain:
        return _png(image)
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    pixels = np.array(image)
    for channel, value in enumerate(tint):
        pixels[..., channel] = np.round(255 * _srgb(linear * value)).astype(np.uint8)[pixels[..., channel]]
    return _png(pixels)


def _srgb(linear: np.ndarray) -> np.ndarray:
    """Linear colors as sRGB, both in [0, 1]."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def _png(image: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
