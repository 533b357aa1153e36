"""The legal values of settings: of the program's own in run/config.py, of a family of envs in its module."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Legal(NamedTuple):
    """The legal values of a setting, or of each item if it is a list."""

    allows: Callable[[Any], bool]
    text: str = ""  # completes "expected a number", "expected a word", ...
    choices: tuple = ()  # legal values where they are few; the setting's comment in configs.yaml then lists them too


def between(low: float, high: float) -> Legal:
    """Numbers from low to high, both included."""
    text = f" from {_short(low)} to {_short(high)}"
    return Legal(lambda value: type(value) in (int, float) and low <= value <= high, text)


def one_of(*choices: Any) -> Legal:
    return Legal(lambda value: value in choices, f", one of {', '.join(map(str, choices))}", choices)


def _short(number: float) -> str:
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{number:g}")


# lowest and highest value of the settings that every env has
BOUNDS = {"size": (8, 4096), "seed": (0, 1e18), "action_repeat": (1, 1000), "time_limit": (0, 1e6)}
TEXT = Legal(lambda value: True)
