"""Deep compression autoencoder (Chen et al. 2024, DC-AE): continuous latents at strides 32 and more, no posterior.

The network is diffusers' `AutoencoderDC`; the settings bear the names of its constructor's arguments.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Raw, Reconstruction, TrainableTokenizer
from genlab.core.settings import Settings
from genlab.tokenization.autoencoder import check_images, latent_grid
from genlab.tokenization.standardisation import PerChannel, check_lengths, standardise, unstandardise
from samplers.noise import SampleRng

BlockKind = Literal["ResBlock", "EfficientViTBlock"]


class DeepCompressionTokenizer(TrainableTokenizer):
    """A deterministic encoder and decoder."""

    def __init__(self, config: DeepCompression, spec: LatentSpec):
        from diffusers import AutoencoderDC

        super().__init__()
        self.config = config
        self.spec = spec
        network: Any = AutoencoderDC(**config.constructor_arguments())
        self.encoder: nn.Module = network.encoder
        self.decoder: nn.Module = network.decoder

    def encode(self, images: Tensor) -> Tensor:
        """Images -> latents [B,C,H,W]."""
        return self.encoder(check_images(images, self.config.stride))

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        """Latents, standardised."""
        assert isinstance(raw, Tensor)
        return standardise(raw, self.spec)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.decoder(unstandardise(tokens, self.spec))

    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        """The reconstruction; the tokenizer has no loss of its own."""
        latents = self.encode(images)
        return Reconstruction(self.decoder(latents), images.new_zeros(len(images)), {}, latents=latents)

    @property
    def last_layer(self) -> nn.Parameter:
        last = self.decoder.get_submodule("conv_out")
        return last.get_parameter("weight" if isinstance(last, nn.Conv2d) else "conv.weight")

    @property
    def last_encoder_layer(self) -> nn.Parameter:
        return self.encoder.get_parameter("conv_out.weight")


class DeepCompression(Settings):
    """A deep compression autoencoder; the defaults are those of the published f32c32."""

    name: Literal["dc"] = "dc"
    latent_channels: PositiveInt = 32
    attention_head_dim: PositiveInt = 32
    encoder_block_types: tuple[BlockKind, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    """One entry a level, from the full resolution."""
    decoder_block_types: tuple[BlockKind, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    encoder_block_out_channels: tuple[PositiveInt, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[PositiveInt, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    """Blocks on each level; 0 on the first level lets the first convolution halve the resolution."""
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    """Kernels of the depthwise convolutions that give each level's linear attention further scales."""
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle"
    decoder_norm_types: tuple[str, ...] | str = "rms_norm"
    decoder_act_fns: tuple[str, ...] | str = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    mean: PerChannel = (0.0,)
    std: PerChannel = (1.0,)
    """Networks see (latent - mean) / std; the inverse of diffusers' scaling_factor."""

    @model_validator(mode="after")
    def _fits(self) -> DeepCompression:
        levels = len(self.encoder_block_out_channels)
        for side in ("encoder", "decoder"):
            for part in ("block_types", "block_out_channels", "layers_per_block", "qkv_multiscales"):
                if len(getattr(self, f"{side}_{part}")) != levels:
                    raise ValueError(f"{side}_{part} needs one entry for each of the {levels} levels")
        check_lengths(self.latent_channels, self.mean, self.std)
        return self

    @property
    def stride(self) -> int:
        """Image pixels along the side of one latent position."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments of diffusers' `AutoencoderDC`."""
        return self.model_dump(exclude={"name", "mean", "std"})

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images. Raises ConfigError if the stride does not divide R."""
        grid = latent_grid(image_size, image_size, self.stride)
        return LatentSpec("continuous", self.latent_channels, grid, image_size, mean=self.mean, std=self.std)

    def build(self, image_size: int) -> DeepCompressionTokenizer:
        """The tokenizer with fresh weights."""
        return DeepCompressionTokenizer(self, self.latent_spec(image_size))
