"""Learning curves, test sets and tables of many runs.

    python figures/plot.py RUN... [--out curves.png]          learning curves, from metrics.jsonl
    python figures/plot.py --suite RUN... [--out suite.png]   returns by test set, from eval.jsonl
    python figures/plot.py --seeds RUN... [--out seeds.png]   a dot for each seed, from eval.jsonl

RUN is a --logdir, a folder of them such as results/small, or NAME=RUN, which names the method. Runs are grouped by
task, method and seed. Curves: a panel for each task with the mean over seeds and its 95% confidence interval, by
bootstrap; curves_table.png and curves_table.csv hold IQM, mean and median at the steps of --at with their intervals
(stratified bootstrap, as in "Deep Reinforcement Learning at the Edge of the Statistical Precipice", Agarwal et al.
2021). Markdown tables are printed: of the means, and of what linear probes found, for runs that were probed.

--suite: a table of methods × test sets for each task and for their mean (mean over seeds, 95% interval, drop from
clean), with published numbers and their protocols beside it, is printed and written to suite_table.csv; the figure
shows it as bars. The numbers are the rows that `--eval_only --eval_suite ...` adds to eval.jsonl.

--seeds: the return of each run on its own task, the last that `--eval_only` added to eval.jsonl, by task and method,
with the mean over seeds and its 95% interval; the dashed line is the mean of the first method. A table of these and of
each method's difference from the first one is printed; seeds_table.csv holds the runs.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats
from matplotlib import ticker

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from figures import reading
from figures.reading import LARGEST, METHOD_NAMES, SETS, Groups, PlotError, Run

plt.switch_backend("agg")
STYLE = {
    "axes.axisbelow": True, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "figure.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 9, "legend.frameon": False, "savefig.dpi": 150,
}  # fmt: skip
plt.rcParams.update(STYLE)
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#997700", "#bbbbbb")  # colorblind-safe
SUFFIXES = (".png", ".pdf", ".svg")
AGGREGATES = ("iqm", "mean", "median")


# ----------------------------------------------------------------------------------------------------------- statistics


def bootstrap(function: Callable, *tasks: Any, reps: int = 10_000) -> np.ndarray:
    """function(*tasks) and its 95% interval, (value, low, high): percentiles over draws of seeds with replacement.

    tasks: (..., seeds) each, whose seeds are drawn among themselves; `function` reduces the last axis. For a single
    seed the interval is the value.
    """
    tasks = [np.asarray(task, float) for task in tasks]
    rng = np.random.default_rng(0)
    drawn = [task[..., rng.integers(task.shape[-1], size=(reps, task.shape[-1]))] for task in tasks]
    return np.stack([function(*tasks), *np.percentile(function(*drawn), [2.5, 97.5], axis=-1)])


def mean_score(*tasks: np.ndarray) -> np.ndarray:
    """Mean over tasks of the means over their seeds, the last axis."""
    return np.mean([task.mean(-1) for task in tasks], 0)


def aggregate(*tasks: np.ndarray) -> np.ndarray:
    """(IQM, mean, median) of scores, one (..., seeds) array for each task, over the last axis.

    With several tasks, mean and median are over the tasks' means, as in Agarwal et al.; with one, over its seeds.
    """
    scores = np.concatenate(tasks, -1)
    means = scores if len(tasks) == 1 else np.stack([task.mean(-1) for task in tasks], -1)
    return np.stack([scipy.stats.trim_mean(scores, 0.25, -1), means.mean(-1), np.median(means, -1)])


def difference(ours: Iterable[float], theirs: Iterable[float]) -> np.ndarray:
    """mean(ours) − mean(theirs) with its 95% interval, the seeds of both drawn with replacement."""
    return bootstrap(lambda a, b: a.mean(-1) - b.mean(-1), ours, theirs)


def mean_curve(curves: list[pd.Series], points: int = 300) -> pd.DataFrame:
    """Mean over seeds with its interval (`mean`, `low`, `high`) by step, over the steps that all runs have."""
    wide = pd.concat(curves, axis=1).sort_index().interpolate("index", limit_area="inside").dropna()  # (steps, seeds)
    wide = wide.iloc[np.unique(np.linspace(0, len(wide) - 1, points).astype(int))]
    return pd.DataFrame(bootstrap(mean_score, wide, reps=1000).T, wide.index, ["mean", "low", "high"])


def summarize(groups: Groups, at: list[float]) -> pd.DataFrame:
    """A row per task, step and method, and with several tasks one over `all` that a method has."""
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    parts = {task: [task] for task in tasks} | ({"all": tasks} if len(tasks) > 1 else {})
    rows = []
    for name, step, method in itertools.product(parts, at, methods):
        runs = [[run for run in groups.get((task, method), []) if run.has(step)] for task in parts[name]]
        if all(runs):
            found = bootstrap(aggregate, *([run.curve.asof(step) for run in members] for members in runs))
            rows.append([name, method, int(step), min(map(len, runs)), *found.T.ravel()])
    names = [f"{name}{end}" for name in AGGREGATES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["task", "method", "step", "seeds", *names])


def evaluations(runs: list[Run], others: bool = False) -> pd.DataFrame:
    """Returns on test sets, a row per run and set: those of eval.jsonl, and the published ones on the same sets.

    Columns: task, set, method, return, seeds (1, or 0 where published), protocol. others: also rows with changed
    settings, as other methods.
    """
    rows = []
    for run in runs:
        last = {(row["task"], row["changed"]): row for row in run.evaluations if others or not row["changed"]}
        for row in last.values():
            task, method = reading.split_task(row["task"])[0], METHOD_NAMES.get(run.method, run.method)
            cells = [task, set_of(run, row["task"]), method + f" ({row['changed']})" * bool(row["changed"])]
            trained = set_of(run, run.task) if reading.split_task(run.task)[0] == task else run.task
            rows.append([*cells, row["return"], 1, describe(run, row), row.get("step", 0), trained])
    if not rows:
        raise PlotError(f"{', '.join(str(run.path) for run in runs)}: no rows with their own settings in eval.jsonl")
    columns = ["task", "set", "method", "return", "seeds", "protocol", "step", "trained"]
    frame = pd.DataFrame(rows, columns=columns)
    if (frame.groupby(["task", "method"])["trained"].nunique() > 1).any():  # HRSSM, trained clean and in clouds
        frame["method"] += ", trained on " + frame["trained"]
    pairs = dict.fromkeys(zip(frame["task"], frame["set"], strict=True))
    published = [published_near(*pair, frame["step"].max() + 1) for pair in pairs]
    return pd.concat([frame, *published], ignore_index=True)[columns[:6]]


def last_returns(runs: list[Run]) -> pd.DataFrame:
    """Task, method, seed, return, step and episodes of each run's last evaluation on its own task.

    That of a suite, which has episodes of its own, counts where there is no other.
    """
    last = []
    for run in runs:
        if rows := run.own_evaluations():
            alone = [row for row in rows if not row.get("suite")]
            last.append((run, (alone or rows)[-1]))
    rows = [[run.task, run.method, run.seed, *map(row.get, ("return", "step", "episodes"))] for run, row in last]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "return", "step", "episodes"])


def summarize_suite(runs: list[Run], others: bool = False) -> pd.DataFrame:
    """Means over the seeds of `evaluations`, by task, set and method, and of a set that all tasks have, over these.

    Columns: task, set, method, seeds, mean, low, high, drop (percent from clean), protocol.
    """
    frame = evaluations(runs, others).assign(part=lambda rows: rows["task"])
    tasks = frame["task"].nunique()
    if tasks > 1:
        shared = frame.groupby(["set", "method"])["task"].transform("nunique") == tasks
        frame = pd.concat([frame, frame[shared].assign(task=f"mean over {tasks} tasks")])
    rows = []
    for key, group in frame.groupby(["task", "set", "method"], sort=False):
        parts = [part for _, part in group.groupby("part", sort=False)]
        span = bootstrap(mean_score, *(part["return"] for part in parts))
        seeds = min(part["seeds"].sum() for part in parts)
        rows.append([*key, seeds, *span, " / ".join(group["protocol"].unique())])
    columns = ["task", "set", "method", "seeds", "mean", "low", "high", "protocol"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.loc[frame["seeds"] == 0, ["low", "high"]] = math.nan
    clean = frame[frame["set"] == "clean"].set_index(["task", "method"])["mean"]
    before = clean.reindex(pd.MultiIndex.from_frame(frame[["task", "method"]])).to_numpy()
    frame.insert(7, "drop", (100 * (1 - frame["mean"] / before)).where((frame["set"] != "clean") & (before != 0)))
    return frame


def published_near(task: str, test_set: str, step: float) -> pd.DataFrame:
    """The published numbers on a test set at the training steps closest to `step`, as rows of `summarize_suite`."""
    frame = reading.published_on(task, test_set)
    distance = np.log(frame["step"] / step).abs()
    frame = frame.loc[sorted(distance.groupby([frame["method"], frame["protocol"]]).idxmin())]
    method = frame["method"] + " (published: " + frame["protocol"] + ")"
    protocol = frame["step"].map("{:,} environment steps; ".format) + frame["words"]
    return frame.assign(method=method, protocol=protocol, seeds=0)


def set_of(run: Run, task: str) -> str:
    """The test set of a task on which a run was evaluated; that of generated backgrounds is named after these."""
    name, source = reading.split_task(task)[1], run.settings.get("img_source", "video")
    return f"{name} ({source})" if name.endswith("video") and source != "video" else name


def in_order(names: Iterable[str]) -> list[str]:
    """Test sets, clean first, then as in SETS."""
    order = {name: number for number, name in enumerate(("clean", *SETS))}
    return sorted(set(names), key=lambda name: (order.get(name.split(" ")[0], 0), name))


def describe(run: Run, row: dict) -> str:
    """How a row of eval.jsonl came about, in words like those of figures/published_protocols.csv."""
    settings = run.settings
    source = f" ({settings['img_source']})" if run.task.endswith("_video") and "img_source" in settings else ""
    size = "x".join(map(str, settings.get("size", ["?"])))
    trained = f"trained: on {run.task}{source}, {row.get('step', 0):,} environment steps"
    part = f"; {row['incomplete']}" if isinstance(row.get("incomplete"), str) else ""
    return f"{trained}; images: {size}, color; episodes: {row.get('episodes', '?')}{part}"


def probe_scores(groups: Groups) -> dict[tuple[str, str], pd.DataFrame]:
    """A row for each run that was evaluated with probes on its own task, by task and method.

    Columns, of the last such evaluation: `return`, and mean R² of the `state` variables and the `background`'s pixels;
    NaN for what there is no probe of.
    """
    found = {}
    for key, runs in groups.items():
        rows = []
        for run in runs:
            if row := run.probed():
                r2 = pd.Series(row["probe_r2"]).drop("background/mean", errors="ignore")
                background = r2.index.str.startswith("background/")
                rows.append([row["return"], r2[~background].mean(), r2[background].mean()])
        if rows:
            found[key] = pd.DataFrame(rows, columns=["return", "state", "background"])
    return found


# -------------------------------------------------------------------------------------------------------------- drawing


def legend_name(name: str) -> str:
    """A name as written in a figure: matplotlib reads $ as math, and hides names that begin with _."""
    name = METHOD_NAMES.get(name, name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def panels(names: Iterable[str], width: float = 3.4) -> tuple[plt.Figure, dict[str, plt.Axes]]:
    """A figure with an axis for each name."""
    names = list(names)
    columns = len(names) if len(names) < 4 else math.ceil(math.sqrt(len(names)))
    lines = math.ceil(len(names) / columns)
    figure = plt.figure(figsize=(width * columns + 0.6, 2.7 * lines + 0.7), layout="constrained")
    return figure, {name: figure.add_subplot(lines, columns, number) for number, name in enumerate(names, 1)}


def share_range(share: Callable[[plt.Axes], None], task: str, axes: dict[str, plt.Axes]) -> None:
    """Gives a distracted version of a task the range of the clean one."""
    clean = min((other for other in axes if f"{task}_".startswith(f"{other}_")), key=len)
    if clean != task:
        share(axes[clean])


def save(figure: plt.Figure, path: Path, handles: dict[str, Any], max_columns: int) -> None:
    """Writes a figure with a legend below its panels, in rows of equal length, the widest that fits."""
    names = [legend_name(name) for name in handles]
    for columns in range(max_columns, 0, -1):
        count = math.ceil(len(handles) / math.ceil(len(handles) / columns))
        legend = figure.legend(handles.values(), names, loc="outside upper center", ncols=count)
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or extent.width <= figure.bbox.width:
            break
        legend.remove()
    rows_beyond_two = max(0.0, extent.height / figure.dpi - 0.5)  # inches: the panels keep their height
    figure.set_figheight(figure.get_figheight() + rows_beyond_two)
    figure.savefig(path)
    plt.close(figure)


def draw_curves(groups: Groups, published: dict[str, pd.DataFrame], metric: str, path: Path) -> None:
    """A panel for each task, a line with its interval for each method; a task's distracted versions share its range."""
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    figure, axes = panels(tasks)
    handles = {}
    for task, axis in axes.items():
        share_range(axis.sharey, task, axes)
        members = {method: runs for (name, method), runs in groups.items() if name == task}
        end = max(run.curve.index[-1] for runs in members.values() for run in runs)
        for name, curve in published.get(task, pd.DataFrame(columns=["method"])).groupby("method"):
            shown = curve[curve["step"] <= max(end, curve["step"].min())]
            style = {"color": "#777777", "linewidth": 1.2, "markersize": 3, "zorder": 1}
            (handles[f"{name} (published, clean)"],) = axis.plot(shown["step"], shown["return"], "o--", **style)
        for method, runs in members.items():
            again, number = divmod(methods.index(method), len(COLORS))
            color, style = COLORS[number], ("-", "--", ":")[again % 3]
            curve = mean_curve([run.curve for run in runs])
            marker = "o" if len(curve) == 1 else None
            (handles[method],) = axis.plot(curve["mean"], style, color=color, linewidth=1.6, marker=marker)
            axis.fill_between(curve.index, curve["low"], curve["high"], color=color, alpha=0.2, linewidth=0)
        seeds = [len(runs) for runs in members.values()]
        axis.set_title(f"{legend_name(task)}  ({counted(seeds)} seed{'s' if max(seeds) > 1 else ''})")
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    figure.supxlabel("environment steps")
    figure.supylabel(legend_name(metric))
    save(figure, path, handles, max_columns=figure.axes[0].get_gridspec().ncols + 1)


