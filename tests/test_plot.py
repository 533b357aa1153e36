"""figures/plot.py on runs' real files: what it reads, its statistics against independent computations, bad input."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.container import BarContainer

from figures import plot, reading

SCRIPT = Path(__file__).parent.parent / "figures" / "plot.py"


def write_run(folder, task="dmc_walker_walk", seed=0, steps=range(1000, 11000, 1000), values=None, **config):
    folder.mkdir(parents=True)
    lines = [f"task: {task}", f"seed: {seed}", *(f"{key}: {value}" for key, value in config.items())]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    values = [float(step / 100 + seed) for step in steps] if values is None else values
    points = zip(steps, values, strict=True)
    entries = [{"step": step, "eval_return": value, "model_loss": 1.0} for step, value in points]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def run(*flags):
    process = subprocess.run([sys.executable, str(SCRIPT), *map(str, flags)], capture_output=True, text=True)
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two methods, two tasks, three seeds, drawn by the command."""
    folder = tmp_path_factory.mktemp("plot")
    for name, gain in (("ours", 2.0), ("theirs", 1.0)):
        for task in ("dmc_walker_walk", "dmc_cup_catch_video"):
            for seed in range(3):
                values = [gain * step / 100 + 10 * seed for step in range(1000, 11000, 1000)]
                write_run(folder / name / task / str(seed), task, seed, values=values)
    out = folder / "curves.png"
    flags = [f"A={folder / 'ours'}", f"B={folder / 'theirs'}", "--out", out, "--at", "5e3", "10000", "--published"]
    code, table, remarks = run(*flags)
    assert code == 0 and remarks.count("\n") == 1, remarks
    return out, table


def test_curves_are_drawn(drawn):
    out, _ = drawn
    image = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB).astype(int)
    assert image.shape[0] > 300 and image.shape[1] > 700
    for color in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77), (0x77, 0x77, 0x77)):  # A, B, published
        assert (np.abs(image - color).max(-1) < 12).sum() > 100


def test_table_holds_the_numbers(drawn):
    out, _ = drawn
    rows = {(row["task"], row["method"], row["step"]): row for row in table(out.with_name("curves_table.csv"))}
    assert len(rows) == 3 * 2 * 2  # two tasks and all, methods, steps
    row = rows["dmc_walker_walk", "A", "10000"]
    assert row["seeds"] == "3" and float(row["mean"]) == 210 and float(row["median"]) == 210
    assert float(row["iqm"]) == pytest.approx(scipy.stats.trim_mean([200, 210, 220], 0.25))
    assert 200 <= float(row["mean_low"]) < 210 < float(row["mean_high"]) <= 220
    assert float(rows["all", "B", "5000"]["mean"]) == 60
    assert cv2.imread(str(out.with_name("curves_table.png"))) is not None


def test_markdown_table_is_methods_by_tasks(drawn):
    _, printed = drawn
    first, second = printed.split("`eval_return` at ")[1:]
    assert first.startswith("5,000 environment steps") and second.startswith("10,000 environment steps")
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in second.splitlines() if "|" in line]
    assert lines[0] == ["method", "dmc_cup_catch_video", "dmc_walker_walk", "all"]
    assert [line[0] for line in lines[2:]] == ["A", "B"] and {len(line) for line in lines} == {4}
    mean, low, high, seeds = re.fullmatch(r"\*\*(.+)\*\* \[(.+), (.+)\] \((\d+)\)", lines[2][2]).groups()
    assert float(mean) == 210 and 200 <= float(low) < 210 < float(high) <= 220 and seeds == "3"
    assert not lines[3][2].startswith("**")


def test_folders_of_a_sweep_name_methods_as_readers_know_them(tmp_path, capsys):
    """{task}/{method}/seed{N}, as setup/sweep.py makes and exports them, for any groups below every method."""
    for method in ("hrssm", "no_mbr", "a|b"):
        for seed in (0, 1):
            folder = tmp_path / "small" / "dmc_walker_stand_video" / method / f"seed{seed}"
            write_run(folder, "dmc_walker_stand_video", seed, configs="[dmc_vision, small]")
    plot.main([str(tmp_path / "small"), "--out", str(tmp_path / "results.svg")])
    printed = capsys.readouterr().out
    assert "| HRSSM |" in printed and "| HRSSM without latent reconstruction |" in printed and r"| a\|b |" in printed
    assert {row["method"] for row in table(tmp_path / "results_table.csv")} == {"hrssm", "no_mbr", "a|b"}
    assert "HRSSM without latent reconstruction" in (tmp_path / "results.svg").read_text()


