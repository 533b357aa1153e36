"""Replay at its edges: capacity, several environments, seams, restarts, damage, kills."""

import ctypes
import io
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from run import replay as replay_module
from run.episodes import episode_key, read_episode, read_file, spec_of
from run.prefetch import Prefetcher
from run.replay import Replay


def make_row(env, episode, t, size=10):
    """A row from which environment, episode and t can be read."""
    return {
        "image": np.full((size, size, 3), (env * 31 + episode * 7 + t) % 256, np.uint8),
        "id": np.array([env, episode, t], np.float32),
        "action": np.array([t, -t], np.float32) if t else np.zeros(2, np.float32),
        "reward": np.float32(t / 2),
        "is_first": t == 0,
        "is_terminal": False,
    }


def fill(replay, env, episode, rows, finish=True, size=10):
    for t in range(rows):
        replay.add(env, make_row(env, episode, t, size), episode, finish and t == rows - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def check_batch(batch, lengths):
    """Every row is real; is_first is set exactly where rows are not consecutive; episodes are left at their end."""
    env, episode, t = batch["id"].astype(int).transpose(2, 0, 1)  # (B, T) each
    assert batch["is_first"][:, 0].all()
    np.testing.assert_array_equal(batch["image"][..., 0, 0, 0], (env * 31 + episode * 7 + t) % 256)
    np.testing.assert_array_equal(batch["action"], np.stack([t, -t], -1))
    np.testing.assert_array_equal(batch["reward"], t / 2)
    follows = (env[:, 1:] == env[:, :-1]) & (episode[:, 1:] == episode[:, :-1]) & (t[:, 1:] == t[:, :-1] + 1)
    np.testing.assert_array_equal(batch["is_first"][:, 1:], ~follows)
    for b, k in zip(*np.nonzero(~follows), strict=True):
        assert t[b, k] == lengths[env[b, k], episode[b, k]] - 1  # left at its last row
        assert t[b, k + 1] == 0  # and followed by a first row
    assert all(t[b, 0] <= lengths[env[b, 0], episode[b, 0]] - 2 for b in range(len(t)))


# Sampling


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    unfinished=st.integers(0, 9),
    batch=st.integers(1, 4),
    length=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_batches_are_true_rows_with_seams_marked(lengths, unfinished, batch, length, seed):
    replay = Replay(None, 1000)
    known = {}
    for episode, rows in enumerate(lengths):
        fill(replay, 0, episode, rows)
        known[0, episode] = rows
    if unfinished:
        fill(replay, 1, 0, unfinished, finish=False)
        known[1, 0] = unfinished
    segments = replay.draw(rng(seed), batch, length)
    assert [sum(count for _, _, count in sequence) for sequence in segments] == [length] * batch
    data = replay.gather(segments)
    assert all(array.shape[:2] == (batch, length) for array in data.values())
    assert {key: array.dtype for key, array in data.items()} == {
        "image": np.uint8, "id": np.float32, "action": np.float32, "reward": np.float32, "is_first": bool,
        "is_terminal": bool,
    }  # fmt: skip
    check_batch(data, known)


def test_frequencies_of_episodes_and_starts():
    """Episodes by their rows, starts uniform over all rows but the last; for the episode after a seam too."""
    replay = Replay(None, 1000)
    lengths = {episode_key(0, 0): 2, episode_key(0, 1): 5, episode_key(1, 0): 11, episode_key(2, 0): 6}
    fill(replay, 0, 0, 2)
    fill(replay, 0, 1, 5)
    fill(replay, 1, 0, 11)
    fill(replay, 2, 0, 6, finish=False)
    fill(replay, 3, 0, 1, finish=False)  # no step yet: cannot be drawn
    first, second = Counter(), Counter()
    draws = 40000
    for sequence in replay.draw(rng(), draws, 12):
        first[sequence[0][:2]] += 1
        second[sequence[1][0]] += 1  # 12 rows always include a second
        assert sequence[1][1] == 0
    total = sum(lengths.values())
    cells = []
    for key, rows in lengths.items():
        cells += [(first[key, start], draws * rows / total / (rows - 1)) for start in range(rows - 1)]
        cells.append((second[key], draws * rows / total))
    assert sum(count for count, _ in cells) == 2 * draws
    for count, expected in cells:
        assert abs(count - expected) < 5 * expected**0.5


def test_sequence_from_the_middle_has_its_first_row_marked_and_the_replay_unchanged():
    replay = Replay(None, 100)
    fill(replay, 0, 0, 9)
    data = replay.gather([[(episode_key(0, 0), 3, 4)], [(episode_key(0, 0), 0, 4)]])
    np.testing.assert_array_equal(data["is_first"], [[True, False, False, False]] * 2)
    np.testing.assert_array_equal(data["id"][..., 2], [[3, 4, 5, 6], [0, 1, 2, 3]])
    np.testing.assert_array_equal(data["action"][0, 0], [3, -3])  # what led there; the agent zeroes it at is_first
    assert not replay.gather([[(episode_key(0, 0), 2, 4)]])["is_first"][0, 1:].any()


def test_gather_into_given_arrays():
    replay = Replay(None, 100)
    fill(replay, 0, 0, 9)
    segments = replay.draw(rng(), 3, 20)
    expected = replay.gather(segments)
    out = {key: np.full_like(array, 1) for key, array in expected.items()}
    assert replay.gather(segments, out) is out
    for key, array in expected.items():
        np.testing.assert_array_equal(out[key], array)


def test_draw_without_a_step_is_refused():
    replay = Replay(None, 100)
    with pytest.raises(RuntimeError, match="holds no step"):
        replay.draw(rng(), 1, 4)
    fill(replay, 0, 0, 1, finish=False)
    with pytest.raises(RuntimeError, match="holds no step"):
        replay.draw(rng(), 1, 4)
    replay.add(0, make_row(0, 0, 1), 0, False)
    assert replay.draw(rng(), 1, 4)[0] == [(episode_key(0, 0), 0, 2)] * 2


# Adding and evicting


def test_environments_interleave_and_long_episodes_grow():
    replay = Replay(None, 10**6)
    rows = {0: 700, 1: 129, 2: 128, 3: 2}
    for t in range(max(rows.values())):
        for env in rows:
            if t < rows[env]:
                replay.add(env, make_row(env, 0, t), 0, t == rows[env] - 1)
    for env, count in rows.items():
        data = replay.gather([[(episode_key(env, 0), 0, count)]])
        np.testing.assert_array_equal(data["id"][0, :, 2], np.arange(count))
        assert (data["id"][0, :, 0] == env).all()
    assert replay.steps == replay.total_steps == sum(rows.values()) - 4
    assert replay.finished == {env: (0, count) for env, count in rows.items()}


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 2), st.integers(2, 8)), max_size=30))
def test_capacity_evicts_whole_oldest_episodes(capacity, plan):
    """Against a simple model: an ordered list that loses its front while the sum is too large."""
    replay = Replay(None, capacity)
    next_episode = Counter()
    model = []
    fill(replay, 7, 0, 4, finish=False)  # never evicted, but counted
    for env, rows in plan:
        episode = next_episode[env]
        next_episode[env] += 1
        fill(replay, env, episode, rows)
        model.append((episode_key(env, episode), rows - 1))
        while sum(steps for _, steps in model) + 3 > capacity and len(model) > 1:
            model.pop(0)
        assert replay.steps == sum(steps for _, steps in model) + 3
        assert replay.episodes == len(model) + 1
    assert replay.total_steps == sum(rows - 1 for _, rows in plan) + 3
    drawn = {segment[0] for sequence in replay.draw(rng(), 200, 4) for segment in sequence}
    assert drawn <= {key for key, _ in model} | {episode_key(7, 0)}
    replay.gather(replay.draw(rng(), 20, 16))


