"""DISTS (Ding et al. 2020): structure and texture of VGG16 features compared, tolerant of resampled texture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.public_weights import FoundWeights
from genlab.tokenization.losses.lpips_network import LPIPS_TRUNKS

_STAGES = ((0, 4), (5, 9), (10, 16), (17, 23), (24, 30))  # slices of torchvision's `features`, without max pooling
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def l2_pool(x: Tensor) -> Tensor:
    """[B,C,H,W] -> half the size: the root of the squares under a 3x3 Hanning window."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def distance(x: Sequence[Tensor], y: Sequence[Tensor], alpha: Tensor, beta: Tensor) -> Tensor:
    """Feature maps of two batches and weights [1,K,1,1] of structure and texture of all K channels -> [B]."""
    c = 1e-6
    total = alpha.sum() + beta.sum()
    parts = [one.shape[1] for one in x]
    similarity = x[0].new_zeros(len(x[0]))
    for one, other, a, b in zip(x, y, alpha.flatten().split(parts), beta.flatten().split(parts)):
        mean_x, mean_y = one.mean((2, 3)), other.mean((2, 3))
        var_x = (one - mean_x[..., None, None]).square().mean((2, 3))
        var_y = (other - mean_y[..., None, None]).square().mean((2, 3))
        covariance = (one * other).mean((2, 3)) - mean_x * mean_y
        texture = (2 * mean_x * mean_y + c) / (mean_x.square() + mean_y.square() + c)
        structure = (2 * covariance + c) / (var_x + var_y + c)
        similarity = similarity + (a * texture + b * structure).sum(1)
    return 1.0 - similarity / total


class Dists(nn.Module):
    """The distance with frozen VGG16 features, as a loss: images in [-1,1] -> [B]."""

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, found: FoundWeights):
        super().__init__()
        from torchvision.models import vgg16

        self.trunk = vgg16(weights=None).features
        state = {key.removeprefix("features."): value for key, value in found.read().items()}
        found.load_into(self.trunk, {key: value for key, value in state.items() if not key.startswith("classifier.")})
        self.requires_grad_(False)
        for name, value in _learned_weights().items():
            self.register_buffer(name, value)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1))
        self.train()

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels in [0,1] -> themselves and the five stages, channels 3, 64, 128, 256, 512, 512."""
        x = (pixels - self.mean) / self.std
        found = [pixels]
        for number, (first, last) in enumerate(_STAGES):
            x = self.trunk[first:last](x if number == 0 else l2_pool(x))
            found.append(x)
        return found

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # squares and variances by difference
            with torch.no_grad():
                x = self.features(images.float() / 2 + 0.5)
            y = self.features(reconstruction.float() / 2 + 0.5)
            return distance(x, y, self.alpha, self.beta)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)


def load_dists(weights: Path | None = None, allow_unofficial: bool = False) -> Dists:
    """DISTS with torchvision's VGG16 from `weights`, the torch hub cache, or a download.

    Raises:
        WeightsUnavailable: no trunk here and no network, or another checksum.
    """
    return Dists(LPIPS_TRUNKS["vgg"].locate(weights, allow_unofficial))


def _learned_weights() -> dict[str, Tensor]:
    """alpha and beta [1,1475,1,1] as torchmetrics ships them; its own class would download VGG16 besides."""
    spec = find_spec("torchmetrics")  # importing it takes seconds
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "functional/image/dists_models/weights.pt"
    learned: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return {name: learned[name].detach() for name in ("alpha", "beta")}
