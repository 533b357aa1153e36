"""Grids of real runs: stopped, killed, resumed; runs that share GPUs; status; export. SLURM: test_slurm.py."""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from figures import reading
from run.config import load_config, read_config, save_config
from setup import sweep_run, sweep_slurm

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--dyn_hidden 16 --dyn_deter 16 --dyn_stoch 4 --dyn_discrete 4 --units 16 --imag_horizon 4 --encoder.mlp_units 16 "
    "--batch_size 4 --batch_length 8 --train_ratio 4 --pretrain 1 --prefill 20 --envs 1 --time_limit 40 --device cpu "
    "--eval_episode_num 1 --eval_every 1000000 --log_every 80 --checkpoint_every 160 --steps 480"
).split()
FOREVER = [*TINY, "--steps", "1000000"]

STARTED: list[subprocess.Popen] = []

_spec = importlib.util.spec_from_file_location("sweep", ROOT / "setup" / "sweep.py")
sweep = sys.modules["sweep"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sweep)


# In the place of dreamer.py: writes a row every 50 ms, resumes, takes its time to save at SIGTERM, waits for files.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
folder, steps, saving = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
(folder / "environ").write_text(json.dumps(dict(os.environ)))
checkpoint = folder / "latest.pt"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
while step < steps and not stop:
    time.sleep(0.05)
    step += 1
    with open(folder / "metrics.jsonl", "a") as log:
        print(json.dumps({"step": step, "update_count": step}), file=log)
if saving < 0:
    sys.exit()
time.sleep(saving)
while not all(map(os.path.exists, sys.argv[4:])):
    time.sleep(0.05)
checkpoint.write_text(str(step))
"""


def stand_ins(log: Path, count: int, steps: int = 10**6, saving: float = 0) -> list:
    """Runs that do what dreamer.py does, in the eyes of a sweep; `saving` in seconds, below 0 for never."""
    log.mkdir(exist_ok=True)
    (log / "stand_in.py").write_text(STAND_IN)
    task, command = "dmc_cartpole_balance", [sys.executable, str(log / "stand_in.py")]
    folders = [log / task / "hrssm" / f"seed{seed}" for seed in range(count)]
    return [sweep.Run(folder, steps, (*command, str(folder), str(steps), str(saving))) for folder in folders]


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # a sweep ends its runs
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=900)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    STARTED.clear()


def start(logdir: Path, *flags: str, tiny: list[str] = TINY, env: dict | None = None) -> subprocess.Popen:
    command = [sys.executable, "-u", ROOT / "setup" / "sweep.py", "--configs", "dmc_proprio", "--logdir", logdir]
    process = subprocess.Popen(
        [*map(str, command), *flags, "--", *tiny], env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    STARTED.append(process)
    return process


def run(logdir: Path, *flags: str, **kwargs) -> tuple[int, str]:
    process = start(logdir, *flags, **kwargs)
    out, err = process.communicate(timeout=500)
    assert not err, err
    return process.returncode, out


def table(text: str) -> dict[tuple[str, str, str], list[str]]:
    """{(task, method, seed): the other columns} of a status table in an output."""
    rows = [line.split() for line in text.splitlines() if line.startswith("dmc_")]
    return {tuple(row[:3]): row[3:] for row in rows if len(row) > 3 and row[3] in sweep.STATES}


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def trainer(folder: Path) -> int | None:
    """Process id of the dreamer.py that trains in a folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if os.fsencode(ROOT / "dreamer.py") in words and os.fsencode(folder) in words:
                return int(path.parent.name)
    return None


