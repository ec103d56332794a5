"""Iterated function systems: a few contractive affine maps whose attractor is a fractal (Hutchinson 1981).

Letters: n systems drawn at once, K maps, P points, R image side. Coordinates are (x, y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

_STRONGEST_STRETCH = 0.92
"""The largest singular value that a map may have; each map contracts."""
_SKETCH_POINTS = 3000
_SKETCH_SIDE = 24
_FILLED = (0.32, 0.75)
"""Least and greatest share of a sketch's cells that a good fractal touches: neither dust nor a blot."""
_LEAST_ASPECT = 0.55


@dataclass(frozen=True)
class System:
    """An iterated function system: map k takes p to linear[k] p + shift[k]."""

    linear: Floats  # [K,2,2]
    shift: Floats  # [K,2]

    @property
    def scales(self) -> NDArray[np.float64]:
        """[K], the square root of the area that each map leaves of a unit square."""
        return np.sqrt(np.abs(np.linalg.det(self.linear.astype(np.float64))))


def draw_system(rng: np.random.Generator) -> System:
    """A random system whose attractor fills its frame well.

    Singular values follow the rule of Anderson & Farrell 2022, "Improving Fractal Pre-training": for K maps the sum of
    (larger + 2 smaller) lies between (5 + K) / 2 and (6 + K) / 2.
    """
    while True:
        maps = int(rng.integers(2, 5))
        larger = rng.uniform(0.35, _STRONGEST_STRETCH, maps)
        smaller = larger * rng.uniform(0.45, 1.0, maps)
        weight = rng.uniform((5 + maps) / 2, (6 + maps) / 2) / (larger + 2 * smaller).sum()
        if weight * larger.max() > _STRONGEST_STRETCH:
            continue
        stretch = np.stack([larger, smaller], -1) * weight * rng.choice([-1, 1], (maps, 2))
        before, after = rotations(rng.uniform(0, 2 * math.pi, (2, maps)))  # each [K,2,2]
        linear = after * stretch[:, None] @ before
        system = System(linear.astype(np.float32), rng.uniform(-1, 1, (maps, 2)).astype(np.float32))
        if _fills_frame(system):
            return system


def attractor(
    linear: Floats, shift: Floats, hues: Floats, scales: NDArray[np.float64], finest: float
) -> tuple[Floats, Floats]:
    """Points of the attractors, evenly spread, and a hue for each.

    The tree of compositions of maps is walked breadth first; a branch ends where its composition is smaller than
    `finest`, and leaves one point there. So every point stands for an equally small piece of the attractor.

    Args:
        linear, shift: [n,K,2,2] and [n,K,2], variants of one system.
        hues: [K] in [0,1]; a point's hue blends those of the maps that lead to it, the last one weighing half.
        scales: [K], `System.scales`.
        finest: the size at which branches end, relative to the whole.

    Returns:
        points [n,P,2] and hues [P].
    """
    points = np.zeros((len(linear), 1, 2), dtype=np.float32)
    blend, sizes = np.full(1, 0.5, dtype=np.float32), np.ones(1)
    ended_points: list[Floats] = []
    ended_blends: list[Floats] = []
    while sizes.size:
        x, y = points[:, None, :, 0], points[:, None, :, 1]  # [n,1,m]
        a, e = linear[..., None], shift[..., None]  # [n,K,2,2,1], [n,K,2,1]
        moved = np.stack([a[:, :, i, 0] * x + a[:, :, i, 1] * y + e[:, :, i] for i in (0, 1)], -1)  # [n,K,m,2]
        points = moved.reshape(len(linear), -1, 2)
        blend = (np.float32(0.5) * (blend + hues[:, None])).ravel()
        sizes = (sizes * scales[:, None]).ravel()
        ended = sizes < finest
        ended_points.append(points[:, ended])
        ended_blends.append(blend[ended])
        points, blend, sizes = points[:, ~ended], blend[~ended], sizes[~ended]
    return np.concatenate(ended_points, 1), np.concatenate(ended_blends)


def finest_for(scales: NDArray[np.float64], points: int) -> float:
    """The `finest` at which `attractor` gives about `points` points, at most twice as many."""
    finest, leaves = 0.5, 0
    while leaves < points:
        finest *= 0.8
        leaves = _leaves(scales, finest)
    return finest


def to_frame(points: Floats, margin: float) -> Floats:
    """Points [n,P,2] moved and scaled, keeping the aspect, so that each system fills the unit square but `margin`."""
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)  # [n,1,2]
    extent = (high - low).max(2, keepdims=True)
    return (points - (low + high) / 2) * ((1.0 - 2.0 * margin) / extent) + np.float32(0.5)


def rotations(angles: NDArray[Any]) -> NDArray[Any]:
    """Matrices [...,2,2] that turn by angles [...] in radians; the dtype is kept."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _leaves(scales: NDArray[np.float64], finest: float) -> int:
    sizes, leaves = np.ones(1), 0
    while sizes.size:
        sizes = (sizes * scales[:, None]).ravel()
        ended = sizes < finest
        leaves += int(ended.sum())
        sizes = sizes[~ended]
    return leaves


def _fills_frame(system: System) -> bool:
    hues = np.zeros(len(system.shift), dtype=np.float32)
    finest = finest_for(system.scales, _SKETCH_POINTS)
    points, _ = attractor(system.linear[None], system.shift[None], hues, system.scales, finest)
    extent = points[0].max(0) - points[0].min(0)
    if extent.min() < _LEAST_ASPECT * extent.max():
        return False
    cells = (to_frame(points, 0.0)[0] * (_SKETCH_SIDE - 1e-3)).astype(np.int64).clip(0, _SKETCH_SIDE - 1)
    filled = len(np.unique(cells[:, 0] * _SKETCH_SIDE + cells[:, 1])) / _SKETCH_SIDE**2
    return _FILLED[0] < filled < _FILLED[1]
