"""A training run: what its loop in dreamer.py needs besides the agent, and how it is resumed, saved and logged."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from envs.parallel import EnvGroup
from run import checkpoint, distributed, evaluate, runtime
from run.collect import STREAMS, Collector, EnvError
from run.config import Config
from run.evaluate import Played
from run.logs import Logger, log
from run.prediction import video_pred
from run.prefetch import Prefetcher
from run.process import Interrupt, Interrupted, available_memory
from run.replay import bytes_needed
from tools import Metrics

MAX_LOSS = 1e9  # a mean beyond it counts as divergence
SPELL = {"post_ent": 1000, "kl": 4000}  # updates after which a sign of an unused latent is reported


class TrainingError(Exception):
    """Training cannot continue; the message is one line."""


class Schedule(NamedTuple):
    """When updates are due: `updates` at agent step `step`, then train_ratio / batch for each step; none before."""

    step: int
    updates: int
    train_ratio: float
    batch: int

    @classmethod
    def of(cls, config: Config) -> Schedule:
        """`pretrain` updates after prefill, then replayed steps by `train_ratio`."""
        c = config
        first = -(-max(c.prefill, c.envs) // c.envs) * c.envs
        return cls(first, c.pretrain, c.train_ratio, c.batch_size * c.batch_length)

    def due(self, step: int) -> int:
        """Updates due after `step` agent steps."""
        if step < self.step:
            return 0
        return self.updates + int((step - self.step) * self.train_ratio / self.batch)

    def resumed(self, config: Config, step: int) -> Schedule:
        """The schedule of a run that resumes at `step`, where changed settings hold from then on."""
        new = Schedule.of(config)
        if step < self.step:
            return new
        if (new.train_ratio, new.batch) == (self.train_ratio, self.batch):
            return self
        return new._replace(step=step, updates=self.due(step))


class LatentWatch:
    """Notices spells in which the latent is not used, from the rows of the log.

    The entropy of its posterior is at the maximum for 1,000 updates: it holds nothing. Or its KL is below 0.8
    of the free nats for 4,000, where the loss hardly trains the prior: no agent of results/ that learned was so long
    below (three of cheetah_run were below 0.95).
    """

    def __init__(self, config: Config):
        self.maximum = config.dyn_stoch * math.log(config.dyn_discrete) if config.dyn_discrete else math.inf
        self.free = config.kl_free
        self.updates = 0  # count at the last row
        self.since: dict[str, int] = {}  # update at which each sign appeared
        self.reported = False

    def check(self, kl: float, post_ent: float, updates: int) -> str:
        """A line at the row that completes a spell, else ""; takes the means over the updates since the last row."""
        signs = {"post_ent": post_ent > 0.99 * self.maximum, "kl": kl < 0.8 * self.free}
        self.since = {name: self.since.get(name, self.updates) for name, sign in signs.items() if sign}
        self.updates = updates
        over = [name for name, since in self.since.items() if updates - since >= SPELL[name]]
        reported, self.reported = self.reported, bool(self.since and (self.reported or over))
        if reported or not over:
            return ""
        words = {
            "post_ent": f"the latent holds nothing: its posterior is uniform (post_ent {post_ent:.1f} of "
            f"{self.maximum:.1f} nats)",
            "kl": f"little trains the prior: kl is {kl:.2f}, under --kl_free {self.free:g},",
        }
        return f"{words[over[0]]} since update {self.since[over[0]]} (docs/usage.md)"

    def state_dict(self) -> dict:
        return {"updates": self.updates, "since": self.since, "reported": self.reported}

    def load_state_dict(self, state: dict) -> None:
        self.updates, self.since, self.reported = state["updates"], dict(state["since"]), state["reported"]


class Trainer:
    """A training run: the agent, its experience, evaluations and logs, and what a checkpoint holds of them.

    With several ranks (run/distributed.py), each has its share of envs, replay and batch. They run the loop in
    lockstep; the main one logs, evaluates, and saves what all need to resume. Counters are totals over all ranks.

    Args:
        agent: acts and is updated, see `dreamer.Dreamer`.
        envs: this rank's training envs.
    """

    def __init__(self, config: Config, logdir: Path, agent: Any, envs: EnvGroup):
        self.config, self.logdir, self.agent, self.device = config, logdir, agent, agent.device
        self.evaluator = evaluate.Evaluator(config)
        for task in self.evaluator.tasks:
            evaluate.check_eval_task(config, task, envs, agent.keys)
        self.collector = Collector(config, envs, agent.keys, logdir / "train_eps")
        if not distributed.is_main():  # other noise than the main rank, which continues its stream from initialization
            self.seed_torch()
        self.batches = Prefetcher(
            self.collector.replay,
            self.collector.random_stream("batches"),
            config.batch_size // distributed.size(),
            config.batch_length,
            self.device,
        )
        self.metrics = Metrics()
        self.latent = LatentWatch(config)
        self.schedule = Schedule.of(config)
        self.updates = 0
        self.failures = 0  # training episodes that an error of their env ended, on the main rank
        self.done_at = {"eval": 0, "log": 0, "checkpoint": 0}  # environment step of the last one
        self.lines: int | None = None  # length of metrics.jsonl at the checkpoint
        self.logger: Logger | None = None  # only the main rank has one

    @property
    def env_step(self) -> int:
        return self.collector.env_step

    def seed_torch(self) -> None:
        """Seeds torch's samples, noise and masks for this rank."""
        torch.manual_seed(int(self.collector.random_stream("torch").integers(2**63)))

    def close(self) -> None:
        for part in (self.collector.envs, self.evaluator, self.batches, self.logger):
            if part is not None:
                part.close()

    def log_needs(self) -> None:
        """Logs the memory, disk space and processes that the run grows to; warns if there is too little."""
        c = self.config
        memory, files = bytes_needed(c, self.collector.spec)
        moments = [p for opt in self.agent.optimizers().values() for group in opt.param_groups for p in group["params"]]
        weights = [*self.agent.state_dict().values(), *moments, *moments]
        disk = files + 3 * sum(tensor.nbytes for tensor in weights)  # latest, previous, and the one being written
        evals = evaluate.count_eval_envs(c, c.eval_episode_num)
        processes = sum(n for n in (c.envs, evals) if c.parallel and n * distributed.size() > 1)
        size = functools.partial(tqdm.format_sizeof, suffix="B")
        log.info(
            f"needs up to {size(memory)} of memory for the replay, {size(disk)} of disk, and {processes} env processes"
        )
        here, available = memory * distributed.local_size() / distributed.size(), available_memory()
        if here > available:
            log.warning(
                f"the replay grows to {size(here)}, only {size(available)} of memory are free: "
                "reduce --dataset_size or --replay_memory"
            )
        found = [*self.logdir.glob("*.pt"), *self.logdir.glob("train_eps/*.npz")]
        missing, free = disk - sum(path.stat().st_size for path in found), shutil.disk_usage(self.logdir).free
        if missing > free:
            log.warning(
                f"--logdir {self.logdir} grows by {size(missing)}, only {size(free)} of its disk are free: "
                "set --replay_dir_limit, or use another disk"
            )
        if not self.schedule.due(math.ceil(c.steps / c.action_repeat / c.envs) * c.envs):
            log.warning(f"--steps {c.steps} ends before the first update, which --prefill {c.prefill} puts off")
        if c.eval_tasks and not c.eval_episode_num:
            log.warning(f"--eval_tasks {' '.join(c.eval_tasks)}: not evaluated, as --eval_episode_num is 0")

    # Schedule

    def is_due(self, what: str) -> bool:
        """Whether the next `what` is due, by the environment steps since the last one or at the end of the run."""
        every, done_at = self.config[f"{what}_every"], self.done_at[what]
        at_end = self.env_step >= self.config.steps and done_at < self.env_step
        return at_end or (bool(every) and self.env_step // every > done_at // every)

    def checkpoint_is_due(self) -> bool:
        """Whether `checkpoint_every` steps have passed since the last checkpoint, or an evaluation is not in it."""
        return self.is_due("checkpoint") or self.done_at["eval"] == self.env_step > self.done_at["checkpoint"]

    def updates_due(self) -> int:
        return self.schedule.due(self.collector.step) if self.collector.can_sample else 0

    @property
    def max_updates(self) -> int:
        """Updates that may follow each other, as many as belong to the steps between two checkpoints.

        More are due after a lost checkpoint only.
        """
        c = self.config
        steps = max(c.envs, c.checkpoint_every / c.action_repeat)
        return max(c.pretrain, math.ceil(steps * c.train_ratio / (c.batch_size * c.batch_length)))

    @contextlib.contextmanager
    def resumable(self) -> Iterator[Interrupt]:
        """Within it, an interrupt ends the block, and an env's error is passed on, each after a checkpoint."""
        with Interrupt() as interrupt:
            try:
                yield interrupt
            except Interrupted:
                self.save()
                log.info(f"stopped at step {self.env_step}: the same command resumes from there")
            except EnvError as error:
                self.save()
                log.info(f"{error}: saved a checkpoint of step {self.env_step}")
                raise

    # Evaluation

    def evaluate(self, interrupt: Interrupt) -> None:
        """Plays `eval_episode_num` episodes with the mean action; logs their mean return, and the first one as a video.

        Likewise on each of `eval_tasks`. It changes nothing that is learned. If any rank is interrupted or an env
        fails, it drops the evaluation and all its effects, and raises Interrupted or EnvError in all ranks.
        """
        results, rng, episodes, failure = {}, runtime.rng_state(), self.evaluator.episodes, None
        try:
            with interrupt.immediate():
                if self.config.eval_episode_num and distributed.is_main():
                    results = self.evaluator.play(self.agent, self.env_step)
        except Interrupted:
            pass
        except Exception as error:
            failure = error
        stopped, failed = distributed.any_rank(interrupt.requested), distributed.any_rank(failure is not None)
        runtime.set_rng_state(rng)  # training draws the same numbers, whatever is evaluated
        if stopped or failed:
            self.evaluator.episodes = episodes
            raise Interrupted if stopped else EnvError("an evaluation failed") from failure
        self.done_at["eval"] = self.env_step
        self.log_evaluation(results)

    def predict_video(self, sequences: int = 4) -> np.ndarray:
        """Frames of `video_pred` for some of the replay; draws from its own generators."""
        c, seed = self.config, (self.config.seed, STREAMS["video_pred"], self.env_step)
        replay = self.collector.replay
        rows = replay.sample(np.random.default_rng(seed), sequences, c.batch_length, candidates=8 * sequences)
        batch = {k: torch.from_numpy(v).to(self.device) for k, v in rows.items()}
        with runtime.own_randomness(self.device, *seed):
            return video_pred(self.agent.world_model, batch).cpu().numpy()

    # Logs

    def log_episodes(self, summaries: list[dict[str, float]]) -> None:
        if self.logger is not None:
            for summary in summaries:
                self.log_episode(self.env_step, summary)
        self.show_progress()

    def log_episode(self, step: int, summary: dict[str, float]) -> None:
        if "train_failures" in summary:
            self.failures += 1
            summary = {**summary, "train_failures": self.failures}
        self.logger.write(step, summary)

    def log_evaluation(self, results: dict[str, Played]) -> None:
        if self.logger is None or not results:
            return
        scalars, shown = {}, {}
        for task, (scores, videos, _) in results.items():
            suffix = f"/{task}" if task else ""
            means = evaluate.summary(scores)
            if failures := self.config.eval_episode_num - means["episodes"]:
                means["failures"] = failures
            scalars |= {f"eval_{k}{suffix}": v for k, v in means.items()}
            shown |= {f"eval_policy{suffix}": video for video in videos[:1]}  # an env that cannot be rendered has none
        c = self.config
        images = self.agent.world_model.encoder.cnn_keys
        if (c.probe_decoder or c.video_pred_log) and images and self.collector.can_sample:
            shown["video_pred"] = self.predict_video()
        self.logger.write(self.env_step, scalars, shown)

    def log(self) -> None:
        """Writes the means of the metrics since the last call. Raises TrainingError if they show divergence."""
        self.done_at["log"] = self.env_step
        values = self.average(self.metrics.result())
        replay_steps = sum(distributed.all_gather(self.collector.replay.steps))
        counts = {"update_count": self.updates, "replay_steps": replay_steps}
        if self.logger is not None:
            speed = self.logger.speed(self.env_step, self.updates)
            self.logger.write(self.env_step, {**values, **counts, **speed})
            if "kl" in values and (line := self.latent.check(values["kl"], values["post_ent"], self.updates)):
                log.warning(line)
        self.check_losses(values)

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Means over all ranks."""
        results = distributed.all_gather(values)
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}

    def check_losses(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name.endswith(("_loss", "_grad_norm")) and not math.isfinite(value):
                problem = "not finite"
            elif name.endswith("_loss") and abs(value) > MAX_LOSS:
                problem = f"beyond {MAX_LOSS:g}"
            else:
                continue
            raise self.divergence(f"{name} is {value:.3g} at step {self.env_step}, {problem}")

    def divergence(self, problem: str) -> TrainingError:
        last = f"the last checkpoint in {self.logdir} is of step {self.done_at['checkpoint']}"
        return TrainingError(f"training has diverged: {problem}; {last}")

    def show_progress(self) -> None:
        if self.logger is not None:
            self.logger.progress(self.env_step, self.updates)

    # Checkpoints

    def resume(self) -> None:
        """Starts a new run, or resumes the one in `logdir`: its checkpoint, and every episode finished since."""
        path, state = checkpoint.read(self.logdir, self.agent)
        with checkpoint.our_layout(path):
            own = self.load_state_dict(state) if state is not None else None
        step = self.env_step  # the checkpoint's, before newer episodes are added
        exact, newer = self.collector.restore(exact=own is not None)
        if distributed.is_main():
            resume_step = -1 if state is None else step
            results = self.logdir / "eval.jsonl"
            if state is None and results.exists():
                results.replace(results.with_name("eval.jsonl.old"))
                log.info(f"{results} is of an agent that is gone: renamed to eval.jsonl.old")
            self.logger = Logger(self.logdir, self.config.loggers, resume_step, self.lines)
            self.logger.begin(self.config.flat(), self.env_step, self.updates)
        self.log_again(newer, step)
        if state is not None or self.env_step > 0:
            self.log_resumed(0 if exact else self.env_step - step, exact)
        if exact:
            with checkpoint.our_layout(path):
                self.batches.load_state_dict(own["batches"])
        else:  # lost updates come before the next evaluation
            self.collector.act(self.agent)

    def log_resumed(self, newer_steps: int, exact: bool) -> None:
        episodes = sum(distributed.all_gather(self.collector.replay.episodes))
        lost = "" if exact else f"; the last {newer_steps} steps are newer than the checkpoint"
        log.info(f"resumed at step {self.env_step} with {episodes} episodes{lost}")
        owed = self.updates_due() - self.updates
        if not exact and owed > 0:
            log.info(f"updates lost with the last checkpoint are due: {owed}")
        elif self.env_step >= self.config.steps:
            log.info(f"nothing left to train: --steps is {self.config.steps}; a larger number resumes")

    def log_again(self, summaries: list[dict[str, float]], step: int) -> None:
        """Logs the episodes that finished after the checkpoint of this step, at the steps of their original lines."""
        if self.logger is None:
            return
        lines = {line.get("train_episodes"): line for line in self.logger.removed}
        for summary in summaries:
            line = lines.get(summary["train_episodes"], {})
            step = min(max(line.pop("step", step), step), self.env_step)
            self.log_episode(step, {**summary, **line})

    def load_state_dict(self, state: dict) -> dict | None:
        """Restores a checkpoint; returns the state of this rank, None if it is from another number of ranks.

        In that case envs are redistributed, and random numbers differ from there on.
        """
        self.agent.load(state["agent"])
        for name, initial in self.agent.initial_state(1).items() if state["policy"] else ():
            if state["policy"][name].shape[1:] != initial.shape[1:]:
                raise ValueError(f"its policy state has another {name}")
        self.collector.load_state_dict(state, self.device)
        self.updates, self.evaluator.episodes = state["updates"], state["eval_episodes"]
        self.lines, self.failures = state.get("lines"), state.get("failures", 0)
        if "latent" in state:
            self.latent.load_state_dict(state["latent"])
        before = Schedule(*state["schedule"]) if "schedule" in state else self.schedule
        self.schedule = before.resumed(self.config, self.collector.step)
        self.done_at = {name: int(state["done_at"][name]) for name in self.done_at}
        ranks = state["ranks"]
        if len(ranks) != distributed.size():
            log.info(f"resumed with another number of processes, {distributed.size()} instead of {len(ranks)}")
            self.collector.rng = self.collector.random_stream("prefill")
            self.batches.rng = self.collector.random_stream("batches")
            self.seed_torch()
            return None
        own = ranks[distributed.rank()]
        self.metrics.load_state_dict(own["metrics"])
        self.batches.rng.bit_generator.state = own["batches"]["rng"]
        runtime.set_rng_state(own["rng"], prefill=self.collector.rng)
        return own

    def save(self) -> None:
        """Writes `latest.pt` atomically; the one before becomes `previous.pt`.

        Raises TrainingError, and writes nothing, if training has diverged.
        """
        self.check_losses(self.average(self.metrics.means()))
        agent = self.agent.state()
        broken = checkpoint.find_nonfinite(agent)
        if broken:
            raise self.divergence(f"{broken} is not finite at step {self.env_step}")
        done_at = {**self.done_at, "checkpoint": self.env_step}
        own = {
            "batches": self.batches.state_dict(),
            "metrics": self.metrics.state_dict(),
            "rng": runtime.rng_state(prefill=self.collector.rng),
        }
        state = {**self.collector.state_dict(), "ranks": distributed.all_gather(own), "agent": agent}
        if distributed.is_main():
            state |= {"updates": self.updates, "eval_episodes": self.evaluator.episodes, "failures": self.failures}
            state |= {"done_at": done_at, "lines": self.logger.lines}
            state |= {"schedule": list(self.schedule), "latent": self.latent.state_dict()}
            checkpoint.save_checkpoint(self.logdir / checkpoint.LATEST, state, self.logdir / checkpoint.PREVIOUS)
        self.done_at = done_at
