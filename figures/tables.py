"""Makes the tables of PAGES again, from the runs in results/: `python figures/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function here. `--check` changes nothing,
and names the pages whose tables are not those of the runs (exit status 1).
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from figures import plot

ROOT = Path(__file__).resolve().parent.parent

PAGES = ("README.md", "results/README.md", "docs/findings.md")
AGENTS = {"agent": "HRSSM", "agent_dreamerv3": "DreamerV3"}  # those in results/ with weights


def load(folder: str, curves: bool = False) -> list[plot.Run]:
    """The runs below results/`folder`, methods in the order of plot.METHOD_NAMES."""
    runs = plot.find_runs([str(ROOT / "results" / folder)])
    if curves:
        for run in runs:
            run.curve = plot.read_curve(run, "eval_return")
    order = list(plot.METHOD_NAMES)
    return sorted(runs, key=lambda run: (run.task, order.index(run.method), run.seed))


def probed(folder: str) -> list[dict]:
    """Return and probes of the last checkpoints by task and method; as plot.summarize_probes."""
    return plot.summarize_probes(plot.group_runs(load(folder))).to_dict("records")


def name(method: str) -> str:
    return plot.METHOD_NAMES[method]


def last_evaluation(run: plot.Run) -> dict:
    """The last row of a run's eval.jsonl with its own task and settings."""
    return [row for row in plot.read_evaluations(run) if row["task"] == run.task and not row["changed"]][-1]


def r2(*values: float) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.2f}" for value in values]


def tiny(share: float) -> str:
    return f"{share:.0e}".replace("e-0", "e-")


def summary() -> str:
    """walker_stand: full size first, then the small agents, baselines only."""
    tasks = ("dmc_walker_stand", "dmc_walker_stand_video")
    rows = []
    for run in load("dmc_vision"):
        row = last_evaluation(run)
        cells = [f"{row['return']:.0f} (1)" if task == run.task else "" for task in tasks]
        rows.append([f"{name(run.method)}, full size", f"{row['step']:,}", *cells])
    small = {(row["method"], row["task"]): row for row in probed("small")}
    step = load("small", curves=True)[0].curve.index[-1]
    for method in plot.METHOD_NAMES:
        if all((method, task) in small for task in tasks):
            found = [small[method, task] for task in tasks]
            cells = [f"{plot.span(row['mean'], row['low'], row['high'], 0)} ({row['seeds']})" for row in found]
            rows.append([name(method), f"{step:,.0f}", *cells])
    return plot.table(["agent", "steps", "clean", "moving clouds"], rows)


def full_size_curve() -> str:
    """Evaluations of the full-size run."""
    (run,) = load("dmc_vision", curves=True)
    spread = plot.read_curve(run, "eval_return_std")
    cells = [f"{mean:.0f} ± {spread[step]:.0f}" for step, mean in run.curve.items()]
    header = ["environment steps", *(f"{step / 1000:.0f}k" for step in run.curve.index)]
    return plot.table(header, [["return", *cells]])


def full_size_probes() -> str:
    """The last checkpoint of the full-size run, by groups of the state."""
    (run,) = load("dmc_vision")
    row, groups = last_evaluation(run), {}
    for key, value in row["probe_r2"].items():
        if key != "background/mean":
            groups.setdefault(key.split("/")[0], []).append(value)
    header = ["step", "return", "episodes", *(f"R² {group}" for group in groups), "share of the latent in `mbr`"]
    cells = [f"{np.mean(values):.2f}" for values in groups.values()]
    score = f"{row['return']:.0f} ± {row['return_std']:.0f}"
    return plot.table(header, [[f"{row['step']:,}", score, row["episodes"], *cells, tiny(row["mbr_latent_share"])]])


def small() -> str:
    """Small agents with several seeds."""
    shares = {}
    for run in load("small"):
        share = last_evaluation(run).get("mbr_latent_share")
        shares.setdefault((run.task, run.method), []).append(tiny(share) if share else "?")
    rows = []
    for row in probed("small"):
        if row["seeds"] > 1:
            seeds = ", ".join(f"{score:.0f}" for score in row["scores"])
            share = shares[row["task"], row["method"]]
            share = "" if set(share) == {"?"} else ", ".join(share)
            score = plot.span(row["mean"], row["low"], row["high"], 0)
            rows.append([row["task"], name(row["method"]), score, seeds, *r2(row["state"], row["background"]), share])
    header = ["task", "method", "return", "each seed", "R² state", "R² background", "latent in `mbr`"]
    return plot.table(header, rows, left=2)


