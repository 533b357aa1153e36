"""The runs of setup/sweep.py as SLURM arrays: options of sbatch, submission, the queue, the logs of jobs.

Everything of a job lies in {logdir}/.slurm: the list of an array's runs, written before sbatch is called, and a log for
each task, JOB_TASK.log. setup/sweep_job.py trains the runs.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from run import process
from run.config import ConfigError, nearest
from setup.sweep_run import STARTS, Queue, Run, ask

JOB = str(Path(__file__).with_name("sweep_job.py"))  # trains the runs of a task
DEFAULTS = {"job_name": "hrssm", "time": "1440", "gpus_per_node": "1", "cpus_per_task": "8"}
SIGNAL_DELAY = 300  # seconds to save a checkpoint in
# Options that replace the default of another one
REPLACES = {"gres": "gpus_per_node", "gpus": "gpus_per_node", "gpus_per_task": "gpus_per_node"}
REPLACES |= {"cpus_per_gpu": "cpus_per_task", "no_requeue": "requeue"}
ONE = ("nodes", "ntasks", "ntasks_per_node")  # 1, or left out
REFUSED = dict.fromkeys(ONE, "a run is one process on one node; docs/scaling.md has the torchrun line for several")
REFUSED |= dict.fromkeys(("output", "error"), "each run has its logs in its folder, each job in .slurm")
REFUSED |= dict.fromkeys(("array", "array_parallelism"), "the sweep sets the array; --max_parallel limits it")
REFUSED |= {"signal": "signal_delay_s=SECONDS sets it", "wrap": "setup=COMMANDS runs before dreamer.py"}
# Variables of a session within SLURM or torchrun: a job that inherits them takes the session's size and binding
SESSION = re.compile(
    r"(?!SLURM_(CONF|JWT)$)(SLURMD?_|SRUN_|SBATCH_(CPU|MEM)_BIND)|(MASTER_(ADDR|PORT)|(LOCAL_)?(RANK|WORLD_SIZE))$"
)
# srun makes a step: the SIGTERM of a preemption goes to steps only. SIGUSR2 is ignored until Python handles it.
SCRIPT = """#!/bin/bash
echo "sweep on $(hostname): {starts}"
{{
{setup}
}} || exit
exec srun --quiet --ntasks=1 --cpus-per-task=$SLURM_CPUS_ON_NODE bash -c 'trap "" USR2; exec "$@"' bash {command}
"""


def parse_options(words: list[str]) -> dict[str, str]:
    """{option of sbatch with underscores: value}, defaults included; an option without a value has an empty one."""
    options = DEFAULTS | {"requeue": "", "open_mode": "append"}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or (equals and not value):
            raise ConfigError(f"--slurm {word}: expected KEY=VALUE, or KEY for an option of sbatch without a value")
        if key in REFUSED and not (key in ONE and value == "1"):
            raise ConfigError(f"--slurm {word}: {REFUSED[key]}")
        for old in (key, REPLACES.get(key)):
            options.pop(old, None)
        if value.lower() != "false":
            options[key] = "" if value.lower() == "true" else value
    return options


def parse_seconds(key: str, word: str) -> float:
    """Seconds of a time limit in any form that sbatch takes; infinite for none."""
    if word.lower() in ("infinite", "unlimited", "-1", "0"):
        return math.inf
    match = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)??(\d+)(?::(\d+))?", word)
    if not match:
        raise ConfigError(
            f"--slurm {key}={word}: expected minutes such as 2880, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES"
        )
    sizes = (86400, 3600, 60, 1, 3600, 60, 1)
    return sum(int(number or 0) * size for number, size in zip(match.groups(), sizes, strict=True))


def signal_delay(options: dict[str, str]) -> int:
    """Seconds between SLURM's warning and the time limit, at most half of it: SLURM may warn a minute too early."""
    word = options.pop("signal_delay_s", None)
    limit = min((parse_seconds(key, options[key]) for key in ("time", "time_min") if key in options), default=math.inf)
    if word is None:
        return int(min(SIGNAL_DELAY, limit / 4))
    if re.fullmatch(r"\d{1,5}", word) and 1 <= int(word) <= min(limit / 2, 65535):
        return int(word)
    raise ConfigError(f"--slurm signal_delay_s={word}: expected seconds, at most half of time={options.get('time')}")


def gpus_of(options: dict[str, str]) -> int:
    """The GPUs of a job on its one node, 0 if its options name none."""
    words = [options.get("gpus_per_node", ""), options.get("gpus", "")]
    words += re.findall(r"\bgpu:[^,]*", options.get("gres", ""))
    return max(int(number[0]) if (number := re.search(r"\d+$", word)) else 0 for word in words)


