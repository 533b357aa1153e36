"""HRSSM from the command line: `python dreamer.py --configs dmc_vision --task dmc_walker_stand --logdir ./log`.

This file holds the agent (`Dreamer`: act, update), the training loop (`Trainer`), and the command line. `--help` lists
every setting. A run is a folder: the same command with the same --logdir resumes it from its checkpoint; `--eval_only`
evaluates it. `torchrun --nproc_per_node N dreamer.py ...` trains on N GPUs (run/distributed.py).
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from run import logs, process

TUNED = [process.tune_allocator()] if __name__ == "__main__" else []  # must come before torch

import numpy as np
import torch
from torch import Tensor, nn

import envs
import exploration
import fast
import models
import networks
import tools
from envs.parallel import EnvGroup, WorkerDied
from run import checkpoint, collect, distributed, evaluate
from run.collect import STREAMS, Collector
from run.config import ACTIONS, Config, check_config, check_resume, load_config, save_config, sees_images
from run.evaluate import Scores
from run.prefetch import Prefetcher
from run.public import import_checkpoint


class Dreamer(nn.Module):
    """The agent: a world model, a behavior learned in its imagination, and optionally one that explores.

    Args:
        shapes: shape of each observation, by name.
        actions: number of action dims.
        reward_to_simsr: factor that brings the task's rewards into [0, 2] for the bisimulation loss.
    """

    def __init__(self, config: Config, shapes: dict, actions: int, reward_to_simsr: float = 1.0):
        super().__init__()
        self.config, self.actions, self.keys = config, actions, list(shapes)
        self.world_model = models.WorldModel(shapes, actions, config, reward_to_simsr)
        self.behavior = models.ImagBehavior(config, self.world_model, actions)
        self.explorer = exploration.make(config, self.world_model, actions)
        self.behaviors = (self.behavior, *self.explorer.behaviors)
        self.to(process.pick_device(config.device))
        self.use_backend(fast.Backend())

    @property
    def device(self) -> torch.device:
        return self.behavior.return_ema.device

    def use_backend(self, backend: fast.Backend, log: Callable[[str], None] | None = None) -> None:
        """Sets how updates and acting run from here on; `log` takes a line when they are ready."""
        self.graphed = functools.partial(fast.GraphedFunction, backend=backend, log=log)
        self.learn = self.graphed(self._learn, name="update")
        self.actors: dict[tuple, fast.GraphedFunction] = {}  # by everything that determines the computation

    @torch.no_grad()
    def act(
        self, obs: dict[str, Tensor], state: dict[str, Tensor] | None, training: bool, explore: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Acts on one observation of each env, with the online encoder and dynamics on the whole image.

        Args:
            obs: (N, ...) on the device, `is_first` among them.
            state: from the last call, None before the first.
            training: sample the action; else take its mean.
            explore: act by the exploring behavior.

        Returns:
            Actions (N, A), not clipped, and the state for the next call: that of the dynamics and the action.
        """
        n = len(obs["is_first"])
        if state is None:
            initial = self.world_model.dynamics.initial(self.device)
            state = {k: v.expand(n, *v.shape[1:]) for k, v in initial.items()}
            state["action"] = torch.zeros(n, self.actions, device=self.device)
        key = (n, training, explore)
        if key not in self.actors:
            function = functools.partial(self._act, training=training, explore=explore)
            self.actors[key] = self.graphed(function, name="acting")
        new = self.actors[key]({**obs, **{f"before_{k}": state[k] for k in ("stoch", "deter", "action")}})
        return new["action"], new

    def _act(self, inputs: dict[str, Tensor], training: bool, explore: bool) -> dict[str, Tensor]:
        model, c = self.world_model, self.config
        data = models.preprocess({k: v.unsqueeze(1) for k, v in inputs.items() if not k.startswith("before_")})
        state = {"stoch": inputs["before_stoch"], "deter": inputs["before_deter"]}
        sample = training or not c.eval_state_mean
        previous = inputs["before_action"][:, None]
        post, _ = model.dynamics.observe(model.encoder(data), previous, data["is_first"], state, sample)
        post = {k: v[:, 0] for k, v in post.items()}
        feat = model.dynamics.feat(post)
        policy = self.explorer.policy(feat) if explore else self.behavior.actor(feat)
        action = policy.sample() if training else policy.mode()
        action = exploration.add_noise(action, c.expl_amount if training else c.eval_noise, c.actor_dist == "onehot")
        return {**post, "action": action}

    def update(self, batch: dict[str, Tensor]) -> models.Metrics:
        """One update of world model, actor and critic on replay rows (B, T, ...); metrics stay on the device."""
        for behavior in self.behaviors:
            behavior.begin_update()
        return self.learn(batch)

    def _learn(self, batch: dict[str, Tensor]) -> models.Metrics:
        start, embed, metrics = self.world_model.update(batch)
        metrics.update(self.behavior.learn(self.world_model, start))
        metrics.update(self.explorer.update(self.world_model, start, embed, batch))
        return metrics

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"model": self.world_model.opt, "actor": self.behavior.actor_opt, "value": self.behavior.value_opt}
        if self.world_model.probe_opt is not None:
            found["probe"] = self.world_model.probe_opt
        if self.world_model.baseline is not None:
            found.update(self.world_model.baseline.optimizers())
        found.update(self.explorer.optimizers())
        return {name: opt.adam for name, opt in found.items()}

    def state(self) -> dict:
        """Everything that learning changes, for a checkpoint."""
        optimizers = {name: opt.state_dict() for name, opt in self.optimizers().items()}
        updates = [behavior.updates for behavior in self.behaviors]
        return {"agent": self.state_dict(), "optimizers": optimizers, "behavior_updates": updates}

    def load(self, state: dict) -> None:
        self.load_state_dict(state["agent"])
        for name, opt in self.optimizers().items():
            groups = opt.state_dict()["param_groups"]  # of the config, which may have changed
            opt.load_state_dict({**state["optimizers"][name], "param_groups": groups})
            moments = [(param, found[key]) for param, found in opt.state.items() for key in ("exp_avg", "exp_avg_sq")]
            if any(moment.shape != param.shape for param, moment in moments):
                raise ValueError(f"optimizer {name} has moments of other shapes than its parameters")
        for behavior, updates in zip(self.behaviors, state["behavior_updates"], strict=True):
            behavior.updates = updates
        self.learn.reset()  # the optimizers' tensors are new


