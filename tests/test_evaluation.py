"""Evaluation: a run's checkpoint on its own and other tasks, and other tasks during training."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_backgrounds import flat_frames, write_video
from test_dmcgs import make_videos
from test_dreamer import HERE, PIXELS, VECTORS, entries, main

import dreamer
from figures import plot
from run import checkpoint, evaluate
from run.config import Config, load_config, read_config, save_config
from setup import export_agent

pytestmark = pytest.mark.slow


def files(folder) -> dict:
    """Every file of a run except those that an evaluation adds."""
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "eval.jsonl" and "videos" not in p.parts]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("trained") / "run"
    assert main(*VECTORS, *HERE, "--steps", "240", "--logdir", logdir) == 0
    return logdir


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]


def test_evaluations_do_not_change_what_is_learned(trained, tmp_path):
    flags = ["--steps", "240", "--eval_every", "80", "--eval_episode_num", "2"]
    assert main(*VECTORS, *HERE, *flags, "--logdir", tmp_path / "run") == 0
    often, seldom = (entries(folder) for folder in (tmp_path / "run", trained))
    assert sum("eval_return" in row for row in often) == 3 > sum("eval_return" in row for row in seldom)
    ours, theirs = ([row for row in rows if "eval_return" not in row] for rows in (often, seldom))
    assert ours == theirs


def test_a_checkpoint_is_evaluated_and_the_run_is_unchanged(run, capsys):
    before = files(run)
    for flags in ([], [], ["--seed", "1"]):
        assert main("--eval_only", "--logdir", run, "--episodes", "3", *flags) == 0
    first, again, other = lines(run)
    assert first == again and first["return"] != other["return"]
    assert first["step"] == 240 and first["task"] == "dmc_cartpole_balance" and first["episodes"] == 3
    assert first["return"] == pytest.approx(np.mean(first["returns"])) and len(first["returns"]) == 3
    assert first["return_std"] == pytest.approx(np.std(first["returns"]))
    assert first["length"] == 30 and (first["seed"], other["seed"]) == (0, 1)
    out = capsys.readouterr().out
    assert f"return {first['return']:.1f} ± {first['return_std']:.1f}" in out and "step 240" in out
    assert files(run) == before


def test_what_differs_from_the_runs_settings_stands_in_the_row_and_in_the_videos_names(run, capsys):
    """So a table takes the rows of the run's own settings."""
    others = ["--time_limit", "20", "--eval_noise", "0.5", "--eval_resource_files", "b/*.mp4"]
    others += ["--ds_resource_path", "d", "--scan_path", "rooms", "--video"]
    for flags in ([], others, ["--eval_envs", "1", "--seed", "1"]):
        assert main("--eval_only", "--logdir", run, "--episodes", "2", *flags) == 0
    own, other, seed = lines(run)
    assert "changed" not in own and "changed" not in seed
    moved = {"ds_resource_path": "d", "eval_resource_files": "b/*.mp4", "scan_path": "rooms"}
    assert other["changed"] == {"time_limit": 20, "eval_noise": 0.5, **moved}
    assert other["length"] < own["length"]
    names = {path.name for path in (run / "videos").iterdir()}
    changed = "-ds_resource_path=d-eval_noise=0.5-eval_resource_files=b_.mp4-scan_path=rooms-time_limit=20"
    assert names == {f"dmc_cartpole_balance-step240-seed0{changed}-{i}.mp4" for i in range(2)}
    capsys.readouterr()
    plot.main(["--suite", str(run), "--out", str(run / "suite.png")])
    out, err = capsys.readouterr()
    assert f"| {own['return']:.0f} |" in out and "left out: 2 rows with changed settings" in err


class Pusher:
    """An agent whose actions follow from the observation."""

    keys, device = ("image",), torch.device("cpu")

    def act(self, obs, state, training):
        return obs["image"].float().mean((1, 2, 3))[:, None] / 128 - 1, None


