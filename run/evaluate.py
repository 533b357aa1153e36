"""Evaluation: whole episodes with the mean action.

`play` plays them; `Evaluator` holds the evaluations of a training run; `evaluate_run` is `--eval_only`. They need
the agent to act (`Dreamer.act`); probes need its features too.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import envs
from envs.parallel import EnvGroup
from run import checkpoint, probe, runtime, video
from run.collect import STREAMS, make_envs, stack_obs
from run.config import (
    ACTIONS,
    FREE_SETTINGS,
    Config,
    changed_settings,
    ignored,
    load_config,
    read_config,
    sees_images,
)
from run.logs import log

Scores = dict[str, list[float]]  # return, length and, if there is one, success of each episode


def count_eval_envs(config: Config, episodes: int) -> int:
    """Number of envs that play an evaluation of `episodes` episodes together."""
    return min(config.eval_envs or config.envs, episodes)


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
) -> tuple[Scores, list[np.ndarray]]:
    """Plays whole episodes with the mean action.

    They are numbered from `first_episode`; env i plays the i-th, the (i + N)-th, … of them. A number determines start,
    video and colors, whoever plays it, so neither the number of envs nor their speed changes which episodes are played.

    Args:
        observe: called after each acting step with the index of each env's episode among all (None for an env that has
            played its share), the observations, and the state that the agent inferred from them, (N, ...).

    Returns:
        Scores of the episodes that no error of their env cut, and the images (T, H, W, 3) of the first one, or with
        `record_all` of all of them, in the order of their numbers.
    """
    n = len(group)
    index = list(range(n))  # of the episode that each env plays, among all
    obs, state = group.reset([first_episode + i for i in index], stride=n), None
    recorded = episodes if record_all else 1
    frames = {i: [obs[i]["image"]] for i in index if i < recorded and "image" in obs[i]}  # of each recorded episode
    scores: Scores = {"return": [0.0] * episodes, "length": [0.0] * episodes}
    failed: dict[int, str] = {}  # what cut an episode, which has no score then
    while any(i < episodes for i in index):
        action, state = agent.act(stack_obs(obs, agent.keys, agent.device), state, training=False)
        if observe is not None:
            observe([i if i < episodes else None for i in index], obs, state)
        action = action.cpu().numpy()
        if hasattr(group.action_space, "low"):
            action = action.clip(-1, 1)
        group.send([{"action": one} if i < episodes else None for i, one in zip(index, action, strict=True)])
        for env, transition in enumerate(group.receive()):
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
                obs[env] = transition.first
                index[env] = i = i + n
                if i < recorded and "image" in obs[env]:
                    frames[i] = [obs[env]["image"]]
    if len(failed) == episodes:
        raise RuntimeError(f"every episode of the evaluation failed: {failed[0]}")
    kept = {k: [value for i, value in enumerate(values) if i not in failed] for k, values in scores.items()}
    return kept, [np.stack(frames[i]) for i in sorted(frames)]


def summary(scores: Scores) -> dict[str, float]:
    """Means over the episodes, the std of their returns, and their number."""
    means = {k: float(np.mean(v)) for k, v in scores.items()}
    return {**means, "return_std": float(np.std(scores["return"])), "episodes": len(scores["return"])}


class Evaluator:
    """The evaluations of a training run, on its task and on each of `eval_tasks`.

    Attributes:
        episodes: number played so far. Each evaluation plays the next ones.
    """

    def __init__(self, config: Config):
        self.config, self.episodes = config, 0
        self.envs: EnvGroup | None = None  # made at the first evaluation

    def play(self, agent: Any, env_step: int) -> dict[str, tuple[Scores, list[np.ndarray]]]:
        """Scores and videos, as of `play`, by task; '' is the run's own.

        The other tasks are played from the same seeds and episode numbers, and change no other number of the run.
        """
        c, image = self.config, sees_images(self.config) or None
        count = count_eval_envs(c, c.eval_episode_num)
        if self.envs is None:
            self.envs = make_envs(c, "eval", count, image)
        results = {"": play(agent, self.envs, c.eval_episode_num, self.episodes)}
        for task in c.eval_tasks:
            with (
                runtime.own_randomness(agent.device, c.seed, STREAMS["eval_tasks"], env_step),
                make_envs(c.replace(task=task), "eval", count, image) as group,
            ):
                results[task] = play(agent, group, c.eval_episode_num, self.episodes)
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
    given = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    known = {*stored.flat(), *given, *FREE_SETTINGS}
    missing = [f"{k} {v}" for k, v in config.flat().items() if k not in known]
    if missing:
        log.info(f"{logdir / 'config.yaml'} lacks settings; assuming {', '.join(missing)}")
    if note := ignored(logdir / "config.yaml", stored.flat(), config.flat()):
        log.info(note)
    return config


def make_run_envs(config: Config, action: Config) -> EnvGroup:
    """The envs of `--eval_only`.

    Their seeds are none that training and its evaluations use, and the same ones in every call with the same `seed`, on
    every task.
    """
    episodes = action.episodes or config.eval_episode_num
    if episodes < 1:
        raise ValueError(f"--episodes is {episodes}: expected 1 or more")
    if action.probe_state and episodes < probe.EPISODES:
        raise ValueError(f"--probe_state needs {probe.EPISODES} episodes or more, got {episodes}: increase --episodes")
    return make_envs(config, "eval_only", count_eval_envs(config, episodes), sees_images(config) or action.video)


def evaluate_run(agent: Any, group: EnvGroup, logdir: Path, action: Config) -> None:
    """Evaluates a run's checkpoint in these envs and adds a line to its eval.jsonl; the run itself is only read."""
    config, episodes = agent.config, action.episodes or agent.config.eval_episode_num
    if action.probe_state and not any(map(probe.is_vector, group.observation_space.spaces.values())):
        raise ValueError(f"--probe_state: {config.task} has no vector observations to predict")
    step = checkpoint.load_weights(logdir, agent)
    step *= read_config(logdir / "config.yaml").action_repeat
    recorder = probe.Recorder(agent.world_model.dynamics) if action.probe_state else None
    scores, videos = play(agent, group, episodes, 0, record_all=action.video, observe=recorder)
    r2 = probe.probe(recorder.rows) if recorder else {}
    means = summary(scores)
    success = f", success {means['success']:.2f}" if "success" in means else ""
    failed = f", {episodes - means['episodes']} more failed" if means["episodes"] < episodes else ""
    incomplete = envs.incomplete(config.task, assets=config.assets) if sees_images(config) else ""
    note = incomplete and f", {incomplete}"
    log.info(
        f"{config.task}: return {means['return']:.1f} ± {means['return_std']:.1f}{success} "
        f"({means['episodes']} episodes{failed}, seed {config.seed}, checkpoint of step {step}{note})"
    )
    line = {"step": step, "task": config.task, "seed": config.seed, **means, "returns": scores["return"]}
    changed = {name: new for name, (_, new) in changed_settings(config, logdir / "config.yaml").items()}
    changed = {name: new for name, new in changed.items() if name not in ("task", "seed")}
    if changed:
        line["changed"] = changed
    if incomplete:
        line["incomplete"] = incomplete
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
    with open(logdir / "eval.jsonl", "ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":  # from a killed writer
            file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())
    if action.video:
        folder = logdir / "videos"
        folder.mkdir(exist_ok=True)
        for i, frames in enumerate(videos):
            name = "".join(f"-{key}={value}" for key, value in changed.items())
            name = re.sub(r"[^\w.=-]+", "_", f"{config.task}-step{step}-seed{config.seed}{name}")
            path = folder / f"{name[:200]}-{i}.mp4"
            video.write(path, (video.enlarge(frame, max(1, 256 // frame.shape[0])) for frame in frames), fps=20)
        log.info(f"videos of {len(videos)} episodes: {folder}")
