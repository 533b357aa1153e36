"""DreamerPro (Deng et al., ICML 2022, arXiv 2110.14565): prototypes instead of a decoder.

Two shifted views of each sequence are embedded and rolled out. The prototype scores of the embedding and of the
features must match assignments from an EMA encoder, balanced over the batch.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks
import tools
from run import distributed

from .base import Baseline


def random_shift(images: Tensor, pixels: float) -> Tensor:
    """Shifts each sequence by its own offset, uniform in ±`pixels` in x and y: bilinear, edges repeated.

    Args:
        images: (N, T, H, W, C) float; all T steps of a sequence shift alike.
    """
    n, length, height, width, _ = images.shape
    dx, dy = ((2 * torch.rand(n, 2, 1, device=images.device) - 1) * pixels).unbind(1)
    # pixel centers in units of half an image, (N, W) and (N, H)
    x = (torch.arange(width, device=images.device) + 0.5 + dx) * 2 / width - 1
    y = (torch.arange(height, device=images.device) + 0.5 + dy) * 2 / height - 1
    grid = torch.stack([x[:, None, :].expand(n, height, width), y[:, :, None].expand(n, height, width)], -1)
    # (N, T·C, H, W): one grid for all steps
    stacked = images.permute(0, 1, 4, 2, 3).flatten(1, 2)
    shifted = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
    return shifted.unflatten(1, (length, -1)).permute(0, 1, 3, 4, 2)


def sinkhorn(scores: Tensor, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn–Knopp in log space: assignments of N rows to K prototypes that use all prototypes equally.

    Args:
        scores: (..., N, K).
        eps: temperature.

    Returns:
        (..., N, K); each row sums to 1, each column to N / K, up to the convergence of the iterations.
    """
    rows, prototypes = scores.shape[-2:]
    log_q = scores / eps
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(-2, keepdim=True) - math.log(prototypes)
        log_q = log_q - log_q.logsumexp(-1, keepdim=True) - math.log(rows)
    return (log_q + math.log(rows)).exp()


@torch.no_grad()
def assign(scores: Tensor, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Assignments of each view, balanced over the rows of all ranks: (2, B, T, K) → (2, B, T, K)."""
    # rows first, to gather those of all ranks: (B·T, 2, K)
    flat = scores.flatten(1, 2).transpose(0, 1)
    balanced = sinkhorn(distributed.all_gather_rows(flat).transpose(0, 1), eps, iterations)
    return balanced.chunk(distributed.size(), 1)[distributed.rank()].unflatten(1, scores.shape[1:3])


def prototype_losses(
    embed: Tensor, feat: Tensor, target: Tensor, prototypes: Tensor, temperature: float = 0.1, eps: float = 0.05,
    iterations: int = 3,
) -> dict[str, Tensor]:  # fmt: skip
    """DreamerPro's three losses (section 3 of the paper).

    The first step of each sequence is left out of `swav` and `temp`.

    Args:
        embed, feat: projections of the online embedding and of the features, (2, B, T, P), the two views first.
        target: projection of the EMA embedding, (2, B, T, P); it gets no gradient.
        prototypes: (K, P) of any length.

    Returns:
        Scalars: `swav`, cross-entropy of each view's embedding with the other view's assignments; `temp`, that of the
        features with the assignments of their own view; `norm`, the squared distance of the projections' norms from 1.
    """
    prototypes = F.normalize(prototypes, dim=-1)

    def scores(x: Tensor) -> Tensor:
        # (2, B, T - 1, K)
        return F.normalize(x[:, :, 1:], dim=-1) @ prototypes.T

    assignments = assign(scores(target.detach()).detach(), eps, iterations)
    embed_logits = (scores(embed) / temperature).log_softmax(-1)
    feat_logits = (scores(feat) / temperature).log_softmax(-1)
    return {
        "swav": -(assignments.flip(0) * embed_logits).sum(-1).mean(),
        "temp": -(assignments * feat_logits).sum(-1).mean(),
        "norm": ((embed.norm(dim=-1) - 1) ** 2).mean() + ((feat.norm(dim=-1) - 1) ** 2).mean(),
    }


class DreamerPro(Baseline):
    """Prototypes, the two projections into their space, and EMA copies of the encoder and of its projection."""

    def __init__(self, config, encoder, dynamics):
        super().__init__(config, encoder, dynamics)
        self.config = config
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.proto_count, config.proto_size), dim=-1))
        self.embed_projection = nn.Linear(encoder.outputs, config.proto_size)
        self.feat_projection = nn.Linear(dynamics.feat_size, config.proto_size)
        for layer in (self.embed_projection, self.feat_projection):
            layer.apply(networks.init_weights)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projection = copy.deepcopy(self.embed_projection).requires_grad_(False)
        self.register_buffer("updates", torch.tensor(0))  # kept on the device, so that a captured update counts too

    def loss(self, model, data, post, prior, feat, embed):
        c = self.config
        views = self.views(data, model.encoder.cnn_keys)
        embed = model.encoder(model.apply_mask(views, None))  # with the augmentations, if any
        post, _ = model.dynamics.observe(embed, views["action"], views["is_first"])
        with torch.no_grad():
            target = self.target_projection(self.target_encoder(views))
        # the prototypes are frozen for the first `proto_freeze` updates
        prototypes = torch.where(self.updates < c.proto_freeze, self.prototypes.detach(), self.prototypes)
        # (2B, T, P), the views of a sequence side by side, to (2, B, T, P)
        embed, feat, target = (
            x.unflatten(0, (-1, 2)).transpose(0, 1)
            for x in (self.embed_projection(embed), self.feat_projection(model.dynamics.feat(post)), target)
        )
        losses = prototype_losses(
            embed, feat, target, prototypes, c.proto_temperature, c.sinkhorn_eps, c.sinkhorn_iterations
        )
        return losses, {}

    def views(self, data: dict[str, Tensor], images: list[str]) -> dict[str, Tensor]:
        """Two views of each sequence, (B, T, ...) → (2B, T, ...), side by side: rows 0 and 1 are of sequence 0."""
        views = {key: value.repeat_interleave(2, 0) for key, value in data.items()}
        for key in images:
            views[key] = random_shift(views[key], self.config.proto_shift)
        return views

    def begin_update(self, model) -> None:
        """Moves the EMA copies; the first move is a copy."""
        rate = (self.updates == 0).float().clamp_min(self.config.proto_tau)
        tools.ema(self.target_encoder, model.encoder, rate)
        tools.ema(self.target_projection, self.embed_projection, rate)

    @torch.no_grad()
    def end_update(self, metrics: dict[str, Tensor]) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=-1))
        self.updates += 1