def wait_until(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.time() + 500
    while not condition():
        assert time.time() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_grid_stopped_killed_and_finished(tmp_path, capsys):
    tasks = ("dmc_cartpole_balance", "dmc_pendulum_swingup")
    grid = ["--tasks", *tasks, "--methods", "hrssm", "continuous", "--seeds", "3"]
    folders = {(task, m): tmp_path / task / m / "seed3" for task in tasks for m in ("hrssm", "continuous")}
    first, second, third, fourth = folders.values()
    gpus = {"CUDA_VISIBLE_DEVICES": "5,7"}  # two at a time, one on each; TINY trains on the CPU anyway

    # Ctrl-C halfway, to the whole process group as from a terminal
    process = start(tmp_path, *grid, tiny=FOREVER, env=gpus)
    wait_until(lambda: lines(first) and lines(second), process)
    assert {json.loads((f / ".sweep.json").read_text())["gpu"] for f in (first, second)} == {"5", "7"}
    for folder in (first, second):  # thread limits are those of the sweep's environment
        assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{trainer(folder)}/environ").read_bytes().split(b"\0")
    assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
    assert [row[0] for row in table(capsys.readouterr().out).values()] == ["running", "running"]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 130 and not err
    steps = []
    for folder in (first, second):
        assert (folder / "latest.pt").exists() and not (folder / "stderr.log").read_text().count("Traceback")
        assert "the same command resumes from there" in (folder / "stdout.log").read_text()
        steps.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    assert not third.exists() and not fourth.exists() and trainer(first) is None and trainer(second) is None
    rows = table(out)
    assert [row[0] for row in rows.values()] == ["waiting"] * 4
    assert [row[1] for row in rows.values()] == [*(f"{step}/1000000" for step in steps), "0/1000000", "0/1000000"]

    # A run that is killed fails, the others continue
    total = 40 * (max(steps) // 40 + 6)
    tiny = [*TINY, "--steps", str(total)]
    process = start(tmp_path, *grid, tiny=tiny, env=gpus)
    wait_until(lambda: lines(third), process)
    os.kill(trainer(third), signal.SIGKILL)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1 and not err
    assert [row[0] for row in table(out).values()] == ["finished", "finished", "failed", "finished"]
    assert "killed by signal 9 (Killed)" in out and "3 finished, 1 failed" in out
    for folder in (first, second):
        assert "resumed at step" in (folder / "stdout.log").read_text()
    configs = {key: read_config(folder / "config.yaml") for key, folder in folders.items() if folder != third}
    assert all((c.task, c.seed, c.steps) == (task, 3, total) for (task, _), c in configs.items())
    assert [c.dyn_discrete for c in configs.values()] == [4, 4, 4]  # flags override configs
    assert configs[tasks[0], "hrssm"].reward_head == "symlog_disc"
    assert configs[tasks[0], "continuous"].reward_head == configs[tasks[1], "continuous"].reward_head == "normal"

    # Only what failed is tried again
    before = [(f / "metrics.jsonl").stat().st_mtime_ns for f in (first, second, fourth)]
    code, out = run(tmp_path, *grid, tiny=tiny)
    assert code == 0 and out.count("started") == 1 and out.count("skipped") == 3
    assert [row[0] for row in table(out).values()] == ["finished"] * 4
    assert all(row[1] == f"{total}/{total}" and float(row[2]) >= 0 for row in table(out).values())
    code, out = run(tmp_path, *grid, tiny=tiny)
    assert code == 0 and "nothing left to start" in out and out.count("skipped") == 4
    assert [(f / "metrics.jsonl").stat().st_mtime_ns for f in (first, second, fourth)] == before

    # More steps are more work; the table of the whole folder needs no grid
    code, out = run(tmp_path, *grid, "--dry_run", tiny=FOREVER)
    commands = [line.split() for line in out.splitlines()]
    assert code == 0 and len(commands) == 4 and commands[1][3:6] == ["--configs", "dmc_proprio", "continuous"]
    assert all(command[-2:] == ["--steps", "1000000"] for command in commands)
    assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
    assert "4 finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_whose_sweep_was_killed_is_left_alone(tmp_path, capsys):
    folder = tmp_path / "dmc_cartpole_balance" / "hrssm" / "seed0"
    process = start(tmp_path, "--tasks", "dmc_cartpole_balance", tiny=FOREVER)
    try:
        wait_until(lambda: lines(folder) >= 1, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert trainer(folder) is not None
        argv = ["--tasks", "dmc_cartpole_balance", "--configs", "dmc_proprio", "--logdir", str(tmp_path)]
        assert sweep.main([*argv, "--", *FOREVER]) == 0
        out = capsys.readouterr().out
        assert "already running, left alone" in out and "nothing left to start" in out
    finally:
        if trainer(folder) is not None:
            os.kill(trainer(folder), signal.SIGTERM)
    orphan = sweep.Run(folder)
    wait_until(lambda: not orphan.locked())
    assert (folder / "latest.pt").exists()
    assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
    assert table(capsys.readouterr().out)["dmc_cartpole_balance", "hrssm", "0"][0] == "waiting"


@pytest.mark.parametrize(
    "words, seeds",
    [(["0-4"], [0, 1, 2, 3, 4]), (["0", "3", "7"], [0, 3, 7]), (["2,0-1", "1"], [2, 0, 1]), (["5-5"], [5])],
)
def test_seeds(words, seeds):
    assert sweep.parse_seeds(words) == seeds


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--seeds", "4-0"], ["--seeds 4-0", "0-4"]),
        (["--seeds", "-1"], ["seeds"]),
        (["--seeds", "one"], ["--seeds one"]),
        (["--seeds", "0-9999999999"], ["--seeds 0-9999999999", "10000 seeds or fewer"]),
        (["--seeds", "9" * 30], ["--seeds 999", "up to"]),
        (["--seeds", "9" * 5000], ["--seeds 999", "whole numbers"]),
        (["--logdir", "~nobody-here/log"], ["--logdir ~nobody-here/log"]),
        (["--logdir", __file__], ["--logdir", "expected a folder"]),
        (["--methods", "dmc_visoin"], ["dmc_visoin", "dmc_vision"]),
        (["--methods", "M+continous"], ["continous", "continuous"]),
        (["--methods", "../M"], ["--methods ../M"]),
        (["--configs", "dmc_visoin"], ["dmc_visoin", "dmc_vision"]),
        (["--tasks", "dmc_walkr_walk"], ["--tasks dmc_walkr_walk", "walker"]),
        (["--tasks", "dmc_walker_walk", "atari_pong"], ["atari_pong", "dmc_"]),
        (["--max_parallel", "0"], ["--max_parallel 0", "1 or more"]),
        (["--executor", "pbs"], ["--executor", "slurm"]),
        (["--per_gpu", "0"], ["--per_gpu 0", "1 or more"]),
        (["--executor", "slurm"], ["--executor slurm", "sbatch"]),
        (["--slurm", "partition=lab"], ["--executor slurm"]),
        *(
            (["--executor", "slurm", "--slurm", *option.split()], ["--slurm", *words])
            for option, *words in (
                ("time=1-00:0x", "time=1-00:0x", "DAYS-HOURS:MINUTES"),
                ("time=a_day", "time=a_day", "minutes"),
                ("time=6 signal_delay_s=300", "signal_delay_s=300", "half of time=6"),
                ("signal_delay_s=soon", "signal_delay_s=soon", "seconds"),
                ("nodes=2", "nodes=2", "torchrun"),
                ("ntasks_per_node=4", "ntasks_per_node=4", "torchrun"),
                ("array=0-3", "array=0-3", "--max_parallel"),
                ("signal=TERM@60", "signal_delay_s"),
                ("=lab", "KEY=VALUE"),
                ("partition=", "partition=", "KEY=VALUE"),
            )
        ),
        (["--batch_size", "8"], ["--batch_size", "after --"]),
        (["--", "--batch_sise", "8"], ["batch_sise", "batch_size"]),
        (["--", "--batch_size", "eight"], ["batch_size", "eight"]),
        (["--", "--batch_length", "30"], ["--batch_length 30", "--block_size 4"]),
        (["--", "--seed", "8"], ["--seed after --", "--seeds"]),
        (["--", "--logdir=elsewhere"], ["--logdir after --"]),
    ],
)
def test_bad_input_is_one_line(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM
    if "--tasks" not in flags:
        flags = ["--tasks", "dmc_walker_walk", *flags]
    try:
        sweep.main(["--logdir", str(tmp_path / "log"), *flags])
        raise AssertionError("it started")
    except sweep.ConfigError as error:
        error_text = str(error)
    except SystemExit as stop:
        assert stop.code == 2
        error_text = capsys.readouterr().err
    assert len(error_text.strip().splitlines()) == 1, error_text
    for word in words:
        assert word in error_text
    assert not list(tmp_path.rglob("seed*"))


@pytest.mark.parametrize(
    "name", [".sweep.json", ".slurm_job", "metrics.jsonl", "config.yaml", "stderr.log", "latest.pt"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 1_000, b'"exit"', b'{"exit": [], "gpu": {}}',
        b'{"exit": "x", "gpu": 7}', b'{"step": 10, "eval_return": "high", "update_count": "x"}',
        b'{"step": "10"}', b'{"step": NaN, "eval_return": Infinity}',
        b'{"step": [1]}\n7\n', b"steps: many\n", b"steps: .nan",
    ],
)  # fmt: skip
def test_damaged_files_of_a_run_do_not_stop_the_table(tmp_path, capsys, monkeypatch, name, content):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM
    folder = tmp_path / "log" / "dmc_walker_walk" / "hrssm" / "seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task: dmc_walker_walk\nseed: 0\nsteps: 100\n")
    (folder / "metrics.jsonl").write_text('{"step": 90, "eval_return": 5.0}\n{"step": 100, "update_count": 3}\n')
    (folder / ".sweep.json").write_text('{"gpu": null, "exit": 1}')
    (folder / name).write_bytes(content)
    assert sweep.main(["--status", "--logdir", str(tmp_path / "log")]) == 0
    ((state, *_),) = table(capsys.readouterr().out).values()
    assert state in sweep.STATES


def test_export_refuses_the_folder_of_the_runs_themselves(tmp_path):
    run = tmp_path / "log" / "dmc_walker_walk" / "hrssm" / "seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"logdir: {run}\ntask: dmc_walker_walk\nseed: 0\nsteps: 9\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "train_return": 0.123456789}\n')
    before = {path: path.read_bytes() for path in run.iterdir()}
    (tmp_path / "link").symlink_to("log")
    for folder in ("log", "link"):
        with pytest.raises(sweep.ConfigError, match=rf"--export \S*{folder}: these are the runs themselves"):
            sweep.main(["--export", str(tmp_path / folder), "--logdir", str(tmp_path / "log")])
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_task_with_a_slash_is_one_folder(tmp_path, capsys):
    args, _ = sweep.parse(["--tasks", "gym_ale_py:ALE/Pong-v5"])
    (run,) = sweep.make_grid(args, ["--actor_dist", "onehot"], tmp_path)
    run.folder.mkdir(parents=True)
    assert [found.folder for found in sweep.find_runs(tmp_path)] == [run.folder]
    (run.folder / "config.yaml").write_text("task: gym_ale_py:ALE/Pong-v5\nseed: 0\nconfigs: [small]\n")
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "eval_return": 2}\n')
    (read,) = reading.find_runs([str(tmp_path)])
    assert (read.task, read.method) == ("gym_ale_py:ALE/Pong-v5", "hrssm")