def test_runs_without_a_value_yet_do_not_stop_the_others(tmp_path, capsys):
    write_run(tmp_path / "runs" / "0")
    started = write_run(tmp_path / "runs" / "1", seed=1, steps=[])
    write_run(tmp_path / "runs" / "2", seed=2)
    write_run(tmp_path / "runs" / "3", "dmc_cup_catch")
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "a.png")])
    assert f"left out: {started}: no `eval_return`" in capsys.readouterr().err
    assert [row["seeds"] for row in table(tmp_path / "a_table.csv")] == ["2", "1", "1"]  # the fewest over all tasks


@pytest.mark.filterwarnings("error")
def test_names_that_matplotlib_would_read_as_math_or_hide(tmp_path):
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", seed=1)
    flags = [rf"$\frac$={tmp_path / '0'}", f"_hidden={tmp_path / '1'}", "--out", str(tmp_path / "a.svg")]
    plot.main(flags)
    assert "_hidden" in (tmp_path / "a.svg").read_text() and "frac" in (tmp_path / "a.svg").read_text()


def test_a_task_and_its_distracted_versions_share_their_range(tmp_path, monkeypatch):
    tops = {"dmc_walker_walk": 900.0, "dmc_walker_walk_video": 100.0, "dmc_walker_walker": 50.0}
    for task, top in tops.items():
        write_run(tmp_path / task, task, values=list(np.linspace(0, top, 10)))
    monkeypatch.setattr(plot.plt, "close", lambda figure: None)
    groups = reading.group_runs(reading.find_runs([f"A={tmp_path}"]))
    plot.draw_curves(groups, {}, "eval_return", tmp_path / "curves.png")
    limits = {axis.get_title().split()[0]: axis.get_ylim() for axis in plot.plt.gcf().axes}
    monkeypatch.undo()
    plot.plt.close("all")
    assert limits["dmc_walker_walk"] == limits["dmc_walker_walk_video"] and limits["dmc_walker_walk"][1] > 900
    assert 50 < limits["dmc_walker_walker"][1] < 100


def test_no_two_methods_look_alike(tmp_path, monkeypatch):
    names = [f"method{number}" for number in range(2 * len(plot.COLORS) + 1)]
    for name in names:
        write_run(tmp_path / name, "dmc_walker_walk")
    monkeypatch.setattr(plot.plt, "close", lambda figure: None)
    runs = reading.find_runs(f"{name}={tmp_path / name}" for name in names)
    plot.draw_curves(reading.group_runs(runs), {}, "eval_return", tmp_path / "curves.png")
    looks = {(line.get_color(), line.get_linestyle()) for line in plot.plt.gca().get_lines()}
    monkeypatch.undo()
    plot.plt.close("all")
    assert len(looks) == len(names)


def test_statistics_agree_with_scipy():
    rng = np.random.default_rng(1)
    tasks = [rng.normal(0, 1, 12), rng.normal(5, 2, 8)]  # a task's runs are drawn among themselves
    for chosen in (tasks[:1], tasks):
        point, *interval = plot.bootstrap(plot.aggregate, *chosen)
        functions = (
            lambda *tasks: scipy.stats.trim_mean(np.concatenate(tasks), 0.25),
            lambda *tasks: np.mean([task.mean() for task in tasks]),
            lambda *tasks: np.median(tasks[0] if len(tasks) == 1 else [task.mean() for task in tasks]),
        )
        for i, function in enumerate(functions):
            assert point[i] == pytest.approx(function(*chosen))
            other = scipy.stats.bootstrap(
                chosen, function, n_resamples=3000, method="percentile", random_state=1, vectorized=False
            )
            np.testing.assert_allclose(np.array(interval)[:, i], other.confidence_interval, atol=0.1)


def test_curve_over_seeds_that_log_at_different_steps():
    mean = plot.mean_curve([pd.Series({0.0: 0.0, 100.0: 10.0, 200.0: 20.0}), pd.Series({50.0: 10.0, 150.0: 20.0})])
    np.testing.assert_array_equal(mean.index, [50, 100, 150])  # steps where both have values
    np.testing.assert_allclose(mean["mean"], [7.5, 12.5, 17.5])
    np.testing.assert_allclose(mean["low"], [5, 10, 15])
    np.testing.assert_allclose(mean["high"], [10, 15, 20])


