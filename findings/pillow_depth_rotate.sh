#!/usr/bin/env bash
# Pillow rotates and warps 16-bit depth byte by byte. With BILINEAR or BICUBIC, `rotate` and `transform` (affine,
# perspective, quad, extent) interpolate the bytes of mode "I;16", not its numbers, and all results are below 256.
# `Image.composite` with a soft mask mixes bytes too, in "I;16", "I" and "F".
#
# 2026-11-30, pillow 13.0.0, numpy 2.4.6. A wall at 2,000 mm, uint16, saved as PNG and opened again, which is "I;16".
# Values in the 40 x 40 pixels in the middle. Seen:
#     as opened: 2000
#     resize to half, BILINEAR: 2000
#     rotate(10, NEAREST): I;16 2000, I 2000, F 2000
#     rotate(10, BILINEAR): I;16 7 to 207, I 2000, F 2000
#     rotate(10, BICUBIC): I;16 7 to 207, I 2000, F 2000
#     transform by half a pixel, BILINEAR: I;16 107, I 2000, F 2000
#     composite of 2000 and 2200, mask 128: I;16 2000 to 2228, I 2228, F 4136
# (2000 is 7 * 256 + 208. No warning is printed; GaussianBlur, MedianFilter and ImageChops.add refuse an "I;16".)
#
# Why it matters: depth cameras and simulators write 16-bit PNGs, and np.uint16 arrays become this mode. torchvision's
# RandomRotation, RandomAffine and RandomPerspective call these functions for such images, with the interpolation that
# they are given. The color image beside it is right, so are size and mode; two meters are between 7 mm and 207 mm.
# Expected before: interpolated numbers, as in "I" and "F", and as `resize` does. The documentation of `rotate` and
# `transform` has an exception for the modes "1" and "P", none for this one; that of `composite` has none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transform

SIZE = 64
DTYPES = {"I;16": np.uint16, "I": np.int32, "F": np.float32}


def wall(mode, distance):
    return Image.fromarray(np.full((SIZE, SIZE), distance, DTYPES[mode]))


def seen(image):
    """The lowest and the highest value within 20 pixels of the center."""
    values = np.asarray(image)
    middle = values[values.shape[0] // 2 - 20 :, values.shape[1] // 2 - 20 :][:40, :40]
    return round(float(middle.min())), round(float(middle.max()))


def text(limits):
    return " to ".join(str(limit) for limit in sorted(set(limits)))


wall("I;16", 2000).save("depth.png")
opened = Image.open("depth.png")
opened.load()
walls = {"I;16": opened, "I": wall("I", 2000), "F": wall("F", 2000)}
small = opened.resize((SIZE // 2, SIZE // 2), Resampling.BILINEAR)
resized = (int(np.asarray(small).min()), int(np.asarray(small).max()))
print("as opened:", text(seen(opened)))
print("resize to half, BILINEAR:", text(resized))
good = opened.mode == "I;16" and seen(opened) == resized == (2000, 2000)

ways = {
    f"rotate(10, {resample.name})": lambda image, resample=resample: image.rotate(10, resample)
    for resample in (Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC)
}
ways["transform by half a pixel, BILINEAR"] = lambda image: image.transform(
    (SIZE, SIZE), Transform.AFFINE, (1, 0, 0.5, 0, 1, 0), Resampling.BILINEAR
)
for name, way in ways.items():
    limits = {mode: seen(way(image)) for mode, image in walls.items()}
    print(f"{name}:", ", ".join(f"{mode} {text(limits[mode])}" for mode in limits))
    good &= limits["I"] == limits["F"] == (2000, 2000)
    good &= limits["I;16"] == (2000, 2000) if "NEAREST" in name else limits["I;16"][1] < 256

mask = Image.new("L", (SIZE, SIZE), 128)
mixed = {mode: seen(Image.composite(wall(mode, 2200), wall(mode, 2000), mask)) for mode in DTYPES}
print("composite of 2000 and 2200, mask 128:", ", ".join(f"{mode} {text(mixed[mode])}" for mode in mixed))
good &= all(abs(value - 2100) > 20 for limits in mixed.values() for value in limits)
sys.exit(0 if good else 1)
PYTHON
