"""The Vendi score (Friedman and Dieng 2023): how many different images a set effectively holds. No reference needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_features


def vendi_score(features: Tensor, order: float = 1.0) -> float:
    """exp of the Renyi entropy of order q of the eigenvalues of K/n, K the cosine similarities of features [n,d].

    Between 1 (all alike) and min(n, d). q = 1 is Shannon's entropy; q = math.inf looks at the largest eigenvalue only.
    The eigenvalues are the squared singular values of the normalised features over n, so K is never formed.

    Raises:
        DataError: a row of zeros, which has no direction; NaN or Inf; no rows; q < 0.
    """
    check_features(features, "features", least=1, reason="the Vendi score")
    if not order >= 0:
        raise DataError(f"Vendi score: the order must be at least 0, got {order}")
    rows = features.double()
    norm = rows.norm(dim=1, keepdim=True)
    if (norm == 0).any():
        raise DataError(f"Vendi score: row {int((norm == 0).nonzero()[0, 0])} is all zeros and has no direction")
    values = torch.linalg.svdvals(rows / norm).square() / len(rows)
    p = values[values > torch.finfo(torch.float64).eps * values.max()]
    if order == 1:
        return math.exp(-(p * p.log()).sum().item())
    if order == math.inf:
        return 1 / p.max().item()
    return p.pow(order).sum().item() ** (1 / (1 - order))


def vendi_per_class(features: Tensor, labels: Tensor, order: float = 1.0) -> dict[int, float]:
    """The Vendi score of each class that occurs in labels int64 [n]."""
    if len(features) != len(labels):
        raise DataError(f"{len(features)} features with {len(labels)} labels: not one each")
    return {label: vendi_score(features[labels == label], order) for label in labels.unique().tolist()}
