"""A family of tasks, as its module declares it to the registry in envs/__init__.py."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from .legal import Legal


def _no_suite(name: str, task: str) -> list[str]:
    raise ValueError(f"{task} has no suites of test sets; tasks of the DeepMind Control suite have some")


class Family(NamedTuple):
    """Everything that the program knows of the tasks whose names begin with one prefix.

    Attributes:
        form: how the names are written.
        make: (task, seed=, size=, action_repeat=, image=, evaluation=, and of its `settings` those that are set) -> env
            (see envs/__init__.py); imports the engine, which other families do not need.
        parse: a name without the prefix -> the task that `make` and `rewards` get; ValueError for an unknown name.
        rewards: a task -> minimum and maximum of the reward of an environment step, or None if they are not known.
        settings: its settings and their legal values. Defaults and comments are in configs.yaml.
        videos: (task, its `settings`) -> how many videos its files hold and how many the benchmark has, or None for a
            task that shows none; FileNotFoundError without any.
        suite: (name of a suite, name of a task) -> the names of its test sets, the clean task first; ValueError for an
            unknown suite, or one that the task does not have.
        time_limit: environment steps of an episode if the setting of this name is 0; 0 leaves the end to the env.
    """

    form: str
    make: Callable[..., Any]
    parse: Callable[[str], Any] = lambda name: name
    rewards: Callable[[Any], tuple[float, float] | None] = lambda task: (0.0, 1.0)
    settings: Mapping[str, Legal] = {}
    videos: Callable[..., tuple[int, int] | None] = lambda task, **settings: None
    suite: Callable[[str, str], list[str]] = _no_suite
    time_limit: int = 1000


def nearest(word: str, names: Collection[str], prefix: str = "", cutoff: float = 0.5) -> str:
    """`did you mean` the names that are close to a word, else `choose from` all of them."""
    near = difflib.get_close_matches(word, names, n=3, cutoff=cutoff)
    return ("did you mean " if near else "choose from ") + ", ".join(prefix + n for n in near or sorted(names))
