"""DMC-Subtle (R2-Dreamer, ICLR 2026): tasks of the suite in which the object that matters is tiny.

Physics and rewards are the suite's but for these sizes, which are collision sizes too.
"""

from typing import NamedTuple
from xml.etree.ElementTree import Element


class Shrunk(NamedTuple):
    """A task of the suite, and what shrinks in it, by which factor."""

    domain: str
    task: str
    model: dict[tuple[str, str], float] = {}  # (element, attribute) of its XML  # noqa: RUF012
    target: tuple[str, float] = ("", 1.0)  # attribute of its Task object: the size that it gives the target


TASKS = {  # names between `dmc_` and `_subtle`
    "ball_in_cup_catch": Shrunk(
        "ball_in_cup",
        "catch",
        model={(".//geom[@name='ball']", "size"): 1 / 12, (".//spatial[@name='string']", "width"): 1 / 12},
    ),
    "point_mass": Shrunk(
        "point_mass",
        "easy",
        model={(".//geom[@name='target']", "size"): 1 / 6, (".//geom[@name='pointmass']", "size"): 1 / 6},
    ),
    "finger_turn": Shrunk("finger", "turn_hard", target=("_target_radius", 1 / 2)),
    "reacher": Shrunk("reacher", "hard", target=("_target_size", 1 / 3)),
    "cartpole_swingup": Shrunk("cartpole", "swingup", model={(".//default[@class='pole']/geom", "size"): 1 / 20}),
}


def shrink_model(root: Element, shrunk: Shrunk) -> None:
    """Edits the XML of the task's model."""
    for (element, attribute), factor in shrunk.model.items():
        found = root.find(element)
        found.set(attribute, str(float(found.get(attribute)) * factor))


def shrink_target(task, shrunk: Shrunk) -> None:
    """Edits the suite's Task object."""
    attribute, factor = shrunk.target
    if attribute:
        setattr(task, attribute, getattr(task, attribute) * factor)
