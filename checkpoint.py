"""The checkpoints of a run: `latest.pt`, and `previous.pt`, which is used if the latest is damaged or missing."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from torch import nn

import distributed
import tools

LATEST, PREVIOUS = "latest.pt", "previous.pt"
KINDS = {
    "step": int, "updates": int, "eval_episodes": int, "lines": int, "under_way": bool, "last_return": float | None,
    "episode": list, "sent": list, "ranks": list, "policy": dict | None, "replay": dict, "done_at": dict, "agent": dict,
}  # fmt: skip


def find(logdir: Path) -> tuple[Path | None, dict | None, str]:
    """A run's newest intact checkpoint: its path, its contents, and what is wrong with a newer one.

    Raises ValueError, one line, if all existing ones are damaged.
    """
    problem = ""
    for path in (logdir / LATEST, logdir / PREVIOUS):
        try:
            return path, tools.load_checkpoint(path), problem
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
        tools.log_line(f"{problem}: resumed from {path}")
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
    broken = tools.find_nonfinite(state["agent"])
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
        tools.log_line(f"{problem}: evaluating {path}")
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
        problem = f"{type(error).__name__}: {tools.first_line(error)}"
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
