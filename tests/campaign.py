"""A campaign against a run: kills, signals, disks, damaged files, odd command lines, at random.

    python tests/campaign.py [--scale 1.0] [--seed 0] [--only kills disks damage.config_yaml damage.config_yaml:17]

Each trial is a real command on real files that has to survive or to be refused in one line: see tests/trial.py.
Failures are listed with the words for --only that repeat them. Trials whose legal settings are too large for this
machine, and full disks where mounting one is not allowed, are counted apart. docs/robustness.md has the table.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set before torch is imported, as a thread pool does not survive a fork
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import contextlib
import io
import json
import math
import random
import shutil
import subprocess
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGWINCH, default_int_handler, signal
from types import SimpleNamespace

import agents
import hypothesis
import numpy as np
import test_config
import torch
import trial
from test_config import BOUNDS, DEFAULTS, JUNK, read
from test_download_assets import Dmcgb, Server
from trial import STEPS, Trial, attack, command, damaged, ended, log_lines, reference, refused, train, trained_to

import dreamer
from figures import plot  # noqa: F401
from run import checkpoint, config
from run.episodes import EpisodeLost, episode_key, read_episode, spec_of_episode
from run.replay import Replay

LIMITS = {"memory": 12 << 30, "seconds": 60}  # address space and processor time of a trial of legal settings
EVALUATE = ("--eval_only", "--episodes", "1", "--parallel", "False", "--compile", "False", "--logdir")
WORKERS = ("--parallel", "True")


# Signals: to whom, one of which, the most seconds until the next

STOPPING = trial.STOPPING
STOP, TERM, KILL = (("run", numbers, 0.05) for numbers in (STOPPING, [SIGTERM], [SIGKILL]))
HANG, GO, MANY = ("worker", [SIGSTOP], 0.5), ("run", [SIGCONT], 1.0), (*STOPPING, SIGKILL, SIGSTOP, SIGCONT, SIGWINCH)
STORM = (("run", MANY, 0.05), *[("run", (0, *MANY), 0.05)] * 3, GO, KILL)  # 0 is no signal
SUSPEND = (("all", [SIGSTOP], 0.3), ("all", [SIGCONT], 0.0))


def start_python(t: Trial) -> trial.Process:
    words = [sys.executable, "-u", str(trial.ROOT / "dreamer.py"), *trial.RUN, "--logdir", str(t.logdir)]
    return trial.Process(os.execv, sys.executable, words)


# Disks


def any_size(t: Trial) -> dict:
    """Of a disk on which a run may have no room; a checkpoint is written beside the two that there are."""
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in reference().rglob("*") if path.is_file())
    return {"size": t.rng.randint(4096, used + 300_000)}


def any_inodes(t: Trial) -> dict:
    return {"size": "1g", "nr_inodes": t.rng.randint(2, 18)}


def some_disk(t: Trial) -> dict:
    return {"size": "32m"}


def fill(t: Trial) -> None:
    with contextlib.suppress(OSError), open(t.logdir.parent / "others", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def make_room(t: Trial, change: Callable) -> None:
    change(size="1g", nr_inodes=1000)
    (t.logdir.parent / "others").unlink(missing_ok=True)


def use_read_only(t: Trial, change: Callable) -> None:
    change("ro")
    refused(train(t).wait())
    if (t.logdir / "latest.pt").exists() and (t.logdir / "config.yaml").exists():
        refused(command("dreamer.py", *EVALUATE, t.logdir).wait())
    change("rw")


def take_away(t: Trial) -> None:
    subprocess.run(t.rng.choice((["umount", "-l", t.logdir.parent], ["rm", "-rf", t.logdir])), check=False)


def impossible_folder(t: Trial) -> str:
    name = t.rng.choice(("", "train_eps", "metrics.jsonl", "config.yaml", "latest.pt", "previous.pt", ".pid"))
    links = (lambda path: path.symlink_to(t.folder / "nowhere" / "deeper"), lambda path: path.symlink_to(path))
    make = t.rng.choice((Path.touch, Path.mkdir, *links, t.folder / ("x" * 256), Path("/proc/run")))
    if isinstance(make, Path):
        t.logdir = make
    else:
        if name:
            t.logdir.mkdir()
        make(t.logdir / name)
    return ended(train(t, "--steps", "60").wait())


# Damage


def mutate(data: bytes, rng: random.Random, most: int = 5) -> bytes:
    """Loses, inserts, zeros or repeats bytes, flips bits, or cuts the end."""
    for _ in range(rng.randint(1, most)):
        at, count = rng.randrange(len(data) + 1), rng.choice((1, 4, 100, 4096))
        part, rest = data[at : at + count], data[at + count :]
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in part[:1]) + part[1:] + rest
        new = rng.randbytes(count) + part
        tails = (b"", rest, new + rest, bytes(len(part)) + rest, part + part + rest, flipped, flipped)
        data = data[:at] + rng.choice(tails)
    return data


def damage(path: Path, rng: random.Random, most: int = 5) -> None:
    path.write_bytes(mutate(path.read_bytes(), rng, most))


def damage_file(path: Path, rng: random.Random, foreign: Path) -> None:
    """As `mutate`; or the file is gone, empty, another one, a pipe, a device or a dangling link."""
    target = rng.choice(("/dev/zero", "/dev/null", "nowhere", "/proc/self/mem"))
    others = (os.mkfifo, lambda path: path.symlink_to(target), Path.touch, lambda path: shutil.copy(foreign, path), str)
    make = rng.choice((None, None, None, *others))
    if make is None:
        return damage(path, rng)
    path.unlink()
    make(path)


def episode_bytes(t: Trial) -> str:
    path = t.rng.choice(sorted((reference() / "train_eps").glob("*.npz")))
    arrays = read_episode(path)
    (t.folder / path.name).write_bytes(mutate(path.read_bytes(), t.rng))
    _, env, index, rows = path.stem.split("-")
    found = None
    with contextlib.redirect_stderr(err := io.StringIO()):
        replay = Replay(t.folder, 1000, spec=spec_of_episode(arrays))
        if replay.load():
            try:
                found = replay.gather([[(episode_key(int(env[3:]), int(index)), 0, int(rows))]])
            except EpisodeLost as lost:
                with contextlib.suppress(FileNotFoundError):  # no other one is left
                    replay.drop(lost)
    assert err.getvalue().count("\n") == (found is None), f"what was read was reported, or not: {err.getvalue()!r}"
    if found is None:
        return "refused"
    assert all(np.array_equal(found[key][0], array) for key, array in arrays.items()), "damage was read as it is"
    return "survived"


def hurt_episodes(t: Trial) -> set[str]:
    """Names of the files."""
    chosen = t.rng.sample(sorted((t.logdir / "train_eps").glob("*.npz")), t.rng.randint(1, 3))
    for path in chosen:
        if t.rng.random() < 0.2:
            path.rename(path.with_name(path.name.replace("-21.", "-9999999999999.")))
        else:
            damage_file(path, t.rng, foreign=t.logdir / "latest.pt")
    return {path.name for path in chosen}


def episodes_are_reported(t: Trial, before: trial.Snapshot, result: trial.Result) -> bool:
    assert all(line.startswith("replay: ") for line in result.err.strip().splitlines()), f"other lines: {result}"
    claims = any("9999999999999" in name for name in before.episodes)
    assert not claims or "9999999999999" in result.err, f"a wrong length was not reported: {result}"
    for meant in (reference() / "train_eps").glob("*.npz"):
        path = t.logdir / "train_eps" / meant.name
        if meant.name not in t.tried:
            assert path.read_bytes() == meant.read_bytes(), f"episode {path.name} was lost or changed"
        elif path.name not in result.err and path.exists():
            try:
                found, meant = read_episode(path), read_episode(meant)
            except ValueError:  # no batch has needed it
                continue
            same = found.keys() == meant.keys() and all(np.array_equal(found[key], meant[key]) for key in found)
            assert same, f"damage in {path.name} was not reported: {result}"
    return trained_to(t.logdir, STEPS + 80)


def read_damaged(path: Path) -> str | None:
    """None for what the reference's checkpoint holds; exits with a line otherwise."""
    saved = []
    for source in (path, reference() / "latest.pt"):
        try:
            checkpoint.save_checkpoint(path, checkpoint.load_checkpoint(source))
        except ValueError as error:
            return str(error)
        saved.append(path.read_bytes())
    return None if saved[0] == saved[1] else "read\nas it is"


