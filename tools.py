"""What every learner uses: an optimizer, an EMA of networks, means of metrics."""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from run import distributed


class Optimizer:
    """Adam (AdamW with weight decay) on fixed parameters, with gradient-norm clipping.

    The gradient is the mean over all ranks, so that they take the same step.

    Args:
        params: the parameters by name.
        lr, eps: of Adam.
        clip: maximum 2-norm over all gradients; 0 for no clipping.
        weight_decay: decoupled.
        unused: names of parameters that a loss need not reach; their gradient is 0 then.
    """

    def __init__(
        self, params: Mapping | Iterable, lr: float, eps: float, clip: float, weight_decay: float = 0.0, unused=()
    ):
        params = dict(params)
        self.names, self.params = list(params), list(params.values())
        self.clip, self.unused = clip, unused
        self.settings = {"lr": lr, "eps": eps, "weight_decay": weight_decay}

    @functools.cached_property
    def adam(self) -> torch.optim.AdamW:
        """Created at its first use, when the parameters are on their device."""
        cuda = self.params[0].is_cuda
        # the fused CPU kernel was no faster
        kernel = {"fused": True, "capturable": True} if cuda else {"foreach": True}
        return torch.optim.AdamW(self.params, **self.settings, **kernel)

    def step(self, loss: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
        """One step on the scalar `loss`; only these parameters get a gradient. Returns its norm before clipping.

        Raises ValueError if the loss does not reach a parameter that is not among `unused`.
        """
        grads = torch.autograd.grad(loss, self.params, retain_graph=retain_graph, allow_unused=True)
        for name, param, grad in zip(self.names, self.params, grads, strict=True):
            if grad is None and name not in self.unused:
                raise ValueError(f"the loss does not reach {name}: name it in `unused`, or do not optimize it")
            # Adam assumes that gradients have the memory layout of their parameters; convolutions' may be channels last
            param.grad = torch.zeros_like(param) if grad is None else grad.contiguous()
        distributed.average(param.grad for param in self.params)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.clip or float("inf"))
        self.adam.step()
        return norm.detach()


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with the same weights, in the same memory, that get no gradient."""
    memo = {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def ema(target: torch.nn.Module, online: torch.nn.Module, rate: float | torch.Tensor) -> None:
    """target ← (1 - rate)·target + rate·online, parameter by parameter; `rate` is a number or a scalar tensor."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.lerp_(new, rate)


class Metrics:
    """Means of scalars over many updates, summed on the device: nothing waits for the GPU before `result`.

    The sums are float64 and part of the state, so that a resumed run logs the same means, bit for bit.
    """

    def __init__(self):
        self._sums: dict[tuple[str, ...], list] = {}  # keys of an update: their sums (number of keys), updates

    def update(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Adds a dict of scalar tensors, of one device."""
        keys = tuple(metrics)
        values = torch.stack([value.detach().reshape(()).float() for value in metrics.values()])
        sums, updates = self._sums.get(keys) or (values.new_zeros(len(keys), dtype=torch.float64), 0)
        self._sums[keys] = [sums.to(values.device).add_(values), updates + 1]  # a resume may have changed the device

    def means(self) -> dict[str, float]:
        """The means since the last `result`."""
        totals: dict[str, list[float]] = {}
        for keys, (sums, updates) in self._sums.items():
            for key, value in zip(keys, sums.tolist(), strict=True):
                total = totals.setdefault(key, [0.0, 0])
                total[0] += value
                total[1] += updates
        return {key: total / count for key, (total, count) in totals.items()}

    def result(self) -> dict[str, float]:
        """The means since the last call, which are then reset."""
        means = self.means()
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": [[list(keys), sums.to("cpu", copy=True), n] for keys, (sums, n) in self._sums.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {tuple(keys): [sums.clone(), updates] for keys, sums, updates in state["sums"]}
