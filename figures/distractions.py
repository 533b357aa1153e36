"""Prints the tables of docs/data.md about the suite: what a distraction replaces, what its mask takes of the robot, and
what a cube mask leaves of the tiny objects of DMC-Subtle.

    python figures/distractions.py --assets assets
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import envs
from envs import distracted, subtle
from envs.dmc import DMC, TASKS
from models import cube_mask

GEOM, TENDON = 5, 18  # values of mujoco.mjtObj
FRAMES = 3  # first frames of as many episodes
OBJECTS = {  # kind and name of the object that DMC-Subtle shrinks
    "ball_in_cup_catch": ("geom", "ball"),
    "point_mass": ("geom", "pointmass"),
    "finger_turn": ("site", "target"),
    "reacher": ("geom", "target"),
    "cartpole_swingup": ("geom", "pole_1"),
}
MASKS = {"video": distracted.blue_mask, "video_easy": distracted.green_mask, "video_hard": distracted.green_mask}


def make(task: str, **settings) -> DMC:
    """The env of a task, without its wrappers."""
    env = envs.make(f"dmc_{task}", **settings)
    while not isinstance(env, DMC):
        env = env.env
    return env


def render(env: DMC) -> np.ndarray:
    """(H, W, 3) uint8: the plain image."""
    return np.ascontiguousarray(DMC.render(env))


def robot_pixels(env: DMC) -> np.ndarray:
    """(H, W) bool: what moves: geoms of bodies, and tendons."""
    kinds = env.physics.render(*env.size, camera_id=env.camera, segmentation=True)
    moving = np.append(env.physics.model.geom_bodyid > 0, False)
    return ((kinds[..., 1] == GEOM) & moving[kinds[..., 0]]) | (kinds[..., 1] == TENDON)


def shares(task: str, assets: str) -> list[float]:
    """Replaced by _video, video_easy, video_hard; and what _video's mask takes of the robot."""
    found, taken = [], []
    for mode, mask_of in MASKS.items():
        env = make(f"{task}_{mode}", img_source="noise", assets=assets)
        masks, robots = [], []
        for episode in range(FRAMES):
            env.reset(episode)
            masks.append(mask_of(render(env)))
            robots.append(robot_pixels(env))
        env.close()
        found.append(np.mean(masks))
        taken.append(np.logical_and(masks, robots).sum() / max(np.sum(robots), 1))
    return [*found, taken[0]]


def object_pixels(name: str, mode: str = "") -> np.ndarray:
    """(episodes, H, W) bool: where frames change by 8 levels or more if the object is invisible."""
    env = make("_".join(filter(None, [name, "subtle", mode])), img_source="color")
    model, (kind, part) = env.physics.model, OBJECTS[name]
    rgba, material = (getattr(model, f"{kind}_{what}") for what in ("rgba", "matid"))
    index = model.name2id(part, kind)

    def seen() -> np.ndarray:
        frame = render(env)
        if mode:
            frame = distracted.replace(frame, distracted.blue_mask(frame), np.zeros_like(frame))
        return frame.astype(int)

    found = []
    for episode in range(12):
        env.reset(episode)
        look, frame = (rgba[index].copy(), material[index]), seen()
        rgba[index], material[index] = 0, -1
        found.append(np.abs(frame - seen()).max(-1) >= 8)
        rgba[index], material[index] = look
    return np.stack(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default="assets")
    args = parser.parse_args()
    if not (Path(args.assets) / "dmcgb").is_dir():
        parser.error(f"--assets {args.assets}: no dmcgb there; python setup/download_assets.py dmcgb downloads it")
    torch.manual_seed(0)
    print("| task | pixels | frames with any | pixels in front of a `_video` | left by the mask | all hidden |")
    print("|---|---|---|---|---|---|")
    for name in subtle.TASKS:
        seen, behind = object_pixels(name), object_pixels(name, "video")
        visible = seen[seen.any((1, 2))]
        masks = ((frame, cube_mask(4, 64, 64)[0].numpy()) for frame in visible for _ in range(200))
        kept = np.array([(frame & ~mask).sum() for frame, mask in masks])
        left = f"{kept.mean():.1f} | {(kept == 0).mean():.0%}" if len(visible) else "none | always"
        print(
            f"| `dmc_{name}_subtle` | {seen.sum((1, 2)).mean():.1f} | {len(visible) / len(seen):.0%} "
            f"| {behind.sum((1, 2)).mean():.1f} | {left} |",
            flush=True,
        )
    print("\n| task | `_video` | `video_easy` | `video_hard` | robot lost to `_video` |\n|---|---|---|---|---|")
    chosen = {domain: tasks[:1] for domain, tasks in TASKS.items()}
    chosen |= {"quadruped": ("walk", "escape"), "swimmer": ("swimmer6", "swimmer15"), "dog": ("run", "fetch")}
    for domain, tasks in sorted(chosen.items()):
        for task in tasks:
            cells = " | ".join(f"{share:.1%}" for share in shares(f"{domain}_{task}", args.assets))
            print(f"| {domain}_{task} | {cells} |", flush=True)
