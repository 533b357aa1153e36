"""The numbers that README.md and results/README.md state are those of the runs in results/."""

import json
import re
from pathlib import Path

import pytest

from figures import plot
from run import config

QUICKSTART = ["--configs", "dmc_vision", "small", "quickstart"]
ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ((ROOT / name).read_text() for name in ("README.md", "results/README.md"))


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """Task, method, return, R² of state and background, and number of seeds, as figures/plot.py prints them."""
    found = plot.find_runs(str(ROOT / "results/small"), None)
    runs = [plot.read_run(path, label, "eval_return", 0) for path, label in found]
    lines = plot.probe_table(plot.group_runs(runs)).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| dmc")]


def test_rows_of_several_seeds(rows):
    several = [row for row in rows if row[-1] != "1"]
    for row in several:
        assert f"| {' | '.join(row)} |".replace("|  |", "| |") in RESULTS
        if row[-1] == "2":  # README may leave it out
            continue
        exact = [float(number) for number in re.findall(r"[\d.]+", row[2])]
        line = re.search(rf"^\| {re.escape(row[1])} \|.*", README, re.MULTILINE)
        stated = re.findall(r"(\d+) \[(\d+), (\d+)\]", line[0]) if line else []
        assert any([*map(float, numbers)] == pytest.approx(exact, abs=0.6) for numbers in stated), row
        if row[0] == "dmc_walker_stand_video":
            assert line[0].endswith(f"| {row[3]} | {row[4]} |"), row
    assert several


def test_rows_of_one_seed(rows):
    for task, method, score, r2, _, seeds in rows:
        if seeds == "1":
            stated = re.search(rf"\| {task} \| {method} \| (\d+) ± \d+ \| {r2} \|", RESULTS)
            assert stated and float(stated[1]) == pytest.approx(float(score), abs=0.6), (task, method)


def evaluations(run: Path) -> list[dict]:
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "eval_return" in row]


RUNS = [run for size in ("dmc_vision", "quickstart") for run in sorted(ROOT.glob(f"results/{size}/*/*/*"))]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parts[-4]}-{run.name}")
def test_every_evaluation(run):
    found = [f"{row['eval_return']:.0f} ± {row['eval_return_std']:.0f}" for row in evaluations(run)]
    assert f"| {' | '.join(found)} |" in RESULTS


@pytest.mark.parametrize("run", sorted(ROOT.glob("results/quickstart/*/*/*")), ids=lambda run: run.name)
def test_quickstart(run):
    assert ", ".join(f"{row['eval_return']:.0f}" for row in evaluations(run)) in README
    ran, now = config.read_config(run / "config.yaml").flat(), config.load_config(QUICKSTART).flat()
    assert {name for name in now if ran[name] != now[name]} <= {"logdir", "seed"}  # it was this quickstart
