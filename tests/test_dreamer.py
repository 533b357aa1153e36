"""The command line and the loop: real runs of a tiny agent, stopped, killed and resumed."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dreamer
from run import checkpoint, logs
from run.config import read_config
from run.episodes import read_episode
from run.public import public_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--dyn_hidden 16 --dyn_deter 16 --dyn_stoch 4 --dyn_discrete 4 --units 16 --imag_horizon 4 --encoder.cnn_depth 2 "
    "--encoder.mlp_units 16 --batch_size 4 --batch_length 8 --train_ratio 4 --pretrain 3 --prefill 40 --envs 2 "
    "--time_limit 60 --eval_episode_num 3 --eval_every 400 --log_every 200 --checkpoint_every 200 --steps 1200"
).split()
VECTORS = ["--configs", "dmc_proprio", "--task", "dmc_cartpole_balance", *TINY]
PIXELS = ["--configs", "dmc_vision", "--task", "dmc_cartpole_balance", "--size", "16", "16", "--patch_size", "4", *TINY]
HERE = ["--parallel", "False", "--device", "cpu"]
PYTHON = (sys.executable, "-u")


def main(*flags) -> int:
    """The exit status of a command in this process, which has imported what it needs."""
    try:
        return dreamer.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code


def start(*flags, launcher=PYTHON, **kwargs) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "dreamer.py"), *map(str, flags)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def run(*flags, launcher=PYTHON) -> tuple[int, str, str]:
    process = start(*flags, launcher=launcher)
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err


def entries(logdir: Path) -> list[dict]:
    """Lines of metrics.jsonl without the measured times."""
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in logs.TIMED} for line in lines]


def wait_for(logdir: Path, lines: int, process: subprocess.Popen) -> None:
    path = logdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run from pixels."""
    logdir = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = run(*PIXELS, "--logdir", logdir)
    assert code == 0, err
    return logdir, out, err


def test_a_run_writes_what_it_promises(whole_run):
    logdir, out, err = whole_run
    lines = entries(logdir)
    keys = set().union(*lines)
    assert keys >= {
        "step", "train_return", "train_length", "train_episodes", "eval_return", "eval_length", "eval_episodes",
        "model_loss", "reward_loss", "cont_loss", "mbr_loss", "simsr_loss", "dyn_loss", "rep_loss", "kl", "prior_ent",
        "post_ent", "model_grad_norm", "actor_loss", "actor_grad_norm", "actor_entropy", "value_loss",
        "value_grad_norm", "EMA_005", "EMA_095", "update_count", "replay_steps",
    }  # fmt: skip
    timed = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert any("fps" in line and "updates_per_second" in line for line in timed)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 1200
    # two envs, 30 agent steps per episode, 2 environment steps each
    assert [line["train_length"] for line in lines if "train_length" in line] == [30] * 20
    assert [line["step"] for line in lines if "eval_return" in line] == [400, 800, 1200]
    assert [line["eval_length"] for line in lines if "eval_length" in line] == [30] * 3
    # 40 agent steps of prefill, 3 updates, then an eighth of an update per step
    assert max(line.get("update_count", 0) for line in lines) == 3 + (600 - 40) // 8
    assert (logdir / "latest.pt").exists() and read_config(logdir / "config.yaml").steps == 1200
    assert len(list((logdir / "train_eps").glob("*.npz"))) == 20
    ours = ("step ", "allocator", "matrix products", "update: ", "needs ", "resumed")
    for line in (out + err).splitlines():
        assert line.startswith(ours) and len(line) < 160, f"not a short line of ours: {line}"
    # a line for each row of the log, one for each evaluation
    assert sum(line.startswith("step ") for line in out.splitlines()) == 6 + 3


def test_tensorboard_holds_the_same_scalars_and_the_videos(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logdir = whole_run[0]
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in ("train_return", "eval_return", "model_loss", "simsr_loss"):
        ours = [(line["step"], line[name]) for line in entries(logdir) if name in line]
        theirs = [(e.step, e.value) for e in events.Scalars(logs.grouped(name))]
        assert [s for s, _ in ours] == [s for s, _ in theirs]
        np.testing.assert_allclose([v for _, v in ours], [v for _, v in theirs], rtol=1e-6)
    videos = events.Images("video/eval_policy")
    assert [v.step for v in videos] == [400, 800, 1200]
    from io import BytesIO

    from PIL import Image

    gif = Image.open(BytesIO(videos[0].encoded_image_string))
    assert gif.n_frames > 1 and gif.size == (16, 16)


def test_same_seed_same_numbers(whole_run, tmp_path):
    assert run(*PIXELS, "--logdir", tmp_path / "again")[0] == 0
    assert entries(tmp_path / "again") == entries(whole_run[0])
    files = sorted(p.name for p in (whole_run[0] / "train_eps").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "again" / "train_eps").iterdir())
    for name in files:
        a, b = (read_episode(d / "train_eps" / name) for d in (whole_run[0], tmp_path / "again"))
        assert a.keys() == b.keys() == {"image", "action", "reward", "is_first", "is_terminal"}
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_other_seeds_and_evaluation_get_other_episodes(whole_run, tmp_path):
    assert run(*PIXELS, "--steps", "160", "--seed", "1", "--logdir", tmp_path / "other")[0] == 0
    first = next(line for line in entries(whole_run[0]) if "train_return" in line)
    assert next(line for line in entries(tmp_path / "other") if "train_return" in line) != first
    ours = sorted((whole_run[0] / "train_eps").glob("*-000000-*.npz"))
    starts = [read_episode(path)["image"][0] for path in ours]
    assert len(starts) == 2 and not np.array_equal(*starts)