@pytest.mark.parametrize("mode, videos", [("video_easy", 10), ("color_video_easy", 10), ("rotate_hard", 100)])
def test_episodes_are_numbered_whoever_plays_them(mode, videos, tmp_path):
    """Ten episodes show ten different videos or views, and are the same ones with any number of envs."""
    for i in range(videos):
        write_video(tmp_path / "dmcgb" / "video_easy" / f"video{i}.mp4", flat_frames([20 * i + 10] * 2))
    flags = f"--task dmc_cartpole_swingup_{mode} --time_limit 6 --size 16 16 --assets {tmp_path} --parallel False"
    config = load_config(["--configs", "dmc_vision", *flags.split()])
    played = []
    for count in (1, 3, 10):
        with evaluate.make_envs(config, "eval_only", count, True) as group:
            played.append(evaluate.play(Pusher(), group, 10, 7, record_all=True))
    scores, frames, _ = played[0]
    assert len(set(scores["return"])) == 10 and scores["length"] == [3.0] * 10
    for others, other_frames, _ in played[1:]:
        assert others == scores
        np.testing.assert_array_equal(other_frames, frames)
    if mode == "video_easy":  # a corner of the sky is the video
        assert sorted(round((int(frame[0, 0, 0, 0]) - 10) / 20) for frame in frames) == list(range(10))
    else:
        assert len({frame[0].tobytes() for frame in frames}) == 10
    with evaluate.make_envs(config, "eval_only", 2, True) as group:
        assert evaluate.play(Pusher(), group, 2, 8)[0]["return"] == scores["return"][1:3]


def test_evaluation_uses_the_checkpoint(run):
    assert main("--eval_only", "--logdir", run) == 0
    state = checkpoint.load_checkpoint(run / "latest.pt")
    state["agent"]["agent"]["behavior.actor.out.bias"] += 3
    checkpoint.save_checkpoint(run / "latest.pt", state)
    assert main("--eval_only", "--logdir", run) == 0
    first, changed = lines(run)
    assert first["episodes"] == changed["episodes"] == 3  # eval_episode_num
    assert first["return"] != changed["return"]


@pytest.mark.parametrize("count, together", [(0, 2), (1, 1), (3, 3), (9, 3)])
def test_how_many_envs_play_an_evaluation_together(count, together, run, monkeypatch):
    made, make_envs = [], evaluate.make_envs
    monkeypatch.setattr(evaluate, "make_envs", lambda *args: made.append(args[2]) or make_envs(*args))
    assert main("--eval_only", "--logdir", run, "--episodes", "3", "--eval_envs", count, *HERE) == 0
    assert made == [together] and len(lines(run)[0]["returns"]) == 3


def test_evaluation_needs_no_replay_and_no_training_env(run, monkeypatch):
    shutil.rmtree(run / "train_eps")
    made = []
    make_envs = evaluate.make_envs
    monkeypatch.setattr(evaluate, "make_envs", lambda c, mode, *rest: made.append(mode) or make_envs(c, mode, *rest))
    assert main("--eval_only", "--logdir", run, "--episodes", "1") == 0
    assert made == ["eval_only"] and not (run / "train_eps").exists()


def test_another_task_starts_from_the_same_poses(run):
    for task in ("dmc_cartpole_balance", "dmc_cartpole_balance_sparse"):
        assert main("--eval_only", "--logdir", run, "--task", task, "--episodes", "2") == 0
    ours, other = lines(run)
    assert other["task"] == "dmc_cartpole_balance_sparse"
    assert all(a != b for a, b in zip(ours["returns"], other["returns"], strict=True))