def test_views_of_an_evicted_episode_stay_right():
    replay = Replay(None, 20)
    fill(replay, 0, 0, 11)
    segments = [[(episode_key(0, 0), 2, 5)]]
    views = replay.views(segments)
    for episode in range(1, 5):
        fill(replay, 0, episode, 11)
    np.testing.assert_array_equal(replay_module.collate(views)["id"][0], [[0, 0, t] for t in range(2, 7)])
    del views
    with pytest.raises(KeyError, match="env000-000000 is no longer"):
        replay.gather(segments)


def test_evicted_episode_is_read_from_its_file(tmp_path):
    replay = Replay(tmp_path, 20)
    for episode in range(5):
        fill(replay, 0, episode, 11)
    np.testing.assert_array_equal(
        replay.gather([[(episode_key(0, 0), 2, 5)]])["id"][0], [[0, 0, t] for t in range(2, 7)]
    )


def test_rows_that_do_not_fit_are_refused():
    replay = Replay(None, 100)
    row = make_row(0, 0, 0)
    replay.add(0, row, 0, False)
    with pytest.raises(ValueError, match="row with keys"):
        replay.add(0, {key: value for key, value in row.items() if key != "action"}, 0, False)
    with pytest.raises(ValueError, match=r"image of shape \(8, 8, 3\).*holds shape \(10, 10, 3\)"):
        replay.add(0, make_row(0, 0, 1, size=8), 0, False)
    with pytest.raises(ValueError, match=r"image of shape .* and type float64"):
        replay.add(0, {**row, "image": np.zeros((10, 10, 3))}, 0, False)
    with pytest.raises(ValueError, match="whose episode 0 has not ended"):
        replay.add(0, row, 1, False)
    with pytest.raises(ValueError, match="ended without a step"):
        replay.add(1, row, 0, True)
    replay.add(0, {**row, "reward": 1.5, "action": np.ones(2)}, 0, True)  # plain floats become float32
    with pytest.raises(ValueError, match="episode 0 of env 0 is already in the replay"):
        replay.add(0, row, 0, False)
    with pytest.raises(ValueError, match="dataset_size is 0"):
        Replay(None, 0)


# Files


def test_files_are_plain_npz_in_the_order_of_finishing(tmp_path):
    replay = Replay(tmp_path / "train_eps", 1000)
    fill(replay, 3, 0, 4)
    fill(replay, 0, 12, 6)
    names = sorted(path.name for path in (tmp_path / "train_eps").iterdir())
    assert names == ["00000000-env003-000000-4.npz", "00000001-env000-000012-6.npz"]
    with np.load(tmp_path / "train_eps" / names[1]) as data:
        assert set(data) == set(make_row(0, 0, 0))
        np.testing.assert_array_equal(data["id"], [[0, 12, t] for t in range(6)])


MEMORY = st.sampled_from([0, 1000, 1e9])  # bytes: none, some, all of the rows


