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

GEOM, SITE, TENDON = 5, 6, 18  # of mujoco.mjtObj
FRAMES = 3  # first frames of as many episodes
OBJECTS = {  # of DMC-Subtle: kind and name
    "ball_in_cup_catch": (GEOM, "ball"),
    "point_mass": (GEOM, "pointmass"),
    "finger_turn": (SITE, "target"),
    "reacher": (GEOM, "target"),
    "cartpole_swingup": (GEOM, "pole_1"),
}


def inner(env):
    """The env within its wrappers."""
    while not isinstance(env, DMC):
        env = env.env
    return env


def robot_pixels(env: DMC) -> np.ndarray:
    """(H, W) bool: what moves: geoms of bodies, and tendons."""
    kinds = env.physics.render(*env.size, camera_id=env.camera, segmentation=True)
    moving = np.append(env.physics.model.geom_bodyid > 0, False)
    return ((kinds[..., 1] == GEOM) & moving[kinds[..., 0]]) | (kinds[..., 1] == TENDON)


def shares(domain: str, task: str, assets: str) -> list[float]:
    """Replaced by _video, video_easy, video_hard; and what _video's mask takes of the robot."""
    found = []
    for mode, mask_of in (
        ("video", distracted.blue_mask),
        ("video_easy", distracted.green_mask),
        ("video_hard", distracted.green_mask),
    ):
        env = inner(envs.make(f"dmc_{domain}_{task}_{mode}", img_source="noise", assets=assets))
        masked, lost, robot = [], 0, 0
        for episode in range(FRAMES):
            env.reset(episode)
            mask = mask_of(np.ascontiguousarray(DMC.render(env)))
            masked.append(mask.mean())
            if mode == "video":
                pixels = robot_pixels(env)
                lost, robot = lost + (mask & pixels).sum(), robot + pixels.sum()
        if mode == "video":
            taken = lost / max(robot, 1)
        found.append(float(np.mean(masked)))
        env.close()
    return [*found, float(taken)]


def object_pixels(name: str, mode: str = "") -> np.ndarray:
    """(episodes, H, W) bool: where frames change by 8 levels or more if the object is invisible."""
    kind, part = OBJECTS[name]
    env = inner(envs.make("_".join(filter(None, ["dmc", name, "subtle", mode])), img_source="color"))
    model = env.physics.model
    rgba = {GEOM: model.geom_rgba, SITE: model.site_rgba}[kind]
    material = {GEOM: model.geom_matid, SITE: model.site_matid}[kind]
    index = model.name2id(part, {GEOM: "geom", SITE: "site"}[kind])
    found = []
    for episode in range(12):
        env.reset(episode)
        frames = []
        before = (rgba[index].copy(), material[index])
        for visible in (True, False):
            if not visible:
                material[index], rgba[index] = -1, 0
            frame = np.ascontiguousarray(DMC.render(env))
            if mode:
                frame = distracted.replace(frame, distracted.blue_mask(frame), np.zeros_like(frame))
            frames.append(frame.astype(int))
        rgba[index], material[index] = before
        found.append(np.abs(frames[0] - frames[1]).max(-1) >= 8)
    return np.stack(found)


def cube_masks(count: int) -> np.ndarray:
    """(count, 64, 64) bool: kept by the default mask."""
    return np.stack([~cube_mask(4, 64, 64)[0].numpy() for _ in range(count)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default="assets")
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| task | pixels | frames with any | pixels in front of a `_video` | left by the mask | all hidden |")
    print("|---|---|---|---|---|---|")
    for name in subtle.TASKS:
        seen, behind = object_pixels(name), object_pixels(name, "video")
        visible = seen[seen.any((1, 2))]
        kept = np.array([(frame & mask).sum() for frame in visible for mask in cube_masks(200)])
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
            cells = " | ".join(f"{share:.1%}" for share in shares(domain, task, args.assets))
            print(f"| {domain}_{task} | {cells} |", flush=True)