def test_a_benchmark_of_which_files_are_missing_is_said(tmp_path, capfd):
    """In the log of training and evaluation, and beside the numbers."""
    make_videos(tmp_path, "video_easy", [3, 3])
    logdir, task = tmp_path / "run", "dmc_cartpole_balance_video_easy"
    flags = ["--assets", tmp_path, "--task", task]
    assert main(*PIXELS, *HERE, "--steps", "40", "--logdir", logdir, *flags) == 0
    out, err = capfd.readouterr()
    assert (out + err).count("video_easy: 2 of 10 videos: returns are not the benchmark's") == 1
    assert main("--eval_only", "--logdir", logdir, "--episodes", "1", *flags) == 0
    assert lines(logdir)[-1]["incomplete"] == "2 of 10 videos" and ", 2 of 10 videos)" in capfd.readouterr().out
    make_videos(tmp_path, "video_hard", [3] * 100)
    assert main("--eval_only", "--logdir", logdir, "--episodes", "1", *flags[:2], "--task", task[:-4] + "hard") == 0
    assert lines(logdir)[-1]["task"].endswith("hard") and "incomplete" not in lines(logdir)[-1]
    assert " of 100 videos" not in "".join(capfd.readouterr())


def test_videos_of_all_episodes(run):
    import imageio_ffmpeg

    assert main("--eval_only", "--logdir", run, "--episodes", "3", "--video") == 0
    videos = sorted((run / "videos").iterdir())
    assert [p.name for p in videos] == [f"dmc_cartpole_balance-step240-seed0-{i}.mp4" for i in range(3)]
    contents = []
    for path in videos:
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
        assert frames == 31 and seconds == pytest.approx(31 / 20, abs=0.1)
        reader = imageio_ffmpeg.read_frames(str(path))
        assert next(reader)["size"] == (256, 256)
        contents.append(next(reader))
    assert len(set(contents)) == 3  # the episodes differ
    # recording changes no number
    assert main("--eval_only", "--logdir", run, "--episodes", "3") == 0
    assert lines(run)[0] == lines(run)[1]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--logdir", "nowhere"], ["nowhere", "config.yaml"]),
        (["--episodes", "-1"], ["--episodes"]),
        (["--episodes", "many"], ["--episodes", "many"]),
        (["--probe_state", "--episodes", "2"], ["--probe_state needs 3 episodes or more, got 2"]),
        (["--task", "dmc_walker_walk"], ["dmc_walker_walk", "checkpoint"]),
        (["--task", "dmc_cartpole_blance"], ["blance", "balance"]),
        (["--units", "24"], ["latest.pt", "(24", "(16"]),
        (["--device", "cuda:9"], ["cuda:9"]),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(flags, words, trained, capsys):
    before = files(trained)
    assert main("--eval_only", "--logdir", trained, *flags) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(word in err for word in words), err
    assert files(trained) == before and not (trained / "eval.jsonl").exists()


def test_a_missing_damaged_or_foreign_checkpoint_is_one_line(run, capsys):
    import reference

    path = run / "latest.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main("--eval_only", "--logdir", run) == 0  # the previous checkpoint is intact
    out = capsys.readouterr().out
    assert "latest.pt is damaged" in out and "evaluating" in out and lines(run)[0]["step"] < 240
    (run / "previous.pt").unlink()
    assert main("--eval_only", "--logdir", run) == 2 and "damaged" in capsys.readouterr().err
    shutil.copy(reference.FOLDER / "reference_checkpoint.pt", path)
    assert main("--eval_only", "--logdir", run) == 2 and "not a checkpoint of a run" in capsys.readouterr().err
    path.unlink()
    assert main("--eval_only", "--logdir", run) == 2
    assert "latest.pt is missing" in capsys.readouterr().err


