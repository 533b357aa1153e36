"""Sweeps on a real SLURM of one machine (cluster.py): arrays, time limits, preemption, scancel, deaths, bad options."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
from test_sweep import (  # noqa: F401
    FOREVER,
    ROOT,
    lines,
    nothing_is_left_running,
    run,
    stand_ins,
    start,
    sweep,
    wait_until,
)

from setup import sweep_job, sweep_slurm

TASK = "dmc_cartpole_balance"
SMALL = ["gpus_per_node=0", "cpus_per_task=1"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    if reason := cluster.missing():
        pytest.skip(f"no SLURM here: {reason}")
    with cluster.running(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(autouse=True)
def slurm(daemons):
    """SLURM with an empty queue, before and after each test."""
    yield
    cluster.ask("scancel", "--full", "--signal=KILL", f"--user={os.getuid()}")
    cluster.ask("scancel", f"--user={os.getuid()}")
    cluster.wait_for(lambda: not queue(), 60, "jobs do not end")


def queue() -> str:
    return cluster.ask("squeue", "--noheader", "--array", "--format=%i %T %r")


def submit(runs: list, *words: str, max_parallel: int | None = None, per_gpu: int = 1) -> None:
    log = runs[0].folder.parents[2]
    assert sweep_slurm.submit(runs, log, max_parallel, per_gpu, [*SMALL, "time=10", *words]) == 0


def states(runs: list) -> list[str]:
    return [run.state(sweep.queue_of(runs)) for run in runs]


def until(condition, seconds: float = 60) -> None:
    cluster.wait_for(condition, seconds, queue())


def wait_for_requeue(job: str) -> None:
    wait_until(lambda: "PENDING" in cluster.ask("squeue", "--noheader", "--format=%T", f"--jobs={job}"))


def environ(run) -> dict[str, str]:
    return json.loads((run.folder / "environ").read_text())


def test_an_array_that_is_canceled_stopped_and_repeated(tmp_path, capsys):
    runs = stand_ins(tmp_path, 5, saving=3)
    argv = ["--logdir", str(tmp_path), "--tasks", TASK, "--seeds", "0-4"]
    submit(runs, max_parallel=2)  # MaxArraySize is 3
    said = capsys.readouterr().out
    assert "5 runs submitted in 2 arrays (MaxArraySize is 3)" in said
    until(lambda: lines(runs[0].folder) and lines(runs[1].folder))
    assert states(runs) == ["running"] * 2 + ["waiting"] * 3 and not lines(runs[2].folder)
    jobs = [run.slurm_job() for run in runs]
    reasons = f"job {jobs[2]} PENDING (JobArrayTaskLimit)\n", f"job {jobs[4]} PENDING (Dependency)\n"

    def status_shows_all() -> bool:  # SLURM finds a reason when it tries to start a job
        assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        return f"job {jobs[0]} RUNNING\n" in said and all(reason in said for reason in reasons)

    until(status_shows_all)
    assert sweep.main([*argv, "--executor", "slurm"]) == 0
    said = capsys.readouterr().out
    assert said.count("left alone") == 5 and "nothing left to start" in said

    # scancel: it saves, and a repeat waits for that
    cluster.ask("scancel", *{job.partition("_")[0] for job in jobs})
    assert states(runs) == ["stopping"] * 2 + ["waiting"] * 3
    assert sweep.main([*argv, "--dry_run"]) == 0
    assert capsys.readouterr().out.count("is stopping: repeat the command later") == 2
    assert sweep.main([*argv, "--seeds", "0-1", "--executor", "slurm"]) == 1
    assert "nothing to start now" in capsys.readouterr().out
    until(lambda: not queue(), 20)
    assert states(runs) == ["waiting"] * 5
    saved = int((runs[0].folder / "latest.pt").read_text())

    # SIGTERM alone: the job ends as soon as the checkpoint is there
    submit(runs[:2])
    until(lambda: lines(runs[0].folder) > saved and lines(runs[1].folder))
    cluster.ask("scancel", "--signal=TERM", runs[0].slurm_job())
    until(lambda: states(runs[:1]) == ["waiting"] and runs[0].slurm_job() not in queue(), 20)
    assert "ExitCode=0:0" in cluster.ask("scontrol", "show", "job", runs[0].slurm_job())
    assert int((runs[0].folder / "latest.pt").read_text()) > saved
    cluster.ask("scancel", runs[1].slurm_job())
    until(lambda: not queue(), 20)

    # The rest, to its end
    runs = stand_ins(tmp_path, 2, steps=lines(runs[0].folder) + 20)
    submit(runs)
    until(lambda: states(runs) == ["finished"] * 2)


def test_a_time_limit_requeues_and_every_row_equals_an_undisturbed_run(tmp_path):
    log, alone = tmp_path / "log", tmp_path / "alone"
    folder, undisturbed = (root / TASK / "hrssm" / "seed0" for root in (log, alone))
    code, out = run(log, "--tasks", TASK, "--executor", "slurm", "--slurm", *SMALL, "time=0-00:10", tiny=FOREVER)
    job = out.split("cancels all")[0].split()[-1]
    assert code == 0 and "1 runs submitted" in out
    other = start(alone, "--tasks", TASK, tiny=FOREVER)
    wait_until(lambda: lines(folder) > 5)
    asked = cluster.ask("scontrol", "show", "job", f"{job}_0")
    assert "TimeLimit=00:10:00" in asked and "Requeue=1" in asked  # JobRequeue is 0
    # A quarter of 10 minutes is the time to save in: with 2 left, SLURM warns
    cluster.ask("scontrol", "update", f"JobId={job}_0", "EndTime=now+120")
    stdout = folder / "stdout.log"
    wait_until(lambda: "the same command resumes" in stdout.read_text())
    stopped = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    wait_for_requeue(f"{job}_0")
    cluster.ask("scontrol", "update", f"JobId={job}_0", "TimeLimit=60")
    wait_until(lambda: "resumed at step" in stdout.read_text())
    assert "Restarts=1" in cluster.ask("scontrol", "show", "job", f"{job}_0")
    count = lines(folder)
    wait_until(lambda: lines(folder) > count + 5 and lines(undisturbed) > count + 5)
    cluster.ask("scancel", job)
    os.killpg(other.pid, signal.SIGINT)
    wait_until(lambda: other.poll() is not None and not queue())

    def rows(path: Path) -> list[dict]:
        found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("fps", "updates_per_second")} for row in found]

    pairs = list(zip(rows(folder), rows(undisturbed), strict=False))
    assert pairs[-1][0]["step"] > stopped and all(one == two for one, two in pairs)


def test_the_script_of_the_docs_for_torchrun_under_a_time_limit(tmp_path):
    text = (ROOT / "docs/scaling.md").read_text()
    script = next(part for part in text.split("```bash\n") if part.startswith("#!")).partition("```")[0]
    flags = ["--configs", "dmc_proprio", "--task", TASK, *FOREVER, "--envs", "2", "--logdir", str(tmp_path)]
    changes = {
        "--nodes=2": "--nodes=1",
        "--gpus-per-node=4 --cpus-per-task=32 --mem=64G --time=1-00:00": "--cpus-per-task=2 --time=30",
        "--nproc_per_node 4": "--nproc_per_node 2",
        "torchrun": f"{sys.executable} -m torch.distributed.run",
        "dreamer.py": f"{ROOT}/dreamer.py",
        "--configs dmc_vision --task dmc_walker_walk --envs 8 --logdir ./log/walk": shlex.join(flags),
    }
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "walk.sh").write_text(script)
    job = cluster.ask("sbatch", "--parsable", f"--output={tmp_path}/job.log", str(tmp_path / "walk.sh"))
    wait_until(lambda: lines(tmp_path) > 3)
    cluster.ask("scancel", "--batch", "--signal=USR2", job)
    wait_for_requeue(job)
    log = tmp_path / "job.log"
    assert "the same command resumes" in log.read_text() and (tmp_path / "latest.pt").exists()
    wait_until(lambda: "resumed at step" in log.read_text())


@pytest.mark.parametrize("grace", [60, 0])
def test_a_preempted_job_saves_and_is_requeued(tmp_path, grace):
    cluster.ask("scontrol", "update", "PartitionName=lab", f"GraceTime={grace}")
    runs = stand_ins(tmp_path, 1, saving=1)
    submit(runs, f"cpus_per_task={cluster.CPUS}")
    until(lambda: lines(runs[0].folder))
    job = runs[0].slurm_job()
    cluster.ask("sbatch", "--partition=vip", f"--cpus-per-task={cluster.CPUS}", "--output=/dev/null", "--wrap=sleep 1")
    wait_for_requeue(job)  # long before GraceTime ends
    saved = int((runs[0].folder / "latest.pt").read_text())
    until(lambda: lines(runs[0].folder) > saved)


def test_a_requeue_whose_answer_comes_late(tmp_path):
    """SLURM kills the job as soon as it has granted the requeue: here before the scontrol that asked has ended."""
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "scontrol"
    shim.write_text(f'#!/bin/bash\n{shutil.which("scontrol")} "$@"\ncode=$?\nsleep 1\nexit $code\n')
    shim.chmod(0o755)
    runs = stand_ins(tmp_path / "log", 1)
    submit(runs, f"setup=export PATH={shim.parent}:$PATH")
    until(lambda: lines(runs[0].folder))
    cluster.ask("scancel", "--signal=USR2", runs[0].slurm_job())
    wait_for_requeue(runs[0].slurm_job())
    assert runs[0].record()["stopping"] and "problem" not in runs[0].record()
    saved = int((runs[0].folder / "latest.pt").read_text())
    until(lambda: lines(runs[0].folder) > saved)


def test_a_requeue_that_slurm_refuses_is_said(tmp_path, capsys):
    runs = stand_ins(tmp_path, 1)
    submit(runs, "no_requeue")
    until(lambda: lines(runs[0].folder))
    cluster.ask("scancel", "--signal=USR2", runs[0].slurm_job())
    until(lambda: not queue())
    assert (runs[0].folder / "latest.pt").exists()
    capsys.readouterr()
    assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "waiting" in said and "could not be requeued" in said and "repeat the command to resume" in said


def test_a_time_limit_without_time_to_save_is_no_endless_loop(tmp_path):
    runs = stand_ins(tmp_path, 1, saving=-1)
    submit(runs)
    for _ in range(sweep_job.MAX_VAIN):
        count = lines(runs[0].folder)
        until(lambda count=count: lines(runs[0].folder) > count)
        cluster.ask("scancel", "--signal=USR2", runs[0].slurm_job())
        until(lambda: "RUNNING" not in queue())
    until(lambda: not queue())
    assert states(runs) == ["failed"] and "--slurm time=" in runs[0].note("failed", {})


def test_a_warning_before_python_listens_does_not_kill_the_job(tmp_path, monkeypatch):
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/bash\ntouch {tmp_path}/starting; sleep 2; exec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    runs = stand_ins(tmp_path, 1, steps=20)
    monkeypatch.setattr(sys, "executable", str(slow))
    submit(runs)
    until((tmp_path / "starting").exists)
    cluster.ask("scancel", "--signal=USR2", runs[0].slurm_job())
    until(lambda: states(runs) == ["finished"])


def test_a_sweep_that_starts_in_a_session_of_slurm(tmp_path):
    """The variables of salloc and srun do not reach the jobs."""
    (tmp_path / "driver.py").write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import test_slurm\n"
        f"test_slurm.submit(test_slurm.stand_ins(test_slurm.Path({str(tmp_path)!r}), 1, steps=20), 'cpus_per_task=2')\n"
    )
    session = ["srun", "--ntasks=2", "--cpus-per-task=1", "--job-name=session", "--gpus-per-task=1"]
    session += ["bash", "-c", '[ $SLURM_PROCID = 1 ] || exec "$@"', "bash", sys.executable]
    answer = subprocess.run([*session, tmp_path / "driver.py"], capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stderr
    runs = stand_ins(tmp_path, 1, steps=20)
    until(lambda: states(runs) == ["finished"])
    env = environ(runs[0])
    assert env["SLURM_JOB_NAME"] == "hrssm" and env["SLURM_NTASKS"] == "1" and env["SLURM_CPUS_PER_TASK"] == "2"
    assert not {"SLURM_GPUS_PER_TASK", "SLURM_STEP_GPUS"} & set(env)


def test_a_death_before_the_start_has_a_reason(tmp_path, capsys, monkeypatch):
    argv = ["--status", "--logdir", str(tmp_path)]
    runs = stand_ins(tmp_path, 1)
    submit(runs, "setup=module-of-nobody load cuda")
    until(lambda: not queue())
    log = tmp_path / ".slurm" / f"{runs[0].slurm_job()}.log"
    assert states(runs) == ["failed"] and "module-of-nobody: command not found" in log.read_text()
    capsys.readouterr()
    assert sweep.main(argv) == 0
    said = capsys.readouterr().out
    assert "before dreamer.py started" in said and "command not found" in said and str(log) in said
    with monkeypatch.context() as context:  # stands in for a node without the environment
        context.setattr(sys, "executable", "/nowhere/python")
        submit(runs)
    until(lambda: not queue())
    assert states(runs) == ["failed"] and "/nowhere/python" in runs[0].note("failed", {})
    # A repeat tries again; a canceled one is no failure
    submit(runs, "setup=echo ready; sleep 100")
    until(lambda: states(runs) == ["running"])
    cluster.ask("scancel", runs[0].slurm_job())
    until(lambda: not queue())
    assert states(runs) == ["waiting"]


@pytest.mark.parametrize(
    "word, reason", [("time=1-00:00", "PartitionTimeLimit"), ("cpus_per_task=64", "PartitionConfig")]
)
def test_jobs_that_can_never_start_have_slurms_reason(tmp_path, capsys, word, reason):
    runs = stand_ins(tmp_path, 1)
    submit(runs, word)
    until(lambda: reason in queue())
    capsys.readouterr()
    assert sweep.main(["--status", "--logdir", str(tmp_path)]) == 0
    assert f"PENDING ({reason})" in capsys.readouterr().out


def test_runs_that_share_gpus(tmp_path):
    """One task of an array fills a node of two GPUs with two runs each."""
    runs = stand_ins(tmp_path / "50% of it", 4, steps=40)
    submit(runs, "gpus_per_node=2", f"cpus_per_task={cluster.CPUS}", per_gpu=2)
    assert len({run.slurm_job() for run in runs}) == 1
    until(lambda: all(lines(run.folder) for run in runs))
    assert [environ(run)["CUDA_VISIBLE_DEVICES"] for run in runs] == ["0", "1", "0", "1"]
    assert {environ(run)["OMP_NUM_THREADS"] for run in runs} == {os.environ.get("OMP_NUM_THREADS", "1")}
    until(lambda: states(runs) == ["finished"] * 4)


def test_ctrl_c_while_sbatch_runs_cancels_the_array(tmp_path, monkeypatch, capsys):
    """sbatch itself runs; before it does, its parent is interrupted as from a keyboard."""
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "sbatch"
    shim.write_text(f'#!/bin/bash\nkill -INT $PPID\nexec {shutil.which("sbatch")} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    runs = stand_ins(tmp_path, 5)
    assert sweep_slurm.submit(runs, tmp_path, None, 1, SMALL) == 130
    assert "interrupted: canceled" in capsys.readouterr().out
    until(lambda: not queue())
    assert states(runs) == ["waiting"] * 5 and runs[4].slurm_job() is None


def test_logs_on_a_machine_without_slurm(tmp_path, capsys, monkeypatch):
    runs = stand_ins(tmp_path / "log", 2, steps=20)
    submit(runs[:1])
    until(lambda: states(runs) == ["finished", "waiting"])
    submit(runs[1:], "hold")
    shutil.copytree(tmp_path / "log", tmp_path / "laptop")
    monkeypatch.setenv("PATH", str(tmp_path))
    capsys.readouterr()
    assert sweep.main(["--status", "--logdir", str(tmp_path / "laptop")]) == 0
    said = capsys.readouterr().out
    assert "1 waiting, 1 finished" not in said  # steps are those of config.yaml, which a stand-in does not write
    assert "20/?" in said and "states are those of the folders: squeue" in said
    with pytest.raises(sweep.ConfigError, match=r"remove \.slurm_job"):
        sweep.main(["--logdir", str(tmp_path / "laptop"), "--tasks", TASK])


def test_a_folder_whose_jobs_would_not_find_their_logs(tmp_path):
    with pytest.raises(sweep.ConfigError, match="no name with a backslash"):
        submit(stand_ins(tmp_path / "back\\slash", 1, steps=40))
    assert not queue()


@pytest.mark.parametrize(
    "word, said",
    [
        ("partition=nowhere", "invalid partition specified: nowhere"),
        ("partitoin=lab", "unrecognized option '--partitoin=lab'; did you mean partition"),
        ("use_srun=False", None),
        ("exclusive=True", None),
        ("exclusive=False", None),
        ("nodes=1", None),
        ("mem=100M", None),
        ("srun_args=--overlap", "unrecognized option"),
        ("reservation=nobodys", "reservation"),
        ("gres=gpu:1", None),
        ("signal_delay_s=10", None),
        ("comment=a b'c\"d$HOME", None),
        ("test_only", "sbatch: "),
    ],
)
def test_options_of_sbatch(tmp_path, word, said):
    runs = stand_ins(tmp_path, 1)
    if said is None:
        return submit(runs, word, "hold")
    with pytest.raises(sweep.ConfigError) as error:
        submit(runs, word)
    text = str(error.value)
    assert said in text and "\n" not in text and text.count("ubmission failed") <= 1
