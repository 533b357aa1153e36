"""Draws figures/environments.png: the four families as the agent sees them, 64 x 64, by a random policy.

    python figures/environments.py [--assets assets] [--resource_files 'FOLDER/*.mp4'] [--out figures/environments.png]
    python figures/environments.py --sheet dmcgb2 --out sheet.png  # all sets on all six tasks; also: subtle, suite

A task whose files are missing is left out, with a line that says what it needs. The flags are settings of the tasks.
The figure in the repository uses videos of DMC-GS, also in place of DAVIS's, and the tests' stand-ins for the scans and
the faucet.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import envs

FAMILIES = {
    "DMC": [
        ("dmc_walker_walk", {}),
        ("dmc_cheetah_run", {}),
        ("dmc_cup_catch", {}),
        ("dmc_finger_spin", {}),
        ("dmc_quadruped_run", {}),
        ("dmc_reacher_easy", {}),
    ],
    "Distracted DMC": [
        ("dmc_walker_walk_video", {}),
        ("dmc_cheetah_run_video", {}),
        ("dmc_walker_stand_video", {"img_source": "clouds"}),
        ("dmc_finger_spin_video", {}),
        ("dmc_cartpole_swingup_video", {"img_source": "noise"}),
        ("dmc_reacher_easy_video", {"img_source": "color"}),
    ],
    "DMC-GS": [
        ("dmc_walker_walk_color_hard", {}),
        ("dmc_walker_walk_video_easy", {}),
        ("dmc_cup_catch_video_hard", {}),
        ("dmc_cheetah_run_sensor_cs", {"distracting_cs_intensity": 0.3}),
        ("dmc_cheetah_run_distracting_cs", {"distracting_cs_intensity": 0.1}),
        ("dmc_finger_spin_distracting_cs", {"distracting_cs_intensity": 0.5}),
    ],
    "Realistic ManiSkill": [
        ("rms_push_cube", {}),
        ("rms_lift_cube", {}),
        ("rms_pick_cube", {}),
        ("rms_turn_faucet", {}),
        ("rms_peg_insertion_side", {}),
        ("rms_plug_charger", {}),
    ],
}
GB2_TASKS = ("walker_walk", "walker_stand", "cheetah_run", "finger_spin", "cartpole_swingup", "cup_catch")
GB2_SETS = [
    f"{kind}_{level}"
    for kind in ("color", "video", "color_video", "rotate", "shift", "rotate_shift")
    for level in ("easy", "hard")
]
SUBTLE_TASKS = ("cup_catch", "point_mass", "finger_turn", "reacher", "cartpole_swingup")
SUITE = {
    "acrobot": "swingup", "cup": "catch", "cartpole": "swingup", "cheetah": "run", "dog": "fetch", "finger": "spin",
    "fish": "swim", "hopper": "hop", "humanoid": "walk", "humanoid_CMU": "run", "lqr": "lqr_2_1",
    "manipulator": "bring_ball", "pendulum": "swingup", "point_mass": "easy", "quadruped": "escape", "reacher": "easy",
    "stacker": "stack_2", "swimmer": "swimmer6", "walker": "walk",
}  # fmt: skip
SHEETS = {
    "families": FAMILIES,
    "dmcgb2": {mode: [(f"dmc_{task}_{mode}", {}) for task in GB2_TASKS] for mode in GB2_SETS},
    "subtle": {
        "DMC-Subtle": [(f"dmc_{task}_subtle", {}) for task in SUBTLE_TASKS],
        "in front of clouds": [(f"dmc_{task}_subtle_video", {"img_source": "clouds"}) for task in SUBTLE_TASKS],
    },
    "suite": {
        mode or "plain": [
            ("_".join(filter(None, ["dmc", *task, mode])), {"img_source": "clouds"}) for task in SUITE.items()
        ]
        for mode in ("", "video", "color_hard", "video_easy", "video_hard")
    },
}
MOMENTS = (4, 40)  # agent steps after a reset


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
    for key in ("assets", "resource_files", "ds_resource_path", "scan_path"):
        parser.add_argument(f"--{key}", default="assets" if key == "assets" else "")
    args = parser.parse_args()
    paths = {key: getattr(args, key) for key in ("assets", "resource_files", "ds_resource_path", "scan_path")}

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
