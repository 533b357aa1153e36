"""The checkpoints of a run: `latest.pt`, and `previous.pt`, which is used if the latest is damaged or missing."""

import contextlib
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from run import distributed
from run.files import replacing
from run.logs import first_line, log

LATEST, PREVIOUS = "latest.pt", "previous.pt"
KINDS = {
    "step": int, "updates": int, "failures": int, "eval_episodes": int, "lines": int | None, "step_pending": bool,
    "episode": list, "sent": list, "ranks": list, "policy": dict | None, "replay": dict, "done_at": dict, "agent": dict,
    "schedule": list, "latent": dict,
}  # fmt: skip


# parameters that had other names in checkpoints of earlier versions: regular expressions, and today's
RENAMED = ((r"\.cell\.weight$", ".cell.linear.weight"), (r"\.cell_norm\.", ".cell.norm."))


def renamed(state: dict) -> dict:
    """A checkpoint whose parameters have today's names."""
    agent = state.get("agent")
    if isinstance(agent, dict) and isinstance(agent.get("agent"), dict):
        for pattern, name in RENAMED:
            agent["agent"] = {re.sub(pattern, name, str(key)): value for key, value in agent["agent"].items()}
    return state


def find(logdir: Path) -> tuple[Path | None, dict | None, str]:
    """A run's newest intact checkpoint: its path, its contents, and what is wrong with a newer one.

    Raises ValueError, one line, if all existing ones are damaged.
    """
    problem = ""
    for path in (logdir / LATEST, logdir / PREVIOUS):
        try:
            return path, load_checkpoint(path), problem
        except FileNotFoundError:
            problem = problem or f"{path} is missing"
        except ValueError as error:
            if problem or not (logdir / PREVIOUS).exists():
                raise ValueError(
                    f"{error}: restore a copy of it; without a checkpoint, the run keeps its episodes and redoes "
                    "its updates"
                ) from None
            problem = str(error)
    return None, None, ""


def read(logdir: Path, agent: nn.Module) -> tuple[Path | None, dict | None]:
    """A run's newest intact checkpoint and its path, None without one; all ranks must call it together.

    A damaged latest one is renamed. Raises ValueError, one line, if a run of `agent` cannot resume from it.
    """
    path, state, problem = find(logdir) if distributed.is_main() else (None, None, "")
    if problem:
        log.info(f"{problem}: resumed from {path}")
        if (logdir / LATEST).exists():
            os.replace(logdir / LATEST, logdir / f"{LATEST}.damaged")
    distributed.all_gather(None)
    if not distributed.is_main():
        path, state, _ = find(logdir)
    if state is None:
        return None, None
    check(state, agent, path)
    if "ranks" not in state:
        raise ValueError(f"{path} is an agent from setup/export_agent.py, without training state: it cannot resume")
    with our_layout(path):
        envs, before = agent.config.envs, len(state["episode"])
    if envs != before:
        raise ValueError(f"--envs is {envs}: {path} is of a run with {before}; resume with the same number")
    broken = find_nonfinite(state["agent"])
    if broken:
        raise ValueError(
            f"{path} is of a run that has diverged ({broken} is not finite): move it away to resume from "
            f"{PREVIOUS}, or use another --logdir"
        )
    return path, state


def load_weights(logdir: Path, agent: nn.Module) -> int:
    """Loads the networks of a run's checkpoint; returns the agent steps it was trained for.

    Raises ValueError if there is no checkpoint or it is of another agent.
    """
    path, state, problem = find(logdir)
    if state is None:
        raise ValueError(f"--logdir {logdir} holds no checkpoint yet: {LATEST} is missing")
    if problem:
        log.info(f"{problem}: evaluating {path}")
    return put(state, agent, path)


def put(state: dict, agent: nn.Module, path: Path) -> int:
    """Puts the networks of a checkpoint into `agent`, after `check`; returns the agent steps it was trained for."""
    check(state, agent, path)
    agent.load_state_dict(state["agent"]["agent"])
    return state["step"]


@contextlib.contextmanager
def our_layout(path: Path) -> Iterator[None]:
    """Within it, missing or malformed contents of a checkpoint raise a ValueError, one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{path} has another layout than checkpoints of this version ({problem})") from error


def check(state: dict, agent: nn.Module, path: Path) -> None:
    """Raises ValueError, one line, if a checkpoint is not that of a run or is of another agent."""
    if not state.keys() >= {"agent", "step"}:
        raise ValueError(f"{path} is not a checkpoint of a run (for the public code's, see --from_checkpoint)")
    with our_layout(path):
        for name, kind in KINDS.items():
            if name in state and not isinstance(state[name], kind):
                raise TypeError(f"its {name} is a {type(state[name]).__name__}")
        theirs, ours = state["agent"]["agent"], agent.state_dict()
        shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (theirs, ours)]
    for name in sorted(ours.keys() | theirs.keys()):
        found, expected = (known.get(name, "absent") for known in shapes)
        if found != expected:
            raise ValueError(
                f"{path} does not fit --task {agent.config.task} and the settings: "
                f"{name} is {found} in the checkpoint and {expected} here"
            )


# Files


def save_checkpoint(path: Path | str, state: dict[str, Any], previous: Path | str | None = None) -> None:
    """Writes a checkpoint; a kill at any moment leaves the old file or the new one.

    The old file, if there is one, is kept as `previous`. Raises TypeError for contents that `load_checkpoint` would
    refuse, before anything is written.
    """
    path = Path(path)
    _check_plain(state, "checkpoint")
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides a failed write: it then fails to end its archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if previous is not None and path.exists():
            aside = path.with_name(f".{Path(previous).name}.tmp")
            aside.unlink(missing_ok=True)
            try:
                os.link(path, aside)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, aside)
            os.replace(aside, previous)


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str, torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, strings and lists")


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, without running code from it. Raises ValueError, one line, if it is damaged."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block, a device might never end
            raise ValueError("not a regular file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return renamed(state)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises various types for various kinds of damage
        # torch's advice about pickled files is not for a checkpoint, which holds nothing that needs it
        reason = "not written by torch.save" if "weights_only" in str(error) else first_line(error)
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason})") from error


def find_nonfinite(value: Any, where: str = "") -> str | None:
    """The name of the first tensor in nested dicts and lists with an infinity or NaN in it, None if there is none."""
    if isinstance(value, torch.Tensor):
        return where if value.is_floating_point() and not value.isfinite().all() else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        found = find_nonfinite(item, f"{where}.{key}" if where else str(key))
        if found is not None:
            return found
    return None