def draw_suite(frame: pd.DataFrame, path: Path) -> None:
    """Returns by test set as bars with 95% intervals, a panel for each task; published numbers are gray."""
    figure, axes = panels(frame["task"].unique(), width=max(3.4, 0.9 + 0.22 * len(frame)))
    ours, published = (frame[kind]["method"].unique() for kind in (frame["seeds"] > 0, frame["seeds"] == 0))
    bright = COLORS[: len(ours)] if len(ours) <= 7 else plt.get_cmap("turbo")(np.linspace(0, 1, len(ours)))
    grays = plt.get_cmap("Greys")(np.linspace(0, 1, len(published) + 4)[2:-2])
    colors = dict(zip([*ours, *published], [*bright, *grays], strict=True))
    places = dict(zip(colors, np.linspace(-0.4, 0.4, 2 * len(colors) + 1)[1::2], strict=True))
    for task, axis in axes.items():
        part = frame[frame["task"] == task]
        sets = in_order(part["set"])
        for row in part.itertuples():
            interval = [[row.mean - row.low], [row.high - row.mean]]
            style = {"width": 0.8 / len(colors), "color": [colors[row.method]], "error_kw": {"elinewidth": 1}}
            axis.bar(sets.index(row.set) + places[row.method], row.mean, yerr=interval, **style)
        axis.set_xticks(range(len(sets)), sets)
        axis.set(xlim=(-0.5, len(sets) - 0.5), ylim=(0, max(1000, part[["mean", "high"]].max(axis=None))))
        axis.xaxis.grid(False)
        axis.set_title(legend_name(task))
    figure.supylabel("return")
    handles = {name: plt.Rectangle((0, 0), 1, 1, color=color) for name, color in colors.items()}
    save(figure, path, handles, max_columns=4)


