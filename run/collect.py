"""Experience collection, from the environments to the replay.

`Collector` steps the training envs, stores their transitions, and restores unfinished episodes when a run resumes.
It only needs the agent to act (`Dreamer.act`).
"""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import envs
from envs.parallel import EnvGroup, Transition
from run import distributed
from run.config import Config, sees_images
from run.episodes import spec_of
from run.logs import log
from run.process import Interrupt, Interrupted
from run.replay import Replay

# First entry of the seeds of envs, second of the seeds of random streams, next to the setting `seed`.
STREAMS = {
    "train": 0, "eval": 1, "prefill": 2, "batches": 3, "eval_only": 4, "eval_tasks": 5, "video_pred": 6, "torch": 7
}  # fmt: skip


def env_constructors(config: Config, mode: str, count: int, image: bool, first: int = 0) -> list[Callable[[], Any]]:
    """Make `count` envs of the task, numbered from `first`.

    Each training env has a stream of episodes of its own. The envs of an evaluation (mode eval or eval_only) share one,
    of which they play different episodes.
    """
    return [
        functools.partial(
            envs.make,
            config.task,
            seed=int(np.random.SeedSequence([config.seed, STREAMS[mode], index]).generate_state(1)[0]),
            size=tuple(config.size),
            action_repeat=config.action_repeat,
            time_limit=config.time_limit,
            image=image,
            evaluation=mode != "train",
            **{key: config[key] for key in envs.settings()},
        )
        for index in (range(first, first + count) if mode == "train" else [0] * count)
    ]


def make_envs(config: Config, mode: str, count: int, image: bool, first: int = 0) -> EnvGroup:
    """The envs of `env_constructors`, each in its own process if there are several."""
    parallel = config.parallel and count * distributed.size() > 1
    return EnvGroup(env_constructors(config, mode, count, image, first), parallel, config.env_failures)


def make_train_envs(config: Config) -> EnvGroup:
    """This rank's share of the training envs."""
    count = config.envs // distributed.size()
    return make_envs(config, "train", count, sees_images(config), distributed.rank() * count)


def stack_obs(obs: list[dict], keys: list[str], device: torch.device) -> dict[str, Tensor]:
    """Observations of N envs as tensors (N, ...) on the device, `is_first` among them."""
    return {k: torch.from_numpy(np.stack([o[k] for o in obs])).to(device) for k in (*keys, "is_first")}


class EnvError(Exception):
    """An env failed in a training step or an evaluation, which is still pending: a resumed run repeats it."""


