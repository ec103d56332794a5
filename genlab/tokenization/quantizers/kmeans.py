"""k-means (Lloyd's algorithm), for a codebook's start."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.tokenization.quantizers.codebook import nearest


@torch.no_grad()
def kmeans(vectors: Tensor, means: Tensor, iterations: int = 10, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """Improve cluster centres. A cluster that loses all its vectors keeps its centre.

    Args:
        vectors: [N,C]; of length 1 if `cosine`.
        means: [V,C], where the centres start.
        cosine: keep the centres at length 1.

    Returns:
        The centres [V,C], and how many vectors were nearest to each before the last step, int64 [V].
    """
    bins = torch.zeros(len(means), dtype=torch.int64, device=vectors.device)
    for _ in range(iterations):
        sums, bins = assigned(vectors, nearest(vectors, means), len(means))
        centres = sums / bins.clamp_min(1).unsqueeze(1)
        centres = F.normalize(centres, dim=1) if cosine else centres
        means = torch.where((bins > 0).unsqueeze(1), centres, means)
    return means, bins


def assigned(vectors: Tensor, codes: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Sum [V,C] and number int64 [V] of the vectors [N,C] that have each code [N]."""
    sums = torch.zeros(vocab, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return sums.index_add_(0, codes, vectors), torch.bincount(codes, minlength=vocab)
