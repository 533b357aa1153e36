"""Training with several processes under torchrun: real ones, over gloo."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import agents
import pytest
import ranks
import torch
from test_dreamer import ROOT, VECTORS, entries, run, start, wait_for

import models
from run import checkpoint, distributed, episodes, runtime
from run.config import check_config

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SHORT = [*VECTORS, "--train_ratio", "2", "--eval_episode_num", "1", "--parallel", "False", "--steps", "480"]


start_ranks = functools.partial(start, launcher=TORCHRUN)
run_ranks = functools.partial(run, launcher=TORCHRUN)


def kill_rank(process: subprocess.Popen, rank: int) -> None:
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(int(pid), signal.SIGKILL)


# Computation


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Results of `ranks.py`, from one process and from each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [sys.executable], TORCHRUN
    processes = [subprocess.Popen([*c, str(ROOT / "tests" / "ranks.py"), str(folder)], env=env) for c in commands]
    assert [process.wait(600) for process in processes] == [0, 0]
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("0of1", "0of2", "1of2")]


@pytest.mark.parametrize("name", ranks.SETTINGS)
def test_two_ranks_match_one_process(computed, name):
    (metrics, before, after), (metrics_of_two, before_of_two, after_of_two), (*_, after_of_other) = (
        found["updates"][name] for found in computed
    )
    for number, (expected, found) in enumerate(zip(metrics, metrics_of_two, strict=True)):
        assert expected.keys() == found.keys()
        for key in expected:
            if not key.endswith("_std"):  # the mean of two standard deviations is not that of all rows
                assert found[key] == pytest.approx(expected[key], rel=5e-4, abs=1e-6), f"{key} of update {number}"
    changed = 0
    for key, value in before.items():
        assert torch.equal(before_of_two[key], value), key
        assert torch.equal(after_of_two[key], after_of_other[key]), f"{key} of rank 0 and of rank 1"
        change = torch.linalg.vector_norm((after[key] - value).float())
        assert torch.linalg.vector_norm((after_of_two[key] - after[key]).float()) <= 5e-4 * change, key
        changed += bool(change > 0)
    assert changed >= len(before) - 1  # one of them stays zero


def test_ranks_average_to_the_bisimulation_loss_of_the_batch(monkeypatch):
    """Each rank's rows against all columns, averaged, give loss and gradient of the whole batch."""
    torch.manual_seed(0)
    states, reward = torch.randn(4, 12, 5), torch.rand(12) * 2

    def loss(mine: slice) -> tuple[torch.Tensor, torch.Tensor]:
        def rows(x):
            return next(whole for whole in (*states, reward) if torch.equal(whole[mine], x))

        monkeypatch.setattr(distributed, "all_gather_rows", rows)
        online = states[0, mine].clone().requires_grad_()
        value = models.bisimulation_loss(online, *states[1:, mine], reward[mine], 0.9)
        return value.detach(), torch.autograd.grad(value, online)[0]

    value, grad = loss(slice(0, 12))
    values, grads = zip(loss(slice(0, 6)), loss(slice(6, 12)), strict=True)
    torch.testing.assert_close(sum(values) / 2, value)
    torch.testing.assert_close(torch.cat(grads) / 2, grad)


def test_errors_and_interrupts_reach_all_ranks(computed):
    one, first, second = computed
    assert one["errors"] == ["of rank 0", "of rank 0"] and one["agreed"] == [True, False, False]
    for rank in (first, second):
        assert rank["errors"] == ["of rank 0", "of rank 1"] and rank["agreed"] == [True, True, False]


def test_one_process_exchanges_nothing():
    tensor = torch.ones(2)
    assert torch.equal(distributed.all_gather_rows(tensor), tensor) and distributed.all_gather(3) == [3]
    learned = torch.ones(2, requires_grad=True)
    assert not distributed.all_gather_rows(learned).requires_grad
    assert distributed.all_gather_rows_with_gradient(learned).requires_grad
    assert distributed.any_rank(True) is True and distributed.any_rank(False) is False
    distributed.start(), distributed.average([tensor]), distributed.broadcast([tensor]), distributed.stop()
    assert torch.equal(tensor, torch.ones(2)) and not torch.distributed.is_initialized()