def checkpoint_bytes(t: Trial) -> str:
    path = Path(shutil.copy(reference() / "latest.pt", t.folder))
    damage(path, t.rng)
    return ended(trial.Process(read_damaged, path, memory=LIMITS["memory"]).wait(300))


def hurt_checkpoints(t: Trial) -> None:
    foreign = t.rng.choice(sorted((t.logdir / "train_eps").glob("*.npz")))
    for name in ["latest.pt", "previous.pt"][: 1 + (t.rng.random() < 0.3)]:
        damage_file(t.logdir / name, t.rng, foreign)


def change_layout(path: Path, rng: random.Random) -> str:
    """Takes a named part of a checkpoint away, or puts something else in its place; tells what it did."""
    inner = state = checkpoint.load_checkpoint(path)
    where = ""
    while not where or (isinstance(inner, dict) and any(isinstance(k, str) for k in inner) and rng.random() < 0.7):
        place, key = inner, rng.choice([key for key in inner if isinstance(key, str)])
        where += f".{key}"
        inner = place[key][0] if isinstance(place[key], list) and place[key] else place[key]
    if rng.random() < 0.7:
        del place[key]
    else:
        place[key] = rng.choice((None, {}, [], "text", {"a": 1}))
    checkpoint.save_checkpoint(path, state)
    return f"{where} now {place.get(key, 'missing')!r}"


