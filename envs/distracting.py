"""Distractions of the Distracting Control Suite, in motion: camera, background and colors (distracting_cs), or only
the camera (sensor_cs)."""

import math
from pathlib import Path

import numpy as np

from . import backgrounds
from .dmc import DMC, texture
from .notes import note
from .sources import DAVIS_VIDEOS as VIDEOS

# isort: split
import mujoco  # comes after .dmc, which picks the renderer at import

FLOOR_ALPHA = {"reacher": 0.0, "walker": 1.0, "cheetah": 1.0}  # 0.3 for the others
EVERY = 2  # environment steps between moves
FACE = 800  # pixels of a side of the sky's texture

# DAVIS-2017's unpacked archive, or a folder of sequences, each a folder of jpgs.
DAVIS_FRAMES = ("JPEGImages/480p", "DAVIS/JPEGImages/480p", ".")


class DistractingCS(DMC):
    """`dmc_{domain}_{task}_distracting_cs` and `_sensor_cs`: the view changes every second environment step.

    A step here is a step of the suite's env, not of its integrator (a walker's has 10 of them) and not of the
    agent: with an action repeat of 2 there is one move between the agent's frames, with a repeat of 4 there are two.

    Camera: `CameraWalk`, around the robot's center of mass where the stock camera tracks it, else around the point that
    the stock camera looks at, as far away as the robot. Background: a sequence of DAVIS on the sky, on all six faces.
    Colors: `ColorWalk` of every material. All of it is drawn again in each episode.

    distracting_cs_intensity: one of VIDEOS. ds_resource_path: DAVIS-2017 (see DAVIS_FRAMES), by default the folder
    davis in `assets`. Decoded frames are cached in `assets`/cache: about 2 MB each. The other arguments are DMC's.

    Raises ValueError for another mode; FileNotFoundError without DAVIS.
    """

    def __init__(
        self, domain: str, task: str, mode: str, *, distracting_cs_intensity: float = 0.1, ds_resource_path: str = "",
        assets: str = "assets", image: bool = True, **kwargs,
    ):  # fmt: skip
        if mode not in ("distracting_cs", "sensor_cs"):
            raise ValueError(f"mode {mode}: expected distracting_cs or sensor_cs")
        intensity = distracting_cs_intensity
        self.intensity = float(intensity)
        self._videos = None
        if image and mode == "distracting_cs":
            files = find_davis(ds_resource_path or Path(assets) / "davis", VIDEOS[intensity])
            self._names = [f"davis/{frames[0].parent.name}" for frames in files]
            cache = Path(assets) / "cache"
            self._videos = backgrounds.load_clips(files, (FACE, FACE), cache=cache, read=backgrounds.read_image)
        super().__init__(domain, task, image=image, **kwargs)
        self._free = domain == "reacher"  # seen from straight above: no up direction, no front side
        self._tracks = self.physics.model.cam_mode[self._camera_id] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
        model = self.physics.model
        self._stock_colors = model.mat_rgba[:, :3].copy()
        if self._videos is not None:
            model.mat_rgba[model.name2id("grid", "material"), 3] = FLOOR_ALPHA.get(domain, 0.3)
            self._sky = model.name2id("skybox", "texture")
            model.tex_height[self._sky] = FACE  # one face of the six in memory: MuJoCo shows it on all of them

    def begin_episode(self) -> None:
        self._substeps = 0
        data = self.physics.data
        position, axes = data.cam_xpos[self._camera_id].copy(), data.cam_xmat[self._camera_id].reshape(3, 3)
        distance = np.linalg.norm(position - data.subtree_com[1])
        self._look_at = position - distance * axes[:, 2]
        self._camera_walk = CameraWalk(position - self._target(), self.intensity, self._free, self.rng)
        if self._videos is not None:
            self._color_walk = ColorWalk(self._stock_colors, self.intensity, self.rng)
            number = self.rng.integers(len(self._videos))
            self._frames, self.shown = self._videos[number], (self._names[number],)
            self._frame = int(self.rng.integers(len(self._frames)))
            self._direction = int(self.rng.choice([-1, 1]))
            self._uploaded = None

    def after_substep(self) -> None:
        self._substeps += 1
        if self._substeps % EVERY:
            return
        self._camera_walk.move(self.rng)
        if self._videos is not None:
            self._color_walk.move(self.rng)
            if not 0 <= self._frame + self._direction < len(self._frames):
                self._direction = -self._direction
            self._frame = min(max(self._frame + self._direction, 0), len(self._frames) - 1)

    def render(self) -> np.ndarray:
        # The engine derives the camera's pose from the model in each step; it is moved in its data for this frame only.
        data = self.physics.data
        offset, axes = self._camera_walk.pose()
        data.cam_xpos[self._camera_id] = self._target() + offset
        data.cam_xmat[self._camera_id] = axes
        if self._videos is not None:
            self.physics.model.mat_rgba[:, :3] = self._color_walk.colors
            self._show(self._frame)
        return super().render()

    def _target(self) -> np.ndarray:
        """The point that the camera looks at, (3,)."""
        return self.physics.data.subtree_com[1] if self._tracks else self._look_at

    def _show(self, index: int) -> None:
        """Puts a frame of the episode's video on the sky."""
        if index != self._uploaded:
            texture(self.physics.model, self._sky)[:] = self._frames[index]
            self.upload(self._sky)
            self._uploaded = index