def test_a_stopped_run_resumes_to_the_same_numbers(whole_run, tmp_path):
    logdir = tmp_path / "stopped"
    for sign, lines in ((signal.SIGTERM, 4), (signal.SIGINT, 14)):
        process = start(*PIXELS, "--logdir", logdir)
        wait_for(logdir, lines, process)
        process.send_signal(sign)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 and "the same command resumes" in out, err
    code, out, err = run(*PIXELS, "--logdir", logdir)
    assert code == 0 and "resumed at step" in out, err
    assert entries(logdir) == entries(whole_run[0])


def test_a_finished_run_reports_so_and_more_steps_resume_it(tmp_path, capsys):
    flags = [*VECTORS, *HERE, "--logdir", tmp_path / "run"]
    assert main(*flags, "--steps", "400") == 0
    before = entries(tmp_path / "run")
    capsys.readouterr()
    assert main(*flags, "--steps", "400") == 0
    assert "nothing left to train" in capsys.readouterr().out and entries(tmp_path / "run") == before
    assert main(*flags, "--steps", "800") == 0 and "resumed at step 400" in capsys.readouterr().out
    after = entries(tmp_path / "run")
    assert after[: len(before)] == before and after[-1]["step"] == 800


def test_kill_at_ten_random_moments(tmp_path):
    logdir = tmp_path / "run"
    flags = [*VECTORS, "--steps", "100000", "--eval_every", "300", "--checkpoint_every", "100", "--logdir", logdir]
    moments = random.Random(0)
    kept: dict[str, bytes] = {}
    reached = 0
    for kill in range(10):
        process = start(*flags)
        before = (logdir / "metrics.jsonl").read_bytes().count(b"\n") if kill else 0
        deadline = time.time() + 600
        while time.time() < deadline and process.poll() is None:
            path = logdir / "metrics.jsonl"
            if path.exists() and path.read_bytes().count(b"\n") > before // 2 + 2:
                break
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.5))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        # episodes that had finished are still there, unchanged, and every file is complete
        files = {p.name: p.read_bytes() for p in (logdir / "train_eps").glob("*.npz")}
        assert kept.items() <= files.items()
        for name in files:
            assert len(read_episode(logdir / "train_eps" / name)["reward"]) == 31
        kept = files
        if (logdir / "latest.pt").exists():
            checkpoint.load_checkpoint(logdir / "latest.pt")
        for line in (logdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    reached = len(kept) * 60
    code, out, err = run(*VECTORS, "--steps", str(reached + 300), "--logdir", logdir)
    assert code == 0, err
    assert not any("damaged" in line for line in err.splitlines())
    found = re.search(r"resumed at step (\d+) with (\d+) episodes", out)
    assert int(found[1]) >= reached and int(found[2]) >= len(kept)
    steps = [line["step"] for line in entries(logdir)]
    assert steps == sorted(steps)
    episodes = [line["train_episodes"] for line in entries(logdir) if "train_episodes" in line]
    assert episodes == list(range(1, len(episodes) + 1)) and len(episodes) >= int(found[2])  # each exactly once


def workers(process: subprocess.Popen) -> list[int]:
    """The processes of its envs; a library may have others, as multiprocessing has from Python 3.14 on."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            found += [int(pid)] * (b"envs.parallel" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def test_a_dead_worker_ends_the_run_with_its_name(tmp_path):
    process = start(*VECTORS, "--logdir", tmp_path / "run")
    wait_for(tmp_path / "run", 2, process)
    os.kill(workers(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode not in (0, None) and "worker of env" in err


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--task", "dmc_walkr_walk"], ["dmc_walkr_walk", "walker"]),
        (["--task", "dmc_walker_wlak"], ["dmc_walker_wlak", "walk"]),
        (["--task", "atari_pong"], ["atari_pong", "dmc_"]),
        (["--batch_length", "30", "--block_size", "4"], ["--batch_length 30", "--block_size 4"]),
        (["--size", "50", "50"], ["50"]),
        (["--size", "64", "32"], ["square"]),
        (["--actor_dist", "onehot"], ["onehot", "continuous"]),
        (["--actor_dist", "gauss"], ["gauss", "normal"]),
        (["--device", "cuda:7"], ["cuda:7"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--precision", "8"], ["precision", "16, 32"]),
        (["--mask_ratio", "1.5"], ["mask_ratio", "0 to 1"]),
        (["--augmentation", "mirror"], ["mirror", "affine"]),
        (["--from_checkpoint", "nowhere.pt"], ["--from_checkpoint nowhere.pt: there is no such file"]),
        (["--from_checkpoint", 1000 * "a"], ["there is no such file"]),
        (["--batch_sise", "3"], ["batch_sise", "batch_size"]),
        (["--batch_size", "three"], ["batch_size", "three"]),
        (["--configs", "dmc_visoin"], ["dmc_visoin", "dmc_vision"]),
        (["--envs", "0"], ["envs"]),
        (["--logdir", "~nobody-is-called-so/run"], ["--logdir ~nobody-is-called-so/run", "home"]),
    ],
)
def test_bad_settings_are_one_line(flags, words, tmp_path, capsys):
    code = main("--configs", "dmc_vision", "--task", "dmc_walker_walk", "--logdir", tmp_path / "run", *flags)
    err = capsys.readouterr().err
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "run" / "latest.pt").exists()


def test_another_config_is_refused_unless_allowed(tmp_path, capsys):
    flags = [*VECTORS, "--logdir", tmp_path / "run"]
    assert run(*flags, "--steps", "200")[0] == 0
    assert main(*flags, "--steps", "400", "--units", "24", "--kl_free", "2") == 2
    err = capsys.readouterr().err
    assert "units 16 -> 24" in err and "kl_free 1.0 -> 2.0" in err and len(err.splitlines()) == 1
    # settings that only determine how long, how often or where
    free = ["--steps", "400", "--parallel", "False", "--log_every", "50", "--eval_episode_num", "1", "--device", "cpu"]
    free += ["--resource_files", "elsewhere/*.mp4", "--scan_path", "elsewhere", "--eval_envs", "1"]
    assert main(*flags, *free) == 0
    assert main(*flags, "--kl_free", "2", "--allow_config_change", "True", "--steps", "500", "--parallel", "False") == 0


def test_a_damaged_checkpoint_is_reported(tmp_path, capsys):
    logdir = tmp_path / "run"
    assert main(*VECTORS, *HERE, "--steps", "200", "--logdir", logdir) == 0
    capsys.readouterr()

    def refused(*flags) -> str:
        assert main(*flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    other = tmp_path / "other"
    line = refused(*VECTORS, *HERE, "--logdir", other, "--from_checkpoint", logdir / "latest.pt")
    assert "is a checkpoint of this code" in line
    line = refused("--eval_only", "True", "--logdir", logdir, "--eval_tasks", "dmc_cartpole_swingup")
    assert "--eval_tasks belongs to training" in line
    data = (logdir / "latest.pt").read_bytes()
    (logdir / "latest.pt").write_bytes(data[: len(data) // 2])
    assert "latest.pt is damaged" in refused(*VECTORS, *HERE, "--steps", "400", "--logdir", logdir)


def test_a_run_starts_from_a_checkpoint_of_the_public_code(tmp_path):
    import reference

    flags = ["--configs", "dmc_vision", "--task", "dmc_cartpole_balance", *TINY, "--steps", "100", "--prefill", "1000"]
    sizes = reference.sizes()
    flags += ["--encoder.cnn_depth", sizes["depth"], "--dyn_hidden", sizes["hidden"], "--dyn_deter", sizes["deter"]]
    flags += ["--dyn_stoch", sizes["stoch"], "--dyn_discrete", sizes["discrete"], "--units", sizes["units"]]
    flags += ["--dyn_cont_stoch_size", sizes["proj"], "--eval_episode_num", 0, "--logdir", tmp_path / "run"]
    path = shutil.copy(reference.FOLDER / "reference_checkpoint.pt", tmp_path)
    code, out, err = run(*flags, "--from_checkpoint", path)
    assert code == 0, err
    # cartpole has one action, the checkpoint another number: those tensors do not fit and are listed with both shapes
    actions, stoch, units = sizes["A"], sizes["stoch"] * sizes["discrete"], sizes["units"]
    if actions != 1:
        assert f"_wm.dynamics._inp_layers.0.weight ({sizes['hidden']}, {stoch + actions})" in out
        assert f"behavior.actor.out.weight has shape (2, {units})" in out
    saved = checkpoint.load_checkpoint(tmp_path / "run" / "latest.pt")["agent"]["agent"]
    theirs = torch.load(path, weights_only=True)
    for name in ("_wm.dynamics._cell._layer.weight", "_wm.encoder._cnn.layers.3.weight", "_wm.target_dynamics.W"):
        assert torch.equal(saved[public_name(name)], theirs[name])
    Path(path).unlink()  # needed once
    assert main(*flags, "--from_checkpoint", path) == 0
    assert main("--eval_only", "--episodes", "1", "--logdir", tmp_path / "run") == 0


@pytest.mark.parametrize("behavior", ["random", "plan2explore"])
def test_exploration(behavior, tmp_path):
    flags = ["--expl_behavior", behavior, "--expl_until", "300", "--disag_models", "2", "--disag_units", "8"]
    assert main(*VECTORS, *HERE, *flags, "--steps", "400", "--logdir", tmp_path / "run") == 0
    keys = set().union(*entries(tmp_path / "run"))
    assert ("expl_actor_loss" in keys and "disag_loss" in keys) == (behavior == "plan2explore")
