"""Logs, checkpoints, random states, metrics, signals."""

import io
import json
import math
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tools
from run import checkpoint, logs, process
from run.logs import Logger, Progress
from run.process import Interrupt
from tools import Metrics

ROOT = Path(tools.__file__).parent


# Checkpoints


def test_checkpoint_restores_everything_that_it_may_hold(tmp_path):
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters(), foreach=True)
    net(torch.ones(3)).sum().backward()
    adam.step()
    state = {
        "net": net.state_dict(),
        "adam": adam.state_dict(),
        "rng": process.rng_state(draws=np.random.default_rng(3)),
        "nested": {"list": [1, 2.5, "a", None, True, [(("key", 0, 4),)]], 7: "number as key"},
    }
    path = tmp_path / "run" / "latest.pt"
    checkpoint.save_checkpoint(path, state)
    read = checkpoint.load_checkpoint(path)
    assert read["nested"] == state["nested"] and read["rng"]["generators"] == state["rng"]["generators"]
    for key, value in state["net"].items():
        assert torch.equal(read["net"][key], value)
    torch.optim.AdamW(net.parameters(), foreach=True).load_state_dict(read["adam"])
    assert [entry.name for entry in path.parent.iterdir()] == ["latest.pt"]


@pytest.mark.parametrize("value", [np.float32(1), np.zeros(3), {1, 2}, torch.float32, Path("a"), object()])
def test_contents_that_could_not_be_loaded_are_not_saved(tmp_path, value):
    path = tmp_path / "latest.pt"
    checkpoint.save_checkpoint(path, {"a": 1})
    with pytest.raises(TypeError, match=r"checkpoint\['deep'\]\[1\] is a "):
        checkpoint.save_checkpoint(path, {"deep": [0, value]})
    assert checkpoint.load_checkpoint(path) == {"a": 1}


@pytest.mark.parametrize("how", ["empty", "half", "zeros", "text"])
def test_damaged_checkpoint_is_one_line(tmp_path, how):
    path = tmp_path / "latest.pt"
    checkpoint.save_checkpoint(path, {"a": torch.arange(1000)})
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data)), "text": b"hello"}[how])
    with pytest.raises(ValueError, match=r"latest.pt is damaged or not a checkpoint \(.*\)") as caught:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/run",)

    torch.save({"a": Evil()}, tmp_path / "latest.pt")
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        checkpoint.load_checkpoint(tmp_path / "latest.pt")
    assert not (tmp_path / "run").exists()


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load_checkpoint(tmp_path / "latest.pt")


