"""Reads runs for plots and tables: their settings, curves and evaluations; and the published numbers beside them."""

import difflib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from envs.suite import DISTRACTING, SUITES
from run.config import FREE_SETTINGS, Config
from setup.sweep_run import LARGEST, is_number

SETS = (*SUITES["dmcgb2"], *DISTRACTING, "video")  # a task's name is that of its clean version and one of these
SETUPS = {"dmc_vision", "dmc_proprio", "realistic_maniskill", "small", "debug", "quickstart", "quickstart_vectors"}
METHOD_NAMES = {  # names in legends and printed tables
    "hrssm": "HRSSM",
    "dreamerv3": "DreamerV3",
    "repo": "RePo",
    "r2dreamer": "R2-Dreamer",
    "infonce": "InfoNCE",
    "dreamerpro": "DreamerPro",
    "no_mask": "HRSSM without mask",
    "no_mbr": "HRSSM without latent reconstruction",
    "mbr_fixed": "HRSSM with a fixed projection",
    "mbr_barlow": "HRSSM with Barlow Twins",
    "mbr_barlow_strong": "HRSSM with Barlow Twins, weight 1",
    "no_simsr": "HRSSM without bisimulation",
    "masked_start": "HRSSM imagining from masked branch",
    "masked_simsr": "HRSSM, bisimulation in masked branch",
    "no_hybrid": "HRSSM without target branch",
    "overlay": "HRSSM with overlays",
    "no_hybrid+overlay": "HRSSM without target branch, with overlays",
    "dreamerv3+overlay": "DreamerV3 with overlays",
    "continuous": "HRSSM, Normal latents",
    "M": "HRSSM, size M",
}


class PlotError(Exception):
    """A user's error, in one line."""


@dataclass(eq=False)
class Run:
    path: Path
    task: str
    method: str
    seed: int
    settings: dict  # contents of its config.yaml
    evaluations: list[dict]  # rows of its eval.jsonl
    curve: pd.Series | None  # a metric by environment step

    def own_evaluations(self) -> list[dict]:
        """Those on the task and with the settings of its training."""
        return [row for row in self.evaluations if row["task"] == self.task and not row["changed"]]

    def probed(self) -> dict | None:
        """The last of these with probes."""
        return next((row for row in reversed(self.own_evaluations()) if row.get("probe_r2")), None)

    def has(self, step: float) -> bool:
        """Whether its curve has a value at or before this step, and has reached it."""
        return self.curve.index[0] <= step <= self.curve.index[-1]


Groups = dict[tuple[str, str], list[Run]]  # {(task, method): runs}


def find_runs(
    arguments: Iterable[str],
    label: str | None = None,
    metric: str | None = "eval_return",
    window: float = 0,
    remarks: list[str] | None = None,
) -> list[Run]:
    """The runs of RUN arguments, each once, task by task; PlotError if two are the same task, method and seed.

    metric: that of their curves, see `read_curve`; None for the runs that have an eval.jsonl, without curves.
    remarks: takes a line about each damaged run, which is a PlotError without, and about runs with different settings.
    """
    log = "metrics.jsonl" if metric else "eval.jsonl"
    found: dict[Path, Run] = {}
    damaged: list[PlotError] = []
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or Path(argument).exists():
            name, folder = label, argument
        name = next((method for method, shown in METHOD_NAMES.items() if shown == name), name)  # one method, one name
        if name and not name.isprintable():
            raise PlotError(f"{name!r}: expected the name of a method in printable characters")
        if not Path(folder).is_dir():
            raise PlotError(f"{folder}: no such folder; expected the --logdir of a run, or a folder of them")
        paths = run_folders(Path(folder), log)
        if not paths:
            raise PlotError(f"{folder}: no run there with {log}")
        for path in paths:
            try:
                found[path.resolve()] = read_run(path, name, metric, window)
            except PlotError as error:
                damaged.append(error)
    if damaged and (remarks is None or not found):
        raise damaged[0]
    tasks = [run.task for run in found.values()]
    runs = sorted(found.values(), key=lambda run: tasks.index(run.task))
    name_methods(runs)
    seen: dict[tuple, Run] = {}
    for run in runs:
        twin = seen.setdefault((run.task, run.method, run.seed), run)
        if twin is not run:
            raise PlotError(
                f"{twin.path} and {run.path} are both {run.task}, method {run.method}, seed {run.seed}; "
                "leave one out, or name their methods: NAME=RUN"
            )
    if remarks is not None:
        remarks += [f"left out: {error}" for error in damaged]
        for (task, method), members in group_runs(runs).items():
            if names := differing(members):
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                remarks.append(f"{task}, {method}: its runs differ in {', '.join(names[:4])}{more}")
    return runs


