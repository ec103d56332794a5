"""Patch features of a frozen vision model that the user names: what networks and tokenizers can be aligned with."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from genlab.core.errors import ConfigError, WeightsUnavailable
from genlab.core.settings import Settings

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of pixels in [0,1]


class VisionFeatures(nn.Module):
    """Resizes and normalises images as the backbone wants them. Frozen, always in evaluation mode.

    Args:
        backbone: normalised images [B,3,S,S] -> patch features [B,N,D], row by row.
        channels: D.
        size: S, the side of the images that the backbone sees.
        mean, std: of the pixels in [0,1] that it was trained on, one for each colour.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, channels: int, size: int, mean: Any, std: Any):
        super().__init__()
        self.backbone, self.channels, self.size = backbone, channels, size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] -> patch features [B,N,D]; resized bicubically, as REPA does."""
        pixels = ((images + 1) / 2 - self.mean) / self.std
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", align_corners=False)
        return self.backbone(pixels)


class VisionEncoder(Settings):
    """A pretrained vision model. What REPA and VA-VAE use is `timm:vit_base_patch14_dinov2.lvd142m`."""

    model: str = Field(pattern=r"^(timm|transformers):\S+$")
    """`timm:NAME` (any image model of timm), or `transformers:ID` (a vision transformer on the hub, or a folder)."""
    weights: Path | None = None
    """A copy on this disk instead of the hub's: timm's file (.safetensors or .pth), or the folder for transformers."""
    pretrained: bool = True
    """Off: random weights, which are of use in tests only."""
    size: PositiveInt | None = None
    """Side to which images are resized. Default: one patch for each token that is aligned, as in REPA (DINOv2's patches
    of 14 pixels: 224 for 16 x 16 tokens)."""

    def build(self, grid: int) -> VisionFeatures:
        """The model, to be compared with grid x grid tokens.

        Raises:
            ConfigError: no such model, or one without patches.
            WeightsUnavailable: weights that are neither here nor to be had, or of another model.
        """
        if self.weights is not None and not self.weights.exists():
            raise WeightsUnavailable(f"{self.model}: there is nothing at {self.weights}")
        library, _, name = self.model.partition(":")
        return (self._timm if library == "timm" else self._transformers)(name, grid)

    def _timm(self, name: str, grid: int) -> VisionFeatures:
        import timm
        from safetensors import SafetensorError

        if not timm.is_model(name):
            raise ConfigError(f"encoder.model: timm has no {name!r}; timm.list_models(pretrained=True) names them")
        given = {"pretrained_cfg_overlay": {"file": str(self.weights)}} if self.weights else {}
        options: dict[str, Any] = {"pretrained": self.pretrained, "num_classes": 0, **given}
        try:
            try:
                model: Any = timm.create_model(name, dynamic_img_size=True, **options)
            except TypeError:  # sizes are free in convolutional networks, and fixed in a few others
                model = timm.create_model(name, **options)
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
            raise self._missing(error) from error
        last = model.feature_info[-1]
        data = timm.data.resolve_model_data_config(model)
        size = self.size or last["reduction"] * grid
        return VisionFeatures(_Timm(model), last["num_chs"], size, data["mean"], data["std"])

    def _transformers(self, name: str, grid: int) -> VisionFeatures:
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModel

        source = str(self.weights or name)
        try:
            if self.pretrained:
                model, report = AutoModel.from_pretrained(source, output_loading_info=True)
                if absent := [key for key in report["missing_keys"] if "pooler" not in key]:  # it is not used here
                    raise ValueError(f"without {min(absent)}")
            else:
                model = AutoModel.from_config(AutoConfig.from_pretrained(source))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise self._missing(error) from error
        model = getattr(model, "vision_model", model)  # of those that read text as well
        patch = getattr(model.config, "patch_size", None)
        if not isinstance(patch, int):
            raise ConfigError(f"encoder.model: {self.model} has no patches; name a vision transformer, or timm's copy")
        size = self.size or patch * grid
        return VisionFeatures(_Transformers(model, patch), model.config.hidden_size, size, *_pixel_statistics(source))

    def _missing(self, error: Exception) -> WeightsUnavailable:
        reason = " ".join(str(error).split())[:200]
        place = self.weights or "neither cached nor to be downloaded"
        return WeightsUnavailable(
            f"{self.model}: {place} ({reason}). Give a copy as encoder.weights, or fetch it once while online"
        )


class _Timm(nn.Module):
    """The last features of a model of timm's, normed, without class and register tokens."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        (features,) = self.model.forward_intermediates(
            pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return features.flatten(2).mT  # [B,N,D]


class _Transformers(nn.Module):
    """The last hidden state of a vision transformer of transformers', without the tokens before the patches."""

    def __init__(self, model: Any, patch: int):
        super().__init__()
        import inspect

        self.model, self.patch = model, patch
        resizable = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resizable else {}

    def forward(self, pixels: Tensor) -> Tensor:
        patches = (pixels.shape[-1] // self.patch) ** 2
        return self.model(pixel_values=pixels, **self.options).last_hidden_state[:, -patches:]  # [B,N,D]


def _pixel_statistics(source: str) -> Any:
    """Mean and std that a folder or repository of transformers' states; else ImageNet's."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return _IMAGENET
    return stated.get("image_mean", _IMAGENET[0]), stated.get("image_std", _IMAGENET[1])
