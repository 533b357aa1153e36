"""Environments: from a task name and settings to an env that follows the agent's protocol.

`make` is the only entry point. An env has

* `observation_space`: gym.spaces.Dict of `image` (H, W, 3) uint8 and float32 vectors;
* `action_space`: gym.spaces.Box in [-1, 1], or gym.spaces.Discrete, whose actions are one-hot vectors here;
* `reset(episode=None) -> obs`: starts the next episode, or the given one. An episode is a pure function of (seed,
  episode, actions), so a killed run can restore an unfinished episode: reset to its number, step its actions again;
* `step({"action": a}) -> obs, reward, done, info`: one agent step, `action_repeat` environment steps, rewards summed;
* `close()`.

obs also has the bools `is_first`, `is_last` and `is_terminal` (an episode that ends by the time limit is not terminal).
"""

import difflib
import numbers
from collections.abc import Collection

import gym_notices.notices

gym_notices.notices.notices.clear()  # gym prints that it is unmaintained at every import

SETTINGS = (
    "shadow_size",
    "img_source",
    "resource_files",
    "eval_resource_files",
    "total_frames",
    "distracting_cs_intensity",
    "ds_resource_path",
    "scan_path",
    "assets",
)  # config keys passed to `make` unchanged

MODES = ("video", "color_easy", "color_hard", "video_easy", "video_hard", "distracting_cs", "sensor_cs")
MANISKILL_TASKS = (
    "push_cube",
    "lift_cube",
    "pick_cube",
    "turn_faucet",
    "peg_insertion_side",
    "plug_charger",
    "assembling_kits",
    "panda_avoid_obstacles",
)


