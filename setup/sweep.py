"""Starts many runs, tasks × methods × seeds, each in {logdir}/{task}/{method}/seed{N}:

    python setup/sweep.py --tasks dmc_walker_walk dmc_cup_catch --methods hrssm M --seeds 0-4 --configs dmc_vision \\
        [--executor slurm] [-- flags for dreamer.py]

A method is a named config of configs.yaml, several joined by '+' (`M+continuous`), or `hrssm` for none, merged over
the groups of --configs. submitit starts the runs: as local processes, --max_parallel at a time, or as one SLURM array
(--executor slurm). Finished runs are skipped, stopped, preempted or killed ones resume, and failed ones are retried:
when in doubt, repeat the command. --status prints the state of each run. --export FOLDER copies the curves of the runs
to a folder small enough for a repository. Ctrl-C stops local runs cleanly.

A run's folder also gets stdout.log, stderr.log, and this script's own hidden files: .lock, held while a process
trains there; .sweep.json, its GPU and exit status; .slurm_job, its last job.
"""

import argparse
import contextlib
import fcntl
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from run import files, process  # noqa: E402
from run.config import ConfigError, check_config, load_config, nearest, read_config, save_config  # noqa: E402

SLURM_DEFAULTS = {"job_name": "hrssm", "time": 24 * 60, "gpus_per_node": 1, "cpus_per_task": 8, "signal_delay_s": 300}
MAX_SEED, MAX_SEEDS = 10**18, 10_000
EXPORT_BYTES = 40_000  # of a run's rows; all evaluation rows are kept
STATES = ("waiting", "running", "finished", "failed")


class SweepError(Exception):
    """A user's error, in one line."""


# ---------------------------------------------------------------------------------------------------------- the process


class Job:
    """One run as submitit starts it, pickled by value: it uses nothing else from this file.

    SIGTERM is passed on to dreamer.py, which saves a checkpoint and exits. `checkpoint` is submitit's hook for SLURM's
    warning before a time limit or a preemption (SIGUSR2): it does the same, and the job is requeued.

    gpu: value of CUDA_VISIBLE_DEVICES, None to leave it.
    """

    def __init__(self, command: list[str], folder: Path, gpu: str | None = None):
        self.command, self.folder, self.gpu = command, folder, gpu
        self.pid: int | None = None  # of dreamer.py
        self.stopping = False
        self.terminated = False  # dreamer.py was sent SIGTERM; another one could hit it while it saves
        self.slurm = False

    def __call__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.lock()
        self.record({"gpu": self.gpu})
        self.slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        signal.signal(signal.SIGTERM, self.stop)
        env = dict(os.environ) if self.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpu}
        with open(self.folder / "stdout.log", "ab") as out, open(self.folder / "stderr.log", "ab") as err:
            # dreamer.py inherits the lock, so that it is held while dreamer.py runs, whatever happens to this process.
            process = subprocess.Popen(
                self.command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=[lock],
                start_new_session=not self.slurm, preexec_fn=self.prepare_signals,
            )  # fmt: skip
        self.pid = process.pid
        if self.stopping:
            self.terminate()
        # Popen.wait holds a lock on which `checkpoint`, called from a signal handler within it, would deadlock
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        code = process.wait()
        self.record({"gpu": self.gpu, "exit": code})
        if self.slurm and self.stopping:
            time.sleep(3600)  # SLURM decides between requeue and cancellation; it drops jobs that exit on their own
        if code:
            raise RuntimeError(f"dreamer.py exited with {code}: see {self.folder / 'stderr.log'}")

    def lock(self) -> int:
        """Locks the folder; RuntimeError if another process trains in it. --status holds the lock briefly."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                time.sleep(0.1)
        raise RuntimeError(f"another process trains in {self.folder}")

    def record(self, entry: dict) -> None:
        aside = self.folder / ".sweep.json.tmp"
        aside.write_text(json.dumps(entry))
        os.replace(aside, self.folder / ".sweep.json")

    @staticmethod
    def prepare_signals() -> None:
        """In dreamer.py, before it starts: SLURM sends its warning to all processes of a job, which would kill them."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def stop(self, *_) -> None:
        self.stopping = True
        if self.pid is not None:
            self.terminated = self.terminated or self.slurm  # SLURM itself sends SIGTERM to all processes of a job
            self.terminate()

    def terminate(self) -> None:
        if not self.terminated:
            self.terminated = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def checkpoint(self):
        import submitit

        if self.pid is not None:
            self.terminate()
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.command, self.folder, self.gpu))


