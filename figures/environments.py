"""Draws figures/environments.png: the four families as the agent sees them, 64 x 64, by a random policy.

    python figures/environments.py [--assets assets] [--resource_files 'FOLDER/*.mp4'] [--out figures/environments.png]
    python figures/environments.py --sheet dmcgb2 --out sheet.png  # all sets on all six tasks; also: subtle, suite

A task whose files are missing is left out, with a line that names what it needs. The flags are settings of the tasks.
The figure in the repository uses videos of DMC-GS, also in place of DAVIS's, rooms of setup/make_rooms.py as scans,
and the tests' stand-in for the faucet.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import envs
from envs import subtle
from envs.suite import SUITES

SUITE = {
    "acrobot": "swingup", "cup": "catch", "cartpole": "swingup", "cheetah": "run", "dog": "fetch", "finger": "spin",
    "fish": "swim", "hopper": "hop", "humanoid": "walk", "humanoid_CMU": "run", "lqr": "lqr_2_1",
    "manipulator": "bring_ball", "pendulum": "swingup", "point_mass": "easy", "quadruped": "escape", "reacher": "easy",
    "stacker": "stack_2", "swimmer": "swimmer6", "walker": "walk",
}  # fmt: skip
GB2_TASKS = ("walker_walk", "walker_stand", "cheetah_run", "finger_spin", "cartpole_swingup", "cup_catch")
PATHS = {"assets": "assets", "resource_files": "", "ds_resource_path": "", "scan_path": ""}  # settings: defaults
MOMENTS = (4, 40)  # agent steps after a reset


def dmc(*names: str, mode: str = "", **settings) -> list[tuple[str, dict]]:
    """Tasks in a mode, each with these settings."""
    return [("_".join(filter(None, ["dmc", name, mode])), settings) for name in names]


SHEETS = {  # {name: {row: tasks with their settings}}
    "families": {
        "DMC": dmc("walker_walk", "cheetah_run", "cup_catch", "finger_spin", "quadruped_run", "reacher_easy"),
        "Distracted DMC": [
            *dmc("walker_walk", "cheetah_run", mode="video"),
            *dmc("walker_stand", mode="video", img_source="clouds"),
            *dmc("finger_spin", mode="video"),
            *dmc("cartpole_swingup", mode="video", img_source="noise"),
            *dmc("reacher_easy", mode="video", img_source="color"),
        ],
        "DMC-GS": [
            *dmc("walker_walk_color_hard", "walker_walk_video_easy", "cup_catch_video_hard"),
            *dmc("cheetah_run", mode="sensor_cs", distracting_cs_intensity=0.3),
            *dmc("cheetah_run", mode="distracting_cs", distracting_cs_intensity=0.1),
            *dmc("finger_spin", mode="distracting_cs", distracting_cs_intensity=0.5),
        ],
        "Realistic ManiSkill": [
            (f"rms_{name}", {})
            for name in ("push_cube", "lift_cube", "pick_cube", "turn_faucet", "peg_insertion_side", "plug_charger")
        ],
    },
    "dmcgb2": {mode: dmc(*GB2_TASKS, mode=mode) for mode in SUITES["dmcgb2"]},
    "subtle": {
        "DMC-Subtle": dmc(*subtle.TASKS, mode="subtle"),
        "in front of clouds": dmc(*subtle.TASKS, mode="subtle_video", img_source="clouds"),
    },
    "suite": {
        mode or "plain": dmc(*map("_".join, SUITE.items()), mode=mode, img_source="clouds")
        for mode in ("", "video", "color_hard", "video_easy", "video_hard")
    },
}


def record(task: str, settings: dict, seed: int) -> list[np.ndarray]:
    """The frames of an episode's MOMENTS, each of another episode."""
    repeat = {"action_repeat": 1, "time_limit": 100} if task.startswith("rms_") else {}
    env = envs.make(task, seed=seed, **repeat, **settings)
    rng = np.random.default_rng(seed)
    frames = []
    for moment in MOMENTS:
        env.reset()
        for _ in range(moment):
            obs = env.step({"action": rng.uniform(-1, 1, env.action_space.shape)})[0]
        frames.append(obs["image"])
    env.close()
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", choices=SHEETS, default="families")
    for name, default in PATHS.items():
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args()
    if args.out.suffix not in (".png", ".pdf", ".svg") or not args.out.parent.is_dir():
        parser.error(f"--out {args.out}: expected a .png, .pdf or .svg in a folder that exists")
    paths = {name: getattr(args, name) for name in PATHS}

    plt.switch_backend("agg")
    sheet = SHEETS[args.sheet]
    columns = max(map(len, sheet.values()))
    figure = plt.figure(figsize=(1.25 * columns + 0.3, 2.95 * len(sheet)), layout="constrained")
    for row, (family, tasks) in zip(figure.subfigures(len(sheet), 1), sheet.items(), strict=True):
        row.suptitle(family, x=0.01, ha="left", weight="bold", size=10)
        axes = row.subplots(len(MOMENTS), columns)
        for ax in axes.flat:
            ax.axis("off")
        columns_left = iter(axes.T)
        for number, (task, settings) in enumerate(tasks):
            try:
                frames = record(task, paths | settings, args.seed + number)
            except (FileNotFoundError, ImportError) as error:
                print(f"{task} is left out: {error}", file=sys.stderr)
                continue
            column = next(columns_left)
            for ax, frame in zip(column, frames, strict=True):
                ax.imshow(frame, interpolation="nearest")
            note = "".join(f"\n{value}" for value in settings.values())
            column[0].set_title(task.split("_", 1)[1].replace("_", " ") + note, size=6.5)
    figure.savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