def run_folders(root: Path, log: str) -> list[Path]:
    """The folders below `root` with a file of this name, also behind links."""
    found, seen = [], set()
    for name, folders, files in os.walk(root, followlinks=True):
        if os.path.realpath(name) in seen:  # a link to a folder above
            folders.clear()
        elif log in files and os.path.isfile(os.path.join(name, log)):
            found.append(Path(name))
        seen.add(os.path.realpath(name))
        folders.sort()
    return sorted(found)


def group_runs(runs: Iterable[Run]) -> Groups:
    """Runs by task and method, in the order in which these were named."""
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run.task, run.method), []).append(run)
    return groups


def name_methods(runs: list[Run]) -> None:
    """Names the methods of runs by their --configs, and of runs that only differ in some settings by these too."""
    unnamed = [run for run in runs if not run.method]
    shared = set.intersection(*(set(run.settings["configs"]) for run in unnamed)) if unnamed else set()
    for run in unnamed:
        names = [name for name in run.settings["configs"] if name not in shared & SETUPS]
        run.method = "+".join(names) or "hrssm"
    for members in group_runs(runs).values():
        if len({run.seed for run in members}) < len(members):
            names = differing(members)
            if len(names) <= 3:  # others are not a method's variants
                for run in members:
                    settings = Config(run.settings).flat()
                    run.method += "".join(f", {name} {settings[name]}" for name in names)


def differing(runs: list[Run]) -> list[str]:
    """The settings in which runs differ, of those that all of them have and that change what is computed."""
    flat = [Config(run.settings).flat() for run in runs]
    names = set.intersection(*map(set, flat)) - {"seed", *FREE_SETTINGS}
    return sorted(name for name in names if any(one[name] != flat[0][name] for one in flat))


def read_run(path: Path, label: str | None, metric: str | None, window: float) -> Run:
    """The run in a folder.

    Its method is the label, else METHOD of a sweep's folder TASK/METHOD/seedN; "" for `name_methods` if the run has
    --configs; else its parent folder's name.
    """
    file, folder = path / "config.yaml", path.resolve()
    try:
        settings = YAML(typ="safe", pure=True).load(file)
        task, seed = str(settings["task"]), int(settings["seed"])
        configs = [str(name) for name in settings.get("configs") or []]
    except OSError as error:
        raise PlotError(f"{file}: {error.strerror}; expected the settings of the run, its task and seed") from None
    except Exception:  # the YAML parser raises almost anything for a damaged file
        raise PlotError(f"{file}: not the config of a run (expected the keys task and seed)") from None
    in_sweep = re.fullmatch(r"seed\d+", folder.name) and folder.parents[1].name == task.replace("/", "-")
    method = label or ("" if configs and not in_sweep else folder.parent.name)
    curve = read_curve(path, metric, window) if metric else None
    return Run(path, task, method, seed, {**settings, "configs": configs}, read_evaluations(path, seed), curve)


