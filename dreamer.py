"""HRSSM from the command line: `python dreamer.py --configs dmc_vision --task dmc_walker_stand --logdir ./log`.

This file holds the agent (`Dreamer`: act, update), the training and evaluation loop, and what a run keeps on disk.
`--help` lists every setting. A run is a folder: the same command with the same --logdir goes on from its checkpoint;
`--eval_only` evaluates it. `torchrun --nproc_per_node N dreamer.py ...` trains on N GPUs (distributed.py).
"""

import contextlib
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import tools

TUNED = [tools.tune_allocator()] if __name__ == "__main__" else []  # has to come before torch

import numpy as np
import torch
from torch import Tensor, nn

import distributed
import envs
import exploration
import fast
import models
import networks
from envs.parallel import EnvGroup, Transition
from replay import Prefetcher, Replay

# Settings that say how long, how often or where, and not what is computed: they may change when a run goes on.
FREE_SETTINGS = {
    "allow_config_change", "assets", "checkpoint_every", "compile", "configs", "device", "ds_resource_path",
    "eval_episode_num", "eval_every", "eval_tasks", "from_checkpoint", "log_every", "logdir", "parallel",
    "replay_dir_limit", "scan_path", "steps", "video_pred_log",
}  # fmt: skip

# Flags that are no settings of a run.
ACTIONS = {
    "eval_only": (False, "evaluate the checkpoint in --logdir, on --task if that is given, and end"),
    "episodes": (0, "of --eval_only; 0 for eval_episode_num"),
    "video": (False, "with --eval_only: write films of the episodes to logdir/videos"),
}