def test_finished_runs_of_other_settings_are_not_those_of_the_grid(tmp_path, capsys):
    argv = ["--tasks", "dmc_walker_walk", "--logdir", str(tmp_path), "--dry_run", "--", "--steps", "100"]
    (run,) = sweep.make_grid(*sweep.parse(argv), tmp_path)
    run.folder.mkdir(parents=True)
    save_config(load_config(run.command[3:]), run.folder / "config.yaml")
    (run.folder / "metrics.jsonl").write_text('{"step": 100, "update_count": 3}\n')
    (run.folder / "latest.pt").touch()
    for flags in ([], ["--log_every", "50"], ["--model_lr", "1e-3", "--allow_config_change", "True"]):
        assert sweep.main([*argv, *flags]) == 0
        assert capsys.readouterr().out.endswith("finished at step 100, skipped\n")
    with pytest.raises(sweep.ConfigError, match=r"holds a run with other settings \(model_lr 0\.0001 -> 0\.001\)"):
        sweep.main([*argv, "--model_lr", "1e-3"])


def test_wrong_options_of_sbatch_are_refused_in_a_dry_run_too(tmp_path):
    for option in ("nodes=2", "time=soon"):
        with pytest.raises(sweep.ConfigError, match=f"--slurm {option}"):
            sweep.main(["--tasks", "dmc_walker_walk", "--executor", "slurm", "--slurm", option, "--dry_run"])


