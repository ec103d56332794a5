"""What every metric demands of its features before it computes anything."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.core.errors import DataError


def check_features(features: Tensor, name: str, least: int = 1, reason: str = "this metric") -> Tensor:
    """`features` unchanged, if it is a finite floating-point [N,d] tensor with at least `least` rows.

    Args:
        name: what to call the set in messages, such as "generated features".
        reason: what needs `least` rows.

    Raises:
        DataError: another shape or dtype, too few rows, or NaN/Inf (the rows are named).
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"{name}: expected a matrix [images, features], got shape {tuple(features.shape)}")
    if not features.is_floating_point():
        raise DataError(f"{name}: expected floating-point features, got {features.dtype}; convert them first")
    if len(features) < least:
        raise DataError(f"{name}: {reason} needs at least {least} rows, got {len(features)}; score more images")
    finite = torch.isfinite(features.sum(1))  # a sum may also overflow, so suspects are looked at again
    if not finite.all():
        suspects = (~finite).nonzero().flatten()
        bad = suspects[~torch.isfinite(features[suspects]).all(1)].tolist()
        if bad:
            rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise DataError(
                f"{name}: {len(bad)} of {len(features)} rows hold NaN or Inf (rows {rows});"
                " look at these images, or run the extractor in float32"
            )
    return features


def check_pair(x: Tensor, y: Tensor, least: int = 1, reason: str = "this metric") -> None:
    """Refuse reference features x [n,d] and generated features y [m,d] that cannot be compared.

    Raises:
        DataError: see `check_features`; also widths or devices that differ.
    """
    check_features(x, "reference features", least, reason)
    check_features(y, "generated features", least, reason)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"reference features have {x.shape[1]} columns, generated features {y.shape[1]}:"
            " they come from different extractors or layers; extract both with the same one"
        )
    if x.device != y.device:
        raise DataError(f"reference features are on {x.device}, generated features on {y.device}; move one of them")


def check_neighbourhood(x: Tensor, y: Tensor, k: int) -> None:
    """Refuse sets that are too small for k neighbours: n and m must be at least k + 2.

    Raises:
        DataError: k < 1 or too few rows; see also `check_pair`.
    """
    if k < 1:
        raise DataError(f"k = {k}: the neighbourhood must hold at least one neighbour")
    check_pair(x, y, least=k + 2, reason=f"a neighbourhood of k = {k}")