class Dreamer(nn.Module):
    """The agent: a world model, a behaviour learned in its imagination, and perhaps one that explores.

    Args:
        shapes: shape of each observation, by name.
        actions: number of action dims.
        reward_to_simsr: factor that brings the task's rewards into [0, 2] for the bisimulation loss.
    """

    def __init__(self, config: tools.Config, shapes: dict, actions: int, reward_to_simsr: float = 1.0):
        super().__init__()
        self.config, self.actions, self.keys = config, actions, list(shapes)
        self.world_model = models.WorldModel(shapes, actions, config, reward_to_simsr)
        self.behavior = models.ImagBehavior(config, self.world_model, actions)
        self.explorer = exploration.make(config, self.world_model, actions)
        self.behaviors = (self.behavior, *self.explorer.behaviors)
        self.to(tools.pick_device(config.device))
        self.run_by(fast.Execution())

    @property
    def device(self) -> torch.device:
        return self.behavior.return_ema.device

    def run_by(self, execution: fast.Execution, say: Callable[[str], None] | None = None) -> None:
        """Takes an execution for updates and acting from here on; `say` is told when they are ready."""
        self.runner = functools.partial(fast.Runner, execution=execution, say=say)
        self.learn = self.runner(self._learn, name="update")
        self.actors: dict[tuple, fast.Runner] = {}  # by what decides about the computation

    @torch.no_grad()
    def act(
        self, obs: dict[str, Tensor], state: dict[str, Tensor] | None, training: bool, explore: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Acts on one observation of each env, with the online encoder and dynamics on the whole image.

        Args:
            obs: (N, ...) on the device, `is_first` among them.
            state: what the last call returned, None before the first.
            training: sample the action; else take its mean.
            explore: act by the exploring behaviour.

        Returns:
            Actions (N, A), not clipped, and the state for the next call: that of the dynamics and the action.
        """
        n = len(obs["is_first"])
        if state is None:
            initial = self.world_model.dynamics.initial(obs["is_first"])
            state = {k: v.expand(n, *v.shape[1:]) for k, v in initial.items()}
            state["action"] = torch.zeros(n, self.actions, device=self.device)
        key = (n, training, explore)
        if key not in self.actors:
            function = functools.partial(self._act, training=training, explore=explore)
            self.actors[key] = self.runner(function, name="acting")
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
        found.update(self.explorer.optimizers())
        return {name: opt.adam for name, opt in found.items()}

    def state(self) -> dict:
        """All that learning has changed, for a checkpoint."""
        optimizers = {name: opt.state_dict() for name, opt in self.optimizers().items()}
        updates = [behavior.updates for behavior in self.behaviors]
        return {"agent": self.state_dict(), "optimizers": optimizers, "behavior_updates": updates}

    def load(self, state: dict) -> None:
        self.load_state_dict(state["agent"])
        for name, opt in self.optimizers().items():
            opt.load_state_dict(state["optimizers"][name])
        for behavior, updates in zip(self.behaviors, state["behavior_updates"], strict=True):
            behavior.updates = updates
        self.learn.reset()  # the optimisers' tensors are others


# The public implementation's names of parameters, as regular expressions, and ours.
PUBLIC_NAMES = (
    (r"^_wm\.MBR\.target_encoder\.", "world_model.target_encoder."),
    (r"^_wm\.target_dynamics\.", "world_model.target_dynamics."),
    (r"^_wm\.(MBR\.)?encoder\.", "world_model.encoder."),
    (r"^_wm\.", "world_model."),
    (r"^_task_behavior\.", "behavior."),
    (r"\._slow_value\.", ".slow_value."),
    (r"\b(reward_ema|ema_vals)$", "return_ema"),
    (r"\._cnn\.layers\.(\d+)\.norm\.", lambda m: f".cnn.norms.{int(m[1]) // 3}."),
    (r"\._cnn\.layers\.(\d+)\.", lambda m: f".cnn.convs.{int(m[1]) // 3}."),
    (r"\._mlp\.", ".mlp."),
    (r"\._pre_layers\.", ".layers."),
    (r"dynamics\.W$", "dynamics.initial_deter"),
    (r"\._cell\._layer\.", ".cell."),
    (r"\._cell\._norm\.", ".cell_norm."),
    (r"\._ims_stat_layer\.", ".prior_out."),
    (r"\._obs_stat_layer\.", ".post_out."),
    (r"\._cont_feat_layers\.0\.", ".projection."),
    (r"\._inp_layers\.", ".input."),
    (r"\._img_out_layers\.", ".prior_layer."),
    (r"\._obs_out_layers\.", ".post_layer."),
    (r"\.(input|prior_layer|post_layer)\.([01])\.", lambda m: f".{m[1]}.{'norm' if int(m[2]) else 'linear'}."),
    (r"\.layers\.(\d+)\.", lambda m: f".layers.{int(m[1]) // 3}.{'norm' if int(m[1]) % 3 else 'linear'}."),
    (r"\.(mean_layer|_dist_layer)\.", ".out."),
)


def public_name(name: str) -> str:
    """Our name of a parameter that the public HRSSM code calls `name`, in a compiled run or not."""
    name = name.replace("_orig_mod.", "")
    for pattern, ours in PUBLIC_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def import_checkpoint(agent: Dreamer, path: Path | str) -> list[str]:
    """Loads what fits of a checkpoint of the public HRSSM code; returns a line for each tensor that did not.

    Raises ValueError if nothing fits.
    """
    theirs = tools.load_checkpoint(Path(path))
    theirs = theirs.get("agent_state_dict", theirs)
    ours = agent.state_dict()
    found, report = {}, []
    for name, value in theirs.items():
        # the behaviours of the public code hold the world model a second time
        if not isinstance(value, Tensor) or re.match(r"_task_behavior\.(_orig_mod\.)?_world_model\.|_expl_", name):
            continue
        key = public_name(name)
        if key not in ours:
            report.append(f"{name} {tuple(value.shape)}: there is no such tensor here")
        elif ours[key].shape != value.shape:
            report.append(f"{name} {tuple(value.shape)}: {key} has shape {tuple(ours[key].shape)}")
        else:
            found[key] = value
    missing = [k for k in ours if k not in found and k != "behavior.return_ema" and not k.startswith("explorer.")]
    named = " ".join(report)
    report += [f"{k} {tuple(ours[k].shape)}: not in the checkpoint" for k in missing if k not in named]
    if not found:
        raise ValueError(f"--from_checkpoint {path}: none of its {len(theirs)} entries is a tensor of HRSSM")
    agent.load_state_dict(found, strict=False)
    return report


# Checks


def check_config(config: tools.Config) -> None:
    """Raises ValueError, one line, for settings that cannot work together."""
    c = config
    if sees_images(c):
        if c.size[0] != c.size[1]:
            raise ValueError(f"--size {c.size[0]} {c.size[1]}: the encoder takes square images")
        networks.count_stages(c.size[0], c.encoder.minres)
        if c.mask_ratio and c.batch_length % c.block_size:
            raise ValueError(
                f"--batch_length {c.batch_length} is no multiple of --block_size {c.block_size}, "
                "the steps that a mask stays"
            )
        if c.patch_size > c.size[0]:
            raise ValueError(f"--patch_size {c.patch_size} is larger than the image, --size {c.size[0]}")
    for key in (
        "batch_size", "batch_length", "envs", "action_repeat", "imag_horizon", "dataset_size", "block_size",
        "patch_size", "dyn_stoch", "dyn_deter", "dyn_hidden", "units", "log_every", "checkpoint_every",
    ):  # fmt: skip
        if c[key] < 1:
            raise ValueError(f"--{key} is {c[key]}: expected 1 or more")
    for key in ("batch_size", "envs", "imag_starts"):
        if c[key] % distributed.size():
            raise ValueError(
                f"--{key} is {c[key]}, shared out to {distributed.size()} processes: expected a multiple of that"
            )
    for key in ("batch_length", "imag_horizon"):
        if c[key] < 2:
            raise ValueError(f"--{key} is {c[key]}: expected 2 or more")
    for key in (
        "mask_ratio", "aug_prob", "unimix_ratio", "action_unimix_ratio", "encoder_tau", "dynamics_tau",
        "slow_target_fraction", "discount", "discount_lambda", "simsr_discount", "imag_gradient_mix",
    ):  # fmt: skip
        if not 0 <= c[key] <= 1:
            raise ValueError(f"--{key} is {c[key]}: expected a number from 0 to 1")
    choices = {
        "precision": (16, 32),
        "imag_gradient": models.ImagBehavior.GRADIENTS,
        "actor_dist": networks.Actor.DISTS,
        "expl_behavior": exploration.BEHAVIORS,
        "opt": ("adam",),
        "dyn_cell": ("gru_layer_norm",),
        "initial": ("learned", "zeros"),
        "reward_head": ("symlog_disc", "normal"),
        "value_head": ("symlog_disc", "normal"),
    }
    for key, allowed in choices.items():
        if c[key] not in allowed:
            raise ValueError(f"--{key} is {c[key]}: expected one of {', '.join(map(str, allowed))}")
    for name in c.augmentation:
        if name not in models.AUGMENTATIONS:
            raise ValueError(f"--augmentation {name}: expected names of {', '.join(models.AUGMENTATIONS)}")
    for name in c.grad_heads:
        if name not in ("decoder", "reward", "cont"):
            raise ValueError(f"--grad_heads {name}: expected names of decoder, reward, cont")
    if c.video_pred_log and not c.probe_decoder and "decoder" not in c.grad_heads:
        raise ValueError("--video_pred_log: there is no decoder; --probe_decoder True trains one")
    if c.batch_length <= 5 and (c.probe_decoder or c.video_pred_log):
        raise ValueError(f"--batch_length is {c.batch_length}: a decoder's videos need more than 5 steps")
    if c.probe_decoder and "decoder" in c.grad_heads:
        raise ValueError("--probe_decoder: decoder is among --grad_heads, and trains the features already")
    for key in ("seed", "eval_envs", "imag_starts"):
        if c[key] < 0:
            raise ValueError(f"--{key} is {c[key]}: expected 0 or more")
    if c.train_ratio <= 0:
        raise ValueError(f"--train_ratio is {c.train_ratio}: expected more than 0")
    if c.from_checkpoint and not Path(c.from_checkpoint).is_file():
        raise ValueError(f"--from_checkpoint {c.from_checkpoint}: there is no such file")
    tools.pick_device(c.device)
    envs.reward_to_simsr(c.task, c.action_repeat)  # knows all tasks


def check_resume(config: tools.Config, logdir: Path) -> None:
    """Raises ValueError if the run in `logdir` had other settings that matter."""
    path = logdir / "config.yaml"
    if not path.exists() or config.allow_config_change:
        return
    # a setting that is younger than the run had its default
    old, new = {**tools.load_config([]).flat(), **tools.read_config(path).flat()}, config.flat()
    changed = [
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_SETTINGS
    ]
    if changed:
        raise ValueError(
            f"--logdir {logdir} holds a run with other settings ({'; '.join(changed)}): "
            "take another --logdir, or --allow_config_change True to go on with the new ones"
        )


# Environments


def make_envs(config: tools.Config, mode: str, count: int, image: bool, first: int = 0) -> EnvGroup:
    """`count` envs of the task, numbered from `first`; each number has a seed in each mode (train, eval, eval_only)."""
    stream = {"train": 0, "eval": 1, "eval_only": 4}[mode]  # 2 and 3 are prefill and replay
    constructors = [
        functools.partial(
            envs.make,
            config.task,
            seed=int(np.random.SeedSequence([config.seed, stream, index]).generate_state(1)[0]),
            size=tuple(config.size),
            action_repeat=config.action_repeat,
            time_limit=config.time_limit,
            image=image,
            **{key: config[key] for key in envs.SETTINGS},
        )
        for index in range(first, first + count)
    ]
    return EnvGroup(constructors, parallel=config.parallel and count * distributed.size() > 1)


def count_eval_envs(config: tools.Config, episodes: int) -> int:
    """How many envs play an evaluation of so many episodes together."""
    return min(config.eval_envs or config.envs, episodes)


def check_eval_task(config: tools.Config, task: str, trained: EnvGroup, keys: list[str]) -> None:
    """Raises an error that names `eval_tasks` if `task` cannot be made, or acted on by an agent of other envs."""
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


def sees_images(config: tools.Config) -> bool:
    return bool(re.match(config.encoder.cnn_keys, "image"))


def make_agent(config: tools.Config, group: EnvGroup) -> Dreamer:
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
    return Dreamer(config, shapes, actions, envs.reward_to_simsr(config.task, config.action_repeat))


# The run


class Run:
    """A training run: envs, replay, agent, logs, and the counters that a checkpoint keeps.

    Of several ranks (distributed.py) each has its share of envs, replay and batch. They go through the loop in step;
    rank 0 leads: it logs, evaluates, and saves what all need to go on. Counters are those of all ranks together.

    The envs step while the learner learns: an action is sent, the updates that are due are done, then the envs'
    answers are received. A checkpoint is made with a step under way; it holds the actions of the unfinished episodes,
    and whoever goes on from it steps them again from the episodes' seeds.
    """

    def __init__(self, config: tools.Config, logdir: Path):
        self.config, self.logdir = config, logdir
        self.device = tools.pick_device(config.device)
        tools.seed_everything(config.seed, config.deterministic_run)
        self.leads, ranks = distributed.rank() == 0, distributed.size()
        self.repeat = config.action_repeat
        self.checkpoint_path = logdir / "latest.pt"

        count = config.envs // ranks
        self.env_ids = range(distributed.rank() * count, (distributed.rank() + 1) * count)  # of the envs of this rank
        self.envs = make_envs(config, "train", count, sees_images(config), self.env_ids.start)
        self.eval_envs: EnvGroup | None = None  # made at the first evaluation
        self.agent = make_agent(config, self.envs)
        self.execution = fast.choose(config.compile, self.device, ranks)
        self.agent.run_by(self.execution, tools.say)
        self.keys, self.actions, self.discrete = self.agent.keys, self.agent.actions, config.actor_dist == "onehot"
        for task in config.eval_tasks:
            check_eval_task(config, task, self.envs, self.keys)

        self.step = 0  # agent steps, over all envs of all ranks
        self.rng = self.stream(2)  # of prefill's actions
        if not self.leads:  # its noise is not that of rank 0, which goes on from the networks' initialisation
            self.seed_torch()
        self.replay = Replay(
            logdir / "train_eps",
            -(-config.dataset_size // ranks),
            -(-config.replay_dir_limit // ranks),
            self.env_ids if ranks > 1 else None,
        )
        self.batches = Prefetcher(
            self.replay,
            self.stream(3),
            config.batch_size // ranks,
            config.batch_length,
            self.device,
        )
        self.metrics = tools.Metrics()
        self.updates = 0
        self.first_update: int | None = None  # agent steps at the first update
        self.eval_episodes = 0  # of each evaluation env, so far
        self.done_at = {"eval": 0, "log": 0, "checkpoint": 0}  # environment steps at the last one of each
        self.policy_state: dict[str, Tensor] | None = None
        self.obs: list[dict] = [{} for _ in range(count)]  # the newest of each env
        self.episode = [0] * count  # index of each env's running episode
        self.sent: list[list[np.ndarray]] = [[] for _ in range(count)]  # its actions so far
        self.returns, self.lengths = np.zeros(count), np.zeros(count, int)
        self.last_return: float | None = None

    @property
    def env_step(self) -> int:
        return self.step * self.repeat

    def stream(self, number: int) -> np.random.Generator:
        """A stream of random numbers of this rank, from this step on."""
        return np.random.default_rng([self.config.seed, number, distributed.rank(), self.step])

    def seed_torch(self) -> None:
        """Lets what torch samples, noise and masks, go on in a stream of this rank."""
        torch.manual_seed(int(self.stream(7).integers(2**63)))

    # Going on from a checkpoint

    def start(self) -> None:
        """Begins a new run, or takes up what `logdir` holds: the checkpoint, and every episode that finished since."""
        state = tools.load_checkpoint(self.checkpoint_path) if self.checkpoint_path.exists() else None
        own = self.load_state(state) if state is not None else None
        exact = own is not None
        self.replay.load()
        # Episodes that finished after the checkpoint: their env goes on with the one after them.
        for env, number in enumerate(self.env_ids):
            last, _ = self.replay.finished.get(number, (-1, 0))
            if last >= self.episode[env]:
                exact = False
                self.episode[env], self.sent[env] = last + 1, []
        exact = all(distributed.gather(exact))
        self.replay.skip(max(distributed.gather(self.replay.total_episodes)) - self.replay.total_episodes)
        steps_before = self.step
        actions = [[{"action": self.to_env(a)} for a in sent] for sent in self.sent]
        histories = self.envs.restore(self.episode, actions)
        # the last answer of an exact resume is still to be received
        ahead = [history[1:-1] if exact else history[1:] for history in histories]
        with self.in_order(sum(transition.done for history in ahead for transition in history)):
            for env, history in enumerate(ahead):
                self.replace_obs(env, histories[env][0], None)
                for t, transition in enumerate(history):
                    self.record(env, transition, self.sent[env][t])
        if not exact:
            # every step that was taken is in the replays now
            self.step = sum(distributed.gather(self.replay.total_steps))
        self.lacks_steps = not all(distributed.gather(self.replay.steps))  # some rank could draw no batch
        episodes = sum(distributed.gather(self.replay.episodes))
        resumed = state is not None or self.step > 0
        if self.leads:
            self.logger = tools.Logger(self.logdir, self.env_step if resumed else None)
            self.logger.settings(self.config, self.env_step)
            self.progress = tools.Progress(self.config.steps, self.env_step)
        if resumed:
            lost = f", {self.step - steps_before} agent steps newer than the checkpoint" if not exact else ""
            tools.say(f"going on at step {self.env_step} with {episodes} episodes{lost}")
            if self.env_step >= self.config.steps:
                tools.say(f"nothing is left to train: --steps is {self.config.steps}; a larger number goes on")
        if exact:
            self.batches.load_state_dict(own["batches"])
            self.waiting = [history[-1] for history in histories]
        else:
            self.waiting = None
            if own is not None:
                self.batches.rng.bit_generator.state = own["batches"]["rng"]
            self.act_and_send()

    def load_state(self, state: dict) -> dict | None:
        """Takes up a checkpoint; returns what it holds of this rank, None if it was of another number of ranks.

        Those deal its envs out anew, and draw other random numbers from there on.
        """
        self.agent.load(state["agent"])
        mine = slice(self.env_ids.start, self.env_ids.stop)
        self.episode = list(state["episode"][mine])
        self.sent = [list(sent.numpy()) for sent in state["sent"][mine]]
        if state["policy"]:
            self.policy_state = {k: v[mine].to(self.device) for k, v in state["policy"].items()}
        # what is counted as the sum over ranks is counted on by one
        self.replay.load_state_dict(state["replay"] if self.leads else {**state["replay"], "total_finished_steps": 0})
        for name in ("step", "updates", "first_update", "eval_episodes", "last_return"):
            setattr(self, name, state[name])
        self.done_at = dict(state["done_at"])
        ranks = state["ranks"]
        if len(ranks) != distributed.size():
            tools.say(f"going on with another number of processes, {distributed.size()} in place of {len(ranks)}")
            self.rng, self.batches.rng = self.stream(2), self.stream(3)
            self.seed_torch()
            return None
        own = ranks[distributed.rank()]
        self.metrics.load_state_dict(own["metrics"])
        tools.set_rng_state(own["rng"], prefill=self.rng)
        return own

    def save(self) -> None:
        """Writes `latest.pt`, whole or not at all."""
        self.done_at["checkpoint"] = self.env_step
        empty = np.zeros((0, self.actions), np.float32)
        sent = [torch.from_numpy(np.array(sent) if sent else empty) for sent in self.sent]
        policy = {k: v.cpu() for k, v in self.policy_state.items()} if self.policy_state else None
        replay = self.replay.state_dict()
        own = {
            "batches": self.batches.state_dict(),
            "metrics": self.metrics.state_dict(),
            "rng": tools.rng_state(prefill=self.rng),
        }
        found = distributed.gather((self.episode, sent, policy, replay["total_finished_steps"], own))
        if not self.leads:
            return
        episodes, sents, policies, finished_steps, ranks = zip(*found, strict=True)
        state = {
            "agent": self.agent.state(),
            # of each env
            "episode": [*itertools.chain(*episodes)],
            "sent": [*itertools.chain(*sents)],
            "policy": {k: torch.cat([one[k] for one in policies]) for k in policy} if policy else None,
            # of each rank
            "ranks": ranks,
            # of all together
            "replay": {**replay, "total_finished_steps": sum(finished_steps)},
            "step": self.step,
            "updates": self.updates,
            "first_update": self.first_update,
            "eval_episodes": self.eval_episodes,
            "last_return": self.last_return,
            "done_at": self.done_at,
        }
        tools.save_checkpoint(self.checkpoint_path, state)

    # Gathering experience

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """An action of the policy as the env takes it."""
        return action if self.discrete else np.clip(action, -1, 1)

    def replace_obs(self, env: int, transition: Transition, action: np.ndarray | None) -> None:
        """Adds a row to the replay and makes its observation the newest of the env; no action begins an episode."""
        obs = transition.obs
        row = {k: obs[k] for k in self.keys}
        row["action"] = np.zeros(self.actions, np.float32) if action is None else action
        row["reward"] = np.float32(transition.reward)
        row["is_first"], row["is_terminal"] = bool(obs["is_first"]), bool(obs["is_terminal"])
        self.replay.add(self.env_ids[env], row, self.episode[env], last=transition.done)
        self.obs[env] = obs

    def record(self, env: int, transition: Transition, action: np.ndarray) -> dict[str, float] | None:
        """Takes in an env's answer to an action. Returns the summary of the episode that it ended, if it did."""
        self.replace_obs(env, transition, action)
        self.returns[env] += transition.reward
        self.lengths[env] += 1
        if not transition.done:
            return None
        summary = {"train_return": self.returns[env], "train_length": self.lengths[env]}
        if "success" in transition.info:
            summary["train_success"] = float(transition.info["success"])
        self.returns[env], self.lengths[env] = 0, 0
        self.episode[env] += 1
        self.sent[env] = []
        self.replace_obs(env, Transition(transition.first, 0.0, False, {}, None), None)
        return summary

    @contextlib.contextmanager
    def in_order(self, finishing: int) -> Iterator[int]:
        """Within it, so many episodes of this rank finish, numbered after those of lower ranks; gives that of all."""
        of_ranks = distributed.gather(finishing)
        self.replay.skip(sum(of_ranks[: distributed.rank()]))
        yield sum(of_ranks)
        self.replay.skip(sum(of_ranks[distributed.rank() + 1 :]))

    def receive(self) -> None:
        """Takes the envs' answers to the actions that were sent."""
        transitions = self.waiting or self.envs.receive()
        self.waiting = None
        self.step += self.config.envs
        self.lacks_steps = False
        summaries = []
        with self.in_order(sum(transition.done for transition in transitions)) as finished:
            for env, transition in enumerate(transitions):
                summary = self.record(env, transition, self.sent[env][-1])
                if summary is not None:
                    summaries.append({**summary, "train_episodes": self.replay.total_episodes})
        if not finished:
            return
        for summary in itertools.chain(*distributed.gather(summaries)):
            self.last_return = float(summary["train_return"])
            if self.leads:
                self.logger.scalars(summary)
                self.logger.write(self.env_step)

    def act_and_send(self) -> None:
        """Acts on the newest observations, randomly during prefill, and sets the envs going."""
        c = self.config
        if self.step < c.prefill:
            action = self.random_action()
        else:
            explore = c.expl_behavior != "greedy" and (not c.expl_until or self.env_step < c.expl_until)
            obs = stack_obs(self.obs, self.keys, self.device)
            action, self.policy_state = self.agent.act(obs, self.policy_state, training=True, explore=explore)
            action = action.cpu().numpy()
        for env, one in enumerate(action):
            self.sent[env].append(one)
        self.envs.send([{"action": self.to_env(one)} for one in action])

    def random_action(self) -> np.ndarray:
        shape = (len(self.env_ids), self.actions)
        if self.discrete:
            return np.eye(self.actions, dtype=np.float32)[self.rng.integers(self.actions, size=shape[0])]
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    # Learning

    def updates_due(self) -> int:
        """Updates that belong to the steps so far: `pretrain` after prefill, then train_ratio / (B·T) for each step."""
        c = self.config
        if self.first_update is None:
            if self.step < max(c.prefill, c.envs):
                return 0
            self.first_update = self.step
        return c.pretrain + int((self.step - self.first_update) * c.train_ratio / (c.batch_size * c.batch_length))

    def learn(self, interrupt: tools.Interrupt) -> bool:
        """Does the updates that are due. An interrupt of any rank ends it between two of them: it returns False."""
        due = 0 if self.lacks_steps else self.updates_due()
        while not distributed.agree(interrupt.requested):
            if self.updates >= due:
                return True
            batch = self.batches.next()
            self.batches.prefetch()
            self.metrics.update(self.agent.update(batch))
            self.updates += 1
            self.show_progress()
        return False

    def evaluate(self) -> None:
        """`eval_episode_num` episodes with the mean action; logs their mean return, and the first one as a video.

        On each of `eval_tasks` likewise, from the same seeds and episode numbers; this changes no other number of the
        run.
        """
        c = self.config
        self.done_at["eval"] = self.env_step
        if not c.eval_episode_num or not self.leads:
            return
        if self.eval_envs is None:
            self.eval_envs = make_envs(c, "eval", count_eval_envs(c, c.eval_episode_num), image=True)
        first, count = self.eval_episodes, len(self.eval_envs)
        scores, films = evaluate(self.agent, self.eval_envs, c.eval_episode_num, first)
        self.eval_episodes += -(-c.eval_episode_num // len(self.eval_envs))
        self.logger.scalars({f"eval_{k}": v for k, v in summary(scores).items()})
        self.logger.video("eval_policy", films[0])
        for task in c.eval_tasks:
            with (
                tools.own_randomness(self.device, c.seed, 5, self.env_step),
                make_envs(c.replace(task=task), "eval", count, image=True) as group,
            ):
                scores, films = evaluate(self.agent, group, c.eval_episode_num, first)
            self.logger.scalars({f"eval_{k}/{task}": v for k, v in summary(scores).items()})
            self.logger.video(f"eval_policy/{task}", films[0])
        if (c.probe_decoder or c.video_pred_log) and sees_images(c):
            self.logger.video("video_pred", self.picture())
        self.logger.write(self.env_step)

    def picture(self, sequences: int = 4) -> np.ndarray:
        """Frames of `WorldModel.picture` for some of the replay; draws from generators of its own."""
        c = self.config
        segments = self.replay.draw(np.random.default_rng([c.seed, 6, self.env_step]), 8 * sequences, c.batch_length)
        segments.sort(key=len)  # few seams of episodes
        batch = {k: torch.from_numpy(v).to(self.device) for k, v in self.replay.gather(segments[:sequences]).items()}
        with tools.own_randomness(self.device, c.seed, 6, self.env_step):
            return self.agent.world_model.picture(batch).cpu().numpy()

    def log(self) -> None:
        """Writes the means of the metrics since the last time."""
        self.done_at["log"] = self.env_step
        results = distributed.gather(self.metrics.result())
        replay_steps = sum(distributed.gather(self.replay.steps))
        if not self.leads:
            return
        self.logger.scalars({name: np.mean([result[name] for result in results]) for name in results[0]})
        self.logger.scalars({"update_count": self.updates, "replay_steps": replay_steps})
        self.logger.write(self.env_step, fps=True, updates=self.updates)
        self.progress.report()

    def show_progress(self) -> None:
        if self.leads:
            self.progress.update(self.env_step, self.updates, self.last_return)

    # The loop

    def due(self, what: str) -> bool:
        every = self.config[f"{what}_every"]
        return bool(every) and self.env_step // every > self.done_at[what] // every

    def loop(self) -> None:
        """Trains up to `steps`, or to an interrupt; either way the run can go on from where it stopped."""
        c = self.config
        finished = self.env_step >= c.steps
        evaluated = False
        with tools.Interrupt() as interrupt:
            while True:
                if not self.learn(interrupt):
                    self.save()
                    tools.say(f"stopped at step {self.env_step}: the same command goes on from there")
                    break
                if self.due("log") or (finished and self.done_at["log"] < self.env_step):
                    self.log()
                if self.due("checkpoint") or evaluated or finished:
                    self.save()
                if finished:
                    break
                self.receive()
                self.show_progress()
                finished = self.env_step >= c.steps
                evaluated = self.due("eval") or finished
                if evaluated:
                    self.evaluate()
                self.act_and_send()

    def close(self) -> None:
        for group in (self.envs, self.eval_envs):
            if group is not None:
                group.close()
        self.batches.close()
        if hasattr(self, "logger"):
            self.logger.close()
            self.progress.close()


def stack_obs(obs: list[dict], keys: list[str], device: torch.device) -> dict[str, Tensor]:
    """Observations of N envs as tensors (N, ...) on the device."""
    return {k: torch.from_numpy(np.stack([o[k] for o in obs])).to(device) for k in (*keys, "is_first")}


def evaluate(
    agent: Dreamer, group: EnvGroup, episodes: int, first_episode: int, film_all: bool = False
) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Plays whole episodes with the mean action.

    Env i plays the episodes first_episode, first_episode + 1, … of its own stream, so that the result does not depend
    on which env is faster.

    Returns:
        return, length and, if there is one, success of each episode, in the order in which they ended; and the images
        (T, H, W, 3) of the first env's first episode, or of all episodes in that order.
    """
    n = len(group)
    quota = [episodes // n + (i < episodes % n) for i in range(n)]
    obs, state = group.reset([first_episode] * n), None
    # images of the episodes that are being filmed
    reels = [[o["image"]] if (film_all or i == 0) and "image" in o else None for i, o in enumerate(obs)]
    films: list[np.ndarray] = []
    returns, lengths = np.zeros(n), np.zeros(n, int)
    scores: dict[str, list[float]] = {"return": [], "length": []}
    while any(quota):
        action, state = agent.act(stack_obs(obs, agent.keys, agent.device), state, training=False)
        action = action.cpu().numpy()
        if hasattr(group.action_space, "low"):
            action = action.clip(-1, 1)
        group.send([{"action": one} if quota[i] else None for i, one in enumerate(action)])
        for i, transition in enumerate(group.receive()):
            if transition is None:
                continue
            obs[i] = transition.obs
            returns[i] += transition.reward
            lengths[i] += 1
            if reels[i] is not None:
                reels[i].append(transition.obs["image"])
            if transition.done:
                scores["return"].append(float(returns[i]))
                scores["length"].append(float(lengths[i]))
                if "success" in transition.info:
                    scores.setdefault("success", []).append(float(transition.info["success"]))
                if reels[i] is not None:
                    films.append(np.stack(reels[i]))
                    reels[i] = [transition.first["image"]] if film_all else None
                returns[i], lengths[i] = 0, 0
                obs[i] = transition.first
                quota[i] -= 1
    return scores, films


def summary(scores: dict[str, list[float]]) -> dict[str, float]:
    """Means over the episodes, the std of their returns, and their number."""
    means = {k: float(np.mean(v)) for k, v in scores.items()}
    return {**means, "return_std": float(np.std(scores["return"])), "episodes": len(scores["return"])}


# A checkpoint evaluated


def run_config(argv: list[str], logdir: Path) -> tools.Config:
    """The settings of the run in `logdir`, with the flags of the command line over them."""
    if not (logdir / "config.yaml").is_file():
        raise ValueError(f"--logdir {logdir} holds no run (it has no config.yaml): name the folder of one")
    config, _ = tools.load_config(argv, extra=ACTIONS, base=tools.read_config(logdir / "config.yaml"))
    return config


def load_weights(agent: Dreamer, path: Path) -> int:
    """Loads the networks of a run's checkpoint; returns the agent steps that it was trained for.

    Raises ValueError if there is no checkpoint or the agent is another one.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no checkpoint yet: {path.name} is missing")
    state = tools.load_checkpoint(path)
    if "agent" not in state or "step" not in state:
        raise ValueError(f"{path} is no checkpoint of a run (for the public code's, see --from_checkpoint)")
    theirs, ours = state["agent"]["agent"], agent.state_dict()
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit --task {agent.config.task} and the settings: "
                f"{name} is {shapes[0]} in the checkpoint and {shapes[1]} here"
            )
    agent.load_state_dict(theirs)
    return state["step"]


def evaluate_run(config: tools.Config, logdir: Path, episodes: int, video: bool) -> None:
    """Evaluates a run's checkpoint on `config.task` and adds a line to its eval.jsonl; reads the run, and no more.

    The episodes come from seeds that training and its evaluations do not use, the same ones in every call with the
    same `seed`, on every task.
    """
    check_config(config)
    episodes = episodes or config.eval_episode_num
    if episodes < 1:
        raise ValueError(f"--episodes is {episodes}: expected 1 or more")
    tools.seed_everything(config.seed, config.deterministic_run)
    count = count_eval_envs(config, episodes)
    with make_envs(config, "eval_only", count, sees_images(config) or video) as group:
        agent = make_agent(config, group)
        step = load_weights(agent, logdir / "latest.pt")
        step *= tools.read_config(logdir / "config.yaml").action_repeat
        scores, films = evaluate(agent, group, episodes, 0, film_all=video)
    means = summary(scores)
    success = f", success {means['success']:.2f}" if "success" in means else ""
    tools.say(
        f"{config.task}: return {means['return']:.1f} ± {means['return_std']:.1f}{success} "
        f"({episodes} episodes, seed {config.seed}, checkpoint of step {step})"
    )
    line = {"step": step, "task": config.task, "seed": config.seed, **means, "returns": scores["return"]}
    with open(logdir / "eval.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    if video:
        from envs.__main__ import enlarge, write

        folder = logdir / "videos"
        folder.mkdir(exist_ok=True)
        for i, frames in enumerate(films):
            path = folder / f"{config.task}-step{step}-seed{config.seed}-{i}.mp4"
            write(path, (enlarge(frame, max(1, 256 // frame.shape[0])) for frame in frames), fps=20)
        tools.say(f"films of {len(films)} episodes: {folder}")


def run_command(argv: list[str]) -> int:
    """Does what the command line says; returns the exit status."""
    config, action = tools.load_config(argv, extra=ACTIONS)
    logdir = Path(config.logdir).expanduser()
    errors = (ValueError, FileNotFoundError, ImportError)
    try:
        with distributed.together(*errors):
            if action.eval_only:
                if distributed.size() > 1:
                    raise ValueError("--eval_only evaluates in one process: start it with python, not torchrun")
                evaluate_run(run_config(argv, logdir), logdir, action.episodes, action.video)
                return 0
            if action.episodes or action.video:
                raise ValueError("--episodes and --video belong to --eval_only")
            check_config(config)
            check_resume(config, logdir)
            logdir.mkdir(parents=True, exist_ok=True)
            run = Run(config, logdir)
    except errors as error:
        return complain(error)
    with contextlib.closing(run):
        distributed.use(run.device)
        distributed.broadcast(run.agent.state_dict().values())
        try:
            with distributed.together(ValueError):
                if config.from_checkpoint and not run.checkpoint_path.exists():
                    for line in import_checkpoint(run.agent, config.from_checkpoint):
                        tools.say(f"--from_checkpoint: {line}")
                run.start()
        except ValueError as error:
            return complain(error)
        if run.leads:
            tools.save_config(config, logdir / "config.yaml")
        for line in filter(None, [*TUNED, tools.tune_matmul(run.device), run.execution.note]):
            tools.say(line)
        run.loop()
    return 0


def complain(error: Exception) -> int:
    """Prints an error of the user's, once, and returns the exit status."""
    if distributed.rank() == 0:
        print(f"dreamer.py: {error}", file=sys.stderr)
    return 2


def main(argv: list[str]) -> int:
    distributed.start()
    try:
        status = run_command(argv)
    except SystemExit as end:  # --help, or flags that nobody knows
        status = end.code
    distributed.stop()
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the loop, or a second one in it
        sys.exit(130)