def hurt_layout(t: Trial) -> str:
    (t.logdir / "previous.pt").unlink()
    return change_layout(t.logdir / "latest.pt", t.rng)


LINES = (
    "[" * 50_000, "{}", "null", '{"step": null}', '{"step": "60"}', '{"step": [1]}', '{"step": NaN}', '{"step": -1}',
    '{"step": 300, "train_episodes": [1], "train_return": "x"}', '{"step": 1e999, "train_episodes": 3}', "",
    '{"step": 360, "train_episodes": 5, "train_return": {}}', '{"step": true, "train_episodes": null}', '{"step": 99',
    "\x00" * 100, " ",
)  # fmt: skip


def hurt_lines(t: Trial) -> set[bytes]:
    """The lines that a checkpoint knows."""
    if t.rng.random() < 0.5:  # a kill leaves episodes newer than the checkpoint
        shutil.copy(t.logdir / "previous.pt", t.logdir / "latest.pt")
    known, data = set(trial.snapshot(t.logdir).lines), log_lines(t.logdir)
    for _ in range(t.rng.randint(0, 4)):
        data.insert(t.rng.randint(0, len(data)), t.rng.choice(LINES).encode() + b"\n")
    text = b"".join(data)
    (t.logdir / "metrics.jsonl").write_bytes(mutate(text, t.rng) if t.rng.random() < 0.7 else text)
    return known


def lost_lines_are_reported(t: Trial, before: trial.Snapshot, result: trial.Result) -> bool:
    after = log_lines(t.logdir)
    assert all(type(json.loads(line)["step"]) is int for line in after), "damage was kept"
    reported = "lines: the others are lost" in result.out + result.err or len(after) >= len(t.tried)
    return reported or t.tried <= set(after)


def same_settings(t: Trial, before: trial.Snapshot, result: trial.Result) -> bool:
    found, meant = ({**config.read_config(p / "config.yaml").flat(), "logdir": ""} for p in (t.logdir, reference()))
    return found == meant


def lose_files(t: Trial) -> None:
    files = sorted(path for path in t.logdir.rglob("*") if path.is_file())
    for path in t.rng.sample(files, t.rng.randint(1, len(files))):
        path.unlink()


def done_or_trained(t: Trial, before: trial.Snapshot, result: trial.Result) -> bool:
    return "nothing left to train" in result.out or trained_to(t.logdir, STEPS)


def evaluated(t: Trial) -> str:
    damage(t.copy_run() / t.rng.choice(("latest.pt", "config.yaml", "metrics.jsonl")), t.rng, 2)
    before = {path: path.read_bytes() for path in t.logdir.rglob("*") if path.is_file()}
    result = command("dreamer.py", *EVALUATE, t.logdir, **LIMITS).wait()
    assert all(path.read_bytes() == content for path, content in before.items()), "an evaluation changed the run"
    return ended(result, lambda: math.isfinite(json.loads((t.logdir / "eval.jsonl").read_text())["return"]))