PLAN = st.lists(st.tuples(st.integers(0, 2), st.integers(2, 8)), min_size=1, max_size=15)


@given(st.integers(5, 60), PLAN, MEMORY, MEMORY)
def test_restart_holds_and_draws_what_it_did_before(tmp_path_factory, capacity, plan, memory, memory_after):
    directory = tmp_path_factory.mktemp("eps")
    before = Replay(directory, capacity, memory=memory)
    next_episode = Counter()
    for env, rows in plan:
        fill(before, env, next_episode[env], rows)
        next_episode[env] += 1
    state = before.state_dict()
    fill(before, 1, next_episode[1], 3, finish=False)

    after = Replay(directory, capacity, memory=memory_after)
    after.load_state_dict(state)
    after.load()
    fill(after, 1, next_episode[1], 3, finish=False)  # same as stepping the recorded actions again
    for name in ("steps", "total_steps", "episodes", "total_episodes", "finished"):
        assert getattr(after, name) == getattr(before, name)
    segments = before.draw(rng(5), 8, 10)
    assert after.draw(rng(5), 8, 10) == segments
    first, second = before.gather(segments), after.gather(segments)
    for key in first:
        assert first[key].dtype == second[key].dtype
        np.testing.assert_array_equal(first[key], second[key])


def test_episodes_that_finished_after_the_checkpoint_count(tmp_path):
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 6)
    fill(replay, 1, 0, 3, finish=False)
    state = replay.state_dict()
    for t in range(3, 8):
        replay.add(1, make_row(1, 0, t), 0, t == 7)
    fill(replay, 0, 1, 4)
    again = Replay(tmp_path, 1000)
    again.load_state_dict(state)
    assert again.load() == 5 + 7 + 3
    assert again.total_steps == 15 and again.total_episodes == 3
    assert again.finished == {0: (1, 4), 1: (0, 8)}
    with pytest.raises(RuntimeError, match="before load"):
        again.load_state_dict(state)
    fill(again, 0, 2, 3)  # numbered after the others
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "00000003-env000-000002-3.npz"
    assert Replay(tmp_path, 1000).load() == 17  # and without a checkpoint


def test_load_reads_no_more_than_the_capacity(tmp_path):
    replay = Replay(tmp_path, 1000)
    for episode in range(10):
        fill(replay, 0, episode, 11)
    small = Replay(tmp_path, 35)
    assert small.load() == 30
    assert small.episodes == 3 and small.total_steps == 100 and small.finished == {0: (9, 11)}
    assert {s[0] for b in small.draw(rng(), 50, 3) for s in b} == {episode_key(0, episode) for episode in (7, 8, 9)}
    assert Replay(tmp_path, 3).load() == 10  # the newest is always read


def test_directory_limit_removes_the_oldest_files(tmp_path):
    replay = Replay(tmp_path, 1000, directory_limit=25)
    for episode in range(5):
        fill(replay, 0, episode, 11)
    assert sorted(path.name[:8] for path in tmp_path.iterdir()) == ["00000003", "00000004"]
    assert replay.steps == 50  # memory keeps them
    segments = [[(episode_key(0, episode), 0, 11)] for episode in range(5)]
    np.testing.assert_array_equal(replay.gather(segments)["id"][..., 1], [[e] * 11 for e in range(5)])
    assert Replay(tmp_path, 1000).load() == 20
    smaller = Replay(tmp_path, 1000, directory_limit=1)
    smaller.load()
    assert [path.name[:8] for path in tmp_path.iterdir()] == ["00000004"]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        data = b""
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "end cut":
        data = data[:-1]
    elif how == "zeros":
        data = bytes(len(data))
    elif how == "zeros inside":
        middle = data.index(b"\x93NUMPY") + 200
        data = data[:middle] + bytes(40) + data[middle + 40 :]
    elif how == "header":
        data = data.replace(b"'descr'", b"'descx'")
    elif how == "text":
        data = b"not an archive at all\n" * 50
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "truncated", "end cut", "zeros", "zeros inside", "header", "text"])
@pytest.mark.parametrize("which", [1, 2])
def test_damaged_file_is_reported_and_skipped(tmp_path, capsys, how, which):
    replay = Replay(tmp_path, 1000)
    for episode in range(3):
        fill(replay, 0, episode, 6)
    path = sorted(tmp_path.iterdir())[which]
    damage(path, how)
    again = Replay(tmp_path, 1000)
    assert again.load() == 10
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err and "is damaged (" in err
    assert not path.exists() and path.with_name(path.name + ".damaged").exists()
    assert {s[0] for b in again.draw(rng(), 50, 3) for s in b} == {episode_key(0, e) for e in range(3) if e != which}
    if which == 2:  # the run plays it again, with a new number
        assert again.finished == {0: (1, 6)}
        fill(again, 0, 2, 6)
        assert sorted(path.name for path in tmp_path.glob("*.npz"))[-1].startswith("00000003-env000-000002")
    assert Replay(tmp_path, 1000).load() == again.steps
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", ["rows", "name", "object", "scalar", "twice", "short episode"])
def test_file_that_is_not_an_episode_is_set_aside(tmp_path, capsys, case):
    replay = Replay(tmp_path, 1000)
    for episode in range(3):
        fill(replay, 0, episode, 6)
    path = sorted(tmp_path.iterdir())[0]
    arrays = read_episode(path)
    if case == "rows":
        arrays["reward"] = arrays["reward"][:-1]
    elif case == "name":
        arrays = {key: array[:-1] for key, array in arrays.items()}
    elif case == "object":
        arrays["reward"] = np.array([{}] * 6, object)
    elif case == "scalar":
        arrays["reward"] = np.float32(3)
    path.unlink()
    if case == "short episode":
        path = path.with_name("00000000-env000-000000-1.npz")
        arrays = {key: array[:1] for key, array in arrays.items()}
    np.savez(path, **arrays)
    if case == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("reward.npy", archive.read("reward.npy"))
    assert Replay(tmp_path, 1000).load() == 10
    assert f"{path} is damaged (" in capsys.readouterr().err
    assert path.with_name(path.name + ".damaged").exists()


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_file_of_another_writer_is_read(tmp_path, capsys, save, running):
    """`np.savez_compressed` shrinks the episodes of a run that is kept; `np.savez` aligns nothing, like old runs."""
    replay = Replay(tmp_path, 1000, spec=SPEC)
    fill(replay, 0, 0, 6)
    rows = replay.gather([[(episode_key(0, 0), 0, 6)]])
    (path,) = tmp_path.iterdir()
    save(path, **read_episode(path))
    if not running:
        replay = Replay(tmp_path, 1000, spec=SPEC)
        assert replay.load() == 5
    np.testing.assert_equal(replay.gather([[(episode_key(0, 0), 0, 6)]]), rows)
    assert capsys.readouterr().err == ""