# ------------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Run:
    """A run of the grid. steps: environment steps after which it is finished, None if unknown."""

    task: str
    method: str
    seed: int
    folder: Path
    steps: int | None
    command: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"

    def locked(self) -> bool:
        """Whether a process that a sweep started trains in the folder, on this machine or wherever its locks reach."""
        try:
            lock = os.open(self.folder / ".lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(lock)

    def record(self) -> dict:
        """Written by the last process: its `gpu`, and its `exit` status if it ended."""
        try:
            found = json.loads((self.folder / ".sweep.json").read_text())
            code, gpu = found.get("exit"), found.get("gpu")
        except (OSError, ValueError, AttributeError, RecursionError):  # absent or damaged
            return {}
        found = {"gpu": gpu} if isinstance(gpu, str) else {}
        return found | {"exit": code} if isinstance(code, int) else found

    def slurm_job(self) -> str | None:
        """The id of the last SLURM job."""
        try:
            return (self.folder / ".slurm_job").read_text().strip()
        except (OSError, ValueError):
            return None

    def rows(self) -> Iterator[dict]:
        """The rows of metrics.jsonl from its end; skips damaged ones, and the incomplete line of a killed run."""
        try:
            lines = (self.folder / "metrics.jsonl").read_bytes().splitlines()
        except OSError:
            return
        for line in reversed(lines):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and is_number(row.get("step")):
                yield {name: value for name, value in row.items() if value is None or is_number(value)}

    def progress(self) -> dict:
        """`step`, `eval_return` (the newest), `age` in seconds, `finished`, from the end of metrics.jsonl."""
        found = {"step": 0, "eval_return": None, "age": None, "finished": False}
        try:
            written = (self.folder / "metrics.jsonl").stat().st_mtime
        except OSError:
            return found
        found["age"] = time.time() - written
        rows = []
        for row in self.rows():
            rows.append(row)
            if row.get("eval_return") is not None:
                found["eval_return"] = row["eval_return"]
                break
        if not rows:
            return found
        found["step"] = rows[0]["step"]
        # A run ends with its last updates, a row with their count, and a checkpoint.
        counted = max((row["step"] for row in rows if "update_count" in row), default=-1)
        with contextlib.suppress(OSError):
            saved = (self.folder / "latest.pt").stat().st_mtime >= written
            found["finished"] = self.steps is not None and saved and counted >= self.steps
        return found

    def state(self, queue: dict[str, str]) -> str:
        """One of STATES; `queue` as of `read_queue`. A run is waiting if it has not started or can resume."""
        if self.locked():
            return "running"
        job = queue.get(self.slurm_job() or "")
        if job is not None:
            return "running" if job in ("RUNNING", "COMPLETING") else "waiting"
        if self.progress()["finished"]:
            return "finished"
        return "failed" if self.record().get("exit") not in (None, 0, -signal.SIGTERM) else "waiting"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def read_queue(runs: list[Run]) -> dict[str, str]:
    """{job id: state} of the user's jobs that SLURM knows now; asks it only if some run was ever submitted."""
    if not any(run.slurm_job() for run in runs):
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SweepError(f"squeue did not answer, and runs of this grid may be in SLURM's queue ({error})") from None
    if answer.returncode:
        raise SweepError(f"squeue failed, and runs of this grid may be in SLURM's queue: {answer.stderr.strip()[:200]}")
    return dict(words for line in answer.stdout.splitlines() if len(words := line.split()) == 2)


def find_runs(logdir: Path) -> list[Run]:
    """Every run of earlier sweeps in `logdir`, finished when it has the steps of its own config.yaml."""
    runs = []
    for folder in logdir.glob("*/*/seed*"):
        if re.fullmatch(r"seed\d+", folder.name) and folder.is_dir():
            steps = None
            with contextlib.suppress(ConfigError, OSError):
                steps = read_config(folder / "config.yaml").get("steps")
                steps = steps if is_number(steps) else None
            runs.append(Run(folder.parts[-3], folder.parts[-2], int(folder.name[4:]), folder, steps))
    if not runs:
        raise SweepError(f"--logdir {logdir}: no run there; expected {{task}}/{{method}}/seed{{N}} folders")
    return sorted(runs, key=lambda run: (run.task, run.method, run.seed))


# ------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        hint = "; flags for dreamer.py come after --" if "unrecognized" in message else ""
        raise SweepError(message + hint)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those after `--`."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=[])
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=["hrssm"], help="default: hrssm")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", default=["0"], help="such as 0-4 or 0 3 7; default: 0")
    parser.add_argument("--configs", nargs="+", metavar="NAME", default=[], help="groups below every method")
    parser.add_argument("--logdir", default="./log", help="default: ./log")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="default: local")
    parser.add_argument("--max_parallel", type=int, help="runs at a time; default: the number of GPUs here, else 1")
    parser.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", default=[],
        help="of sbatch, as submitit names it, such as partition=gpu account=lab mem=32GB time=2880 (minutes); "
        f"default: {' '.join(f'{k}={v}' for k, v in SLURM_DEFAULTS.items())}",
    )  # fmt: skip
    parser.add_argument("--status", action="store_true", help="print a table; without --tasks, of all runs in --logdir")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="copy small curves there; runs as for --status")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that would start")
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


