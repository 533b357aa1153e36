"""RePo (Zhu et al., NeurIPS 2023, arXiv 2309.00082): the information that the latent takes from the image has a budget.

There is no decoder: only reward and continuation compete for information, and a trained multiplier holds the KL of
the posterior from the prior at a target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import distributions as dists
import tools

from .base import Baseline


def kl_budget_loss(
    post: dists.OneHot | dists.Normal, prior: dists.OneHot | dists.Normal, beta: Tensor, target: float,
    balance: float = 5 / 6,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """β·(KL − target), the Lagrangian of the constraint KL ≤ target, with a balanced KL and no free nats.

    Args:
        post, prior: distributions over (B, T), each with the whole latent as event.
        beta: the multiplier, a scalar; it gets no gradient here.
        target: nats.
        balance: share of the KL that trains the prior; the rest trains the posterior.

    Returns:
        The loss, and KL − target without gradient, scalars.
    """
    kl = balance * post.detach().kl(prior) + (1 - balance) * post.kl(prior.detach())
    excess = kl.mean() - target
    return beta.detach() * excess, excess.detach()


def multiplier_loss(log_beta: Tensor, excess: Tensor) -> Tensor:
    """−log β·sg(KL − target): minimizing it raises β while the KL is above the budget, and lowers it below."""
    return -log_beta * excess.detach()


class RePo(Baseline):
    """The budget's multiplier β = exp(log β), with its own Adam."""

    def __init__(self, config, encoder, dynamics):
        super().__init__(config, encoder, dynamics)
        self.target, self.balance = config.repo_target, config.repo_balance
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.repo_init_beta)))
        self.opt = tools.Optimizer({"log_beta": self.log_beta}, config.repo_lr, eps=1e-8, clip=0)

    def loss(self, model, data, post, prior, feat, embed):
        beta = self.log_beta.exp().detach()
        post, prior = model.dynamics.dist(post), model.dynamics.dist(prior)
        loss, excess = kl_budget_loss(post, prior, beta, self.target, self.balance)
        return {"repo": loss}, {"repo_beta": beta, "repo_kl_excess": excess}

    def model_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def end_update(self, metrics: dict[str, Tensor]) -> None:
        self.opt.step(multiplier_loss(self.log_beta, metrics["repo_kl_excess"]))

    def optimizers(self) -> dict[str, tools.Optimizer]:
        return {"repo": self.opt}