def test_failed_save_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "latest.pt"
    checkpoint.save_checkpoint(path, {"a": 1})
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            checkpoint.save_checkpoint(path, {"a": torch.zeros(10000)})
        except (OSError, RuntimeError):
            status = 7
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert checkpoint.load_checkpoint(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest.pt"]


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """A real writer, killed for real: the file is that of one save, never less, never older than what was there."""
    path = tmp_path / "latest.pt"
    kill_after = random.Random(1)
    newest = -1
    checkpoint.save_checkpoint(path, {"count": newest, "tensor": torch.full((1000, 1000), -1.0)})
    for _ in range(10):
        pid = os.fork()
        if not pid:
            try:
                torch.set_num_threads(1)
                for count in range(newest + 1, 10**6):
                    tensor = torch.from_numpy(np.full(10**6, count))
                    checkpoint.save_checkpoint(path, {"count": count, "tensor": tensor})
            finally:
                os._exit(1)
        started, reads = path.stat().st_ino, 0
        while path.stat().st_ino == started or reads < 8:  # a concurrent reader sees a complete file, too
            state = checkpoint.load_checkpoint(path)
            assert (state["tensor"] == state["count"]).all()
            reads += 1
        time.sleep(kill_after.uniform(0, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        state = checkpoint.load_checkpoint(path)
        assert state["count"] > newest and (state["tensor"] == state["count"]).all()
        newest = state["count"]
        assert len(list(tmp_path.iterdir())) <= 2  # at most one temporary file, which the next save overwrites


# Learning


@pytest.mark.parametrize("clip, decay", [(0.5, 0.0), (1e9, 0.0), (0, 0.0), (0.5, 0.1)])
def test_optimizer_clips_over_all_its_parameters_and_moves_no_others(clip, decay):
    torch.manual_seed(0)
    params = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    unused, other = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    copies = [param.detach().double() for param in params]
    optimizer = tools.Optimizer([*params, unused], lr=0.1, eps=1e-3, clip=clip, weight_decay=decay)
    first, second = ([torch.zeros_like(copy) for copy in copies] for _ in range(2))
    for step in range(1, 4):
        grads = [2 * step * copy for copy in copies]
        norm = sum(grad.square().sum() for grad in grads).sqrt()
        loss = other * step * sum(param.square().sum() for param in params)
        assert optimizer.step(loss).item() == pytest.approx(norm.item(), rel=1e-5)
        scale = min(1.0, clip / norm.item()) if clip else 1.0
        for copy, grad, m, v in zip(copies, grads, first, second, strict=True):
            m += 0.1 * (scale * grad - m)
            v += 0.001 * ((scale * grad) ** 2 - v)
            copy *= 1 - 0.1 * decay
            copy -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-3)
        for param, copy in zip(params, copies, strict=True):
            torch.testing.assert_close(param.detach().double(), copy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unused.detach(), torch.ones(2) * (1 - 0.1 * decay) ** 3)
    assert other.grad is None and other.item() == 1


def test_ema_moves_each_parameter_by_the_rate():
    target, online = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    expected = [0.95 * mine.detach() + 0.05 * theirs.detach() for mine, theirs in pairs]
    before = [param.detach().clone() for param in online.parameters()]
    tools.ema(target, online, 0.05)
    torch.testing.assert_close([param.detach() for param in target.parameters()], expected)
    assert all(torch.equal(a, b) for a, b in zip(before, online.parameters(), strict=True))


def test_missing_device():
    assert process.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert process.pick_device("cpu") == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(ValueError, match=f"--device {name}: expected auto, cpu, cuda or cuda:N"):
            process.pick_device(name)
    with pytest.raises(ValueError, match=r"--device cuda:99: this machine has \d+ GPUs"):
        process.pick_device("cuda:99")


# Random states


def test_random_state_repeats_every_generator(tmp_path):
    process.seed_everything(3, deterministic=True)
    generator = np.random.default_rng(5)
    generator.integers(10)  # leaves half a word in the generator

    def draw():
        drawn = generator.integers(9, size=5).tolist()
        return torch.randn(3).tolist(), random.random(), np.random.randn(3).tolist(), drawn

    state = process.rng_state(draws=generator)
    checkpoint.save_checkpoint(tmp_path / "a.pt", state)
    first = draw()
    assert draw() != first
    process.set_rng_state(checkpoint.load_checkpoint(tmp_path / "a.pt"), draws=generator)
    assert draw() == first
    process.seed_everything(3, deterministic=True)
    seeded = draw()[:3]
    process.seed_everything(3, deterministic=False)
    assert draw()[:3] == seeded
    process.seed_everything(4, deterministic=False)
    assert draw()[:3] != seeded
    assert not torch.are_deterministic_algorithms_enabled()


# Metrics


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), min_size=1, max_size=20))
def test_metrics_are_means_over_the_updates_that_have_them(values):
    metrics = Metrics()
    for value, extra in values:
        entry = {"loss": torch.tensor(value), "ratio": value}
        if extra:
            entry["extra"] = torch.tensor([value * 2])
        metrics.update(entry)
    result = metrics.result()
    mean = math.fsum(value for value, _ in values) / len(values)
    assert result["loss"] == pytest.approx(mean, abs=1e-9) and result["ratio"] == pytest.approx(mean, abs=1e-9)
    extras = [2 * value for value, extra in values if extra]
    assert ("extra" in result) == bool(extras)
    if extras:
        assert result["extra"] == pytest.approx(math.fsum(extras) / len(extras), abs=1e-9)
    assert metrics.result() == {}


def test_metrics_do_not_see_a_tensor_change_later():
    """A captured graph writes each update's scalars to the same memory."""
    metrics, loss = Metrics(), torch.tensor(1.0, requires_grad=True)
    metrics.update({"loss": loss})
    with torch.no_grad():
        loss.fill_(5)
    metrics.update({"loss": loss})
    assert metrics.result() == {"loss": 3.0}


def test_metrics_of_many_updates_stay_exact():
    metrics, value = Metrics(), torch.tensor(0.1)
    for _ in range(5000):
        metrics.update({"loss": value})
    assert metrics.result()["loss"] == pytest.approx(float(value), rel=1e-12)


def test_metrics_resume_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    updates = [{"loss": torch.randn(()), "kl": torch.randn(()), "n": random.random()} for _ in range(20)]
    whole, first, second = Metrics(), Metrics(), Metrics()
    for update in updates:
        whole.update(update)
    for update in updates[:13]:
        first.update(update)
    state = first.state_dict()
    first.update(updates[0])  # the state is a copy
    checkpoint.save_checkpoint(tmp_path / "a.pt", state)
    second.load_state_dict(checkpoint.load_checkpoint(tmp_path / "a.pt"))
    for update in updates[13:]:
        second.update(update)
    assert second.result() == whole.result()


# Signals


def test_interrupt_sets_a_flag_and_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert interrupt.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        assert interrupt.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Logs


