"""Wrappers around every env: a time limit, and checks of its inputs and outputs."""

import numpy as np

from .notes import note


class Wrapper:
    """Passes everything through to the env inside."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        if name.startswith("__"):  # not the copy and pickle protocols
            raise AttributeError(name)
        return getattr(self.env, name)


class TimeLimit(Wrapper):
    """Ends an episode after `duration` agent steps (None: never): is_last without is_terminal."""

    def __init__(self, env, duration: int | None):
        super().__init__(env)
        self.duration = duration
        self._steps = None  # agent steps of the running episode; None when there is none

    def reset(self, episode: int | None = None) -> dict:
        obs = self.env.reset(episode)
        self._steps = 0
        return obs

    def step(self, action: dict) -> tuple[dict, float, bool, dict]:
        if self._steps is None:
            raise RuntimeError("step() without a running episode: call reset() first")
        obs, reward, done, info = self.env.step(action)
        self._steps += 1
        if self.duration is not None and self._steps >= self.duration:
            obs["is_last"] = done = True
        if done:
            self._steps = None
        return obs, reward, done, info


class ActionError(ValueError):
    """An action that the env does not take: not the env's fault."""


class CheckAction(Wrapper):
    """Refuses an action that does not have the action space's shape, or has NaN or infinity in it (ActionError).

    Discrete actions are one-hot vectors.
    """

    def step(self, action: dict) -> tuple[dict, float, bool, dict]:
        if not isinstance(action, dict) or "action" not in action:
            raise ActionError(f'step() takes {{"action": array}}, got {type(action).__name__}')
        values = np.asarray(action["action"])
        space = self.env.action_space
        discrete = hasattr(space, "n")
        shape = (space.n,) if discrete else space.shape
        if values.shape != shape:
            raise ActionError(f"action has shape {values.shape}, expected {shape}")
        if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
            raise ActionError(f"action must be finite numbers, got {values.tolist()}")
        if discrete and not (np.count_nonzero(values) == 1 and values.max() == 1):
            raise ActionError(f"action must be one-hot, got {values.tolist()}")
        return self.env.step({"action": values})


class CheckFinite(Wrapper):
    """Refuses rewards and observations with NaN or infinity in them (ValueError), before they reach the replay.

    It also reports when an image has one color through an episode, as it does where a renderer does not draw.
    """

    def __init__(self, env, task: str):
        super().__init__(env)
        self.task = task
        self._episode, self._step = -1, 0  # position of the last observation
        self._blank: list[str] = []  # images that have had one color since the reset

    def reset(self, episode: int | None = None) -> dict:
        if self._blank and self._step:
            note(f"--task {self.task}: {', '.join(self._blank)} had one color through an episode: is it drawn?")
        obs = self.env.reset(episode)
        self._blank = [key for key, space in self.env.observation_space.items() if len(space.shape) == 3]
        self._episode, self._step = self._episode + 1 if episode is None else int(episode), 0
        self._check(obs)
        return obs

    def step(self, action: dict) -> tuple[dict, float, bool, dict]:
        obs, reward, done, info = self.env.step(action)
        self._step += 1
        self._check({**obs, "reward": reward})
        return obs, reward, done, info

    def _check(self, values: dict) -> None:
        if self._blank:
            self._blank = [key for key in self._blank if (values[key] == values[key][0, 0]).all()]
        for key, value in values.items():
            if not np.isfinite(value).all():
                bad = np.asarray(value)[~np.isfinite(value)].flat[0]
                where = f"step {self._step} of episode {self._episode} of the env with seed {self.env.seed}"
                raise ValueError(f"--task {self.task} gave {bad} as {key}, at {where}: expected finite numbers")
