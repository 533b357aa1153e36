"""Starts many runs, tasks × methods × seeds, each in {logdir}/{task}/{method}/seed{N}:

    python setup/sweep.py --tasks dmc_walker_walk dmc_cup_catch --methods hrssm M --seeds 0-4 --configs dmc_vision \\
        [--executor slurm] [-- flags for dreamer.py]

A method is a named config of configs.yaml, several joined by '+' (`M+continuous`), or `hrssm` for none, merged over
the groups of --configs. The runs start as local processes, --max_parallel at a time, or as SLURM arrays (--executor
slurm). Finished runs are skipped, stopped, preempted or killed ones resume, and failed ones are retried: when in
doubt, repeat the command. --status prints the state of each run. --export FOLDER copies the curves of the runs to a
folder small enough for a repository. Ctrl-C stops local runs cleanly.

A run's folder also gets stdout.log, stderr.log, and this script's own hidden files: .lock, held while a process
trains there; .sweep.json, its GPU and exit status; .slurm_job, its last job. {logdir}/.slurm has the logs of the jobs.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import envs  # noqa: E402
from run import files, process  # noqa: E402
from run.config import ConfigError, check_config, check_resume, load_config, read_config, save_config  # noqa: E402
from setup import sweep_slurm  # noqa: E402
from setup.sweep_run import STATES, STOPPED, Process, Queue, Run, ask, is_number  # noqa: E402

MAX_SEED, MAX_SEEDS = 10**18, 10_000
EXPORT_BYTES = 40_000  # maximum for a run's rows; all evaluation rows are kept


# ------------------------------------------------------------------------------------------------------------- the runs


def queue_of(runs: list[Run]) -> Queue:
    """SLURM's queue; it is asked only if some run was ever submitted."""
    return sweep_slurm.read_queue() if any(run.slurm_job() for run in runs) else {}


def find_runs(logdir: Path) -> list[Run]:
    """Every run of earlier sweeps in `logdir`, finished when it has the steps of its own config.yaml."""
    runs = []
    for folder in logdir.glob("*/*/seed*"):
        if re.fullmatch(r"seed\d+", folder.name) and folder.is_dir():
            steps = None
            with contextlib.suppress(ConfigError, OSError):
                steps = read_config(folder / "config.yaml").get("steps")
                steps = steps if is_number(steps) else None
            runs.append(Run(folder, steps))
    if not runs:
        raise ConfigError(f"--logdir {logdir}: no run there; expected {{task}}/{{method}}/seed{{N}} folders")
    return sorted(runs, key=lambda run: run.names)


# ------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        hint = "; flags for dreamer.py come after --" if "unrecognized" in message else ""
        raise ConfigError(message + hint)


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
    parser.add_argument("--max_parallel", type=int, help="runs at a time; default: --per_gpu for each GPU here")
    parser.add_argument("--per_gpu", type=int, default=1, help="runs at a time on one GPU; default: 1")
    parser.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", default=[],
        help="options of sbatch, such as partition=gpu account=lab mem=32G time=2-00:00 exclusive=True, and two more: "
        "setup=COMMANDS to run first, and signal_delay_s=SECONDS to save in before the time limit; "
        f"default: {' '.join(f'{k}={v}' for k, v in sweep_slurm.DEFAULTS.items())} "
        f"signal_delay_s={sweep_slurm.SIGNAL_DELAY}",
    )  # fmt: skip
    parser.add_argument("--status", action="store_true", help="print a table; without --tasks, of all runs in --logdir")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="copy small curves there; runs as for --status")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that would start")
    return parser.parse_args(argv[:cut]), argv[cut + 1 :]


def log_folder(args: argparse.Namespace) -> Path:
    try:
        logdir = Path(args.logdir).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"--logdir {args.logdir}: {error}") from None
    if logdir.exists() and not logdir.is_dir():
        raise ConfigError(f"--logdir {args.logdir}: expected a folder")
    return logdir


