"""The interface of a method that adds a representation loss to the world model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

import networks

if TYPE_CHECKING:
    import tools
    from run.config import Config


class Baseline(nn.Module):
    """A method's losses and the parameters they need, as a part of the world model.

    A method defines `loss` and overrides what it needs besides. An update may be captured as a CUDA graph: a value that
    changes from update to update must be a tensor on the device, not a number in Python.

    Args:
        config: all settings.
        encoder, dynamics: the world model's, for their sizes and for copies; they remain the world model's.
    """

    def __init__(self, config: Config, encoder: networks.Encoder, dynamics: networks.RSSM):
        super().__init__()

    def loss(
        self, model: nn.Module, data: dict[str, Tensor], post: networks.State, prior: networks.State, feat: Tensor,
        embed: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
        """The method's losses.

        Args:
            model: the world model, for its `encoder` and `dynamics`.
            data: a preprocessed batch, (B, T, ...), images in [-0.5, 0.5].
            post, prior: states of the rollout, (B, T, ...).
            feat: (B, T, F), of post.
            embed: (B, T, E).

        Returns:
            Losses, each a scalar or of every step; one named `x` is weighted by the setting `x_scale`.
            Metrics without gradient.
        """
        raise NotImplementedError

    def model_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the world model's optimizer trains, by name."""
        return {name: p for name, p in self.named_parameters("baseline") if p.requires_grad}

    def begin_update(self, model: nn.Module) -> None:
        """Called before the losses of an update are computed."""

    def end_update(self, metrics: dict[str, Tensor]) -> None:
        """Called after the world model's optimizer step, with the metrics that `loss` returned among others."""

    def optimizers(self) -> dict[str, tools.Optimizer]:
        """The method's own optimizers, by name."""
        return {}


class FeatureProjection(Baseline):
    """A method that compares the features, mapped linearly to the size of the embedding, with the embedding."""

    def __init__(self, config: Config, encoder: networks.Encoder, dynamics: networks.RSSM):
        super().__init__(config, encoder, dynamics)
        self.projection = nn.Linear(dynamics.feat_size, encoder.outputs, bias=False)
        self.projection.apply(networks.init_weights)

    def pair(self, feat: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped features and embedding: (B, T, F), (B, T, E) → (B·T, E) each."""
        return self.projection(feat).flatten(0, 1), embed.flatten(0, 1)
