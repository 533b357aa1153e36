"""Makes the tables of PAGES again, from the runs in results/: `python figures/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function here. `--check` changes nothing,
and names the pages whose tables are not those of the runs (exit status 1).
"""

import argparse
import functools
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from figures import plot, reading
from run.config import LEGAL

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "results/README.md", "docs/findings.md")
AGENTS = {"agent": "HRSSM", "agent_dreamerv3": "DreamerV3"}  # those in results/ with weights
R2 = ["R² state", "R² background"]


def load(folder: str) -> list[reading.Run]:
    """The runs below results/`folder`, methods in the order of reading.METHOD_NAMES."""
    return runs_in(ROOT / "results" / folder)


@functools.cache  # several tables are of the same runs
def runs_in(path: Path) -> list[reading.Run]:
    runs, order = reading.find_runs([str(path)]), list(reading.METHOD_NAMES)
    return sorted(runs, key=lambda run: (run.task, order.index(run.method), run.seed))


def by_method(several: bool, folder: str = "small") -> list[tuple[str, str, list[reading.Run], pd.DataFrame]]:
    """Task, method, runs and their returns and R² of the small agents, with several seeds or with one."""
    groups = reading.group_runs(load(folder))
    scores = plot.probe_scores(groups)
    return [(*key, runs, scores[key]) for key, runs in groups.items() if (len(runs) > 1) == several]


def name(method: str) -> str:
    return reading.METHOD_NAMES[method]


def spread(row: dict) -> str:
    """Mean and standard deviation over an evaluation's episodes."""
    return f"{row['return']:.0f} ± {row['return_std']:.0f}"


def averaged(scores: pd.DataFrame | None) -> str:
    """The mean return over seeds with its interval, and how many they are; "" if there are none."""
    return "" if scores is None else f"{plot.mean_span(scores['return'], 0)} ({len(scores)})"


def curve(run: reading.Run) -> list[str]:
    """Mean and standard deviation over the episodes of each evaluation during training."""
    stds = reading.read_curve(run.path, "eval_return_std")
    return [f"{mean:.0f} ± {stds[step]:.0f}" for step, mean in run.curve.items()]


def listed(values: pd.Series) -> str:
    """Returns one after the other."""
    return ", ".join(f"{value:.0f}" for value in values)


def tiny(share: float) -> str:
    return f"{share:.0e}".replace("e-0", "e-")


def summary() -> str:
    """walker_stand: full size first, then the small agents, without variants of HRSSM."""
    tasks = ("dmc_walker_stand", "dmc_walker_stand_video")
    rows = []
    for run in load("dmc_vision"):
        row = run.own_evaluations()[-1]
        cells = [f"{row['return']:.0f} (1)" if task == run.task else "" for task in tasks]
        rows.append([f"{name(run.method)}, full size", f"{row['step']:,}", *cells])
    runs = load("small")
    small = plot.probe_scores(reading.group_runs(runs))
    for method in ("hrssm", "dreamerv3", *LEGAL["baseline"].choices[1:]):
        if all((task, method) in small for task in tasks):
            cells = [averaged(small[task, method]) for task in tasks]
            rows.append([name(method), f"{runs[0].curve.index[-1]:,.0f}", *cells])
    return plot.table(["agent", "steps", "clean", "moving clouds"], rows)


def full_size_curve() -> str:
    """Evaluations of the full-size run."""
    (run,) = load("dmc_vision")
    header = ["environment steps", *(f"{step / 1000:.0f}k" for step in run.curve.index)]
    return plot.table(header, [["return", *curve(run)]])


def full_size_probes() -> str:
    """The last checkpoint of the full-size run, by groups of the state."""
    (run,) = load("dmc_vision")
    row = run.probed()
    r2 = pd.Series(row["probe_r2"]).drop("background/mean")
    groups = r2.groupby(r2.index.str.split("/").str[0], sort=False).mean()
    header = ["step", "return", "episodes", *(f"R² {group}" for group in groups.index), "share of the latent in `mbr`"]
    cells = [f"{row['step']:,}", spread(row), row["episodes"], *groups.map("{:.2f}".format)]
    return plot.table(header, [[*cells, tiny(row["mbr_latent_share"])]])