def lines(path):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=no_constant) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensorboard(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_a_checkpoint_that_does_not_fit_is_an_error_of_the_disk(tmp_path):
    """Wherever within the file the disk is full."""
    path, state = tmp_path / "latest.pt", {"a": torch.zeros(3000), "b": [torch.ones(50)] * 3, "c": "text"}
    checkpoint.save_checkpoint(path, state)
    size, before = path.stat().st_size, path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 100, *range(500, size, 997), size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError):
                checkpoint.save_checkpoint(path, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_logger_writes_json_lines_and_tensorboard(tmp_path, capsys):
    logger = Logger(tmp_path)
    logger.scalar("train_return", 12.5)
    logger.scalars({"model_loss": torch.tensor(0.1), "kl": np.float32(2), "bad": float("nan"), "worse": -math.inf})
    logger.text("config", "steps: 3")
    logger.write(200)
    logger.write(300)  # nothing to write
    logger.scalar("train_return", 1)
    logger.write(400, fps=True)
    logger.scalar("train_return", 2)
    logger.write(600, fps=True, updates=7)
    logger.close()
    first, second, third = lines(tmp_path)
    assert list(first) == ["step", "train_return", "model_loss", "kl", "bad", "worse"]
    assert (first["step"], first["train_return"], first["bad"], first["worse"]) == (200, 12.5, None, None)
    assert first["model_loss"] == float(torch.tensor(0.1))  # bit for bit
    assert second == {"step": 400, "train_return": 1.0}
    assert third["fps"] > 0 and third["updates_per_second"] > 0 and set(third) - set(second) == set(Logger.TIMED)
    assert capsys.readouterr() == ("", "")
    events = tensorboard(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train_return")] == [(200, 12.5), (400, 1), (600, 2)]
    assert b"steps: 3" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert len(list(tmp_path.iterdir())) == 2


def test_logger_resumes_where_the_checkpoint_was(tmp_path):
    logger = Logger(tmp_path)
    for step in (100, 200, 300, 400):
        logger.scalar("loss", step)
        logger.write(step)
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 150, "lo')
    logger = Logger(tmp_path, resume_step=200)
    assert [entry["step"] for entry in lines(tmp_path)] == [100, 200]
    logger.scalar("loss", -3)
    logger.write(300)
    logger.close()
    assert [(entry["step"], entry["loss"]) for entry in lines(tmp_path)] == [(100, 100), (200, 200), (300, -3)]
    events = tensorboard(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(100, 100), (200, 200), (300, -3)]
    assert not list(tmp_path.glob(".*"))


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
        logger.scalar("loss", value)
        logger.write(0)
        logger.close()
    assert lines(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_logged_lines_survive_a_kill(tmp_path):
    pid = os.fork()
    if not pid:
        try:
            logger = Logger(tmp_path)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            for step in range(10**9):
                logger.scalars({f"name{i}": step + i for i in range(30)})
                logger.write(step)
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


def test_video_is_a_moving_gif(tmp_path):
    frames = np.zeros((2, 5, 16, 24, 3), np.uint8)  # (B, T, H, W, 3)
    frames[0, :, :, :, 0] = 40 * np.arange(5, dtype=np.uint8)[:, None, None]
    frames[1, :, :, :, 2] = 200
    logger = Logger(tmp_path)
    logger.video("eval_video", frames)
    logger.video("single", frames[0])
    logger.write(500)
    logger.close()
    assert not (tmp_path / "metrics.jsonl").read_text()
    events = tensorboard(tmp_path)
    (event,) = events.Images("eval_video")
    assert (event.step, event.width, event.height) == (500, 48, 16)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 5, 0)
    for t in range(5):
        gif.seek(t)
        shown = np.asarray(gif.convert("RGB"))
        assert abs(int(shown[8, 12, 0]) - 40 * t) <= 4 and abs(int(shown[8, 36, 2]) - 200) <= 4
    assert events.Images("single")[0].width == 24
    with pytest.raises(ValueError, match="video x: float64"):
        logger.video("x", frames / 255)


def test_start_of_the_logger_is_silent(tmp_path):
    code = "import sys; from run import logs; logs.Logger(sys.argv[1]).close()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_progress_is_one_short_line_where_there_is_no_terminal(capsys):
    progress = Progress(1000, 100)
    progress.report({})
    progress.update(200, 5)
    progress.update(300, 10, 12.34)
    progress.update(550, 20)
    progress.report({"some_loss": 1.23456})
    progress.close()
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert err == "" and first == "step 100/1000 (10.0%), 0.00 updates/s"
    assert second.startswith("step 550/1000 (55.0%), some_loss 1.235, train_return 12.3, ")
    assert second.endswith("0:00:00 left")


def test_progress_tells_the_speed_of_late(capsys, monkeypatch):
    """Compilation at the start is forgotten."""
    now = 0.0
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now)
    progress = Progress(10000)
    progress.update(0, 0)
    for row in range(1, 9):
        now += 1000 if row == 1 else 10
        progress.update(100 * row, 50 * row)
        progress.report({})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith("0.05 updates/s, 27:30:00 left") and last.endswith("5.00 updates/s, 0:15:20 left")


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    code = """if True:
        from run import logs
        progress = logs.Progress(1000, 100)
        progress.update(600, 10, 12.34)
        progress.report({"loss": 1})
        progress.update(1000, 20)
        progress.close()
    """
    primary, secondary = pty.openpty()  # of unknown width, as in a container
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
    assert done.returncode == 0 and out.startswith("step 600/1000 (60.0%), loss 1, ") and out.count("\n") == 1
    assert "100%" in text and "1000/1000" in text and "train_return 12.3" in text and "updates/s" in text
    assert "step 600/1000" not in text
