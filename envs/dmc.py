"""Tasks of the DeepMind Control suite, from pixels or vectors, and the hooks that the distracted families use."""

import functools
import logging
import os
from collections.abc import Callable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import cv2
import gym
import numpy as np

from . import opengl, subtle

opengl.pick()  # "off" leaves vector agents working; pixels then raise in DMC

# An env renders in the thread that steps it. Without this, an OSMesa context that is still open at exit fails noisily.
os.environ.setdefault("DISABLE_RENDER_THREAD_OFFLOADING", "1")

# The suite's own models use deprecated features of MuJoCo, which a user cannot change.
logging.getLogger("absl").addFilter(lambda record: "is deprecated" not in record.getMessage())

from dm_control import _render, mujoco, suite  # noqa: E402
from dm_control.suite import common  # noqa: E402
from mujoco import mjr_uploadTexture, mjtGeom  # noqa: E402

TASKS = suite.TASKS_BY_DOMAIN  # {domain: (task, ...)}
RENDERS = _render.BACKEND != "off"
CAMERAS = {  # the one that shows the task, of each domain
    "acrobot": "fixed", "ball_in_cup": "cam0", "cartpole": "fixed", "cheetah": "side", "dog": "y-axis",
    "finger": "cam0", "fish": "tracking_top", "hopper": "cam0", "humanoid": "back", "humanoid_CMU": "back",
    "lqr": "cam0", "manipulator": "fixed", "pendulum": "fixed", "point_mass": "fixed", "quadruped": "y",
    "reacher": "fixed", "stacker": "fixed", "swimmer": "tracking1", "walker": "side",
}  # fmt: skip


def _load(domain: str, task: str, assets: dict[str, bytes], edit_model: Callable[[Element], None] | None):
    """The suite's env without its own time limit; the same model each time, whose episodes `DMC.reset` seeds.

    assets: XML files that replace shared ones, and edit_model: edits the domain's own, while the model compiles.
    """
    paths = {os.path.basename(path): path for path in common.ASSETS}
    if not assets.keys() <= paths.keys():
        raise ValueError(f"assets {sorted(assets.keys() - paths.keys())} are not among the suite's {sorted(paths)}")
    stock, read_model = dict(common.ASSETS), common.read_model

    def read_edited(name: str) -> bytes:
        root = ElementTree.fromstring(read_model(name))
        edit_model(root)
        return ElementTree.tostring(root)

    common.ASSETS.update({paths[name]: content for name, content in assets.items()})
    if edit_model is not None:
        common.read_model = read_edited
    try:
        # lqr draws the stiffness of its springs here: one system for all envs of a run, as one agent controls them.
        return suite.load(domain, task, task_kwargs={"random": 0, "time_limit": float("inf")})
    finally:
        common.ASSETS.update(stock)
        common.read_model = read_model


