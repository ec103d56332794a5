"""How far a score would move with other samples from the same generator: 95 % intervals, without sampling again.

Letters: n generated rows, d features, r rank of a factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.evaluation.frechet import Gaussian

Z = 1.959963984540054  # 97.5 % quantile of the standard normal
RESEED = 0.013
"""Frechet distances that differ by less are ties: several hundred SiT runs vary by 1-2 % by seed alone."""
_MOST = 4096  # rows beyond which the influence of a sample of them tells as much


def frechet_halfwidth(reference: Gaussian, features: Tensor, count: int) -> float:
    """Half the 95 % interval of a Frechet distance over draws of `count` generated images, the reference being fixed.

    The infinitesimal jackknife (Jaeckel 1972): the distance changes with the weight of image y_i at the rate
    2 (mu_y - mu_x).(y_i - mu_y) + (y_i - mu_y)^T (I - T) (y_i - mu_y), centred, where T is the optimal transport map
    from N(mu_y, S_y) to N(mu_x, S_x); its spread over images, over sqrt(count), is the standard error. With factors,
    y_i - mu_y = sqrt(n-1) F_i and F T F^T = (F S_x F^T)^(1/2), so no covariance is inverted. Below full rank it errs on
    the wide side, by about a third where n = 2d/3.

    Args:
        features: the generated features [n,d], or an evenly spaced sample of them.
    """
    rows = features[:: -(-len(features) // _MOST)].double().to(reference.mean.device)
    n = len(rows)
    if n < 3:
        return math.nan
    mean = rows.mean(0)
    centred = rows - mean  # [n,d]
    basis, factor = (
        (None, centred / (n - 1) ** 0.5) if n <= rows.shape[1] else torch.linalg.qr(centred / (n - 1) ** 0.5)
    )
    cross = reference.factor @ factor.mT  # [r, min(n,d)]
    values, vectors = torch.linalg.eigh(cross.mT @ cross)
    root = vectors * values.clamp(min=0).pow(0.25)  # root root^T = (F S_x F^T)^(1/2)
    transported = (root if basis is None else basis @ root).square().sum(1) * (n - 1)  # [n]
    influence = 2 * centred @ (mean - reference.mean) + centred.square().sum(1) - transported
    return Z * influence.std().item() / math.sqrt(count)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `count` independent images (Wilson 1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)  # rounding leaves no share outside


def auroc_interval(auroc: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve (Hanley & McNeil 1982)."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positives - 1) * (q1 - auroc**2) + (negatives - 1) * (q2 - auroc**2)
    half = Z * math.sqrt(max(variance, 0.0) / (positives * negatives))
    return max(auroc - half, 0.0), min(auroc + half, 1.0)
