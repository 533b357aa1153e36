"""Environments: from a task name and settings to an env that follows the agent's protocol.

`make` is the entry point. An env has

* `observation_space`: gym.spaces.Dict of `image` (H, W, 3) uint8 and float32 vectors;
* `action_space`: gym.spaces.Box in [-1, 1], or gym.spaces.Discrete, whose actions are one-hot vectors here;
* `reset(episode=None) -> obs`: starts the next episode, or the given one. An episode is a pure function of (seed,
  episode, actions), so a killed run can restore an unfinished episode: reset to its number, step its actions again;
* `step({"action": a}) -> obs, reward, done, info`: one agent step, `action_repeat` environment steps, rewards summed;
* `close()`.

obs also has the bools `is_first`, `is_last` and `is_terminal` (an episode that ends by the time limit is not terminal).

An env reports what its user should know through `notes.note`.
"""

import functools
import importlib
import numbers
from typing import Any

import gym_notices.notices

from .family import Family
from .legal import BOUNDS, Legal, between

gym_notices.notices.notices.clear()  # gym prints that it is unmaintained at every import

FAMILIES = {"dmc": "suite", "rms": "rms", "gym": "registered"}  # prefix of a task's name -> module with its FAMILY


@functools.cache
def family(prefix: str) -> Family:
    return importlib.import_module(f".{FAMILIES[prefix]}", __name__).FAMILY


def settings() -> dict[str, Legal]:
    """The settings of all families, which `make` takes unchanged, and their legal values."""
    return {name: legal for prefix in FAMILIES for name, legal in family(prefix).settings.items()}


def parse(task: str) -> tuple[Family, Any]:
    """The family of a task and the task as it knows it; raises ValueError for an unknown name."""
    prefix, underscore, name = task.partition("_")
    if prefix not in FAMILIES or not underscore:
        forms = [family(prefix).form for prefix in FAMILIES]
        raise ValueError(f"--task {task}: expected {', '.join(forms[:-1])} or {forms[-1]}")
    return family(prefix), family(prefix).parse(name)


def reward_range(task: str) -> tuple[float, float] | None:
    """Minimum and maximum of the reward of an environment step, or None if they are not known.

    Raises ValueError for an unknown task.
    """
    found, parsed = parse(task)
    return found.rewards(parsed)


def count_videos(task: str, **family_settings: Any) -> tuple[int, int] | None:
    """How many videos a task's files hold, and how many its benchmark has; None for a task that shows none.

    Raises FileNotFoundError if there are no files.
    """
    found, parsed = parse(task)
    return found.videos(parsed, **family_settings)


def suite_tasks(name: str, task: str) -> list[str]:
    """The test sets of a suite, as tasks: variants of a task, the clean one first.

    Raises ValueError for an unknown suite, and for a task that does not have it.
    """
    prefix = task.partition("_")[0]
    found, _ = parse(task)
    return [f"{prefix}_{one}" for one in found.suite(name, task.removeprefix(f"{prefix}_"))]


def time_limit(task: str) -> int:
    """Environment steps of an episode of a task, unless a setting overrides them; 0 leaves the end to the env."""
    prefix = task.partition("_")[0]
    return family(prefix).time_limit if prefix in FAMILIES else 0


def make(
    task: str, *, seed: int = 0, size: tuple[int, int] = (64, 64), action_repeat: int = 2, time_limit: int = 0,
    image: bool | None = True, evaluation: bool = False, **family_settings: Any,
):  # fmt: skip
    """Makes the env of a task.

    seed: of the env's whole stream of episodes. size: (height, width) of the image. action_repeat: environment steps of
    an agent step. time_limit: in environment steps, 0 for the family's own. image: False disables rendering; None does
    so where nothing can render. evaluation: whether it is an evaluation env, for settings that differ there. The
    other settings belong to the families (see `settings`; those of other families are ignored); configs.yaml explains
    them.

    Raises ValueError for an unknown task and for impossible settings; FileNotFoundError for missing assets.
    """
    found, parsed = parse(task)
    if not (isinstance(size, (tuple, list)) and len(size) == 2):
        raise ValueError(f"--size is {size}: expected height and width")
    given = {"size": size, "seed": [seed], "action_repeat": [action_repeat], "time_limit": [time_limit]}
    for name, values in given.items():
        for value in values:
            if not _whole(value, *BOUNDS[name]):
                raise ValueError(f"--{name} is {value}: expected a whole number{between(*BOUNDS[name]).text}")
    if 0 < time_limit < action_repeat:
        raise ValueError(
            f"--time_limit is {time_limit}: expected an agent step (--action_repeat {action_repeat}) or more"
        )
    known = settings()
    for name, value in family_settings.items():
        if name not in known:
            raise TypeError(f"make() got an unknown setting {name}")
        if not all(map(known[name].allows, value if isinstance(value, (list, tuple)) else [value])):
            text = known[name].text
            raise ValueError(f"--{name} is {value}: expected {text[2:] if text[:2] == ', ' else 'a value' + text}")
    env = found.make(
        parsed, seed=int(seed), size=tuple(map(int, size)), action_repeat=int(action_repeat), image=image,
        evaluation=evaluation, **{name: value for name, value in family_settings.items() if name in found.settings},
    )  # fmt: skip
    if time_limit and hasattr(env, "lift_limit"):
        env.lift_limit(int(time_limit))
    from .wrappers import CheckAction, CheckFinite, TimeLimit

    limit = int(time_limit or found.time_limit)
    return TimeLimit(CheckAction(CheckFinite(env, task)), max(1, limit // int(action_repeat)) if limit else None)


def _whole(value: Any, low: float, high: float) -> bool:
    return isinstance(value, numbers.Real) and value % 1 == 0 and low <= value <= high
