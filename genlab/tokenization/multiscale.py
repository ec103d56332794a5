"""Tokenizers whose codes lie on several scales: VAR's (Tian et al. 2024) and FlexVAR's (Jiao et al. 2025).

VAR's scales add up to one latent. FlexVAR's are codes of the image itself at each size, so any of them alone gives an
image, and any schedule and aspect ratio will do. Both meet a next-scale generator through the same three methods:
`inputs` (what it is given in training), `step` (what it is given next) and `reconstruct` (the image in the end).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Raw, Reconstruction, TrainableTokenizer
from genlab.core.errors import ConfigError
from genlab.tokenization.autoencoder import AutoencoderSettings, check_images, quant_convolution
from genlab.tokenization.quantizers.multiscale import (
    Grid,
    MultiscaleQuantization,
    Schedule,
    as_map,
    as_sequence,
    enlarge,
    grids_of,
    length,
    shrink,
    split,
)
from genlab.tokenization.quantizers.vector import AveragedVQ, LearnedVQ
from samplers.noise import SampleRng


def _as_schedules(value: Any) -> Any:
    return (value,) if isinstance(value, list | tuple) and value and isinstance(value[0], int) else value


Schedules = Annotated[tuple[tuple[PositiveInt, ...], ...], BeforeValidator(_as_schedules), Field(min_length=1)]
"""Sides of the scales, coarse to fine; or several such lists, of which images choose the one that ends with their
latent's side."""
_SCALES = 0x5CA1E5  # the stream of random numbers that choose a step's scales
VAR_256, VAR_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