def differences() -> str:
    """HRSSM's return minus that of each other method with several seeds, and its 95 % bootstrap interval."""
    scores = by_seed()
    rows = []
    for (task, method), theirs in scores.items():
        if method != "hrssm" and (ours := scores.get((task, "hrssm"))):
            rows.append([task, name(method), *gap(ours["return"], theirs["return"])])
    return plot.table(["task", "HRSSM minus", "difference of the means", "seeds"], rows, left=2)


def clouds() -> str:
    """Return in front of clouds minus the clean one, and R² of the probes from the lowest to the highest seed."""
    scores = by_seed()
    rows = []
    for (task, method), clean in scores.items():
        if video := scores.get((f"{task}_video", method)):
            spans = [clean["state"], video["state"], video["background"]]
            cells = [f"{values.min():.2f} to {values.max():.2f}" for values in spans]
            rows.append([task, name(method), *gap(video["return"], clean["return"]), *cells])
    header = ["task", "method", "clouds minus clean", "seeds"]
    header += ["R² state, clean", "R² state, clouds", "R² background, clouds"]
    return plot.table(header, rows, left=2)


def by_seed() -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Return and R² of each small agent, by task and method with several seeds."""
    found = {}
    for task, group in plot.group_runs(load("small")).items():
        for method, runs in group.items():
            if len(runs) > 1:
                scores = [plot.probe_scores(run) for run in runs]
                found[task, method] = {key: np.array([row[key] for row in scores]) for key in scores[0]}
    return found


def gap(ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """Two cells: the difference of the means with its interval, the numbers of seeds."""
    mean, low, high = difference(ours, theirs)
    return [f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]", f"{len(ours)} and {len(theirs)}"]


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """mean(ours) − mean(theirs) with its 95 % interval, the seeds of both drawn with replacement."""
    mean, interval = plot.bootstrap(lambda a, b: a.mean(-1) - b.mean(-1), ours, theirs)
    return mean, *interval


def one_seed() -> str:
    """Small agents with one seed, with the evaluations of training."""
    groups = plot.group_runs(load("small", curves=True))
    rows = []
    for task, group in groups.items():
        for method, runs in group.items():
            if len(runs) == 1:
                row, scores = last_evaluation(runs[0]), plot.probe_scores(runs[0])
                score = f"{row['return']:.0f} ± {row['return_std']:.0f}"
                curve = ", ".join(f"{value:.0f}" for value in runs[0].curve)
                rows.append([task, name(method), score, *r2(scores["state"], scores["background"]), curve])
    header = ["task", "method", "return", "R² state", "R² background", "every 10,000 steps"]
    return plot.table(header, rows, left=2)


def suite() -> str:
    """The agents that come with the code on test sets, beside published numbers."""
    agents = [f"{name}={ROOT / 'results' / folder}" for folder, name in AGENTS.items()]
    frame, _ = plot.summarize_suite(plot.find_runs(agents, log="eval.jsonl"))
    return re.sub(r" \(\d+\) \|", " |", plot.suite_table(frame)[0])  # without the numbers of protocols


def quickstart() -> str:
    """The quickstart's evaluations, a row for each seed."""
    rows = []
    for run in load("quickstart", curves=True):
        spread = plot.read_curve(run, "eval_return_std")
        rows.append([f"seed {run.seed}", *(f"{mean:.0f} ± {spread[step]:.0f}" for step, mean in run.curve.items())])
    return plot.table(["", *(f"{step:,.0f}" for step in run.curve.index)], rows)


def fill(text: str) -> str:
    """A page with its tables made again."""

    def made(match: re.Match) -> str:
        return f"{match[1]}\n\n{globals()[match[2]]()}\n\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", made, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 for stale tables")
    check = parser.parse_args().check
    stale = 0
    for page in PAGES:
        text = (ROOT / page).read_text()
        if (new := fill(text)) != text:
            stale += 1
            if check:
                print(f"{page}: its tables are not those of the runs: python figures/tables.py", file=sys.stderr)
            else:
                (ROOT / page).write_text(new)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
