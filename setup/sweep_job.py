"""The runs of one task of a SLURM array, on its node: `python setup/sweep_job.py TASKS`, started by setup/sweep.py.

TASKS is a JSON file: for each task of the array its runs, each a `command` and a `folder`. All runs of a task train at
once and share its GPUs and CPUs.

SIGUSR2 (the warning) and the SIGTERM of a preemption save the checkpoints and requeue the job. The SIGTERM of scancel
saves them and ends it. Only the standard library is imported, so that the handlers are there within milliseconds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from setup.sweep_run import STOPPED, TRAINS, Process, Run, ask, ignore

MAX_VAIN = 3  # starts in a row that SLURM's warning ends before a checkpoint is saved


def main(path: str) -> int:
    """Trains until all runs have ended; returns the exit status of the job."""
    received: set[int] = set()
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.add(number))
    task = json.loads(Path(path).read_text())[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    runs = [Run(Path(entry["folder"]), command=tuple(entry["command"])) for entry in task]
    before = {run: run.record() | {"saved": run.written("latest.pt")} for run in runs}
    print(f"sweep: {TRAINS} {', '.join(str(run.folder) for run in runs)}")
    # all but those that had ended by themselves when the job was requeued
    processes = start([run for run in runs if "exit" not in before[run] or before[run].get("stopping")], received)
    while [process for process in processes if process.poll() is None]:
        if received:
            for process in processes:
                process.stop(sent=signal.SIGTERM in received)  # SLURM sends it to all processes of a job
        time.sleep(0.2)

    stopped = [process for process in processes if process.stopping and process.code in STOPPED]
    if warned := signal.SIGUSR2 in received:
        stopped = [process for process in stopped if not in_vain(process, before[process.run])]
    if stopped and (warned or is_preempted()):
        refused = requeue()
        if refused is None:
            print("sweep: checkpoints saved, the job is requeued")
            return 0
        problem = f"checkpoint saved, but the job could not be requeued ({refused}): repeat the command to resume"
        for process in stopped:
            process.record(problem=problem)
        print(f"sweep: {problem}")
        return 1
    codes = [run.record().get("exit") for run in runs]
    print(f"sweep: ended with exit status {', '.join(map(str, codes))}")
    return 0 if all(code in STOPPED for code in codes) else 1


def start(runs: list[Run], received: set[int]) -> list[Process]:
    """Starts the runs, evenly over the job's GPUs and CPUs; a run alone gets all of them."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    threads = int(os.environ.get("SLURM_CPUS_ON_NODE", 1)) // max(1, len(runs))
    processes = []
    for number, run in enumerate(runs):
        shared = (gpus[number % len(gpus)] or None, max(1, threads)) if len(runs) > 1 else (None, None)
        try:
            processes.append(Process(run, *shared, new_session=False))
            if received:  # maybe before the process was there to get it
                processes[-1].stop()
        except OSError as error:
            print(f"sweep: {error}")
            with contextlib.suppress(OSError):
                run.write_record({"exit": 1, "problem": str(error)})
    return processes


def in_vain(process: Process, before: dict) -> bool:
    """Counts the starts without a checkpoint; whether they were too many, of which the run's record then tells."""
    vain = before.get("vain", 0) + 1 if process.run.written("latest.pt") == before["saved"] else 0
    if vain < MAX_VAIN:
        process.record(vain=vain)
        return False
    problem = f"{vain} starts in a row came to the time limit before a checkpoint: give more, --slurm time=MINUTES"
    print(f"sweep: {process.run.folder}: {problem}")
    process.run.write_record({"exit": 1, "problem": problem})
    return True


def scontrol(*words: str) -> subprocess.CompletedProcess:
    """The answer of `scontrol WORDS JOB` about this job."""
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    survive = ignore(signal.SIGUSR2, signal.SIGTERM)  # the latter as soon as a requeue is granted
    return ask("scontrol", *words, job, before_start=survive)


def is_preempted() -> bool:
    """Whether the job still runs, in the grace time of a preemption."""
    shown = dict(word.split("=", 1) for word in scontrol("show", "job").stdout.split() if "=" in word)
    return shown.get("JobState") == "RUNNING" and shown.get("PreemptTime", "None") != "None"


def requeue() -> str | None:
    """Asks SLURM to start this job again later; returns its reason if it refuses."""
    answer = scontrol("requeue")
    return None if answer.returncode == 0 else " ".join(answer.stderr.split()) or f"exit {answer.returncode}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
