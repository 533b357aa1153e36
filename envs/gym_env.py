"""Environments registered with Gymnasium, from pixels or vectors, with continuous or discrete actions."""

import ast
import hashlib
import os
import traceback
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
from .notes import note

# Frames are drawn in memory, which needs no screen. pygame's `dummy` driver would leave the frames of some envs black.
os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
os.environ.setdefault("PYGLET_HEADLESS", "True")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # pygame triggers it; setuptools is pinned
gymnasium.logger.min_level = gymnasium.logger.ERROR  # every worker would print its warnings

RESERVED = ("action", "reward", "is_first", "is_last", "is_terminal")  # names of the other parts of a step


MODULES = {  # start of an id -> the module that registers it
    "ALE/": "ale_py", "BabyAI-": "minigrid", "MiniGrid-": "minigrid", "MiniWorld-": "miniworld",
    "Meta-World/": "metaworld", "dm_control/": "shimmy", "highway-": "highway_env", "Fetch": "gymnasium_robotics",
    "Hand": "gymnasium_robotics", "Adroit": "gymnasium_robotics", "AntMaze_": "gymnasium_robotics",
    "PointMaze_": "gymnasium_robotics",
}  # fmt: skip
SMALLEST = 16  # pixels of the longer side of an image; smaller arrays of bytes are symbols
PROBE_STEPS = 20  # steps that are compared to see whether a seed determines an episode


