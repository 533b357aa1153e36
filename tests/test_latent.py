"""A latent that is not used is noticed from the log, in runs of results/ and in one that is made so."""

import json
from pathlib import Path

import pytest
from test_dreamer import main
from test_failures import SHORT

from run import trainer
from run.config import load_config, read_config
from run.trainer import LatentWatch

RESULTS = Path(__file__).resolve().parent.parent / "results"
# updates at which the line comes
UNUSED = {
    "small/dmc_cartpole_swingup/hrssm/seed0": [2100],  # the latent is unused until update 2,400 or so
    "small/dmc_cup_catch/hrssm/seed0": [3350],
    "small/dmc_cup_catch/mbr_fixed/seed0": [4600],
    "small/dmc_finger_spin/hrssm/seed0": [4600],
    "small_long/dmc_cup_catch/dreamerv3/seed0": [4600],
}


def rows(path: Path) -> list[dict]:
    found = map(json.loads, path.read_text().splitlines())
    return [row for row in found if "kl" in row]


def test_of_the_runs_in_results_those_are_named_whose_latent_is_not_used():
    paths = sorted(RESULTS.glob("*/*/*/seed*/metrics.jsonl"))
    assert len(paths) > 50
    named = {}
    for path in paths:
        watch = LatentWatch(read_config(path.with_name("config.yaml")))
        for row in rows(path):
            if watch.check(row["kl"], row["post_ent"], row["update_count"]):
                named.setdefault(str(path.parent.relative_to(RESULTS)), []).append(row["update_count"])
    assert named == UNUSED


def test_a_spell_is_reported_once_also_by_a_resumed_run_and_the_next_one_again():
    config = load_config(["--configs", "dmc_vision"])
    watch, lines = LatentWatch(config), []
    for updates in range(500, 9500, 500):
        kl = 1.5 if updates == 5000 else 0.5
        state, watch = watch.state_dict(), LatentWatch(config)
        watch.load_state_dict(state)
        if line := watch.check(kl, 50.0, updates):
            lines.append((updates, line))
    assert [updates for updates, _ in lines] == [4000, 9000]
    assert "kl is 0.50, under --kl_free 1, since update 0 " in lines[0][1] and "since update 5000 " in lines[1][1]


@pytest.mark.slow
def test_a_run_whose_latent_is_not_used_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "SPELL", {"post_ent": 10, "kl": 10})  # instead of thousands
    flags = [*SHORT, "--eval_every", "0", "--log_every", "60", "--logdir", tmp_path]
    assert main(*flags, "--kl_free", "1e5", "--steps", "240") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("little trains the prior: kl is ") and "under --kl_free 100000," in line
    assert main(*flags, "--kl_free", "1e5", "--steps", "480") == 0
    assert not capsys.readouterr().err
