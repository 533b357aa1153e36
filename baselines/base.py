"""What a method may add to the world model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks

if TYPE_CHECKING:
    import models
    import tools
    from config import Config


class Baseline(nn.Module):
    """A method's losses and the parameters they need, as a part of the world model.

    A method sets `scales` and defines `loss`; the other methods below do nothing unless it overrides them. An update
    may be captured as a CUDA graph: what changes from update to update has to be a tensor on the device, not a number
    in Python.

    Args:
        config: all settings.
        encoder, dynamics: the world model's, for their sizes and for copies; they stay the world model's own.
    """

    scales: dict[str, float]  # weight of each loss in the world model's total

    def __init__(self, config: Config, encoder: networks.Encoder, dynamics: networks.RSSM):
        super().__init__()

    def loss(
        self,
        model: models.WorldModel,
        data: dict[str, Tensor],
        post: networks.State,
        prior: networks.State,
        feat: Tensor,
        embed: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The method's losses.

        Args:
            data: a preprocessed batch, (B, T, ...), images in [-0.5, 0.5].
            post, prior: states of the rollout, (B, T, ...).
            feat: (B, T, F), of post.
            embed: (B, T, E).

        Returns:
            Scalar losses, each named in `scales`, and further metrics without gradient.
        """
        raise NotImplementedError

    def model_parameters(self) -> list[nn.Parameter]:
        """The parameters that the world model's optimizer trains."""
        return [p for p in self.parameters() if p.requires_grad]

    def begin_update(self, model: models.WorldModel) -> None:
        """Called before the losses of an update are computed."""

    def end_update(self, metrics: dict[str, Tensor]) -> None:
        """Called after the world model's optimizer step, with the metrics that `loss` returned among others."""

    def optimizers(self) -> dict[str, tools.Optimizer]:
        """Optimizers of the method's own, by name."""
        return {}


class Projection(nn.Linear):
    """A linear layer computed in `compute_dtype`, with float32 parameters and output."""

    def __init__(self, inputs: int, outputs: int, bias: bool, compute_dtype: torch.dtype):
        super().__init__(inputs, outputs, bias)
        self.compute_dtype = compute_dtype
        networks.init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return F.linear(x.to(self.compute_dtype), self.weight.to(self.compute_dtype), bias).float()