def test_running_mean_looks_back_over_the_window():
    steps, values = np.array([10.0, 20.0, 30.0, 70.0]), np.array([1.0, 2.0, 6.0, 8.0])
    for window, means in ((0, values), (20, [1, 1.5, 4, 8]), (1000, [1, 1.5, 3, 4.25])):
        curve = reading.running_mean(steps, values, window)
        np.testing.assert_array_equal(curve, means)
        np.testing.assert_array_equal(curve.index, steps)


def test_every_env_that_ends_an_episode_at_a_step_counts(tmp_path):
    folder = write_run(tmp_path / "run", steps=[100, 100, 100, 200, 200, 300], values=[1.0, 2.0, 6.0, 5.0, 7.0, 9.0])
    means = {0: [3, 6, 9], 150: [3, 4.2, 7], 1000: [3, 4.2, 5]}
    for window, expected in means.items():
        curve = reading.read_curve(folder, "eval_return", window)
        np.testing.assert_allclose(curve, expected)
        assert list(curve.index) == [100, 200, 300]


def test_what_a_killed_and_resumed_run_leaves(tmp_path):
    folder = write_run(tmp_path / "run", steps=[1000, 2000], values=[1.0, 2.0])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3000, "train_return": 1.0}\n')
        file.write('{"step": 4000, "eval_return": null}\n{"step": 5000, "eval_ret')
    assert reading.find_runs([str(folder)])[0].curve.to_dict() == {1000: 1, 2000: 2}


def test_method_is_the_label_the_configs_or_the_folder(tmp_path):
    named = write_run(tmp_path / "hrssm" / "0", configs="[dmc_vision, M]")
    bare = write_run(tmp_path / "hrssm" / "1", seed=1, configs="[]")
    assert [run.method for run in reading.find_runs([f"mine={named}", str(bare)])] == ["mine", "hrssm"]
    assert [run.method for run in reading.find_runs([str(named)])] == ["M"]
    assert [run.method for run in reading.find_runs([f"A={named}", str(bare)], "B")] == ["A", "B"]


def test_a_methods_name_in_figures_is_another_name_for_it(tmp_path):
    mine = write_run(tmp_path / "mine", configs="[dmc_vision]")
    shipped = write_run(tmp_path / "agent", configs="[dmc_vision]")
    with pytest.raises(reading.PlotError, match="are both dmc_walker_walk, method hrssm, seed 0"):
        reading.find_runs([str(mine), f"HRSSM={shipped}"])


def test_a_run_does_not_hide_those_in_folders_below_it(tmp_path):
    write_run(tmp_path / "log", configs="[dmc_vision, small, debug]")
    write_run(tmp_path / "log" / "walk", configs="[dmc_vision, debug]")
    write_run(tmp_path / "log" / "walk" / "repo", configs="[dmc_vision, repo, debug]")
    assert [run.method for run in reading.find_runs([str(tmp_path / "log")])] == ["small", "hrssm", "repo"]


def test_runs_that_differ_in_a_setting_are_methods_of_their_own(tmp_path, capsys):
    for seed in range(2):
        for ratio in (0.3, 0.5):
            write_run(tmp_path / f"{ratio}-{seed}", seed=seed, mask_ratio=ratio, configs="[dmc_vision]", logdir=seed)
    names = [run.method for run in reading.find_runs([str(tmp_path)])]
    assert names == ["hrssm, mask_ratio 0.3"] * 2 + ["hrssm, mask_ratio 0.5"] * 2
    write_run(tmp_path / "copy", mask_ratio=0.5, configs="[dmc_vision]")
    with pytest.raises(reading.PlotError, match=r"are both .*, method hrssm, mask_ratio 0\.5, seed 0"):
        reading.find_runs([str(tmp_path)])


@pytest.mark.parametrize("flags", [[], ["--suite"]])
def test_seeds_with_other_settings_are_no_repetitions(flags, tmp_path, capsys):
    for seed, repeat in enumerate((2, 2, 4)):
        folder = tmp_path / f"log{repeat}" / "dmc_walker_walk" / "hrssm" / f"seed{seed}"
        write_run(folder, "dmc_walker_walk", seed, action_repeat=repeat, steps=range(1000, 9000, 1000), logdir=folder)
        (folder / "eval.jsonl").write_text('{"task": "dmc_walker_walk", "return": 50.0}\n')
    remark = "dmc_walker_walk, hrssm: its runs differ in action_repeat\n"
    for folders, told in (("log2",), False), (("log2", "log4"), True):
        plot.main([*(str(tmp_path / name) for name in folders), "--out", str(tmp_path / "a.png"), *flags])
        assert (remark in capsys.readouterr().err) == told