def test_flags_of_eval_only_are_refused_in_training(tmp_path, capsys):
    assert main(*VECTORS, "--video", "--logdir", tmp_path / "run") == 2
    assert "--eval_only" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A run that sees images, beside the files of DMC-GS."""
    folder = tmp_path_factory.mktemp("seeing")
    make_videos(folder, "video_easy", [3, 4, 5])
    make_videos(folder, "video_hard", [3] * 100)
    flags = ["--steps", "40", "--assets", folder, "--logdir", folder / "run"]
    assert main(*PIXELS, *HERE, *flags) == 0
    return folder / "run"


def test_a_suite_is_a_row_for_each_set_and_resumes(seeing, tmp_path, capsys):
    """Each row is that of the set alone; sets that are done are not played again, whatever was killed in between."""
    run = tmp_path / "run"
    shutil.copytree(seeing, run)
    suite = ["--eval_only", "--logdir", run, "--episodes", "2", "--eval_suite", "dmcgb", "--parallel", "True"]
    assert main(*suite) == 0
    rows = lines(run)
    sets = ["", "_color_easy", "_color_hard", "_video_easy", "_video_hard"]
    assert [row["task"] for row in rows] == [f"dmc_cartpole_balance{name}" for name in sets]
    assert all(row["suite"] == "dmcgb" and row["episodes"] == 2 and row["seed"] == 0 for row in rows)
    assert [row.get("videos") for row in rows] == [None, None, None, 3, 100]
    assert [row.get("incomplete") for row in rows] == [None, None, None, "3 of 10 videos", None]
    assert "files" not in rows[0] and rows[1]["files"] == ["drawn colors"]
    for row in rows[3:]:  # an episode each
        assert len(row["files"]) == 2 and all((seeing.parent / "dmcgb" / name).is_file() for name in row["files"])
    assert len({tuple(row["returns"]) for row in rows}) == 5
    capsys.readouterr()
    assert main(*suite) == 0 and lines(run) == rows
    assert "eval.jsonl has 5 of the 5 sets already" in capsys.readouterr().out

    text = (run / "eval.jsonl").read_text().splitlines()
    (run / "eval.jsonl").write_text("\n".join([text[0], text[2], text[3][:50]]))
    assert main(*suite) == 0
    assert "eval.jsonl has 2 of the 5 sets already" in capsys.readouterr().out
    kept = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines() if line.endswith("}")]
    assert kept == [rows[0], rows[2], rows[1], rows[3], rows[4]]

    assert main(*suite[:5], "--task", rows[4]["task"], "--assets", seeing.parent) == 0
    alone = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    assert {**alone, "suite": "dmcgb"} == rows[4]
    before = (run / "eval.jsonl").read_bytes().count(b"\n")
    assert main(*suite, "--parallel", "False", "--episodes", "1") == 0
    assert (run / "eval.jsonl").read_bytes().count(b"\n") == before + 5


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--eval_suite", "dmcgb3"], ["--eval_suite dmcgb3", "dmcgb2"]),
        (["--eval_suite", "dmcgb2", "--task", "dmc_hopper_hop"], ["--eval_suite dmcgb2", "walker", "not for hopper"]),
        (["--eval_suite", "distracting", "--task", "dmc_reacher_subtle"], ["DMC-Subtle"]),
        (["--eval_suite", "dmcgb", "--task", "gym_CartPole-v1"], ["--eval_suite dmcgb", "no suites"]),
        (["--eval_suite", "dmcgb", "--assets", "nowhere"], ["--eval_suite dmcgb", "video_easy needs", "download"]),
        (["--eval_suite", "distracting"], ["--eval_suite distracting", "DAVIS", "download"]),
        (["--size", "32", "32"], ["--size is 32 32", "16 16"]),
    ],
)
def test_a_suite_that_cannot_be_played_is_one_line_before_any_env(flags, words, seeing, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "make_envs", None)
    assert main("--eval_only", "--logdir", seeing, *flags) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(word in err for word in words), err


def test_a_suite_during_training(tmp_path, monkeypatch, capsys):
    """The numbers are those of envs that are not kept; the run's own task is played once."""
    flags = [*PIXELS, *HERE, "--steps", "80", "--eval_every", "40", "--eval_episode_num", "2", "--time_limit", "20"]
    flags += ["--shadow_size", "64", "--eval_tasks", "@dmcgb2_geometric", "dmc_cartpole_swingup"]
    assert main(*flags, "--logdir", tmp_path / "kept") == 0
    monkeypatch.setattr(evaluate, "KEPT_ENVS", 1)
    assert main(*flags, "--logdir", tmp_path / "made") == 0
    kept = entries(tmp_path / "kept")
    assert kept == entries(tmp_path / "made")
    evaluation = next(row for row in kept if "eval_return" in row)
    tasks = [name.partition("/")[2] for name in evaluation if name.startswith("eval_return/")]
    assert len(tasks) == 7 and "dmc_cartpole_balance_rotate_shift_hard" in tasks and tasks[-1] == "dmc_cartpole_swingup"
    monkeypatch.setattr(dreamer.collect, "make_train_envs", None)
    for name, words in (("@dmcgb", "video_easy needs"), ("@no", "no such suite")):
        assert main(*flags, "--eval_tasks", name, "--logdir", tmp_path / "none") == 2
        err = capsys.readouterr().err.strip()
        assert f"--eval_tasks {name}: " in err and words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