# Command lines


def examples(test: Callable) -> trial.Scenario:
    """A property of the tests, on a hundred other examples."""

    def run(t: Trial) -> str:
        names = {"tmp_path_factory"} & set(test.__code__.co_varnames)
        folders = SimpleNamespace(mktemp=lambda name: Path(tempfile.mkdtemp(dir=t.folder)))
        hypothesis.seed(t.rng.getrandbits(32))(test)(**dict.fromkeys(names, folders))
        return "survived"

    return run


def legal_value(name: str, default: object, rng: random.Random) -> str:
    """A legal value, often at a bound; numbers close to the default as often as far from it."""
    if isinstance(default, list):
        count = 2 if name == "size" else rng.randint(0, 2)
        values = [legal_value(name, (default or [""])[0], rng) for _ in range(count)]
        return " ".join([values[0]] * 2 if name == "size" and rng.random() < 0.8 else values)
    if choices := ("True", "False") if isinstance(default, bool) else config.LEGAL.get(name, config.TEXT).choices:
        return str(rng.choice(choices))
    if name not in BOUNDS:
        return str(default)
    low, high = BOUNDS[name]
    near = min(high, max(low, (default or 1) * rng.choice((0.25, 0.5, 2, 3, 4))))
    value = rng.choice((low, high, near, low + (high - low) * rng.random() ** 6))
    return str(int(value) if isinstance(default, int) else value)


FAMILIES = (
    "dmc_vision", "dmc_vision no_mask", "dmc_vision no_mbr", "dmc_vision no_simsr", "dmc_vision no_hybrid",
    "dmc_vision dreamerv3", "dmc_vision repo", "dmc_vision r2dreamer", "dmc_vision infonce", "dmc_vision dreamerpro",
    "dmc_vision continuous", "dmc_proprio", "dmc_proprio continuous", "dmc_vision dreamerv3 continuous",
)  # fmt: skip
FIXED = set("logdir task device steps from_checkpoint eval_tasks compile img_source configs".split())
OF_A_RUN = set(
    "seed parallel eval_every eval_episode_num eval_envs log_every checkpoint_every replay_dir_limit "
    "allow_config_change envs action_repeat time_limit shadow_size prefill resource_files eval_resource_files "
    "total_frames distracting_cs_intensity ds_resource_path scan_path assets dataset_size pretrain eval_noise "
    "eval_state_mean expl_until video_pred_log".split()
)


def legal_words(t: Trial, names: set[str]) -> list[str]:
    """One to four of these settings with legal values."""
    chosen = t.rng.sample(sorted(names & DEFAULTS.keys()), t.rng.randint(1, 4))
    return [word for n in chosen for word in (f"--{n}", *legal_value(n, DEFAULTS[n], t.rng).split())]


def refused_command(t: Trial) -> str:
    names = sorted(DEFAULTS.keys() - {"logdir", "configs", "eval_only"})
    while read(words := [f"--{t.rng.choice(names)}", t.rng.choice(JUNK)])[0] is not None:
        pass
    result = command("dreamer.py", *words, "--logdir", t.logdir).wait()
    assert not t.logdir.exists(), f"{words} made a folder"
    return refused(result)


def update_once(words: list[str]) -> str | None:
    """One update of an agent with these settings; the line by which they are refused, or the loop's if it diverges."""
    found, line = read(words)
    if found is None:
        return line.strip()
    c = config.load_config(words)
    shapes = {"image": (*c.size, 3)} if config.sees_images(c) else agents.VECTORS
    torch.manual_seed(0)
    agent = dreamer.Dreamer(c, shapes=shapes, actions=3)
    size, length, discrete = c.batch_size, c.batch_length, c.actor_dist == "onehot"
    batch = agents.batch(shapes, 3, max(size, 2), max(length, 4), discrete=discrete)
    metrics = agent.update({key: value[:size, :length] for key, value in batch.items()})
    broken = {key: float(value) for key, value in sorted(metrics.items()) if not math.isfinite(float(value))}
    diverged = any(key.endswith(("_loss", "_grad_norm")) for key in broken)  # same test as in the training loop
    assert diverged or not broken, f"not finite: {broken}"
    return f"training has diverged: {broken}" if diverged else None