def read_rows(path: Path, check: Callable[[dict], object], expected: str) -> list[dict]:
    """The JSON objects of a file, a line each; the last one may be cut, as the run is writing it or was killed then.

    check: returns False or raises for a row that is not as `expected` in words.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            valid = check(row)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            valid = False
        if valid:
            rows.append(row)
        elif line and number < len(lines):
            raise PlotError(f"{path}, line {number}: expected {expected}")
    return rows


def read_curve(folder: Path, metric: str, window: float = 0) -> pd.Series:
    """A run's means of a metric by environment step, see `running_mean`."""
    rows = read_rows(
        folder / "metrics.jsonl",
        lambda row: is_number(row["step"]) and (row.get(metric) is None or is_number(row[metric])),
        f"a JSON object with `step`, and numbers up to {LARGEST:g}",
    )
    points = [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric) is not None]
    if not points:
        names = set().union(*rows) - {"step"}
        near = difflib.get_close_matches(metric, names, n=4, cutoff=0.4) or sorted(names)[:8]
        raise PlotError(f"{folder}: no `{metric}` in its metrics.jsonl; it has {', '.join(near) or 'no numbers yet'}")
    return running_mean(*np.array(sorted(points)).T, window)


def running_mean(steps: np.ndarray, values: np.ndarray, window: float) -> pd.Series:
    """Means over the `window` steps up to each step, (step − window, step], or of the values at it, of several envs."""
    at = np.unique(steps)
    first = np.minimum(np.searchsorted(steps, at - window, side="right"), np.searchsorted(steps, at))
    last = np.searchsorted(steps, at, side="right")
    return pd.Series([values[i:j].mean() for i, j in zip(first, last, strict=True)], at)


def read_evaluations(folder: Path, seed: int) -> list[dict]:
    """The rows of a run's eval.jsonl; `changed` lists the settings that were not the run's own, "" for none."""
    path = folder / "eval.jsonl"
    expected = "an object with `task` and `return`, as --eval_only writes it"
    rows = read_rows(path, is_evaluation, expected) if path.exists() else []
    for row in rows:
        changed = {name: value for name, value in row.get("changed", {}).items() if name != "task"}
        if row.get("seed", seed) != seed:
            changed["seed"] = row["seed"]
        row["changed"] = ", ".join(f"{name} {value}" for name, value in changed.items())
    return rows


def is_evaluation(row: dict) -> bool:
    """Whether a row of eval.jsonl is as --eval_only writes it."""
    r2, changed = row.get("probe_r2", {}), row.get("changed", {})
    named = isinstance(row["task"], str) and isinstance(changed, dict) and isinstance(r2, dict)
    return named and is_number(row["return"]) and is_number(row.get("step", 0)) and all(map(is_number, r2.values()))


def split_task(task: str) -> tuple[str, str]:
    """(clean task, test set) of a task's name, such as ("dmc_walker_walk", "video_hard"), or "clean" for the set."""
    found = max((name for name in SETS if task.endswith(f"_{name}")), key=len, default="clean")
    return task.removesuffix(f"_{found}"), found


@functools.cache
def read_published() -> pd.DataFrame:
    """The published numbers: method, task, set, step, return, protocol, and the protocol in `words`."""
    here = Path(__file__).parent
    protocols = pd.read_csv(here / "published_protocols.csv", index_col="protocol")
    words = protocols.apply(lambda row: "; ".join(f"{name}: {value}" for name, value in row.items()), axis=1)
    return pd.read_csv(here / "published_returns.csv").join(words.rename("words"), on="protocol")


def published_on(task: str, test_set: str) -> pd.DataFrame:
    """The published numbers on a test set of a clean task."""
    frame = read_published()
    named = task.replace("dmc_cup_", "dmc_ball_in_cup_")
    return frame[(frame["task"] == named) & (frame["set"] == test_set)].assign(task=task)


def published_curves(tasks: Iterable[str]) -> dict[str, pd.DataFrame]:
    """{task: its published curves on the same, clean task (method, step, return)}, for tasks that have some."""
    frames = {task: published_on(split_task(task)[0], "clean") for task in tasks}
    curves = {task: frame[frame.duplicated(["method", "protocol"], keep=False)] for task, frame in frames.items()}
    return {task: curve for task, curve in curves.items() if len(curve)}
