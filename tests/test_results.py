"""The pages with tables: these are those of the runs in results/, and the links lead somewhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import agents
import numpy as np
import pytest
import scipy.stats

import dreamer
from figures import plot, tables
from run import checkpoint, config, evaluate

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_those_of_the_runs(page):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text and tables.fill(text) == text


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The pages and the runs, to be changed."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.pt"))
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/findings.md"):
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    return tmp_path


def test_a_changed_run_is_noticed_and_the_tables_are_made_again(copy, monkeypatch, capsys):
    path = copy / "results/small/dmc_walker_stand_video/hrssm/seed0/eval.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"return": 12345.0}) + "\n")
    assert tables.main() == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == list(tables.PAGES)
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0 and "12345" in (copy / "results/README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0


def test_a_changed_table_is_noticed(copy, capsys):
    path = copy / "results/README.md"
    path.write_text(path.read_text().replace("| seed 1 |", "| seed 1 | 1 |"))
    assert tables.main() == 1 and capsys.readouterr().err.startswith("results/README.md: ")


def test_the_script_checks_the_pages():
    assert subprocess.run([sys.executable, ROOT / "figures" / "tables.py", "--check"]).returncode == 0


def test_intervals_of_differences_agree_with_scipy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(600, 80, 8), rng.normal(500, 120, 7)
    mean, low, high = plot.difference(ours, theirs)
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    other = scipy.stats.bootstrap(
        (ours, theirs), lambda a, b: a.mean() - b.mean(), vectorized=False, method="percentile", random_state=1
    )
    np.testing.assert_allclose((low, high), other.confidence_interval, atol=6)


@pytest.mark.parametrize("n, difference", [(17, 1.0), (26, 0.8), (64, 0.5)])
def test_the_seeds_that_a_difference_needs_are_those_of_cohens_tables(n, difference):
    """Two groups, two-sided, 5%, power 0.8: Cohen (1992)."""
    assert tables.effect(n) <= difference < tables.effect(n - 1)


@pytest.mark.parametrize("page", [*tables.PAGES, "docs/usage.md"])
def test_links_lead_to_files_and_sections(page):
    text = (ROOT / page).read_text()
    found = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert found
    for link in found:
        name, _, section = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert max(map(len, text.splitlines())) <= 160


DOCS = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", sorted({*tables.PAGES, *DOCS, "tests/benchmarks/RESULTS.md"}))
def test_lines_of_pages_are_not_wide(page):
    text = re.sub(r"^ *```.*?^ *```$|<!--.*?-->", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    alone = re.compile(r" *(!?\[[^\]]*\]\(\S*\)|\$\$.*\$\$)")  # a link or a formula, which cannot be broken
    assert [line for line in lines if len(line) > 160 and not alone.fullmatch(line)] == []


@pytest.mark.parametrize("run", sorted(ROOT.glob("results/quickstart/*/*/*")), ids=lambda run: run.name)
def test_quickstart(run):
    ran = config.read_config(run / "config.yaml").flat()
    now = config.load_config(["--configs", "dmc_vision", "small", "quickstart"]).flat()
    before = config.load_config([]).flat() | ran  # a setting that is younger than the run has its default
    assert {name for name in now if before[name] != now[name]} <= {"logdir", "seed"}  # it was this quickstart
    assert now["logdir"] == "./log/quickstart"  # and not ./log, which holds all runs


WEIGHTS = sorted(path.parent for path in ROOT.glob("results/**/latest.pt"))


@pytest.mark.parametrize("run", WEIGHTS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_weights_are_those_of_the_run(run):
    """They fit the settings beside them and stem from the last step of the log."""
    settings = evaluate.run_config([], run)
    step = checkpoint.load_weights(run, dreamer.Dreamer(settings, agents.IMAGE, 6)) * settings.action_repeat
    log = run / "metrics.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])["step"] if log.exists() else settings.steps
    assert step == last