def legal_update(t: Trial) -> str:
    names = DEFAULTS.keys() - OF_A_RUN - FIXED - config.ACTIONS.keys()
    words = ["--configs", *t.rng.choice(FAMILIES).split(), *agents.SMALL, *legal_words(t, names)]
    return ended(trial.Process(update_once, words, **LIMITS).wait(), tried=words)


def legal_run(t: Trial) -> str:
    words = [*trial.RUN, "--steps", "100", *legal_words(t, OF_A_RUN)]
    result = command("dreamer.py", *words, "--logdir", t.logdir, **LIMITS).wait()
    return ended(result, lambda: trained_to(t.logdir, 100), words)


# Tools: a tuple of words is one of them, a list all


def small_runs(t: Trial, damaged: bool = False) -> Path:
    """Three runs of a sweep with a few rows each."""
    for seed in range(3):
        folder = t.folder / "log" / "dmc_walker_walk" / "hrssm" / f"seed{seed}"
        flags = ["--configs", "dmc_vision", "--task", "dmc_walker_walk", "--seed", str(seed), "--steps", "400"]
        config.save_config(config.load_config(flags), folder / "config.yaml")
        lines = [{"step": step, "eval_return": step / 10 + seed, "update_count": step} for step in range(100, 500, 100)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "latest.pt").touch()
        (folder / ".sweep.json").write_text('{"gpu": null, "exit": 0}')
        (folder / "eval.jsonl").write_text('{"step": 400, "task": "dmc_walker_walk", "return": 40.0}\n')
    files = sorted(path for path in (t.folder / "log").rglob("*") if path.is_file() and path.stat().st_size)
    junk = "\n".join(t.rng.sample(LINES, 5)) + "\n"
    ways = (Path.unlink, lambda path: path.write_text(junk), *[lambda path: damage(path, t.rng)] * 3)
    for path in t.rng.sample(files, t.rng.randint(1, 3)) if damaged else ():
        t.rng.choice(ways)(path)
    return t.folder / "log"


def expand(rng: random.Random, words) -> list[str]:
    if isinstance(words, list):
        return [word for part in words for word in expand(rng, part)]
    return expand(rng, rng.choice(words)) if isinstance(words, tuple) else [str(words)]


def plot_arguments(t: Trial) -> str:
    log, folder = small_runs(t), t.folder
    runs = (log, f"a={log}", f"={log}", f"$x${t.rng.choice(JUNK)}={log}", [log, log], folder, JUNK)
    (out,) = expand(t.rng, (folder / "a.png", folder / "a.svg", folder / "a.gif", folder, "/nowhere/a.png", JUNK))
    metric = ["--metric", ("update_count", "nothing", "step", JUNK)]
    pool = ([], ["--at", 200], ["--at", JUNK], ["--at", "1e99", "-1"], ["--window", JUNK], metric)
    more = ([], ["--label", JUNK], "--published", "--suite", ["--suite", "--others"], "--unknown")
    result = command("figures/plot.py", *expand(t.rng, [runs, "--out", out, pool, more])).wait()
    return ended(result, lambda: Path(out).stat().st_size > 0)


def plot_damaged(t: Trial) -> str:
    words = expand(t.rng, [([], "--suite"), small_runs(t, damaged=True), "--out", t.folder / "a.png"])
    return ended(command("figures/plot.py", *words).wait())


def sweep_arguments(t: Trial) -> str:
    log, out = small_runs(t), t.folder / "out"
    folder = (log, log, log, t.folder / "nowhere", log / "dmc_walker_walk" / "hrssm" / "seed0" / "config.yaml")
    action = ("--status", ["--export", out], ["--export", log / "file" / "x"], "--dry_run")
    pool = [
        ["--tasks", "dmc_walker_walk", "--dry_run"], ["--tasks", JUNK, "--dry_run"], ["--methods", JUNK],
        ["--methods", "hrssm", "M+small"], ["--seeds", ("0-2", "3-1", JUNK)], ["--max_parallel", JUNK],
        ["--executor", JUNK], ["--slurm", JUNK], ["--configs", JUNK], "--unknown",
    ]  # fmt: skip
    tail = ([], [], ["--", "--steps", 400], ["--", "--seed", 3], ["--", "--batch_size", JUNK])
    words = ["--logdir", folder, action, *t.rng.sample(pool, t.rng.randint(0, 3)), tail]
    return ended(command("setup/sweep.py", *expand(t.rng, words)).wait())


