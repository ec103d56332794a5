"""The Frechet distance between Gaussians: FID, sFID, FD-DINOv2, FD-infinity and intra-class FID.

|mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)   (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

With any factors S = F^T F, the last trace is the sum of the singular values of F_x F_y^T. This needs neither a root of
a non-symmetric matrix nor an invertible covariance, and from features it is exact below full rank.

Letters: n m rows, d features, r rank of a factor, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genlab.core.errors import DataError
from genlab.evaluation.checks import check_features, check_pair
from genlab.evaluation.moments import Moments

_NOT_A_COVARIANCE = 1e-6  # asymmetry or negative eigenvalue, over the largest entry, beyond rounding


@dataclass(frozen=True)
class Gaussian:
    """Mean [d] and a factor [r,d] of the covariance (= factor^T factor, ddof 1), float64."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def from_features(cls, features: Tensor) -> Gaussian:
        """The Gaussian fitted to features [n,d], n >= 2: the factor is the centred rows, or their R if n > d.

        Raises:
            DataError: fewer than two rows, NaN or Inf.
        """
        check_features(features, "features", least=2, reason="a covariance")
        rows = features.double()
        mean = rows.mean(0)
        factor = (rows - mean) / (len(rows) - 1) ** 0.5
        if len(rows) > rows.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
        return cls(mean, factor)

    @classmethod
    def from_statistics(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """The Gaussian with mean [d] and covariance [d,d]; singular ones are fine, they fall back to eigenvectors.

        Raises:
            DataError: shapes that do not fit, NaN, Inf, or no covariance (not symmetric, clearly negative).
        """
        mean, covariance = mean.double(), covariance.double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"statistics: expected mu [d] and sigma [d,d], got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise DataError("statistics: mu or sigma holds NaN or Inf; compute them again from clean features")
        slack = _NOT_A_COVARIANCE * covariance.abs().max()
        if (covariance - covariance.mT).abs().max() > slack:
            raise DataError("statistics: sigma is not symmetric, so it is no covariance matrix")
        symmetric = (covariance + covariance.mT) / 2
        lower, failed = torch.linalg.cholesky_ex(symmetric)
        if not failed:
            return cls(mean, lower.mT)
        values, vectors = torch.linalg.eigh(symmetric)
        if values[0] < -slack:
            raise DataError(f"statistics: sigma has the eigenvalue {values[0].item():.3g}, so it is no covariance")
        kept = values > 0  # clip at 0 and nowhere else: small eigenvalues matter
        return cls(mean, values[kept].sqrt()[:, None] * vectors.mT[kept])

    @classmethod
    def from_moments(cls, moments: Moments) -> Gaussian:
        """The Gaussian of streamed moments of at least two rows."""
        return cls.from_statistics(moments.mean, moments.covariance())

    @property
    def trace(self) -> Tensor:
        """The trace of the covariance, a scalar."""
        return self.factor.square().sum()


def trace_sqrt(x: Gaussian, y: Gaussian) -> Tensor:
    """tr (S_x S_y)^(1/2), a float64 scalar."""
    return torch.linalg.svdvals(x.factor @ y.factor.mT).sum()


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """The squared Frechet distance of two Gaussians on one device, at least 0.

    Raises:
        DataError: different numbers of features.
    """
    if len(x.mean) != len(y.mean):
        raise DataError(
            f"statistics of {len(x.mean)} and of {len(y.mean)} features cannot be compared:"
            " they come from different extractors or layers"
        )
    distance = (x.mean - y.mean).square().sum() + x.trace + y.trace - 2 * trace_sqrt(x, y)
    return max(distance.item(), 0.0)


def frechet_from_features(x: Tensor, y: Tensor) -> float:
    """The Frechet distance between reference features x [n,d] and generated features y [m,d], n and m >= 2."""
    check_pair(x, y, least=2, reason="a covariance")
    return frechet_distance(Gaussian.from_features(x), Gaussian.from_features(y))


def frechet_infinity(
    x: Tensor, y: Tensor, points: int = 15, seed: int = 0, least: int = 5000
) -> tuple[float, Tensor, Tensor]:
    """The Frechet distance extrapolated to infinitely many generated images: FD_inf of Chong and Forsyth 2020.

    The rule of dgm-eval: a straight line through FD against 1/N for `points` subset sizes from
    min(`least`, max(m/10, 2)) to m, evaluated at 1/N = 0. The line may cut below 0 for good generators.

    Returns:
        (FD_inf, subset sizes [points] int64, the distance of each subset [points] float64)

    Raises:
        DataError: fewer than two points, or too few rows for two different sizes.
    """
    check_pair(x, y, least=3, reason="an extrapolation")
    if points < 2:
        raise DataError(f"{points} point(s) give no line; use at least 2")
    sizes = np.linspace(min(least, max(len(y) // 10, 2)), len(y), points).astype(np.int64)
    rng = np.random.default_rng(seed)
    reference = Gaussian.from_features(x)
    distances = []
    for size in sizes:
        chosen = torch.from_numpy(rng.choice(len(y), size, replace=False)).to(y.device)
        distances.append(frechet_distance(reference, Gaussian.from_features(y[chosen])))
    slope_and_limit = np.polyfit(1 / sizes, distances, 1)
    return float(slope_and_limit[1]), torch.from_numpy(sizes), torch.tensor(distances, dtype=torch.float64)


def intra_class_frechet(x: Tensor, x_label: Tensor, y: Tensor, y_label: Tensor) -> dict[int, float]:
    """The Frechet distance class by class (SNGAN, Miyato and Koyama 2018; StudioGAN's intra-class FID).

    The published number is the plain mean over classes. Not to be confused with the interpolated FID.

    Args:
        x, y: reference [n,d] and generated [m,d] features. x_label, y_label: int64 [n], [m].

    Raises:
        DataError: labels that do not fit, or a class with fewer than two images on either side.
    """
    check_pair(x, y, least=2, reason="a covariance")
    if len(x) != len(x_label) or len(y) != len(y_label):
        raise DataError(f"{len(x)} and {len(y)} features with {len(x_label)} and {len(y_label)} labels: not one each")
    result = {}
    for label in torch.cat([x_label, y_label]).unique().tolist():
        real, fake = x[x_label == label], y[y_label == label]
        if min(len(real), len(fake)) < 2:
            raise DataError(
                f"class {label} has {len(real)} reference and {len(fake)} generated images;"
                " intra-class FID needs at least 2 of each"
            )
        result[label] = frechet_from_features(real, fake)
    return result


def sfid_features(maps: Tensor, channels: int = 7) -> Tensor:
    """sFID features (Nash et al. 2021, as in the ADM evaluator) from maps [N,C,H,W] of Mixed_6d.branch1x1 after ReLU.

    The first 7 channels, channels last, flattened: 17x17x7 = 2023 with index (h * 17 + w) * 7 + c. Flattening NCHW
    instead gives features of the same length that cannot be compared.
    """
    if maps.ndim != 4 or maps.shape[1] < channels:
        raise DataError(f"sFID needs maps [N, at least {channels} channels, H, W], got shape {tuple(maps.shape)}")
    return maps[:, :channels].permute(0, 2, 3, 1).flatten(1)