def test_runs_behind_links_are_found_once(tmp_path):
    elsewhere = write_run(tmp_path / "disk" / "walk")
    (tmp_path / "log").mkdir()
    for name in ("a", "b"):
        (tmp_path / "log" / name).symlink_to(elsewhere)
    (tmp_path / "log" / "above").symlink_to(tmp_path / "log")
    assert [run.path for run in reading.find_runs([str(tmp_path / "log")])] == [tmp_path / "log" / "a"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "eval.jsonl"])
@pytest.mark.parametrize("flags", [[], ["--suite"]])
def test_a_damaged_run_is_named_and_does_not_stop_the_others(name, flags, tmp_path, capsys):
    for seed in range(3):
        folder = write_run(tmp_path / str(seed), seed=seed)
        (folder / "eval.jsonl").write_text('{"task": "dmc_walker_walk", "return": 50.0}\n')
    (folder / name).write_text("[1\n{}\n")
    plot.main([str(tmp_path), "--label", "x", "--out", str(tmp_path / "a.png"), *flags])
    err = capsys.readouterr().err
    seeds = {row["seeds"] for row in table(tmp_path / "a_table.csv") if row["method"] == "x"}
    if flags and name == "metrics.jsonl":
        assert "left out" not in err and seeds == {"3"}  # it is not read
    else:
        assert f"left out: {folder / name}" in err and seeds == {"2"}


def test_published_curves():
    tasks = ["dmc_walker_stand", "dmc_cup_catch_video_hard", "dmc_hopper_stand_video"]
    found = reading.published_curves([*tasks, "rms_lift_cube"])
    assert list(found) == tasks
    curve = found["dmc_cup_catch_video_hard"]
    assert set(curve["method"]) == {"DreamerV3"}
    np.testing.assert_array_equal(curve["step"], [1e5, 2e5, 3e5, 5e5, 1e6])
    np.testing.assert_array_equal(curve["return"], [497, 937, 957, 967, 973])


def test_every_published_number_has_a_protocol():
    frame = reading.read_published()
    assert len(frame) > 100 and not frame.isna().any(axis=None)
    assert frame["task"].map(reading.split_task).str[1].eq("clean").all()  # the set has its own column
    assert set(frame["set"]) <= {"clean", *reading.SETS}
    assert not frame.duplicated(["method", "task", "set", "step", "protocol"]).any()


@pytest.fixture
def suite(tmp_path):
    """Two methods with three seeds each that were trained clean and evaluated on test sets of DMC-GS."""
    for method, gain in (("hrssm", 1.0), ("dreamerv3", 0.5)):
        for seed in range(3):
            folder = write_run(tmp_path / "dmc_walker_stand" / method / f"seed{seed}", "dmc_walker_stand", seed)
            rows = [
                {"task": f"dmc_walker_stand{end}", "return": gain * score + seed, "step": 500_000, "seed": seed}
                for end, score in (("", 800), ("_color_hard", 600), ("_video_hard", 5), ("_video_hard", 200))
            ]
            if method == "dreamerv3" and seed:  # the suite was stopped
                rows = rows[:2]
            rows += [rows[-1] | {"return": 1.0, "seed": 9}, rows[0] | {"return": 2.0, "changed": {"time_limit": 200}}]
            (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_suite_is_a_table_of_methods_by_sets_beside_published_numbers(suite):
    code, out, remarks = run("--suite", suite, "--out", suite / "suite.png")
    assert code == 0 and "left out: 12 rows with changed settings" in remarks
    found = [line.strip("|").split("|") for line in out.splitlines() if "|" in line]
    header, _, *lines = [[cell.strip() for cell in line] for line in found]
    assert header == ["method", "seeds", "clean", "color_hard", "video_hard"]
    cells = {re.sub(r" \(\d+\)$", "", line[0]): line[1:] for line in lines}
    assert cells["HRSSM"][0] == "3" and cells["HRSSM"][1] == "801 [800, 802]"
    assert cells["HRSSM"][3] == "201 [200, 202] (-75%)"  # the last of two
    assert cells["DreamerV3"][:2] == ["1 to 3", "401 [400, 402]"] and cells["DreamerV3"][3] == "100 (-75%)"
    assert cells["DreamerV3"][2] == "301 [300, 302] (-25%)"
    assert cells["EADream (published: DMC-GB2)"][1:] == ["", "964", "872"]
    assert cells["DreamerV3 (published: training curve)"][1] == "969"  # the step closest to the runs'
    assert "zero-shot after clean training" in out and "trained: on dmc_walker_stand, 500,000 environment steps" in out
    rows = {(row["set"], row["method"]): row for row in table(suite / "suite_table.csv")}
    assert float(rows["video_hard", "HRSSM"]["drop"]) == pytest.approx(100 * (1 - 201 / 801), abs=1e-3)
    assert rows["clean", "HRSSM"]["drop"] == "" and float(rows["color_hard", "DreamerV3"]["high"]) == 302
    image = cv2.cvtColor(cv2.imread(str(suite / "suite.png")), cv2.COLOR_BGR2RGB).astype(int)
    for color in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)):
        assert (np.abs(image - color).max(-1) < 12).sum() > 1000