def sweep_damaged(t: Trial) -> str:
    flags = t.rng.choice((["--status"], ["--export", t.folder / "out"]))
    result = command("setup/sweep.py", "--logdir", small_runs(t, damaged=True), *flags).wait()
    return ended(result, lambda: len(flags) > 1 or result.out.count("\ndmc_walker_walk") == 3)


def export_agent(t: Trial) -> str:
    path = t.copy_run() / "latest.pt"
    foreign = t.logdir / t.rng.choice(("config.yaml", "latest.pt"))
    ways = (lambda: damage(path, t.rng), lambda: change_layout(path, t.rng), foreign.unlink, lambda: None)
    t.rng.choice(ways)()
    result = command("setup/export_agent.py", t.logdir, t.folder / "agent").wait()
    return ended(result if result.code else command("dreamer.py", *EVALUATE, t.folder / "agent").wait())


# Downloads

FAULTS = (
    "short", "whole", "whole, short", "503", "500", "429", "page", "changed", "other range", "no length", "length many",
    "length -5", "odd range", "redirect http://[", "slow", "",
)  # fmt: skip


@contextlib.contextmanager
def server(t: Trial) -> Iterator[Dmcgb]:
    """A server whose answers may go wrong; afterward they do not, and a download has to be whole."""
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield (dmcgb := Dmcgb(t.folder, serving))
            serving.faults = {}
            code, said = dmcgb.run()
            assert code == 0 and dmcgb.on_disk() == dmcgb.files, f"not whole after a retry: {said}"
        finally:
            serving.shutdown()
            thread.join()


def check_finals(dmcgb: Dmcgb) -> None:
    finals = {name: content for name, content in dmcgb.on_disk().items() if not name.endswith(".part")}
    assert finals.items() <= dmcgb.files.items(), "a wrong file has a final name"


def bad_answers(t: Trial) -> str:
    with server(t) as dmcgb:
        dmcgb.server.faults = {name: t.rng.choices(FAULTS, k=t.rng.randint(1, 6)) for name in dmcgb.files}
        code, said = dmcgb.run()
        check_finals(dmcgb)
        last = said.strip().splitlines()[-1]
        assert not code or (code == 1 and last.startswith("download_assets.py: ")), f"status {code}: {last}"
    return "refused" if code else "survived"


def killed_download(t: Trial) -> str:
    with server(t) as dmcgb:
        for _ in range(3):
            dmcgb.server.faults = {name: ["slow"] * 9 for name in dmcgb.files}
            process, moment = dmcgb.start(), dmcgb.server.sent + t.rng.randint(1, 400_000)
            while process.poll() is None and dmcgb.server.sent < moment:
                time.sleep(0.002)
            process.kill()
            process.communicate()
            check_finals(dmcgb)
            files = [path for path in (dmcgb.assets / "dmcgb").rglob("*") if path.is_file() and path.stat().st_size]
            if files and t.rng.random() < 0.5:
                damage(t.rng.choice(files), t.rng)
    return "survived"


# The campaign: trials at scale 1, what is tried, how

