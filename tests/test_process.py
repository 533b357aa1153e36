"""Signals, the device, random states."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import agents
import numpy as np
import pytest
import torch

from run import checkpoint, runtime
from run.process import Interrupt, available_memory


def test_missing_device():
    assert runtime.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.pick_device("cpu") == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(ValueError, match=f"--device {name}: expected auto, cpu, cuda or cuda:N"):
            runtime.pick_device(name)
    with pytest.raises(ValueError, match=r"--device cuda:99: this machine has \d+ GPUs"):
        runtime.pick_device("cuda:99")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_gpu_that_a_run_names_is_the_current_one():
    """A CUDA graph of another one's work would be empty: nothing would be learned."""
    with torch.cuda.device(0):
        runtime.set_up(agents.config("--device", "cuda:1"))
        assert torch.cuda.current_device() == 1


def test_random_state_repeats_every_generator(tmp_path):
    runtime.seed_everything(3, deterministic=True)
    generator = np.random.default_rng(5)
    generator.integers(10)  # leaves half a word in the generator

    def draw():
        drawn = generator.integers(9, size=5).tolist()
        return torch.randn(3).tolist(), random.random(), np.random.randn(3).tolist(), drawn

    state = runtime.rng_state(draws=generator)
    checkpoint.save_checkpoint(tmp_path / "a.pt", state)
    first = draw()
    assert draw() != first
    runtime.set_rng_state(checkpoint.load_checkpoint(tmp_path / "a.pt"), draws=generator)
    assert draw() == first
    runtime.seed_everything(3, deterministic=True)
    seeded = draw()[:3]
    runtime.seed_everything(3, deterministic=False)
    assert draw()[:3] == seeded
    runtime.seed_everything(4, deterministic=False)
    assert draw()[:3] != seeded
    assert not torch.are_deterministic_algorithms_enabled()


def test_interrupt_sets_a_flag_and_a_second_ctrl_c_interrupts(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
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


HALF_MADE = """
import os, signal, sys
from run.process import interrupt_quietly

class Env:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGINT)

    def __del__(self):
        raise AttributeError("half made")

signal.signal(signal.SIGINT, {handler})
try:
    Env()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("handler", ["interrupt_quietly", "signal.default_int_handler"])
def test_ctrl_c_while_an_env_is_made_prints_nothing(handler):
    command = [sys.executable, "-c", HALF_MADE.format(handler=handler)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert ("half made" in done.stderr) == (handler != "interrupt_quietly")
    assert done.stderr == "" or handler != "interrupt_quietly"


def test_available_memory_is_what_a_cgroup_leaves(tmp_path):
    machine = available_memory(tmp_path)  # no limit there
    assert 0 < machine <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "memory").mkdir()
    files = {"memory.max": "max", "memory.current": 300_000, "memory.stat": "anon 9\ninactive_file 100000\n"}
    for name, content in files.items():  # cgroup version 2
        (tmp_path / name).write_text(f"{content}\n")
    names = {"limit_in_bytes": "1000000", "usage_in_bytes": "300000", "stat": "cache 9\ntotal_inactive_file 100000\n"}
    for name, content in names.items():  # cgroup version 1
        (tmp_path / "memory" / f"memory.{name}").write_text(content)
    versions = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    if "memory" not in versions:
        assert available_memory(tmp_path) > 10**6
        (tmp_path / "memory.max").write_text("1000000\n")
    assert available_memory(tmp_path) == 800_000


def test_threads_that_will_wait_for_other_processes_are_reported():
    assert not runtime.crowding(threads=2, cores=2, load=0.3)
    assert not runtime.crowding(threads=1, cores=2, load=5)
    assert not runtime.crowding(threads=8, cores=16, load=6)
    line = runtime.crowding(threads=2, cores=2, load=1.1)
    assert "1.1 of 2 CPU cores" in line and "OMP_NUM_THREADS=1" in line
