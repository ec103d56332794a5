"""A discriminator of small heads on frozen DINO features, as the trainer of VAR's tokenizers uses it.

After StyleGAN-T (Sauer et al. 2023): the ViT sees what matters for perception, the heads learn quickly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.errors import WeightsUnavailable
from genlab.core.settings import Settings
from genlab.tokenization.losses.discriminators import finished

_SIDE, _WIDTH = 224, 384
_AFTER = (2, 5, 8, 11)  # blocks whose outputs are judged, besides the input of block 0
_MODEL = "vit_small_patch16_224.dino"


class Head(nn.Module):
    """Features [B,384,N] -> logits [B,1,N]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(1)
        self.second = self._block(9)
        self.last = nn.Conv1d(_WIDTH, 1, 1)

    @staticmethod
    def _block(kernel: int) -> nn.Sequential:
        conv = nn.Conv1d(_WIDTH, _WIDTH, kernel, padding=kernel // 2, padding_mode="circular")
        return nn.Sequential(conv, nn.BatchNorm1d(_WIDTH), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x + self.second(x)) / math.sqrt(2)
        return cast(Tensor, self.last(x))


class DinoDiscriminator(nn.Module):
    """Images [B,3,R,R] in [-1,1] -> logits [B, 5 * 196]. Only the heads learn."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any, heads: nn.ModuleList):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.heads = heads
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Patch tokens plus the class token, [B,384,196], of five depths."""
        larger = images.shape[-1] > _SIDE
        options: dict[str, Any] = {"mode": "area"} if larger else {"mode": "bicubic", "align_corners": False}
        if images.shape[-1] != _SIDE:
            images = F.interpolate(images, (_SIDE, _SIDE), **options)
        x = self.backbone.patch_embed((images / 2 + 0.5 - self.mean) / self.std)
        x = self.backbone.norm_pre(self.backbone._pos_embed(x))
        found = [x]
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            if number in _AFTER:
                found.append(x)
        return [(tokens[:, 1:] + tokens[:, :1]).transpose(1, 2) for tokens in found]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, self.features(images))], dim=1)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the heads; the ViT stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self


class Dino(Settings):
    """Heads on a frozen DINO ViT-S/16 at 224 pixels."""

    name: Literal["dino"] = "dino"
    weights: Path | None = None
    """timm's file of vit_small_patch16_224.dino (.safetensors or .pth); default: its cache, or a download."""
    spectral: bool = True

    def build(self, image_size: int) -> DinoDiscriminator:
        """The network with fresh heads, for images of any size (they are resized).

        Raises:
            WeightsUnavailable: no ViT here and no network, or a file with another one.
        """
        heads = nn.ModuleList(Head() for _ in range(1 + len(_AFTER)))
        return DinoDiscriminator(_backbone(self.weights), finished(heads, self.spectral))


def _backbone(weights: Path | None) -> nn.Module:
    import timm

    if weights is not None and not weights.is_file():
        raise WeightsUnavailable(f"DINO ViT-S/16: there is no file {weights}; it should be timm's {_MODEL}")
    overlay = {"file": str(weights)} if weights else {}
    try:
        return timm.create_model(_MODEL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsUnavailable(
            f"DINO ViT-S/16: {weights or f'timm/{_MODEL} is not cached and cannot be downloaded'} ({reason}). "
            "Give timm's file as discriminator.weights, or use patchgan."
        ) from error