def test_arrays_in_files_are_aligned(tmp_path):
    fill(Replay(tmp_path, 1000), 0, 0, 7, size=5)
    (path,) = tmp_path.iterdir()
    layout, arrays = read_file(path)
    assert layout.plain and all(offset % 64 == 0 for offset in layout.offsets.values())
    data = path.read_bytes()
    for key, offset in layout.offsets.items():
        assert data[offset : offset + arrays[key].nbytes] == arrays[key].tobytes()


def bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def test_a_start_reads_the_headers_alone(tmp_path):
    """However long the episodes are; their rows are read as they are drawn, whole episodes only once."""
    replay = Replay(tmp_path, 1000, spec=spec_of(make_row(0, 0, 0, 64)))
    for episode in range(8):
        fill(replay, 0, episode, 41, size=64)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    again = Replay(tmp_path, 1000, spec=spec_of(make_row(0, 0, 0, 64)))
    before = bytes_read()
    assert again.load() == 320
    loaded = bytes_read()
    assert loaded - before < 0.1 * size
    for _ in range(20):
        again.gather(again.draw(rng(), 16, 4))
    first = bytes_read()
    again.gather(again.draw(rng(), 16, 4))
    batch = bytes_read() - first
    assert first - loaded < 1.2 * size + 20 * batch and batch < 1.2 * 16 * size / 328 * 4


def lost_lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("replay: ")]


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize(
    "how, reported",
    [
        ("zeros inside", "is damaged (Bad CRC"),
        ("truncated", "is damaged ("),
        ("empty", "is damaged ("),
        ("deleted", "cannot be read (No such file"),
        ("renamed", "cannot be read (No such file"),
        ("folder", "cannot be read (Is a directory"),
        ("pipe", "is damaged (File is not"),
        ("keys", "does not have the rows of this run (action is absent"),
        ("touched", ""),
        ("replaced", ""),
    ],
)
def test_file_that_is_damaged_or_gone_in_mid_run_costs_only_its_episode(tmp_path, capsys, how, reported, read_before):
    folder = tmp_path / "eps"
    replay = Replay(folder, 1000, spec=spec_of(make_row(0, 0, 0, 64)))
    for episode in range(3):
        fill(replay, 0, episode, 21, size=64)
    known = {(0, episode): 21 for episode in range(3)}
    if read_before:
        check_batch(replay.gather(replay.draw(rng(), 64, 8)), known)
    path = sorted(folder.iterdir())[1]
    match how:
        case "deleted" | "folder" | "pipe":
            path.unlink()
            if how != "deleted":
                (os.mkdir if how == "folder" else os.mkfifo)(path)
        case "renamed":
            path.rename(tmp_path / path.name)
        case "keys":
            rewrite(path, how)
        case "touched":
            os.utime(path)
        case "replaced":
            shutil.copy(path, tmp_path)
            os.replace(tmp_path / path.name, path)
        case _:
            damage(path, how)
    prefetcher = Prefetcher(replay, rng(), 16, 8, depth=2)
    fill(replay, 1, 0, 21, size=64)  # files that are open are compared again with each finished episode
    known[1, 0] = 21
    seen = set()
    for _ in range(30):
        prefetcher.prefetch()
        batch = {key: tensor.numpy() for key, tensor in prefetcher.next().items()}
        check_batch(batch, known)
        seen |= set(map(tuple, batch["id"][..., :2].reshape(-1, 2).astype(int).tolist()))
    prefetcher.close()
    lines = lost_lines(capsys)
    if reported:
        assert len(lines) == 1 and str(path) in lines[0] and reported in lines[0]
        assert seen == known.keys() - {(0, 1)} and replay.steps == 60 and replay.total_steps == 80
        assert path.with_name(path.name + ".damaged").exists() == ("damaged" in reported)
    else:
        assert not lines and seen == known.keys()
    fill(replay, 0, 3, 21, size=64)  # the run continues
    assert replay.steps == (80 if reported else 100)


