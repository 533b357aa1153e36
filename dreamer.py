"""HRSSM from the command line: `python dreamer.py --configs dmc_vision --task dmc_walker_stand --logdir ./log`.

This file holds the agent (`Dreamer`: act, update), the training loop (`train`), and the command line. `--help` lists
every setting. A run is a folder: the same command with the same --logdir resumes it from its checkpoint; `--eval_only`
evaluates it. `torchrun --nproc_per_node N dreamer.py ...` trains on N GPUs (run/distributed.py).
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from run import distributed
from run.config import (
    ACTIONS,
    Config,
    check_config,
    check_images,
    check_resume,
    load_config,
    run_settings,
    save_config,
    unread_flags,
)

if __name__ == "__main__":
    if not distributed.launched():
        load_config(sys.argv[1:], extra=ACTIONS)  # --help and mistakes end here: importing torch takes seconds
    from run.process import tune_allocator

    tune_allocator()  # must come before torch, too

import torch
from torch import Tensor, nn

import accel
import envs
import exploration
import models
import networks
from envs.parallel import EnvGroup, WorkerDied
from run import checkpoint, collect, evaluate, runtime
from run.logs import check_loggers, first_line, log
from run.process import Interrupt, interrupt_quietly, open_logdir
from run.public import import_checkpoint
from run.trainer import Trainer, TrainingError


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
        self.to(runtime.pick_device(config.device))

    @property
    def device(self) -> torch.device:
        return self.behavior.return_ema.device

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
        if state is None:
            state = self.initial_state(len(obs["is_first"]))
        state = {k: state[k] for k in (*self.world_model.dynamics.carried, "action")}
        state = self.act_step(obs, state, training, explore)
        return state["action"], state

    def initial_state(self, n: int) -> dict[str, Tensor]:
        """The state of `act` before the first step of N envs, (N, ...)."""
        initial = self.world_model.dynamics.initial(self.device)
        state = {k: initial[k].expand(n, *initial[k].shape[1:]) for k in self.world_model.dynamics.carried}
        return {**state, "action": torch.zeros(n, self.actions, device=self.device)}

    def act_step(
        self, obs: dict[str, Tensor], state: dict[str, Tensor], training: bool, explore: bool
    ) -> dict[str, Tensor]:
        """The state after one observation, and the `action` that it asks for; see `act`."""
        model, c = self.world_model, self.config
        data = models.preprocess({k: v.unsqueeze(1) for k, v in obs.items()})
        sample = training or not c.eval_state_mean
        post, _ = model.dynamics.observe(model.encoder(data), state["action"][:, None], data["is_first"], state, sample)
        post = {k: v[:, 0] for k, v in post.items()}
        feat = model.dynamics.feat(post)
        policy = self.explorer.policy(feat) if explore else self.behavior.actor(feat)
        action = policy.sample() if training else policy.mode()
        action = exploration.add_noise(action, c.expl_amount if training else c.eval_noise, c.actor_dist == "onehot")
        return {**post, "action": action}

    def update(self, batch: dict[str, Tensor]) -> models.Metrics:
        """One update of world model, actor and critic on replay rows (B, T, ...); metrics stay on the device."""
        start, embed, metrics = self.world_model.update(batch)
        metrics |= self.behavior.update(self.world_model, start)
        metrics |= self.explorer.update(self.world_model, start, embed, batch)
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
        updates = [int(behavior.updates) for behavior in self.behaviors]
        return {"agent": self.state_dict(), "optimizers": optimizers, "behavior_updates": updates}

    def load(self, state: dict) -> None:
        self.load_state_dict(state["agent"])
        for name, opt in self.optimizers().items():
            groups = opt.state_dict()["param_groups"]  # the config may have changed since the checkpoint
            opt.load_state_dict({**state["optimizers"][name], "param_groups": groups})
            moments = [(param, found[key]) for param, found in opt.state.items() for key in ("exp_avg", "exp_avg_sq")]
            if any(moment.shape != param.shape for param, moment in moments):
                raise ValueError(f"optimizer {name} has moments of other shapes than its parameters")
        for behavior, updates in zip(self.behaviors, state["behavior_updates"], strict=True):
            behavior.updates.fill_(updates)


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
    check_images(config, bool(cnn_keys))  # images may have other names than `image`
    shapes = {k: shapes[k] for k in cnn_keys + mlp_keys}
    actions = space.n if discrete else space.shape[0]
    reward_to_simsr = models.reward_to_simsr(envs.reward_range(config.task), config.action_repeat)
    return Dreamer(config, shapes, actions, reward_to_simsr)


def build(config: Config, group: EnvGroup) -> Dreamer:
    """The agent for these envs, on the fastest path that works."""
    agent = make_agent(config, group)
    backend = accel.choose_backend(config.compile, agent.device, distributed.size(), config.precision)
    accel.install(agent, backend, log.info)
    if backend.note:
        log.info(backend.note)
    return agent


# The loop


def train(trainer: Trainer) -> None:
    """Trains up to `steps` environment steps.

    A checkpoint is saved after every `checkpoint_every` steps, after an evaluation, after each part of updates that are
    redone, at the end, and before an interrupt or an error of an env ends the loop (`Trainer.resumable`).

    Raises TrainingError or collect.EnvError if training cannot continue; OSError if a file cannot be written.
    """
    t, collector = trainer, trainer.collector
    redoing = False  # updates lost with a checkpoint are due
    with t.resumable() as interrupt:
        while True:
            if not collector.step_pending:
                if t.is_due("eval"):
                    t.evaluate(interrupt)
                collector.act(t.agent)
            update_agent(t, interrupt)
            redone, redoing = redoing, t.updates < t.updates_due()
            finished = t.env_step >= t.config.steps and not redoing
            if finished and t.is_due("eval"):
                t.evaluate(interrupt)
            if redone or redoing or t.is_due("log"):
                t.log()
            if redoing or finished or t.checkpoint_is_due():
                t.save()
            if finished:
                return
            if not redoing:
                t.log_episodes(collector.receive(interrupt))


def update_agent(trainer: Trainer, interrupt: Interrupt) -> None:
    """Does the updates that are due, at most `max_updates`; raises Interrupted between two of them."""
    t = trainer
    due = min(t.updates_due(), t.updates + t.max_updates)
    interrupt.check()
    while t.updates < due:
        batch = t.batches.next()
        t.batches.prefetch()
        t.metrics.update(t.agent.update(batch))
        t.updates += 1
        t.show_progress()
        interrupt.check()


# The command line

USER_ERRORS = (ValueError, OSError, ImportError, WorkerDied)


class CommandError(Exception):
    """Ends the command with one line and an exit status.

    alone: this rank ends, whatever the others do, which may be waiting for it.
    """

    def __init__(self, message: object, status: int, alone: bool = False):
        super().__init__(str(message))
        self.status, self.alone = status, alone and distributed.size() > 1


def check_settings(config: Config) -> None:
    """Raises ValueError, one line, for settings that cannot work together or on this machine."""
    check_config(config)
    check_loggers(config.loggers)
    runtime.pick_device(config.device)
    envs.parse(config.task)  # raises for an unknown task


@contextlib.contextmanager
def starting(logdir: Path) -> Iterator[None]:
    """Within it, an error that a user can cause ends the command in all ranks, with one line and status 2."""
    try:
        with distributed.together(*USER_ERRORS):
            yield
    except USER_ERRORS as error:
        nameless = isinstance(error, OSError) and error.errno and not error.filename  # a failed write names no file
        raise CommandError(f"{error} (--logdir {logdir})" if nameless else error, 2) from error


@contextlib.contextmanager
def training(trainer: Trainer) -> Iterator[None]:
    """Within it, an error that ends training ends the command with one line that tells where the run resumes."""
    try:
        yield
    except TrainingError as error:
        raise CommandError(error, 1) from error
    except collect.EnvError as error:
        cause = error.__cause__ or error  # none if the env is another process's
        if error.__cause__ and not isinstance(cause, WorkerDied):
            traceback.print_exception(cause)
        raise CommandError(f"{first_line(cause)}; the same command resumes from step {trainer.env_step}", 1) from error
    except OSError as error:  # a full disk, or a deleted folder
        problem = error.strerror or str(error)
        if str(trainer.logdir) not in problem:
            problem += f" ({error.filename or trainer.logdir})"
        step = trainer.done_at["checkpoint"]
        message = f"{problem}; the same command resumes from the last checkpoint, of step {step}"
        raise CommandError(message, 1, alone=True) from error
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        message = f"another process has ended, and so does process {distributed.rank()}"
        raise CommandError(message, 1, alone=True) from error


def train_run(config: Config, logdir: Path) -> None:
    """Starts or resumes the run in `logdir`, and trains it. Raises CommandError."""
    with contextlib.ExitStack() as stack:
        with starting(logdir):
            check_settings(config)
            imports = config.from_checkpoint and not (logdir / checkpoint.LATEST).exists()
            if imports and not os.path.isfile(config.from_checkpoint):
                raise ValueError(f"--from_checkpoint {config.from_checkpoint}: there is no such file")
            evaluate.eval_tasks(config)  # raises for unknown suites and missing files
            stack.enter_context(open_logdir(logdir))
            if note := check_resume(config, logdir):
                log.info(note)
            runtime.set_up(config)
            group = collect.make_train_envs(config)
            trainer = stack.enter_context(contextlib.closing(Trainer(config, logdir, build(config, group), group)))
        distributed.set_device(trainer.device)
        distributed.broadcast(trainer.agent.state_dict().values())
        with starting(logdir):
            if imports:
                for line in import_checkpoint(trainer.agent, config.from_checkpoint):
                    log.info(f"--from_checkpoint: {line}")
            if distributed.is_main():
                trainer.log_needs()
            trainer.resume()
            if distributed.is_main():
                save_config(config, logdir / "config.yaml")
        with training(trainer):
            train(trainer)


def evaluate_run(argv: list[str], logdir: Path, action: Config) -> None:
    """`--eval_only`. Raises CommandError."""
    with starting(logdir):
        if distributed.size() > 1:
            raise ValueError("--eval_only evaluates in one process: start it with python, not torchrun")
        config = evaluate.run_config(argv, logdir)
        if config.eval_tasks and config.eval_tasks != run_settings(logdir / "config.yaml").eval_tasks:
            raise ValueError("--eval_tasks belongs to training: --eval_only plays --task, or --eval_suite")
        check_settings(config)
        tasks = evaluate.find_tasks(config, action)
        config = config.replace(task=tasks[0])
        runtime.set_up(config)
        with evaluate.make_run_envs(config, action) as group:
            try:
                evaluate.evaluate_run(build(config, group), group, logdir, action, tasks)
            except evaluate.EvaluationError as error:
                raise CommandError(error, 1) from error


def own_task(logdir: Path) -> str:
    """The task of the run in `logdir`, for a command that names none. Raises CommandError if there is no run."""
    with starting(logdir):
        if not (logdir / "config.yaml").exists():
            raise ValueError("--task is missing: name one, such as --task dmc_walker_walk; README.md lists them")
        return run_settings(logdir / "config.yaml").task


def run_command(argv: list[str]) -> None:
    """Trains or evaluates, as the command line asks. Raises CommandError, or SystemExit for --help and wrong flags."""
    config, action = load_config(argv, extra=ACTIONS)
    try:
        logdir = Path(config.logdir).expanduser()
    except RuntimeError as error:  # ~name, where nobody is called so
        raise CommandError(f"--logdir {config.logdir}: {error}", 2) from None
    if action.eval_only:
        evaluate_run(argv, logdir, action)
    elif action.eval_suite or action.episodes or action.video or action.probe_state:
        raise CommandError("--eval_suite, --episodes, --video and --probe_state belong to --eval_only", 2)
    else:
        if not config.task:
            config, _ = load_config([*argv, "--task", own_task(logdir)], extra=ACTIONS)
        if note := unread_flags(config, argv):
            log.info(note)
        train_run(config, logdir)


def main(argv: list[str]) -> int:
    """Runs a command line; returns its exit status."""
    distributed.start()
    status = 0
    try:
        run_command(argv)
    except SystemExit as end:
        status = end.code
    except CommandError as error:
        if distributed.is_main() or error.alone:
            print(f"dreamer.py: {error}", file=sys.stderr)
        if error.alone:  # waiting for the others could take days: they notice its end
            return error.status
        status = error.status
    distributed.stop()
    return status


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt_quietly)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # Ctrl-C before the loop, or a second one within it
        sys.exit(130)
