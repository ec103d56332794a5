"""MS-SSIM (Wang et al. 2003) as a training loss (Snell et al. 2017): structure compared on several scales.

Libraries refuse sides below 161 pixels, pass no gradient where structure is anti-correlated, or break under bf16
autocast; hence a short version of our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.core.errors import ConfigError

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the levels, fine to coarse (they sum to 1.0001, as published)."""
SIGMAS = {11: 1.5, 7: 1.0}
"""Standard deviation of the Gaussian window, in pixels, by its side."""


def exponents(levels: int) -> tuple[float, ...]:
    """Of 1..5 levels: the published ones, or the first few divided by their sum."""
    if levels == len(EXPONENTS):
        return EXPONENTS
    first = EXPONENTS[:levels]
    return tuple(value / sum(first) for value in first)


def choose_levels(side: int, levels: int | None = None, window: int = 11) -> int:
    """The levels asked for, or as many (at most 5) as images with a shorter side of `side` pixels have.

    Raises:
        ConfigError: too small for them.
    """
    most = next((number for number in range(5, 0, -1) if side >= window * 2 ** (number - 1)), 0)
    if most == 0:
        raise ConfigError(f"MS-SSIM with a window of {window} pixels needs a side of {window}, not {side}")
    if levels is not None and levels > most:
        needed = window * 2 ** (levels - 1)
        raise ConfigError(
            f"MS-SSIM with {levels} levels needs a side of {needed} pixels, not {side}: use {most}, or a smaller window"
        )
    return levels or most


def gaussian(window: int, sigma: float, like: Tensor) -> Tensor:
    """[window], normalised, in the dtype and on the device of `like`."""
    position = torch.arange(window, dtype=like.dtype, device=like.device) - (window - 1) / 2
    weights = torch.exp(-position.square() / (2 * sigma**2))
    return weights / weights.sum()


def smooth(x: Tensor, kernel: Tensor, padding: int = 0) -> Tensor:
    """Each channel of [B,C,H,W] convolved with the separable window; zero padding."""
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    x = F.conv2d(x, rows, padding=(padding, 0), groups=channels)
    return F.conv2d(x, rows.transpose(2, 3), padding=(0, padding), groups=channels)


def level_similarities(x: Tensor, y: Tensor, levels: int, window: int = 11, data_range: float = 1.0) -> Tensor:
    """Spatial means per level, image and channel, [levels,B,C]: contrast and structure, on the last level the SSIM."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    kernel = gaussian(window, SIGMAS[window], x)
    values = []
    for level in range(levels):
        if level:  # odd sizes: the last row or column is dropped
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        moments = smooth(torch.cat([x, y, x * x, y * y, x * y], dim=1), kernel)
        mean_x, mean_y, square_x, square_y, product = moments.chunk(5, dim=1)
        xx, yy, xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
        value = (2 * (product - xy) + c2) / (square_x - xx + square_y - yy + c2)
        if level == levels - 1:
            value = value * (2 * xy + c1) / (xx + yy + c1)
        values.append(value.mean((2, 3)))
    return torch.stack(values)


def ms_ssim(
    x: Tensor, y: Tensor, weights: Sequence[float], window: int = 11, data_range: float = 1.0, eps: float = 1e-6
) -> Tensor:
    """Images [B,C,H,W] in [0, data_range], float32 or float64 -> MS-SSIM per image and channel, [B,C].

    Levels below `eps` (anti-correlated structure) count as `eps`, so that the others still get gradients. The result
    over an image is the mean of its channels.
    """
    with torch.autocast(x.device.type, enabled=False):
        values = level_similarities(x, y, len(weights), window, data_range).clamp_min(eps)
        return (values ** values.new_tensor(weights)[:, None, None]).prod(0)


def ms_ssim_loss(images: Tensor, reconstruction: Tensor, weights: Sequence[float], window: int = 11) -> Tensor:
    """1 - MS-SSIM per image [B], of images in [-1,1]."""
    x, y = (_at_least_float32(part) / 2 + 0.5 for part in (images, reconstruction))
    return 1.0 - ms_ssim(x, y, weights, window).mean(1)


def smoothed_l1(images: Tensor, reconstruction: Tensor, sigma: float) -> Tensor:
    """|x - y| under a zero-padded Gaussian of `sigma` pixels, the mean per image [B] (Zhao et al. 2017)."""
    radius = round(3 * sigma + 0.49)
    error = _at_least_float32(images - reconstruction).abs()
    with torch.autocast(error.device.type, enabled=False):
        return smooth(error, gaussian(2 * radius + 1, sigma, error), padding=radius).mean((1, 2, 3))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
