"""Learning curves and a summary table of many runs: `python figures/plot.py RUN... --out FILE.png`.

RUN is a --logdir, a folder of them such as results/small, or NAME=RUN, which names the method. Runs are grouped by
task, method and seed. FILE.png shows a panel for each task: the mean over seeds and its 95 % confidence interval, by
bootstrap. FILE_table.png and FILE_table.csv hold IQM, mean and median at the steps of --at with their intervals
(stratified bootstrap, as in "Deep Reinforcement Learning at the Edge of the Statistical Precipice", Agarwal et al.
2021). Markdown tables are printed: of the means, and of what linear probes found, for runs that were probed.
"""

import argparse
import csv
import difflib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from ruamel.yaml import YAML

PUBLISHED = Path(__file__).parent / "published_returns.csv"
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
    "no_simsr": "HRSSM without bisimulation",
    "no_hybrid": "HRSSM without target branch",
    "continuous": "HRSSM, Normal latents",
}
LARGEST = 1e30  # magnitude of a step or value that can be drawn
COLUMNS = ("task", "method", "step", "seeds", *(f"{name}{end}" for name in AGGREGATES for end in ("", "_low", "_high")))


class PlotError(Exception):
    """A user's error, in one line."""


class NoValues(PlotError):
    """A run whose log does not have the metric."""


class Run(NamedTuple):
    path: Path
    task: str
    method: str
    seed: int
    steps: np.ndarray  # (N,) environment steps, rising
    values: np.ndarray  # (N,) of the metric


# -------------------------------------------------------------------------------------------------------------- reading


def find_runs(argument: str, label: str | None) -> list[tuple[Path, str | None]]:
    """(logdir, method or None) of a RUN argument."""
    name, equals, rest = argument.partition("=")
    if equals and not Path(argument).exists():
        label, argument = name, rest
    if label and not label.isprintable():
        raise PlotError(f"{label!r}: expected the name of a method in printable characters")
    path = Path(argument)
    if not path.is_dir():
        raise PlotError(f"{argument}: no such folder; expected the --logdir of a run, or a folder of them")
    logs = [path / "metrics.jsonl"] if (path / "metrics.jsonl").exists() else sorted(path.rglob("metrics.jsonl"))
    found = [log.parent for log in logs if log.is_file()]
    if not found:
        raise PlotError(f"{argument}: no run there (a run has a metrics.jsonl)")
    return [(run, label) for run in found]


def read_run(path: Path, label: str | None, metric: str, window: float) -> Run:
    """One run. Its task and seed are those of its config.yaml.

    The method is its label, else METHOD of a sweep's folder TASK/METHOD/seedN, else the names of its --configs, else
    its parent folder's name.
    """
    task, seed, configs = read_settings(path / "config.yaml")
    folder = path.resolve()
    if re.fullmatch(r"seed\d+", folder.name) and folder.parents[1].name == task:
        configs = [folder.parent.name]
    method = label or "+".join(configs) or folder.parent.name
    curve, names = {}, set()
    lines = (path / "metrics.jsonl").read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            step, value = entry["step"], entry.get(metric)
            if not is_number(step) or not (value is None or is_number(value)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                continue  # the run is writing it, or was killed while writing
            raise PlotError(
                f"{path / 'metrics.jsonl'}, line {number}: "
                f"expected a JSON object with `step`, and numbers up to {LARGEST:g}"
            ) from None
        names |= entry.keys()
        if value is not None:
            curve[step] = value  # of lines with the same step, the last one
    if not curve:
        near = difflib.get_close_matches(metric, names - {"step"}, n=4, cutoff=0.4) or sorted(names - {"step"})[:8]
        raise NoValues(f"{path}: no `{metric}` in its metrics.jsonl; it has {', '.join(near) or 'no numbers yet'}")
    steps = np.array(sorted(curve), dtype=np.float64)
    values = np.array([curve[step] for step in sorted(curve)], dtype=np.float64)
    return Run(path, task, method, seed, steps, running_mean(steps, values, window))


def is_number(value: object) -> bool:
    """Whether it is a finite number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def read_settings(path: Path) -> tuple[str, int, list[str]]:
    """Task, seed and names of --configs in a run's config.yaml."""
    try:
        config = YAML(typ="safe", pure=True).load(path)
        return str(config["task"]), int(config["seed"]), [str(name) for name in config.get("configs") or []]
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror}; expected the settings of the run, its task and seed") from None
    except Exception:  # the YAML parser raises almost anything for a damaged file
        raise PlotError(f"{path}: not the config of a run (expected the keys task and seed)") from None