def small() -> str:
    """Small agents with several seeds."""
    rows = []
    for task, method, runs, scores in by_method(several=True):
        seeds = listed(scores["return"])
        shares = [run.probed().get("mbr_latent_share") for run in runs]
        share = ", ".join(tiny(share) if share else "?" for share in shares) if any(shares) else ""
        rows.append([task, name(method), plot.mean_span(scores["return"], 0), seeds, *plot.r2_cells(scores), share])
    return plot.table(["task", "method", "return", "each seed", *R2, "latent in `mbr`"], rows, left=2)


def differences() -> str:
    """HRSSM's return minus that of each other method with several seeds, and its 95% bootstrap interval."""
    returns = {(task, method): scores["return"] for task, method, _, scores in by_method(several=True)}
    rows = [
        [task, name(method), *gap(returns[task, "hrssm"], theirs)]
        for (task, method), theirs in returns.items()
        if method != "hrssm" and (task, "hrssm") in returns
    ]
    return plot.table(["task", "HRSSM minus", "difference of the means", "seeds"], rows, left=2)


def seeds() -> str:
    """The spread of returns over seeds, pooled over methods, and the difference of two methods that it lets show.

    That is one that a two-sided t test at 5% finds in 80% of all comparisons with so many seeds each.
    """
    counts, rows = (3, 5, 8, 20), []
    tasks: dict[str, list[list[dict]]] = {}
    for task, _, runs, _ in by_method(several=True):
        tasks.setdefault(task, []).append([run.probed() for run in runs])
    for task, methods in tasks.items():
        squares = [len(found) * np.var([row["return"] for row in found]) for found in methods]
        degrees = sum(len(found) - 1 for found in methods)
        if degrees > 2:
            std = np.sqrt(sum(squares) / degrees)
            within = np.sqrt(np.mean([row["return_std"] ** 2 / row["episodes"] for found in methods for row in found]))
            cells = [f"{value:.0f}" for value in (std, within, *(std * effect(n) for n in counts))]
            rows.append([task, len(methods), degrees + len(methods), *cells])
    header = ["task", "methods", "runs", "over seeds", "of an evaluation", *(f"{n} seeds each" for n in counts)]
    return plot.table(header, rows)


def effect(n: int) -> float:
    """The difference that `seeds` tells of, in standard deviations, with n seeds each."""
    degrees = 2 * n - 2
    critical = scipy.stats.t.ppf(0.975, degrees)
    return scipy.optimize.brentq(lambda d: scipy.stats.nct.sf(critical, degrees, d * np.sqrt(n / 2)) - 0.8, 0.1, 5)


def clouds() -> str:
    """Return in front of clouds minus the clean one, and R² of the probes from the lowest to the highest seed."""
    scores = {(task, method): scores for task, method, _, scores in by_method(several=True)}
    rows = []
    for (task, method), clean in scores.items():
        if (key := (f"{task}_video", method)) in scores:
            video = scores[key]
            spans = [clean["state"], video["state"], video["background"]]
            cells = [f"{values.min():.2f} to {values.max():.2f}" for values in spans]
            rows.append([task, name(method), *gap(video["return"], clean["return"]), *cells])
    header = ["task", "method", "clouds minus clean", "seeds"]
    return plot.table([*header, "R² state, clean", "R² state, clouds", "R² background, clouds"], rows, left=2)


def gap(ours: pd.Series, theirs: pd.Series) -> list[str]:
    """Two cells: the difference of the means with its interval, the numbers of seeds."""
    return [plot.gap(ours, theirs), f"{len(ours)} and {len(theirs)}"]


def looks() -> str:
    """walker_stand under what clouds also change: other colors, and images that differ from step to step."""
    kinds = {
        "clean": ("small", ""),
        "clean, images shifted": ("small_shift", ""),
        "`_video`, one color": ("small_color", "_video"),
        "`_video`, clouds": ("small", "_video"),
    }
    folders = {folder for folder, _ in kinds.values()}
    scores = {folder: plot.probe_scores(reading.group_runs(load(folder))) for folder in folders}
    rows = []
    for method in ("hrssm", "no_hybrid"):
        found = [scores[folder].get((f"dmc_walker_stand{end}", method)) for folder, end in kinds.values()]
        rows.append([name(method), *map(averaged, found)])
    return plot.table(["method", *kinds], rows)