def test_a_suite_over_tasks_has_their_mean(suite):
    for seed in range(3):
        folder = write_run(suite / "dmc_walker_walk" / "hrssm" / f"seed{seed}", "dmc_walker_walk", seed)
        scores = {"": 400.0, "_color_hard": 300.0 + 30 * seed}
        rows = [{"task": f"dmc_walker_walk{end}", "return": score, "seed": seed} for end, score in scores.items()]
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("--suite", suite, "--out", suite / "suite.png")
    assert code == 0 and "`mean over 2 tasks`" in out
    rows = [row for row in table(suite / "suite_table.csv") if row["task"] == "mean over 2 tasks"]
    ours = {row["set"]: row for row in rows if row["seeds"] == "3"}
    assert set(ours) == {"clean", "color_hard"}  # HRSSM only: neither the other method nor other sets have both tasks
    mean, drop = float(ours["color_hard"]["mean"]), float(ours["color_hard"]["drop"])
    assert mean == pytest.approx((601 + 330) / 2) and drop == pytest.approx(100 * (1 - mean / ((801 + 400) / 2)), 1e-3)
    assert 450 <= float(ours["color_hard"]["low"]) < mean < float(ours["color_hard"]["high"]) <= 481
    published = {row["method"] for row in rows if row["seeds"] == "0" and row["set"] == "color_hard"}
    assert "EADream (published: DMC-GB2)" in published


def test_the_bars_of_a_suite_are_the_rows_of_its_table(suite, monkeypatch):
    for seed in range(3):  # numbered as those of the other task, but no pairs with them
        folder = write_run(suite / "dmc_walker_walk" / "hrssm" / f"seed{seed}", "dmc_walker_walk", seed)
        (folder / "eval.jsonl").write_text(json.dumps({"task": "dmc_walker_walk", "return": 500 - seed, "seed": seed}))
    frame = plot.summarize_suite(reading.find_runs([str(suite)], metric=None))
    monkeypatch.setattr(plot.plt, "close", lambda figure: None)
    plot.draw_suite(frame, suite / "suite.png")
    axes = plot.plt.gcf().axes
    monkeypatch.undo()
    plot.plt.close("all")
    for axis, (_, part) in zip(axes, frame.groupby("task", sort=False), strict=True):
        bars = [found for found in axis.containers if isinstance(found, BarContainer)]
        lines = [bar.errorbar.lines[2][0].get_segments()[0] for bar in bars]  # empty where published
        drawn = [(bar[0].get_height(), *line[:, 1]) for bar, line in zip(bars, lines, strict=True) if len(line)]
        own = part.loc[part["seeds"] > 0, ["mean", "low", "high"]]
        np.testing.assert_allclose(sorted(drawn), sorted(own.itertuples(index=False)))
        assert len(bars) == len(part)