SCENARIOS: dict[str, tuple[int, str, trial.Scenario]] = {
    "kills.killed": (30, "a run killed at a random moment, and resumed", attack(KILL)),
    "kills.killed_again_and_again": (
        6, "a run killed up to eight times, also while it resumes", attack(KILL, rounds=(2, 8), rows="next")),
    "signals.one_signal": (9, "SIGINT, SIGTERM or SIGHUP at a random moment", attack(STOP)),
    "signals.two_signals": (6, "two of them, shortly after each other", attack(STOP, STOP)),
    "signals.in_an_evaluation": (6, "a signal while an evaluation plays", attack(STOP, rows="evaluation", seconds=0)),
    "signals.startup_signal": (
        3, "a signal while Python starts and imports", attack(STOP, start=start_python, rows=[0], seconds=6)),
    "signals.terminal": (
        6, "a signal to the run and all of its workers, as of a terminal",
        attack(("all", STOPPING, 0), flags=WORKERS)),
    "signals.to_a_worker": (
        4, "SIGINT, SIGTERM, SIGHUP to a worker alone, which ignores them",
        attack(*[("worker", STOPPING, 0)] * 5, flags=WORKERS, rows=[2], seconds=0, ends=False)),
    "signals.worker_killed": (
        4, "a worker killed, in training or in an evaluation",
        attack(("worker", [SIGKILL], 0), flags=WORKERS, says="worker of env")),
    "signals.worker_hung": (
        3, "a worker that hangs (SIGSTOP), and then a signal to the run",
        attack(HANG, STOP, flags=WORKERS, rows=range(2, 9), seconds=0)),
    "signals.suspended": (
        3, "SIGSTOP and SIGCONT to all processes of a run", attack(*SUSPEND * 3, flags=WORKERS, ends=False)),
    "signals.storm": (3, "signals and kills at any moment, until the run is done", attack(*STORM, rounds=(6, 6))),
    "disks.full_disk": (
        10, "a disk that is full at a random moment, then larger", attack(options=any_size, remedy=make_room)),
    "disks.no_inodes": (
        6, "a disk whose inodes are used up, then more of them", attack(options=any_inodes, remedy=make_room)),
    "disks.filled_by_others": (
        4, "another program fills the disk while the run trains, and leaves",
        attack(options=some_disk, during=fill, remedy=make_room)),
    "disks.read_only": (
        3, "a run on a read-only disk: resumed, evaluated; then writable again",
        attack(TERM, options=some_disk, remedy=use_read_only)),
    "disks.disk_gone": (
        3, "the disk is unmounted, or the folder deleted, while the run trains",
        attack(options=some_disk, rows=range(1, 13), seconds=0, during=take_away, resumes=False)),
    "disks.impossible_folder": (
        12, "a --logdir, or a file in it, that is a file, a folder, a dangling link, too long or in /proc",
        impossible_folder),
    "damage.episode_bytes": (400, "the bytes of an episode file, read alone", episode_bytes),
    "damage.episodes_of_a_run": (
        12, "damaged episodes, pipes, devices and huge claimed sizes in a run that trains on",
        damaged(hurt_episodes, STEPS + 80, episodes_are_reported)),
    "damage.checkpoint_bytes": (300, "the bytes of a checkpoint, read alone", checkpoint_bytes),
    "damage.checkpoints_of_a_run": (
        10, "a damaged, missing or foreign latest.pt, sometimes previous.pt too, in a run that resumes",
        damaged(hurt_checkpoints, check=trial.check_run)),
    "damage.checkpoint_layout": (
        30, "a whole checkpoint of another layout: parts missing, or something else in their place",
        damaged(hurt_layout, STEPS + 20)),
    "damage.metrics_lines": (
        16, "damaged, foreign and lost lines in metrics.jsonl", damaged(hurt_lines, check=lost_lines_are_reported)),
    "damage.config_yaml": (
        16, "damage in config.yaml of a run that resumes",
        damaged(lambda t: damage(t.logdir / "config.yaml", t.rng, 2), check=same_settings)),
    "damage.files_missing": (12, "some files of a run missing", damaged(lose_files, check=done_or_trained)),
    "damage.evaluated": (20, "--eval_only on a run with one damaged file", evaluated),
    "commands.one_setting": (
        15, "every number at, inside and outside of its bounds (100 examples each)",
        examples(test_config.test_a_number_is_legal_within_its_bounds_alone)),
    "commands.many_words": (
        15, "random words: flags, values, groups, junk (100 examples each)",
        examples(test_config.test_any_command_line_gives_a_legal_config_or_one_line)),
    "commands.refused_command": (
        20, "command lines that are refused: by the command, with status 2 and without a folder", refused_command),
    "commands.legal_update": (
        60, "legal settings of agent and training at random: an update of that agent with finite numbers",
        legal_update),
    "commands.legal_run": (12, "legal settings of the run at random: a short run, to its end", legal_run),
    "configs.configs_file": (
        2, "configs.yaml, mutated (100 examples each)",
        examples(test_config.test_any_change_of_the_file_gives_a_config_or_one_line)),
    "configs.saved_config": (
        2, "config.yaml of a run, mutated, read by the code of --eval_only and of a resumed run (100 examples each)",
        examples(test_config.test_any_change_of_a_saved_config_gives_a_config_or_one_line)),
    "tools.plot_arguments": (16, "figures/plot.py with odd arguments", plot_arguments),
    "tools.plot_damaged": (16, "figures/plot.py on damaged runs", plot_damaged),
    "tools.sweep_arguments": (
        30, "setup/sweep.py --status, --export and --dry_run with odd arguments", sweep_arguments),
    "tools.sweep_damaged": (30, "setup/sweep.py --status and --export on damaged runs", sweep_damaged),
    "tools.export_agent": (
        12, "setup/export_agent.py on damaged and foreign runs; what it exports can be evaluated", export_agent),
    "downloads.bad_answers": (
        16, "a server that breaks, shortens and falsifies its answers, then does not", bad_answers),
    "downloads.killed_download": (
        6, "a download killed at random moments, a file damaged between them", killed_download),
}  # fmt: skip
ENDS = ("survived", "refused", "untried", "failed")
GROUPS = tuple(dict.fromkeys(name.split(".")[0] for name in SCENARIOS))