def test_files_that_go_together_are_one_line(tmp_path, capsys):
    replay = Replay(tmp_path / "eps", 1000)
    for episode in range(5):
        fill(replay, 0, episode, 6)
    fill(replay, 1, 0, 3, finish=False)
    (tmp_path / "eps").rename(tmp_path / "elsewhere")
    check_batch(replay.sample(rng(), 4, 8), {(1, 0): 3})
    (line,) = lost_lines(capsys)
    assert "cannot be read (No such file" in line and line.endswith("left out, and 4 more")
    (tmp_path / "elsewhere").rename(tmp_path / "eps")
    replay = Replay(tmp_path / "eps", 1000)
    replay.load()
    shutil.rmtree(tmp_path / "eps")
    with pytest.raises(OSError, match="no episode is left"):
        replay.sample(rng(), 4, 8)


def test_rewards_are_those_of_intact_files(tmp_path, capsys):
    """A run without a checkpoint reads them all; it may have nothing but damaged ones."""
    replay = Replay(tmp_path, 1000, memory=0)
    for episode in (1, 2):
        fill(replay, 0, episode, 21, size=64)
    paths = sorted(tmp_path.iterdir())
    for intact in (1, 0):
        damage(paths[intact], "zeros inside")
        again = Replay(tmp_path, 1000)
        again.load()
        found = {order: reward.tolist() for order, reward in again.rewards_since(0)}
        assert found == {order: [t / 2 for t in range(21)] for order in range(intact)}
        assert len(lost_lines(capsys)) == 1 and again.episodes == intact
    fill(again, 0, 3, 4, size=64)
    check_batch(again.sample(rng(), 4, 8), {(0, 3): 4})


def test_file_that_changes_all_the_time_is_left_out(tmp_path, capsys):
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 500, size=32)
    fill(replay, 0, 1, 6, size=32)
    path = sorted(tmp_path.iterdir())[0]
    stop = threading.Event()

    def touch():
        while not stop.is_set():
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    for _ in range(20):
        replay.sample(rng(), 4, 8)
    stop.set()
    thread.join()
    assert len(lost_lines(capsys)) <= 1