class DMC:
    """A task of the suite. Subclasses add distractors through the hooks begin_episode, after_substep and render.

    size: (height, width) of the image. action_repeat: environment steps (the suite's control steps) in an agent step.
    image: False disables rendering. camera: its name, by default that of CAMERAS. shadow_size: pixels on a side of the
    shadow map, 0 for the model's own (2048 in the suite). old_floor: floors as mujoco drew them before 3.12 (see
    `center_shift`). shrunk: sizes of DMC-Subtle. evaluation: observations also have an 8×8 grayscale thumbnail of what
    a subclass shows behind the robot, `background`, which probes read. assets: {file name: XML} that replace files of
    suite.common ("materials.xml", "skybox.xml", "visual.xml") in this env's model. edit_model: edits the domain's XML.

    An episode is a pure function of (seed, its number, actions): everything random in it comes from `self.rng`. What a
    subclass changes in `self.physics.model` it sets again in every begin_episode.
    """

    def __init__(
        self, domain: str, task: str, *, seed: int = 0, size: tuple[int, int] = (64, 64), action_repeat: int = 2,
        image: bool = True, camera: str | None = None, shadow_size: int = 0, old_floor: bool = False,
        shrunk: subtle.Shrunk | None = None, evaluation: bool = False, assets: dict[str, bytes] | None = None,
        edit_model: Callable[[Element], None] | None = None,
    ):  # fmt: skip
        if image and not RENDERS:
            raise RuntimeError(
                "images need a renderer, but MUJOCO_GL is off: you set it, or neither EGL nor OSMesa works here; "
                "setup/install_env.sh installs them"
            )
        if image and os.environ["MUJOCO_GL"] == "glfw" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            raise ValueError(
                "MUJOCO_GL is glfw, which needs a screen, and DISPLAY names none: set it to egl, or unset it"
            )
        self.seed, self.size, self.action_repeat, self.image = seed, tuple(size), action_repeat, image
        if shrunk is not None:
            edit_model = functools.partial(subtle.shrink_model, shrunk=shrunk)
        self._env = _load(domain, task, assets or {}, edit_model)
        if shrunk is not None:
            subtle.shrink_target(self._env.task, shrunk)
        self.physics = self._env.physics
        self.camera = camera or CAMERAS[domain]
        self.floor_shift = (0, 0)  # rows and columns by which the floor's texture is rolled
        if old_floor:
            self.floor_shift = center_shift(self.physics.model)
            pixels = texture(self.physics.model, self.physics.model.name2id("grid", "texture"))
            pixels[:] = np.roll(pixels, self.floor_shift, (0, 1))
        self._camera_id = self.physics.model.name2id(self.camera, "camera")  # index in arrays of model and data
        # The frame buffer is made at the first render: as small as the frame, it is copied faster; and a frame
        # larger than the model's stock 640 x 480 fits too.
        self.physics.model.vis.global_.offheight, self.physics.model.vis.global_.offwidth = self.size
        if shadow_size:
            self.physics.model.vis.quality.shadowsize = shadow_size
        self._view = None
        self.evaluation = evaluation
        self.background = None  # (H, W, 3) shown behind the robot by a subclass in the latest frame
        self.shown: tuple[str, ...] = ()  # the files of which a subclass shows something in the episode
        self.rng = np.random.default_rng([seed, 0])
        self._episode = -1  # the running one

        spec = self._env.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.minimum, spec.maximum))
        bounded = (high - low) < 1e9  # lqr's actions are bounded by ±1e10 only: passed unchanged
        self._middle, self._reach = np.where(bounded, (low + high) / 2, 0), np.where(bounded, (high - low) / 2, 1)
        self._limit = np.where(bounded, 1, np.inf)
        self.action_space = gym.spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        spaces = {
            key: gym.spaces.Box(-np.inf, np.inf, (int(np.prod(value.shape)),), np.float32)
            for key, value in self._env.observation_spec().items()
        }
        if image:
            spaces["image"] = gym.spaces.Box(0, 255, (*self.size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)

    def begin_episode(self) -> None:
        """Hook: after the task's own reset and before the first render; `self.rng` is the new episode's."""

    def after_substep(self) -> None:
        """Hook: after each environment step (`action_repeat` times in an agent step, fewer if the episode ends)."""

    def render(self) -> np.ndarray:
        """Hook: (H, W, 3) uint8 of the current state; called once for each observation."""
        if self._view is None:  # made once and kept: allocating a scene takes a tenth of a frame's time in software
            self._view = mujoco.Camera(self.physics, *self.size, camera_id=self.camera)
        return self._view.render().copy()

    def upload(self, index: int) -> None:
        """Hands a texture that has changed in the model's memory to the renderer."""
        contexts = self.physics.contexts
        with contexts.gl.make_current() as context:
            context.call(mjr_uploadTexture, self.physics.model.ptr, contexts.mujoco.ptr, index)

    def reset(self, episode: int | None = None) -> dict[str, np.ndarray]:
        """Starts the next episode, or the one with this number, and returns its first observation."""
        self._episode = self._episode + 1 if episode is None else int(episode)
        self.rng = np.random.default_rng([self.seed, self._episode])
        self._env.task.random.seed(self.rng.integers(2**32, dtype=np.uint32))
        time_step = self._env.reset()
        self.begin_episode()
        return self._observe(time_step)

    def step(self, action: dict) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """One agent step: {"action": (A,) in [-1, 1]} -> observation, reward summed over the repeat, done, info."""
        action = np.asarray(action["action"], np.float64)
        control = self._middle + self._reach * np.minimum(np.maximum(action, -self._limit), self._limit)
        reward = 0.0
        for _ in range(self.action_repeat):
            time_step = self._env.step(control)
            reward += time_step.reward
            self.after_substep()
            if time_step.last():
                break
        info = {"files": self.shown} if self.shown else {}
        return self._observe(time_step), float(reward), time_step.last(), info

    def close(self) -> None:
        self._env.close()

    def _observe(self, time_step) -> dict[str, np.ndarray]:
        obs = {key: np.asarray(value, np.float32).reshape(-1) for key, value in time_step.observation.items()}
        if self.image:
            obs["image"] = np.ascontiguousarray(self.render())
        if self.evaluation and self.background is not None:
            gray = self.background.mean(-1, dtype=np.float32)
            obs["background"] = cv2.resize(gray, (8, 8), interpolation=cv2.INTER_AREA)
        obs["is_first"] = time_step.first()
        obs["is_last"] = time_step.last()
        obs["is_terminal"] = time_step.last() and time_step.discount == 0
        return obs


def center_shift(model) -> tuple[int, int]:
    """Rows and columns by which the grid's texture is rolled to draw floors as mujoco did before 3.12.

    Published results and checkpoints from pixels saw those floors. Since then the texture of a plane of finite size
    starts at the plane's corner instead of its center; a tile has two units of length.
    """
    grid, plane = model.name2id("grid", "material"), mjtGeom.mjGEOM_PLANE
    floors = [i for i in range(model.ngeom) if model.geom_type[i] == plane and model.geom_matid[i] == grid]
    if not floors:
        return 0, 0
    columns, rows = model.geom_size[floors[0], :2] * model.mat_texrepeat[grid] / 2
    height, width = texture(model, model.name2id("grid", "texture")).shape[:2]
    return round(rows * height), round(columns * width)


def texture(model, index: int) -> np.ndarray:
    """A texture's pixels in the model's memory, (h, w, 3) uint8; a skybox has its six faces stacked vertically."""
    start, height, width = model.tex_adr[index], model.tex_height[index], model.tex_width[index]
    return model.tex_data[start : start + height * width * 3].reshape(height, width, 3)
