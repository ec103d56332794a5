"""The convolutional encoder and decoder that KL, VQ and multi-scale tokenizers share.

This is the network of VQGAN (Esser et al. 2021) and latent diffusion (Rombach et al. 2022): residual blocks on levels
of halved resolution, attention on some of them and in the middle. diffusers' `Encoder` and `Decoder` compute exactly
that; here they get the settings of the whole family.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.errors import ConfigError
from genlab.core.settings import Settings


class AutoencoderSettings(Settings):
    """Sizes of the encoder and decoder; level 0 is the full resolution, each further level halves it."""

    width: PositiveInt = 128
    """Channels of the first convolution, of which `multipliers` are multiples."""
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    """Channels of each level as a multiple of `width`; one entry a level."""
    blocks: PositiveInt = 2
    """Residual blocks on each level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = ()
    """Levels of the encoder whose residual blocks are each followed by attention."""
    decoder_attention: tuple[int, ...] | None = None
    """The same for the decoder, with the encoder's numbering; default: as in the encoder."""
    mid_attention: bool = True
    """Attention between the two residual blocks at the lowest resolution."""
    channels: PositiveInt = 16
    """Channels z between encoder and decoder."""
    groups: PositiveInt = 32
    """Groups of the group normalisation; the channels of every level must be multiples of it."""

    @model_validator(mode="after")
    def _fits(self) -> AutoencoderSettings:
        for channels in {self.width, *self.level_channels}:
            if channels % self.groups:
                raise ValueError(f"{channels} channels are no multiple of groups={self.groups}")
        levels = len(self.multipliers)
        if wrong := [n for n in (*self.attention, *(self.decoder_attention or ())) if not 0 <= n < levels]:
            raise ValueError(f"attention on level {wrong[0]}, but the levels are 0..{levels - 1}")
        return self

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def stride(self) -> int:
        """Image pixels along the side of one latent position."""
        return int(2 ** (len(self.multipliers) - 1))

    def grid(self, image_size: int) -> tuple[int, int]:
        """(H, W) of the latents of R x R images. Raises ConfigError if the stride does not divide R."""
        return latent_grid(image_size, image_size, self.stride)

    def build_encoder(self, out_channels: int) -> nn.Module:
        """Images [B,3,R,R] -> [B,out_channels,R/stride,R/stride]."""
        from diffusers.models.autoencoders.vae import Encoder
        from diffusers.models.resnet import ResnetBlock2D

        kinds = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
        encoder: Any = Encoder(
            out_channels=out_channels,
            down_block_types=tuple(kinds[level in self.attention] for level in range(len(self.multipliers))),
            double_z=False,
            **self._shared(),
        )
        if self.multipliers[0] != 1:  # the first convolution has `width` channels; diffusers gives it level 0's
            encoder.conv_in = nn.Conv2d(3, self.width, 3, padding=1)
            encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
                in_channels=self.width,
                out_channels=self.level_channels[0],
                temb_channels=None,  # type: ignore[arg-type]
                groups=self.groups,
                eps=1e-6,
            )
        return encoder

    def build_decoder(self, in_channels: int) -> nn.Module:
        """[B,in_channels,H,W] -> images [B,3,H*stride,W*stride], unbounded. `conv_out` is the last layer."""
        from diffusers.models.autoencoders.vae import Decoder

        attention = self.attention if self.decoder_attention is None else self.decoder_attention
        kinds = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
        return Decoder(
            in_channels=in_channels,
            up_block_types=tuple(kinds[level in attention] for level in reversed(range(len(self.multipliers)))),
            **self._shared(),
        )

    def _shared(self) -> dict[str, Any]:
        return {
            "block_out_channels": self.level_channels,
            "layers_per_block": self.blocks,
            "norm_num_groups": self.groups,
            "mid_block_add_attention": self.mid_attention,
        }


def latent_grid(height: int, width: int, stride: int) -> tuple[int, int]:
    """(H, W) of the latents of an image. Raises ConfigError if the stride does not divide its sides."""
    if height % stride or width % stride:
        raise ConfigError(
            f"images of {height} x {width}: the sides must be multiples of the tokenizer's stride {stride}"
        )
    return height // stride, width // stride


def check_images(images: Tensor, stride: int) -> Tensor:
    """The images [B,3,R,R] themselves. Raises ConfigError if the stride does not divide their sides."""
    latent_grid(images.shape[-2], images.shape[-1], stride)
    return images


def quant_convolution(cin: int, cout: int, kernel: int) -> nn.Module:
    """The convolution between encoder or decoder and what stands between them; none for kernel 0."""
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2) if kernel else nn.Identity()
