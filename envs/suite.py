"""The family `dmc_{domain}_{task}[_{mode}]`: names, settings, rewards of the DeepMind Control suite and its variants.

The engines are in dmc.py (plain tasks), distracted.py (`_video`; colors and videos of DMC-GS), distracting.py
(Distracting Control Suite), dmcgb2.py (DMC-GB2) and subtle.py (DMC-Subtle).
"""

import contextlib
from typing import Any, NamedTuple

from . import subtle
from .family import Family, nearest
from .legal import TEXT, Legal, between, one_of
from .notes import note
from .sources import DAVIS_VIDEOS, DMCGS_VIDEOS, IMG_SOURCES

DMCGS = ("color_easy", "color_hard", "video_easy", "video_hard")
DISTRACTING = ("distracting_cs", "sensor_cs")
GEOMETRIC = tuple(f"{kind}_{level}" for kind in ("rotate", "shift", "rotate_shift") for level in ("easy", "hard"))
COLOR_VIDEO = ("color_video_easy", "color_video_hard")
MODES = ("video", *DMCGS, *DISTRACTING, *GEOMETRIC, *COLOR_VIDEO)
SUITES = {  # {name: the modes of its test sets}; every suite has the clean task too
    "dmcgb": DMCGS,
    "dmcgb2": (*DMCGS, *COLOR_VIDEO, *GEOMETRIC),
    "dmcgb2_geometric": GEOMETRIC,
    "distracting": DISTRACTING,
}
DOMAINS = {  # domains of the modes that not every domain has
    **dict.fromkeys(DISTRACTING, ("reacher", "cartpole", "finger", "cheetah", "ball_in_cup", "walker")),
    **dict.fromkeys((*GEOMETRIC, *COLOR_VIDEO), ("walker", "cheetah", "cartpole", "ball_in_cup", "finger")),
}

# What lqr's rewards were seen to reach (in docs/data.md); all others are in [0, 1] by definition.
LQR_REWARDS = (-0.6, 1.0)

BOOL = Legal(lambda value: type(value) is bool)
SETTINGS = {
    "shadow_size": between(0, 16384),
    "old_floor": BOOL,
    "img_source": one_of(*IMG_SOURCES),
    "resource_files": TEXT,
    "eval_resource_files": TEXT,
    "total_frames": between(1, 1e6),
    "distracting_cs_intensity": one_of(*DAVIS_VIDEOS),
    "ds_resource_path": TEXT,
    "assets": TEXT,
}


class Task(NamedTuple):
    domain: str
    name: str
    mode: str = ""  # one of MODES, or none
    shrunk: subtle.Shrunk | None = None  # set for a DMC-Subtle task


def parse(name: str) -> Task:
    """'cup_catch_video' -> Task('ball_in_cup', 'catch', 'video')."""
    from .dmc import TASKS  # {domain: tasks}

    task, rest = f"--task dmc_{name}", name
    if rest == "cup" or rest.startswith("cup_"):
        rest = "ball_in_" + rest
    base, tiny, mode = rest.partition("_subtle")
    if tiny and mode in ("", "_video"):
        if base not in subtle.TASKS:
            raise ValueError(f"{task}: no such task of DMC-Subtle; {nearest(base, subtle.TASKS)}")
        shrunk = subtle.TASKS[base]
        return Task(shrunk.domain, shrunk.task, mode[1:], shrunk)
    # Names contain underscores, and one may be a prefix of another (humanoid, humanoid_CMU): take the longest.
    domains = [d for d in TASKS if rest == d or rest.startswith(d + "_")]
    if not domains:
        raise ValueError(f"{task}: no such domain; {nearest(rest.split('_')[0], TASKS)}")
    domain = max(domains, key=len)
    rest = rest[len(domain) + 1 :]
    names = [n for n in TASKS[domain] if rest == n or rest.startswith(n + "_")]
    if not names:
        raise ValueError(f"{task}: domain {domain} has no such task; {nearest(rest, TASKS[domain])}")
    found = max(names, key=len)
    mode = rest[len(found) + 1 :]
    if rest != found and mode not in MODES:
        raise ValueError(f"{task}: no such mode {mode!r}; {nearest(mode, MODES)}")
    if domain not in DOMAINS.get(mode, (domain,)):
        raise ValueError(f"{task}: {mode} is defined for the domains {', '.join(DOMAINS[mode])}; not for {domain}")
    return Task(domain, found, mode)