class Collector:
    """The training envs of this rank, their pending actions, and the replay.

    The envs step while the learner learns: `act` sends actions, `receive` waits for the results. A checkpoint holds the
    actions of the unfinished episodes, pending ones included; a resumed run steps them again from the episodes' seeds.

    Args:
        envs: this rank's envs.
        keys: the observations that the agent reads.
        directory: folder of the episode files.
    """

    def __init__(self, config: Config, envs: EnvGroup, keys: list[str], directory: Path):
        ranks, count = distributed.size(), len(envs)
        self.config, self.envs, self.keys = config, envs, keys
        self.numbers = range(distributed.rank() * count, (distributed.rank() + 1) * count)  # unique across ranks
        self.discrete = hasattr(envs.action_space, "n")
        self.actions = envs.action_space.n if self.discrete else envs.action_space.shape[0]
        spaces = envs.observation_space
        row = {key: np.zeros(spaces[key].shape, spaces[key].dtype) for key in keys}
        row |= {"action": np.zeros(self.actions, np.float32), "reward": np.float32(0)}
        row |= {"is_first": False, "is_terminal": False}
        self.spec = spec_of(row)
        self.replay = Replay(
            directory,
            -(-config.dataset_size // ranks),
            -(-config.replay_dir_limit // ranks),
            self.numbers if ranks > 1 else None,
            self.spec,
            config.replay_memory * 1e9 / ranks,
        )
        self.step = 0  # agent steps, over all envs of all ranks
        self.rng = self.random_stream("prefill")
        self.can_sample = False  # the replay of every rank holds a step
        self.step_pending = False  # actions were sent, and their results not received yet
        self.received: list[Transition] | None = None  # results that a resumed run has received already
        self.failure: Exception | None = None  # raised when an action was sent to an env
        self.policy_state: dict[str, Tensor] | None = None
        # one entry per env
        self.obs: list[dict] = [{} for _ in range(count)]
        self.episode = [0] * count  # index of the unfinished episode
        self.sent: list[list[np.ndarray]] = [[] for _ in range(count)]  # its actions so far
        self.digests = [0] * count  # digest of its observations and rewards so far
        self.returns, self.lengths = np.zeros(count), np.zeros(count, int)

    def random_stream(self, name: str) -> np.random.Generator:
        """A random stream for this rank, from this step on."""
        return np.random.default_rng([self.config.seed, STREAMS[name], distributed.rank(), self.step])

    @property
    def env_step(self) -> int:
        return self.step * self.config.action_repeat

    # Stepping

    def act(self, agent: Any) -> None:
        """Sends each env an action for its newest observation: random during prefill, then the agent's."""
        c = self.config
        if self.step < c.prefill:
            action = self.random_action()
        else:
            explore = c.expl_behavior != "greedy" and (not c.expl_until or self.env_step < c.expl_until)
            obs = stack_obs(self.obs, self.keys, agent.device)
            action, self.policy_state = agent.act(obs, self.policy_state, training=True, explore=explore)
            action = action.cpu().numpy()
        for sent, one in zip(self.sent, action, strict=True):
            sent.append(one)
        self.step_pending = True
        try:
            self.envs.send([self.to_env(one) for one in action])
        except Exception as error:  # raised by `receive`, which all ranks call
            self.failure = error

    def random_action(self) -> np.ndarray:
        shape = (len(self.envs), self.actions)
        if self.discrete:
            return np.eye(self.actions, dtype=np.float32)[self.rng.integers(self.actions, size=shape[0])]
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    def to_env(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """An action of the policy in the form that the env takes."""
        return {"action": action if self.discrete else np.clip(action, -1, 1)}

    def receive(self, interrupt: Interrupt) -> list[dict[str, float]]:
        """Waits for the results of the actions that were sent, and stores them.

        Returns a summary of each episode that ended with them, over all ranks, in the order of their numbers. Raises,
        in all ranks, Interrupted if any was interrupted before the results arrived, and EnvError if an env failed. In
        both cases the step is still pending.
        """
        transitions, failure = self.received, self.failure
        if transitions is None and failure is None:
            try:
                with interrupt.immediate():
                    transitions = self.envs.receive()
            except Interrupted:
                pass
            except Exception as error:
                failure = error
        if distributed.any_rank(transitions is None):
            interrupt.check()  # first, as a closed terminal ends the workers too
            raise EnvError("an env failed" if failure else "an env of another process failed") from failure
        self.received, self.step_pending = None, False
        self.step += self.config.envs
        ended = []
        with self.numbered(sum(transition.done for transition in transitions)) as finishing:
            for env, transition in enumerate(transitions):
                summary = self.record(env, transition, self.sent[env][-1])
                if summary is not None:
                    ended.append(summary)
        self.can_sample = True
        return self.gather_ended(ended) if finishing else []

    def gather_ended(self, summaries: list[dict[str, float]]) -> list[dict[str, float]]:
        """The summaries of all ranks. `can_sample` is found again: an episode that was dropped may be all there was."""
        together, steps = zip(*distributed.all_gather((summaries, self.replay.steps)), strict=True)
        self.can_sample = all(steps)
        return sorted(itertools.chain(*together), key=lambda summary: summary["train_episodes"])

    def record(self, env: int, transition: Transition, action: np.ndarray) -> dict[str, float] | None:
        """Stores an env's result of an action. Returns a summary of the episode if it ended."""
        failed = "failure" in transition.info
        dropped = failed and self.config.failed_episodes == "drop"
        self.add_row(env, transition, action, dropped)
        self.returns[env] += transition.reward
        self.lengths[env] += 1
        if not transition.done:
            return None
        summary = {} if dropped else {"train_return": self.returns[env], "train_length": self.lengths[env]}
        for key in transition.info.keys() & {"success", "success_once"}:
            summary[f"train_{key}"] = float(transition.info[key])
        summary["train_episodes"] = self.replay.total_episodes
        if failed:
            summary["train_failures"] = 1  # the total, in the log
            log.warning(
                f"env {self.numbers[env]}: episode {self.episode[env]} was {'dropped' if dropped else 'cut'} at its "
                f"step {self.lengths[env]} by an error: {transition.info['failure']}"
            )
        self.begin_episode(env, self.episode[env] + 1, transition.first)
        return summary

    def begin_episode(self, env: int, episode: int, obs: dict) -> None:
        self.episode[env], self.sent[env], self.digests[env] = episode, [], 0
        self.returns[env], self.lengths[env] = 0, 0
        self.add_row(env, Transition(obs, 0.0, False, {}, None), np.zeros(self.actions, np.float32))

    def add_row(self, env: int, transition: Transition, action: np.ndarray, dropped: bool = False) -> None:
        obs = transition.obs
        self.digests[env] = self.digest(transition, self.digests[env])
        row = {k: obs[k] for k in self.keys}
        row["action"], row["reward"] = action, np.float32(transition.reward)
        row["is_first"], row["is_terminal"] = bool(obs["is_first"]), bool(obs["is_terminal"])
        self.replay.add(self.numbers[env], row, self.episode[env], transition.done, dropped)
        self.obs[env] = obs

    def digest(self, transition: Transition, before: int) -> int:
        """A checksum of an episode up to this transition, from that of the episode before it."""
        for key in self.keys:
            before = zlib.crc32(np.ascontiguousarray(transition.obs[key]), before)
        return zlib.crc32(np.float32(transition.reward).tobytes(), before)

    @contextlib.contextmanager
    def numbered(self, finishing: int) -> Iterator[int]:
        """Within it, `finishing` episodes of this rank get numbers after those of lower ranks; yields the total."""
        of_ranks = distributed.all_gather(finishing)
        self.replay.skip(sum(of_ranks[: distributed.rank()]))
        yield sum(of_ranks)
        self.replay.skip(sum(of_ranks[distributed.rank() + 1 :]))

    # Checkpoints

    def replay_actions(self) -> list[list[Transition]]:
        """Steps the unfinished episodes again; of each env, the first observation and the results of its actions."""
        return self.envs.restore(self.episode, [[self.to_env(one) for one in actions] for actions in self.sent])

    def differs(self, env: int, history: list[Transition], step_pending: bool) -> bool:
        """Whether an unfinished episode went otherwise when its actions were stepped again."""
        if step_pending and len(history) > 1:
            history = history[:-1]
        digest = functools.reduce(lambda before, transition: self.digest(transition, before), history, 0)
        known = self.digests[env]
        ended = any(transition.done for transition in history)
        return ended or (bool(self.sent[env]) and known is not None and digest != known)

    def state_dict(self) -> dict[str, Any]:
        """The state of the envs of all ranks, and the counters; all ranks must call it together."""
        empty = np.zeros((0, self.actions), np.float32)
        sent = [torch.from_numpy(np.array(actions) if actions else empty) for actions in self.sent]
        policy = {k: v.cpu() for k, v in self.policy_state.items()} if self.policy_state else None
        replay = self.replay.state_dict()
        found = distributed.all_gather((self.episode, sent, self.digests, policy, replay["total_finished_steps"]))
        episodes, sents, digests, policies, finished_steps = zip(*found, strict=True)
        return {
            "step": self.step,
            "step_pending": self.step_pending,
            "episode": [*itertools.chain(*episodes)],
            "sent": [*itertools.chain(*sents)],
            "digests": [*itertools.chain(*digests)],
            "policy": {k: torch.cat([one[k] for one in policies]) for k in policy} if policy else None,
            "replay": {**replay, "total_finished_steps": sum(finished_steps)},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes this rank's share of a state; `restore` must follow."""
        mine = slice(self.numbers.start, self.numbers.stop)
        self.step, self.step_pending = state["step"], state.get("step_pending", state.get("under_way", True))
        self.episode = list(state["episode"][mine])
        self.sent = [list(sent.numpy()) for sent in state["sent"][mine]]
        self.digests = list(state["digests"][mine]) if "digests" in state else [None] * len(self.sent)  # None: unknown
        if state["policy"]:
            self.policy_state = {k: v[mine].to(device) for k, v in state["policy"].items()}
        # a sum over ranks is continued by one of them
        finished = state["replay"]["total_finished_steps"] if distributed.is_main() else 0
        self.replay.load_state_dict({**state["replay"], "total_finished_steps": finished})

    def restore(self, exact: bool) -> tuple[bool, list[dict[str, float]]]:
        """Loads the finished episodes, and steps the unfinished ones again.

        Args:
            exact: this rank's random states are those of the checkpoint.

        Returns whether everything is as it was at the checkpoint, and a summary of each episode finished since, over
        all ranks. After such an episode its env begins the next one, and `step` counts all steps taken.
        Raises ValueError if the episodes of the checkpoint are gone.
        """
        known, step_pending = self.replay.total_episodes, self.step_pending
        self.replay.load()
        if known and not any(distributed.all_gather(len(self.replay.finished))):
            damaged = len(list(self.replay.directory.glob("*.damaged")))
            raise ValueError(
                f"{self.replay.directory} holds no episode, but the checkpoint next to it counts {known}"
                + (f" ({damaged} are damaged: *.npz.damaged)" if damaged else "")
                + ": restore them, or use another --logdir"
            )
        newer = [{"train_episodes": order + 1, "train_failures": 1} for order in self.replay.dropped_since(known)]
        newer += [
            {
                "train_return": float(reward.sum(dtype=np.float64)),
                "train_length": len(reward) - 1,
                "train_episodes": order + 1,
            }
            for order, reward in self.replay.rewards_since(known)
        ]
        for env, number in enumerate(self.numbers):
            last, _ = self.replay.finished.get(number, (-1, 0))
            if last >= self.episode[env]:
                exact = False
                self.episode[env], self.sent[env] = last + 1, []
        self.replay.skip(max(distributed.all_gather(self.replay.total_episodes)) - self.replay.total_episodes)
        histories, sent = self.replay_actions(), list(self.sent)
        lost = [env for env, history in enumerate(histories) if self.differs(env, history, step_pending)]
        if lost:
            exact = False
            log.info(
                f"{len(lost)} unfinished episodes of {self.config.task} did not go as before, as no seed determines "
                "them: they start again, as after a kill"
            )
            for env in lost:
                self.sent[env] = []
            histories, sent = self.replay_actions(), list(self.sent)
        exact = all(distributed.all_gather(exact))
        self.step_pending = exact and step_pending
        if self.step_pending:
            self.received = [history.pop() for history in histories]
        with self.numbered(sum(transition.done for history in histories for transition in history)):
            for env, (first, *history) in enumerate(histories):
                self.begin_episode(env, self.episode[env], first.obs)
                self.sent[env] = sent[env]
                for transition, action in zip(history, sent[env], strict=not self.step_pending):
                    summary = self.record(env, transition, action)
                    if summary is not None:
                        newer.append(summary)
        if not exact:
            self.step = sum(distributed.all_gather(self.replay.total_steps))
        return exact, self.gather_ended(newer)