def run_trial(name: str, number: int, seed: int) -> tuple[str, str]:
    """How a trial ended, and why if it failed or was not tried."""
    t = Trial(name.split(".")[1], seed, number)
    try:
        return SCENARIOS[name][2](t), ""
    except trial.Untried as reason:
        return "untried", f"Not tried: {reason}"
    except Exception as error:
        known = isinstance(error, trial.Failed) and not hasattr(error, "__notes__")  # those of hypothesis
        reason = str(error) if known else traceback.format_exc()
        return "failed", f"FAILED: {reason}\n    python tests/campaign.py --seed {seed} --only {name}:{number}"
    finally:
        shutil.rmtree(t.folder, ignore_errors=True)


def choose(words: list[str], scale: float) -> dict[str, list[int]]:
    """Trials of the scenarios that `--only` names: group, group.scenario or group.scenario:trial."""
    chosen = {}
    for name, (trials, *_) in SCENARIOS.items():
        only = [int(word.split(":")[1]) for word in words if word.startswith(f"{name}:")]
        if only or not words or {name, name.split(".")[0]} & set(words):
            chosen[name] = only or list(range(max(1, round(trials * scale))))
    return chosen


def table(counts: dict[str, Counter]) -> str:
    """Markdown: a bold row for each group, then its scenarios."""

    def row(title: str, ends: Counter, mark: str = "") -> str:
        return f"| {title} | {' | '.join(f'{mark}{n}{mark}' for n in (ends.total(), *(ends[end] for end in ENDS)))} |"

    lines = ["| scenario | trials | survived | refused in one line | not tried | failed |", "|---" + "|---:" * 5 + "|"]
    for group in dict.fromkeys(name.split(".")[0] for name in counts):
        members = {name: ends for name, ends in counts.items() if name.startswith(f"{group}.")}
        lines.append(row(f"**{group}**", sum(members.values(), Counter()), "**"))
        lines += [row(f"{SCENARIOS[name][1]} (`{name.split('.')[1]}`)", ends) for name, ends in members.items()]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of trials (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=f"{', '.join(GROUPS)}; see above")
    args = parser.parse_args(argv)
    if not (chosen := choose(args.only, args.scale)):
        parser.error(f"--only {' '.join(args.only)}: no such scenario")
    counts, notes = {}, []
    stop = contextlib.suppress(KeyboardInterrupt)  # Ctrl-C: the table of what was tried so far
    signal(SIGINT, default_int_handler)  # what starts in a shell's background ignores it
    with stop, tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as folder:
        trial.SCRATCH = Path(folder)
        for name, numbers in chosen.items():
            begin, counts[name] = time.monotonic(), Counter()
            for number in numbers:
                end, note = run_trial(name, number, args.seed)
                counts[name][end] += 1
                if note and note not in notes:
                    notes.append(note)
                    print(note, file=sys.stderr, flush=True)
            print(f"{name}: {dict(counts[name])} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    print(table(counts), *notes, sep="\n\n")
    return int(any(ends["failed"] for ends in counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
