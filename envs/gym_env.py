"""Environments registered with Gymnasium, from pixels or vectors, with continuous or discrete actions."""

import ast
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gym
import gymnasium
import numpy as np
from gymnasium import spaces

from . import opengl
from .family import nearest

# Frames are drawn in memory: pygame, which many envs use, needs no screen, and no greeting.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # by pygame; setuptools is pinned
gymnasium.logger.min_level = gymnasium.logger.ERROR  # every worker would print its warnings

RESERVED = ("action", "reward", "is_first", "is_last", "is_terminal")  # names of the other parts of a step


class GymEnv:
    """`gym_{id}`: the env that `gymnasium.make(id)` makes; for `{module}:{id}` it imports the module first.

    Observations: each entry of a Dict by its name, any other space by the name `observation`. They are flat vectors
    (discrete ones one-hot) or images: uint8 of shape (H, W), (H, W, 1) or (H, W, 3), resized. An env whose
    only observation is an image, or that has one by this name, returns it as `image`; otherwise `image` is rendered.

    Actions: a Box, flat, scaled to [-1, 1] if it is bounded; or Discrete, as one-hot vectors. `terminated` ends an
    episode as terminal, `truncated` does not.

    size: (height, width) of images. action_repeat: environment steps in an agent step. image: False omits images; None
    omits one that cannot be rendered.

    An episode is a pure function of (seed, its number, actions), as far as the env is one of `reset(seed=...)`.

    Raises ValueError for an unknown id and for unsupported spaces, ImportError for a missing package.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int = 0,
        size: tuple[int, int] = (64, 64),
        action_repeat: int = 2,
        image: bool | None = True,
        env_kwargs: Sequence[str] = (),
    ):
        self.name, self.seed, self.size, self.action_repeat = name, seed, tuple(size), action_repeat
        self._kwargs = {"disable_env_checker": True, **dict(map(_read_argument, env_kwargs))}
        self._episode = -1  # the running one
        self._env = self._call(gymnasium.make, name, **self._kwargs)
        space = self._env.observation_space
        self._dict = isinstance(space, spaces.Dict)
        self._entries = space.spaces if self._dict else {"image" if _is_image(space) else "observation": space}
        for key, entry in self._entries.items():
            self._check_observation(key, entry)

        self._renders = image is not False and "image" not in self._entries
        if self._renders:
            try:
                self._start_rendering()
            except (ValueError, ImportError):
                if image:
                    raise
                self._renders = False
        if image is False:
            self._entries = {key: entry for key, entry in self._entries.items() if not _is_image(entry)}
        frame = gym.spaces.Box(0, 255, (*self.size, 3), np.uint8)
        observations = {
            key: frame if _is_image(entry) else gym.spaces.Box(-np.inf, np.inf, (spaces.flatdim(entry),), np.float32)
            for key, entry in self._entries.items()
        }
        if self._renders:
            observations["image"] = frame
        if not observations:
            raise self._error("has only image observations: --encoder.cnn_keys must match 'image'")
        self.observation_space = gym.spaces.Dict(observations)

        space = self._env.action_space
        if isinstance(space, spaces.Discrete):
            self.action_space = gym.spaces.Discrete(int(space.n))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.action_space = gym.spaces.Box(-1.0, 1.0, (spaces.flatdim(space),), np.float32)
            bounded = np.isfinite(space.low) & np.isfinite(space.high)
            self._low = np.where(bounded, space.low, -1).astype(np.float64)
            self._high = np.where(bounded, space.high, 1).astype(np.float64)
        else:
            raise self._error(f"takes actions of {space}: expected a Box of floats or Discrete")

    def reset(self, episode: int | None = None) -> dict[str, np.ndarray]:
        """Starts the next episode, or the one with this number, and returns its first observation."""
        self._episode = self._episode + 1 if episode is None else int(episode)
        rng = np.random.default_rng([self.seed, self._episode])
        obs, _ = self._env.reset(seed=int(rng.integers(2**31)))
        return {**self._observe(obs), "is_first": True, "is_last": False, "is_terminal": False}

    def step(self, action: dict) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """One agent step: {"action": (A,)} -> observation, reward summed over the repeat, done, info."""
        action, total = self._to_env(np.asarray(action["action"])), 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self._env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        terminated, done = bool(terminated), bool(terminated or truncated)
        obs = {**self._observe(obs), "is_first": False, "is_last": done, "is_terminal": terminated}
        success = info.get("is_success", info.get("success"))
        return obs, total, done, {} if success is None else {"success": bool(success)}

    def close(self) -> None:
        self._env.close()

    def _to_env(self, action: np.ndarray) -> Any:
        space = self._env.action_space
        if isinstance(space, spaces.Discrete):
            return space.start + action.argmax()
        share = (np.clip(action.astype(np.float64), -1, 1).reshape(space.shape) + 1) / 2
        return (self._low + share * (self._high - self._low)).astype(space.dtype)

    def _observe(self, obs: Any) -> dict[str, np.ndarray]:
        found = {}
        for key, space in self._entries.items():
            value = obs[key] if self._dict else obs
            found[key] = self._frame(value) if _is_image(space) else np.float32(spaces.flatten(space, value))
        if self._renders:
            found["image"] = self._frame(self._env.render())
        return found

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """(h, w), (h, w, 1) or (h, w, 3) uint8 -> (H, W, 3) uint8."""
        if image.shape[:2] != self.size:
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        return np.broadcast_to(image.reshape(*self.size, -1), (*self.size, 3)).copy()

    def _start_rendering(self) -> None:
        """Replaces the env by one that renders."""
        modes = self._env.metadata.get("render_modes", ())
        if "rgb_array" not in modes:
            found = ", ".join(mode for mode in modes if mode) or "none"
            raise self._error(f"renders no images (render modes: {found}): train on vectors, --configs dmc_proprio")
        opengl.pick()
        env = self._call(gymnasium.make, self.name, render_mode="rgb_array", **self._kwargs)
        env.reset(seed=0)
        frame = self._call(env.render)
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,)):
            raise self._error(f"renders {type(frame).__name__}: expected an array (H, W, 3) of uint8")
        self._env.close()
        self._env = env

    def _check_observation(self, key: str, space: spaces.Space) -> None:
        if key in RESERVED or (key == "image" and not _is_image(space)):
            raise self._error(f"has an observation called {key}, a reserved name: rename it")
        pixels = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
        if pixels and not _is_image(space):
            raise self._error(f"observes {key} of shape {space.shape}: expected images (H, W), (H, W, 1) or (H, W, 3)")
        if not space.is_np_flattenable:
            raise self._error(f"observes {key} as {type(space).__name__}, which has no fixed size: expected Box, Dict")

    def _call(self, function: Callable, *args, **kwargs) -> Any:
        """Calls into Gymnasium; its exceptions become one line."""
        try:
            return function(*args, **kwargs)
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv):
            hint = nearest(self.name, gymnasium.registry, cutoff=0)
            raise self._error(f"is not registered with Gymnasium; {hint}") from None
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise ImportError(f"--task gym_{self.name} cannot be imported: {_one_line(error)}") from error
        except Exception as error:  # an env may raise anything
            raise self._error(f"does not start: {type(error).__name__}: {_one_line(error)}") from error

    def _error(self, words: str) -> ValueError:
        return ValueError(f"--task gym_{self.name} {words}")


def _is_image(space: spaces.Space) -> bool:
    pixels = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return pixels and (len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3)))


def _read_argument(text: str) -> tuple[str, Any]:
    """`name=value` as a name and a Python value: a number, True, None, a list, ..., else the text itself."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
