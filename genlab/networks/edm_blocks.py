"""The blocks of the U-Nets of EDM: convolutions that resample, and residual blocks told the noise level.

"Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al., NeurIPS 2022 (arXiv 2206.00364),
which has them from ADM (Dhariwal & Nichol 2021) and DDPM++ (Song et al. 2021).

Letters: B batch, C channels, H W map, N = H W, E width of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.resample import BOX, Direction, Resample


class Conv(nn.Conv2d):
    """A square convolution that keeps the size, or resamples first.

    Args:
        kernel: its odd side.
        resample: the direction to resample in, with the filter `taps`.
        fused: convolve before resampling, whose filter then needs no padding of its own.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: Direction | None = None,
        taps: tuple[float, ...] = BOX,
        fused: bool = False,
    ):
        extra = (len(taps) - 1) // 2 if fused else 0
        super().__init__(inputs, outputs, kernel, padding=kernel // 2 + extra)
        self.before = Resample(resample, taps) if resample and not fused else nn.Identity()
        self.after = Resample(resample, taps, padded=False) if resample and fused else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(self.before(x)))


class Norm(nn.GroupNorm):
    """Group norm with at most 32 groups, of at least 4 channels."""

    def __init__(self, channels: int, eps: float):
        super().__init__(max(1, min(32, channels // 4)), channels, eps)


@dataclass(frozen=True)
class BlockStyle:
    """What distinguishes the blocks of one U-Net from those of another; the defaults are ADM's."""

    adaptive: bool = True
    """The embedding scales and shifts normalised features; otherwise it is added before the norm."""
    eps: float = 1e-5
    """Of the group norms."""
    skip_scale: float = 1.0
    """Factor after each residual sum."""
    taps: tuple[float, ...] = BOX
    """Filter of the resampling."""
    project_resampled: bool = False
    """A 1x1 convolution on the skip path wherever it resamples; otherwise only where channels change."""
    dropout: float = 0.0


class Block(nn.Module):
    """Two 3x3 convolutions around the embedding, then attention over all positions if there are `heads`.

    Args:
        inputs, outputs: channels; `outputs` divisible by `heads`.
        embedding: E.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        heads: int = 0,
        resample: Direction | None = None,
        style: BlockStyle = BlockStyle(),
    ):
        super().__init__()
        self.inputs, self.heads, self.style = inputs, heads, style
        self.norm0 = Norm(inputs, style.eps)
        self.conv0 = Conv(inputs, outputs, 3, resample, style.taps)
        self.affine = nn.Linear(embedding, 2 * outputs if style.adaptive else outputs)
        self.norm1 = Norm(outputs, style.eps)
        self.conv1 = Conv(outputs, outputs, 3)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or (resample and style.project_resampled):
            self.skip = Conv(inputs, outputs, 1, resample, style.taps)
        elif resample:
            self.skip = Resample(resample, style.taps)
        if heads:
            self.norm2 = Norm(outputs, style.eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)  # outputs ordered [3, heads, C/heads]
            self.proj = Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B,C,H,W] with the embedding e [B,E] -> [B,outputs,H',W']."""
        style = self.style
        h = self.conv0(F.silu(self.norm0(x)))  # [B,outputs,H',W']
        vector = self.affine(e)[:, :, None, None].to(h.dtype)  # [B,outputs or 2 outputs,1,1]
        if style.adaptive:
            scale, shift = vector.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm1(h + vector))
        h = self.conv1(F.dropout(h, style.dropout, self.training))
        x = (h + self.skip(x)) * style.skip_scale
        return (self._attend(self.norm2(x)) + x) * style.skip_scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1)).flatten(4)  # [B,3,heads,C/heads,N]
        q, k, v = qkv.transpose(3, 4).unbind(1)  # 3 x [B,heads,N,C/heads]
        a = F.scaled_dot_product_attention(q, k, v)  # [B,heads,N,C/heads]
        return self.proj(a.transpose(2, 3).reshape(x.shape))