def draw_seeds(frame: pd.DataFrame, path: Path) -> None:
    """A panel for each task, a line for each method: a dot for each seed, their mean and its 95% interval."""
    tasks, methods = list(frame["task"].unique()), list(frame["method"].unique())
    figure, axes = panels(tasks)
    grid = figure.axes[0].get_gridspec()
    figure.set_figheight(grid.nrows * (0.22 * len(methods) + 0.5) + 0.4)
    for task, axis in axes.items():
        share_range(axis.sharex, task, axes)
        for place, method in enumerate(methods):
            returns = frame.loc[(frame["task"] == task) & (frame["method"] == method), "return"]
            if returns.empty:
                continue
            mean, low, high = bootstrap(mean_score, returns)
            axis.plot(returns, [place] * len(returns), "o", color=COLORS[0], alpha=0.5, markersize=4, markeredgewidth=0)
            axis.plot([low, high], [place, place], color="#333333", linewidth=1.2)
            axis.plot(mean, place, "|", color="#333333", markersize=9, markeredgewidth=2)
            if place == 0:
                axis.axvline(mean, color="#999999", linestyle="--", linewidth=0.8, zorder=0)
        first = figure.axes.index(axis) % grid.ncols == 0
        axis.set_yticks(range(len(methods)), map(legend_name, methods) if first else [""] * len(methods))
        axis.set(ylim=(len(methods) - 0.4, -0.6), title=legend_name(task))
    figure.supxlabel("return: a dot for each seed, mean and 95% bootstrap interval")
    figure.savefig(path)
    plt.close(figure)


