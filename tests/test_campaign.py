"""tests/campaign.py at a tiny scale: nothing fails, and what it verifies can fail."""

import json
import re
import shutil
import subprocess
import sys

import campaign
import pytest
import trial

pytestmark = pytest.mark.slow

SCRIPT = trial.ROOT / "tests" / "campaign.py"


def run(*flags) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, flags)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tiny():
    return run("--scale", "0.01")


@pytest.mark.parametrize("group", campaign.GROUPS)
def test_no_trial_of_a_group_fails(tiny, group):
    _, out, err = tiny
    row = re.search(rf"^\| \*\*{group}\*\* \|(.*)\|$", out, re.MULTILINE)
    trials, survived, refused, untried, failed = (int(cell.strip(" *")) for cell in row[1].split("|"))
    assert trials == survived + refused + untried and failed == 0, err
    assert trials > untried


def test_one_trial_can_be_repeated():
    code, out, err = run("--only", "configs.saved_config:17", "--seed", "3")
    assert code == 0 and out.count("\n") == 4 and re.search(r"`saved_config`\) \| 1 \|", out), err
    assert run("--only", "nothing")[0] == 2


@pytest.fixture
def undisturbed(tmp_path, monkeypatch):
    """A trial with a run that was undisturbed, in a campaign of its own."""
    monkeypatch.setattr(trial, "SCRATCH", tmp_path)
    logdir = tmp_path / "reference"
    code = [sys.executable, trial.ROOT / "dreamer.py", *trial.RUN, "--logdir", logdir]
    subprocess.run(code, check=True, capture_output=True)
    monkeypatch.setattr(trial, "reference", lambda: logdir)
    t = trial.Trial("trial", 0, 0)
    shutil.copytree(logdir, t.logdir)
    return t


def test_verification_notices_what_is_lost_and_doubled(undisturbed):
    t = undisturbed
    path = t.logdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    before = trial.snapshot(t.logdir)
    nothing = trial.Snapshot({}, [])
    exact, newer = trial.Result(0, "", ""), trial.Result(0, "the last 0 steps are newer than the checkpoint", "")
    assert len(before.episodes) == 6 and len(before.lines) == len(lines) == 15
    assert trial.check_run(t, before, exact) == trial.check_run(t, before, newer) == "survived"

    def notices(words, lines, result=newer, before=nothing):
        path.write_text("".join(lines))
        with pytest.raises(trial.Failed, match=words):
            trial.check_run(t, before, result)

    episode = next(i for i, line in enumerate(lines) if "train_episodes" in line)
    update = next(i for i, line in enumerate(lines) if "update_count" in line)
    changed = json.dumps({**json.loads(lines[update]), "kl": 9.0}) + "\n"
    notices("did not resume", lines, trial.Result(1, "", "dreamer.py: no"))
    notices("before the checkpoint", lines[1:], before=before)
    notices("not the undisturbed run", [*lines[:update], changed, *lines[update + 1 :]], exact)
    notices("rows of episodes were lost", [*lines[:episode], *lines[episode + 1 :]])
    notices("rows of episodes were lost", [*lines[: episode + 1], *lines[episode:]])
    notices("update_count were doubled", [*lines[: update + 1], *lines[update:]])
    notices("updates, .* logged, .* due", lines[:-1])
    path.write_text("".join(lines))
    (t.logdir / "train_eps" / next(iter(before.episodes))).unlink()
    notices("was lost or changed", lines, before=before)
    notices("5 episode files and 6 rows", lines)


@pytest.mark.parametrize(
    "code, err", [(1, ""), (1, "one\ntwo\n"), (-9, "one\n"), (0, "one\n"), (3, "one\n"), (1, "Traceback\n  x\n")]
)
def test_only_one_line_and_its_status_are_a_refusal(code, err):
    with pytest.raises(trial.Failed):
        trial.refused(trial.Result(code, "", err))
    assert trial.refused(trial.Result(2, "", "one\n")) == "refused"
