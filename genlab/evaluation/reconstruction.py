"""How faithful reconstructions are: MSE, PSNR, SSIM in the variants that papers print, and LPIPS.

Images and originals are uint8 [B, 3, H, W]; results are float64 [B], one value per image, on the images' device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genlab.core.errors import DataError
from genlab.core.public_weights import FoundWeights
from genlab.evaluation.extractors.base import check_images
from genlab.tokenization.losses.lpips_network import LPIPS_TRUNKS, SMALLEST_SIDE, LpipsNet, filled_network


def mse(images: Tensor, originals: Tensor) -> Tensor:
    """Mean squared error in squared levels (0..255), exact: float64 [B]."""
    _check_pair(images, originals)
    return (images.short() - originals.short()).double().square().mean((1, 2, 3))


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error in squared levels; infinite where the error is 0.

    Papers average it over images, `psnr(mse(...)).mean()`; the pooled form, `psnr(mse(...).mean())`, differs by many
    dB and must be named.
    """
    return 10.0 * torch.log10(255.0**2 / error)


def ssim(images: Tensor, originals: Tensor, variant: str = "torchmetrics") -> Tensor:
    """Structural similarity (Wang et al. 2004) in one of the `SSIM_VARIANTS`; variants are different metrics.

    The default is Gaussian, sigma 1.5, 11x11, with the data's true range, on the images' device; those called
    skimage and llamagen run on the CPU.

    Raises:
        DataError: an unknown variant, images of different shapes, or smaller than the window.
    """
    _check_pair(images, originals)
    if variant not in SSIM_VARIANTS:
        raise DataError(f"there is no SSIM variant {variant!r}; there are {', '.join(SSIM_VARIANTS)}")
    compute, window = SSIM_VARIANTS[variant]
    if min(images.shape[2:]) < window:
        height, width = images.shape[2:]
        raise DataError(f"SSIM {variant}: images of {height}x{width} are smaller than its {window}x{window} window")
    return compute(images, originals)


def _ssim_torchmetrics(images: Tensor, originals: Tensor) -> Tensor:
    return _torchmetrics(images.double() / 255.0, originals.double() / 255.0, 1.0)


def _ssim_pm1(images: Tensor, originals: Tensor) -> Tensor:
    """On [-1, 1]: contrast and structure are as before, the luminance term is not, since means move."""
    return _torchmetrics(images.double() / 127.5 - 1.0, originals.double() / 127.5 - 1.0, 2.0)


def _torchmetrics(images: Tensor, originals: Tensor, data_range: float) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(images, originals, reduction="none", data_range=data_range)
    return torch.as_tensor(values).view(-1)


def _ssim_skimage_gaussian(images: Tensor, originals: Tensor) -> Tensor:
    return _skimage(images, originals, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


def _ssim_skimage_uniform(images: Tensor, originals: Tensor) -> Tensor:
    return _skimage(images, originals, data_range=255)


def _ssim_llamagen(images: Tensor, originals: Tensor) -> Tensor:
    """LlamaGen's: images in [0, 1] with data_range 2, which gives values that are too high. Only to compare with it."""
    return _skimage(images, originals, scale=255.0, data_range=2.0)


def _skimage(images: Tensor, originals: Tensor, scale: float | None = None, **options: float | bool) -> Tensor:
    from skimage.metrics import structural_similarity

    def channels_last(batch: Tensor) -> np.ndarray:
        values = batch.permute(0, 2, 3, 1).cpu().numpy()
        return values if scale is None else (values / scale).astype(np.float32)

    pairs = zip(channels_last(images), channels_last(originals))
    values = [structural_similarity(one, other, channel_axis=-1, **options) for one, other in pairs]
    return torch.tensor(values, dtype=torch.float64, device=images.device)


SSIM_VARIANTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {  # name -> function, window
    "torchmetrics": (_ssim_torchmetrics, 11),
    "torchmetrics_pm1_range": (_ssim_pm1, 11),
    "skimage_gaussian": (_ssim_skimage_gaussian, 11),
    "skimage_uniform7": (_ssim_skimage_uniform, 7),
    "llamagen_range2": (_ssim_llamagen, 7),
}


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018): the `lpips` package's network and heads, with checked trunk weights.

    alex and vgg are different metrics; papers mostly print alex for evaluation and use vgg as a loss.
    """

    def __init__(self, net: LpipsNet, found: FoundWeights):
        super().__init__()
        self.net: LpipsNet = net
        self.checksum = found.checksum
        self.network = filled_network(net, found)

    @torch.no_grad()
    def per_layer(self, images: Tensor, originals: Tensor) -> Tensor:
        """uint8 images and originals [B, 3, H, W] -> the distance's parts, float64 [B, 5] (squeeze: [B, 7])."""
        _check_pair(images, originals)
        if min(images.shape[2:]) < SMALLEST_SIDE[self.net]:
            height, width = images.shape[2:]
            needed = SMALLEST_SIDE[self.net]
            raise DataError(f"LPIPS {self.net}: images of {height}x{width} are too small, it needs {needed} pixels")
        parameter = next(self.network.parameters())
        one, other = (batch.to(parameter.device, parameter.dtype) / 127.5 - 1.0 for batch in (images, originals))
        _, parts = self.network(one, other, retPerLayer=True)
        return torch.cat([part.double().view(-1, 1) for part in parts], dim=1)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """uint8 images and originals [B, 3, H, W] -> distances, float64 [B]; 0 for identical images."""
        return self.per_layer(images, originals).sum(1)


def load_lpips(
    net: LpipsNet = "alex",
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    allow_unofficial: bool = False,
) -> Lpips:
    """LPIPS with the trunk from `weights` (torchvision's file), the torch hub cache, or a download.

    Raises:
        WeightsUnavailable: no trunk here and no network, or another checksum.
    """
    return Lpips(net, LPIPS_TRUNKS[net].locate(weights, allow_unofficial)).to(device)


def _check_pair(images: Tensor, originals: Tensor) -> None:
    check_images(images)
    check_images(originals)
    if images.shape != originals.shape:
        raise DataError(f"reconstructions {tuple(images.shape)} and originals {tuple(originals.shape)} differ in shape")