class NextScaleTokenizer(TrainableTokenizer):
    """Encoder, convolution, scales of codes, convolution, decoder.

    Wherever a schedule can be given, the default is the one of `spec`, and height and width of a scale may differ.
    """

    def __init__(self, config: MultiscaleSettings, code_channels: int, spec: LatentSpec):
        super().__init__()
        assert spec.scales is not None
        self.spec = spec
        self.stride = config.stride
        self.scales = grids_of(spec.scales)
        self.encoder = config.build_encoder(config.channels)
        self.quant_conv = quant_convolution(config.channels, code_channels, config.quant_kernel)
        self.post_quant_conv = quant_convolution(code_channels, config.channels, config.quant_kernel)
        self.decoder = config.build_decoder(config.channels)

    def features(self, images: Tensor) -> Tensor:
        """Images [B,3,R,R] in [-1,1] -> the maps [B,C,H,W] that are quantised."""
        return self.quant_conv(self.encoder(check_images(images, self.stride)))

    @abstractmethod
    def encode(self, images: Tensor, scales: Schedule | None = None) -> Tensor:
        """Images -> codes int64 [B,L], scales one after another, row-major."""

    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        """Codes are left alone."""
        assert isinstance(raw, Tensor)
        return raw

    @abstractmethod
    def decode(self, tokens: Tensor, scales: Schedule | None = None) -> Tensor:
        """Codes of all or of the first scales -> images."""

    @abstractmethod
    def inputs(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        """Codes [B,L] -> what a generator is given for the scales after the first, [B,L-l_0,C]."""

    @abstractmethod
    def step(
        self, k: int, state: Tensor | None, tokens: Tensor, scales: Schedule | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Take in scale k, of codes [B,l_k] or of vectors in their place [B,l_k,C].

        Args:
            state: what the last step returned; None before the first scale.

        Returns:
            The state, maps [B,C,h,w] that `reconstruct` turns into images, and the generator's input at the next
            scale, [B,l_{k+1},C]; None after the last one.
        """

    def reconstruct(self, maps: Tensor) -> Tensor:
        """Maps [B,C,h,w] -> images [B,3,h*stride,w*stride], nominally in [-1,1]."""
        return self.decoder(self.post_quant_conv(maps))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.get_parameter("conv_out.weight")


class MultiscaleTokenizer(NextScaleTokenizer):
    """VAR's: every scale codes what the coarser ones left over, and the sum is decoded."""

    def __init__(self, config: MultiscaleVQ, spec: LatentSpec):
        super().__init__(config, config.channels, spec)
        self.config = config
        self.quantizer = config.quantizer.build(config.channels, self.scales)

    def encode(self, images: Tensor, scales: Schedule | None = None) -> Tensor:
        """Raises ConfigError if the last scale is not that of the latent."""
        return self.quantizer.encode(self.features(images), scales)

    def decode(self, tokens: Tensor, scales: Schedule | None = None) -> Tensor:
        """Always of full size; fewer scales give less detail."""
        return self.reconstruct(self.quantizer.decode(tokens, scales))

    def inputs(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        return self.quantizer.inputs(codes, scales)

    def step(
        self, k: int, state: Tensor | None, tokens: Tensor, scales: Schedule | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.step(k, state, tokens, scales)

    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        z, codes, loss, terms = self.quantizer(self.features(images), rng)
        return Reconstruction(self.reconstruct(z), loss, terms, codes)


class FlexibleTokenizer(NextScaleTokenizer):
    """FlexVAR's: every scale codes the latent itself, averaged down to its grid, and gives an image of its own size."""

    updates: Tensor

    def __init__(self, config: FlexibleVQ, spec: LatentSpec):
        super().__init__(config, config.code_channels, spec)
        self.config = config
        self.quantizer = config.quantizer.build(config.code_channels)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def encode(self, images: Tensor, scales: Schedule | None = None) -> Tensor:
        return self._codes(self.features(images), self._grids(scales))

    def decode(self, tokens: Tensor, scales: Schedule | None = None) -> Tensor:
        """The image of the last scale in the codes, in its size."""
        return self.decode_scales(tokens, scales, first=-1)[0]

    def decode_scales(self, tokens: Tensor, scales: Schedule | None = None, first: int = 0) -> list[Tensor]:
        """The images of all scales in the codes, or of those from `first` on, each in its own size."""
        return [self.reconstruct(maps) for maps in self._maps(tokens, scales)[first:]]

    def inputs(self, codes: Tensor, scales: Schedule | None = None) -> Tensor:
        """For each scale but the first, the vectors of the one before, enlarged to its grid."""
        grids = self._grids(scales)
        coarse = self._maps(codes[:, : length(grids[:-1])], grids)
        none = torch.empty(len(codes), 0, self.spec.channels, device=codes.device)
        following = (as_sequence(enlarge(maps, grid)) for maps, grid in zip(coarse, grids[1:]))
        return torch.cat([none, *following], dim=1)

    def step(
        self, k: int, state: Tensor | None, tokens: Tensor, scales: Schedule | None = None
    ) -> tuple[Tensor, Tensor | None]:
        grids = self._grids(scales)
        maps = as_map(tokens, grids[k]) if tokens.is_floating_point() else self._embed(tokens, grids[k])
        return maps, as_sequence(enlarge(maps, grids[k + 1])) if k + 1 < len(grids) else None

    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        """The image and, each against the image averaged down to its size, a few scales that chance chooses."""
        features = self.features(images)
        z, _, loss, terms = self.quantizer(features)
        drawn = self._draw(features.shape[-1])
        errors = []
        for side in drawn:
            coarse = self.quantizer(shrink(features, (side, side)))
            loss = loss + coarse.loss
            wanted = shrink(images, (side * self.stride, side * self.stride))
            errors.append((self.reconstruct(coarse.z) - wanted).square().flatten(1).mean(1))
        loss = loss / (1 + len(drawn))
        if errors:
            terms = {**terms, "scales": torch.stack(errors).mean(0)}
            loss = loss + self.config.scale_weight * terms["scales"]
        return Reconstruction(self.reconstruct(z), loss, terms, self._codes(features, self.scales))

    def _draw(self, side: int) -> list[int]:
        """Sides of a step's random scales; the same on all ranks, so that none waits for another."""
        if not self.training:
            return []
        self.updates += 1
        order = SampleRng(_SCALES, self.updates.view(1)).uniform(side - 1)[0].argsort()
        return [1 + number for number in order[: self.config.random_scales].tolist()]

    def _grids(self, scales: Schedule | None) -> tuple[Grid, ...]:
        return self.scales if scales is None else grids_of(scales)

    def _codes(self, features: Tensor, grids: Sequence[Grid]) -> Tensor:
        return torch.cat([self.quantizer.encode(shrink(features, grid)).flatten(1) for grid in grids], dim=1)

    def _embed(self, codes: Tensor, grid: Grid) -> Tensor:
        return self.quantizer.decode(codes.unflatten(1, grid))

    def _maps(self, codes: Tensor, scales: Schedule | None) -> list[Tensor]:
        """[B,C,h,w] of each scale that the codes have."""
        grids = self._grids(scales)
        return [self._embed(part, grid) for part, grid in zip(split(codes, grids), grids)]


class MultiscaleSettings(AutoencoderSettings):
    """What both tokenizers share."""

    scales: Schedules = (VAR_256, VAR_512)
    """Sides of the scales, coarse to fine, the last one that of the latent; several lists for several image sizes."""
    quant_kernel: Literal[1, 3] = 1
    """Side of the convolutions before and after the codes."""

    @model_validator(mode="after")
    def _growing(self) -> MultiscaleSettings:
        for schedule in self.scales:
            if list(schedule) != sorted(set(schedule)):
                raise ValueError(f"scales {list(schedule)}: each must be larger than the one before")
        return self

    def schedule(self, image_size: int) -> tuple[int, ...]:
        """The scales for R x R images. Raises ConfigError if no list ends with the side of their latents."""
        side = self.grid(image_size)[0]
        for schedule in self.scales:
            if schedule[-1] == side:
                return schedule
        ends = ", ".join(str(schedule[-1]) for schedule in self.scales)
        raise ConfigError(
            f"tokenizer.scales: latents of {image_size} px images are {side} x {side}, but the scales end with {ends}; "
            f"give scales that end with {side}"
        )

    def _spec(self, image_size: int, channels: int, vocab: int) -> LatentSpec:
        return LatentSpec(
            kind="multiscale",
            channels=channels,
            grid=self.grid(image_size),
            image_size=image_size,
            vocab=vocab,
            scales=self.schedule(image_size),
        )


class MultiscaleVQ(MultiscaleSettings):
    """VAR's tokenizer: residual codes on several scales."""

    name: Literal["multiscale"] = "multiscale"
    quant_kernel: Literal[1, 3] = 3
    """Side of the convolutions before and after the codes."""
    quantizer: MultiscaleQuantization = MultiscaleQuantization()

    @model_validator(mode="after")
    def _own_convolutions_fit(self) -> MultiscaleVQ:
        if self.quantizer.phis == 0 and len({len(schedule) for schedule in self.scales}) > 1:
            raise ValueError(
                "quantizer.phis=0 gives each scale a convolution: the lists of scales must have one length"
            )
        return self

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images. Raises ConfigError if stride or scales do not fit R."""
        return self._spec(image_size, self.channels, self.quantizer.vocab)

    def build(self, image_size: int) -> MultiscaleTokenizer:
        """The tokenizer with fresh weights."""
        return MultiscaleTokenizer(self, self.latent_spec(image_size))


class FlexibleVQ(MultiscaleSettings):
    """FlexVAR's tokenizer: codes of the image itself at any size."""

    name: Literal["flexible"] = "flexible"
    quantizer: LearnedVQ | AveragedVQ = Field(LearnedVQ(vocab=8192, unit=True), discriminator="name")
    code_channels: PositiveInt = 32
    """Channels of a code vector."""
    random_scales: NonNegativeInt = 4
    """Scales that each training step adds to the full one; they are decoded and compared in their own sizes."""
    scale_weight: NonNegativeFloat = 1.0
    """Weight of those scales' squared error."""

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images. Raises ConfigError if stride or scales do not fit R."""
        return self._spec(image_size, self.code_channels, self.quantizer.vocab)

    def build(self, image_size: int) -> FlexibleTokenizer:
        """The tokenizer with fresh weights."""
        return FlexibleTokenizer(self, self.latent_spec(image_size))


_VAR: dict[str, Any] = {"width": 160, "multipliers": (1, 1, 2, 2, 4), "attention": (4,), "channels": 32}
_LLAMAGEN: dict[str, Any] = {"width": 128, "multipliers": (1, 1, 2, 2, 4), "attention": (4,), "channels": 256}
VAR_TOKENIZER = MultiscaleVQ(**_VAR)
FLEXVAR_TOKENIZER = FlexibleVQ(**_LLAMAGEN, quantizer=LearnedVQ(vocab=8912, unit=True))