class GymEnv:
    """`gym_{id}`: the env that `gymnasium.make(id)` makes; for `{module}:{id}` it imports the module first.

    Observations: each entry of a Dict by its name, any other space by the name `observation`. They are flat vectors
    (discrete ones one-hot) or images: uint8 of shape (H, W), (H, W, 1) or (H, W, 3) and not smaller than SMALLEST,
    resized. Entries of no fixed size, such as text, are left out. An env whose only observation is an image, or that
    has one by this name, returns it as `image`; otherwise `image` is rendered. Smaller arrays of bytes are grids of
    symbols: vectors, and one called `image` becomes `symbols`.

    Actions: a Box, flat, scaled to [-1, 1] where it is bounded, else [-1, 1] within its bounds; or Discrete, as one-hot
    vectors. `terminated` ends an episode as terminal, `truncated` does not. info has `success` of the last step, and
    `success_once` of any step of the episode, if the env has either.

    size: (height, width) of images. action_repeat: environment steps in an agent step. image: False disables rendering;
    None does so where an env cannot render. env_kwargs: `name=value` for `gymnasium.make`.

    An episode is a pure function of (seed, its number, actions), as far as the env is one of `reset(seed=...)`. Where
    it is that only when the env is new, each episode gets a new one; where it is not even then, a line reports it.

    Raises ValueError for an unknown id and for unsupported spaces, ImportError for a missing package.
    """

    def __init__(
        self, name: str, *, seed: int = 0, size: tuple[int, int] = (64, 64), action_repeat: int = 2,
        image: bool | None = True, env_kwargs: Sequence[str] = (),
    ):  # fmt: skip
        self.name, self.seed, self.size, self.action_repeat = name, seed, tuple(size), action_repeat
        self._kwargs = {"disable_env_checker": True, **dict(map(_read_argument, env_kwargs))}
        self._episode = -1  # the running one
        self._succeeded = False  # whether the running episode has succeeded
        if image is not False:
            opengl.pick()  # dm_control picks its renderer at import, so this precedes the env's module
        self._env = self._call(gymnasium.make, name, **self._kwargs)
        space = self._env.observation_space
        self._dict = isinstance(space, spaces.Dict)
        found = space.spaces if self._dict else {"image" if _is_image(space) else "observation": space}
        self._entries = {key: entry for key, entry in found.items() if self._accepts(key, entry)}
        self._set_actions(self._env.action_space)
        self._renew = self._must_renew()

        self._renders = image is not False and "image" not in map(self._name, self._entries)
        if self._renders:
            try:
                self._start_rendering()
            except (ValueError, ImportError):
                if image:
                    raise
                self._renders = False
        frame = gym.spaces.Box(0, 255, (*self.size, 3), np.uint8)
        observations = {
            self._name(key): frame
            if _is_image(entry)
            else gym.spaces.Box(-np.inf, np.inf, (spaces.flatdim(entry),), np.float32)
            for key, entry in self._entries.items()
        }
        if self._renders:
            observations["image"] = frame
        if not observations:
            raise self._error(
                f"observes {space}: nothing of it has a fixed size; from pixels, --encoder.cnn_keys image"
            )
        self.observation_space = gym.spaces.Dict(observations)

    def lift_limit(self, steps: int) -> None:
        """Lets an episode last `steps` environment steps, where the env is registered with fewer."""
        registered = self._env.spec.max_episode_steps if self._env.spec else None
        if registered is not None and registered < steps:
            self._kwargs["max_episode_steps"] = steps
            self._env.close()
            self._env = self._call(gymnasium.make, self.name, **self._kwargs)

    def _set_actions(self, space: spaces.Space) -> None:
        if isinstance(space, spaces.Discrete):
            self.action_space = gym.spaces.Discrete(int(space.n))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.action_space = gym.spaces.Box(-1.0, 1.0, (spaces.flatdim(space),), np.float32)
            self._bounds = low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            bounded = np.isfinite(low) & np.isfinite(high)
            if not (bounded | ((low < 1) & (high > -1))).all():
                raise self._error(f"takes actions of {space}: expected both bounds, or some of [-1, 1] within them")
            self._low, self._high = np.where(bounded, low, -1), np.where(bounded, high, 1)
        else:
            raise self._error(f"takes actions of {space}: expected a Box of floats or Discrete")

    def reset(self, episode: int | None = None) -> dict[str, np.ndarray]:
        """Starts the next episode, or the one with this number, and returns its first observation."""
        self._episode = self._episode + 1 if episode is None else int(episode)
        self._succeeded = False
        if self._renew:
            self._env.close()
            self._env = self._call(gymnasium.make, self.name, **self._kwargs)
        rng = np.random.default_rng([self.seed, self._episode])
        obs, _ = self._env.reset(seed=int(rng.integers(2**31)))
        return {**self._observe(obs), "is_first": True, "is_last": False, "is_terminal": False}

    def step(self, action: dict) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """One agent step: {"action": (A,)} -> observation, reward summed over the repeat, done, info."""
        action, total = self._to_env(np.asarray(action["action"])), 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self._env.step(action)
            total += float(reward)
            success = info.get("is_success", info.get("success"))
            self._succeeded |= bool(success)
            if terminated or truncated:
                break
        terminated, done = bool(terminated), bool(terminated or truncated)
        obs = {**self._observe(obs), "is_first": False, "is_last": done, "is_terminal": terminated}
        info = {} if success is None else {"success": bool(success), "success_once": self._succeeded}
        return obs, total, done, info

    def close(self) -> None:
        self._env.close()

    def _to_env(self, action: np.ndarray) -> Any:
        space = self._env.action_space
        if isinstance(space, spaces.Discrete):
            return space.start + action.argmax()
        share = (np.clip(action.astype(np.float64), -1, 1).reshape(space.shape) + 1) / 2
        return np.clip(self._low + share * (self._high - self._low), *self._bounds).astype(space.dtype)

    def _observe(self, obs: Any) -> dict[str, np.ndarray]:
        found = {}
        for key, space in self._entries.items():
            value = obs[key] if self._dict else obs
            found[self._name(key)] = (
                self._frame(value) if _is_image(space) else np.float32(spaces.flatten(space, value))
            )
        if self._renders:
            found["image"] = self._frame(self._env.render())
        return found

    def _name(self, key: str) -> str:
        """The name of an entry here."""
        return "symbols" if key == "image" and not _is_image(self._entries[key]) else key

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """(h, w), (h, w, 1) or (h, w, 3) uint8 -> (H, W, 3) uint8."""
        if image.shape[:2] != self.size:
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        return np.broadcast_to(image.reshape(*self.size, -1), (*self.size, 3)).copy()

    def _must_renew(self) -> bool:
        """Whether an episode follows from its seed only in a new env; reports it if it does not even there."""
        first = self._call(self._digest, self._env, 1)  # the env is still new
        self._call(self._digest, self._env, 2)
        if self._call(self._digest, self._env, 1) == first:
            return False
        other = self._call(gymnasium.make, self.name, **self._kwargs)
        renewed = self._call(self._digest, other, 1)
        other.close()
        if renewed == first:
            return True
        note(
            f"--task gym_{self.name}: its reset(seed) does not determine an episode, so the seed of a run does not "
            "determine its numbers, and a resumed run starts its unfinished episodes again"
        )
        return False

    def _digest(self, env: gymnasium.Env, seed: int) -> str:
        """Of the first steps of an episode under random actions."""
        digest, rng = hashlib.sha256(), np.random.default_rng(seed)
        shape = (self.action_space.n,) if hasattr(self.action_space, "n") else self.action_space.shape
        obs, end = env.reset(seed=seed)[0], False
        for _ in range(PROBE_STEPS):
            for key, space in self._entries.items():
                digest.update(np.asarray(spaces.flatten(space, obs[key] if self._dict else obs)).tobytes())
            if end:
                break
            obs, reward, terminated, truncated, _ = env.step(self._to_env(rng.uniform(-1, 1, shape)))
            end = bool(terminated or truncated)
            digest.update(np.float64(reward).tobytes())
        return digest.hexdigest()

    def _start_rendering(self) -> None:
        """Replaces the env by one that renders."""
        modes = self._env.metadata.get("render_modes", ())
        if "rgb_array" not in modes:
            found = ", ".join(mode for mode in modes if mode) or "none"
            images = [key for key, entry in self._entries.items() if _is_image(entry)]
            remedy = f"--encoder.cnn_keys '{'|'.join(images)}'" if images else "train on vectors, --configs dmc_proprio"
            raise self._error(f"renders no images (render modes: {found}): {remedy}")
        self._kwargs["render_mode"] = "rgb_array"
        env = self._call(gymnasium.make, self.name, **self._kwargs)
        env.reset(seed=0)
        frame = self._call(env.render)
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,)):
            raise self._error(f"renders {type(frame).__name__}: expected an array (H, W, 3) of uint8")
        self._env.close()
        self._env = env

    def _accepts(self, key: str, space: spaces.Space) -> bool:
        """Whether an entry is observed; raises ValueError for one that should be, but cannot."""
        if not _is_flattenable(space):
            note(f"--task gym_{self.name}: {key} ({type(space).__name__}) has no fixed size and is left out")
            return False
        if key in RESERVED or (key == "image" and not _is_image(space) and not _is_symbols(space)):
            raise self._error(f"has an observation called {key}, a reserved name: rename it")
        pixels = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
        if pixels and not _is_image(space) and not _is_symbols(space):
            raise self._error(f"observes {key} of shape {space.shape}: expected images (H, W), (H, W, 1) or (H, W, 3)")
        return True

    def _call(self, function: Callable, *args, **kwargs) -> Any:
        """Calls into Gymnasium; its exceptions become one line."""
        try:
            return function(*args, **kwargs)
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv):
            raise self._error(f"is not registered with Gymnasium; {self._hint()}") from None
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise ImportError(f"--task gym_{self.name} cannot be imported: {_one_line(error)}") from error
        except Exception as error:  # an env may raise anything
            raise self._error(f"does not start: {type(error).__name__}: {_one_line(error)}") from error

    def _hint(self) -> str:
        module = next((module for start, module in MODULES.items() if self.name.startswith(start)), None)
        if module:
            return f"a module comes first: gym_{module}:{self.name}"
        if "/" in self.name and ":" not in self.name:
            return f"the module that registers it comes first: gym_MODULE:{self.name}"
        return nearest(self.name.rpartition(":")[2], gymnasium.registry, cutoff=0)

    def _error(self, words: str) -> ValueError:
        return ValueError(f"--task gym_{self.name} {words}")


def _is_image(space: spaces.Space) -> bool:
    """Whether the values are the pixels of an image: bytes (H, W), (H, W, 1) or (H, W, 3), no grid of symbols."""
    pixels = isinstance(space, spaces.Box) and space.dtype == np.uint8 and not _is_symbols(space)
    return pixels and (len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3)))


def _is_symbols(space: spaces.Space) -> bool:
    """Whether an array of bytes is too small for an image, as the grids of MiniGrid are."""
    grid = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    return grid and max(space.shape[:2]) < SMALLEST


def _is_flattenable(space: spaces.Space) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # a custom class, such as MiniGrid's sentences
        return False


def _read_argument(text: str) -> tuple[str, Any]:
    """`name=value` as a name and a Python value: a number, True, None, a list, ..., else the text itself."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _one_line(error: Exception) -> str:
    """The message of an error, or where it was raised if it has none."""
    words = " ".join(str(error).split())
    if words:
        return words
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {frame.filename}:{frame.lineno}, {frame.line}"