def test_few_files_may_be_open(tmp_path):
    """In a process of its own, as the limit counts when it starts."""
    replay = Replay(tmp_path, 10000)
    for episode in range(60):
        fill(replay, 0, episode, 4)
    program = (
        "import os, sys; import numpy as np; from run.replay import Replay; "
        f"replay = Replay({str(tmp_path)!r}, 10000); assert replay.load() == 180; rng = np.random.default_rng(0); "
        "batches = [replay.gather(replay.draw(rng, 64, 8)) for _ in range(5)]; "
        "print(len(os.listdir('/proc/self/fd')), sum(b['id'].sum() for b in batches))"
    )
    found = []
    for limit in (24, 1024):
        command = ["bash", "-c", f"ulimit -n {limit}; exec {sys.executable} -c {shlex.quote(program)}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
        assert done.stderr == ""
        found.append(done.stdout.split())
    assert int(found[0][0]) < 24 and int(found[1][0]) > 60 and found[0][1] == found[1][1]


SPEC = spec_of(make_row(0, 0, 0))


def rewrite(path: Path, case: str) -> None:
    """Writes an undamaged file with other rows."""
    arrays = read_episode(path)
    if case == "keys":
        del arrays["action"]
    elif case == "shape":
        arrays["image"] = arrays["image"][:, :2]
    elif case == "type":
        arrays["reward"] = arrays["reward"].astype(np.float64)
    np.savez(path, **arrays)


@pytest.mark.parametrize("case", ["keys", "shape", "type"])
@pytest.mark.parametrize("spec", [None, SPEC], ids=["by most files", "by the envs"])
def test_undamaged_file_with_other_rows_is_left_out_and_kept(tmp_path, capsys, case, spec):
    """Whichever file it is: the newest counts no more than any other."""
    replay = Replay(tmp_path, 1000)
    for episode in range(3):
        fill(replay, 0, episode, 6)
    path = sorted(tmp_path.iterdir())[2]
    rewrite(path, case)
    again = Replay(tmp_path, 1000, spec=spec)
    assert again.load() == 10
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{path} does not have the rows of this run (" in err and "expected" in err
    assert len(list(tmp_path.glob("*.npz"))) == 3
    fill(again, 0, 2, 6)
    assert (tmp_path / "00000003-env000-000002-6.npz").exists()  # next to it, not over it
    assert Replay(tmp_path, 1000, spec=spec).load() == 15


def test_spec_of_the_envs_outvotes_the_files(tmp_path, capsys):
    replay = Replay(tmp_path, 1000)
    for episode in range(3):
        fill(replay, 0, episode, 6)
    paths = sorted(tmp_path.iterdir())
    for path in paths[1:]:
        rewrite(path, "shape")
    assert Replay(tmp_path, 1000, spec=SPEC).load() == 5
    assert capsys.readouterr().err.count("image is uint8 of shape (2, 10, 3), expected uint8 of shape (10, 10, 3)") == 2
    rewrite(paths[0], "shape")
    with pytest.raises(ValueError, match=r"none of the episodes in .* has the rows of this run .*another --logdir"):
        Replay(tmp_path, 1000, spec=SPEC).load()
    assert sorted(tmp_path.iterdir()) == paths


def test_files_left_out_make_room_for_older_files(tmp_path):
    replay = Replay(tmp_path, 1000)
    for episode in range(6):
        fill(replay, 0, episode, 11)
    paths = sorted(tmp_path.iterdir())
    damage(paths[5], "zeros inside")
    rewrite(paths[3], "keys")
    assert Replay(tmp_path, 20, spec=SPEC).load() == 20
    paths[4].rename(tmp_path / "00000004-env000-000004-99999999999.npz")  # steps that no run has taken
    again = Replay(tmp_path, 30, spec=SPEC)
    assert again.load() == again.total_steps == 30


@pytest.mark.parametrize("bit", range(8))
def test_flipped_bit_in_a_key_of_the_newest_file_costs_only_that_file(tmp_path, capsys, bit):
    """Both places of the name: before the array, and in the archive's directory at its end."""
    for place in ("find", "rfind"):
        directory = tmp_path / place
        replay = Replay(directory, 1000)
        for episode in range(4):
            fill(replay, 0, episode, 6)
        newest = sorted(directory.iterdir())[-1]
        data = bytearray(newest.read_bytes())
        data[getattr(data, place)(b"reward.npy") + 2] ^= 1 << bit
        newest.write_bytes(data)
        assert Replay(directory, 1000).load() == 15
        assert [path.name for path in directory.glob("*.damaged")] == [newest.name + ".damaged"]
        assert capsys.readouterr().err.count("\n") == 1


def test_no_random_damage_stops_a_start_or_changes_a_row(tmp_path, capsys):
    """Flipped bits, overwritten and lost bytes, anywhere or in the headers: the file is left out, or intact."""
    generator = random.Random(0)
    fill(Replay(tmp_path, 1000), 0, 0, 6)
    path = next(tmp_path.glob("*.npz"))
    good, rows = path.read_bytes(), read_episode(path)
    headers = [
        i
        for match in re.finditer(rb"PK..|\x93NUMPY", good, re.DOTALL)
        for i in range(match.start(), match.start() + 90)
    ]
    left_out = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(generator.choice((1, 1, 1, 2, 5))):
            where = generator.choice(headers) if generator.random() < 0.7 else generator.randrange(len(good))
            where = min(where, len(data) - 1)
            match generator.randrange(6):
                case 0:
                    data[where] = generator.randrange(256)
                case 1:
                    del data[where : where + generator.choice((1, 7, 1000))]
                    data = data or bytearray(1)
                case 2:
                    data[where:where] = generator.randbytes(generator.choice((1, 4, 300)))
                case _:
                    data[where] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        replay = Replay(tmp_path, 1000, spec=SPEC)
        if replay.load():
            for key, array in replay.gather([[(episode_key(0, 0), 0, 6)]]).items():
                np.testing.assert_array_equal(array[0], rows[key])
        else:
            left_out += 1
            assert capsys.readouterr().err.count("\n") == 1
    assert left_out > 200


def test_only_regular_files_are_read(tmp_path, capsys):
    fill(Replay(tmp_path, 1000), 0, 0, 6)
    fill(Replay(tmp_path / "elsewhere", 1000), 0, 5, 6)
    os.mkfifo(tmp_path / "00000001-env000-000001-6.npz")
    (tmp_path / "00000002-env000-000002-6.npz").symlink_to("/dev/zero")
    (tmp_path / "00000003-env000-000003-6.npz").mkdir()
    (tmp_path / "00000004-env000-000004-6.npz").symlink_to("nowhere")
    linked = tmp_path / "00000005-env000-000005-6.npz"
    linked.symlink_to(next((tmp_path / "elsewhere").iterdir()))  # a link to an episode is fine
    again = Replay(tmp_path, 1000)
    assert again.load() == 10
    assert again.finished == {0: (5, 6)}
    err = capsys.readouterr().err
    assert err.count("is not a regular file: left out") == 3 and err.count("cannot be read (No such file") == 1
    fill(again, 0, 6, 6)
    assert (tmp_path / "00000006-env000-000006-6.npz").exists()


def test_header_with_an_impossible_size(tmp_path, capsys):
    fill(Replay(tmp_path, 1000), 0, 0, 6)
    path = tmp_path / "00000001-env000-000001-6.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (6, 34 * 10**12)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", buffer.getvalue())
    assert Replay(tmp_path, 1000).load() == 5
    assert "is damaged (" in capsys.readouterr().err


def test_foreign_files_are_left_alone(tmp_path, capsys):
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 6)
    (tmp_path / "notes.txt").write_text("mine")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert Replay(tmp_path, 1000).load() == 5
    assert "other.npz is not named like an episode: ignored" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "other.npz").exists()


def test_the_newer_of_two_files_of_an_episode_is_taken(tmp_path, capsys):
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 6)
    old = next(tmp_path.iterdir())
    old.rename(tmp_path / "aside")
    fill(Replay(tmp_path, 1000), 0, 0, 4)
    next(tmp_path.glob("*.npz")).rename(tmp_path / "00000007-env000-000000-4.npz")
    (tmp_path / "aside").rename(old)
    again = Replay(tmp_path, 1000)
    assert again.load() == 3 and again.episodes == 1
    assert "using the newer" in capsys.readouterr().err


