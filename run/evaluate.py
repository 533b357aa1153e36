"""Evaluation: whole episodes with the mean action.

`play` plays them; `Evaluator` holds the evaluations of a training run; `evaluate_run` is `--eval_only`. They need
the agent to act (`Dreamer.act`); probes need its features too.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import envs
from envs.parallel import EnvGroup
from run import checkpoint, probe, runtime, video
from run.collect import STREAMS, env_constructors, make_envs, stack_obs
from run.config import (
    ACTIONS,
    FREE_SETTINGS,
    Config,
    changed_settings,
    given_flags,
    ignored,
    load_config,
    read_config,
    run_settings,
    sees_images,
)
from run.logs import log, progress_bar

Scores = dict[str, list[float]]  # return, length and, if there is one, success of each episode
KEPT_ENVS = 20  # envs that all workers together keep between evaluations: some 60 MB each


class EvaluationError(Exception):
    """An evaluation has no result; the message is one line."""


class Played(NamedTuple):
    """Episodes that were played.

    Attributes:
        scores: of those that no error of their env cut.
        videos: the images (T, H, W, 3) of the recorded ones, in the order of their numbers.
        files: what the tasks showed of their files, in the order of the episodes' numbers, each once.
    """

    scores: Scores
    videos: list[np.ndarray]
    files: list[str]


def count_eval_envs(config: Config, episodes: int) -> int:
    """Number of envs that play an evaluation of `episodes` episodes together."""
    return min(config.eval_envs or config.envs, episodes)


def eval_tasks(config: Config) -> list[str]:
    """The tasks of `eval_tasks`, the suites among them (`@dmcgb`) in full but for the run's own task.

    Raises an error that names `eval_tasks` for an unknown suite or task, and for files that are missing.
    """
    tasks: list[str] = []
    for name in config.eval_tasks:
        if name.startswith("@"):
            tasks += [task for task in find_suite("--eval_tasks @", name[1:], config) if task != config.task]
        else:
            check_files(f"--eval_tasks {name}", name, config)
            tasks.append(name)
    return list(dict.fromkeys(tasks))


def find_suite(flag: str, name: str, config: Config) -> list[str]:
    """The test sets of a suite for the run's task, the clean task first; errors begin with `flag` and the name."""
    try:
        tasks = envs.suite_tasks(name, config.task)
    except ValueError as error:
        raise ValueError(f"{flag}{name}: {error}") from None
    for task in tasks:
        check_files(f"{flag}{name}", task, config)
    return tasks


def check_files(flag: str, task: str, config: Config) -> tuple[int, int] | None:
    """See `envs.count_videos`; an agent that sees no images needs none. Raises an error that begins with `flag`."""
    try:
        return envs.count_videos(task, **{key: config[key] for key in envs.settings()}) if sees_images(config) else None
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{flag}: {error}") from None


def check_eval_task(config: Config, task: str, trained: EnvGroup, keys: list[str]) -> None:
    """Raises an error that names `eval_tasks` if `task` cannot be made, or does not fit the `trained` envs."""
    try:
        with make_envs(config.replace(task=task), "eval", 1, sees_images(config)) as group:
            action_space, spaces = group.action_space, group.observation_space.spaces
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise type(error)(f"--eval_tasks {task}: {error}") from None
    if action_space != trained.action_space:
        raise ValueError(
            f"--eval_tasks {task}: its actions are {action_space}, those of --task {config.task} {trained.action_space}"
        )
    for key in keys:
        ours, theirs = trained.observation_space[key].shape, spaces[key].shape if key in spaces else "absent"
        if ours != theirs:
            raise ValueError(f"--eval_tasks {task}: its {key} is {theirs}, that of --task {config.task} {ours}")