@pytest.fixture
def seeds(tmp_path):
    """Two methods on a task and one of them on its distracted version, each run evaluated by itself and in a suite."""
    for task, method, returns in (
        ("dmc_walker_walk", "hrssm", [500, 700, 900]),
        ("dmc_walker_walk", "repo", [300, 400]),
        ("dmc_walker_walk_video", "repo", [100]),
    ):
        for seed, value in enumerate(returns):
            row = {"task": task, "return": value, "step": 60_000, "episodes": 12, "seed": seed}
            rows = [row | {"return": 1}, row, row | {"return": 2, "suite": "dmcgb"}, row | {"task": "dmc_x"}]
            folder = write_run(tmp_path / task / method / f"seed{seed}", task, seed)
            (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = write_run(tmp_path / "dmc_walker_walk" / "repo" / "seed2", "dmc_walker_walk", 2)
    (folder / "eval.jsonl").write_text(json.dumps({"task": "dmc_x", "return": 3, "step": 1}) + "\n")
    return tmp_path


def test_the_return_of_each_seed(seeds):
    code, out, remarks = run("--seeds", seeds, "--out", seeds / "seeds.png")
    assert code == 0 and "left out, never evaluated on dmc_walker_walk: " in remarks
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert found[0] == ["task", "method", "return", "seeds", "minus the first method"]
    assert found[2] == ["dmc_walker_walk", "HRSSM", "700 [500, 900]", "3", ""]
    assert found[3][:4] == ["dmc_walker_walk", "RePo", "350 [300, 400]", "2"]
    low, high = map(int, re.fullmatch(r"-350 \[(.*), (.*)\]", found[3][4]).groups())
    assert -600 <= low < -500 and -200 < high <= -100
    assert found[4] == ["dmc_walker_walk_video", "RePo", "100", "1", ""] and len(found) == 5
    rows = [(row["task"], row["method"], row["seed"], row["return"]) for row in table(seeds / "seeds_table.csv")]
    assert rows[2] == ("dmc_walker_walk", "hrssm", "2", "900") and len(rows) == 6
    assert cv2.imread(str(seeds / "seeds.png")).std() > 10


def test_every_seed_is_a_dot_on_the_line_of_its_method(seeds, monkeypatch):
    monkeypatch.setattr(plot.plt, "close", lambda figure: None)
    frame = plot.last_returns(reading.find_runs([str(seeds)], metric=None))
    plot.draw_seeds(frame, seeds / "seeds.png")
    clean, video = plot.plt.gcf().axes
    monkeypatch.undo()
    plot.plt.close("all")
    assert [label.get_text() for label in clean.get_yticklabels()] == ["HRSSM", "RePo"]
    assert clean.get_xlim() == video.get_xlim()
    dots = [line.get_xydata().tolist() for line in clean.lines if line.get_marker() == "o"]
    assert dots == [[[500, 0], [700, 0], [900, 0]], [[300, 1], [400, 1]]]
    means = [line.get_xydata().tolist() for line in clean.lines if line.get_marker() == "|"]
    assert means == [[[700, 0]], [[350, 1]]]
    assert [line.get_xdata() for line in clean.lines if line.get_linestyle() == "--"] == [[700, 700]]
    assert [line.get_xydata().tolist() for line in video.lines if line.get_marker() == "o"] == [[[100, 1]]]


def test_rows_with_changed_settings_are_shown_when_asked_for(suite):
    _, out, remarks = run("--suite", suite, "--others", "--out", suite / "suite.png")
    assert "| HRSSM (time_limit 200) (1) | 3 | 2 |" in out and "| HRSSM (seed 9) (1) | 3 |" in out
    assert "left out" not in remarks


def test_agents_of_one_method_that_were_trained_on_different_sets_are_kept_apart(tmp_path):
    for number, (task, source) in enumerate((("dmc_walker_stand", "video"), ("dmc_walker_stand_video", "clouds"))):
        folder = write_run(tmp_path / str(number), task, img_source=source)
        rows = [{"task": name, "return": 100.0 + number} for name in (task, "dmc_walker_stand_video_hard")]
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = plot.summarize_suite(reading.find_runs([str(tmp_path)], "hrssm", metric=None))
    found = {(row["method"], row["set"]): row["mean"] for row in frame[frame["seeds"] > 0].to_dict("records")}
    ours, clouds = "HRSSM, trained on clean", "HRSSM, trained on video (clouds)"
    sets = ((ours, "clean"), (ours, "video_hard"), (clouds, "video (clouds)"), (clouds, "video_hard"))
    assert found == dict(zip(sets, (100, 100, 101, 101), strict=True))


def test_agents_of_another_task_are_no_seeds_of_this_one(tmp_path):
    for number, task in enumerate(("dmc_walker_stand", "dmc_walker_walk")):
        folder = write_run(tmp_path / task / "hrssm" / "seed0", task)
        (folder / "eval.jsonl").write_text(json.dumps({"task": "dmc_walker_walk", "return": 30.0 + number}))
    frame = plot.summarize_suite(reading.find_runs([str(tmp_path)], metric=None))
    found = frame.loc[frame["seeds"] > 0, ["method", "seeds", "mean"]].to_numpy().tolist()
    assert found == [["HRSSM, trained on dmc_walker_stand", 1, 30], ["HRSSM, trained on clean", 1, 31]]


def test_seeds_without_a_common_step_are_named(tmp_path, capsys):
    write_run(tmp_path / "old", steps=range(1000, 4000, 1000))
    write_run(tmp_path / "new", seed=1, steps=range(5000, 7000, 1000))
    with pytest.raises(SystemExit):
        plot.main([str(tmp_path), "--out", str(tmp_path / "out.png")])
    said = capsys.readouterr().err
    assert f"{tmp_path / 'new'} begins at step 5,000, after {tmp_path / 'old'} has ended at 3,000" in said


def test_a_suite_of_runs_without_results_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    flags = ["--suite", str(tmp_path), "--out", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit):
        plot.main(flags)
    assert capsys.readouterr().err == f"plot.py: {tmp_path}: no run there with eval.jsonl\n"
    (folder / "eval.jsonl").write_text('{"task": "dmc_walker_walk", "return": 1.0, "seed": 5}\n')
    with pytest.raises(SystemExit):
        plot.main(flags)
    assert capsys.readouterr().err.startswith(f"plot.py: {folder}: no rows with their own settings")
    plot.main([*flags, "--others"])
    assert "(seed 5)" in capsys.readouterr().out


def test_runs_of_different_lengths_are_reported(tmp_path, capsys):
    for seed, end in ((0, 11000), (1, 7000)):
        write_run(tmp_path / "runs" / str(seed), seed=seed, steps=range(1000, end, 1000))
    out = tmp_path / "a.png"
    plot.main([str(tmp_path / "runs"), "--out", str(out), "--at", "5000", "10000"])
    said = capsys.readouterr().err
    assert "drawn up to step 6,000" in said and "--at 10,000: left out" in said
    assert [row["seeds"] for row in table(tmp_path / "a_table.csv")] == ["2", "1"]
    plot.main([str(tmp_path / "runs"), "--out", str(out)])
    assert [row["step"] for row in table(tmp_path / "a_table.csv")] == ["6000"]  # the last step that all have


def test_more_tasks_than_a_row_holds_and_a_vector_format(tmp_path):
    for i, task in enumerate(("acrobot_swingup", "finger_spin", "reacher_easy", "walker_run", "hopper_hop")):
        write_run(tmp_path / "runs" / str(i), f"dmc_{task}", 0, steps=[1000], values=[float(i)])
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "a.svg"), "--label", "x"])
    assert "<svg" in (tmp_path / "a.svg").read_text() and "<svg" in (tmp_path / "a_table.svg").read_text()


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        ("", ["nowhere"], "nowhere: no such folder"),
        ("", ["."], "no run there"),
        ("", ["run", "--metric", "eval_retrun"], "it has eval_return"),
        ("", ["run", "run2"], "are both dmc_walker_walk"),
        ("", ["run", "--out", "a.gif"], "expected a file ending in"),
        ("", ["run", "--out", "no/a.png"], "no folder"),
        ("", ["run", "--others"], "--others belongs to --suite"),
        ("", ["run", "--suite", "--seeds"], "--suite and --seeds: expected one of them"),
        ("", ["run", "--seeds"], "no run there with eval.jsonl"),
        ("", ["run", "--window", "-1"], "--window -1"),
        ("", ["run", "--window", "nan"], "--window nan: expected 0 or more"),
        ("", ["run", "--at", "nan"], "--at nan: expected environment steps"),
        ("", ["\udcff=run"], "expected the name of a method"),
        ("", ["run", "--metric", "a\nb"], "no `a b` in its metrics.jsonl"),
        ("", ["run", "--at", "1e5", "inf"], "--at inf: expected environment steps"),
        ("", ["run", "--at", "soon"], "argument --at: invalid float value: 'soon'"),
        ("", ["run", "--metrics", "eval_return"], "unrecognized arguments: --metrics"),
        ("", ["run", "--out", "a.pgf"], "expected a file ending in"),
        ("", ["run", "--at", "1e7"], "--at 10,000,000: no run has a value there"),
        ("", ["run", "--at", "1e7", "1e8"], "--at 10,000,000 100,000,000: no run has a value there"),
        ("rm config.yaml", ["run"], "run/config.yaml: No such file"),
        ("bad config.yaml", ["run"], "config.yaml: not the config of a run"),
        ("bad metrics.jsonl", ["run"], "metrics.jsonl, line 1: expected a JSON object"),
        ("empty metrics.jsonl", ["run"], "no numbers yet"),
        *[
            ("row " + row, ["run"], "metrics.jsonl, line 1: expected a JSON object with `step`")
            for row in (
                '{"step": "1000", "eval_return": 1.0}',
                '{"step": null, "eval_return": 1.0}',
                '{"step": true, "eval_return": 1.0}',
                '{"step": NaN, "eval_return": 1.0}',
                '{"step": 1e400, "eval_return": 1.0}',
                '{"step": ' + "9" * 400 + "}",
                '{"step": ' + "9" * 5000 + "}",
                '{"step": [1000], "eval_return": 1.0}',
                '{"step": 1000, "eval_return": "high"}',
                '{"step": 1000, "eval_return": 1e308}',
                '{"eval_return": 1.0}',
                '["step"]',
                "null",
                "[" * 100_000,
                "\x00\ufffd",
            )
        ],
        *[
            ("settings " + text, ["run"], "config.yaml: not the config of a run")
            for text in (
                "",
                "- task",
                "task: t",
                "{",
                "task: t\nseed: x",
                "task: t\nseed: .inf",
                "task: t\nseed: 0\nconfigs: 7",
            )
        ],
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, change, flags, says):
    monkeypatch.chdir(tmp_path)
    if "." not in flags:
        folder = write_run(tmp_path / "run")
        write_run(tmp_path / "run2")
        kind, _, name = change.partition(" ")
        if kind == "rm":
            (folder / name).unlink()
        elif kind == "bad":
            (folder / name).write_text("[1\n" + "{}\n")
        elif kind == "empty":
            (folder / name).write_text("")
        elif kind == "row":
            (folder / "metrics.jsonl").write_text(f'{name}\n{{"step": 2000, "eval_return": 1.0}}\n')
        elif kind == "settings":
            (folder / "config.yaml").write_text(name)
    if "--out" not in flags:
        flags = [*flags, "--out", "a.png"]
    with pytest.raises(SystemExit) as stop:
        plot.main([*flags, "--label", "x"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("plot.py: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_probes_of_runs_are_a_table(tmp_path):
    def evaluated(score=50.0, **probe_r2):
        return json.dumps({"task": "dmc_walker_walk", "return": score, "probe_r2": probe_r2}) + "\n"

    probed = [write_run(tmp_path / name / str(seed), seed=seed) for name in ("ours", "theirs") for seed in range(2)]
    other = json.dumps({"task": "dmc_cup_catch", "return": 9.0, "probe_r2": {"height": 0.9}}) + "\n"
    plain = json.dumps({"task": "dmc_walker_walk", "return": 7.0}) + "\n"
    r2 = {"height": 0.5, "velocity/0": 0.1, "background/mean": 0.9, "background/0": -0.1, "background/1": -0.3}
    (probed[0] / "eval.jsonl").write_text(evaluated(height=0.0) + evaluated(**r2) + other + plain)
    (probed[1] / "eval.jsonl").write_text(evaluated(60.0, **{**r2, "height": 0.7}))
    (probed[2] / "eval.jsonl").write_text(evaluated(height=-0.5))
    flags = [f"ours={tmp_path / 'ours'}", f"theirs={tmp_path / 'theirs'}", "--out", tmp_path / "out.png"]
    code, out, _ = run(*flags)
    assert code == 0
    assert "| dmc_walker_walk | ours | 55.0 [50.0, 60.0] | 0.35 | -0.20 | 2 |" in out  # the last with probes
    assert "| dmc_walker_walk | theirs | 50.0 | -0.50 |  | 1 |" in out  # nothing in the background to probe
    (probed[3] / "eval.jsonl").write_text('{"task": "dmc_walker_walk", "probe_r2": 3}\n')
    code, _, error = run(*flags)
    assert code == 0 and f"left out: {probed[3] / 'eval.jsonl'}" in error


def test_intervals_are_the_same_in_every_call(tmp_path):
    for task in ("dmc_walker_walk", "dmc_cup_catch"):
        for seed in range(4):
            write_run(tmp_path / task / str(seed), task, seed, values=np.random.default_rng(seed).normal(size=10))
    tables = []
    for name in ("a", "b"):
        assert run(f"ours={tmp_path}", "--out", tmp_path / f"{name}.png")[0] == 0
        tables.append((tmp_path / f"{name}_table.csv").read_text())
        np.random.seed()
    assert "\nall," in tables[0] and tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags, named",
    [
        ("model.py", ["{}/none/a.png"], "none/a.png"),
        ("model.py", ["{}/a.txt"], "a.txt"),
        ("environments.py", ["--out", "{}/none/a.png"], "--out"),
        ("distractions.py", ["--assets", "{}/none"], "--assets"),
    ],
)
def test_other_figures_refuse_wrong_files_in_a_line(script, flags, named, tmp_path):
    command = [sys.executable, str(SCRIPT.with_name(script)), *(flag.format(tmp_path) for flag in flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and named in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
