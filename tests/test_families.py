"""Every kind of --task trains: real engines, real rendering, real files; a tiny agent, in this process."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_dreamer import TINY

import dreamer
from envs import rms, suite
from run.episodes import read_episode

pytestmark = pytest.mark.slow

FLAGS = [
    *TINY, "--envs", "1", "--device", "cpu", "--steps", "48", "--time_limit", "24", "--prefill", "8", "--pretrain", "1",
    "--eval_every", "48", "--eval_episode_num", "1", "--log_every", "24", "--checkpoint_every", "48",
]  # fmt: skip


def write_video(path: Path, frames: int = 6, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20, (size, size))
    rng = np.random.default_rng(len(path.name))
    for _ in range(frames):
        writer.write(cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (size, size)))
    writer.release()


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """Small files in the formats of the real ones."""
    root = tmp_path_factory.mktemp("assets")
    for mode in ("video_easy", "video_hard"):
        for i in range(2):
            write_video(root / "dmcgb" / mode / f"video{i}.mp4")
    write_video(root / "own" / "clip.mp4", frames=12)
    for name in ("bear", "boat", "bus", "train"):
        folder = root / "davis" / "JPEGImages" / "480p" / name
        folder.mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(folder / f"{i:05d}.jpg"), np.full((48, 85, 3), 80 * i + 40, np.uint8))
    try:
        import maniskill_assets

        maniskill_assets.write_assets(root)
    except ImportError:  # Python 3.12, where the rms tests skip
        pass
    return root


def train(task: str, assets: Path, logdir: Path, *flags: str, config: str = "dmc_vision") -> None:
    argv = ["--configs", config, "--task", task, *FLAGS, "--assets", str(assets), "--logdir", str(logdir), *flags]
    assert dreamer.main(argv) == 0
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    assert {"train_return", "eval_return", "model_loss", "simsr_loss", "mbr_loss", "actor_loss"} <= keys
    assert lines[-1]["step"] == 48 and all(np.isfinite(line.get("model_loss", 0)) for line in lines)
    assert "train_success" in keys or not task.startswith("rms_")
    frames = read_episode(next((logdir / "train_eps").glob("*.npz")))["image"]
    assert frames.std() > 5 and (frames[0] != frames[-1]).any()


@pytest.mark.parametrize("source", ["video", "images", "clouds", "noise", "color"])
def test_distracted_dmc_trains(source, assets, tmp_path):
    files = {"video": assets / "own" / "*.mp4", "images": assets / "davis" / "JPEGImages" / "480p" / "bear" / "*.jpg"}
    flags = ["--img_source", source, "--resource_files", str(files.get(source, ""))]
    train("dmc_walker_stand_video", assets, tmp_path, *flags)


@pytest.mark.parametrize("mode", [*suite.DMCGS, *suite.DISTRACTING, "rotate_shift_hard", "color_video_easy"])
def test_dmcgs_trains(mode, assets, tmp_path):
    train(f"dmc_cheetah_run_{mode}", assets, tmp_path)


@pytest.mark.parametrize("task", rms.TASKS)
def test_realistic_maniskill_trains(task, assets, tmp_path):
    pytest.importorskip("mani_skill2", reason="mani_skill2 needs Python 3.11 and numpy below 1.24")
    train(f"rms_{task}", assets, tmp_path, config="realistic_maniskill")