def parse_seeds(words: list[str]) -> list[int]:
    """['0-2', '7'] -> [0, 1, 2, 7]."""
    seeds = []
    for word in ",".join(words).split(","):
        match = re.fullmatch(r"(\d{1,99})(?:-(\d{1,99}))?", word)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(f"--seeds {word}: expected whole numbers and increasing ranges, such as 0-4 or 0 3 7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_SEED:
            raise ConfigError(f"--seeds {word}: expected seeds up to {MAX_SEED}")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise ConfigError(f"--seeds {word}: expected {MAX_SEEDS} seeds or fewer")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def make_grid(args: argparse.Namespace, flags: list[str], logdir: Path) -> list[Run]:
    """tasks × methods × seeds, in this order, all names checked. Exits with one line for bad flags, as dreamer.py."""
    for flag in flags:
        name = flag.partition("=")[0]
        if name in ("--task", "--seed", "--logdir", "--configs"):
            instead = name + "s" if name in ("--task", "--seed") else name
            raise ConfigError(f"{name} after --: the sweep sets it; give {instead} before the --")
    seeds = parse_seeds(args.seeds)
    methods, steps = {}, {}
    for method in dict.fromkeys(args.methods):
        if not re.fullmatch(r"[\w.-]+(\+[\w.-]+)*", method):
            raise ConfigError(f"--methods {method}: expected a named config, or several joined by +, or hrssm")
        groups = [*args.configs, *(name for name in method.split("+") if name != "hrssm")]
        methods[method] = ["--configs", *groups] if groups else []
        config = load_config([*methods[method], *flags])
        check_config(config)
        steps[method] = config.steps
    runs = []
    for task in dict.fromkeys(args.tasks):
        try:
            envs.parse(task)
        except ValueError as error:
            raise ConfigError(str(error).replace("--task ", "--tasks ", 1)) from None
        for method, groups in methods.items():
            for seed in seeds:
                folder = logdir / task.replace("/", "-") / method / f"seed{seed}"  # gym_ale_py:ALE/Pong-v5 has a slash
                command = [sys.executable, "-u", str(ROOT / "dreamer.py"), *groups, "--task", task, "--seed", str(seed)]
                command += ["--logdir", str(folder), *flags]
                runs.append(Run(folder, steps[method], tuple(command)))
    return runs


# --------------------------------------------------------------------------------------------------------------- status


def ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def status(runs: list[Run]) -> str:
    """The table: state, environment step, newest eval_return, and the time since the last row of the log."""
    problem = None
    try:
        queue = queue_of(runs)
    except ConfigError as error:
        queue, problem = None, f"these states are those of the folders: {error}"
    left, right = str.ljust, str.rjust
    rows = [("task", "method", "seed", "state", "step", "eval_return", "age", "")]
    align = (left, left, right, left, right, right, right, left)
    for run in runs:
        state, progress = run.state(queue), run.progress()
        score = "-" if progress["eval_return"] is None else f"{progress['eval_return']:.1f}"
        step = f"{progress['step']}/{'?' if run.steps is None else run.steps}"
        note = run.note(state, queue)
        rows.append((*map(str, run.names), state, step, score, ago(progress["age"]), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(pad(cell, width) for pad, cell, width in zip(align, row, widths, strict=True)) for row in rows]
    counts = Counter(row[3] for row in rows[1:])
    lines.append(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    lines += [problem] if problem else []
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
        place = Path(*run.folder.parts[-3:])
        if (folder / place).resolve() == run.folder.resolve():
            raise ConfigError(f"--export {folder}: these are the runs themselves; expected another folder")
        try:
            settings = read_config(run.folder / "config.yaml").replace(logdir=str(place))
        except ConfigError as error:
            raise ConfigError(f"--export: {error}") from None
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
    kept, groups = [], ([], [])
    for number, row in enumerate(rows):
        evaluation = any(name.startswith("eval_") for name in row)
        (kept if evaluation else groups["update_count" in row]).append(number)
    share = (EXPORT_BYTES - sum(sizes[number] for number in kept)) // len(groups)
    for numbers in groups:
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
    answer = ask("nvidia-smi", "--list-gpus")
    return [str(i) for i, _ in enumerate(answer.stdout.splitlines())] if answer.returncode == 0 else []


def run_local(todo: list[Run], elsewhere: list[Run], max_parallel: int | None, per_gpu: int) -> int:
    """Trains `todo` in local processes, `per_gpu` on each GPU while there are enough. Runs `elsewhere`, of another
    sweep that is still running or was killed, count as active. Returns the exit status."""
    gpus = visible_gpus()
    max_parallel = max_parallel or per_gpu * max(1, len(gpus))
    threads = max(1, len(os.sched_getaffinity(0)) // max_parallel) if max_parallel > 1 else None
    active: list[Process] = []
    todo, total, failed = list(todo), len(todo), 0
    with process.Interrupt() as interrupt:
        while active or (todo and not interrupt.requested):
            elsewhere = [run for run in elsewhere if run.locked()]
            while todo and not interrupt.requested and len(active) + len(elsewhere) < max_parallel:
                run = todo.pop(0)
                used = Counter([job.gpu for job in active] + [run.record().get("gpu") for run in elsewhere])
                gpu = min(gpus, key=lambda gpu: used[gpu]) if gpus else None
                (run.folder / ".slurm_job").unlink(missing_ok=True)
                try:
                    active.append(Process(run, gpu, threads))
                except OSError as error:
                    failed += 1
                    print(f"{run}: failed: {error}", flush=True)
                    continue
                where = "" if gpu is None else f" on GPU {gpu}"
                print(f"[{total - len(todo)}/{total}] {run}: started{where}, logs in {run.folder}", flush=True)
            time.sleep(0.2)
            if interrupt.requested and not all(job.stopping for job in active):
                print("stopping: the runs save their checkpoints", flush=True)
                for job in active:
                    job.stop()
            for job in [job for job in active if job.poll() is not None]:
                active.remove(job)
                progress = job.run.progress()
                if job.code in STOPPED:
                    what = "finished" if progress["finished"] else "stopped"
                    print(f"{job.run}: {what} at step {progress['step']}", flush=True)
                else:
                    failed += 1
                    print(f"{job.run}: failed: {job.run.ending(job.code)}", flush=True)
    return 130 if interrupt.requested else int(failed > 0)


def main(argv: list[str]) -> int:
    args, flags = parse(argv)
    logdir = log_folder(args)
    for name in ("max_parallel", "per_gpu"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name} {value}: expected 1 or more")
    if args.slurm and args.executor != "slurm":
        raise ConfigError("--slurm belongs to --executor slurm: add that, or leave it out")
    if args.executor == "slurm":
        sweep_slurm.signal_delay(sweep_slurm.parse_options(args.slurm))  # refuses wrong options, also of a --dry_run
    if not args.tasks and not args.status and args.export is None:
        raise ConfigError("--tasks is missing: expected --tasks dmc_walker_walk dmc_cup_catch, for example")
    runs = make_grid(args, flags, logdir) if args.tasks else find_runs(logdir)
    if args.status:
        print(status(runs))
        return 0
    if args.export is not None:
        print(export(runs, args.export))
        return 0

    queue = queue_of(runs)
    todo, elsewhere, stopping = [], [], False
    for run in runs:
        state = run.state(queue)
        if state == "finished":
            check_resume(load_config(run.command[3:]), run.folder)  # raises if it was trained with other settings
            print(f"# {run}: finished at step {run.progress()['step']}, skipped")
        elif state == "stopping":
            stopping = True
            print(f"# {run}: is stopping: repeat the command later")
        elif state == "running" or run.slurm_job() in queue:
            print(f"# {run}: already {state}, left alone")
        else:
            todo.append(run)
        if state in ("running", "stopping"):
            elsewhere.append(run)
    if args.dry_run:
        for run in todo:
            print(shlex.join(run.command))
        return 0
    if not todo:
        print("nothing to start now" if stopping else "nothing left to start")
        return int(stopping)
    sys.stdout.flush()
    if args.executor == "slurm":
        code = sweep_slurm.submit(todo, logdir, args.max_parallel, args.per_gpu, args.slurm)
    else:
        code = run_local(todo, elsewhere, args.max_parallel, args.per_gpu)
        print(status(runs))
    return code or int(stopping)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ConfigError, OSError) as error:
        print(f"sweep.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
