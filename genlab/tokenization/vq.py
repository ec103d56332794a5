"""Tokenizers with a codebook: encoder, quantiser, decoder (VQGAN, Esser et al. 2021).

With its network, quantiser and sizes a config stands for the VQGANs of taming-transformers and latent diffusion, for
those of LlamaGen and MaskGIT, and for RQ-VAE; presets are at the bottom.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Raw, Reconstruction, TrainableTokenizer
from genlab.core.errors import ConfigError
from genlab.tokenization import maskgit
from genlab.tokenization.autoencoder import AutoencoderSettings, check_images, quant_convolution
from genlab.tokenization.quantizers.configs import QuantizerConfig
from genlab.tokenization.quantizers.gumbel import GumbelVQ
from genlab.tokenization.quantizers.residual import ResidualVQ
from genlab.tokenization.quantizers.vector import LearnedVQ
from samplers.noise import SampleRng


class VQTokenizer(TrainableTokenizer):
    """Encoder, convolution, quantiser, convolution, decoder."""

    def __init__(self, config: VQ, spec: LatentSpec):
        super().__init__()
        z, c = config.channels, config.code_width
        self.config = config
        self.spec = spec
        self.encoder = config.build_encoder(z)
        self.quant_conv = quant_convolution(z, c, config.quant_kernel)
        self.quantizer = config.quantizer.build(c)
        self.post_quant_conv = quant_convolution(c, z, config.quant_kernel)
        self.decoder = config.build_decoder(z)

    def features(self, images: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] -> the maps [B,C,H,W] that are quantised."""
        images = check_images(images, self.config.stride)
        pixels = images * 0.5 + 0.5 if self.config.unit_pixels else images
        return self.quant_conv(self.encoder(pixels))

    def encode(self, images: Tensor) -> Tensor:
        """Images -> codes int64 [B,H,W], of residual quantisers [B,H,W,D]."""
        return self.quantizer.encode(self.features(images))

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        """Codes are left alone."""
        assert isinstance(raw, Tensor)
        return raw

    def embed(self, codes: Tensor) -> Tensor:
        """Codes -> the continuous maps [B,C,H,W] that they stand for."""
        return self.quantizer.decode(codes)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.reconstruct(self.embed(tokens))

    def reconstruct(self, maps: Tensor) -> Tensor:
        """Maps of code vectors [B,C,H,W] -> images [B,3,R,R], nominally in [-1,1]."""
        pixels = self.decoder(self.post_quant_conv(maps))
        return pixels * 2.0 - 1.0 if self.config.unit_pixels else pixels

    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        z, codes, loss, terms = self.quantizer(self.features(images))
        return Reconstruction(self.reconstruct(z), loss, terms, codes)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.get_parameter("conv_out.weight")


class VQ(AutoencoderSettings):
    """An autoencoder with a codebook."""

    name: Literal["vq"] = "vq"
    quantizer: QuantizerConfig
    network: Literal["vqgan", "maskgit"] = "vqgan"
    """Encoder and decoder: VQGAN's, or MaskGIT's without attention and biases."""
    code_channels: PositiveInt | None = None
    """Channels of a code vector; default: `channels`."""
    quant_kernel: Literal[0, 1, 3, 5] = 1
    """Side of the convolutions before and after the quantiser; 0: none."""
    unit_pixels: bool = False
    """The network works on pixels in [0,1] (images stay in [-1,1]), as MaskGIT's does."""

    @model_validator(mode="after")
    def _parts_fit(self) -> VQ:
        if self.quant_kernel == 0 and self.code_width != self.channels:
            raise ValueError(
                f"code_channels={self.code_channels} needs convolutions that change channels={self.channels}"
            )
        if self.network == "maskgit" and (self.attention or self.decoder_attention or self.mid_attention):
            raise ValueError("network maskgit has no attention: leave the levels empty and set mid_attention to false")
        return self

    @property
    def code_width(self) -> int:
        """Channels of a code vector."""
        return self.channels if self.code_channels is None else self.code_channels

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images. Raises ConfigError if strides or blocks do not divide R."""
        down, across = self.quantizer.block if self.quantizer.kind == "residual" else (1, 1)
        rows, columns = self.grid(image_size)
        if rows % down or columns % across:
            raise ConfigError(f"latents of {rows} x {columns} cannot be cut into quantizer.block={(down, across)}")
        return LatentSpec(
            kind=self.quantizer.kind,
            channels=self.code_width,
            grid=(rows // down, columns // across),
            image_size=image_size,
            vocab=self.quantizer.vocab,
            depth=self.quantizer.depth if self.quantizer.kind == "residual" else None,
        )

    def build(self, image_size: int) -> VQTokenizer:
        """The tokenizer with fresh weights."""
        return VQTokenizer(self, self.latent_spec(image_size))

    def build_encoder(self, out_channels: int) -> nn.Module:
        if self.network == "vqgan":
            return super().build_encoder(out_channels)
        return maskgit.Encoder(self.width, self.level_channels, self.blocks, out_channels, self.groups)

    def build_decoder(self, in_channels: int) -> nn.Module:
        if self.network == "vqgan":
            return super().build_decoder(in_channels)
        return maskgit.Decoder(self.level_channels, self.blocks, in_channels, self.groups)


PRESETS = {
    # taming-transformers, ImageNet 256; rFID 7.94 and 4.98
    "taming-f16-1024": VQ(channels=256, attention=(4,), quantizer=LearnedVQ(vocab=1024, legacy=True)),
    "taming-f16-16384": VQ(channels=256, attention=(4,), quantizer=LearnedVQ(vocab=16384, legacy=True)),
    # taming-transformers, OpenImages; rFID 1.49
    "taming-gumbel-f8": VQ(multipliers=(1, 1, 2, 4), channels=256, attention=(3,), quantizer=GumbelVQ(vocab=8192)),
    # latent diffusion, OpenImages; rFID 1.49 and 1.14
    "ldm-vq-f8-256": VQ(
        multipliers=(1, 2, 2, 4), channels=4, attention=(3,), quantizer=LearnedVQ(vocab=256, legacy=True)
    ),
    "ldm-vq-f8": VQ(
        multipliers=(1, 2, 2, 4), channels=4, attention=(3,), quantizer=LearnedVQ(vocab=16384, legacy=True)
    ),
    # LlamaGen, ImageNet 256; rFID 2.19 and 0.59
    "llamagen-vq-16": VQ(channels=256, code_channels=8, attention=(4,), quantizer=LearnedVQ(vocab=16384, unit=True)),
    "llamagen-vq-8": VQ(
        multipliers=(1, 2, 2, 4),
        channels=256,
        code_channels=8,
        attention=(3,),
        quantizer=LearnedVQ(vocab=16384, unit=True),
    ),
    # MaskGIT, MAGE and ENAT, ImageNet 256; rFID 2.28
    "maskgit": VQ(
        network="maskgit",
        unit_pixels=True,
        mid_attention=False,
        channels=256,
        quant_kernel=0,
        quantizer=LearnedVQ(vocab=1024, legacy=True),
    ),
    # RQ-VAE, ImageNet 256
    "rq-vae-f32": VQ(
        multipliers=(1, 1, 2, 2, 4, 4),
        channels=256,
        attention=(5,),
        quantizer=ResidualVQ(vocab=16384, depth=4, shared=True),
    ),
}
