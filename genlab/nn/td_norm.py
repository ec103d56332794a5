"""Norms whose weights depend on time: each is a blend of two learned vectors (DiMR, section 3.3).

"Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and Time-Dependent Layer
Normalization", Liu et al., NeurIPS 2024 (arXiv 2406.09416). A network has over a hundred such vectors, so they lie in
one TimeVectors, which evaluates all of them at once; a norm keeps the numbers of its own.

Letters: B batch, D width, N elements of all vectors together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Vectors: TypeAlias = Sequence[Tensor]
"""All vectors of a network at the batch's times: the k-th is [B, its width]."""


class TimeVectors(nn.Module):
    """Vectors that depend on time, c [B] -> [B,width] each, by their numbers.

    value = clean + s (noisy - clean) with s = sigmoid(c (1 + slope) + offset), per element (DiMR, eq. 5).

    First every norm of a network asks for its vectors with `reserve`, then `allocate` makes the parameters.
    """

    noisy: nn.Parameter
    clean: nn.Parameter
    slope: nn.Parameter
    offset: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []
        self._initial: list[float] = []

    def reserve(self, width: int, initial: float) -> int:
        """The number of a new vector of `width` elements that are `initial` at all times."""
        self.widths.append(width)
        self._initial.append(initial)
        return len(self.widths) - 1

    def allocate(self) -> TimeVectors:
        """Make the parameters [N] of all vectors that were reserved, and return this layer."""
        start = torch.cat([torch.full((width,), value) for width, value in zip(self.widths, self._initial)])  # [N]
        self.noisy, self.clean = nn.Parameter(start), nn.Parameter(start.clone())
        self.slope, self.offset = nn.Parameter(torch.zeros_like(start)), nn.Parameter(torch.zeros_like(start))
        return self

    def forward(self, c: Tensor) -> Vectors:
        """c [B], from -1 (clean) to 1 (noisy)."""
        slope, offset = self.slope.float(), self.offset.float()
        share = torch.sigmoid(torch.addcmul(offset, c.float().unsqueeze(1), 1 + slope))  # [B,N]
        return torch.lerp(self.clean, self.noisy, share.to(self.clean.dtype)).split(self.widths, dim=1)


def along(vector: Tensor, x: Tensor) -> Tensor:
    """A vector [B,D] in the shape that broadcasts with x [B,...,D]."""
    return vector.view(len(vector), *[1] * (x.dim() - 2), -1)


def rms_normalised(x: Tensor) -> Tensor:
    """x / (rms(x) + 1e-8) over the last axis; unlike in nn.RMSNorm the small number stands outside the root."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) * x.shape[-1] ** -0.5
    return x * (rms + 1e-8).reciprocal().to(x.dtype)


class TdRmsNorm(nn.Module):
    """x [B,...,D] over its root mean square, times a vector of time, and if wanted plus another."""

    def __init__(self, width: int, times: TimeVectors, bias: bool = False):
        super().__init__()
        self.slots = {"scale": times.reserve(width, 1.0)} | ({"offset": times.reserve(width, 0.0)} if bias else {})

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        scale = along(vectors[self.slots["scale"]], x)
        if "offset" not in self.slots:
            return rms_normalised(x) * scale
        return torch.addcmul(along(vectors[self.slots["offset"]], x), rms_normalised(x), scale)


class TdLayerNorm(nn.Module):
    """Layer norm of x [B,...,D] whose weight and bias are vectors of time."""

    def __init__(self, width: int, times: TimeVectors):
        super().__init__()
        self.slots = {"weight": times.reserve(width, 1.0), "bias": times.reserve(width, 0.0)}

    def forward(self, x: Tensor, vectors: Vectors) -> Tensor:
        weight, bias = (along(vectors[self.slots[name]], x) for name in ("weight", "bias"))
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)
