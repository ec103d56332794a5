"""The encoder and decoder of MaskGIT's VQGAN (Chang et al. 2022), which MAGE and ENAT use too.

It differs from the VQGAN of `autoencoder.py`: no attention, convolutions without bias in the residual blocks and at the
encoder's start, average pooling, as many blocks on a level of the decoder as of the encoder, and a shortcut that is
none: where the channels change, a 1x1 convolution of the branch's output is added to that output. The published
weights need all of it. Parts are named as diffusers names those of its `Encoder` and `Decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """[B,cin,H,W] -> [B,cout,H,W]."""

    def __init__(self, cin: int, cout: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, eps=1e-6)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, cout, eps=1e-6)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.conv_shortcut = nn.Conv2d(cout, cout, 1, bias=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(h))


class Upsample(nn.Module):
    """[B,C,H,W] -> [B,C,2H,2W]: each value four times, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, then the step to the next one."""

    def __init__(self, cin: int, cout: int, blocks: int, groups: int, upsample: bool = False, downsample: bool = False):
        super().__init__()
        self.resnets = nn.Sequential(*(Block(cin if i == 0 else cout, cout, groups) for i in range(blocks)))
        self.downsamplers = nn.Sequential(*[nn.AvgPool2d(2)] * downsample)
        self.upsamplers = nn.Sequential(*[Upsample(cout)] * upsample)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.downsamplers(self.resnets(x)))


class Middle(nn.Module):
    """The two blocks at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.Sequential(Block(channels, channels, groups), Block(channels, channels, groups))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets(x)


class Encoder(nn.Module):
    """Images [B,3,R,R] -> [B,out_channels,H,W].

    Args:
        width: channels of the first convolution.
        level_channels: channels of each level, from the highest resolution.
    """

    def __init__(self, width: int, level_channels: Sequence[int], blocks: int, out_channels: int, groups: int):
        super().__init__()
        before, last = [width, *level_channels[:-1]], level_channels[-1]
        lowest = len(level_channels) - 1
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down_blocks = nn.Sequential(
            *(
                Level(cin, cout, blocks, groups, downsample=level < lowest)
                for level, (cin, cout) in enumerate(zip(before, level_channels))
            )
        )
        self.mid_block = Middle(last, groups)
        self.conv_norm_out = nn.GroupNorm(groups, last, eps=1e-6)
        self.conv_out = nn.Conv2d(last, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.mid_block(self.down_blocks(self.conv_in(images)))
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """[B,in_channels,H,W] -> images [B,3,R,R], unbounded."""

    def __init__(self, level_channels: Sequence[int], blocks: int, in_channels: int, groups: int):
        super().__init__()
        upwards = level_channels[::-1]
        before, highest = [upwards[0], *upwards[:-1]], len(upwards) - 1
        self.conv_in = nn.Conv2d(in_channels, upwards[0], 3, padding=1)
        self.mid_block = Middle(upwards[0], groups)
        self.up_blocks = nn.Sequential(
            *(
                Level(cin, cout, blocks, groups, upsample=step < highest)
                for step, (cin, cout) in enumerate(zip(before, upwards))
            )
        )
        self.conv_norm_out = nn.GroupNorm(groups, upwards[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(upwards[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.up_blocks(self.mid_block(self.conv_in(latents)))
        return self.conv_out(F.silu(self.conv_norm_out(h)))