OTHER = ["dmc_cartpole_swingup", "dmc_cartpole_balance_sparse"]


def test_other_tasks_at_each_evaluation(tmp_path):
    """Interrupted or not, without any effect on the run's other numbers."""
    flags = [*VECTORS, *HERE, "--eval_every", "80", "--eval_episode_num", "2", "--pretrain", "1", "--time_limit", "20"]
    assert main(*flags, "--steps", "160", "--logdir", tmp_path / "plain") == 0
    assert main(*flags, "--steps", "160", "--logdir", tmp_path / "whole", "--eval_tasks", *OTHER) == 0
    assert main(*flags, "--steps", "80", "--logdir", tmp_path / "halves", "--eval_tasks", *OTHER) == 0
    assert main(*flags, "--steps", "160", "--logdir", tmp_path / "halves", "--eval_tasks", *OTHER) == 0
    whole, halves = entries(tmp_path / "whole"), entries(tmp_path / "halves")
    evaluations = [line for line in whole if "eval_return" in line]
    assert [line["step"] for line in evaluations] == [80, 160]
    assert [line for line in halves if "eval_return" in line] == evaluations
    for line in evaluations:
        returns = [line["eval_return"]] + [line[f"eval_return/{task}"] for task in OTHER]
        assert len(set(returns)) == 3
        assert all(line[f"eval_length/{task}"] == 10 and line[f"eval_episodes/{task}"] == 2 for task in OTHER)
    assert evaluations[0][f"eval_return/{OTHER[0]}"] != evaluations[1][f"eval_return/{OTHER[0]}"]
    trained = [{k: v for k, v in line.items() if "/" not in k} for line in whole]
    assert trained == entries(tmp_path / "plain")


@pytest.mark.parametrize(
    "task, words",
    [
        ("dmc_walker_walk", ["(6,)", "(1,)"]),
        ("dmc_cartpole_blance", ["balance"]),
        ("dmc_cartpole_balance_video", ["--resource_files"]),
    ],
)
def test_a_task_that_does_not_fit_is_reported_at_the_start(task, words, tmp_path, capsys):
    assert main(*PIXELS, *HERE, "--eval_tasks", task, "--logdir", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and f"--eval_tasks {task}" in err
    assert all(word in err for word in words), err


def test_a_run_from_before_a_setting_existed_resumes(run):
    config = read_config(run / "config.yaml").to_dict()
    del config["eval_tasks"]
    save_config(Config(config), run / "config.yaml")
    assert main(*VECTORS, *HERE, "--steps", "300", "--logdir", run) == 0


def test_an_exported_agent_is_evaluated_and_not_resumed(run, tmp_path, capsys):
    small = tmp_path / "agent"
    export_agent.export(run, small)
    assert (small / "latest.pt").stat().st_size < (run / "latest.pt").stat().st_size / 3
    assert str(tmp_path) not in (small / "config.yaml").read_text()
    assert main("--eval_only", "--logdir", small, "--episodes", "2") == 0
    assert "return" in capsys.readouterr().out
    assert main(*VECTORS, *HERE, "--logdir", small, "--allow_config_change", "True") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot resume" in err