def draw_table(frame: pd.DataFrame, metric: str, path: Path) -> None:
    """The summary as a figure, the best mean of each task and step in bold."""
    cells = pd.DataFrame({"task": frame["task"].map(legend_name), "method": frame["method"].map(legend_name)})
    cells["step"], cells["seeds"] = frame["step"].map("{:,}".format), frame["seeds"].astype(str)
    for name in AGGREGATES:
        spans = frame[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        cells[name.upper() if name == "iqm" else name] = ["{:.1f}  [{:.1f}, {:.1f}]".format(*span) for span in spans]
    widths = np.array([max(map(len, [name, *cells[name]])) + 2 for name in cells])
    figure, axis = plt.subplots(figsize=(0.085 * widths.sum(), 0.26 * (len(cells) + 1) + 0.45))
    axis.set_axis_off()
    axis.set_title(f"{legend_name(metric)}, 95% bootstrap intervals", pad=6)
    style = {"cellLoc": "left", "colLoc": "left", "bbox": (0, 0, 1, 1), "edges": "B"}
    drawn = axis.table(cells.to_numpy(), colLabels=list(cells), colWidths=list(widths / widths.sum()), **style)
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    bold = {(number + 1, list(cells).index("mean")) for number in np.flatnonzero(best(frame))}
    for (line, column), cell in drawn.get_celld().items():
        cell.set_edgecolor("#333333" if line == 0 else "#dddddd")
        if line == 0 or (line, column) in bold:
            cell.set_text_props(weight="bold")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------- tables


def best(frame: pd.DataFrame) -> pd.Series:
    """Of each row of a summary, whether its mean is the best of several methods' in its task at its step."""
    means = frame.groupby(["task", "step"])["mean"]
    return (means.transform("max") == frame["mean"]) & (means.transform("size") > 1)


def table(header: list[str], rows: Iterable[Iterable[object]], left: int = 1) -> str:
    """A Markdown table, its first `left` columns aligned to the left."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def span(mean: float, low: float, high: float, digits: int = 1, bold: bool = False) -> str:
    """A mean with its interval, if it has one."""
    text = f"**{mean:.{digits}f}**" if bold else f"{mean:.{digits}f}"
    return text if math.isnan(low) or low == high else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def gap(ours: Iterable[float], theirs: Iterable[float]) -> str:
    """The difference of the means with its interval."""
    return "{:+.0f} [{:+.0f}, {:+.0f}]".format(*difference(ours, theirs))


def mean_span(scores: Iterable[float], digits: int = 1) -> str:
    """Mean over seeds with its interval."""
    return span(*bootstrap(mean_score, scores), digits)


def markdown(frame: pd.DataFrame, metric: str) -> str:
    """The means as a table of methods × tasks for each step, the best of each task in bold."""
    tables = []
    for step, part in frame.assign(best=best(frame)).groupby("step"):
        texts = {}
        for row in part.itertuples():
            score = span(row.mean, row.mean_low, row.mean_high, bold=row.best)
            texts.setdefault(row.method, {})[row.task] = f"{score} ({row.seeds})"
        tasks = part["task"].unique()
        rows = [[METHOD_NAMES.get(name, name), *(row.get(task, "") for task in tasks)] for name, row in texts.items()]
        caption = f"`{metric}` at {step:,} environment steps: mean over seeds [95% bootstrap interval] (seeds)"
        tables.append(f"{caption}\n\n{table(['method', *tasks], rows)}")
    return "\n\n".join(tables)


def counted(seeds: Iterable[int]) -> str:
    """The smallest to the largest number of seeds; nothing for 0, of published numbers."""
    return " to ".join(str(number) for number in sorted({min(seeds), max(seeds)}) if number)


def suite_table(part: pd.DataFrame) -> tuple[str, list[str]]:
    """Methods × sets of a task, with the drop from clean, as Markdown; and the protocols that it numbers."""
    sets, rows, protocols = in_order(part["set"]), [], {}
    for method, cells in part.groupby("method", sort=False):
        texts = {}
        for row in cells.to_dict("records"):
            drop = "" if math.isnan(row["drop"]) else f" ({-row['drop']:+.0f}%)"
            texts[row["set"]] = span(row["mean"], row["low"], row["high"], 0) + drop
        number = protocols.setdefault(" / ".join(dict.fromkeys(cells["protocol"])), len(protocols) + 1)
        rows.append([f"{method} ({number})", counted(cells["seeds"]), *(texts.get(name, "") for name in sets)])
    return table(["method", "seeds", *sets], rows), list(protocols)


def suite_markdown(frame: pd.DataFrame) -> str:
    """The table of each task, and its protocols below."""
    caption = (
        "Return, mean over seeds [95% bootstrap interval] (change from clean in percent). "
        "The video sets of these runs are DMC-GS's: `video_hard` hides the floor, all others keep it."
    )
    tables = []
    for task, part in frame.groupby("task", sort=False):
        text, protocols = suite_table(part)
        notes = "\n".join(f"{number}. {protocol}" for number, protocol in enumerate(protocols, 1))
        tables.append(f"`{task}`\n\n{text}\n\n{notes}")
    return "\n\n".join([caption, *tables])


def seeds_markdown(frame: pd.DataFrame) -> str:
    """Returns by task and method, and how far each method is from the first one of its task."""
    rows, before = [], {}
    for (task, method), part in frame.groupby(["task", "method"], sort=False):
        first, theirs = before.setdefault(task, (method, part["return"]))
        apart = gap(part["return"], theirs) if method != first else ""
        rows.append([task, METHOD_NAMES.get(method, method), mean_span(part["return"], 0), len(part), apart])
    return table(["task", "method", "return", "seeds", "minus the first method"], rows, left=2)


def r2_cells(scores: pd.DataFrame) -> list[str]:
    """Mean R² of state and background over seeds; empty for what there is no probe of."""
    return [f"{mean:.2f}" if mean == mean else "" for mean in scores[["state", "background"]].mean()]


def probe_markdown(groups: Groups) -> str:
    """The results of `--eval_only --probe_state`, over seeds; empty if it was never called on these runs."""
    rows = [
        [task, METHOD_NAMES.get(method, method), mean_span(scores["return"]), *r2_cells(scores), len(scores)]
        for (task, method), scores in probe_scores(groups).items()
    ]
    if not rows:
        return ""
    caption = "`--eval_only --probe_state` on the last checkpoints: means over seeds [95% bootstrap interval]"
    header = ["task", "method", "return", "R² state", "R² background", "seeds"]
    return f"\n\n{caption}\n\n{table(header, rows, left=2)}"


# --------------------------------------------------------------------------------------------------------- command line


def plot_curves(args: argparse.Namespace, out: Path) -> tuple[str, list[str]]:
    """Draws and writes everything; returns the Markdown tables and remarks."""
    if not 0 <= args.window <= LARGEST:
        raise PlotError(f"--window {args.window:g}: expected 0 or more environment steps")
    for step in args.at or []:
        if not 0 <= step <= LARGEST:
            raise PlotError(f"--at {step:g}: expected environment steps, such as 1e5")
    remarks: list[str] = []
    runs = reading.find_runs(args.runs, args.label, args.metric, args.window, remarks)
    groups = reading.group_runs(runs)
    for (task, method), members in groups.items():
        begin, late = max((run.curve.index[0], str(run.path)) for run in members)
        end, early = min((run.curve.index[-1], str(run.path)) for run in members)
        if begin > end:
            raise PlotError(
                f"{task}, {method}: {late} begins at step {begin:,.0f}, after {early} has ended at {end:,.0f}; "
                "leave one out, or name their methods: NAME=RUN"
            )
        ends = {run.curve.index[-1]: run.path for run in reversed(members)}
        if len(ends) > 1:
            remarks.append(f"{task}, {method}: drawn up to step {min(ends):,.0f}, where {ends[min(ends)]} ends")
    at = sorted(set(args.at or [min(run.curve.index[-1] for run in runs)]))
    if not any(run.has(step) for run in runs for step in at):
        raise PlotError(f"--at {' '.join(f'{step:,.0f}' for step in at)}: no run has a value there")
    for step in at:
        short = sorted(str(run.path) for run in runs if not run.has(step))
        if short:
            remarks.append(f"--at {step:,.0f}: left out, without a value there: {', '.join(short)}")
    frame = summarize(groups, at)
    tasks = dict.fromkeys(run.task for run in runs)
    published = reading.published_curves(tasks) if args.published else {}
    if args.published:
        remarks += [f"{task}: no published curve" for task in tasks if task not in published]

    draw_curves(groups, published, args.metric, out)
    draw_table(frame, args.metric, out.with_stem(f"{out.stem}_table"))
    frame.round(3).to_csv(csv := out.with_name(f"{out.stem}_table.csv"), index=False)
    remarks.append(f"{out}, {csv.with_suffix(out.suffix)}, {csv}")
    return markdown(frame, args.metric) + probe_markdown(groups), remarks


def plot_suite(args: argparse.Namespace, out: Path) -> tuple[str, list[str]]:
    """Draws and writes the returns by test set; returns the Markdown tables and remarks."""
    remarks: list[str] = []
    runs = reading.find_runs(args.runs, args.label, None, remarks=remarks)
    frame = summarize_suite(runs, args.others)
    changed = sum(bool(row["changed"]) for run in runs for row in run.evaluations)
    if changed and not args.others:
        remarks.append(f"left out: {changed} rows with changed settings (--others)")
    draw_suite(frame, out)
    frame.round(3).to_csv(csv := out.with_name(f"{out.stem}_table.csv"), index=False)
    return suite_markdown(frame), [*remarks, f"{out}, {csv}"]


def plot_seeds(args: argparse.Namespace, out: Path) -> tuple[str, list[str]]:
    """Draws and writes the return of each seed; returns the Markdown table and remarks."""
    remarks: list[str] = []
    runs = reading.find_runs(args.runs, args.label, None, remarks=remarks)
    frame = last_returns(runs)
    remarks += [f"left out, never evaluated on {run.task}: {run.path}" for run in runs if not run.own_evaluations()]
    if frame.empty:
        raise PlotError("; ".join(remarks))
    draw_seeds(frame, out)
    frame.to_csv(csv := out.with_name(f"{out.stem}_table.csv"), index=False)
    return seeds_markdown(frame), [*remarks, f"{out}, {csv}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: parser.exit(2, f"plot.py: {' '.join(message.split())}\n")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, or NAME=RUN")
    parser.add_argument("--out", type=Path, help="a .png, .pdf or .svg (curves.png, suite.png or seeds.png)")
    parser.add_argument("--metric", default="eval_return", help="name in metrics.jsonl (eval_return)")
    parser.add_argument("--label", help="the method's name for every RUN without NAME=")
    parser.add_argument("--at", type=float, nargs="+", help="environment steps of the table (the last that all have)")
    parser.add_argument(
        "--window", type=float, default=0, help="average over this many environment steps up to each (0: at each)"
    )
    parser.add_argument("--published", action="store_true", help="add the curves of figures/published_returns.csv")
    parser.add_argument("--suite", action="store_true", help="returns by test set instead of curves")
    parser.add_argument("--seeds", action="store_true", help="the return of each seed instead of curves")
    parser.add_argument("--others", action="store_true", help="with --suite: also rows with changed settings")
    args = parser.parse_args(argv)
    if args.others and not args.suite:
        parser.error("--others belongs to --suite")
    if args.suite and args.seeds:
        parser.error("--suite and --seeds: expected one of them")
    kind = "suite" if args.suite else "seeds" if args.seeds else "curves"
    out = args.out or Path(f"{kind}.png")
    if out.suffix not in SUFFIXES:
        parser.error(f"--out {out}: expected a file ending in {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        parser.error(f"--out {out}: no folder {out.parent}")
    try:
        tables, remarks = {"curves": plot_curves, "suite": plot_suite, "seeds": plot_seeds}[kind](args, out)
    except (PlotError, OSError) as error:
        parser.error(str(error))
    print(tables)
    for line in remarks:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