def play(
    agent: Any,
    group: EnvGroup,
    episodes: int,
    first_episode: int,
    record_all: bool = False,
    observe: Callable[[list[int | None], list[dict], dict[str, Tensor]], None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Played:
    """Plays whole episodes with the mean action.

    They are numbered from `first_episode`; env i plays the i-th, the (i + N)-th, … of them. A number determines start,
    video and colors, whoever plays it, so neither the number of envs nor their speed changes which episodes are played.

    Args:
        observe: called after each acting step with the index of each env's episode among all (None for an env that has
            played its share), the observations, and the state that the agent inferred from them, (N, ...).
        record_all: videos of all episodes; else of the first one.
        progress: called after each step with the number of envs that took it.
    """
    n = len(group)
    index = list(range(n))  # number, among all, of the episode that each env plays
    obs, state = group.reset([first_episode + i for i in index], stride=n), None
    recorded = episodes if record_all else 1
    frames = {i: [obs[i]["image"]] for i in index if i < recorded and "image" in obs[i]}
    scores: Scores = {"return": [0.0] * episodes, "length": [0.0] * episodes}
    files: list[tuple[str, ...]] = [()] * episodes
    failed: dict[int, str] = {}  # what cut an episode, which has no score then
    while any(i < episodes for i in index):
        action, state = agent.act(stack_obs(obs, agent.keys, agent.device), state, training=False)
        if observe is not None:
            observe([i if i < episodes else None for i in index], obs, state)
        action = action.cpu().numpy()
        if hasattr(group.action_space, "low"):
            action = action.clip(-1, 1)
        group.send([{"action": one} if i < episodes else None for i, one in zip(index, action, strict=True)])
        transitions = group.receive()
        if progress is not None:
            progress(n - transitions.count(None))
        for env, transition in enumerate(transitions):
            if transition is None:
                continue
            i = index[env]
            obs[env] = transition.obs
            scores["return"][i] += transition.reward
            scores["length"][i] += 1
            if i in frames:
                frames[i].append(transition.obs["image"])
            if transition.done:
                if "failure" in transition.info:
                    failed[i] = transition.info["failure"]
                    log.warning(f"episode {first_episode + i} of the evaluation failed and does not count: {failed[i]}")
                for key in transition.info.keys() & {"success", "success_once"}:
                    scores.setdefault(key, [0.0] * episodes)[i] = float(transition.info[key])
                files[i] = transition.info.get("files", ())
                obs[env] = transition.first
                index[env] = i = i + n
                if i < recorded and "image" in obs[env]:
                    frames[i] = [obs[env]["image"]]
    kept = {k: [value for i, value in enumerate(values) if i not in failed] for k, values in scores.items()}
    shown = dict.fromkeys(name for names in files for name in names)
    return Played(kept, [np.stack(frames[i]) for i in sorted(frames)], list(shown))


def summary(scores: Scores) -> dict[str, float]:
    """Means over the episodes, the std of their returns, and their number; this alone if all failed."""
    if not scores["return"]:
        return {"episodes": 0}
    means = {k: float(np.mean(v)) for k, v in scores.items()}
    return {**means, "return_std": float(np.std(scores["return"])), "episodes": len(scores["return"])}


class Evaluator:
    """The evaluations of a training run, on its task and on each of `eval_tasks`, one after another.

    Attributes:
        tasks: those of `eval_tasks`.
        episodes: number played so far. Each evaluation plays the next ones.
    """

    def __init__(self, config: Config):
        self.config, self.tasks, self.episodes = config, eval_tasks(config), 0
        self.envs: EnvGroup | None = None  # made at the first evaluation

    def play(self, agent: Any, env_step: int) -> dict[str, Played]:
        """What was played, by task; '' is the run's own.

        The other tasks are played from the same seeds and episode numbers, and change no other number of the run.
        """
        c, image = self.config, sees_images(self.config) or None
        count = count_eval_envs(c, c.eval_episode_num)
        if self.envs is None:
            self.envs = make_envs(c, "eval", count, image)
        results = {}
        for task in ("", *self.tasks):
            if self.tasks:
                constructors = env_constructors(c.replace(task=task or c.task), "eval", count, image)
                self.envs.change(task, constructors, keep=max(1, KEPT_ENVS // count))
            with contextlib.ExitStack() as stack:
                if task:
                    seed = (c.seed, STREAMS["eval_tasks"], env_step)
                    stack.enter_context(runtime.own_randomness(agent.device, *seed))
                results[task] = play(agent, self.envs, c.eval_episode_num, self.episodes)
        self.episodes += c.eval_episode_num
        return results

    def close(self) -> None:
        if self.envs is not None:
            self.envs.close()


def run_config(argv: list[str], logdir: Path) -> Config:
    """The settings of the run in `logdir`, overridden by the flags of the command line."""
    if not (logdir / "config.yaml").is_file():
        raise ValueError(f"--logdir {logdir} holds no run (there is no config.yaml): pass the folder of a run")
    stored = read_config(logdir / "config.yaml")
    config, _ = load_config(argv, extra=ACTIONS, base=stored)
    own = run_settings(logdir / "config.yaml")
    if config.size != own.size and sees_images(own):
        new, old = (" ".join(map(str, one.size)) for one in (config, own))
        raise ValueError(f"--size is {new}: the agent in --logdir {logdir} sees images of {old}")
    known = {*stored.flat(), *given_flags(argv), *FREE_SETTINGS}
    missing = [f"{k} {v}" for k, v in config.flat().items() if k not in known]
    if missing:
        log.info(f"{logdir / 'config.yaml'} lacks settings; assuming {', '.join(missing)}")
    if note := ignored(logdir / "config.yaml", stored.flat(), config.flat()):
        log.info(note)
    return config


def find_tasks(config: Config, action: Config) -> list[str]:
    """The tasks that `--eval_only` plays; checks their names and files before any env starts."""
    episodes = action.episodes or config.eval_episode_num
    if episodes < 1:
        raise ValueError(f"--episodes is {episodes}: expected 1 or more")
    if action.probe_state and episodes < probe.EPISODES:
        raise ValueError(f"--probe_state needs {probe.EPISODES} episodes or more, got {episodes}: increase --episodes")
    if action.eval_suite:
        return find_suite("--eval_suite ", action.eval_suite, config)
    check_files(f"--task {config.task}", config.task, config)
    return [config.task]


def make_run_envs(config: Config, action: Config) -> EnvGroup:
    """The envs of `--eval_only`.

    Their seeds are none that training and its evaluations use, and the same ones in every call with the same `seed`, on
    every task.
    """
    count = count_eval_envs(config, action.episodes or config.eval_episode_num)
    return make_envs(config, "eval_only", count, sees_images(config) or action.video)


def evaluate_run(agent: Any, group: EnvGroup, logdir: Path, action: Config, tasks: list[str]) -> None:
    """Evaluates a run's checkpoint and adds a line for each task to its eval.jsonl; the run itself is only read.

    The envs are those of the first task. Of a suite, tasks that have such a line already are left out.
    """
    if action.probe_state and not any(map(probe.is_vector, group.observation_space.spaces.values())):
        raise ValueError(f"--probe_state: {agent.config.task} has no vector observations to predict")
    evaluation = Evaluation(agent, logdir, action)
    left = [task for task in tasks if not (action.eval_suite and evaluation.is_done(task))]
    if len(left) < len(tasks):
        log.info(f"{logdir / 'eval.jsonl'} has {len(tasks) - len(left)} of the {len(tasks)} sets already")
    rng, image = runtime.rng_state(), sees_images(agent.config) or action.video
    steps = evaluation.episodes * (agent.config.time_limit // agent.config.action_repeat)  # per task; 0: unknown
    problems = []
    with progress_bar(len(left) * steps or None) as bar:
        for number, task in enumerate(left, 1):
            if task != tasks[0]:
                config = agent.config.replace(task=task)
                group.change(task, env_constructors(config, "eval_only", len(group), image))
            bar.set_description(f"{task} ({number} of {len(left)})")
            runtime.set_rng_state(rng)  # a set's numbers do not depend on what is played before
            try:
                evaluation.play(group, task, bar.update)
            except EvaluationError as error:  # the other sets are played all the same
                problems.append(str(error))
            if steps:
                bar.update(number * steps - bar.n)  # some episodes may have ended early
    if problems:
        raise EvaluationError("; ".join(problems))


class Evaluation:
    """`--eval_only`: what is played of a checkpoint, and its lines in eval.jsonl.

    Args:
        agent: gets the weights of the checkpoint in `logdir`.
    """

    def __init__(self, agent: Any, logdir: Path, action: Config):
        self.agent, self.config, self.logdir, self.action = agent, agent.config, logdir, action
        self.episodes = action.episodes or agent.config.eval_episode_num
        self.step = checkpoint.load_weights(logdir, agent)
        self.step *= run_settings(logdir / "config.yaml").action_repeat
        changed = {name: new for name, (_, new) in changed_settings(self.config, logdir / "config.yaml").items()}
        self.changed = {name: new for name, new in changed.items() if name not in ("task", "seed")}

    def header(self, task: str) -> dict[str, Any]:
        """The entries of a task's line that are known beforehand."""
        line = {"step": self.step, "task": task, "seed": self.config.seed}
        if self.changed:
            line["changed"] = self.changed
        if held := check_files(f"--task {task}", task, self.config):
            line["videos"] = held[0]
            if held[0] < held[1]:
                line["incomplete"] = f"{held[0]} of {held[1]} videos"
        return line

    def is_done(self, task: str) -> bool:
        """Whether eval.jsonl has what `play` would add."""
        names, header = ("step", "task", "seed", "changed", "videos"), self.header(task)
        path = self.logdir / "eval.jsonl"
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(text)
                done = row["episodes"] + row.get("failed", 0) == self.episodes
                done = done and all(row.get(name) == header.get(name) for name in names)
            except (ValueError, KeyError, TypeError, AttributeError):  # damaged: of a killed writer
                continue
            probed = "probe_r2" in row or not self.action.probe_state
            if done and probed and (not self.action.video or self.video_path(task, self.episodes - 1).exists()):
                return True
        return False

    def video_path(self, task: str, episode: int) -> Path:
        changed = "".join(f"-{key}={value}" for key, value in self.changed.items())
        name = re.sub(r"[^\w.=-]+", "_", f"{task}-step{self.step}-seed{self.config.seed}{changed}")
        return self.logdir / "videos" / f"{name[:200]}-{episode}.mp4"

    def play(self, group: EnvGroup, task: str, progress: Callable[[int], object]) -> None:
        """Plays the episodes of a task and writes its line and videos."""
        config, action, episodes = self.config, self.action, self.episodes
        recorder = probe.Recorder(self.agent.world_model.dynamics) if action.probe_state else None
        played = play(self.agent, group, episodes, 0, action.video, recorder, progress)
        if not played.scores["return"]:
            raise EvaluationError(f"{task}: every episode of the evaluation failed")
        r2 = probe.probe(recorder.rows) if recorder else {}
        means = summary(played.scores)
        line = {**self.header(task), **means, "returns": played.scores["return"]}
        if action.eval_suite:
            line["suite"] = action.eval_suite
        if played.files:
            line["files"] = played.files
        success = f", success {means['success']:.2f}" if "success" in means else ""
        failed = ""
        if means["episodes"] < episodes:
            line["failed"] = episodes - means["episodes"]
            failed = f", {line['failed']} more failed"
        note = f", {line['incomplete']}" if "incomplete" in line else ""
        log.info(
            f"{task}: return {means['return']:.1f} ± {means['return_std']:.1f}{success} "
            f"({means['episodes']} episodes{failed}, seed {config.seed}, checkpoint of step {self.step}{note})"
        )
        if r2:
            line["probe_r2"] = r2
            shown = ", ".join(f"{name} {value:.2f}" for name, value in probe.summarize(r2).items())
            log.info(f"linear probes, held-out R²: {shown}")
            if config.hybrid and config.mbr_scale:
                dynamics = recorder.dynamics
                weight = dynamics.projection.weight.detach().cpu().numpy()
                share = probe.latent_share(np.array(recorder.rows["feat"]), weight, dynamics.stoch_size)
                line["mbr_latent_share"] = share
                log.info(f"share of the latent in the variance that mbr compares: {share:.2g}")
        with open(self.logdir / "eval.jsonl", "ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":  # half a line: killed
                file.write(b"\n")
            file.write((json.dumps(line) + "\n").encode())
        if action.video:
            for i, frames in enumerate(played.videos):
                path = self.video_path(task, i)
                path.parent.mkdir(exist_ok=True)
                video.write(path, (video.enlarge(frame, max(1, 256 // frame.shape[0])) for frame in frames), fps=20)
            log.info(f"videos of {len(played.videos)} episodes: {self.logdir / 'videos'}")
