"""DINOv2 ViT-L/14 (Oquab et al. 2023): FD-DINOv2 by the rules of dgm-eval and of EDM2, and RIGID's encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.errors import WeightsUnavailable
from genlab.core.public_weights import FoundWeights, WeightsFile
from genlab.evaluation.extractors.base import NormalisingExtractor, Precision
from genlab.evaluation.resize import bicubic_antialias, pil

WEIGHTS = WeightsFile(
    what="DINOv2 ViT-L/14",
    file="dinov2_vitl14_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    megabytes=1218,
    instead="score offline with --extractor efflite0 (another backbone, named otherwise)",
)
_SIDE = 224
_PATCH = 14
_WIDTH = 1024
_HEAD_WIDTH = 64
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_PROTOCOLS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "dinov2": ("Pillow antialiased bicubic to 224x224 (dgm-eval)", partial(pil, size=_SIDE, kind="bicubic")),
    "dinov2_edm2": (
        "PyTorch antialiased bicubic to 224x224 in float, no clamp (EDM2)",
        partial(bicubic_antialias, size=_SIDE),
    ),
    "dinov2_rigid": ("Pillow antialiased bilinear to 224x224 (RIGID)", partial(pil, size=_SIDE, kind="bilinear")),
}


class DinoV2(NormalisingExtractor):
    """uint8 images of any size -> 224 by the protocol's rule, /255, ImageNet mean and std -> class token.

    Layer `class_token` [B, 1024], after the final norm. `protocol` is a key of `_PROTOCOLS`; it is part of the name,
    since the resizing rule changes the distance. Other sizes of DINOv2 are built from the tensors' shapes, for
    weights of one's own.
    """

    family = "dinov2"
    mean: Tensor
    std: Tensor
    feature_layer = "class_token"
    dimensions: ClassVar = {"class_token": _WIDTH}

    def __init__(
        self,
        found: FoundWeights,
        layers: Sequence[str] | None = None,
        precision: Precision = "strict",
        protocol: str = "dinov2",
    ):
        super().__init__(_vision_transformer(found), found, layers, precision)
        self.protocol = protocol
        rule, self._resize = _PROTOCOLS[protocol]
        self.resize = f"{rule}, /255, ImageNet mean and std"
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def name(self) -> str:
        return self.protocol + super().name.removeprefix(self.family)

    def pixels(self, images: Tensor) -> Tensor:
        return self._resize(images).float().div_(255.0)

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"class_token": self.network(inputs)}


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """DINOv2's hub code: position embeddings [1, 1 + M M, D] -> [1, 1 + grid grid, D].

    Bicubic without antialiasing, with the scale (grid + 0.1) / M rather than grid / M: the 0.1 guarded against
    rounding in an early version and was kept, and it shifts the sampling points.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return positions
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, M, M]
    scale = (grid + 0.1) / side
    resized = F.interpolate(square.float(), scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([token, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _vision_transformer(found: FoundWeights) -> torch.nn.Module:
    """timm's ViT, whose parameter names are those of the hub file, sized by the tensors of the file."""
    from timm.models.vision_transformer import VisionTransformer

    state = found.read()
    state.pop("mask_token", None)
    positions, patches = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if positions is None or patches is None or patches.shape[-1] != _PATCH:
        raise WeightsUnavailable(f"{found.path}: no DINOv2 ViT with patches of {_PATCH} pixels; expected {WEIGHTS.url}")
    state["pos_embed"] = resize_positions(positions, _SIDE // _PATCH)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    width = positions.shape[-1]
    with torch.device("meta"):
        network = VisionTransformer(
            img_size=_SIDE,
            patch_size=_PATCH,
            embed_dim=width,
            depth=depth,
            num_heads=width // _HEAD_WIDTH,
            init_values=1.0,
            num_classes=0,
            global_pool="token",
        )
    found.load_into(network, state)
    return network


def load(
    path: Path | None,
    layers: Sequence[str] | None,
    precision: Precision,
    allow_unofficial: bool,
    protocol: str = "dinov2",
) -> DinoV2:
    """The extractor with weights from `path`, the torch hub cache or Meta's server."""
    return DinoV2(WEIGHTS.locate(path, allow_unofficial), layers, precision, protocol)
