"""The family `gym_{id}`, envs registered with Gymnasium: settings and rewards. The engine is in gym_env.py."""

from typing import Any

from .family import Family
from .legal import Legal


def make(task: str, *, evaluation: bool, **settings: Any):
    from .gym_env import GymEnv

    return GymEnv(task, **settings)


def parse(name: str) -> str:
    if not name:
        raise ValueError("--task gym_: expected gym_{id}, such as gym_CartPole-v1, or gym_{module}:{id}")
    return name


FAMILY = Family(
    form="gym_{id}", parse=parse, make=make, rewards=lambda task: None,
    settings={"env_kwargs": Legal(lambda value: value.partition("=")[0].isidentifier(), " such as difficulty=2")},
    time_limit=0,
)  # fmt: skip