def running_mean(steps: np.ndarray, values: np.ndarray, window: float) -> np.ndarray:
    """Means over the `window` steps up to each step, (step − window, step]; a window of 0 changes nothing."""
    if window == 0:
        return values
    first = np.searchsorted(steps, steps - window, side="right")
    first = np.minimum(first, np.arange(len(steps)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(steps) + 1)
    return (sums[last] - sums[first]) / (last - first)


def group_runs(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """{task: {method: runs}}, in the order in which tasks and methods were named."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        group = groups.setdefault(run.task, {}).setdefault(run.method, [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise PlotError(
                f"{twin.path} and {run.path} are both {run.task}, method {run.method}, seed {run.seed}; "
                "leave one out, or name their methods: NAME=RUN"
            )
        group.append(run)
    return groups


def read_published(tasks: list[str]) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """{task: [(method, steps, returns)]} of the published curves on the same, clean task."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with open(PUBLISHED, newline="") as file:
        for row in csv.DictReader(file):
            points = curves.setdefault(row["task"], {}).setdefault(row["method"], [])
            points.append((float(row["step"]), float(row["return"])))
    found = {}
    for task in tasks:
        name = task.replace("dmc_cup_", "dmc_ball_in_cup_")
        clean = next((key for key in curves if name == key or name.startswith(f"{key}_")), None)
        if clean is not None:
            found[task] = [(f"{name} (published, clean)", *np.array(xy).T) for name, xy in curves[clean].items()]
    return found


# ----------------------------------------------------------------------------------------------------------- statistics


def mean_curve(runs: list[Run], points: int = 300, reps: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps (P,), mean over seeds (P,) and its interval (2, P), over the steps that all runs have."""
    start, end = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
    steps = np.unique(np.concatenate([run.steps for run in runs]))
    steps = steps[(steps >= start) & (steps <= end)]
    if len(steps) == 0:
        raise PlotError(f"{runs[0].task}, {runs[0].method}: the runs have no steps in common")
    if len(steps) > points:
        steps = np.linspace(start, end, points)
    values = np.stack([np.interp(steps, run.steps, run.values) for run in runs])  # (seeds, P)
    if len(runs) == 1:
        return steps, values[0], np.stack([values[0], values[0]])
    mean, interval = bootstrap(values[:, None], lambda scores: scores.mean((0, 1)), reps)
    return steps, mean, interval


def bootstrap(scores: np.ndarray | list[np.ndarray], function: Callable, reps: int) -> tuple[np.ndarray, np.ndarray]:
    """function(*tasks) and its 95 % interval (2, ...): percentiles over `reps` draws with replacement.

    scores is one array, or one for each task: (seeds, ...). Seeds are drawn within a task, for each column separately.
    """
    tasks = scores if isinstance(scores, list) else [scores]
    rng = np.random.RandomState(0)
    draws = []
    for _ in range(reps):
        drawn = [np.take_along_axis(task, rng.choice(len(task), task.shape), axis=0) for task in tasks]
        draws.append(function(*drawn))
    return function(*tasks), np.percentile(draws, [2.5, 97.5], axis=0)


def score_at(run: Run, step: float) -> float | None:
    """The last value at or before `step`; None for a run that has not reached it."""
    if run.steps[-1] < step or run.steps[0] > step:
        return None
    return float(run.values[np.searchsorted(run.steps, step, side="right") - 1])


def aggregate(*tasks: np.ndarray) -> np.ndarray:
    """(IQM, mean, median) of scores, one (seeds,) array for each task.

    With several tasks, mean and median are over the tasks' means, as in Agarwal et al.; with one, over its seeds.
    """
    scores = np.concatenate(tasks)
    means = scores if len(tasks) == 1 else np.array([task.mean() for task in tasks])
    return np.array([scipy.stats.trim_mean(scores, 0.25), means.mean(), np.median(means)])


def summarize(groups: dict[str, dict[str, list[Run]]], at: list[float], reps: int = 2000) -> list[dict]:
    """A row per task, method and step, and with several tasks one over `all` that a method has."""
    rows = []
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    for step in at:
        for method in methods:
            scores = {}
            for task, group in groups.items():
                reached = [score for run in group.get(method, []) if (score := score_at(run, step)) is not None]
                if reached:
                    scores[task] = np.array(reached)
            entries = [(task, [values]) for task, values in scores.items()]
            if len(groups) > 1 and len(scores) == len(groups):
                entries.append(("all", list(scores.values())))
            for task, values in entries:
                point, (low, high) = bootstrap(values, aggregate, reps)
                row = {"task": task, "method": method, "step": int(step), "seeds": min(map(len, values))}
                for i, name in enumerate(AGGREGATES):
                    row |= {name: point[i], f"{name}_low": low[i], f"{name}_high": high[i]}
                rows.append(row)
    order = [*groups, "all"]
    return sorted(rows, key=lambda row: (order.index(row["task"]), row["step"]))


# -------------------------------------------------------------------------------------------------------------- drawing


def legend_name(name: str) -> str:
    """A name as written in a figure: matplotlib reads $ as math, and hides names that begin with _."""
    name = METHOD_NAMES.get(name, name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def draw_curves(groups: dict, published: dict, metric: str, path: Path) -> None:
    """A panel for each task, a line with its interval for each method; a task's distracted versions share its range."""
    columns = len(groups) if len(groups) < 4 else math.ceil(math.sqrt(len(groups)))
    lines = math.ceil(len(groups) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns + 0.6, 2.7 * lines + 0.7), squeeze=False, layout="constrained"
    )
    methods = list(dict.fromkeys(method for group in groups.values() for method in group))
    handles = {}
    panels = dict(zip(groups, axes.flat, strict=False))
    for task, axis in panels.items():
        clean = min((other for other in groups if f"{task}_".startswith(f"{other}_")), key=len)
        if clean != task:
            axis.sharey(panels[clean])
    for task, group in groups.items():
        axis = panels[task]
        end = max(run.steps[-1] for runs in group.values() for run in runs)
        for name, steps, returns in published.get(task, []):
            shown = steps <= max(end, steps[0])
            style = {"color": "#777777", "linewidth": 1.2, "markersize": 3, "zorder": 1}
            (handles[name],) = axis.plot(steps[shown], returns[shown], "o--", **style)
        for method, runs in group.items():
            again, number = divmod(methods.index(method), len(COLORS))
            color, style = COLORS[number], ("-", "--", ":")[again % 3]
            steps, mean, (low, high) = mean_curve(runs)
            marker = "o" if len(steps) == 1 else None
            (handles[method],) = axis.plot(steps, mean, style, color=color, linewidth=1.6, marker=marker)
            axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        seeds = sorted({len(runs) for runs in group.values()})
        counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        axis.set_title(f"{legend_name(task)}  ({counted} seed{'s' if seeds[-1] > 1 else ''})", fontsize=9)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel(legend_name(metric), fontsize=9)
    names = [legend_name(name) for name in handles]
    for most in range(columns + 1, 0, -1):  # the widest legend that fits
        count = math.ceil(len(handles) / math.ceil(len(handles) / most))  # of rows of equal length
        style = {"loc": "outside upper center", "ncols": count, "frameon": False, "fontsize": 9}
        legend = figure.legend(handles.values(), names, **style)
        if most == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            break
        legend.remove()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_table(rows: list[dict], metric: str, path: Path) -> None:
    """The rows as a figure, the best mean of each task and step in bold."""
    header = ["task", "method", "step", "seeds", "IQM", "mean", "median"]
    cells = []
    for row in rows:
        spans = [f"{row[n]:.1f}  [{row[n + '_low']:.1f}, {row[n + '_high']:.1f}]" for n in AGGREGATES]
        cells.append(
            [legend_name(row["task"]), legend_name(row["method"]), f"{row['step']:,}", str(row["seeds"]), *spans]
        )
    widths = [max(len(line[i]) for line in [header, *cells]) + 2 for i in range(len(header))]
    height = 0.26 * (len(cells) + 1)
    figure, axis = plt.subplots(figsize=(0.085 * sum(widths), height + 0.45))
    axis.set_axis_off()
    axis.set_title(f"{legend_name(metric)}, 95 % bootstrap intervals", fontsize=9, pad=6)
    shares = [width / sum(widths) for width in widths]
    table = axis.table(cells, colLabels=header, colWidths=shares, cellLoc="left", colLoc="left", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, _), cell in table.get_celld().items():
        cell.visible_edges = "B"
        cell.set_edgecolor("#333333" if line == 0 else "#dddddd")
        if line == 0:
            cell.set_text_props(weight="bold")
    best = {}
    for number, row in enumerate(rows, 1):
        rivals = best.setdefault((row["task"], row["step"]), [])
        rivals.append((row["mean"], number))
    for rivals in best.values():
        if len(rivals) > 1:
            table[max(rivals)[1], header.index("mean")].set_text_props(weight="bold")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def markdown(rows: list[dict], metric: str) -> str:
    """The means as a table of methods × tasks for each step, the best of each task in bold."""
    tables = []
    for step in dict.fromkeys(row["step"] for row in rows):
        cells = {(row["method"], row["task"]): row for row in rows if row["step"] == step}
        methods = list(dict.fromkeys(method for method, _ in cells))
        tasks = list(dict.fromkeys(task for _, task in cells))
        best = {task: max(row["mean"] for (_, other), row in cells.items() if other == task) for task in tasks}
        lines = [["method", *tasks], ["---", *["---:"] * len(tasks)]]
        for method in methods:
            line = [METHOD_NAMES.get(method, method)]
            for task in tasks:
                row = cells.get((method, task))
                if row is None:
                    line.append("")
                    continue
                mean = f"{row['mean']:.1f}"
                mean = f"**{mean}**" if row["mean"] == best[task] and len(methods) > 1 else mean
                interval = f" [{row['mean_low']:.1f}, {row['mean_high']:.1f}]" if row["seeds"] > 1 else ""
                line.append(f"{mean}{interval} ({row['seeds']})")
            lines.append(line)
        caption = f"`{metric}` at {step:,} environment steps: mean over seeds [95 % bootstrap interval] (seeds)"
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        tables.append(f"{caption}\n\n{table}")
    return "\n\n".join(tables)


def probe_table(groups: dict[str, dict[str, list[Run]]]) -> str:
    """The results of `--eval_only --probe_state`, over seeds; empty if it was never called on these runs."""
    lines = []
    for task, group in groups.items():
        for method, runs in group.items():
            found = np.array([probe for run in runs if (probe := read_probe(run)) is not None])
            if len(found):
                score, *r2 = found.mean(0)
                _, (low, high) = bootstrap([found[:, 0]], aggregate, 2000)
                mean = AGGREGATES.index("mean")
                interval = f" [{low[mean]:.1f}, {high[mean]:.1f}]" if len(found) > 1 else ""
                cells = [task, METHOD_NAMES.get(method, method), f"{score:.1f}{interval}"]
                cells += ["" if math.isnan(value) else f"{value:.2f}" for value in r2]
                lines.append(f"| {' | '.join(cells)} | {len(found)} |")
    if not lines:
        return ""
    header = "| task | method | return | R² state | R² background | seeds |\n|---|---|---:|---:|---:|---:|\n"
    caption = "`--eval_only --probe_state` on the last checkpoints: means over seeds [95 % bootstrap interval]"
    return f"\n\n{caption}\n\n{header}" + "\n".join(lines)


def read_probe(run: Run) -> tuple[float, float, float] | None:
    """Return, and mean R² of the state variables and of the background's pixels, of the last evaluation with probes.

    None if the run's task was never evaluated with probes; NaN for what there is no probe of.
    """
    path = run.path / "eval.jsonl"
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        probed = [entry for entry in entries if entry["task"] == run.task and entry.get("probe_r2")]
        if not probed:
            return None
        r2 = probed[-1]["probe_r2"]
        state = [value for name, value in r2.items() if not name.startswith("background/")]
        background = [r2[name] for name in r2.keys() - {"background/mean"} if name.startswith("background/")]
        means = (float(np.mean(values)) if values else math.nan for values in (state, background))
        return (float(probed[-1]["return"]), *means)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PlotError(f"{path}: expected lines as --eval_only writes them") from None


# --------------------------------------------------------------------------------------------------------- command line


def plot(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Draws and writes everything; returns the Markdown tables and remarks."""
    if args.out.suffix not in SUFFIXES:
        raise PlotError(f"--out {args.out}: expected a file ending in {', '.join(SUFFIXES)}")
    if not args.out.parent.is_dir():
        raise PlotError(f"--out {args.out}: no folder {args.out.parent}")
    if not 0 <= args.window <= LARGEST:
        raise PlotError(f"--window {args.window:g}: expected 0 or more environment steps")
    for step in args.at or []:
        if not 0 <= step <= LARGEST:
            raise PlotError(f"--at {step:g}: expected environment steps, such as 1e5")
    found = dict(pair for argument in args.runs for pair in find_runs(argument, args.label))
    runs, remarks, empty = [], [], None
    for path, label in found.items():
        try:
            runs.append(read_run(path, label, args.metric, args.window))
        except NoValues as error:
            empty = error
            remarks.append(f"left out: {error}")
    if not runs:
        raise empty
    groups = group_runs(runs)

    for task, group in groups.items():
        for method, members in group.items():
            ends = sorted(run.steps[-1] for run in members)
            if ends[0] < ends[-1]:
                shortest = min(members, key=lambda run: run.steps[-1])
                remarks.append(f"{task}, {method}: drawn up to step {ends[0]:,.0f}, where {shortest.path} ends")
    at = list(dict.fromkeys(args.at or [min(run.steps[-1] for run in runs)]))
    rows = summarize(groups, at)
    for step in at:
        short = sorted(str(run.path) for run in runs if score_at(run, step) is None)
        if short:
            remarks.append(f"--at {step:,.0f}: left out, without a value there: {', '.join(short)}")
    if not rows:
        raise PlotError(f"--at {' '.join(f'{step:,.0f}' for step in at)}: no run has a value there")
    published = read_published(list(groups)) if args.published else {}
    if args.published:
        remarks += [f"{task}: no published curve" for task in groups if task not in published]

    draw_curves(groups, published, args.metric, args.out)
    table = args.out.with_name(f"{args.out.stem}_table.csv")
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    draw_table(rows, args.metric, table.with_suffix(args.out.suffix))
    tables = markdown(rows, args.metric) + probe_table(groups)
    return tables, [*remarks, f"{args.out}, {table.with_suffix(args.out.suffix)}, {table}"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise PlotError(message)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, or NAME=RUN")
    parser.add_argument("--out", type=Path, required=True, help="the figure to write (.png, .pdf, .svg)")
    parser.add_argument("--metric", default="eval_return", help="name in metrics.jsonl (eval_return)")
    parser.add_argument("--label", help="the method's name for every RUN without NAME=")
    parser.add_argument("--at", type=float, nargs="+", help="environment steps of the table (the last that all have)")
    parser.add_argument(
        "--window", type=float, default=0, help="average over this many environment steps up to each (0: single values)"
    )
    parser.add_argument("--published", action="store_true", help="add the curves of figures/published_returns.csv")
    try:
        table, remarks = plot(parser.parse_args(argv))
    except (PlotError, OSError) as error:
        print(f"plot.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(table)
    for line in remarks:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
