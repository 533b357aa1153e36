"""Failures around a run: signals, dead workers, full disks, lost or damaged files, divergence. Nothing is lost
or wrong silently, and an error that a user can fix is one line."""

import fcntl
import functools
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dreamer import HERE, PYTHON, ROOT, VECTORS, entries, main, run, start, wait_for, workers

import dreamer
from run import checkpoint, collect, logs
from run.config import Config, read_config, save_config
from run.episodes import read_episode
from run.replay import bytes_needed
from run.trainer import Trainer, TrainingError

pytestmark = pytest.mark.slow

PLAIN = [*HERE, "--compile", "False"]
SHORT = [*VECTORS, *PLAIN, "--steps", "480", "--eval_episode_num", "1", "--train_ratio", "8"]


def one_line(err: str) -> str:
    (line,) = err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 480 steps, 8 episodes, with checkpoints at 200, 400 and 480."""
    logdir = tmp_path_factory.mktemp("finished") / "run"
    assert main(*SHORT, "--logdir", logdir) == 0
    return logdir


@pytest.fixture
def logdir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# Checkpoints


def update_count(logdir: Path) -> int:
    return int(max(line.get("update_count", 0) for line in entries(logdir)))


def test_updates_are_redone_without_a_checkpoint(logdir, capsys):
    before = entries(logdir)
    updates, first = update_count(logdir), checkpoint.load_checkpoint(logdir / "latest.pt")
    (logdir / "eval.jsonl").write_text("{}\n")
    for name in ("latest.pt", "previous.pt"):
        (logdir / name).unlink()
    assert main(*SHORT, "--logdir", logdir) == 0
    assert not (logdir / "eval.jsonl").exists() and (logdir / "eval.jsonl.old").read_text() == "{}\n"  # agent is gone
    out = capsys.readouterr().out
    assert f"updates lost with the last checkpoint are due: {updates}" in out and "nothing" not in out
    assert f"; the last {before[-1]['step']} steps are newer than the checkpoint" in out
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    assert state["updates"] == update_count(logdir) == updates == 3 + (240 - 40) // 4 == first["updates"]
    episodes = [line for line in before if "train_return" in line]
    assert [line for line in entries(logdir) if "train_return" in line] == episodes
    assert sum("eval_return" in line for line in entries(logdir)) == 1  # the current agent's


def test_many_lost_updates_are_logged_and_saved_in_parts_and_can_be_interrupted(logdir):
    for name in ("latest.pt", "previous.pt", "metrics.jsonl"):
        (logdir / name).unlink()
    flags = [*SHORT, "--checkpoint_every", "40", "--logdir", logdir]  # 5 updates per checkpoint
    process = start(*flags)
    wait_for(logdir, 8 + 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "the same command resumes" in out, err
    assert 0 < checkpoint.load_checkpoint(logdir / "latest.pt")["updates"] < 53
    code, out, err = run(*flags)
    assert code == 0, err
    counts = [line["update_count"] for line in entries(logdir) if "update_count" in line]
    assert counts == sorted(set(counts)) and counts[-1] == 53 and len(counts) >= 10


def flip_a_bit(path: Path) -> None:
    """In the values of a checkpoint's largest tensor; a bit between two of them may change nothing."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    lengths = data[record.header_offset + 26 : record.header_offset + 30]  # name and padding
    start = record.header_offset + 30 + sum(struct.unpack("<HH", lengths))
    data[start + record.file_size // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "cut", "text", "missing"])
def test_the_previous_checkpoint_is_used_if_the_last_is_damaged(logdir, how, capsys):
    before, updates = entries(logdir), update_count(logdir)
    path = logdir / "latest.pt"
    if how == "flip":
        flip_a_bit(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "text":
        path.write_text("hello")
    else:
        path.unlink()
    assert main(*SHORT, "--logdir", logdir) == 0
    out = capsys.readouterr().out
    assert f"resumed from {logdir / 'previous.pt'}" in out
    assert ("is missing" if how == "missing" else "is damaged") in out
    assert (logdir / "latest.pt.damaged").exists() == (how != "missing")
    assert update_count(logdir) == updates
    assert [x for x in entries(logdir) if "train_return" in x] == [x for x in before if "train_return" in x]
    assert checkpoint.load_checkpoint(path)["step"] == 240


def test_only_damaged_checkpoints_are_one_line(logdir, capsys):
    flip_a_bit(logdir / "latest.pt")
    flip_a_bit(logdir / "previous.pt")
    assert main(*SHORT, "--logdir", logdir) == 2
    assert "previous.pt is damaged" in one_line(capsys.readouterr().err.replace("\n\n", "\n"))


@pytest.mark.parametrize(
    "content, words", [({"a": 1}, "not a checkpoint of a run"), ([1, 2], "it holds a list"), (None, "is damaged")]
)
def test_foreign_contents_are_one_line(logdir, content, words, capsys):
    (logdir / "previous.pt").unlink()
    torch.save(content, logdir / "latest.pt")
    assert main(*SHORT, "--logdir", logdir) == 2
    assert words in one_line(capsys.readouterr().err)


def without(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def other_moments(state):
    moments = state["agent"]["optimizers"]["actor"]["state"]
    moments[0], moments[1] = moments[1], moments[0]


@pytest.mark.parametrize(
    "change, words",
    [
        (without("agent", "agent"), "KeyError: 'agent'"),
        (without("agent", "optimizers", "value"), "KeyError: 'value'"),
        (without("agent", "optimizers", "value", "state", 0, "exp_avg"), "KeyError: 'exp_avg'"),
        (without("done_at", "eval"), "KeyError: 'eval'"),
        (without("ranks", 0, "batches"), "KeyError: 'batches'"),
        (without("ranks", 0, "batches", "pending"), "KeyError: 'pending'"),
        (without("replay", "order"), "KeyError: 'order'"),
        (without("episode"), "KeyError: 'episode'"),
        (lambda state: state.update(step={"a": 1}), "TypeError: its step is a dict"),
        (lambda state: state.update(lines="3"), "TypeError: its lines is a str"),
        (lambda state: state["replay"].update(order=[]), "TypeError: int()"),
        (without("policy", "action"), "KeyError: 'action'"),
        (lambda state: state["policy"].update(deter=state["policy"]["action"]), "its policy state has another deter"),
        (other_moments, "optimizer actor has moments of other shapes"),
    ],
)
def test_a_checkpoint_of_another_layout_is_one_line(logdir, change, words, capsys):
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    change(state)
    checkpoint.save_checkpoint(logdir / "latest.pt", state)
    assert main(*SHORT, "--logdir", logdir) == 2
    line = one_line(capsys.readouterr().err)
    assert f"{logdir / 'latest.pt'} has another layout" in line and words in line


@pytest.mark.parametrize("name", ["latest.pt", "metrics.jsonl", "config.yaml"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(logdir, name, capsys):
    (logdir / name).unlink()
    (logdir / "previous.pt").unlink()
    os.mkfifo(logdir / name)
    assert main(*SHORT, "--logdir", logdir) == 2
    line = one_line(capsys.readouterr().err)
    assert str(logdir / name) in line and "not a regular file" in line


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--units", "24"], ["latest.pt does not fit", "(24", "(16"]),
        (["--envs", "3"], ["--envs is 3", "a run with 2"]),
        (["--task", "dmc_walker_walk"], ["latest.pt does not fit", "dmc_walker_walk"]),
    ],
)
def test_a_config_change_that_does_not_fit_the_checkpoint_is_one_line(logdir, flags, words, capsys):
    assert main(*SHORT, *flags, "--allow_config_change", "True", "--logdir", logdir) == 2
    line = one_line(capsys.readouterr().err)
    assert all(word in line for word in words), line


def test_a_changed_learning_rate_is_that_of_the_resumed_run(logdir):
    flags = ["--model_lr", "2e-4", "--allow_config_change", "True", "--steps", "520"]
    assert main(*SHORT, *flags, "--logdir", logdir) == 0
    state = checkpoint.load_checkpoint(logdir / "latest.pt")["agent"]["optimizers"]
    assert state["model"]["param_groups"][0]["lr"] == 2e-4 and state["actor"]["param_groups"][0]["lr"] == 3e-5


@pytest.mark.parametrize("ratio", [2, 32])
def test_a_changed_train_ratio_holds_from_then_on(ratio, logdir):
    before = update_count(logdir)
    flags = [*SHORT, "--train_ratio", ratio, "--allow_config_change", "True", "--log_every", "40", "--eval_every", "0"]
    for steps in (560, 640):  # resumed twice
        assert main(*flags, "--steps", steps, "--logdir", logdir) == 0
    counts = {line["step"]: line["update_count"] for line in entries(logdir) if "update_count" in line}
    for step in (520, 560, 600, 640):
        assert counts[step] == before + int((step - 480) / 2 * ratio / (4 * 8))


def test_what_cannot_change_is_refused_by_name(logdir, capsys):
    rows = (logdir / "metrics.jsonl").read_bytes()
    assert main(*SHORT, "--action_repeat", "4", "--allow_config_change", "True", "--logdir", logdir) == 2
    assert "--action_repeat is 4" in one_line(capsys.readouterr().err)
    assert (logdir / "metrics.jsonl").read_bytes() == rows


def test_episodes_that_were_moved_away_are_one_line(logdir, capsys):
    shutil.copytree(logdir / "train_eps", logdir / "elsewhere")
    for path in (logdir / "train_eps").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert main(*SHORT, "--steps", "600", "--logdir", logdir) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "train_eps holds no episode" in last and "(8 are damaged: *.npz.damaged)" in last
    shutil.rmtree(logdir / "train_eps")
    assert main(*SHORT, "--steps", "600", "--logdir", logdir) == 2
    assert "train_eps holds no episode" in one_line(capsys.readouterr().err)


# What a run needs


def test_a_command_without_a_task_asks_for_one_or_resumes_that_of_the_folder(logdir, tmp_path, capsys):
    flags = [*SHORT, "--logdir"]
    at = flags.index("--task")
    del flags[at : at + 2]
    assert main(*flags, tmp_path / "new") == 2
    assert "--task is missing: name one" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert main(*flags, logdir) == 0
    assert "resumed at step 480" in capsys.readouterr().out


def test_what_a_run_needs_is_logged_and_compared_with_the_machine(logdir, capsys):
    config = dreamer.load_config([*SHORT, "--eval_envs", "3", "--eval_episode_num", "5", "--logdir", str(logdir)])
    group = collect.make_train_envs(config)
    trainer = Trainer(config, logdir, dreamer.build(config, group), group)
    capsys.readouterr()

    def needs(**settings) -> tuple[float, float, int, str]:
        trainer.config = config.replace(**settings)
        trainer.log_needs()
        out, err = capsys.readouterr()
        units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
        memory, disk = (float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([kMGTP]?B)", out))
        return memory, disk, int(re.search(r"(\d+) env processes", out)[1]), err

    try:
        memory, disk, processes, err = needs()
        assert not err and processes == 0
        rows = [read_episode(path) for path in (logdir / "train_eps").glob("*.npz")]
        steps, held = sum(len(row["reward"]) - 1 for row in rows), sum(a.nbytes for row in rows for a in row.values())
        assert steps == config.steps / config.action_repeat and memory < held < 1.1 * memory
        weights = (logdir / "latest.pt").stat().st_size
        assert memory + 1.5 * weights < disk < memory + 4.5 * weights
        assert needs(parallel=True)[2] == 2 + 3
        *_, err = needs(steps=10**12, dataset_size=10**12)  # vectors stay in memory
        assert "reduce --dataset_size" in err and f"--logdir {logdir} grows by" in err and err.count("\n") == 2
        memory, files = bytes_needed(trainer.config, {"image": ((64, 64, 3), np.dtype(np.uint8))})
        assert 0.19e9 < memory < 0.21e9 and files > 1e15
        *_, err = needs(steps=10**12, dataset_size=1000, replay_dir_limit=1000)
        assert not err
        prefill = config.prefill * config.action_repeat  # environment steps
        assert not needs(steps=prefill)[-1] and "before the first update" in needs(steps=prefill - 2 * config.envs)[-1]
        assert "--eval_tasks a b: not evaluated" in needs(eval_tasks=["a", "b"], eval_episode_num=0)[-1]
    finally:
        trainer.close()


# Divergence


@pytest.mark.parametrize("weight, words", [(1e12, "_loss is .* beyond 1e\\+09"), (3e38, "_loss is nan .* not finite")])
def test_a_run_that_diverges_ends_with_the_last_good_checkpoint(logdir, weight, words, capsys):
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    state["agent"]["agent"]["behavior.value.out.weight"][::2] = weight
    checkpoint.save_checkpoint(logdir / "latest.pt", state)
    before = (logdir / "latest.pt").read_bytes()
    assert main(*SHORT, "--steps", "1200", "--log_every", "100", "--logdir", logdir) == 1
    err = one_line(capsys.readouterr().err)
    assert re.search(f"training has diverged: .*{words}", err) and "the last checkpoint" in err, err
    assert "is of step 480" in err and (logdir / "latest.pt").read_bytes() == before


def test_a_checkpoint_that_is_not_finite_is_neither_written_nor_resumed(logdir, capsys):
    before = (logdir / "latest.pt").read_bytes()
    state = checkpoint.load_checkpoint(logdir / "latest.pt")
    config = dreamer.load_config([*SHORT, "--logdir", str(logdir)])
    group = collect.make_train_envs(config)
    trainer = Trainer(config, logdir, dreamer.build(config, group), group)
    try:
        trainer.resume()
        with torch.no_grad():
            trainer.agent.behavior.actor.out.bias[0] = float("nan")
        with pytest.raises(TrainingError, match=r"behavior\.actor\.out\.bias is not finite at step 480"):
            trainer.save()
    finally:
        trainer.close()
    assert (logdir / "latest.pt").read_bytes() == before
    next(iter(state["agent"]["optimizers"]["actor"]["state"].values()))["exp_avg"][0] = float("inf")
    checkpoint.save_checkpoint(logdir / "latest.pt", state)
    capsys.readouterr()
    assert main(*SHORT, "--logdir", logdir) == 2
    line = one_line(capsys.readouterr().err)
    assert "exp_avg is not finite" in line and "previous.pt" in line


# Signals and workers

WORKERS = [*VECTORS, "--device", "cpu", "--compile", "False", "--steps", "960", "--eval_episode_num", "0"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(*WORKERS, "--parallel", "False", "--logdir", logdir) == 0
    return entries(logdir)


@pytest.mark.parametrize("how", ["closed terminal", "killed", "hung"])
def test_nothing_is_lost_when_a_terminal_closes_or_a_worker_fails(how, uninterrupted, tmp_path):
    logdir = tmp_path / "run"
    process = start(*WORKERS, "--logdir", logdir, start_new_session=True)
    wait_for(logdir, 3, process)
    if how == "closed terminal":  # the hangup reaches the workers too
        os.killpg(process.pid, signal.SIGHUP)
    elif how == "killed":
        os.kill(workers(process)[0], signal.SIGKILL)
    else:
        os.kill(workers(process)[0], signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    if how == "killed":
        assert process.returncode == 1 and "worker of env" in err and "saved a checkpoint" in out
    else:
        assert process.returncode == 0 and "the same command resumes" in out, err
    saved = checkpoint.load_checkpoint(logdir / "latest.pt")["step"] * 2
    assert saved >= entries(logdir)[-1]["step"]
    code, out, err = run(*WORKERS, "--logdir", logdir)
    assert code == 0 and f"resumed at step {saved} with" in out, err
    assert entries(logdir) == uninterrupted


def test_a_worker_that_dies_at_the_start_is_one_line(tmp_path):
    process = start(*WORKERS, "--logdir", tmp_path / "run")
    while not workers(process):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and "the worker of env 0 died (exit code -9)" in one_line(err)


def test_a_worker_that_dies_in_an_evaluation_is_one_line(tmp_path, capsys):
    flags = [*WORKERS, "--steps", "480", "--eval_episode_num", "6", "--eval_envs", "2"]  # evaluates at 400 and 480
    assert main(*flags, "--parallel", "False", "--logdir", tmp_path / "whole") == 0
    logdir = tmp_path / "run"
    process = start(*flags, "--logdir", logdir)
    while len(workers(process)) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(workers(process)[3], signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "saved a checkpoint of step 400" in out, (out, err)
    assert re.search(r"worker of env \d died \(exit code -9\); the same command resumes from step 400", one_line(err))
    assert main(*flags, "--parallel", "False", "--logdir", logdir) == 0
    assert "resumed at step 400" in capsys.readouterr().out
    assert entries(logdir) == entries(tmp_path / "whole")


def test_nohup_ignores_the_end_of_the_terminal(tmp_path):
    logdir = tmp_path / "run"
    process = start(*SHORT, "--logdir", logdir, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(logdir, 2, process)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "the same command" not in out and entries(logdir)[-1]["step"] == 480, err


def test_an_interrupted_evaluation_is_dropped_and_redone(tmp_path):
    flags = [*SHORT, "--steps", "240", "--eval_every", "120", "--eval_episode_num", "8", "--eval_noise", "0.1"]
    assert main(*flags, "--logdir", tmp_path / "whole") == 0
    logdir = tmp_path / "run"
    process = start(*flags, "--logdir", logdir)
    wait_for(logdir, 2, process)  # the episodes' lines of step 120, just before its evaluation
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped at step 120" in out and len(entries(logdir)) == 2, (out, err)
    assert main(*flags, "--logdir", logdir) == 0
    assert entries(logdir) == entries(tmp_path / "whole")


# Files


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    logdir = tmp_path / "run"
    process = start(*SHORT, "--steps", "100000", "--logdir", logdir)
    wait_for(logdir, 2, process)
    code, _, err = run(*SHORT, "--logdir", logdir)
    assert code == 2 and f"process {process.pid} on " in one_line(err)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 0
    assert main(*SHORT, "--logdir", logdir) == 0


def test_the_lock_does_not_conflict_with_a_sweeps(tmp_path):
    """setup/sweep.py holds `.lock` while the processes that it starts run."""
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(*SHORT, "--steps", "100", "--logdir", tmp_path / "run") == 0


def long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def a_dangling_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def not_writable(folder: Path) -> Path:
    return Path("/proc/run")


@pytest.mark.parametrize("make", [long_name, a_file, a_dangling_link, not_writable])
def test_an_impossible_logdir_is_one_line(make, tmp_path, capsys):
    logdir = make(tmp_path)
    assert main(*SHORT, "--logdir", logdir) == 2
    line = one_line(capsys.readouterr().err)
    assert f"--logdir {logdir}" in line and "expected a folder" in line
    assert main("--eval_only", "--logdir", logdir) == 2
    one_line(capsys.readouterr().err)


@pytest.mark.parametrize("how", ["emptied", "deleted"])
def test_lost_lines_of_the_log_are_reported(logdir, how, capsys):
    count = len(entries(logdir))
    if how == "emptied":
        (logdir / "metrics.jsonl").write_text("")
    else:
        (logdir / "metrics.jsonl").unlink()
    assert main(*SHORT, "--steps", "540", "--logdir", logdir) == 0
    assert f"metrics.jsonl holds 0 of the checkpoint's {count} lines" in capsys.readouterr().out


def test_episodes_after_the_checkpoint_keep_their_lines(logdir):
    """Killed after episodes and before a checkpoint; some lines reached the log and some did not."""
    path, before = logdir / "metrics.jsonl", entries(logdir)
    shutil.copy(logdir / "previous.pt", logdir / "latest.pt")
    kept = [line for line in path.read_text().splitlines() if json.loads(line).get("train_episodes") != 7]
    path.write_text("\n".join(kept) + "\n")
    assert main(*SHORT, "--logdir", logdir) == 0
    ours, theirs = ([x for x in lines if "train_episodes" in x] for lines in (entries(logdir), before))
    assert [x["train_episodes"] for x in ours] == list(range(1, len(theirs) + 1))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["train_return"] == pytest.approx(other["train_return"], rel=1e-5)
        assert mine["step"] == other["step"] or other["train_episodes"] == 7
    steps = [line["step"] for line in entries(logdir)]
    assert steps == sorted(steps)


def test_a_line_of_the_log_is_complete_or_absent(tmp_path):
    logger = logs.Logger(tmp_path)
    logger.write(1, {"a": 1})
    path = tmp_path / "metrics.jsonl"
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            logger.write(2, {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == '{"step": 1, "a": 1.0}\n'
    logger.write(2, {"a": 2})
    logger.close()
    assert [line["step"] for line in entries(tmp_path)] == [1, 2]


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(logdir):
    before = (logdir / "latest.pt").read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    process = start(*SHORT, "--steps", "800", "--logdir", logdir, preexec_fn=limit)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert one_line(err).count(str(logdir)) == 1 and "from the last checkpoint, of step 480" in err
    assert (logdir / "latest.pt").read_bytes() == before
    assert main(*SHORT, "--steps", "800", "--logdir", logdir) == 0


def test_a_disk_that_is_full_from_the_start_is_one_line(tmp_path):
    """TensorBoard's file is the first that does not fit."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5000, 5000))
    process = start(*SHORT, "--logdir", tmp_path / "run", preexec_fn=limit)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2 and f"{tmp_path / 'run' / 'events.out'}" in one_line(err)


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_closed_or_full_stdout_costs_nothing(how, finished, tmp_path):
    logdir = tmp_path / "run"
    command = [*PYTHON, str(ROOT / "dreamer.py"), *SHORT, "--logdir", str(logdir)]
    out = subprocess.PIPE if how == "closed" else open("/dev/full", "w")  # noqa: SIM115
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
    if how == "closed":
        process.stdout.readline()
        process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(600) == 0 and "stdout cannot be written" in one_line(err)
    assert entries(logdir) == entries(finished)


def test_a_half_line_of_eval_jsonl_costs_no_other(logdir):
    (logdir / "eval.jsonl").write_text('{"step": 1}\n{"st')
    assert main("--eval_only", "--logdir", logdir, "--episodes", "1", *PLAIN) == 0
    first, half, last = (logdir / "eval.jsonl").read_text().splitlines()
    assert (first, half) == ('{"step": 1}', '{"st') and json.loads(last)["step"] == 480


def test_eval_only_names_the_settings_that_the_run_lacks(logdir, capsys):
    saved = read_config(logdir / "config.yaml").to_dict()
    values = {key: value for key, value in saved.items() if key != "time_limit"}
    save_config(Config(values), logdir / "config.yaml")
    assert main("--eval_only", "--logdir", logdir, "--episodes", "1", *PLAIN, "--time_limit", "60") == 0
    assert "lacks" not in capsys.readouterr().out
    assert main("--eval_only", "--logdir", logdir, "--episodes", "1", *PLAIN) == 0
    assert "config.yaml lacks settings; assuming time_limit 1000" in capsys.readouterr().out
    evaluate = [*PLAIN, "--eval_only", "--episodes", "1", "--logdir", logdir]
    for name, flags, code, words in (
        ("action_repeat", evaluate, 0, "assuming action_repeat 2"),
        ("size", evaluate, 0, "assuming size [64, 64]"),
        ("eval_tasks", [*evaluate, "--eval_tasks", "dmc_walker_walk"], 2, "--eval_tasks belongs to training"),
        ("task", [*PLAIN, "--logdir", logdir], 2, "--task : expected"),
    ):
        save_config(Config({key: value for key, value in saved.items() if key != name}), logdir / "config.yaml")
        assert main(*flags) == code
        assert words in "".join(capsys.readouterr())
