"""R2-Dreamer (Morihira et al., ICLR 2026): Barlow Twins between the features and the embedding, without a decoder."""

from __future__ import annotations

from torch import Tensor

from run import distributed

from .base import FeatureProjection


def barlow_twins_loss(projected: Tensor, embed: Tensor, off_diagonal: float = 5e-4) -> Tensor:
    """Distance of the cross-correlation of two views from the identity (Zbontar et al., 2021).

    Columns are standardized over the rows of all ranks, whose number is M: c = x1ᵀ·x2 / M, (E, E).

    Args:
        projected: (N, E) features, mapped to the embedding's size.
        embed: (N, E); it gets no gradient.
        off_diagonal: weight of the redundancy term.

    Returns:
        A scalar, Σᵢ (cᵢᵢ − 1)² + off_diagonal·Σ_{i≠j} cᵢⱼ². It is the whole batch's in every rank, and the mean over
        ranks of its gradient is the whole batch's.
    """
    x1 = standardize(distributed.all_gather_rows_with_gradient(projected))
    x2 = standardize(distributed.all_gather_rows(embed))
    c = x1.T @ x2 / len(x1)
    diagonal = c.diagonal()
    invariance = ((diagonal - 1) ** 2).sum()
    redundancy = (c**2).sum() - (diagonal**2).sum()
    return invariance + off_diagonal * redundancy


def standardize(x: Tensor) -> Tensor:
    """Each column of x (N, E) with mean 0 and unbiased std 1."""
    return (x - x.mean(0)) / (x.std(0) + 1e-8)


class R2Dreamer(FeatureProjection):
    """Features and embedding agree dimension by dimension, and no two dimensions say the same."""

    def __init__(self, config, encoder, dynamics):
        super().__init__(config, encoder, dynamics)
        self.off_diagonal = config.barlow_lambda

    def loss(self, model, data, post, prior, feat, embed):
        return {"barlow": barlow_twins_loss(*self.pair(feat, embed), self.off_diagonal)}, {}
