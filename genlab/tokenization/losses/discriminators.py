"""Networks that tell images from reconstructions: a PatchGAN (Isola et al. 2017) and a StyleGAN-type one."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from genlab.core.errors import ConfigError
from genlab.core.settings import Settings

Norm = Literal["batch", "group", "none"]


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """The normalisation of a convolution's output."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(channels, 32), channels) if kind == "group" else nn.Identity()


def finished(network: nn.Module, spectral: bool) -> Any:
    """The network with spectral norms where asked for, and batch statistics over all processes on GPUs."""
    if spectral:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear)):
                nn.utils.parametrizations.spectral_norm(module)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and "nccl" in torch.distributed.get_backend():
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


class PatchDiscriminator(nn.Module):
    """Images [B,3,R,R] -> logits [B,1,h,w], one for each of many overlapping patches."""

    def __init__(self, config: PatchGAN, channels: int = 3):
        super().__init__()
        widths = [config.width * min(2**level, 8) for level in range(config.layers + 1)]
        bias = config.norm == "none"
        parts: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, config.layers + 1):
            stride = 2 if level < config.layers else 1
            parts += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=bias),
                norm_layer(config.norm, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.main(images)
        return logits


class PatchGAN(Settings):
    """VQGAN's discriminator; 3 layers judge patches of 70 pixels."""

    name: Literal["patchgan"] = "patchgan"
    width: PositiveInt = 64
    layers: PositiveInt = 3
    """Convolutions of stride 2; images must measure 3 * 2^layers pixels (layers 1: 6, 2: 12, 3: 24)."""
    norm: Norm = "batch"
    spectral: bool = False
    """Spectral normalisation of all convolutions."""

    def build(self, image_size: int) -> PatchDiscriminator:
        """The network with fresh weights. Raises ConfigError if it is too deep for R x R images."""
        needed = 3 * 2**self.layers
        if image_size < needed:
            fitting = int(math.log2(max(image_size, 3) / 3))
            remedy = f"use layers: {fitting}" if fitting else "images of 6 pixels are the smallest it can judge"
            raise ConfigError(
                f"patchgan with {self.layers} layers needs images of {needed} pixels, not {image_size}: {remedy}"
            )
        network: PatchDiscriminator = finished(PatchDiscriminator(self), self.spectral)
        return network


class Blur(nn.Module):
    """[1,2,1] x [1,2,1] / 16 on every channel, borders reflected."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv2d(padded, self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3), groups=x.shape[1])


class StyleGANBlock(nn.Module):
    """Two convolutions and a blurred one of stride 2, beside a 1x1 convolution; halves the size."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_res = nn.Conv2d(inputs, outputs, 1, stride=2)
        self.net = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.downsample = nn.Sequential(Blur(), nn.Conv2d(outputs, outputs, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.downsample(self.net(x)) + self.conv_res(x)) / math.sqrt(2)
        return out


class StyleGANDiscriminator(nn.Module):
    """Images [B,3,R,R] -> logits [B,1]; residual blocks down to 4x4."""

    def __init__(self, config: StyleGAN, image_size: int):
        super().__init__()
        sides = [image_size >> level for level in range(image_size.bit_length() - 2)]  # R, R/2, ..., 4
        widths = [config.channels(side) for side in sides]
        blocks = [StyleGANBlock(*pair) for pair in itertools.pairwise(widths)]
        self.blocks = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2), *blocks)
        last = widths[-1]
        self.final_conv = nn.Sequential(nn.Conv2d(last, last, 3, padding=1), nn.LeakyReLU(0.2))
        self.final_linear = nn.Sequential(nn.Linear(last * 16, last), nn.LeakyReLU(0.2), nn.Linear(last, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.final_linear(self.final_conv(self.blocks(images)).flatten(1))
        return logits


class StyleGAN(Settings):
    """LlamaGen's StyleGAN-type discriminator: no equalised learning rate, no minibatch deviation."""

    name: Literal["stylegan"] = "stylegan"
    multiplier: float = Field(default=1.0, gt=0.0)
    """Of the channels: 512 up to 32 pixels, then 256, 128, ... (1/8 suits small images)."""
    spectral: bool = False

    def channels(self, side: int) -> int:
        """Channels at a resolution."""
        return max(1, int(min(512, 16384 // side) * self.multiplier))

    def build(self, image_size: int) -> StyleGANDiscriminator:
        """The network with fresh weights. Raises ConfigError unless R is a power of two, at least 8."""
        if image_size < 8 or image_size & (image_size - 1):
            raise ConfigError(f"stylegan: judges images of 8, 16, 32, ... pixels, not {image_size}; use patchgan")
        network: StyleGANDiscriminator = finished(StyleGANDiscriminator(self, image_size), self.spectral)
        return network
