"""Layers that preserve the magnitude of what they pass on: inputs of unit variance give outputs of unit variance.

"Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al., CVPR 2024 (arXiv 2312.02696), whose
equations are named below.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalise(x: Tensor, dims: int | tuple[int, ...] | None = None, eps: float = 1e-4) -> Tensor:
    """`x` scaled to unit root mean square over `dims`, by default all but the first (eq. 47)."""
    dims = tuple(range(1, x.dim())) if dims is None else dims
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    norm = norm * math.sqrt(norm.numel() / x.numel()) + eps
    return x / norm.to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU of unit variance for standard normal inputs (eq. 81)."""
    return F.silu(x) / 0.596


def mix(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The sum of (1 - share) a and share b, at the magnitude of its parts (eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def concatenate(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """Both along dimension 1, weighted so that b contributes `share` however wide it is (eq. 103)."""
    wide, narrow = a.shape[1], b.shape[1]
    scale = math.sqrt((wide + narrow) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (scale * (1 - share) / math.sqrt(wide)), b * (scale * share / math.sqrt(narrow))], dim=1)


class Fourier(nn.Module):
    """t [B] -> [B,n] float32: cosines of unit variance at random frequencies and phases (eq. 75)."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))

    freqs: Tensor
    phases: Tensor

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.freqs.float() + self.phases.float()  # [B,n]
        return angle.cos() * math.sqrt(2)


class MagnitudeLayer(nn.Module):
    """A Linear (`kernel` None) or size-preserving convolution whose output rows have unit weights (eq. 47, 66).

    What is stored may have any magnitude; `genlab.nn.magnitude.normalise_weights` resets it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None):
        super().__init__()
        side = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *side))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[B,inputs] -> [B,outputs], or [B,inputs,H,W] -> [B,outputs,H,W], times `gain`."""
        weight = normalise(self.weight.float())
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        if weight.dim() == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


@torch.no_grad()
def normalise_weights(network: nn.Module) -> None:
    """Give all stored weights of MagnitudeLayers unit magnitude, which leaves the function as it was.

    To be called before each training step: weights would grow without end, and learn ever more slowly.
    """
    for module in network.modules():
        if isinstance(module, MagnitudeLayer):
            module.weight.copy_(normalise(module.weight))
