"""Messages, and the writers of a run's numbers."""

import io
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from envs.backgrounds import make_source
from run import logs, video
from run.config import load_config
from run.logs import Logger

ROOT = Path(__file__).resolve().parent.parent


def lines(path):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=no_constant) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensorboard(path):
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


# metrics.jsonl


def test_rows_go_to_json_lines_and_tensorboard(tmp_path, capsys):
    logger = Logger(tmp_path)
    losses = {"model_loss": torch.tensor(0.1), "kl": np.float32(2), "bad": float("nan"), "worse": -math.inf}
    logger.write(200, {"train_return": 12.5, **losses})
    logger.write(300, {})  # nothing to write
    logger.write(400, {"train_return": 1, **logger.speed(400, 0)})
    logger.write(600, {"train_return": 2, **logger.speed(600, 7)})
    logger.close()
    first, second, third = lines(tmp_path)
    assert list(first) == ["step", "train_return", "model_loss", "kl", "bad", "worse"]
    assert (first["step"], first["train_return"], first["bad"], first["worse"]) == (200, 12.5, None, None)
    assert first["model_loss"] == float(torch.tensor(0.1))  # bit for bit
    assert second == {"step": 400, "train_return": 1.0}
    assert third["fps"] > 0 and third["fps"] / third["updates_per_second"] == pytest.approx(200 / 7)
    assert set(third) - set(second) == set(logs.TIMED)
    assert capsys.readouterr() == ("", "")
    events = tensorboard(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("episode/train_return")] == [(200, 12.5), (400, 1), (600, 2)]
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys):
    good = [f'{{"step": {step}, "loss": 1.0}}' for step in (100, 200, 300, 400)]
    bad = [
        "[" * 100_000,
        '{"step": "100"}',
        '{"step": null}',
        "{}",
        '{"step": 1e2}',
        "\x00",
        '{"step": 300, "loss": [3]}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([good[0], *bad, *good[1:], '{"step": 200, "loss": 9}']) + "\n")
    logger = Logger(tmp_path, resume_step=300, resume_lines=10)
    logger.close()
    assert lines(tmp_path) == [{"step": 100, "loss": 1.0}, {"step": 300, "loss": [3]}, *map(json.loads, good[1:3])]
    assert logger.removed == [{"step": 400, "loss": 1.0}, {"step": 200, "loss": 9}]
    assert "holds 4 of the checkpoint's 10 lines" in capsys.readouterr().out


def test_new_run_in_an_old_folder_starts_a_new_log(tmp_path):
    for value in (1, 2):
        logger = Logger(tmp_path)
        logger.write(0, {"loss": value})
        logger.close()
    assert lines(tmp_path) == [{"step": 0, "loss": 2.0}]
    assert [event.value for event in tensorboard(tmp_path).Scalars("other/loss")] == [2]


def test_logged_lines_survive_a_kill(tmp_path):
    pid = os.fork()
    if not pid:
        try:
            logger = Logger(tmp_path, ["jsonl"])
            for step in range(10**9):
                logger.write(step, {f"name{i}": step + i for i in range(30)})
        finally:
            os._exit(1)
    path = tmp_path / "metrics.jsonl"
    while not path.exists() or path.stat().st_size < 50000:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    entries = lines(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(len(entries)))
    assert all(len(entry) == 31 for entry in entries)


# TensorBoard


@pytest.fixture
def config():
    return load_config(["--configs", "dmc_vision", "--kl_free", "2.5", "--eval_tasks", "a", "b"])


@pytest.fixture
def events(config, tmp_path):
    logger = Logger(tmp_path)
    logger.begin(config.flat(), 0, 0)
    logger.write(10, {"eval_return": 5})
    logger.close()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # no second run
    return tensorboard(tmp_path)


def content(events, tag) -> HParamsPluginData:
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def test_hparams_are_the_settings_and_the_metric_is_a_scalar_of_the_run(config, events):
    metrics = content(events, "_hparams_/experiment").experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["episode/eval_return"]
    assert [event.value for event in events.Scalars("episode/eval_return")] == [5]
    found = content(events, "_hparams_/session_start_info").session_start_info.hparams
    flat = config.flat()
    assert set(found) == set(flat)
    assert found["kl_free"].number_value == 2.5 and found["encoder.cnn_depth"].number_value == 32
    assert found["hybrid"].string_value == "True" and found["task"].string_value == flat["task"]
    assert found["eval_tasks"].string_value == "a b"


def test_the_config_is_logged_as_text(config, events):
    (event,) = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    for name, value in config.flat().items():
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        assert f"| {name} | {shown} |" in text


def test_returns_are_the_first_of_few_groups():
    """Of every number that a run in results/ has logged, and of some others."""
    names = set("train_success eval_return/dmc_walker_walk_color_hard eval_success/a probe_loss expl_EMA_005".split())
    for path in (ROOT / "results").rglob("metrics.jsonl"):
        for line in path.read_text().splitlines():
            names |= json.loads(line).keys()
    tags = sorted(map(logs.grouped, names - {"step"}))
    assert re.match(r"episode/(train|eval)_return", tags[0])
    groups = {tag.partition("/")[0] for tag in tags}
    assert groups == {"episode", "grad", "imagination", "latent", "loss", "other", "progress"}
    assert [tag for tag in tags if tag.startswith("other/")] == ["other/simsr_reward_out_of_range"]
    for name in names - {"step"}:
        assert logs.grouped(name).startswith("loss/") == name.endswith("_loss")


def test_events_beyond_the_checkpoint_are_removed(tmp_path, config):
    """TensorBoard's page shows every event that is in the files, in whatever order."""
    logger = Logger(tmp_path)
    logger.begin(config.flat(), 0, 0)
    for step in (100, 200, 300, 400):
        logger.write(step, {"a_loss": step}, {"clip": np.zeros((2, 8, 8, 3), np.uint8)})
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 150, "lo')
    (path,) = tmp_path.glob("events*")
    path.write_bytes(path.read_bytes() + path.read_bytes()[:50])  # a killed writer leaves half a record
    logger = Logger(tmp_path, resume_step=200)
    assert [entry["step"] for entry in lines(tmp_path)] == [100, 200]
    assert len(tensorboard(path).Tensors("config/text_summary")) == 1
    assert [event.step for event in tensorboard(path).Scalars("loss/a_loss")] == [100, 200]
    logger.write(300, {"a_loss": -3})
    logger.close()
    assert [(entry["step"], entry["a_loss"]) for entry in lines(tmp_path)] == [(100, 100), (200, 200), (300, -3)]
    events = tensorboard(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/a_loss")] == [(100, 100), (200, 200), (300, -3)]
    assert [image.step for image in events.Images("video/clip")] == [100, 200]
    assert not list(tmp_path.glob(".*"))


def test_event_files_of_torch_are_cut_too(tmp_path):
    """Runs of earlier versions have them."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path), purge_step=0)
    for step in (100, 200, 300):
        writer.add_scalar("loss", step, step)
    writer.close()
    Logger(tmp_path, resume_step=200).close()
    assert [event.step for event in tensorboard(tmp_path).Scalars("loss")] == [100, 200]


def test_a_video_of_a_whole_episode_is_small_and_as_long():
    clouds = make_source("clouds", (64, 64), cache="")
    frames = np.stack([clouds.next() for _ in range(501)])
    frames[:, 20:40, 20:40] = (200, 60, 30)
    content = video.encode_gif(frames, max_frames=128)
    assert len(content) < 500_000  # 2.6 MB with all frames in all colors
    gif = Image.open(io.BytesIO(content))
    assert gif.n_frames == 126 and gif.info["loop"] == 0
    seconds = 0
    for t in range(gif.n_frames):
        gif.seek(t)
        seconds += gif.info["duration"] / 1000
        shown = np.asarray(gif.convert("RGB")).astype(int)
        assert np.abs(shown - frames[4 * t]).mean() < 4 and np.abs(shown - frames[4 * t]).max() < 30
    assert seconds == pytest.approx(501 / 20, abs=0.2)


def test_video_is_a_moving_gif(tmp_path):
    frames = np.zeros((2, 5, 16, 24, 3), np.uint8)  # (B, T, H, W, 3)
    frames[0, :, :, :, 0] = 40 * np.arange(5, dtype=np.uint8)[:, None, None]
    frames[1, :, :, :, 2] = 200
    logger = Logger(tmp_path)
    logger.write(500, {}, {"eval_video": frames, "single": frames[0]})
    logger.close()
    assert not (tmp_path / "metrics.jsonl").read_text()
    events = tensorboard(tmp_path)
    (event,) = events.Images("video/eval_video")
    assert (event.step, event.width, event.height) == (500, 48, 16)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 5, 0)
    for t in range(5):
        gif.seek(t)
        shown = np.asarray(gif.convert("RGB"))
        assert abs(int(shown[8, 12, 0]) - 40 * t) <= 4 and abs(int(shown[8, 36, 2]) - 200) <= 4
    assert events.Images("video/single")[0].width == 24
    with pytest.raises(ValueError, match="video x: float64"):
        logger.write(600, {}, {"x": frames / 255})


# wandb


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (-1, 100):
        logger = Logger(tmp_path, ["jsonl", "wandb"], resume_step=step)
        logger.begin({"task": "a", "size": [64, 64]}, max(step, 0), 0)
        logger.write(200, {"eval_return": 1}, {"clip": np.zeros((2, 8, 8, 3), np.uint8)})
        logger.close()
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs == [(tmp_path / "wandb_id").read_text()] * len(runs) and runs


# The terminal


def test_start_of_the_logger_is_silent(tmp_path):
    code = "import sys; from run import logs; logs.Logger(sys.argv[1]).close()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_messages_go_to_stdout_and_warnings_to_stderr(capsys):
    logs.log.info("a line")
    logs.log.warning("something is wrong")
    assert capsys.readouterr() == ("a line\n", "something is wrong\n")


def console(tmp_path, total, step=0, updates=0):
    logger = Logger(tmp_path, ["console"])
    logger.begin({"steps": total}, step, updates)
    return logger


def test_progress_is_one_short_line_where_there_is_no_terminal(tmp_path, capsys):
    logger = console(tmp_path, 1000, 100)
    logger.progress(100, 0)
    logger.write(100, {"update_count": 0})
    logger.progress(200, 5)
    logger.write(300, {"train_return": 12.34})
    logger.progress(550, 20)
    logger.write(550, {"model_loss": 1.23456, "kl": 3, "update_count": 20})
    logger.close()
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert err == "" and first == "step 100/1000 (10.0%), 0.00 updates/s"
    assert second.startswith("step 550/1000 (55.0%), model_loss 1.235, train_return 12.3, ")
    assert second.endswith("0:00:00 left")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_is_a_line_for_each_task(tmp_path, capsys):
    scores = {"return": 3.21, "length": 50, "return_std": 0.5, "episodes": 4}
    row = {f"eval_{name}{task}": value for task in ("", "/dmc_a/b") for name, value in scores.items()}
    console(tmp_path, 1000).write(600, row)
    assert capsys.readouterr().out.splitlines() == [
        "step 600: eval_return 3.2 ± 0.5 (4 episodes)",
        "step 600: eval_return/dmc_a/b 3.2 ± 0.5 (4 episodes)",
    ]


def test_progress_tells_the_speed_of_late(tmp_path, capsys, monkeypatch):
    """Compilation at the start is forgotten."""
    now = 0.0
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now)
    logger = console(tmp_path, 10000)
    for row in range(1, 9):
        now += 1000 if row == 1 else 10
        logger.progress(100 * row, 50 * row)
        logger.write(100 * row, {"update_count": 50 * row})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("0.05 updates/s, 27:30:00 left") and last.endswith("5.00 updates/s, 0:15:20 left")


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    code = """if True:
        from run import logs
        logger = logs.Logger(".", ["console"])
        logger.begin({"steps": 1000}, 100, 0)
        logger.write(600, {"train_return": 12.34})
        logger.progress(600, 10)
        logger.write(600, {"model_loss": 1, "update_count": 10})
        logger.progress(1000, 20)
        logger.close()
    """
    primary, secondary = pty.openpty()  # a terminal of unknown width, as in a container
    done = subprocess.Popen(
        [sys.executable, "-c", code], stderr=secondary, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )  # fmt: skip
    out, _ = done.communicate(timeout=900)
    os.close(secondary)
    shown = b""
    while True:
        try:
            shown += os.read(primary, 65536)
        except OSError:  # the terminal is gone
            break
    os.close(primary)
    text = shown.decode()
    assert done.returncode == 0 and out.startswith("step 600/1000 (60.0%), model_loss 1, ") and out.count("\n") == 1
    assert "100%" in text and "1000/1000" in text and "train_return 12.3" in text and "updates/s" in text
    assert "step 600/1000" not in text


# The setting


def test_a_writer_that_does_not_exist_is_one_line():
    with pytest.raises(ValueError, match="--loggers tensorbord: choose from jsonl, tensorboard, console, wandb"):
        logs.check_loggers(["jsonl", "tensorbord"])
    logs.check_loggers(load_config([]).loggers)


def test_rows_at_the_step_of_a_checkpoint_are_not_doubled_in_tensorboard(tmp_path):
    log = Logger(tmp_path)
    log.write(10, {"train_return": 1.0})
    lines = log.lines  # a checkpoint of step 10; then the run is killed
    log.write(10, {"kl": 2.0})
    log.close()
    log = Logger(tmp_path, resume_step=10, resume_lines=lines)
    log.write(10, {"kl": 2.0})
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("latent/kl")] == [2.0]
    assert [event.value for event in events.Scalars("episode/train_return")] == [1.0]
