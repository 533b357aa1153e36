"""Realistic ManiSkill: tasks of ManiSkill2 in front of a random scan of a real room, as defined by RePo.

Importing this module imports ManiSkill2 and SAPIEN, which exist for Python up to 3.11 and numpy below 1.24. It raises
an ImportError with the reason if they are missing, or if nothing can render.
"""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path

import gym
import numpy as np
from dm_control.utils.rewards import tolerance

from . import scans, vulkan
from .notes import note

absent = [name for name in ("mani_skill2", "sapien") if importlib.util.find_spec(name) is None]
if np.lib.NumpyVersion(np.__version__) >= "1.24.0":
    absent.append("numpy below 1.24")
if absent:
    raise ImportError(
        "rms_* tasks run on mani_skill2 0.5.3, sapien 2.2.2 and numpy below 1.24, which exist for Python 3.8 to 3.11. "
        f"Python {platform.python_version()} here has no {', no '.join(absent)}: with Python 3.11 run "
        "`bash setup/install_env.sh`"
    )
ON_CPU = vulkan.prepare()
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sapien triggers it; setuptools is pinned
    import sapien
    import sapien.core
# The soft-body tasks, which are not supported here, would import warp and torch into every worker.
sys.modules.setdefault("mani_skill2.envs.mpm", types.ModuleType("mani_skill2.envs.mpm"))
from mani_skill2.envs.assembly.assembling_kits import AssemblingKitsEnv  # noqa: E402
from mani_skill2.envs.assembly.peg_insertion_side import PegInsertionSideEnv  # noqa: E402
from mani_skill2.envs.assembly.plug_charger import PlugChargerEnv  # noqa: E402
from mani_skill2.envs.misc.avoid_obstacles import PandaAvoidObstaclesEnv  # noqa: E402
from mani_skill2.envs.misc.turn_faucet import TurnFaucetEnv  # noqa: E402
from mani_skill2.envs.pick_and_place.pick_cube import PickCubeEnv  # noqa: E402
from mani_skill2.envs.sapien_env import BaseEnv  # noqa: E402
from mani_skill2.utils.sapien_utils import look_at  # noqa: E402

# Silences the warning that a process's envs share a renderer.
os.environ.setdefault("MS2_RENDERER_LOG_LEVEL", "error")
sapien.core.SapienRenderer.set_log_level(os.environ["MS2_RENDERER_LOG_LEVEL"])

FAUCET = "5021"  # the model that is turned


SCAN_AXES = {"z": [0, 0, 0, 1], "y": [0, 0, 2**-0.5, 2**-0.5]}  # rotation (w, x, y, z) of a scan whose up this is


class Room(BaseEnv):
    """Base of all tasks: the scan `self.scan` (a .glb file) all around, no visible ground, one camera."""

    scan_up = "z"

    def _add_ground(self, altitude: float = 0.0, render: bool = True):
        return super()._add_ground(altitude, render=False)

    def _load_background(self):
        builder = self._scene.create_actor_builder()
        builder.add_visual_from_file(str(self.scan))
        builder.build_static("scan").set_pose(sapien.core.Pose([0, 0, -0.8], SCAN_AXES[self.scan_up]))

    def _configure_cameras(self):
        super()._configure_cameras()
        self._camera_cfgs = {"base_camera": self._camera_cfgs["base_camera"]}  # no hand camera: its image is not used

    def _register_render_cameras(self):
        return []


class Tabletop(Room):
    """The robot of the cube and faucet tasks: the same pose at the start of each episode."""

    joints: tuple[float, ...]

    def _initialize_agent(self):
        self.agent.reset(np.array(self.joints))
        self.agent.robot.set_pose(sapien.core.Pose([-0.615, 0, 0.05]))


class Cube(Tabletop, PickCubeEnv):
    """A cube of 4 cm lies at the origin. Subclasses define its goal and reward its way there, once it is grasped."""

    joints = (0, np.pi / 4, 0, -np.pi * 5 / 8, 0, np.pi * 7 / 8, np.pi / 4, 0.04, 0.04)
    goal: tuple[float, float, float]

    def _initialize_actors(self):
        self.obj.set_pose(sapien.core.Pose([0, 0, self.cube_half_size[2]]))

    def _initialize_task(self):
        self.goal_pos = np.array(self.goal)
        self.goal_site.set_pose(sapien.core.Pose(self.goal_pos))
        self.start_pos = self.obj.pose.p

    def compute_dense_reward(self, info, **kwargs) -> float:
        cube = self.obj.pose.p
        reach = np.linalg.norm(self.tcp.pose.p - cube)
        from_base = np.linalg.norm(self.start_pos - self.agent.robot.pose.p)
        reward = tolerance(reach, (0, 0.02), margin=from_base, sigmoid="long_tail")
        if reach < 0.02:
            fingers = np.linalg.norm(self.agent.finger1_link.pose.p - self.agent.finger2_link.pose.p)
            reward += 0.5 * tolerance(fingers, (0, 0.04), margin=0.02, sigmoid="linear")
        if self.agent.check_grasp(self.obj, max_angle=30):
            reward += self.goal_reward(cube)
        return float(reward)

    def goal_reward(self, cube: np.ndarray) -> float:
        """Reward of a grasped cube at this position."""
        raise NotImplementedError

    def near(self, error: np.ndarray, start_error: np.ndarray) -> float:
        """5 within the goal's threshold, falling linearly to 0.5 at one start error beyond it."""
        error, start_error = np.linalg.norm(error), np.linalg.norm(start_error)
        return 5 * tolerance(error, (0, self.goal_thresh), margin=start_error, sigmoid="linear")


