"""Random image augmentations, picked by the setting `augmentation`; HRSSM itself masks cubes instead (models.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, names: tuple[str, ...], prob: float = 1.0) -> Tensor:
    """Augments images (B, T, H, W, C) float, one augmentation after the other, each image with its own draws.

    Args:
        names: of `AUGMENTATIONS`.
        prob: share of the images that each augmentation changes.
    """
    if not names:
        return images
    # (N, C, H, W)
    x = images.flatten(0, 1).permute(0, 3, 1, 2)
    for name in names:
        changed = AUGMENTATIONS[name](x)
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= prob
        x = torch.where(keep, x, changed)
    return x.permute(0, 2, 3, 1).unflatten(0, images.shape[:2])


def affine(x: Tensor) -> Tensor:
    """Rotation and shear of ±5°, shift of ±14%, scale 0.9 to 1.1."""
    angle, shear = torch.deg2rad(uniform(x, -5, 5)), torch.tan(torch.deg2rad(uniform(x, -5, 5)))
    scale = 1 / uniform(x, 0.9, 1.1)
    tx, ty = uniform(x, -0.28, 0.28), uniform(x, -0.28, 0.28)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    return warp(x, (cos, cos * shear - sin, tx), (sin, sin * shear + cos, ty), padding="zeros")


def crop(x: Tensor) -> Tensor:
    """A window of 84% of the image at a random place, scaled back up."""
    size = x.new_full((len(x),), 0.84)
    return window(x, size, size, uniform(x, -0.16, 0.16), uniform(x, -0.16, 0.16))


def rrc(x: Tensor) -> Tensor:
    """A window of 80 to 100% of the area with an aspect ratio of 3/4 to 4/3, scaled back up."""
    area, ratio = uniform(x, 0.8, 1), torch.exp(uniform(x, -0.2877, 0.2877))
    sx, sy = torch.sqrt(area * ratio).clamp(max=1), torch.sqrt(area / ratio).clamp(max=1)
    return window(x, sx, sy, uniform(x, -1, 1) * (1 - sx), uniform(x, -1, 1) * (1 - sy))


def blur(x: Tensor) -> Tensor:
    """5×5 Gaussian of std 1.5."""
    taps = torch.exp(-((torch.arange(5, device=x.device) - 2.0) ** 2) / (2 * 1.5**2))
    kernel = (taps / taps.sum()).expand(x.shape[1], 1, 1, 5)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])


def shift(x: Tensor) -> Tensor:
    """By up to 4 pixels, edges repeated."""
    n, _, height, width = x.shape
    tx, ty = (torch.randint(-4, 5, (n,), device=x.device) * 2 / size for size in (width, height))
    return window(x, torch.ones_like(tx), torch.ones_like(ty), tx, ty)


def intensity(x: Tensor) -> Tensor:
    """Times 1 + 0.05·N(0, 1), truncated at ±2."""
    return x * (1 + 0.05 * torch.randn(x.shape[0], 1, 1, 1, device=x.device).clamp(-2, 2))


def overlay(x: Tensor) -> Tensor:
    """The mean of the image and of gray noise whose amplitudes fall as 1/f, as those of natural images do.

    After the overlay of SVEA (Hansen, Su and Wang, NeurIPS 2021, arXiv 2107.00644), which mixes photographs in.
    """
    n, _, height, width = x.shape
    noise = x.new_zeros(n, 1, 1, 1)
    for octave in range(5, -1, -1):  # the same variance for each
        size = max(1, height >> octave), max(1, width >> octave)
        noise = F.interpolate(noise, size, mode="bilinear") + torch.randn(n, 1, *size, device=x.device)
    return (x + (noise / 8).clamp(-0.5, 0.5)) / 2  # std 0.22, that of the clouds of _video tasks


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (affine, crop, rrc, blur, shift, intensity, overlay)
}


def uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A number for each image, (N,)."""
    return torch.rand(len(x), device=x.device) * (high - low) + low


def warp(x: Tensor, *rows: tuple[Tensor, Tensor, Tensor], padding: str = "border") -> Tensor:
    """Samples images (N, C, H, W) at affine coordinates: two rows of a matrix, in units of half an image, (N,) each."""
    grid = F.affine_grid(torch.stack([torch.stack(row, -1) for row in rows], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=False)


def window(x: Tensor, sx: Tensor, sy: Tensor, tx: Tensor, ty: Tensor) -> Tensor:
    """A part of each image of these sizes at these places, (N,) each."""
    zero = torch.zeros_like(sx)
    return warp(x, (sx, zero, tx), (zero, sy, ty))