def find_davis(root: str | Path, count: int) -> list[list[Path]]:
    """The frames of the first `count` sequences of DAVIS (of the training split, if its list is there too)."""
    for frames in (Path(root) / part for part in DAVIS_FRAMES):
        sequences = sorted(folder for folder in frames.glob("*") if folder.is_dir())
        split = frames.parent.parent / "ImageSets" / "2017" / "train.txt"
        if split.is_file():
            names = split.read_text().split()
            sequences = [folder for folder in sequences if folder.name in names]
        clips = [sorted(folder.glob("*.jpg")) for folder in sequences]
        clips = [[path.absolute() for path in clip] for clip in clips if clip]
        if clips:
            if frames.name == "480p" and not split.is_file():
                note(f"{frames}: no list of the training split ({split.name}), so validation sequences are shown too")
            if len(clips) < count:
                note(f"{frames}: {len(clips)} of {count} sequences: returns are not the benchmark's")
            return clips[:count]
    raise FileNotFoundError(
        f"distracting_cs needs the frames of DAVIS-2017, none in {Path(root).absolute()}; python "
        "setup/download_assets.py davis downloads them, or --ds_resource_path names a folder of folders of jpgs"
    )


class CameraWalk:
    """The camera on its random walk around its target, in spherical coordinates (radius, vertical, horizontal).

    Angles are in radians: vertical from straight above, horizontal from the x axis. With intensity i they stay within
    (pi/2) i of stock and the radius within (1 - 0.5 i) and (1 + 1.5 i) of stock. Unless `free` (reacher), the camera
    stays above the floor and on the front side, and is upright; if free, it also rolls, within (pi/2) i.

    offset: (3,) from the target to the stock camera.
    """

    def __init__(self, offset: np.ndarray, intensity: float, free: bool, rng: np.random.Generator):
        radius, vertical, horizontal = to_sphere(offset)
        angle = math.pi / 2 * intensity
        self.low = np.array([radius * (1 - 0.5 * intensity), vertical - angle, horizontal - angle])
        self.high = np.array([radius * (1 + 1.5 * intensity), vertical + angle, horizontal + angle])
        if not free:
            for bound in (self.low, self.high):
                bound[1:] = np.clip(bound[1:], [0, -math.pi], [math.pi / 2, 0])
        self.max_roll = angle if free else 0.0
        self.up = np.array([0.0, 1.0, 0.0] if free else [0.0, 0.0, 1.0])
        self.intensity = intensity
        self.scale = radius / 4
        self.max_speed = 0.4 * intensity * self.scale  # meters per move

        self.place = rng.uniform(self.low, self.high)  # (radius, vertical, horizontal)
        direction = rng.normal(size=3)
        self.velocity = direction / np.linalg.norm(direction) * rng.uniform(0, 0.4 * intensity)
        self.roll = rng.uniform(-self.max_roll, self.max_roll)
        self.roll_velocity = rng.uniform(-1, 1) * math.pi * intensity / 50

    def move(self, rng: np.random.Generator) -> None:
        self.velocity += rng.normal(size=3) * (0.1 * self.intensity * self.scale)
        speed = math.sqrt(self.velocity @ self.velocity)
        if speed > self.max_speed:
            self.velocity *= self.max_speed / speed
        before = to_cartesian(self.place)
        wanted = before + self.velocity
        radius, vertical, horizontal = to_sphere(wanted)
        # A direction has two pairs of angles, one with the vertical angle below 0 (beyond the pole, for reacher). Of
        # both, clipped to the range, take the one closer to where the camera would go.
        middle = (self.low[2] + self.high[2]) / 2
        nearest = math.inf
        for v, h in ((vertical, horizontal), (-vertical, horizontal + math.pi)):
            h = middle + (h - middle + math.pi) % (2 * math.pi) - math.pi
            place = np.minimum(np.maximum((radius, v, h), self.low), self.high)
            after = to_cartesian(place)
            distance = (after - wanted) @ (after - wanted)
            if distance < nearest:
                nearest, self.place, self.velocity = distance, place, after - before
            if distance < 1e-12:  # inside the range: the other pair cannot be closer
                break

        max_roll_speed = math.pi * self.intensity / 50
        self.roll_velocity += rng.normal() * math.pi * self.intensity / 300
        self.roll_velocity = min(max(self.roll_velocity, -max_roll_speed), max_roll_speed)
        roll = min(max(self.roll + self.roll_velocity, -self.max_roll), self.max_roll)
        self.roll, self.roll_velocity = roll, roll - self.roll

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Offset (3,) from the target, and the camera's axes (9,) as MuJoCo's row-major matrix of columns x, y, z."""
        offset = to_cartesian(self.place)
        z = offset / math.sqrt(offset @ offset)  # a camera looks along its -z
        x = _cross(self.up, z)
        x /= math.sqrt(x @ x)
        y = _cross(z, x)
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        return offset, np.array([cos * x + sin * y, cos * y - sin * x, z]).T.reshape(-1)


class ColorWalk:
    """Colors (N, 3) on a random walk within `intensity` of stock, and within [0, 1]."""

    def __init__(self, stock: np.ndarray, intensity: float, rng: np.random.Generator):
        self.low, self.high = np.maximum(stock - intensity, 0), np.minimum(stock + intensity, 1)
        self.std = 0.03 * intensity
        self.colors = rng.uniform(self.low, self.high)

    def move(self, rng: np.random.Generator) -> None:
        colors = self.colors + rng.normal(0, self.std, self.colors.shape)
        self.colors = np.minimum(np.maximum(colors, self.low), self.high)


def to_sphere(position: np.ndarray) -> tuple[float, float, float]:
    """(x, y, z) -> (radius, vertical in [0, pi], horizontal in (-pi, pi])."""
    x, y, z = position
    radius = math.sqrt(x * x + y * y + z * z)
    return radius, math.atan2(math.hypot(x, y), z), math.atan2(y, x)


def to_cartesian(place: np.ndarray) -> np.ndarray:
    """(radius, vertical, horizontal) -> (x, y, z)."""
    radius, vertical, horizontal = place
    across = radius * math.sin(vertical)
    return np.array([across * math.cos(horizontal), across * math.sin(horizontal), radius * math.cos(vertical)])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # np.cross takes ten times as long
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
