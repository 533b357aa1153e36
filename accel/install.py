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
                        setattr(module, name, Step(module, name, mode))
            if isinstance(module, networks.RSSM) and backend.fuse == "compiled":
                module.feat = Feat(module)
        # parameters do not change within these
        scopes = [(agent.world_model, "losses"), *((behavior, "loss") for behavior in agent.behaviors)]
        for owner, name in scopes:
            setattr(owner, name, within_rollout(getattr(owner, name), mode))
    graphs = Graphs(agent, backend, mode)
    agent.update, agent.act_step, agent.load = graphs.update, graphs.act_step, graphs.load


def within_rollout(function: Callable, mode: Mode) -> Callable:
    @functools.wraps(function)
    def call(*args, **kwargs):
        with mode.rollout():
            return function(*args, **kwargs)

    return call


class Graphs:
    """An agent's update, and its acting for each number of envs and each way to act."""

    def __init__(self, agent: nn.Module, backend: Backend, mode: Mode):
        self.agent, self.backend, self.mode = agent, backend, mode
        self.plain_load, self.plain_act_step = agent.load, within_rollout(agent.act_step, mode)
        self.update = GraphedFunction(agent.update, backend, mode, "update", self.snapshot)
        self.acting: dict[tuple, GraphedFunction] = {}

    def act_step(self, obs: dict, state: dict, training: bool, explore: bool) -> dict:
        key = len(obs["is_first"]), training, explore
        if key not in self.acting:

            def step(inputs):
                return self.plain_act_step(inputs["obs"], inputs["state"], training, explore)

            self.acting[key] = GraphedFunction(step, self.backend, self.mode, "acting")
        return self.acting[key]({"obs": obs, "state": state})

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
