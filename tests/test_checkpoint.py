"""Checkpoint files."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from run import checkpoint, runtime


def test_checkpoint_restores_everything_that_it_may_hold(tmp_path):
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(net.parameters(), foreach=True)
    net(torch.ones(3)).sum().backward()
    adam.step()
    state = {
        "net": net.state_dict(),
        "adam": adam.state_dict(),
        "rng": runtime.rng_state(draws=np.random.default_rng(3)),
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
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


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
        assert len(list(tmp_path.iterdir())) <= 2  # a kill leaves one temporary file, which the next save overwrites


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