def test_export_keeps_evaluations_and_thins_the_rest(tmp_path, capsys):
    def write(folder: Path, steps: int) -> list[dict]:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            f"logdir: {folder}\ntask: dmc_walker_walk\nseed: 0\nsteps: {steps}\nconfigs: [small]\n"
        )
        rows = []
        for step in range(250, steps + 1, 250):
            rows.append({"step": step, "train_return": step / 7, "train_length": 250.0})
            if step % 10_000 == 0:
                rows.append({"step": step, "eval_return": step / 3})
                rows.append({"step": step, "eval_return/dmc_walker_walk_color_hard": step / 7})
            if step % 2500 == 0:
                rows.append({"step": step, **{f"loss_{i}": step / 3 + i for i in range(40)}, "update_count": step / 10})
        half = '{"step": 250, "train_ret'  # the run was killed here
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + half)
        return rows

    log, out = tmp_path / "log", tmp_path / "results" / "small"
    long = write(log / "dmc_walker_walk" / "hrssm" / "seed0", 200_000)
    short = write(log / "dmc_walker_walk" / "no_mbr" / "seed3", 10_000)
    (log / "dmc_walker_walk" / "no_mbr" / "seed3" / "eval.jsonl").write_text('{"step": 10000}\n')
    (log / "dmc_walker_walk" / "no_mbr" / "seed3" / "latest.pt").write_bytes(b"")
    (log / "dmc_walker_walk" / "no_mbr" / "seed4").mkdir()
    (log / "dmc_walker_walk" / "hrssm" / "seed0" / "train_eps").mkdir()  # killed before its first checkpoint
    for _ in range(2):  # again, over the existing files
        assert sweep.main(["--export", str(out), "--logdir", str(log)]) == 0
        said = capsys.readouterr().out
        assert "2 runs exported" in said and "not finished: dmc_walker_walk hrssm seed 0\n" in said
        assert "left out, no rows yet: dmc_walker_walk no_mbr seed 4" in said
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    first, second = "dmc_walker_walk/hrssm/seed0", "dmc_walker_walk/no_mbr/seed3"
    assert files == {
        *(f"{run}/{name}" for run in (first, second) for name in ("metrics.jsonl", "config.yaml")),
        f"{second}/eval.jsonl",
    }  # fmt: skip

    def read(run: str) -> list[dict]:
        return [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]

    assert (out / first / "metrics.jsonl").stat().st_size < 40_000 < (log / first / "metrics.jsonl").stat().st_size
    rows = read(first)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)

    def evaluations(rows: list[dict]) -> list[dict]:
        return [row for row in rows if any(name.startswith("eval_return") for name in row)]

    def close(rows: list[dict]) -> list[dict]:
        return [{name: pytest.approx(value, rel=1e-5) for name, value in row.items()} for row in rows]

    assert evaluations(rows) == close(evaluations(long))
    for name in ("train_return", "update_count"):
        steps = [row["step"] for row in rows if name in row]
        assert len(steps) > 10 and steps[-1] == 200_000 and len({b - a for a, b in itertools.pairwise(steps)}) == 1
    assert read(second) == close(short)
    assert sweep.main(["--status", "--logdir", str(log)]) == sweep.main(["--status", "--logdir", str(out)]) == 0
    assert "2 waiting, 1 finished" in (tables := capsys.readouterr().out) and tables.endswith("\n2 finished\n")
    settings = read_config(out / second / "config.yaml")
    assert (settings.logdir, settings.task, settings.configs) == (second, "dmc_walker_walk", ("small",))


