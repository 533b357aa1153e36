"""Learning curves, test sets and tables of many runs.

    python figures/plot.py RUN... [--out curves.png]          learning curves, from metrics.jsonl
    python figures/plot.py --suite RUN... [--out suite.png]   returns by test set, from eval.jsonl

RUN is a --logdir, a folder of them such as results/small, or NAME=RUN, which names the method. Runs are grouped by
task, method and seed. Curves: a panel for each task with the mean over seeds and its 95 % confidence interval, by
bootstrap; curves_table.png and curves_table.csv hold IQM, mean and median at the steps of --at with their intervals
(stratified bootstrap, as in "Deep Reinforcement Learning at the Edge of the Statistical Precipice", Agarwal et al.
2021). Markdown tables are printed: of the means, and of what linear probes found, for runs that were probed.

--suite: a table of methods × test sets for each task and for their mean (mean over seeds, 95 % interval, drop from
clean), with published numbers and their protocols beside it, is printed and written to suite_table.csv; the figure
shows it as bars. The numbers are the rows that `--eval_only --eval_suite ...` adds to eval.jsonl.
"""

import argparse
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats
import seaborn as sns
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from run.config import FREE_SETTINGS, Config

PUBLISHED = Path(__file__).with_name("published_returns.csv")
PROTOCOLS = Path(__file__).with_name("published_protocols.csv")
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#997700", "#bbbbbb")  # colorblind-safe
SUFFIXES = (".png", ".pdf", ".svg")
AGGREGATES = ("iqm", "mean", "median")
METHOD_NAMES = {  # of configs.yaml, in legends and printed tables
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
    "no_simsr": "HRSSM without bisimulation",
    "no_hybrid": "HRSSM without target branch",
    "continuous": "HRSSM, Normal latents",
    "M": "HRSSM, size M",
}
# a task's name is that of its clean version and one of these
SETS = (
    *(f"{kind}_{level}" for kind in ("color", "video", "color_video", "rotate", "shift", "rotate_shift")
      for level in ("easy", "hard")),
    "distracting_cs", "sensor_cs", "video",
)  # fmt: skip
SETUPS = {"dmc_vision", "dmc_proprio", "realistic_maniskill", "small", "debug", "quickstart", "quickstart_vectors"}
LARGEST = 1e30  # magnitude of a step or value that can be drawn


class PlotError(Exception):
    """A user's error, in one line."""


@dataclass(eq=False)
class Run:
    path: Path
    task: str
    method: str
    seed: int
    settings: dict  # of its config.yaml
    curve: pd.Series | None = None  # a metric by environment step


Groups = dict[str, dict[str, list[Run]]]  # {task: {method: runs}}


# -------------------------------------------------------------------------------------------------------------- reading


def find_runs(
    arguments: Iterable[str],
    label: str | None = None,
    log: str = "metrics.jsonl",
    left_out: list[str] | None = None,
) -> list[Run]:
    """The runs with this log of RUN arguments, each once; PlotError if two are the same task, method and seed.

    left_out: takes a line about each run whose settings are damaged, which is a PlotError without.
    """
    runs: dict[Path, Run] = {}
    damaged: list[PlotError] = []
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        name, rest = (name, rest) if equals and not Path(argument).exists() else (label, argument)
        if name and not name.isprintable():
            raise PlotError(f"{name!r}: expected the name of a method in printable characters")
        if not Path(rest).is_dir():
            raise PlotError(f"{rest}: no such folder; expected the --logdir of a run, or a folder of them")
        folders = run_folders(Path(rest), log)
        if not folders:
            raise PlotError(f"{rest}: no run there with {log}")
        for folder in folders:
            try:
                runs[folder.resolve()] = read_run(folder, name)
            except PlotError as error:
                damaged.append(error)
    if damaged and (left_out is None or not runs):
        raise damaged[0]
    if damaged:
        left_out += [f"left out: {error}" for error in damaged]
    name_methods(list(runs.values()))
    seen: dict[tuple, Path] = {}
    for run in runs.values():
        twin = seen.setdefault((run.task, run.method, run.seed), run.path)
        if twin != run.path:
            raise PlotError(
                f"{twin} and {run.path} are both {run.task}, method {run.method}, seed {run.seed}; "
                "leave one out, or name their methods: NAME=RUN"
            )
    return list(runs.values())


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