def test_unwritable_folder_is_an_error_that_names_the_file(tmp_path):
    replay = Replay(tmp_path / "train_eps", 1000)
    fill(replay, 0, 0, 3)
    for path in (tmp_path / "train_eps").iterdir():
        path.unlink()
    (tmp_path / "train_eps").rmdir()
    with pytest.raises(OSError, match=r"cannot write .*train_eps/00000001-env000-000001-3.npz \(No such file"):
        fill(replay, 0, 1, 3)


def test_full_disk_ends_with_one_line_and_no_half_file(tmp_path):
    """A limit on the size of files stands in for a full disk: the write fails halfway."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            replay = Replay(tmp_path, 1000)
            fill(replay, 0, 0, 10)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            fill(replay, 0, 1, 200)
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    assert f"cannot write {tmp_path}/00000001-env000-000001-200.npz (File too large)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["00000000-env000-000000-10.npz"]


def test_too_many_open_files_is_reported_with_a_remedy(tmp_path):
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 5, finish=False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*-6.npz \(Too many open files\): raise .* \(ulimit -n\)"):
            replay.add(0, make_row(0, 0, 5), 0, True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    replay.add(0, make_row(0, 0, 6), 0, True)
    assert Replay(tmp_path, 1000).load() == 6


def test_kill_at_any_moment_leaves_whole_files(tmp_path, capsys):
    """Real writers, killed for real; each restart resumes after the files that it finds."""
    kill_after = random.Random(0)
    finished = {}
    for _ in range(10):
        pid = os.fork()
        if not pid:
            try:
                writer = Replay(tmp_path, 10**6)
                writer.load()
                for episode in range(writer.finished.get(0, (-1, 0))[0] + 1, 10**6):
                    fill(writer, 0, episode, 60, size=64)
            finally:
                os._exit(1)
        files = len(list(tmp_path.glob("*.npz")))
        while len(list(tmp_path.glob("*.npz"))) < files + 1:  # it is at work
            time.sleep(0.002)
        time.sleep(kill_after.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        for path in sorted(tmp_path.glob("*.npz")):
            if path not in finished:
                finished[path] = read_episode(path)["id"][:, 1:]
    assert len(finished) >= 10
    replay = Replay(tmp_path, 10**6)
    assert replay.load() == 59 * len(finished)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.glob(".*"))  # temporary files of killed writers are gone
    for episode, path in enumerate(sorted(finished)):  # none missing, none twice
        np.testing.assert_array_equal(finished[path], [[episode, t] for t in range(60)])
    assert replay.finished == {0: (len(finished) - 1, 60)}


# Memory


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(pipe, directory=None, memory=0):
    """In a separate process: bytes used per raw byte, by a full replay and after much eviction."""
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX = 0, as a training process may have it
    rows = [make_row(0, 0, t, size=64) for t in range(501)]
    raw = 500 * sum(np.asarray(value).nbytes for value in rows[0].values())
    replay = Replay(directory, 40 * 500, directory and 40 * 500, memory=memory)
    fill(replay, 0, 0, 20, finish=False, size=64)
    start = resident()
    ratios = []
    for episode in range(80):
        for env in (1, 2):
            for t, row in enumerate(rows):
                replay.add(env, row, episode, t == 500)
        if episode in (19, 79):
            ratios.append((resident() - start) / (replay.steps / 500 * raw))
    os.write(pipe, repr(ratios).encode())


def memory_ratios(*args) -> list[float]:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            measure_memory(writing, *args)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        ratios = eval(pipe.read())
    os.waitpid(pid, 0)
    return ratios


def test_memory_is_within_a_tenth_of_the_raw_bytes():
    """20,000 steps of 64×64 images, 246 MB, first filled and then replaced three times over."""
    full, replaced = memory_ratios()
    assert 0.9 < full < 1.1 and 0.9 < replaced < 1.1


def test_memory_beside_files_is_what_the_setting_allows(tmp_path):
    """And two unfinished episodes of 6 MB, 5% of the rows."""
    full, replaced = memory_ratios(tmp_path, 50e6)
    assert 0.18 < full < 0.28 and 0.18 < replaced < 0.28


# Prefetching


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetched_batches_are_those_of_draw_and_gather(depth):
    replay = Replay(None, 1000)
    for episode in range(5):
        fill(replay, 0, episode, 8)
    generator = rng(3)
    expected = [replay.gather(replay.draw(generator, 4, 10)) for _ in range(6)]
    prefetcher = Prefetcher(replay, rng(3), 4, 10, depth=depth)
    for batch in expected:
        prefetcher.prefetch()
        tensors = prefetcher.next()
        assert same(tensors, {key: torch.from_numpy(array) for key, array in batch.items()})
        assert tensors["image"].dtype == torch.uint8 and tensors["is_first"].dtype == torch.bool
    prefetcher.close()


def test_draws_depend_on_the_calls_alone():
    """Rows that come after prefetch() do not change its batch; without prefetch, next() draws."""

    def run(prefetch):
        replay = Replay(None, 30)
        fill(replay, 0, 0, 8)
        prefetcher = Prefetcher(replay, rng(1), 4, 10)
        if prefetch:
            prefetcher.prefetch()
            prefetcher.prefetch()  # one is already in flight
            fill(replay, 0, 1, 12)
            fill(replay, 0, 2, 12)
            fill(replay, 0, 3, 12)  # the first episode is gone by now
        batch = prefetcher.next()
        prefetcher.close()
        return batch

    assert same(run(True), run(False))


def test_state_goes_through_a_checkpoint(tmp_path):
    def make():
        replay = Replay(tmp_path / "eps", 40)
        return replay, Prefetcher(replay, rng(1), 4, 10, depth=2)

    replay, prefetcher = make()
    for episode in range(4):
        fill(replay, 0, episode, 11)
    fill(replay, 1, 0, 4, finish=False)
    prefetcher.prefetch()
    prefetcher.next()
    prefetcher.prefetch()
    fill(replay, 0, 4, 30)  # batches in flight have left the memory, not the files
    assert replay.episodes == 2
    torch.save(prefetcher.state_dict(), tmp_path / "state.pt")
    expected = [prefetcher.next() for _ in range(5)]

    again, resumed = make()
    again.load()
    fill(again, 1, 0, 4, finish=False)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in expected:
        assert same(resumed.next(), batch)
    prefetcher.close()
    resumed.close()


@pytest.mark.parametrize("segment", [(episode_key(5, 5), 0, 4), (episode_key(0, 0), 6, 4)])
def test_batch_whose_rows_are_lost_is_drawn_again(capsys, segment):
    replay = Replay(None, 1000)
    fill(replay, 0, 0, 8)
    prefetcher = Prefetcher(replay, rng(1), 2, 4)
    state = prefetcher.state_dict()
    state["pending"] = [[[segment]] * 2]
    prefetcher.load_state_dict(state)
    assert "drawn again" in capsys.readouterr().err
    check_batch({key: tensor.numpy() for key, tensor in prefetcher.next().items()}, {(0, 0): 8})
    prefetcher.close()


@pytest.mark.parametrize("size", [(3, 4), (2, 6)])
def test_batch_of_another_size_is_drawn_again(size):
    """A CUDA graph that has seen it would take no other."""
    replay = Replay(None, 1000)
    fill(replay, 0, 0, 8)
    before, after = Prefetcher(replay, rng(1), 2, 4), Prefetcher(replay, rng(1), *size)
    before.prefetch()
    after.load_state_dict(before.state_dict())
    assert after.next()["reward"].shape == size
    before.close()
    after.close()


def test_error_of_the_thread_is_raised_in_next():
    replay = Replay(None, 1000)
    fill(replay, 0, 0, 8)
    prefetcher = Prefetcher(replay, rng(1), 2, 4)
    prefetcher._start([[(episode_key(0, 0), 0, 4)], [(episode_key(0, 0), 0, 5)]])
    with pytest.raises(ValueError, match="broadcast"):
        prefetcher.next()
    prefetcher.next()  # and works again
    prefetcher.close()


def test_prefetching_while_episodes_grow_and_are_evicted():
    """A writer and a prefetcher at full speed: every batch is made of real rows."""
    replay = Replay(None, 600)
    lengths = {(0, episode): 100 + 37 * (episode % 5) for episode in range(60)}
    fill(replay, 0, 0, lengths[0, 0])
    prefetcher = Prefetcher(replay, rng(2), 8, 50, depth=2)
    ids = []
    for episode in range(1, 60):
        for t in range(lengths[0, episode]):
            replay.add(0, make_row(0, episode, t), episode, t == lengths[0, episode] - 1)
            if t % 20 == 0:
                prefetcher.prefetch()
                batch = {key: tensor.numpy() for key, tensor in prefetcher.next().items()}
                env, index, step = batch["id"].astype(int).transpose(2, 0, 1)
                np.testing.assert_array_equal(batch["image"][..., 1, 1, 1], (env * 31 + index * 7 + step) % 256)
                np.testing.assert_array_equal(batch["reward"], step / 2)
                inside = ~batch["is_first"][:, 1:]
                assert (step[:, 1:] == step[:, :-1] + 1)[inside].all() and (index[:, 1:] == index[:, :-1])[inside].all()
                ids.append(index.min())
    assert max(ids) > 50  # old ones were evicted meanwhile
    prefetcher.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_the_gpu_intact():
    """Pinned memory is used again only after its upload: many batches in a row, checked late."""
    replay = Replay(None, 10000)
    for episode in range(5):
        fill(replay, 0, episode, 200, size=64)
    generator = rng(3)
    expected = [replay.gather(replay.draw(generator, 16, 64)) for _ in range(20)]
    prefetcher = Prefetcher(replay, rng(3), 16, 64, device="cuda", depth=2)
    batches = []
    for _ in expected:
        prefetcher.prefetch()
        batches.append(prefetcher.next())
    for batch, data in zip(batches, expected, strict=True):
        assert all(tensor.device.type == "cuda" for tensor in batch.values())
        assert same({key: t.cpu() for key, t in batch.items()}, {key: torch.from_numpy(a) for key, a in data.items()})
    prefetcher.close()


def test_file_sizes_are_those_of_the_rows(tmp_path):
    """Uncompressed, with nothing else in them, which makes loading fast."""
    replay = Replay(tmp_path, 1000)
    fill(replay, 0, 0, 100, size=64)
    path = next(tmp_path.iterdir())
    raw = sum(array.nbytes for array in read_episode(path).values())
    assert raw < path.stat().st_size < 1.01 * raw
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_benchmark_runs(tmp_path):
    script = Path(__file__).parent / "benchmarks" / "replay.py"
    command = [sys.executable, script, "--steps", "3000", "--batches", "3", "--rounds", "1", "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "" and "batches/s of 16x64" in done.stdout and "resume" in done.stdout
    assert not list(tmp_path.iterdir())
