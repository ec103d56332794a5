"""Averages of weights whose length can be chosen after training.

"Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al., CVPR 2024 (arXiv 2312.02696).
An average of exponent gamma weighs the weights at time tau, up to time t, by
(gamma + 1) tau^gamma / t^(gamma + 1). Its length is named by `std`, the standard deviation of that profile as a share
of t; 0.05 and 0.10 are the usual two. Times are images seen, and only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


def exponent(std: ArrayLike) -> Array:
    """gamma of a relative width, above 0 and below 0.288: the largest root of a cubic."""
    inverse = np.asarray(std, dtype=np.float64) ** -2.0
    roots = [np.roots([1, 7, 16 - value, 12 - value]).real.max() for value in inverse.flatten()]
    return np.asarray(roots).reshape(inverse.shape)


def width(gamma: ArrayLike) -> Array:
    """The relative width of an exponent."""
    gamma = np.asarray(gamma, dtype=np.float64)
    return np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay(std: float, seen: float, batch: float) -> float:
    """The share that the average keeps in the update after which `seen` images have been seen, `batch` of them new."""
    return float((1 - batch / seen) ** (exponent(std) + 1))


def half_life_decay(half_life: float, seen: float, batch: float, rampup: float | None = 0.05) -> float:
    """The same for an ordinary average of a half-life in images (EDM), at first shorter: `rampup` times `seen`."""
    if rampup is not None:
        half_life = min(half_life, rampup * seen)
    return 0.5 ** (batch / max(half_life, 1e-8))


def profile(std: float, times: ArrayLike, end: float) -> Array:
    """How much an average at time `end` holds of the weights at each of `times` [n]; the shares sum to 1."""
    place = np.asarray(times, dtype=np.float64) / end
    shares = np.where(place <= 1, place ** exponent(std), 0.0)
    return shares / shares.sum()


def combination(times: ArrayLike, stds: ArrayLike, end: ArrayLike, std: ArrayLike) -> Array:
    """The weights [n] of n snapshots of averages whose sum comes closest to another average.

    Args:
        times, stds: of the snapshots [n].
        end, std: of the wanted average; [m] gives weights [n,m]. No snapshot may be later than `end`.
    """
    times, gammas = np.asarray(times, dtype=np.float64)[:, None], exponent(stds)[:, None]
    ends, wanted = np.atleast_1d(np.asarray(end, dtype=np.float64)), exponent(np.atleast_1d(std))
    if times.max() > ends.min():
        raise ValueError(f"snapshots must not be later than the average: got {times.max():g} and {ends.min():g}")
    products = _inner(times, gammas, times.T, gammas.T)  # [n,n]
    weights = np.linalg.solve(products, _inner(times, gammas, ends[None], wanted[None]))  # [n,m]
    weights = weights / weights.sum(axis=0)
    return weights if np.ndim(std) or np.ndim(end) else weights[:, 0]


@torch.no_grad()
def combine(
    snapshots: Iterable[Mapping[str, Tensor]], weights: Sequence[float], copied: Collection[str] = ()
) -> dict[str, Tensor]:
    """The weighted sum of state dicts, in float32, one held at a time.

    Args:
        copied: names that come from the last one as they are, like all that is not floating point.
    """
    result: dict[str, Tensor] = {}
    for snapshot, weight in zip(snapshots, weights, strict=True):
        for name, value in snapshot.items():
            if name in copied or not value.is_floating_point():
                result[name] = value.clone()
            elif name in result:
                result[name].add_(value.float(), alpha=weight)
            else:
                result[name] = value.float() * weight
    return result


def _inner(ta: Array, ga: Array, tb: Array, gb: Array) -> Array:
    """The inner products of profiles, in logarithms, since exponents are large."""
    ratio, power = ta / tb, np.where(ta < tb, gb, -ga)
    scale = np.log(ga + 1) + np.log(gb + 1) - np.log(ga + gb + 1) - np.log(np.maximum(ta, tb))
    return np.exp(scale + power * np.log(ratio))