def name_methods(runs: list[Run]) -> None:
    """Names the methods of runs by their --configs, and of runs that only differ in some settings by these too."""
    unnamed = [run for run in runs if not run.method]
    shared = set.intersection(*(set(run.settings["configs"]) for run in unnamed)) if unnamed else set()
    for run in unnamed:
        names = [name for name in run.settings["configs"] if name not in shared & SETUPS]
        run.method = "+".join(names) or "hrssm"
    for group in group_runs(runs).values():
        for members in group.values():
            if len({run.seed for run in members}) < len(members):
                flat = [Config(run.settings).flat() for run in members]
                names = set.intersection(*(set(settings) for settings in flat)) - {"seed", *FREE_SETTINGS}
                differ = sorted(name for name in names if any(one[name] != flat[0][name] for one in flat))
                if len(differ) <= 3:  # others are not a method's variants
                    for run, settings in zip(members, flat, strict=True):
                        run.method += "".join(f", {name} {settings[name]}" for name in differ)


def read_run(path: Path, label: str | None = None) -> Run:
    """The run in a folder, without its curves.

    Its method is the label, else METHOD of a sweep's folder TASK/METHOD/seedN; "" for `name_methods` if the run has
    --configs; else its parent folder's name.
    """
    try:
        settings = YAML(typ="safe", pure=True).load(path / "config.yaml")
        task, seed = str(settings["task"]), int(settings["seed"])
        configs = [str(name) for name in settings.get("configs") or []]
    except OSError as error:
        file = path / "config.yaml"
        raise PlotError(f"{file}: {error.strerror}; expected the settings of the run, its task and seed") from None
    except Exception:  # the YAML parser raises almost anything for a damaged file
        raise PlotError(f"{path / 'config.yaml'}: not the config of a run (expected the keys task and seed)") from None
    folder = path.resolve()
    in_sweep = re.fullmatch(r"seed\d+", folder.name) and folder.parents[1].name == task
    method = label or ("" if configs and not in_sweep else folder.parent.name)
    return Run(path, task, method, seed, {**settings, "configs": configs})


def read_rows(path: Path, check: Callable[[dict], object], expected: str) -> list[dict]:
    """The JSON objects of a file, a line each; the last one may be cut, as the run is writing it or was killed then.

    check: returns False or raises for a row that is not as `expected` in words.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else None
            valid = bool(line) and check(row)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            valid = False
        if valid:
            rows.append(row)
        elif line and number < len(lines):
            raise PlotError(f"{path}, line {number}: expected {expected}")
    return rows


def is_number(value: object) -> bool:
    """Whether it is a finite number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def read_curve(run: Run, metric: str, window: float = 0) -> pd.Series:
    """Values of a metric by environment step, each averaged over the `window` steps up to it."""
    rows = read_rows(
        run.path / "metrics.jsonl",
        lambda row: is_number(row["step"]) and (row.get(metric) is None or is_number(row[metric])),
        f"a JSON object with `step`, and numbers up to {LARGEST:g}",
    )
    curve = {float(row["step"]): float(row[metric]) for row in rows if row.get(metric) is not None}
    if not curve:
        names = set().union(*rows) - {"step"}
        near = difflib.get_close_matches(metric, names, n=4, cutoff=0.4) or sorted(names)[:8]
        raise PlotError(f"{run.path}: no `{metric}` in its metrics.jsonl; it has {', '.join(near) or 'no numbers yet'}")
    return running_mean(pd.Series(curve).sort_index(), window)


def running_mean(curve: pd.Series, window: float) -> pd.Series:
    """Means over the `window` steps up to each step, (step − window, step]; a window of 0 changes nothing."""
    if window == 0:
        return curve
    steps, last = curve.index.to_numpy(), np.arange(1, len(curve) + 1)
    first = np.minimum(np.searchsorted(steps, steps - window, side="right"), last - 1)
    sums = np.concatenate([[0.0], np.cumsum(curve)])
    return pd.Series((sums[last] - sums[first]) / (last - first), curve.index)


def read_evaluations(run: Run) -> list[dict]:
    """The rows of a run's eval.jsonl; `changed` says in words which settings were not the run's own, "" for none."""
    path = run.path / "eval.jsonl"
    expected = "an object with `task` and `return`, as --eval_only writes it"
    rows = read_rows(path, is_evaluation, expected) if path.exists() else []
    for row in rows:
        changed = {name: value for name, value in row.get("changed", {}).items() if name != "task"}
        if row.get("seed", run.seed) != run.seed:
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
    ends = [name for name in SETS if task.endswith(f"_{name}")]
    found = max(ends, key=len, default=None)
    return (task.removesuffix(f"_{found}"), found) if found else (task, "clean")