# Runs


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run by two processes."""
    logdir = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = run_ranks(*SHORT, "--parallel", "True", "--logdir", logdir)
    assert code == 0, err
    return logdir, out, err


def test_two_ranks_write_one_run(whole_run):
    logdir, out, _ = whole_run
    lines = entries(logdir)
    # two envs, one per rank, 30 agent steps per episode, 2 environment steps each
    assert [line["step"] for line in lines if "train_return" in line] == [120, 120, 240, 240, 360, 360, 480, 480]
    assert [line["train_episodes"] for line in lines if "train_episodes" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "eval_return" in line] == [400, 480]
    assert [line["replay_steps"] for line in lines if "replay_steps" in line] == [100, 200, 240]
    assert max(line.get("update_count", 0) for line in lines) == 3 + (240 - 40) // 16
    names = sorted(path.name for path in (logdir / "train_eps").iterdir())
    assert names == [f"{2 * n + env:08d}-env00{env}-{n:06d}-31.npz" for n in range(4) for env in range(2)]
    first = [episodes.read_episode(logdir / "train_eps" / name) for name in names[:2]]
    assert not (first[0]["position"][0] == first[1]["position"][0]).all()  # envs have their own seeds
    assert not (first[0]["action"] == first[1]["action"]).any(1)[1:].any()  # and ranks their own random numbers
    # one logger
    assert len(list(logdir.glob("events.out.tfevents.*"))) == 1
    assert sum(line.startswith("step ") for line in out.splitlines()) == 3 + 2  # rows of the log and of evaluations
    saved = checkpoint.load_checkpoint(logdir / "latest.pt")
    assert len(saved["ranks"]) == len(saved["sent"]) == 2 and saved["episode"] == [4, 4]


def test_stopped_ranks_resume_to_the_same_numbers(whole_run, tmp_path):
    logdir = tmp_path / "run"
    process = start_ranks(*SHORT, "--logdir", logdir)
    wait_for(logdir, 4, process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    out, err = process.communicate(timeout=600)
    assert "the same command resumes" in out, err
    stopped = entries(logdir)
    assert len(stopped) < len(entries(whole_run[0]))
    code, out, err = run_ranks(*SHORT, "--logdir", logdir)
    assert code == 0 and "resumed at step" in out, err
    assert entries(logdir) == entries(whole_run[0])


def test_a_killed_rank_ends_all_and_another_number_of_ranks_resumes(tmp_path):
    logdir = tmp_path / "run"
    assert run(*SHORT, "--steps", "200", "--logdir", logdir)[0] == 0
    process = start_ranks(*SHORT, "--steps", "100000", "--eval_every", "100000", "--logdir", logdir)
    wait_for(logdir, 11, process)  # it has its own checkpoint, and newer episodes
    kill_rank(process, 1)
    out, err = process.communicate(timeout=600)
    assert process.returncode not in (0, None), err
    assert "2 instead of 1" in out and "resumed at step 204 with" in out
    kept = {path.name: path.read_bytes() for path in (logdir / "train_eps").glob("*.npz")}
    steps = 60 * len(kept) + 200
    code, out, err = run(*SHORT, "--steps", steps, "--logdir", logdir)
    assert code == 0, err
    assert "1 instead of 2" in out
    found = re.search(r"resumed at step (\d+) with (\d+) episodes", out)
    assert int(found[1]) >= 60 * len(kept) and int(found[2]) == len(kept) + 2

    files = {path.name: path.read_bytes() for path in (logdir / "train_eps").glob("*.npz")}
    assert kept.items() <= files.items()
    names = [re.fullmatch(episodes.FILE_NAME, name) for name in sorted(files)]
    assert [int(name[1]) for name in names] == list(range(len(files)))
    for env in (0, 1):
        numbers = [int(name[3]) for name in names if int(name[2]) == env]
        assert numbers == list(range(len(numbers)))
    lines = entries(logdir)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert lines[-1]["step"] >= steps
    counted = [line["train_episodes"] for line in lines if "train_episodes" in line]
    assert counted == sorted(set(counted)) and counted[-1] == len(files)


def test_bad_settings_of_ranks_are_one_line(tmp_path):
    code, out, err = run_ranks(*SHORT, "--envs", "3", "--logdir", tmp_path / "run")
    ours = [line for line in err.splitlines() if line.startswith("dreamer.py:")]
    assert code != 0 and not out and len(ours) == 1, err
    assert "--envs is 3" in ours[0] and "2 processes" in ours[0]
    assert "Traceback" not in err[: err.index(ours[0])]
    for flags in (["--eval_only"], ["--batch_sise", "3"]):
        code, _, err = run_ranks(*flags, "--logdir", tmp_path / "run")
        ours = [line for line in err.splitlines() if line.startswith(("dreamer.py:", "error:"))]
        assert code != 0 and len(ours) == 1 and flags[0] in ours[0], err


def test_settings_and_devices_of_ranks(monkeypatch):
    """Without the processes, and on a machine with GPUs."""
    monkeypatch.setattr(distributed, "_size", 2)
    with pytest.raises(ValueError, match="--batch_size is 3"):
        check_config(agents.config("--envs", "2"))
    with pytest.raises(ValueError, match="auto, cuda or cpu"):
        runtime.pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="this machine has 1"):
        runtime.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.pick_device("cuda") == torch.device("cuda", 1)


LIMITED = """
import os, resource, runpy, sys
program, rank, limit, *flags = sys.argv[1:]
if os.environ["RANK"] == rank:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
sys.argv, sys.path[0] = [program, *flags], os.path.dirname(program)
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_rank_ends_all_with_its_message(rank, tmp_path):
    """Rank 0 cannot write a checkpoint, rank 1 no episode."""
    (tmp_path / "limited.py").write_text(LIMITED)
    logdir = tmp_path / "log"
    assert run_ranks(*SHORT, "--steps", "100", "--logdir", logdir)[0] == 0
    limit = 1000 if rank else (logdir / "latest.pt").stat().st_size // 2
    command = [*TORCHRUN, str(tmp_path / "limited.py"), str(ROOT / "dreamer.py"), str(rank), str(limit), *SHORT]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--logdir", str(logdir)], env=env, capture_output=True, text=True, timeout=200)
    ours = [line for line in done.stderr.splitlines() if line.startswith("dreamer.py:")]
    file = "env001-000000-31.npz" if rank else "latest.pt"
    assert done.returncode != 0 and sum(file in line or str(logdir) in line for line in ours) == 1, done.stderr
    assert run_ranks(*SHORT, "--steps", "200", "--logdir", logdir)[0] == 0