def rewards(task: Task) -> tuple[float, float]:
    return LQR_REWARDS if task.domain == "lqr" else (0.0, 1.0)


def videos(
    task: Task,
    *,
    assets: str = "assets",
    ds_resource_path: str = "",
    distracting_cs_intensity: float = 0.1,
    **_: Any,
) -> tuple[int, int] | None:
    if task.mode == "distracting_cs":
        from .distracting import find_davis

        count = DAVIS_VIDEOS[distracting_cs_intensity]
        return len(find_davis(ds_resource_path or f"{assets}/davis", count)), count
    if task.mode.endswith(("video_easy", "video_hard")):
        from .distracted import find_videos

        mode = task.mode.removeprefix("color_")
        return len(find_videos(mode, assets)), DMCGS_VIDEOS[mode]
    return None


def suite(name: str, task: str) -> list[str]:
    if name not in SUITES:
        raise ValueError(f"no such suite; {nearest(name, SUITES)}")
    found = parse(task)
    if found.shrunk is not None:
        raise ValueError(f"dmc_{task} is of DMC-Subtle, which has no test sets")
    clean = task.removesuffix(f"_{found.mode}")
    sets = [clean, *(f"{clean}_{mode}" for mode in SUITES[name])]
    for one in sets:
        parse(one)  # raises for a domain that does not have it
    return sets


def make(task: Task, *, image: bool | None, **settings: Any):
    from .dmc import DMC, RENDERS

    if image is None:  # frames for videos alone: there are none without a renderer, or without the background's files
        with contextlib.suppress(FileNotFoundError):
            return make(task, image=RENDERS, **settings)
        return make(task, image=False, **settings)

    def given(*names: str) -> dict[str, Any]:
        return {name: settings[name] for name in names if name in settings}

    domain, name, mode, shrunk = task
    background = settings.get("resource_files") or settings.get("img_source", "video") != "video"
    if background and mode != "video" and not settings.get("evaluation"):  # an evaluation may have another task
        note(f"--img_source and --resource_files are for tasks that end in _video: {domain}_{name} is trained without")
    common = given("seed", "size", "action_repeat", "evaluation", "shadow_size", "old_floor")
    common["image"] = image
    if mode == "":
        return DMC(domain, name, shrunk=shrunk, **common)
    if mode == "video":
        from .distracted import DistractedDMC

        source = given("img_source", "resource_files", "eval_resource_files", "total_frames", "assets")
        return DistractedDMC(domain, name, shrunk=shrunk, **common, **source)
    if mode in DMCGS:
        from .distracted import DMCGS as GreenScreen

        return GreenScreen(domain, name, mode, **common, **given("assets"))
    if mode in DISTRACTING:
        from .distracting import DistractingCS

        source = given("distracting_cs_intensity", "ds_resource_path", "assets")
        return DistractingCS(domain, name, mode, **common, **source)
    from . import dmcgb2

    if mode in GEOMETRIC:
        return dmcgb2.Geometric(domain, name, mode, **common)
    return dmcgb2.ColorVideo(domain, name, mode, **common, **given("assets"))


FAMILY = Family(
    form="dmc_{domain}_{task}[_{mode}]", parse=parse, make=make, rewards=rewards, settings=SETTINGS,
    videos=videos, suite=suite, time_limit=1000,
)  # fmt: skip