def overlays() -> str:
    """walker_stand, clean and in front of clouds, without the config `overlay` and with it."""
    scores = plot.probe_scores(reading.group_runs(load("small")))
    pairs = {"no_hybrid": "no_hybrid+overlay", "hrssm": "overlay", "dreamerv3": "dreamerv3+overlay"}
    rows = []
    for pair in pairs.items():
        found = [scores.get((f"dmc_walker_stand{end}", method)) for end in ("", "_video") for method in pair]
        rows.append([name(pair[0]), *map(averaged, found)])
    return plot.table(["method", "clean", "clean, overlays", "clouds", "clouds, overlays"], rows)


def longer() -> str:
    """Small agents trained for more steps, with the means of training's evaluations."""
    rows = []
    for run in load("small_200k"):
        means = run.curve.groupby(np.ceil(run.curve.index / 4e4) * 4e4).mean()
        rows.append([run.task, name(run.method), run.seed, *means.map("{:.0f}".format), spread(run.probed())])
    spans = [f"{end / 1000 - 40:.0f}k to {end / 1000:.0f}k" for end in means.index]
    return plot.table(["task", "method", "seed", *spans, "return"], rows, left=2)


def videos() -> str:
    """Small agents trained in front of natural videos, and the shipped ones of clouds: each in front of both."""
    rows = []
    for run in [*load("small_videos"), *shipped()]:
        returns = {}
        for row in run.evaluations:
            if row["task"] == run.task:
                source = re.search(r"img_source (\w+)", row["changed"])
                returns[source[1] if source else run.settings["img_source"]] = spread(row)
            elif row["task"] == run.task.removesuffix("_video") and not row["changed"]:
                returns["clean"] = spread(row)
        cells = [returns["video"], returns["clouds"], returns["clean"]]
        rows.append([run.settings["img_source"], name(run.method), run.seed, *cells])
    return plot.table(["trained in front of", "method", "seed", "video (held out)", "clouds", "clean"], rows, left=2)


def rooms() -> str:
    """Small agents of Realistic ManiSkill, in the rooms of their training and in others."""
    rows = []
    for run in load("small_rooms"):
        others = [row for row in run.evaluations if row["changed"].startswith("scan_path ")]
        cells = [spread(run.own_evaluations()[-1]), spread(others[-1])]
        rows.append([run.task, name(run.method), run.seed, *cells, listed(run.curve)])
    header = ["task", "method", "seed", "return", "in other rooms", "every 10,000 steps"]
    return plot.table(header, rows, left=2)


def one_seed() -> str:
    """Small agents with one seed, with the evaluations of training."""
    rows = []
    for task, method, (run,), scores in [*by_method(False), *by_method(False, "small_long")]:
        last = run.probed()
        cells = [f"{last['step']:,}", spread(last), *plot.r2_cells(scores), listed(run.curve)]
        rows.append([task, name(method), *cells])
    return plot.table(["task", "method", "steps", "return", *R2, "every 10,000 steps"], rows, left=2)


def suite() -> str:
    """The agents that come with the code and small clean-trained ones, on test sets; and published numbers."""
    clean = [run for run in load("small") if any(row["task"] != run.task for row in run.evaluations)]
    frame = plot.summarize_suite([*shipped(), *clean])
    return re.sub(r" \(\d+\) \|", " |", plot.suite_table(frame)[0])  # drops the numbers of protocols


def shipped() -> list[reading.Run]:
    """The agents that come with the code, named as in figures."""
    return reading.find_runs([f"{name}={ROOT / 'results' / folder}" for folder, name in AGENTS.items()], metric=None)


def quickstart() -> str:
    """The quickstart's evaluations, a row for each seed."""
    runs = load("quickstart")
    header = ["", *(f"{step:,.0f}" for step in runs[-1].curve.index)]
    return plot.table(header, [[f"seed {run.seed}", *curve(run)] for run in runs])


def fill(text: str) -> str:
    """A page with its tables made again."""
    pattern = re.compile(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n\n{globals()[match[2]]()}\n\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 for stale tables")
    check = parser.parse_args().check
    filled = {page: fill((ROOT / page).read_text()) for page in PAGES}
    stale = [page for page in PAGES if filled[page] != (ROOT / page).read_text()]
    for page in stale:
        if check:
            print(f"{page}: its tables are not those of the runs: python figures/tables.py", file=sys.stderr)
        else:
            (ROOT / page).write_text(filled[page])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