class PushCube(Cube):
    goal = (0.2, 0.2, 0)

    def goal_reward(self, cube):
        return self.near(self.goal_pos - cube, self.goal_pos - self.start_pos)


class LiftCube(Cube):
    goal = (0, 0, 0.3)

    def check_obj_placed(self):  # its horizontal position does not matter
        return abs(self.goal_pos[2] - self.obj.pose.p[2]) <= self.goal_thresh

    def goal_reward(self, cube):
        return self.near(self.goal_pos[2:] - cube[2:], self.goal_pos[2:] - self.start_pos[2:])


class PickCube(Cube):
    goal = (0.1, 0, 0.3)

    def goal_reward(self, cube):
        reward = self.near(self.goal_pos[2:] - cube[2:], self.goal_pos[2:] - self.start_pos[2:])
        if abs(self.goal_pos[2] - cube[2]) <= self.goal_thresh:
            reward += self.near(self.goal_pos[:2] - cube[:2], self.goal_pos[:2] - self.start_pos[:2])
        return reward


class TurnFaucet(Tabletop, TurnFaucetEnv):
    joints = (0, np.pi / 8, 0, -np.pi * 5 / 8, 0, np.pi * 6 / 8, np.pi / 4, 0.04, 0.04)

    def _initialize_articulations(self):
        self.faucet.set_pose(sapien.core.Pose([0.1, 0, 0]))  # RePo omits the model's own height offset


class PegInsertionSide(Room, PegInsertionSideEnv):
    pass


class PlugCharger(Room, PlugChargerEnv):
    pass


class AssemblingKits(Room, AssemblingKitsEnv):
    pass


class PandaAvoidObstacles(Room, PandaAvoidObstaclesEnv):
    pass


# Task -> its class; its downloads, as {constructor argument: path in the asset folder}; and the file below that path
# that must exist.
TASKS = {
    "push_cube": (PushCube, {}, ""),
    "lift_cube": (LiftCube, {}, ""),
    "pick_cube": (PickCube, {}, ""),
    "turn_faucet": (TurnFaucet, {"asset_root": "partnet_mobility/dataset"}, f"{FAUCET}/mobility_cvx.urdf"),
    "peg_insertion_side": (PegInsertionSide, {}, ""),
    "plug_charger": (PlugCharger, {}, ""),
    "assembling_kits": (AssemblingKits, {"asset_root": "assembling_kits"}, "episodes.json"),
    "panda_avoid_obstacles": (PandaAvoidObstacles, {"episode_json": "avoid_obstacles/panda_train_2k.json.gz"}, ""),
}