def read_published() -> pd.DataFrame:
    """The published numbers: method, task, set, step, return, protocol, and the protocol in `words`."""
    protocols = pd.read_csv(PROTOCOLS, index_col="protocol")
    words = protocols.apply(lambda row: "; ".join(f"{name}: {value}" for name, value in row.items()), axis=1)
    return pd.read_csv(PUBLISHED).join(words.rename("words"), on="protocol")


def published_curves(tasks: Iterable[str]) -> dict[str, pd.DataFrame]:
    """{task: its published curves on the same, clean task (method, step, return)}, for tasks that have some."""
    frame = read_published()
    frame = frame[(frame["set"] == "clean") & frame.duplicated(["method", "task", "set", "protocol"], keep=False)]
    curves = {task: frame[frame["task"] == published_name(split_task(task)[0])] for task in tasks}
    return {task: curve for task, curve in curves.items() if len(curve)}


def published_name(task: str) -> str:
    """A task as figures/published_returns.csv names it."""
    return task.replace("dmc_cup_", "dmc_ball_in_cup_")


# ----------------------------------------------------------------------------------------------------------- statistics


def bootstrap(function: Callable, *tasks: np.ndarray, reps: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """function(*tasks) (...), and its 95 % interval (2, ...): percentiles over `reps` draws of seeds with replacement.

    tasks: (..., seeds) each, whose seeds are drawn among themselves; `function` reduces the last axis.
    """
    rng = np.random.default_rng(0)
    drawn = [task[..., rng.integers(task.shape[-1], size=(reps, task.shape[-1]))] for task in tasks]
    return function(*tasks), np.percentile(function(*drawn), [2.5, 97.5], axis=-1)


def aggregate(*tasks: np.ndarray) -> np.ndarray:
    """(IQM, mean, median) of scores, one (..., seeds) array for each task, over the last axis.

    With several tasks, mean and median are over the tasks' means, as in Agarwal et al.; with one, over its seeds.
    """
    scores = np.concatenate(tasks, -1)
    means = scores if len(tasks) == 1 else np.stack([task.mean(-1) for task in tasks], -1)
    return np.stack([scipy.stats.trim_mean(scores, 0.25, -1), means.mean(-1), np.median(means, -1)])


def mean_interval(scores: Iterable[float]) -> tuple[float, float, float]:
    """Mean over seeds, and its 95 % interval, which is the mean itself for a single seed."""
    mean, interval = bootstrap(lambda drawn: drawn.mean(-1), np.array(list(scores), float))
    return mean, *interval


def mean_curve(curves: list[pd.Series], points: int = 300) -> pd.DataFrame:
    """Mean over seeds with its interval (`mean`, `low`, `high`) by step, over the steps that all runs have."""
    wide = pd.concat(curves, axis=1).sort_index().interpolate("index", limit_area="inside").dropna()  # (steps, seeds)
    if wide.empty:
        raise PlotError("the runs have no steps in common")
    wide = wide.iloc[np.unique(np.linspace(0, len(wide) - 1, points).astype(int))]
    mean, (low, high) = bootstrap(lambda drawn: drawn.mean(-1), wide.to_numpy(), reps=1000)
    return pd.DataFrame({"mean": mean, "low": low, "high": high}, index=wide.index)


def score_at(curve: pd.Series, step: float) -> float | None:
    """The last value at or before `step`; None for a run that has not reached it."""
    return None if curve.index[-1] < step or curve.index[0] > step else float(curve[:step].iloc[-1])


def summarize(groups: Groups, at: list[float]) -> pd.DataFrame:
    """A row per task, step and method, and with several tasks one over `all` that a method has."""
    rows = []
    for step in at:
        scores: Groups = {}
        for task, group in groups.items():
            for method, runs in group.items():
                reached = [score for run in runs if (score := score_at(run.curve, step)) is not None]
                if reached:
                    scores.setdefault(method, {})[task] = np.array(reached)
        for method, tasks in scores.items():
            entries = [(task, [values]) for task, values in tasks.items()]
            if len(groups) > 1 and len(tasks) == len(groups):
                entries.append(("all", list(tasks.values())))
            for task, values in entries:
                point, interval = bootstrap(aggregate, *values)
                row = {"task": task, "method": method, "step": int(step), "seeds": min(map(len, values))}
                for name, *numbers in zip(AGGREGATES, point, *interval, strict=True):
                    row |= dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
                rows.append(row)
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    order = {name: number for number, name in enumerate([*groups, "all", *methods])}
    frame = pd.DataFrame(rows)
    return frame.sort_values(["task", "step", "method"], key=lambda c: c.map(order) if c.dtype == object else c)


def summarize_suite(runs: list[Run], others: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Returns by task, set and method, from eval.jsonl and the published numbers on the same sets; and remarks.

    Columns: task, set, method, seeds (0 where published), mean, low, high, drop (percent from clean), protocol; and
    `scores`, the returns of the seeds.
    """
    found, changed = [], 0
    for run in runs:
        rows = read_evaluations(run)
        changed += sum(bool(row["changed"]) for row in rows)
        last = {(row["task"], row["changed"]): row for row in rows if others or not row["changed"]}
        found += [row | {"run": run, "method": METHOD_NAMES.get(run.method, run.method)} for row in last.values()]
    if not found:
        raise PlotError(f"{', '.join(str(run.path) for run in runs)}: no rows with their own settings in eval.jsonl")
    frame = pd.DataFrame(found)
    frame[["task", "set"]] = [(split_task(row["task"])[0], set_of(row["run"], row["task"])) for row in found]
    frame["method"] += frame["changed"].map(lambda text: f" ({text})" if text else "")
    trained = frame["run"].map(lambda run: set_of(run, run.task))
    if (trained.groupby([frame["task"], frame["method"]]).nunique() > 1).any():  # HRSSM, trained clean and in clouds
        frame["method"] += ", trained on " + trained
    rows = []
    for (task, name, method), part in frame.groupby(["task", "set", "method"], sort=False):
        mean, low, high = mean_interval(part["return"])
        row = {"task": task, "set": name, "method": method, "seeds": len(part), "mean": mean, "low": low, "high": high}
        protocol = " / ".join(sorted({describe(row) for row in part.to_dict("records")}))
        rows.append(row | {"protocol": protocol, "scores": list(part["return"])})
    published = read_published()
    published["distance"] = (published["step"] / max(row.get("step", 0) + 1 for row in found)).map(np.log).abs()
    published = published.sort_values("distance").drop_duplicates(["method", "protocol", "task", "set"]).sort_index()
    for task, name in dict.fromkeys((row["task"], row["set"]) for row in rows):
        same = published[(published["task"] == published_name(task)) & (published["set"] == name)]
        for row in same.to_dict("records"):
            row |= {"task": task, "mean": row["return"], "scores": [row["return"]], "seeds": 0}
            row["method"] += f" (published: {row['protocol']})"
            rows.append(row | {"protocol": f"{row['step']:,} environment steps; {row['words']}"})
    rows += over_tasks(rows)
    clean = {(row["task"], row["method"]): row["mean"] for row in rows if row["set"] == "clean"}
    for row in rows:
        before = clean.get((row["task"], row["method"])) if row["set"] != "clean" else None
        row["drop"] = 100 * (1 - row["mean"] / before) if before else math.nan
    columns = ["task", "set", "method", "seeds", "mean", "low", "high", "drop", "protocol", "scores"]
    left_out = [] if others or not changed else [f"left out: {changed} rows with changed settings (--others)"]
    return pd.DataFrame(rows, columns=columns), left_out


def over_tasks(rows: list[dict]) -> list[dict]:
    """A row for each method and set that all of several tasks have: the mean over them, seeds drawn within each."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["method"]), []).append(row)
    found = []
    for members in groups.values():
        if len(tasks) > 1 and len(members) == len(tasks):
            scores = [np.array(row["scores"]) for row in members]
            mean, (low, high) = bootstrap(lambda *drawn: np.mean([one.mean(-1) for one in drawn], 0), *scores)
            seeds = min(row["seeds"] for row in members)
            paired = len({len(one) for one in scores}) == 1
            row = {"task": f"mean over {len(tasks)} tasks", "seeds": seeds, "mean": mean, "low": low, "high": high}
            row["protocol"] = " / ".join(dict.fromkeys(row["protocol"] for row in members))
            found.append(members[0] | row | {"scores": list(np.mean(scores, 0)) if paired else [mean]})
    return found


def set_of(run: Run, task: str) -> str:
    """The test set of a task on which a run was evaluated; that of generated backgrounds is named after these."""
    name, source = split_task(task)[1], run.settings.get("img_source", "video")
    return f"{name} ({source})" if name.endswith("video") and source != "video" else name


def in_order(names: Iterable[str]) -> list[str]:
    """Test sets, clean first, then as in SETS."""
    order = {name: number for number, name in enumerate(("clean", *SETS))}
    return sorted(set(names), key=lambda name: (order.get(name.split(" ")[0], 0), name))


def describe(row: dict) -> str:
    """How a row of eval.jsonl came about, in words like those of figures/published_protocols.csv."""
    settings = row["run"].settings
    source = f" ({settings['img_source']})" if settings["task"].endswith("_video") and "img_source" in settings else ""
    size = "x".join(map(str, settings.get("size", ["?"])))
    trained = f"trained: on {settings['task']}{source}, {row.get('step', 0):,} environment steps"
    part = f"; {row['incomplete']}" if isinstance(row.get("incomplete"), str) else ""
    return f"{trained}; images: {size}, color; episodes: {row.get('episodes', '?')}{part}"


# -------------------------------------------------------------------------------------------------------------- drawing


def legend_name(name: str) -> str:
    """A name as written in a figure: matplotlib reads $ as math, and hides names that begin with _."""
    name = METHOD_NAMES.get(name, name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def draw_legend(figure: plt.Figure, handles: dict[str, Any], most: int) -> None:
    """A legend below the panels, in rows of equal length, the widest that fits the figure."""
    names = [legend_name(name) for name in handles]
    for columns in range(most, 0, -1):
        count = math.ceil(len(handles) / math.ceil(len(handles) / columns))
        style = {"loc": "outside upper center", "ncols": count, "frameon": False, "fontsize": 9}
        legend = figure.legend(handles.values(), names, **style)
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or extent.width <= figure.bbox.width:
            rows_beyond_two = max(0.0, extent.height / figure.dpi - 0.5)  # inches: the panels keep their height
            figure.set_figheight(figure.get_figheight() + rows_beyond_two)
            return
        legend.remove()


def panels(names: Iterable[str], **size: float) -> tuple[plt.Figure, dict[str, plt.Axes]]:
    """A figure with an axis for each name."""
    names = list(names)
    columns = len(names) if len(names) < 4 else math.ceil(math.sqrt(len(names)))
    lines = math.ceil(len(names) / columns)
    size = (size.get("width", 3.4) * columns + 0.6, 2.7 * lines + 0.7)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axisbelow(True)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    sns.despine(figure)
    return figure, dict(zip(names, axes.flat, strict=False))


def draw_curves(groups: Groups, published: dict[str, pd.DataFrame], metric: str, path: Path) -> None:
    """A panel for each task, a line with its interval for each method; a task's distracted versions share its range."""
    figure, axes = panels(groups)
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    handles = {}
    for task, axis in axes.items():
        clean = min((other for other in groups if f"{task}_".startswith(f"{other}_")), key=len)
        if clean != task:
            axis.sharey(axes[clean])
    for task, group in groups.items():
        axis = axes[task]
        end = max(run.curve.index[-1] for runs in group.values() for run in runs)
        for name, curve in published.get(task, pd.DataFrame(columns=["method"])).groupby("method"):
            shown = curve[curve["step"] <= max(end, curve["step"].min())]
            style = {"color": "#777777", "linewidth": 1.2, "markersize": 3, "zorder": 1}
            (handles[f"{name} (published, clean)"],) = axis.plot(shown["step"], shown["return"], "o--", **style)
        for method, runs in group.items():
            again, number = divmod(methods.index(method), len(COLORS))
            color, style = COLORS[number], ("-", "--", ":")[again % 3]
            curve = mean_curve([run.curve for run in runs])
            marker = "o" if len(curve) == 1 else None
            (handles[method],) = axis.plot(curve["mean"], style, color=color, linewidth=1.6, marker=marker)
            axis.fill_between(curve.index, curve["low"], curve["high"], color=color, alpha=0.2, linewidth=0)
        seeds = sorted({len(runs) for runs in group.values()})
        counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        axis.set_title(f"{legend_name(task)}  ({counted} seed{'s' if seeds[-1] > 1 else ''})", fontsize=9)
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel(legend_name(metric), fontsize=9)
    draw_legend(figure, handles, most=figure.axes[0].get_gridspec().ncols + 1)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_suite(frame: pd.DataFrame, path: Path) -> None:
    """Returns by test set as bars with 95 % intervals, a panel for each task; published numbers are gray."""
    figure, axes = panels(dict.fromkeys(frame["task"]), width=max(3.4, 0.9 + 0.22 * len(frame)))
    methods = list(dict.fromkeys(frame["method"]))
    ours = list(dict.fromkeys(frame[frame["seeds"] > 0]["method"]))
    grays = sns.color_palette("Greys", len(methods) - len(ours) + 2)[1:]
    bright = COLORS[:7] if len(ours) <= 7 else sns.husl_palette(len(ours))
    colors = dict(zip(ours, bright, strict=False))
    colors |= dict(zip((name for name in methods if name not in ours), grays, strict=False))
    for task, axis in axes.items():
        long = frame[frame["task"] == task].explode("scores").astype({"scores": float})
        style = {"errorbar": ("ci", 95), "seed": 0, "err_kws": {"linewidth": 1}, "saturation": 1, "palette": colors}
        style |= {"order": in_order(long["set"]), "hue_order": methods, "legend": False}
        sns.barplot(long, x="set", y="scores", hue="method", ax=axis, **style)
        axis.set(xlabel="", ylabel="", ylim=(0, max(1000, long["scores"].max())))
        axis.set_title(legend_name(task), fontsize=9)
    figure.supylabel("return", fontsize=9)
    draw_legend(figure, {name: plt.Rectangle((0, 0), 1, 1, color=colors[name]) for name in methods}, most=4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_table(frame: pd.DataFrame, metric: str, path: Path) -> None:
    """The summary as a figure, the best mean of each task and step in bold."""
    cells = pd.DataFrame({"task": frame["task"].map(legend_name), "method": frame["method"].map(legend_name)})
    cells["step"], cells["seeds"] = frame["step"].map("{:,}".format), frame["seeds"].astype(str)
    for name in AGGREGATES:
        spans = zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
        cells[name.upper() if name == "iqm" else name] = ["{:.1f}  [{:.1f}, {:.1f}]".format(*span) for span in spans]
    widths = np.array([max(map(len, [name, *cells[name]])) + 2 for name in cells])
    figure, axis = plt.subplots(figsize=(0.085 * widths.sum(), 0.26 * (len(cells) + 1) + 0.45))
    axis.set_axis_off()
    axis.set_title(f"{legend_name(metric)}, 95 % bootstrap intervals", fontsize=9, pad=6)
    style = {"cellLoc": "left", "colLoc": "left", "bbox": (0, 0, 1, 1)}
    drawn = axis.table(cells.to_numpy(), colLabels=list(cells), colWidths=list(widths / widths.sum()), **style)
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for (line, _), cell in drawn.get_celld().items():
        cell.visible_edges = "B"
        cell.set_edgecolor("#333333" if line == 0 else "#dddddd")
        if line == 0:
            cell.set_text_props(weight="bold")
    for _, rivals in frame.reset_index(drop=True).groupby(["task", "step"]):
        if len(rivals) > 1:
            drawn[rivals["mean"].idxmax() + 1, list(cells).index("mean")].set_text_props(weight="bold")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------- tables


def table(header: list[str], rows: Iterable[Iterable[object]], left: int = 1) -> str:
    """A Markdown table, its first `left` columns aligned to the left."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def span(mean: float, low: float, high: float, digits: int = 1) -> str:
    """A mean with its interval, if it has one."""
    one = math.isnan(low) or low == high
    return f"{mean:.{digits}f}" if one else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(frame: pd.DataFrame, metric: str) -> str:
    """The means as a table of methods × tasks for each step, the best of each task in bold."""
    tables = []
    for step, part in frame.groupby("step", sort=False):
        tasks, methods = list(dict.fromkeys(part["task"])), list(dict.fromkeys(part["method"]))
        best = part.groupby("task")["mean"].transform("max") == part["mean"]
        texts = {}
        for row, bold in zip(part.to_dict("records"), best & (len(methods) > 1), strict=True):
            mean, *interval = span(row["mean"], row["mean_low"], row["mean_high"]).split(" ", 1)
            cell = " ".join([f"**{mean}**" if bold else mean, *interval, f"({row['seeds']})"])
            texts[row["method"], row["task"]] = cell
        rows = [[METHOD_NAMES.get(name, name), *(texts.get((name, task), "") for task in tasks)] for name in methods]
        caption = f"`{metric}` at {step:,} environment steps: mean over seeds [95 % bootstrap interval] (seeds)"
        tables.append(f"{caption}\n\n{table(['method', *tasks], rows)}")
    return "\n\n".join(tables)


def suite_table(part: pd.DataFrame) -> tuple[str, list[str]]:
    """Methods × sets of a task, with the drop from clean, as Markdown; and the protocols that it numbers."""
    sets, rows, protocols = in_order(part["set"]), [], {}
    for method, cells in part.groupby("method", sort=False):
        texts = {}
        for row in cells.to_dict("records"):
            drop = "" if math.isnan(row["drop"]) else f" ({-row['drop']:+.0f} %)"
            texts[row["set"]] = span(row["mean"], row["low"], row["high"], 0) + drop
        number = protocols.setdefault(" / ".join(dict.fromkeys(cells["protocol"])), len(protocols) + 1)
        rows.append([f"{method} ({number})", max(cells["seeds"]) or "", *(texts.get(name, "") for name in sets)])
    return table(["method", "seeds", *sets], rows), list(protocols)


def suite_markdown(frame: pd.DataFrame) -> str:
    """The table of each task, and its protocols below."""
    caption = (
        "Return, mean over seeds [95 % bootstrap interval] (change from clean in percent). "
        "The video sets of these runs are DMC-GS's: `video_hard` hides the floor, all others keep it."
    )
    tables = []
    for task, part in frame.groupby("task", sort=False):
        text, protocols = suite_table(part)
        notes = "\n".join(f"{number}. {protocol}" for number, protocol in enumerate(protocols, 1))
        tables.append(f"`{task}`\n\n{text}\n\n{notes}")
    return "\n\n".join([caption, *tables])


def probe_scores(run: Run) -> dict[str, float] | None:
    """`return`, and mean R² of the `state` variables and the `background`'s pixels, of the last evaluation with probes.

    None if the run's task was never evaluated with probes; NaN for what there is no probe of.
    """
    rows = [row for row in read_evaluations(run) if row["task"] == run.task and not row["changed"]]
    rows = [row for row in rows if row.get("probe_r2")]
    if not rows:
        return None
    r2 = pd.Series(rows[-1]["probe_r2"]).drop("background/mean", errors="ignore")
    background = r2.index.str.startswith("background/")
    return {"return": rows[-1]["return"], "state": r2[~background].mean(), "background": r2[background].mean()}


def summarize_probes(groups: Groups) -> pd.DataFrame:
    """A row per task and method whose runs were probed: seeds; mean, low, high of the return; R² of both kinds."""
    rows = []
    for task, group in groups.items():
        for method, runs in group.items():
            found = pd.DataFrame([scores for run in runs if (scores := probe_scores(run)) is not None])
            if len(found):
                mean, low, high = mean_interval(found["return"])
                row = {"task": task, "method": method, "seeds": len(found), "mean": mean, "low": low, "high": high}
                rows.append(row | found[["state", "background"]].mean().to_dict() | {"scores": list(found["return"])})
    return pd.DataFrame(rows)


def probe_markdown(groups: Groups) -> str:
    """The results of `--eval_only --probe_state`, over seeds; empty if it was never called on these runs."""
    rows = []
    for row in summarize_probes(groups).to_dict("records"):
        r2 = ["" if math.isnan(row[name]) else f"{row[name]:.2f}" for name in ("state", "background")]
        score = span(row["mean"], row["low"], row["high"])
        rows.append([row["task"], METHOD_NAMES.get(row["method"], row["method"]), score, *r2, row["seeds"]])
    if not rows:
        return ""
    caption = "`--eval_only --probe_state` on the last checkpoints: means over seeds [95 % bootstrap interval]"
    header = ["task", "method", "return", "R² state", "R² background", "seeds"]
    return f"\n\n{caption}\n\n{table(header, rows, left=2)}"


# --------------------------------------------------------------------------------------------------------- command line


def group_runs(runs: list[Run]) -> Groups:
    """Runs by task and method, in the order in which these were named."""
    groups: Groups = {}
    for run in runs:
        groups.setdefault(run.task, {}).setdefault(run.method, []).append(run)
    return groups


def readable(runs: list[Run], left_out: list[str], metric: str = "", window: float = 0) -> list[Run]:
    """The runs whose files can be read, with the curve of a metric; a line about each other one. PlotError for none."""
    found, problem = [], None
    for run in runs:
        try:
            read_evaluations(run)
            run.curve = read_curve(run, metric, window) if metric else None
            found.append(run)
        except PlotError as error:
            problem = error
            left_out.append(f"left out: {error}")
    if not found:
        raise problem
    return found


def plot_curves(args: argparse.Namespace, out: Path) -> tuple[str, list[str]]:
    """Draws and writes everything; returns the Markdown tables and remarks."""
    if not 0 <= args.window <= LARGEST:
        raise PlotError(f"--window {args.window:g}: expected 0 or more environment steps")
    for step in args.at or []:
        if not 0 <= step <= LARGEST:
            raise PlotError(f"--at {step:g}: expected environment steps, such as 1e5")
    remarks: list[str] = []
    runs = readable(find_runs(args.runs, args.label, left_out=remarks), remarks, args.metric, args.window)
    groups = group_runs(runs)
    for task, group in groups.items():
        for method, members in group.items():
            shortest, longest = (f(members, key=lambda run: run.curve.index[-1]) for f in (min, max))
            end = shortest.curve.index[-1]
            if end < longest.curve.index[-1]:
                remarks.append(f"{task}, {method}: drawn up to step {end:,.0f}, where {shortest.path} ends")
    at = list(dict.fromkeys(args.at or [min(run.curve.index[-1] for run in runs)]))
    if all(score_at(run.curve, step) is None for run in runs for step in at):
        raise PlotError(f"--at {' '.join(f'{step:,.0f}' for step in at)}: no run has a value there")
    for step in at:
        short = sorted(str(run.path) for run in runs if score_at(run.curve, step) is None)
        if short:
            remarks.append(f"--at {step:,.0f}: left out, without a value there: {', '.join(short)}")
    frame = summarize(groups, at)
    published = published_curves(groups) if args.published else {}
    if args.published:
        remarks += [f"{task}: no published curve" for task in groups if task not in published]

    draw_curves(groups, published, args.metric, out)
    draw_table(frame, args.metric, out.with_stem(f"{out.stem}_table"))
    frame.round(3).to_csv(csv := out.with_name(f"{out.stem}_table.csv"), index=False)
    remarks.append(f"{out}, {csv.with_suffix(out.suffix)}, {csv}")
    return markdown(frame, args.metric) + probe_markdown(groups), remarks


def plot_suite(args: argparse.Namespace, out: Path) -> tuple[str, list[str]]:
    """Draws and writes the returns by test set; returns the Markdown tables and remarks."""
    remarks: list[str] = []
    runs = readable(find_runs(args.runs, args.label, "eval.jsonl", remarks), remarks)
    frame, left_out = summarize_suite(runs, args.others)
    draw_suite(frame, out)
    frame.drop(columns="scores").round(3).to_csv(csv := out.with_name(f"{out.stem}_table.csv"), index=False)
    return suite_markdown(frame), [*remarks, *left_out, f"{out}, {csv}"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise PlotError(message)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, or NAME=RUN")
    parser.add_argument("--out", type=Path, help="the figure to write: .png, .pdf, .svg (curves.png or suite.png)")
    parser.add_argument("--metric", default="eval_return", help="name in metrics.jsonl (eval_return)")
    parser.add_argument("--label", help="the method's name for every RUN without NAME=")
    parser.add_argument("--at", type=float, nargs="+", help="environment steps of the table (the last that all have)")
    parser.add_argument(
        "--window", type=float, default=0, help="average over this many environment steps up to each (0: single values)"
    )
    parser.add_argument("--published", action="store_true", help="add the curves of figures/published_returns.csv")
    parser.add_argument("--suite", action="store_true", help="returns by test set instead of curves")
    parser.add_argument("--others", action="store_true", help="with --suite: also rows with changed settings")
    try:
        args = parser.parse_args(argv)
        out = args.out or Path("suite.png" if args.suite else "curves.png")
        if out.suffix not in SUFFIXES:
            raise PlotError(f"--out {out}: expected a file ending in {', '.join(SUFFIXES)}")
        if not out.parent.is_dir():
            raise PlotError(f"--out {out}: no folder {out.parent}")
        tables, remarks = (plot_suite if args.suite else plot_curves)(args, out)
    except (PlotError, OSError) as error:
        print(f"plot.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(tables)
    for line in remarks:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
