"""The seam: puts twins into the places of an agent's layers and methods."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import networks

from .backend import Backend, Mode
from .check import leave_out_changed
from .graphs import GraphedFunction
from .layers import replace_layers
from .steps import STEPS, Feat, Step


def install(agent: nn.Module, backend: Backend, log: Callable[[str], Any] = lambda line: None) -> None:
    """Makes a Dreamer run on `backend`; for a plain one, nothing changes.

    Args:
        agent: on its device, not installed before.
        log: called with a line when compiling has ended, and for each part that cannot be compiled or captured.
    """
    if (backend.fuse, backend.capture, backend.dtype) == ("", False, torch.float32):
        return
    if hasattr(agent, "accelerated"):
        raise ValueError("this agent runs with a backend already: install it on a new one")
    mode = agent.accelerated = Mode(backend, log)
    for module in agent.modules():
        module.__dict__.pop("frozen", None)  # a copy, made again from the twins
    leave_out_changed(agent, mode)
    replace_layers(agent, mode)
    if backend.fuse:
        for module in agent.modules():
            for kind, names in STEPS.items():
                if isinstance(module, kind):
                    for name in names:
                        replace_method(module, name, Step(module, name, mode), mode)
            if isinstance(module, networks.RSSM) and backend.fuse == "compiled":
                replace_method(module, "feat", Feat(module), mode)
        # parameters do not change within these
        scopes = [(agent.world_model, "losses"), *((behavior, "loss") for behavior in agent.behaviors)]
        for owner, name in scopes:
            setattr(owner, name, WithinRollout(getattr(owner, name), mode))
    graphs = Graphs(agent, backend, mode)
    agent.update, agent.act_step, agent.load = graphs.update, graphs.act_step, graphs.load


class WithinRollout:
    """A method of a module within a rollout; that of the copy in a copy of the module, unlike a closure."""

    def __init__(self, method: Callable, mode: Mode):
        self.method, self.mode = method, mode

    def __call__(self, *args, **kwargs):
        with self.mode.rollout():
            return self.method(*args, **kwargs)


def replace_method(module: nn.Module, name: str, twin: Callable, mode: Mode) -> None:
    """Puts the twin of a class's method into an instance, unless somebody has given the instance one of its own."""
    if name in vars(module):
        mode.log(f"{name} of one {type(module).__name__} is not that of its class: it runs as it is written")
    else:
        setattr(module, name, twin)


class Graphs:
    """An agent's update, and its acting for each number of envs and each way to act."""

    def __init__(self, agent: nn.Module, backend: Backend, mode: Mode):
        self.agent, self.backend, self.mode = agent, backend, mode
        self.plain_load, self.plain_act_step = agent.load, WithinRollout(agent.act_step, mode)
        self.update = GraphedFunction(agent.update, backend, mode, "update", self.snapshot)
        self.acting: dict[tuple, GraphedFunction] = {}

    def act_step(self, obs: dict, state: dict, training: bool, explore: bool) -> dict:
        key = len(obs["is_first"]), training, explore
        if key not in self.acting:
            step = functools.partial(self.step, training=training, explore=explore)
            self.acting[key] = GraphedFunction(step, self.backend, self.mode, "acting")
        return self.acting[key]({"obs": obs, "state": state})

    def step(self, inputs: dict, training: bool, explore: bool) -> dict:
        return self.plain_act_step(inputs["obs"], inputs["state"], training, explore)

    def load(self, state: dict) -> None:
        self.plain_load(state)
        self.update.reset()  # the optimizers' tensors are new

    def snapshot(self) -> Callable[[], None]:
        device = self.agent.device
        state, cpu = copy.deepcopy(self.agent.state()), torch.get_rng_state()
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

        def undo() -> None:
            self.plain_load(state)
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu, device)

        return undo
