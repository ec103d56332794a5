"""The resizing rules in front of feature extractors, each exactly as its judge computes it.

All take uint8 images [B, C, H, W] and a size (side, or height and width), and give [B, C, height, width]: float32 in
levels 0..255 (bicubic rules may overshoot where it says so), or uint8 for Pillow's. Two rules that look alike differ by
7 to 25 levels on noisy images, and the distances computed behind them by several points.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size: TypeAlias = int | tuple[int, int]
Filter: TypeAlias = Literal["bilinear", "bicubic"]


def tf1_bilinear(images: Tensor, size: Size) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: no half-pixel centres, no antialiasing; the rule of FID's Inception.

    Bit-identical on the CPU to torch-fidelity's port, and about five times quicker: the width is interpolated once on
    the input's rows (transposed, so that whole rows are gathered), the height then on the result.
    """
    height, width = _pair(size)
    columns = images.transpose(2, 3).float().contiguous()  # [B, C, W, H]
    rows = _tf1_lerp(columns, width).transpose(2, 3).contiguous()  # [B, C, H, width]
    return _tf1_lerp(rows, height)  # [B, C, height, width]


def torch_bilinear(images: Tensor, size: Size) -> Tensor:
    """PyTorch's bilinear with half-pixel centres and no antialiasing: the copies of pytorch-fid."""
    return F.interpolate(images.float(), _pair(size), mode="bilinear", align_corners=False)


def bicubic_antialias(images: Tensor, size: Size) -> Tensor:
    """PyTorch's antialiased bicubic in float, neither clamped nor rounded: EDM2's DINOv2. Overshoots 0..255."""
    return F.interpolate(images.float(), _pair(size), mode="bicubic", antialias=True, align_corners=False)


def clean_fid_bicubic(images: Tensor, size: Size) -> Tensor:
    """clean-fid's rule: Pillow's antialiased bicubic on each channel in float32, clipped to 0..255, not rounded."""
    from PIL import Image

    height, width = _pair(size)

    def one(channel: Tensor) -> np.ndarray:
        picture = Image.fromarray(channel.numpy().astype(np.float32))  # mode "F"
        return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))

    channels = images.cpu().flatten(0, 1)  # [B C, H, W]
    resized = torch.from_numpy(np.stack([one(channel) for channel in channels]))
    return resized.view(*images.shape[:2], height, width).clamp_(0.0, 255.0).to(images.device)


def pil(images: Tensor, size: Size, kind: Filter = "bicubic") -> Tensor:
    """Pillow's antialiased resize of 8-bit RGB, bit for bit: dgm-eval, CMMD and RIGID.

    On the CPU Pillow itself does it; elsewhere its fixed-point arithmetic is repeated on the images' device.

    Returns:
        uint8 [B, C, height, width].
    """
    return _pil_cpu(images, _pair(size), kind) if images.device.type == "cpu" else pil_on_device(images, size, kind)


def pil_on_device(images: Tensor, size: Size, kind: Filter = "bicubic") -> Tensor:
    """`pil` as two matrix products of integers held in float64, which are exact (22 + 8 bits and few terms).

    Pillow resizes the width, rounds to 8 bits, and then the height, with weights rounded to 22 fractional bits
    (`Resample.c`).
    """
    height, width = _pair(size)
    across = torch.from_numpy(_pil_weights(images.shape[3], width, kind)).to(images.device)  # [width, W]
    down = torch.from_numpy(_pil_weights(images.shape[2], height, kind)).to(images.device)  # [height, H]
    rows = _to_8_bits(images.double() @ across.T)  # [B, C, H, width]
    return _to_8_bits(down @ rows).to(torch.uint8)  # [B, C, height, width]


def centre_square(images: Tensor) -> Tensor:
    """The central square of side min(H, W); an odd surplus leaves the extra row or column at the end."""
    side = min(images.shape[2:])
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _tf1_lerp(x: Tensor, out: int) -> Tensor:
    """Interpolates the rows (dimension 2) of [B, C, N, M] to [B, C, out, M], in TensorFlow's order of operations."""
    count = x.shape[2]
    grid = torch.arange(out, dtype=torch.float32, device=x.device) * float(np.float32(count / out))
    low = grid.long()
    high = (low + 1).clamp_max(count - 1)
    share = (grid - low.float())[:, None]  # [out, 1]
    start = x.index_select(2, low)
    return x.index_select(2, high).sub_(start).mul_(share).add_(start)


def _pil_cpu(images: Tensor, size: tuple[int, int], kind: Filter) -> Tensor:
    from PIL import Image

    height, width = size
    rule = Image.Resampling.BICUBIC if kind == "bicubic" else Image.Resampling.BILINEAR
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy())
    resized = np.stack([np.asarray(picture.resize((width, height), rule)) for picture in pictures])
    return torch.from_numpy(resized).permute(0, 3, 1, 2)


_FIXED_POINT = 1 << 22


def _to_8_bits(sums: Tensor) -> Tensor:
    """Fixed-point sums (float64, exact) -> levels 0..255, rounded as Pillow does by adding one half and shifting."""
    return sums.add_(_FIXED_POINT // 2).div_(_FIXED_POINT).floor_().clamp_(0, 255)


@lru_cache(maxsize=64)
def _pil_weights(count: int, out: int, kind: Filter) -> np.ndarray:
    """Pillow's 8-bit weights, float64 integers [out, count]: filters widened by the scale when shrinking."""
    scale = count / out
    widen = max(scale, 1.0)
    support = (2.0 if kind == "bicubic" else 1.0) * widen
    weights = np.zeros((out, count))
    for row in range(out):
        centre = (row + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), count)
        values = np.array([_kernel((x - centre + 0.5) / widen, kind) for x in range(first, last)])
        exact = values / values.sum() * _FIXED_POINT
        weights[row, first:last] = np.trunc(exact + np.copysign(0.5, exact))
    return weights


def _kernel(x: float, kind: Filter) -> float:
    """Pillow's triangle, or its bicubic with a = -0.5 (Keys 1981)."""
    x = math.fabs(x)
    if kind == "bilinear":
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
