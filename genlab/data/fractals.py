"""Procedural colour fractals: as many classes and images as wanted, of any size, from a seed alone.

A class is an iterated function system with a palette; its images differ in small changes of the maps, in rotation and
in hue. They cost little, so they also are the load for benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genlab.core.settings import Settings
from genlab.data.ifs import Floats, System, attractor, draw_system, finest_for, rotations, to_frame
from genlab.data.source import ImageSource, Split, digest
from samplers.noise import SampleRng, spawn

_POINTS_PER_PIXEL = 3.0
_MARGIN = 0.04
_TURN = 0.35
"""Greatest rotation of an image, radians."""
_BEND = 0.05
"""Greatest rotation of each map, radians, and shift of each map."""
_HUE_SHIFT = 0.07
"""Greatest shift along the palette, in turns."""
_PALETTE_STEPS = 256
_CACHED_CLASSES = 2048


class Fractals(Settings):
    """Colour images of iterated function systems, class = system."""

    name: Literal["fractals"] = "fractals"
    size: int = Field(64, ge=8, le=1024)
    """Side R."""
    classes: int = Field(10, ge=1, le=100_000)
    count: int = Field(10_000, ge=1)
    """Images per epoch, classes in turn; image i is a pure function of (seed, i)."""
    seed: int = 0
    """Chooses the systems and the images. Train and test images are different images of the same classes."""

    def build(self, split: Split = "train") -> ImageSource:
        return FractalImages(self, split)


@dataclass(frozen=True)
class _Class:
    """How to draw one class."""

    system: System
    hues: Floats  # [K], each map's place on the palette
    phases: Floats  # [3], the palette's phase for red, green and blue, in turns
    background: Floats  # [3] in 0..1
    finest: float


class FractalImages(ImageSource):
    """Fractals, drawn when asked for."""

    def __init__(self, settings: Fractals, split: Split):
        super().__init__((f"fractal {number}" for number in range(settings.classes)), settings.size)
        self._settings = settings
        self._split = split

    def __len__(self) -> int:
        return self._settings.count

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        rng = spawn(self._settings.seed, indices).fork(int(self._split == "test"))
        labels = np.asarray(indices, dtype=np.int64) % self._settings.classes
        images = np.empty((len(labels), self.image_size, self.image_size, 3), dtype=np.uint8)  # [n,R,R,3]
        for label in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == label)
            kind = _draw_class(self._settings.seed, label, self.image_size)
            images[rows] = _draw(kind, rng.rows(torch.from_numpy(rows)), self.image_size)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)

    def labels(self) -> Tensor:
        return torch.arange(len(self)) % self._settings.classes

    def fingerprint(self) -> str:
        return digest(f"{self._settings.model_dump_json()} {self._split}")


@lru_cache(maxsize=_CACHED_CLASSES)
def _draw_class(seed: int, label: int, size: int) -> _Class:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, label])))
    system = draw_system(rng)
    maps = len(system.shift)
    hues = (rng.permutation(maps) + 0.5) / maps
    phases = rng.uniform() + np.array([0.0, 1.0, 2.0]) * rng.uniform(0.15, 0.34) * rng.choice([-1, 1])
    background = 0.5 + 0.5 * np.cos(2 * math.pi * (phases + 0.5))
    return _Class(
        system,
        hues.astype(np.float32),
        phases.astype(np.float32),
        (0.03 + 0.08 * background).astype(np.float32),
        finest_for(system.scales, int(_POINTS_PER_PIXEL * size**2)),
    )


def _draw(kind: _Class, rng: SampleRng, size: int) -> NDArray[np.uint8]:
    """n images of one class, uint8 [n,R,R,3]."""
    maps = len(kind.hues)

    def vary(most: float, *shape: int) -> Floats:
        return (most * (2.0 * rng.uniform(*shape) - 1.0)).numpy()

    turn = rotations(vary(_TURN, 1))  # [n,1,2,2]
    linear = turn @ rotations(vary(_BEND, maps)) @ kind.system.linear @ turn.swapaxes(-1, -2)  # [n,K,2,2]
    shift = (turn @ (kind.system.shift + vary(_BEND, maps, 2))[..., None])[..., 0]  # [n,K,2]
    points, hues = attractor(linear, shift, kind.hues, kind.system.scales, kind.finest)
    density, hue = _splat(to_frame(points, _MARGIN), hues, size)  # each [n,R,R]
    palettes = _palettes(kind.phases, vary(_HUE_SHIFT, 1))  # [n,steps,3]
    color = palettes[np.arange(len(palettes))[:, None, None], (hue * (_PALETTE_STEPS - 1)).astype(np.int64)]
    light = _light(density)[..., None]
    image = kind.background + (color - kind.background) * light
    return (image * 255.0 + 0.5).astype(np.uint8)


def _splat(points: Floats, hues: Floats, size: int) -> tuple[Floats, Floats]:
    """Points per pixel and their mean hue, each [n,R,R], for points [n,P,2] in the unit square."""
    count = len(points)
    cells = (points * size).astype(np.int32)
    flat = (np.arange(count, dtype=np.int32)[:, None] * size + cells[..., 1]) * size + cells[..., 0]  # [n,P]
    total = count * size * size
    density = np.bincount(flat.ravel(), minlength=total)
    hue = np.bincount(flat.ravel(), np.broadcast_to(hues, flat.shape).ravel(), minlength=total) / np.maximum(density, 1)
    shape = (count, size, size)
    return density.reshape(shape).astype(np.float32), hue.reshape(shape).astype(np.float32)


def _light(density: Floats) -> Floats:
    """Densities [n,R,R] -> brightness in 0..1, logarithmic, saturating at 4 times the mean of lit pixels."""
    lit = density > 0
    mean = density.sum((1, 2)) / np.maximum(lit.sum((1, 2)), 1)  # [n]
    return np.minimum(np.log1p(density) / np.log1p(4.0 * mean)[:, None, None], 1.0)


def _palettes(phases: Floats, shifts: Floats) -> Floats:
    """[n,steps,3] in 0..1: a cosine per channel over one turn, begun at `shifts` [n,1]."""
    place = np.linspace(0.0, 1.0, _PALETTE_STEPS, dtype=np.float32)[None, :, None]
    wave = np.cos(2 * np.pi * (place + phases + shifts[..., None]), dtype=np.float32)
    return np.float32(0.58) + np.float32(0.42) * wave  # never as dark as the background
