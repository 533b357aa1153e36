"""The family `rms_{task}`, Realistic ManiSkill: names, settings, rewards. The engine is in maniskill.py."""

from .family import Family, nearest
from .legal import TEXT, one_of

# Largest reward of an environment step.
TASKS = {
    "push_cube": 6.5,
    "lift_cube": 6.5,
    "pick_cube": 11.5,
    "turn_faucet": 10.0,
    "peg_insertion_side": 25.0,
    "plug_charger": 50.0,
    "assembling_kits": 10.0,
    "panda_avoid_obstacles": 10.0,
}


def parse(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"--task rms_{name}: no such task; {nearest(name, TASKS, 'rms_')}")
    return name


def make(task: str, *, image: bool | None, evaluation: bool, **settings):
    from .maniskill import RealisticManiSkill

    return RealisticManiSkill(task, image=image is not False, **settings)


FAMILY = Family(
    form="rms_{task}", parse=parse, make=make, rewards=lambda task: (0.0, TASKS[task]),
    settings={"scan_path": TEXT, "scan_up": one_of("z", "y"), "assets": TEXT}, time_limit=100,
)  # fmt: skip