def log_folder(args: argparse.Namespace) -> Path:
    try:
        return Path(args.logdir).expanduser().absolute()
    except RuntimeError as error:
        raise SweepError(f"--logdir {args.logdir}: {error}") from None


def parse_seeds(words: list[str]) -> list[int]:
    """['0-2', '7'] -> [0, 1, 2, 7]."""
    seeds = []
    for word in ",".join(words).split(","):
        match = re.fullmatch(r"(\d{1,99})(?:-(\d{1,99}))?", word)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise SweepError(f"--seeds {word}: expected whole numbers and increasing ranges, such as 0-4 or 0 3 7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_SEED:
            raise SweepError(f"--seeds {word}: expected seeds up to {MAX_SEED}")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise SweepError(f"--seeds {word}: expected {MAX_SEEDS} seeds or fewer")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def make_grid(args: argparse.Namespace, flags: list[str]) -> list[Run]:
    """tasks × methods × seeds, in this order, all names checked. Exits with one line for bad flags, as dreamer.py."""
    for flag in flags:
        name = flag.partition("=")[0]
        if name in ("--task", "--seed", "--logdir", "--configs"):
            instead = name + "s" if name in ("--task", "--seed") else name
            raise SweepError(f"{name} after --: the sweep sets it; give {instead} before the --")
    seeds = parse_seeds(args.seeds)
    logdir = log_folder(args)
    methods, steps = {}, {}
    for method in dict.fromkeys(args.methods):
        if not re.fullmatch(r"[\w.-]+(\+[\w.-]+)*", method):
            raise SweepError(f"--methods {method}: expected a named config, or several joined by +, or hrssm")
        groups = [*args.configs, *(name for name in method.split("+") if name != "hrssm")]
        methods[method] = ["--configs", *groups] if groups else []
        config = load_config([*methods[method], *flags])
        try:
            check_config(config)
        except ConfigError as error:
            raise SweepError(str(error)) from None
        steps[method] = config.steps

    import envs  # imports dm_control, which takes seconds

    runs = []
    for task in dict.fromkeys(args.tasks):
        try:
            envs.parse(task)
        except ValueError as error:
            raise SweepError(str(error).replace("--task ", "--tasks ", 1)) from None
        for method, groups in methods.items():
            for seed in seeds:
                folder = logdir / task / method / f"seed{seed}"
                command = [sys.executable, "-u", str(ROOT / "dreamer.py"), *groups, "--task", task, "--seed", str(seed)]
                command += ["--logdir", str(folder), *flags]
                runs.append(Run(task, method, seed, folder, steps[method], tuple(command)))
    return runs


# --------------------------------------------------------------------------------------------------------------- status


def ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def last_line(path: Path) -> str:
    """The last line of text in a log, cut to a readable length."""
    try:
        lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def status(runs: list[Run]) -> str:
    """The table: state, environment step, newest eval_return, and the time since the last row of the log."""
    queue = read_queue(runs)
    rows = [("task", "method", "seed", "state", "step", "eval_return", "age", "")]
    for run in runs:
        state, progress = run.state(queue), run.progress()
        score = "-" if progress["eval_return"] is None else f"{progress['eval_return']:.1f}"
        step = f"{progress['step']}/{'?' if run.steps is None else run.steps}"
        note = ""
        if state == "failed":
            note = f"exit {run.record().get('exit')}: {last_line(run.folder / 'stderr.log')}"
        elif run.slurm_job() in queue:
            note = f"job {run.slurm_job()} {queue[run.slurm_job()]}"
        rows.append((run.task, run.method, str(run.seed), state, step, score, ago(progress["age"]), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (2, 4, 5, 6)
    lines = [
        "  ".join(v.rjust(w) if i in right else v.ljust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    counts = Counter(row[3] for row in rows[1:])
    lines.append(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    return "\n".join(line.rstrip() for line in lines)


# --------------------------------------------------------------------------------------------------------------- export


def export(runs: list[Run], folder: Path) -> str:
    """Copies the rows, the settings and the evaluations of runs to {folder}/{task}/{method}/seed{N}."""
    exported, empty, unfinished = 0, [], []
    for run in runs:
        rows = list(run.rows())[::-1]
        if not rows:
            empty.append(str(run))
            continue
        if not run.progress()["finished"]:
            unfinished.append(str(run))
        place = Path(run.task, run.method, f"seed{run.seed}")
        try:
            settings = read_config(run.folder / "config.yaml").replace(logdir=str(place))
        except ConfigError as error:
            raise SweepError(f"--export: {error}") from None
        with files.replacing(folder / place / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in thin(rows))
        save_config(settings, folder / place / "config.yaml")
        if (run.folder / "eval.jsonl").is_file():
            shutil.copyfile(run.folder / "eval.jsonl", folder / place / "eval.jsonl")
        exported += 1
    lines = [f"{exported} runs exported to {folder}"]
    lines += [f"not finished: {', '.join(unfinished)}"] if unfinished else []
    lines += [f"left out, no rows yet: {', '.join(empty)}"] if empty else []
    return "\n".join(lines)


def thin(rows: list[dict]) -> list[dict]:
    """All evaluation rows, and every n-th row of episodes and of updates, counted from the last, in EXPORT_BYTES."""
    rows = [{name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    sizes = [len(json.dumps(row)) + 1 for row in rows]
    groups: dict[str, list[int]] = {"eval_return": [], "train_return": [], "": []}
    for number, row in enumerate(rows):
        groups[next(name for name in groups if name in row or not name)].append(number)
    kept = groups.pop("eval_return")
    share = (EXPORT_BYTES - sum(sizes[number] for number in kept)) // len(groups)
    for numbers in groups.values():
        stride = 1
        while stride < len(numbers) and sum(sizes[number] for number in numbers[::-stride]) > share:
            stride += 1
        kept += numbers[::-stride]
    return [rows[number] for number in sorted(kept)]


# ------------------------------------------------------------------------------------------------------------- starting


def visible_gpus() -> list[str]:
    """Values for CUDA_VISIBLE_DEVICES, one GPU each: those of its current value, else all GPUs."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    try:
        answer = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, _ in enumerate(answer.stdout.splitlines())] if answer.returncode == 0 else []


def run_local(todo: list[Run], elsewhere: list[Run], logdir: Path, max_parallel: int | None) -> int:
    """Trains `todo` in local processes, one GPU each while there are enough. Runs `elsewhere`, of another sweep that is
    still running or was killed, count as active. Returns the exit status."""
    import submitit

    gpus = visible_gpus()
    max_parallel = max_parallel or len(gpus) or 1
    folder = Path(tempfile.mkdtemp(prefix="local-", dir=_submitit_folder(logdir)))
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=60 * 24 * 365)
    active: dict[Run, tuple[submitit.Job, str | None]] = {}
    todo, total, failed, lost, stopping = list(todo), len(todo), 0, False, False
    with process.Interrupt() as interrupt:
        while active or (todo and not interrupt.requested):
            elsewhere = [run for run in elsewhere if run.locked()]
            while todo and not interrupt.requested and len(active) + len(elsewhere) < max_parallel:
                run = todo.pop(0)
                (run.folder / ".sweep.json").unlink(missing_ok=True)
                used = Counter([gpu for _, gpu in active.values()] + [run.record().get("gpu") for run in elsewhere])
                gpu = min(gpus, key=lambda gpu: used[gpu]) if gpus else None
                # Ctrl-C would kill submitit's processes: only this one gets it, and stops the runs cleanly.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    active[run] = executor.submit(Job(list(run.command), run.folder, gpu)), gpu
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                where = "" if gpu is None else f" on GPU {gpu}"
                print(f"[{total - len(todo)}/{total}] {run}: started{where}, logs in {run.folder}", flush=True)
            time.sleep(0.2)
            if interrupt.requested:
                if not stopping:
                    print("stopping: the runs save their checkpoints", flush=True)
                stopping = True
                for job, _ in active.values():  # repeatedly: a process that is just starting may miss it
                    if not job.done():
                        os.kill(int(job.job_id), signal.SIGTERM)  # its id is that of submitit's process, not the run's
            for run in [run for run, (job, _) in active.items() if job.done()]:
                del active[run]
                code, progress = run.record().get("exit"), run.progress()
                if code in (0, -signal.SIGTERM) or (code is None and stopping):
                    what = "finished" if progress["finished"] else "stopped"
                    print(f"{run}: {what} at step {progress['step']}", flush=True)
                else:
                    failed, lost = failed + 1, lost or code is None
                    print(f"{run}: failed (exit {code}): {last_line(run.folder / 'stderr.log')}", flush=True)
    if lost:
        print(f"submitit's own logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return 130 if interrupt.requested else int(failed > 0)


def run_slurm(todo: list[Run], logdir: Path, max_parallel: int | None, words: list[str]) -> int:
    """Submits `todo` as an array."""
    import submitit

    parameters = dict(SLURM_DEFAULTS)
    known = submitit.SlurmExecutor._valid_parameters()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            hint = nearest(key, known, or_all=True)
            raise SweepError(f"--slurm {word}: expected KEY=VALUE of submitit's SlurmExecutor{hint}")
        parameters[key] = int(value) if re.fullmatch(r"-?\d+", value) else value
    if max_parallel:
        parameters["array_parallelism"] = max_parallel
    try:
        # a time limit that interrupts a run is not a failure
        executor = submitit.SlurmExecutor(folder=_submitit_folder(logdir), max_num_timeout=10**6)
        executor.update_parameters(**parameters)
        for run in todo:
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / ".sweep.json").unlink(missing_ok=True)
        jobs = executor.submit_array([Job(list(run.command), run.folder) for run in todo])
    except RuntimeError as error:
        reason = " ".join(str(error).split()) or "sbatch failed"
        raise SweepError(f"--executor slurm: {reason}") from None
    for run, job in zip(todo, jobs, strict=True):
        (run.folder / ".slurm_job").write_text(job.job_id)
        print(f"{run}: job {job.job_id}, logs in {run.folder}")
    print(f"{len(jobs)} jobs submitted; --status shows them, scancel {jobs[0].job_id.split('_')[0]} cancels all")
    return 0


def _submitit_folder(logdir: Path) -> Path:
    folder = logdir / ".submitit"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: list[str]) -> int:
    args, flags = parse(argv)
    logdir = log_folder(args)
    if logdir.exists() and not logdir.is_dir():
        raise SweepError(f"--logdir {args.logdir}: expected a folder")
    if args.max_parallel is not None and args.max_parallel < 1:
        raise SweepError(f"--max_parallel {args.max_parallel}: expected 1 or more")
    if args.slurm and args.executor != "slurm":
        raise SweepError("--slurm belongs to --executor slurm: add that, or leave it out")
    if not args.tasks and not args.status and args.export is None:
        raise SweepError("--tasks is missing: expected --tasks dmc_walker_walk dmc_cup_catch, for example")
    runs = make_grid(args, flags) if args.tasks else find_runs(logdir)
    if args.status:
        print(status(runs))
        return 0
    if args.export is not None:
        print(export(runs, args.export))
        return 0

    queue = read_queue(runs)
    todo, elsewhere = [], []
    for run in runs:
        if run.slurm_job() in queue or run.locked():
            elsewhere.append(run)
            print(f"# {run}: already {run.state(queue)}, left alone")
        elif run.state(queue) == "finished":
            print(f"# {run}: finished at step {run.progress()['step']}, skipped")
        else:
            todo.append(run)
    if args.dry_run:
        for run in todo:
            print(shlex.join(run.command))
        return 0
    if not todo:
        print("nothing left to start")
        return 0
    sys.stdout.flush()
    if args.executor == "slurm":
        return run_slurm(todo, logdir, args.max_parallel, args.slurm)
    code = run_local(todo, elsewhere, logdir, args.max_parallel)
    print(status(runs))
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SweepError, OSError) as error:
        print(f"sweep.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