@pytest.mark.parametrize(
    "word, seconds",
    [
        ("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("1-00", 86400), ("1-00:00", 86400), ("2-01:30:15", 178215),
        ("0", math.inf), ("UNLIMITED", math.inf),
    ],
)  # fmt: skip
def test_time_limits_as_sbatch_takes_them(word, seconds):
    assert sweep_slurm.parse_seconds("time", word) == seconds
    assert sweep_slurm.signal_delay({"time": word}) == 300


def test_the_time_to_save_in_is_a_part_of_the_time_limit():
    assert sweep_slurm.signal_delay({"time": "10"}) == 150
    assert sweep_slurm.signal_delay({"time": "1-00", "time_min": "4"}) == 60
    assert sweep_slurm.signal_delay({"time": "10", "signal_delay_s": "300"}) == 300


def test_values_of_options():
    found = sweep_slurm.parse_options(
        ["exclusive=True", "requeue=false", "gres=gpu:a100:1", "mail-type=END", "comment=a=b", "setup=module load cuda"]
    )
    assert found == {
        "job_name": "hrssm", "time": "1440", "cpus_per_task": "8", "open_mode": "append", "exclusive": "",
        "gres": "gpu:a100:1", "mail_type": "END", "comment": "a=b", "setup": "module load cuda",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words, gpus",
    [
        ([], 1), (["gpus_per_node=4"], 4), (["gpus_per_node=a100:4"], 4), (["gpus_per_node=0"], 0), (["gpus=2"], 2),
        (["gres=gpu:h200:8,license:3"], 8), (["gres=gpu"], 0), (["gpus_per_task=1"], 0),
    ],
)  # fmt: skip
def test_the_gpus_of_a_job(words, gpus):
    assert sweep_slurm.gpus_of(sweep_slurm.parse_options(words)) == gpus


@pytest.mark.parametrize("gpu, max_parallel, per_gpu", [("5", None, 2), ("", 2, 1)])
def test_runs_that_share_a_gpu_and_the_cores(gpu, max_parallel, per_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
    monkeypatch.delenv("OMP_NUM_THREADS")
    runs = stand_ins(tmp_path, 3, steps=2)
    both = [str(run.folder / "environ") for run in runs[:2]]  # the first two end when both have started
    runs = [dataclasses.replace(run, command=(*run.command, *both)) for run in runs[:2]] + runs[2:]
    assert sweep.run_local(runs, [], max_parallel, per_gpu) == 0
    assert [run.state({}) for run in runs] == ["finished"] * 3
    for run in runs:
        env = json.loads((run.folder / "environ").read_text())
        assert env["CUDA_VISIBLE_DEVICES"] == gpu
        assert env["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    ended = [(run.folder / "latest.pt").stat().st_mtime for run in runs[:2]]
    assert min(ended) < (runs[2].folder / "environ").stat().st_mtime
    assert capsys.readouterr().out.count("on GPU 5") == 3 * bool(gpu)


def test_a_run_that_saves_its_checkpoint_is_stopping(tmp_path):
    (run,) = stand_ins(tmp_path, 1, saving=1)
    job = sweep_run.Process(run)
    wait_until(lambda: lines(run.folder))
    with pytest.raises(BlockingIOError):
        sweep_run.Process(run)
    assert run.state({}) == "running"
    job.stop()
    assert run.state({}) == "stopping"
    wait_until(lambda: job.poll() is not None)
    assert run.state({}) == "waiting" and job.code == 0 and (run.folder / "latest.pt").exists()


def test_nothing_to_show_is_reported(tmp_path):
    with pytest.raises(sweep.ConfigError, match="no run there"):
        sweep.main(["--status", "--logdir", str(tmp_path)])
    with pytest.raises(sweep.ConfigError, match="--tasks"):
        sweep.main(["--logdir", str(tmp_path)])


def test_finished_means_the_last_row_and_a_later_checkpoint(tmp_path):
    run = sweep.Run(tmp_path, 1000)
    log, checkpoint = tmp_path / "metrics.jsonl", tmp_path / "latest.pt"

    def finished(rows: str, saved: float) -> bool:
        log.write_text(rows)
        checkpoint.write_bytes(b"")
        os.utime(checkpoint, (saved, log.stat().st_mtime + saved))
        return run.progress()["finished"]

    (tmp_path / "train_eps").mkdir()
    assert not run.progress()["finished"]
    last = '{"step": 1000, "eval_return": 7.5}\n{"step": 1000, "update_count": 40}\n'
    assert finished(last, 1)
    assert run.progress() | {"age": 0} == {"step": 1000, "eval_return": 7.5, "age": 0, "finished": True}
    assert not finished(last, -1)  # killed before the checkpoint of the last updates
    assert not finished('{"step": 900, "update_count": 39}\n{"step": 1000, "eval_return": 7.5}\n', 1)
    assert not finished('{"step": 900, "eval_return": 6}\n{"step": 900, "update_count": 39}\n', 1)
    assert not finished(last.rstrip("\n}"), 1)  # an incomplete line
    log.write_text(last)
    checkpoint.unlink()
    assert not run.progress()["finished"]
    (tmp_path / "train_eps").rmdir()
    assert run.progress()["finished"]  # what was exported
    log.unlink()
    checkpoint.write_bytes(b"")
    assert not run.progress()["finished"]  # its log is gone


def test_only_visible_gpus_are_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0a1b")
    assert sweep.visible_gpus() == ["2", "GPU-0a1b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    assert sweep.visible_gpus() == []