def make_agent(config: Config, group: EnvGroup) -> Dreamer:
    """The agent for the observations and actions of these envs. Raises ValueError if the config does not fit them."""
    space = group.action_space
    discrete = hasattr(space, "n")
    if discrete != (config.actor_dist == "onehot"):
        raise ValueError(
            f"--actor_dist {config.actor_dist} does not fit the {'discrete' if discrete else 'continuous'} "
            f"actions of {config.task}: use {'onehot' if discrete else 'normal'}"
        )
    shapes = {k: tuple(v.shape) for k, v in group.observation_space.spaces.items()}
    cnn_keys, mlp_keys = networks.pick_keys(shapes, config.encoder.mlp_keys, config.encoder.cnn_keys)
    shapes = {k: shapes[k] for k in cnn_keys + mlp_keys}
    actions = space.n if discrete else space.shape[0]
    reward_to_simsr = models.reward_to_simsr(envs.reward_range(config.task), config.action_repeat)
    return Dreamer(config, shapes, actions, reward_to_simsr)


def updates_due(config: Config, step: int) -> int:
    """Updates due after `step` agent steps: `pretrain` after prefill, then train_ratio / (B·T) per step."""
    c = config
    first = -(-max(c.prefill, c.envs) // c.envs) * c.envs  # agent steps at the first update
    if step < first:
        return 0
    return c.pretrain + int((step - first) * c.train_ratio / (c.batch_size * c.batch_length))


CONSOLE = ("model_loss", "actor_loss", "value_loss")  # the part of a log row that the console shows
MAX_LOSS = 1e9  # a mean beyond it counts as divergence


class TrainingError(Exception):
    """Training cannot continue; the message is one line."""


class Trainer:
    """A training run: the agent, its experience, the logs, and what a checkpoint holds of them.

    With several ranks (run/distributed.py), each has its share of envs, replay and batch. They run the loop in
    lockstep; the main one logs, evaluates, and saves what all need to resume. Counters are totals over all ranks.
    """

    def __init__(self, config: Config, logdir: Path):
        self.config, self.logdir = config, logdir
        self.device = process.pick_device(config.device)
        process.seed_everything(config.seed, config.deterministic_run)
        group = collect.make_train_envs(config)
        self.evaluator = evaluate.Evaluator(config)
        self.agent = make_agent(config, group)
        self.backend = fast.choose_backend(config.compile, self.device, distributed.size())
        self.agent.use_backend(self.backend, logs.log_line)
        for task in config.eval_tasks:
            evaluate.check_eval_task(config, task, group, self.agent.keys)
        self.collector = Collector(config, group, self.agent.keys, logdir / "train_eps")
        if not distributed.is_main():  # other noise than the main rank, which continues its stream from initialization
            self.seed_torch()
        self.batches = Prefetcher(
            self.collector.replay,
            self.collector.random_stream("batches"),
            config.batch_size // distributed.size(),
            config.batch_length,
            self.device,
        )
        self.metrics = tools.Metrics()
        self.updates = 0
        self.last_return: float | None = None
        self.done_at = {"eval": 0, "log": 0, "checkpoint": 0}  # environment step of the last one
        self.lines: int | None = None  # of metrics.jsonl at the checkpoint
        self.logger: logs.Logger | None = None  # on the main rank
        self.progress: logs.Progress | None = None

    @property
    def env_step(self) -> int:
        return self.collector.env_step

    def seed_torch(self) -> None:
        """Seeds torch's samples, noise and masks for this rank."""
        torch.manual_seed(int(self.collector.random_stream("torch").integers(2**63)))

    # The loop

    def train(self) -> None:
        """Trains up to `steps`, or until interrupted; either way the run can resume from where it stopped.

        Raises TrainingError or collect.EnvError if it cannot; OSError if a file cannot be written.
        """
        behind = False  # updates lost with a checkpoint are due
        with process.Interrupt() as interrupt, self.saving_before_errors():
            while True:
                if not self.collector.under_way:
                    if self.is_due("eval") and not self.evaluate(interrupt):
                        break
                    self.collector.act(self.agent)
                if not self.learn(interrupt):
                    break
                redone, behind = behind, self.updates < self.updates_due()
                finished = self.env_step >= self.config.steps and not behind
                if finished and self.is_due("eval") and not self.evaluate(interrupt):
                    break
                if self.is_due("log") or redone or behind:
                    self.log()
                evaluated = self.done_at["eval"] == self.env_step > self.done_at["checkpoint"]
                if self.is_due("checkpoint") or behind or evaluated or finished:
                    self.save()
                if finished:
                    return
                if behind:
                    continue
                summaries = self.collector.receive(interrupt)
                if summaries is None:
                    break
                self.log_episodes(summaries)
            self.save()
            logs.log_line(f"stopped at step {self.env_step}: the same command resumes from there")

    @contextlib.contextmanager
    def saving_before_errors(self) -> Iterator[None]:
        """Saves a checkpoint before the error of an env ends the loop."""
        try:
            yield
        except collect.EnvError:
            self.save()
            logs.log_line(f"an env failed: saved a checkpoint of step {self.env_step}")
            raise

    def is_due(self, what: str) -> bool:
        """Whether the next `what` is due, by the environment steps since the last one or at the end of the run."""
        every, done_at = self.config[f"{what}_every"], self.done_at[what]
        at_end = self.env_step >= self.config.steps and done_at < self.env_step
        return at_end or (bool(every) and self.env_step // every > done_at // every)

    def updates_due(self) -> int:
        return updates_due(self.config, self.collector.step) if self.collector.can_sample else 0

    def learn(self, interrupt: process.Interrupt) -> bool:
        """Does the updates that are due. If any rank is interrupted, it stops between two updates and returns False.

        After a lost checkpoint many are due: it does at most as many as belong to the steps between two checkpoints.
        """
        c = self.config
        steps = max(c.envs, c.checkpoint_every / c.action_repeat)
        most = max(c.pretrain, math.ceil(steps * c.train_ratio / (c.batch_size * c.batch_length)))
        due = min(self.updates_due(), self.updates + most)
        while not distributed.any_rank(interrupt.requested):
            if self.updates >= due:
                return True
            batch = self.batches.next()
            self.batches.prefetch()
            self.metrics.update(self.agent.update(batch))
            self.updates += 1
            self.show_progress()
        return False

    def evaluate(self, interrupt: process.Interrupt) -> bool:
        """Plays `eval_episode_num` episodes with the mean action; logs their mean return, and the first one as a video.

        Likewise on each of `eval_tasks`. If any rank is interrupted, it drops the evaluation and all its effects, and
        returns False. An error of an env drops it too, and raises EnvError in all ranks.
        """
        results, rng, episodes, failure = {}, process.rng_state(), self.evaluator.episodes, None
        try:
            with interrupt.immediate():
                if self.config.eval_episode_num and distributed.is_main():
                    results = self.evaluator.play(self.agent, self.env_step)
        except process.Interrupted:
            pass
        except Exception as error:
            failure = error
        dropped, failed = distributed.any_rank(interrupt.requested), distributed.any_rank(failure is not None)
        if dropped or failed:
            process.set_rng_state(rng)
            self.evaluator.episodes = episodes
            if not dropped:
                raise collect.EnvError("an evaluation failed") from failure
            return False
        self.done_at["eval"] = self.env_step
        self.log_evaluation(results)
        return True

    def predict_video(self, sequences: int = 4) -> np.ndarray:
        """Frames of `WorldModel.video_pred` for some of the replay; draws from its own generators."""
        c, seed = self.config, (self.config.seed, STREAMS["video_pred"], self.env_step)
        replay = self.collector.replay
        segments = replay.draw(np.random.default_rng(seed), 8 * sequences, c.batch_length)
        segments.sort(key=len)  # few seams between episodes
        batch = {k: torch.from_numpy(v).to(self.device) for k, v in replay.gather(segments[:sequences]).items()}
        with process.own_randomness(self.device, *seed):
            return self.agent.world_model.video_pred(batch).cpu().numpy()

    # Logs

    def log_episodes(self, summaries: list[dict[str, float]]) -> None:
        for summary in summaries:
            self.last_return = float(summary["train_return"])
            if self.logger is not None:
                self.logger.scalars(summary)
                self.logger.write(self.env_step)
        self.show_progress()

    def log_evaluation(self, results: dict[str, tuple[Scores, list[np.ndarray]]]) -> None:
        if self.logger is None or not results:
            return
        for task, (scores, videos) in results.items():
            suffix, means = f"/{task}" if task else "", evaluate.summary(scores)
            self.logger.scalars({f"eval_{k}{suffix}": v for k, v in means.items()})
            if videos:  # an env that cannot be rendered has none
                self.logger.video(f"eval_policy{suffix}", videos[0])
            logs.log_line(
                f"step {self.env_step}: eval_return{suffix} {means['return']:.1f} ± {means['return_std']:.1f} "
                f"({means['episodes']} episodes)"
            )
        c = self.config
        if (c.probe_decoder or c.video_pred_log) and sees_images(c):
            self.logger.video("video_pred", self.predict_video())
        self.logger.write(self.env_step)

    def log(self) -> None:
        """Writes the means of the metrics since the last call. Raises TrainingError if they show divergence."""
        self.done_at["log"] = self.env_step
        values = self.average(self.metrics.result())
        replay_steps = sum(distributed.all_gather(self.collector.replay.steps))
        if self.logger is not None:
            self.logger.scalars({**values, "update_count": self.updates, "replay_steps": replay_steps})
            self.logger.write(self.env_step, fps=True, updates=self.updates)
            self.progress.report({name: values[name] for name in CONSOLE if name in values})
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
            raise TrainingError(
                f"training has diverged: {name} is {value:.3g} at step {self.env_step}, {problem}; "
                f"the last checkpoint in {self.logdir} is of step {self.done_at['checkpoint']}"
            )

    def show_progress(self) -> None:
        if self.progress is not None:
            self.progress.update(self.env_step, self.updates, self.last_return)

    # Checkpoints

    def resume(self) -> None:
        """Starts a new run, or resumes the one in `logdir`: its checkpoint, and every episode finished since."""
        path, state = checkpoint.read(self.logdir, self.agent)
        with checkpoint.our_layout(path):
            own = self.load_state_dict(state) if state is not None else None
        step = self.env_step  # of the checkpoint
        exact, newer = self.collector.restore(exact=own is not None)
        episodes = sum(distributed.all_gather(self.collector.replay.episodes))
        resumed = state is not None or self.env_step > 0
        if distributed.is_main():
            self.logger = logs.Logger(self.logdir, step if state is not None else None, self.lines)
            self.logger.settings(self.config.flat(), self.env_step)
            self.progress = logs.Progress(self.config.steps, self.env_step, self.updates)
        self.log_again(newer, step)
        if resumed:
            lost = f", {self.env_step - step} of them newer than the checkpoint" if not exact else ""
            logs.log_line(f"resumed at step {self.env_step} with {episodes} episodes{lost}")
            owed = self.updates_due() - self.updates
            if not exact and owed > 0:
                logs.log_line(f"{owed} updates lost with the last checkpoint are due")
            elif self.env_step >= self.config.steps:
                logs.log_line(f"nothing left to train: --steps is {self.config.steps}; a larger number resumes")
        if exact:
            with checkpoint.our_layout(path):
                self.batches.load_state_dict(own["batches"])
            return
        self.collector.act(self.agent)

    def log_again(self, summaries: list[dict[str, float]], step: int) -> None:
        """Logs the episodes that finished after the checkpoint of this step, at the steps of their original lines."""
        if summaries:
            self.last_return = float(summaries[-1]["train_return"])
        if self.logger is None:
            return
        lines = {line.get("train_episodes"): line for line in self.logger.removed}
        for summary in summaries:
            line = lines.get(summary["train_episodes"], {})
            step = min(max(line.pop("step", step), step), self.env_step)
            self.logger.scalars({**summary, **line})
            self.logger.write(step)

    def load_state_dict(self, state: dict) -> dict | None:
        """Restores a checkpoint; returns the state of this rank, None if it is from another number of ranks.

        In that case envs are redistributed, and random numbers differ from there on.
        """
        self.agent.load(state["agent"])
        self.collector.load_state_dict(state, self.device)
        self.updates, self.evaluator.episodes = state["updates"], state["eval_episodes"]
        self.last_return = state["last_return"]
        self.lines = state.get("lines")
        self.done_at = {name: int(state["done_at"][name]) for name in self.done_at}
        ranks = state["ranks"]
        if len(ranks) != distributed.size():
            logs.log_line(f"resumed with another number of processes, {distributed.size()} instead of {len(ranks)}")
            self.collector.rng = self.collector.random_stream("prefill")
            self.batches.rng = self.collector.random_stream("batches")
            self.seed_torch()
            return None
        own = ranks[distributed.rank()]
        self.metrics.load_state_dict(own["metrics"])
        self.batches.rng.bit_generator.state = own["batches"]["rng"]
        process.set_rng_state(own["rng"], prefill=self.collector.rng)
        return own

    def save(self) -> None:
        """Writes `latest.pt` atomically; the one before becomes `previous.pt`.

        Raises TrainingError, and writes nothing, if training has diverged.
        """
        self.check_losses(self.average(self.metrics.means()))
        agent = self.agent.state()
        broken = checkpoint.find_nonfinite(agent)
        if broken:
            raise TrainingError(
                f"training has diverged: {broken} is not finite at step {self.env_step}; "
                f"the last checkpoint in {self.logdir} is of step {self.done_at['checkpoint']}"
            )
        done_at = {**self.done_at, "checkpoint": self.env_step}
        own = {
            "batches": self.batches.state_dict(),
            "metrics": self.metrics.state_dict(),
            "rng": process.rng_state(prefill=self.collector.rng),
        }
        state = {**self.collector.state_dict(), "ranks": distributed.all_gather(own), "agent": agent}
        if distributed.is_main():
            state |= {"updates": self.updates, "eval_episodes": self.evaluator.episodes}
            state |= {"last_return": self.last_return, "done_at": done_at, "lines": self.logger.lines}
            checkpoint.save_checkpoint(self.logdir / checkpoint.LATEST, state, self.logdir / checkpoint.PREVIOUS)
        self.done_at = done_at

    def close(self) -> None:
        for part in (self.collector.envs, self.evaluator, self.batches, self.logger, self.progress):
            if part is not None:
                part.close()


# The command line


def check_settings(config: Config) -> None:
    """Raises ValueError, one line, for settings that cannot work together or on this machine."""
    check_config(config)
    process.pick_device(config.device)
    envs.parse(config.task)  # raises for an unknown task


@contextlib.contextmanager
def open_logdir(logdir: Path) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes out of it. Raises ValueError if that is impossible."""
    with contextlib.ExitStack() as stack:
        if distributed.is_main():
            try:
                logdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(process.lock_folder(logdir))
            except OSError as error:
                raise ValueError(
                    f"--logdir {logdir}: {error.strerror}; expected a folder that can be made and written"
                ) from None
            for path in (logdir / "config.yaml", logdir / "metrics.jsonl"):
                if path.exists() and not path.is_file():
                    raise ValueError(f"{path} is not a regular file: move it away, or use another --logdir")
        yield


def run_command(argv: list[str]) -> int:
    """Trains or evaluates, as the command line asks; returns the exit status."""
    config, action = load_config(argv, extra=ACTIONS)
    logdir = Path(config.logdir).expanduser()
    errors = (ValueError, OSError, ImportError, WorkerDied)
    with contextlib.ExitStack() as stack:
        try:
            with distributed.together(*errors):
                if action.eval_only:
                    if distributed.size() > 1:
                        raise ValueError("--eval_only evaluates in one process: start it with python, not torchrun")
                    config = evaluate.run_config(argv, logdir)
                    check_settings(config)
                    evaluate.evaluate_run(
                        make_agent, config, logdir, action.episodes, action.video, action.probe_state
                    )
                    return 0
                if action.episodes or action.video or action.probe_state:
                    raise ValueError("--episodes, --video and --probe_state belong to --eval_only")
                check_settings(config)
                stack.enter_context(open_logdir(logdir))
                check_resume(config, logdir)
                trainer = stack.enter_context(contextlib.closing(Trainer(config, logdir)))
            distributed.set_device(trainer.device)
            distributed.broadcast(trainer.agent.state_dict().values())
            with distributed.together(*errors):
                if config.from_checkpoint and not (logdir / checkpoint.LATEST).exists():
                    for line in import_checkpoint(trainer.agent, config.from_checkpoint):
                        logs.log_line(f"--from_checkpoint: {line}")
                trainer.resume()
                if distributed.is_main():
                    save_config(config, logdir / "config.yaml")
        except errors as error:
            nameless = isinstance(error, OSError) and error.errno and not error.filename  # of a write
            return complain(f"{error} (--logdir {logdir})" if nameless else error, 2)
        for line in filter(None, [*TUNED, process.tune_matmul(trainer.device), trainer.backend.note]):
            logs.log_line(line)
        try:
            trainer.train()
        except TrainingError as error:
            return complain(error, 1)
        except collect.EnvError as error:
            if not isinstance(error.__cause__, WorkerDied):
                raise  # with the traceback of the env
            return complain(f"{error.__cause__}; the same command resumes from step {trainer.env_step}", 1)
        except OSError as error:  # a full disk, or a deleted folder
            step = trainer.done_at["checkpoint"]
            problem = f"{error.strerror or error} ({error.filename or logdir})"
            return complain(f"{problem}; the same command resumes from the last checkpoint, of step {step}", 1)
    return 0


def complain(error: Exception | str, status: int) -> int:
    """Prints a line about an error, once, and returns the exit status."""
    if distributed.is_main():
        print(f"dreamer.py: {error}", file=sys.stderr)
    return status


def main(argv: list[str]) -> int:
    distributed.start()
    try:
        status = run_command(argv)
    except SystemExit as end:  # --help, or unknown flags
        status = end.code
    distributed.stop()
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the loop, or a second one within it
        sys.exit(130)