class RealisticManiSkill:
    """A task of TASKS: images (H, W, 3); actions (7,) move the gripper (3), turn it (3) and set its opening (1).

    size: (height, width) of the image. action_repeat: environment steps (1/20 s each) in an agent step. scan_path:
    folder that is searched for scans (*.glb); empty: `{assets}/matterport`. scan_up: the axis of the scans that points
    up, z or y; their floor is at 0 of it. assets: ManiSkill2's own are in its
    `maniskill2` subfolder, or in MS2_ASSET_DIR if that is set.

    Episodes do not terminate; info["success"] tells whether the task is currently solved. An episode is a
    pure function of (seed, its number, actions).

    Raises FileNotFoundError for missing scans or assets, ValueError for scans that cannot be shown.
    """

    def __init__(
        self, task: str, *, seed: int = 0, size: tuple[int, int] = (64, 64), action_repeat: int = 1, image: bool = True,
        scan_path: str = "", scan_up: str = "z", assets: str = "assets",
    ):  # fmt: skip
        if not image:
            raise ValueError(f"rms_{task} has only image observations: --encoder.cnn_keys must match 'image'")
        self.seed, self.size, self.action_repeat = seed, tuple(size), action_repeat
        self.scans = _find_scans(scan_path, assets)
        self._files = scans.prepare(self.scans, Path(assets) / "cache")  # {scan: what SAPIEN loads}
        self._checked: set[Path] = set()
        self._episode = -1  # the running one
        engine, paths, required = TASKS[task]
        settings = {name: str(_downloads(task, assets, path, required)) for name, path in paths.items()}
        camera = {"height": self.size[0], "width": self.size[1]}
        if issubclass(engine, Tabletop):
            pose = look_at([0.2, -0.4, 0.4], [0, 0, 0.3])
            camera |= {"p": pose.p, "q": pose.q}
        if task == "turn_faucet":
            settings["model_ids"] = [FAUCET]
        # ManiSkill2's constructor resets
        engine = type(engine.__name__, (engine,), {"scan": self._files[self.scans[0]], "scan_up": scan_up})
        self._env = engine(
            obs_mode="none",  # rgbd would render depth and the hand's camera too; `_observe` takes the same image
            control_mode="pd_ee_delta_pose",
            reward_mode="dense",
            camera_cfgs={"base_camera": camera},
            renderer_kwargs={"offscreen_only": True},  # does not look for a display
            shader_dir=_shaders(),
            **settings,
        )
        self.observation_space = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (*self.size, 3), np.uint8)})
        self.action_space = gym.spaces.Box(-1.0, 1.0, self._env.action_space.shape, np.float32)

    def reset(self, episode: int | None = None) -> dict[str, np.ndarray]:
        """Starts the next episode, or the one with this number, and returns its first observation."""
        self._episode = self._episode + 1 if episode is None else int(episode)
        rng = np.random.default_rng([self.seed, self._episode])
        scan = self.scans[rng.integers(len(self.scans))]
        self._env.scan = self._files[scan]
        self._env._clear()
        self._env._renderer.clear_cached_resources()  # otherwise every scan ever shown stays in memory
        self._env.reset(seed=int(rng.integers(2**32)), options={"reconfigure": True})
        obs = self._observe(first=True)
        if scan not in self._checked:
            self._checked.add(scan)
            if fault := self._fault(obs["image"]):
                note(f"{scan}: {fault}; docs/data.md lists which scans work")
        return obs

    def step(self, action: dict) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """One agent step: {"action": (7,) in [-1, 1]} -> observation, reward summed over the repeat, False, info."""
        action = np.clip(np.asarray(action["action"], np.float32), -1, 1)
        reward = 0.0
        for _ in range(self.action_repeat):
            _, step_reward, _, _, info = self._env.step(action)
            reward += step_reward
        return self._observe(), float(reward), False, {"success": bool(info["success"])}

    def close(self) -> None:
        self._env.close()

    def _fault(self, image: np.ndarray) -> str:
        """What is wrong with the scan as SAPIEN has loaded and rendered it, if anything."""
        actor = next(actor for actor in self._env._scene.get_all_actors() if actor.name == "scan")
        meshes = [shape.mesh for body in actor.get_visual_bodies() for shape in body.get_render_shapes()]
        if not all(np.isfinite(values).all() for mesh in meshes for values in (mesh.vertices, mesh.uvs)):
            return "its vertices or texture coordinates are not finite"
        labels = self._env._cameras["base_camera"].camera.get_uint32_texture("Segmentation")[..., 1]
        background = image[np.isin(labels, (0, actor.id))]  # 0: nothing
        if len(background) and (background == background[0]).all():
            seen = "nothing of it is seen" if not (labels == actor.id).any() else "it is of one color"
            return f"behind the robot, {seen}: {tuple(map(int, background[0]))}"
        return ""

    def _observe(self, first: bool = False) -> dict[str, np.ndarray]:
        self._env.update_render()
        camera = self._env._cameras["base_camera"].camera
        camera.take_picture()
        image = np.clip(camera.get_float_texture("Color")[..., :3] * 255, 0, 255).astype(np.uint8)
        return {"image": image, "is_first": first, "is_last": False, "is_terminal": False}


def _find_scans(scan_path: str, assets: str) -> list[Path]:
    folder = Path(scan_path or Path(assets, "matterport"))
    found = sorted(folder.rglob("*.glb"))
    if not found:
        raise FileNotFoundError(
            f"no scans (*.glb) for rms_* tasks in {folder}: download them with "
            "`python setup/download_assets.py matterport` or pass their folder as --scan_path"
        )
    return found


def _downloads(task: str, assets: str, path: str, required: str) -> Path:
    path = Path(os.environ.get("MS2_ASSET_DIR") or Path(assets, "maniskill2"), path).absolute()
    if not (path / required).exists():
        raise FileNotFoundError(
            f"rms_{task} needs ManiSkill2's asset {path / required}, which is missing: download it with "
            "`python setup/download_assets.py maniskill2`"
        )
    return path


def _shaders() -> str:
    """The engine's own shaders; for the CPU, without a table that takes 10 s to compute in each process.

    The table weights the light from an environment map. The tasks have none: that light is 0 for any weight, so no
    pixel changes.
    """
    if not ON_CPU:
        return "ibl"
    folder = vulkan.LAYER_FOLDER / "build" / f"shaders_{sapien.__version__}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new = shutil.copytree(Path(sapien.__file__).parent / "vulkan_shader", Path(temporary, "shaders"))
            for file in new.glob("ibl/*.frag"):
                lines = [line for line in file.read_text().splitlines() if "sampler2D samplerBRDFLUT" not in line]
                text = "\n".join(lines).replace("texture(samplerBRDFLUT, vec2(roughness, dotNV)).xy", "vec2(0)")
                file.write_text(text + "\n")
            try:
                new.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return str(folder / "ibl")