def submit(runs: Sequence[Run], logdir: Path, max_parallel: int | None, per_gpu: int, words: list[str]) -> int:
    """Submits the runs, `per_gpu` for each GPU of a task, as an array or several. Returns the exit status."""
    options = parse_options(words)
    setup, delay = options.pop("setup", ":"), signal_delay(options)
    together = per_gpu * max(1, gpus_of(options))
    tasks = [runs[i : i + together] for i in range(0, len(runs), together)]
    shown = re.search(r"^MaxArraySize\s*= (\d+)", ask("scontrol", "show", "config").stdout, re.MULTILINE)
    largest = int(shown[1]) if shown else 1001
    arrays = [tasks[i : i + largest] for i in range(0, len(tasks), largest)]
    if "\\" in str(logdir):
        raise ConfigError(f"--logdir {logdir}: SLURM takes no name with a backslash for the logs of an array")
    folder = logdir / ".slurm"
    folder.mkdir(parents=True, exist_ok=True)
    options |= {"output": f"{str(folder).replace('%', '%%')}/%A_%a.log", "signal": f"USR2@{delay}"}
    submitted: list[str] = []
    with process.Interrupt() as interrupt:
        for tasks in arrays:
            options["array"] = f"0-{len(tasks) - 1}"
            if max_parallel:
                options["array"] += f"%{max(1, max_parallel // together)}"
                if submitted:  # all arrays together keep to --max_parallel
                    options["dependency"] = f"afterany:{submitted[-1]}"
            lists = [[{"command": run.command, "folder": str(run.folder)} for run in task] for task in tasks]
            handle, path = tempfile.mkstemp(suffix=".json", dir=folder)
            with open(handle, "w") as file:
                json.dump(lists, file)
            for run in [run for task in tasks for run in task]:
                (run.folder / ".sweep.json").unlink(missing_ok=True)
            command = shlex.join([sys.executable, "-u", JOB, path])
            try:
                job = sbatch(options, SCRIPT.format(starts=STARTS, setup=setup, command=command))
            except ConfigError:
                os.unlink(path)
                raise
            submitted.append(job)
            for number, task in enumerate(tasks):
                for run in task:
                    run.folder.mkdir(parents=True, exist_ok=True)
                    (run.folder / ".slurm_job").write_text(f"{job}_{number}")
                    print(f"{run}: job {job}_{number}, logs in {run.folder}")
            if interrupt.requested:
                subprocess.run(["scancel", *submitted], start_new_session=True)
                print(f"interrupted: canceled {' '.join(submitted)}")
                return 130
    several = f" in {len(arrays)} arrays (MaxArraySize is {largest})" if len(arrays) > 1 else ""
    print(f"{len(runs)} runs submitted{several}; --status shows them, scancel {' '.join(submitted)} cancels all")
    return 0


def sbatch(options: dict[str, str], script: str) -> str:
    """Submits a script and returns the id of the job. Ctrl-C, which would leave it unknown, does not reach sbatch."""
    flags = [f"--{key.replace('_', '-')}" + (f"={value}" if value else "") for key, value in options.items()]
    env = {name: value for name, value in os.environ.items() if not SESSION.match(name)}
    try:
        answer = subprocess.run(
            ["sbatch", "--parsable", *flags], input=script, env=env, start_new_session=True, capture_output=True,
            text=True,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--executor slurm: sbatch cannot be run here ({error.strerror})") from None
    if answer.returncode == 0 and (match := re.match(r"\d+", answer.stdout)):
        return match[0]
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.stderr.splitlines()]
    said = "; ".join(line for line in dict.fromkeys(lines) if not line.startswith("Try ")) or answer.stdout.strip()
    if unknown := re.search(r"unrecognized option '--([\w-]+)", said):
        said += nearest(unknown[1], re.findall(r"--([a-z][a-z-]+)", ask("sbatch", "--help").stdout))
    raise ConfigError(f"--executor slurm: sbatch: {said or f'exit {answer.returncode}'}")


def read_queue() -> Queue:
    """The user's jobs that SLURM knows now."""
    where = "runs of this grid may be in SLURM's queue (if they cannot be, remove .slurm_job from their folders)"
    answer = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r")
    if answer.returncode is None:
        raise ConfigError(f"squeue did not answer, and {where}: {answer.stderr}")
    if answer.returncode:
        raise ConfigError(f"squeue failed, and {where}: {answer.stderr.strip()[:200]}")
    jobs = [words for line in answer.stdout.splitlines() if len(words := line.split("|", 2)) == 3]
    return {job: state if reason == "None" else f"{state} ({reason})" for job, state, reason in jobs}
