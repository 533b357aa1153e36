"""A contrastive loss between features and embedding: the control of R2-Dreamer (Morihira et al., ICLR 2026)."""

from __future__ import annotations

from torch import Tensor

from run import distributed

from .base import FeatureProjection


def infonce_loss(projected: Tensor, embed: Tensor) -> Tensor:
    """Cross-entropy of picking each row's own embedding among those of all ranks (van den Oord et al., 2018).

    Args:
        projected: (N, E) features, mapped to the embedding's size.
        embed: (N, E); it gets no gradient.

    Returns:
        A scalar; the mean over ranks is the whole batch's.
    """
    # (N, ranks·N), this rank's own embeddings on a diagonal
    logits = projected @ distributed.all_gather_rows(embed).T
    return -logits.log_softmax(-1).diagonal(distributed.rank() * len(projected)).mean()


class InfoNCE(FeatureProjection):
    """The features of a state tell its embedding among those of the batch."""

    def loss(self, model, data, post, prior, feat, embed):
        return {"infonce": infonce_loss(*self.pair(feat, embed))}, {}