def make(
    task: str,
    *,
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    action_repeat: int = 2,
    time_limit: int = 1000,
    image: bool | None = True,
    evaluation: bool = False,
    shadow_size: int = 0,
    img_source: str = "video",
    resource_files: str = "",
    eval_resource_files: str = "",
    total_frames: int = 1000,
    distracting_cs_intensity: float = 0.1,
    ds_resource_path: str = "",
    scan_path: str = "",
    assets: str = "assets",
):
    """Makes the env of a task: `dmc_{domain}_{task}[_{mode}]` (`cup` is ball_in_cup), `rms_{task}` or `gym_{id}`.

    seed: of the env's whole stream of episodes. size: (height, width) of the image. action_repeat: environment steps of
    an agent step. time_limit: in environment steps. image: False disables rendering; None does so where
    nothing can render. evaluation: whether it is an evaluation env, for settings that differ there. The other settings
    belong to single families; configs.yaml explains them.

    Raises ValueError for an unknown domain, task or mode and for impossible settings; FileNotFoundError for missing
    assets.
    """
    family, name = _parse(task)
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(_whole(v, 1, 4096) for v in size)):
        raise ValueError(f"--size is {size}: expected height and width, two whole numbers from 1 to 4096")
    if not _whole(seed, 0):
        raise ValueError(f"--seed is {seed}: expected a whole number, 0 or more")
    if not _whole(action_repeat, 1):
        raise ValueError(f"--action_repeat is {action_repeat}: expected a whole number of environment steps, 1 or more")
    if not _whole(time_limit, action_repeat):
        raise ValueError(
            f"--time_limit is {time_limit}: expected a whole number of environment steps, one agent step or more "
            f"(--action_repeat {action_repeat})"
        )
    size, seed, action_repeat, time_limit = tuple(map(int, size)), int(seed), int(action_repeat), int(time_limit)
    common = {"seed": seed, "size": size, "action_repeat": action_repeat}

    # Each family is imported on demand: a DMC agent does not need SAPIEN, and vice versa.
    if family == "rms":
        from .maniskill import RealisticManiSkill

        env = RealisticManiSkill(name, **common, image=image is not False, scan_path=scan_path, assets=assets)
    elif family == "gym":
        from .gym_env import GymEnv

        env = GymEnv(name, **common, image=image)
    else:
        domain, name, mode = name
        if not _whole(shadow_size, 0, 1 << 14):
            raise ValueError(f"--shadow_size is {shadow_size}: expected 0 for the model's own, or pixels up to 16384")
        from .dmc import RENDERS

        common |= {
            "image": RENDERS if image is None else image,
            "shadow_size": int(shadow_size),
            "evaluation": evaluation,
        }
        if mode == "":
            from .dmc import DMC

            env = DMC(domain, name, **common)
        elif mode == "video":
            from .distracted import DistractedDMC

            env = DistractedDMC(
                domain,
                name,
                **common,
                img_source=img_source,
                resource_files=resource_files,
                eval_resource_files=eval_resource_files,
                total_frames=total_frames,
                assets=assets,
            )
        elif mode in ("distracting_cs", "sensor_cs"):
            from .distracting import DistractingCS

            distraction = {"intensity": distracting_cs_intensity, "ds_resource_path": ds_resource_path}
            env = DistractingCS(domain, name, mode, **common, **distraction, assets=assets)
        else:
            from .distracted import DMCGS

            env = DMCGS(domain, name, mode, **common, assets=assets)

    from .wrappers import CheckAction, CheckFinite, TimeLimit

    return TimeLimit(CheckAction(CheckFinite(env, task)), time_limit // action_repeat)


# Largest reward of an environment step, if it is not dm_control's 1.
MAX_REWARD = {
    "push_cube": 6.5,
    "lift_cube": 6.5,
    "pick_cube": 11.5,
    "turn_faucet": 10.0,
    "assembling_kits": 10.0,
    "panda_avoid_obstacles": 10.0,
    "peg_insertion_side": 25.0,
    "plug_charger": 50.0,
}


def reward_to_simsr(task: str, action_repeat: int) -> float:
    """The factor that brings a task's rewards per agent step into [0, 2], as the bisimulation loss expects.

    1 for DMC up to an action repeat of 2, and for `gym_{id}`, whose rewards are not known.
    """
    family, name = _parse(task)
    if family == "gym":
        return 1.0
    if family == "rms":
        return 2 / (MAX_REWARD[name] * action_repeat)
    return min(1.0, 2 / action_repeat)


def _parse(task: str):
    """'dmc_cup_catch_video' -> ('dmc', ('ball_in_cup', 'catch', 'video')); 'rms_push_cube' -> ('rms', 'push_cube')."""
    family, _, rest = task.partition("_")
    if family == "rms":
        if rest not in MANISKILL_TASKS:
            raise ValueError(f"--task {task}: no such task; {nearest(rest, MANISKILL_TASKS, 'rms_')}")
        return family, rest
    if family == "gym" and rest:
        return family, rest
    if family != "dmc":
        raise ValueError(f"--task {task}: expected dmc_{{domain}}_{{task}}[_{{mode}}], rms_{{task}} or gym_{{id}}")

    from .dmc import TASKS  # {domain: tasks}

    if rest == "cup" or rest.startswith("cup_"):
        rest = "ball_in_" + rest
    # Names contain underscores, and one may be a prefix of another (humanoid, humanoid_CMU): take the longest.
    domains = [d for d in TASKS if rest == d or rest.startswith(d + "_")]
    if not domains:
        raise ValueError(f"--task {task}: no such domain; {nearest(rest.split('_')[0], TASKS)}")
    domain = max(domains, key=len)
    rest = rest[len(domain) + 1 :]
    names = [n for n in TASKS[domain] if rest == n or rest.startswith(n + "_")]
    if not names:
        raise ValueError(f"--task {task}: domain {domain} has no such task; {nearest(rest, TASKS[domain])}")
    name = max(names, key=len)
    mode = rest[len(name) + 1 :]
    if rest != name and mode not in MODES:
        raise ValueError(f"--task {task}: no such mode {mode!r}; {nearest(mode, MODES)}")
    return family, (domain, name, mode)


def nearest(word: str, names: Collection[str], prefix: str = "", cutoff: float = 0.5) -> str:
    """`did you mean` the names that are close to a word, else `choose from` all of them."""
    near = difflib.get_close_matches(word, names, n=3, cutoff=cutoff)
    return ("did you mean " if near else "choose from ") + ", ".join(prefix + n for n in near or sorted(names))


def _whole(value, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, numbers.Real) and value % 1 == 0 and low <= value <= high
