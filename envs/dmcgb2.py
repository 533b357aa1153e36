"""DMC-GB2 (Almuzairee et al., 2024): rotated and shifted cameras, and colors with videos on a screen in the scene.

All of it is meant for tests after clean training.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

import cv2
import numpy as np

from .distracted import CAMERAS, DMCGS, find_videos
from .dmc import DMC, texture
from .videos import read_video

VARIANTS = 100  # views of a set
MAX_ROTATION = {"easy": 90, "hard": 180}  # degrees
SHIFT_DIVISOR = {"easy": 1.5, "hard": 1.0}
CORNERS = {  # the view shifts along this rectangle; degrees: pitch from, to; roll from, to
    "walker": (-10, 10, -10, 10),
    "cheetah": (-10, 10, -10, 10),
    "cartpole": (-8, 8, -10, 10),
    "finger": (-6, 6, -6, 12),
    "ball_in_cup": (-6, 6, -6, 12),
}


class Screen(NamedTuple):
    """The screen of a domain: a flat box. `offset`: it follows the torso's center of mass, at this distance in x, z."""

    half_size: tuple[float, float, float]
    position: tuple[float, float, float]
    tilt: float  # around x, degrees
    offset: tuple[float, float] | None = None


SCREENS = {
    "walker": Screen((1.86, 0.1, 1.86), (0, 1.96, -0.7), -30, (0, -1.07)),
    "cheetah": Screen((1.86, 0.1, 1.86), (0, 1.6, -0.7), 0, (-0.05, 0.15)),
    "cartpole": Screen((1.86, 0.1, 1.86), (0, 0.5, 1.0), 0),
    "ball_in_cup": Screen((0.66, 0.1, 0.66), (0, 0.5, 0.05), -27),
    "finger": Screen((0.66, 0.1, 0.66), (0, 0.5, 0.05), -27),
}
SIDE = 256  # pixels of the screen


class Geometric(DMC):
    """`dmc_{domain}_{task}_{mode}`, mode rotate, shift or rotate_shift with _easy or _hard: the camera looks askew.

    An episode keeps its view: one of 100, in an order that the seed shuffles, the next one at each reset. rotate: the
    camera is rolled about its optical axis; shift: turned, so that the robot is near the border; rotate_shift: first
    shifted, then rotated.
    """

    def __init__(self, domain: str, task: str, mode: str, *, seed: int = 0, **kwargs):
        super().__init__(domain, task, seed=seed, camera=CAMERAS.get(domain), **kwargs)
        kinds, _, level = mode.rpartition("_")
        self._shifts = self._rotations = [np.eye(3)] * VARIANTS
        if "shift" in kinds:
            self._shifts = shift_views(*(angle / SHIFT_DIVISOR[level] for angle in CORNERS[domain]))
        if "rotate" in kinds:
            self._rotations = rotation_views(MAX_ROTATION[level])
        # Rotations and shifts are shuffled apart, so that together they are not tied to each other.
        rng = np.random.default_rng([seed, 0, 2])  # unlike the streams of episodes, [seed, n]
        self._orders = [rng.permutation(VARIANTS) for _ in range(2)]

    def begin_episode(self) -> None:
        shift, rotation = (int(order[self._episode % VARIANTS]) for order in self._orders)
        self._turn = self._shifts[shift] @ self._rotations[rotation]

    def render(self) -> np.ndarray:
        # The engine derives the camera's pose from the model in each step; it is turned for this frame only.
        axes = self.physics.data.cam_xmat[self._camera_id]
        stock = axes.copy()
        axes[:] = (stock.reshape(3, 3) @ self._turn).reshape(-1)
        frame = super().render()
        axes[:] = stock
        return frame


def rotation_views(maximum: float) -> list[np.ndarray]:
    """Rotations about a camera's optical axis, by evenly spaced angles in [-maximum, maximum) degrees."""
    return [turn(2, angle) for angle in np.linspace(-maximum, maximum, VARIANTS, endpoint=False)]


def shift_views(pitch_low: float, pitch_high: float, roll_low: float, roll_high: float) -> list[np.ndarray]:
    """Rotations Ry(pitch) Rx(roll), with pitch and roll (degrees) in equal steps along the border of a rectangle."""
    corners = [(pitch_low, roll_low), (pitch_high, roll_low), (pitch_high, roll_high), (pitch_low, roll_high)]
    corners.append(corners[0])
    along = [0.0, *itertools.accumulate(math.dist(a, b) for a, b in itertools.pairwise(corners))]
    places = np.linspace(0, along[-1], VARIANTS, endpoint=False)
    pitches, rolls = (np.interp(places, along, [corner[i] for corner in corners]) for i in (0, 1))
    return [turn(1, pitch) @ turn(0, roll) for pitch, roll in zip(pitches, rolls, strict=True)]


def turn(axis: int, degrees: float) -> np.ndarray:
    """(3, 3) rotation about an axis (0: x, 1: y, 2: z)."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = math.cos(math.radians(degrees))
    matrix[j, i] = math.sin(math.radians(degrees))
    matrix[i, j] = -matrix[j, i]
    return matrix


class ColorVideo(DMCGS):
    """`dmc_{domain}_{task}_color_video_easy` and `_hard`: the colors of color_*, and the videos of video_* on a screen.

    The screen is part of the scene, behind the robot. The next video at each reset, from its first frame, one frame per
    agent step, wrapping around. Arguments as those of DMCGS.

    Raises FileNotFoundError without videos.
    """

    def __init__(self, domain: str, task: str, mode: str, *, image: bool = True, assets: str = "assets", **kwargs):
        self._place = SCREENS[domain]
        level = mode.rpartition("_")[2]
        self._files = find_videos(f"video_{level}", assets) if image else None
        super().__init__(domain, task, f"color_{level}", image=image, assets=assets, edit_model=self._add, **kwargs)
        model = self.physics.model
        self._screen = model.name2id("screen", "site")
        self._torso = model.name2id("torso", "body") if self._place.offset else None
        self._picture = model.name2id("screen", "texture")
        model.tex_height[self._picture] = SIDE  # one face of the six in memory: MuJoCo shows it on all of them

    def _add(self, root: Element) -> None:
        """Adds the screen to the domain's model."""
        place, half = self._place, math.radians(self._place.tilt) / 2
        asset = SubElement(root, "asset")
        SubElement(asset, "texture", name="screen", type="cube", builtin="flat", width=str(SIDE), height=str(SIDE))
        SubElement(asset, "material", name="screen", texture="screen")
        SubElement(
            root.find("worldbody"), "site", name="screen", type="box", material="screen", rgba="1 1 1 1",
            size=" ".join(map(str, place.half_size)), pos=" ".join(map(str, place.position)),
            quat=f"{math.cos(half)} {math.sin(half)} 0 0",
        )  # fmt: skip

    def begin_episode(self) -> None:
        super().begin_episode()
        if self.image:
            path = self._files[(self.seed + self._episode) % len(self._files)]
            self._video = self._play(path)
            self.shown = (*self.shown, f"{path.parent.name}/{path.name}")

    def _play(self, path: Path) -> Iterator[np.ndarray]:
        """Frames for the screen, forever. They are decoded as they are shown: 100 videos of this size fill 10 GB."""
        while True:
            for frame in read_video(path):
                yield cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)

    def render(self) -> np.ndarray:
        data = self.physics.data
        if self._torso is not None:
            data.site_xpos[self._screen, ::2] = data.subtree_com[self._torso, ::2] + self._place.offset
        self.background = next(self._video)
        texture(self.physics.model, self._picture)[:] = self.background
        self.upload(self._picture)
        return super().render()
