"""KL autoencoder: images -> a Gaussian posterior over continuous latents (Rombach et al. 2022, section 3.1).

The Stable Diffusion VAE, LDM's KL-f4 ... f32 and MAR's KL-16 are presets at the bottom.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Raw, Reconstruction, TrainableTokenizer
from genlab.tokenization.autoencoder import AutoencoderSettings, check_images, quant_convolution
from genlab.tokenization.standardisation import PerChannel, check_lengths, standardise, unstandardise
from samplers.noise import SampleRng


def posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Moments [B,2z,H,W] -> mean and log-variance [B,z,H,W], the latter clamped to [-30, 20]."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def sample(moments: Tensor, noise: Tensor) -> Tensor:
    """mean + std * noise, [B,z,H,W]."""
    mean, log_variance = posterior(moments)
    return mean + torch.exp(0.5 * log_variance) * noise


def divergence(moments: Tensor) -> Tensor:
    """KL of the posterior from the standard normal, in nats per sample [B]."""
    mean, log_variance = posterior(moments)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=(1, 2, 3))


def negative_log_likelihood(moments: Tensor, latents: Tensor) -> Tensor:
    """-log of the posterior's density at `latents`, in nats per sample [B]."""
    mean, log_variance = posterior(moments)
    error = (latents - mean).square() / log_variance.exp()
    return 0.5 * (math.log(2.0 * math.pi) + log_variance + error).sum(dim=(1, 2, 3))


class KLTokenizer(TrainableTokenizer):
    """Encoder, convolution, Gaussian posterior, convolution, decoder."""

    def __init__(self, config: KL, spec: LatentSpec):
        super().__init__()
        z = config.channels
        self.config = config
        self.spec = spec
        self.encoder = config.build_encoder(2 * z)
        self.quant_conv = quant_convolution(2 * z, 2 * z, config.quant_kernel)
        self.post_quant_conv = quant_convolution(z, z, config.quant_kernel)
        self.decoder = config.build_decoder(z)

    def encode(self, images: Tensor) -> Tensor:
        """Images -> moments [B,2z,H,W]: means, then log-variances as the network gives them."""
        return self.quant_conv(self.encoder(check_images(images, self.config.stride)))

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        """Moments -> standardised latents [B,z,H,W]: a posterior sample, or its mean where `sample` is off."""
        assert isinstance(raw, Tensor)
        return standardise(self._latents(raw, rng), self.spec)

    def decode(self, tokens: Tensor) -> Tensor:
        return self._reconstruct(unstandardise(tokens, self.spec))

    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        moments = self.encode(images)
        kl = divergence(moments.float())
        # The published weights go with an error summed over the image; genlab's is a mean.
        loss = kl * (self.config.kl_weight / images[0].numel())
        latents = self._latents(moments, rng)
        return Reconstruction(self._reconstruct(latents), loss, {"kl": kl}, latents=latents)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.get_parameter("conv_out.weight")

    @property
    def last_encoder_layer(self) -> nn.Parameter:
        return self.encoder.get_parameter("conv_out.weight")

    def _latents(self, moments: Tensor, rng: SampleRng) -> Tensor:
        if not self.config.sample:
            return posterior(moments)[0]
        noise = rng.normal(self.config.channels, *moments.shape[-2:])
        return sample(moments, noise.to(moments.dtype))

    def _reconstruct(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class KL(AutoencoderSettings):
    """A KL autoencoder."""

    name: Literal["kl"] = "kl"
    quant_kernel: Literal[0, 1, 3] = 1
    """Side of the convolutions before and after the posterior; 0: none."""
    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the KL divergence against a reconstruction error summed over the image, as LDM counts."""
    mean: PerChannel = (0.0,)
    std: PerChannel = (1.0,)
    """Networks see (latent - mean) / std; the inverse of what others call the scaling factor."""
    sample: bool = True
    """Draw latents from the posterior; off: take its mean."""

    @model_validator(mode="after")
    def _standardisation_fits(self) -> KL:
        check_lengths(self.channels, self.mean, self.std)
        return self

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images. Raises ConfigError if the stride does not divide R."""
        return LatentSpec("continuous", self.channels, self.grid(image_size), image_size, mean=self.mean, std=self.std)

    def build(self, image_size: int) -> KLTokenizer:
        """The tokenizer with fresh weights."""
        return KLTokenizer(self, self.latent_spec(image_size))


PRESETS = {
    # Stable Diffusion 1 and 2 and their fine-tuned decoders; latent std 1 / 0.18215
    "sd-vae": KL(multipliers=(1, 2, 4, 4), channels=4, std=(1 / 0.18215,)),
    # MAR and xAR, 66.5M parameters; rFID 0.53 on ImageNet 256
    "kl-16": KL(channels=16, attention=(4,), decoder_attention=(), std=(1 / 0.2325,)),
    # latent diffusion, OpenImages
    "ldm-kl-f16": KL(channels=16, attention=(4,)),
    "ldm-kl-f8": KL(multipliers=(1, 2, 4, 4), channels=4),
}
