"""docs/extending.md: its code blocks, applied to a copy of the repository, and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def blocks() -> list[tuple[str, str]]:
    """Language and text of each code block of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)


def apply(folder: Path, diff: str) -> None:
    """Applies a diff whose hunks have no line numbers: the lines that a hunk removes must occur exactly once."""
    header, *hunks = re.split(r"^@@\n", diff, flags=re.M)
    path = folder / re.search(r"^\+\+\+ b/(\S+)$", header, re.M)[1]
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name} does not contain this exactly once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copy(ROOT / "configs.yaml", folder)
    for package in ("accel", "baselines", "envs", "run", "setup"):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    commands = []
    for language, text in blocks():
        name = re.match(r"# (\S+)\n", text)
        if language == "diff":
            apply(folder, text)
        elif language == "python":
            (folder / name[1]).write_text(text[name.end() :])
        elif language == "yaml":
            with open(folder / name[1], "a") as file:
                file.write("\n" + text[name.end() :])
        else:
            commands += text.splitlines()
    return folder, commands


def test_the_worked_examples_train(extended):
    folder, commands = extended
    assert len(commands) == 1
    program, *args = shlex.split(commands[0])
    assert program == "python"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "log/point/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 400 and "eval_return" in set().union(*lines)
    smooth = [line["smooth_loss"] for line in lines if "smooth_loss" in line]
    assert smooth and all(0 < value < 4 for value in smooth)
    byol = [line["byol_loss"] for line in lines if "byol_loss" in line]
    assert byol and all(0 < value < 2 for value in byol)
    assert list((folder / "log/point/train_eps").glob("*.npz"))


def test_the_new_method_learns(extended):
    """On one batch, its loss falls and the EMA encoder follows the online one."""
    folder, _ = extended
    code = """
import agents
agent = agents.agent("--model_lr", "1e-3", base=("dmc_proprio", "byol"), shapes=agents.VECTORS)
batch = agents.batch(agents.VECTORS)
encoder, target = agent.world_model.encoder, agent.world_model.baseline.target_encoder
start = [p.clone() for p in target.parameters()]
losses = [agent.update(batch)["byol_loss"].item() for _ in range(60)]
assert losses[-1] < 0.8 * losses[0], losses
for before, slow, online in zip(start, target.parameters(), encoder.parameters()):
    assert 0 < (slow - online).norm() < (before - online).norm()
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_new_env_follows_the_protocol(extended):
    folder, _ = extended
    code = """
import numpy as np, envs
from models import reward_to_simsr
from run.config import load_config
assert reward_to_simsr(envs.reward_range("point_corner"), 2) == 0.5
assert load_config(["--task", "point_corner", "--point_speed", "0.5"]).time_limit == 100
for flags in (["--point_speed", "2"], ["--point_sped", "0.5"]):
    try:
        load_config(flags)
    except SystemExit as stop:
        assert stop.code == 2
for task, speed in (("point_center", 0.1), ("point_middle", 2)):
    try:
        envs.make(task, point_speed=speed)
    except ValueError as error:
        print(error)
for image in (False, True):
    env = envs.make("point_middle", seed=3, size=(16, 16), time_limit=20, image=image)
    def play():
        obs, out = env.reset(episode=4), []
        assert obs["is_first"] and env.observation_space.contains({k: obs[k] for k in env.observation_space.spaces})
        rng, done = np.random.default_rng(0), False
        while not done:
            obs, reward, done, info = env.step({"action": rng.uniform(-1, 1, 2)})
            assert 0 <= reward <= 4
            out.append((obs["position"].tolist(), reward))
        assert obs["is_last"] and not obs["is_terminal"]
        return out
    first = play()
    assert len(first) == 10 and play() == first
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unknown, speed = done.stdout.splitlines()
    assert "point_center" in unknown and "point_corner" in unknown and "--point_speed is 2" in speed
    speed, name = done.stderr.splitlines()
    assert speed == "error: --point_speed is 2: expected a number from 0.01 to 1" and "--point_speed" in name
