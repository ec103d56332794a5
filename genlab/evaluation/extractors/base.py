"""What every feature extractor promises: 8-bit images in, named feature layers out, and an exact account of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from genlab.core.errors import DataError
from genlab.core.public_weights import FoundWeights

Precision: TypeAlias = Literal["strict", "tf32", "bf16"]
"""strict: IEEE float32, no TF32, no autocast. tf32 and bf16 are quicker and move scores: never compare across them."""

_METRIC_STEMS = {
    "fid": "fd",
    "kid": "kd",
    "sfid": "sfd",
    "fid_infinity": "fd_infinity",
    "intra_class_fid": "intra_class_fd",
}


class Extractor(nn.Module, ABC):
    """A frozen network that turns uint8 images [B, 3, H, W] into features.

    It is always in eval mode (a judge left in train mode gives other scores), without gradients, and its results are
    float32 whatever is computed inside.

    Args:
        network: the filled network.
        found: the weights file that it was filled from.
        layers: names of the layers wanted, keys of `dimensions`; nothing beyond the deepest of them is computed.
        precision: see `Precision`.
    """

    family: ClassVar[str]
    dimensions: ClassVar[Mapping[str, int]]
    """Every layer there is, and its width."""
    feature_layer: ClassVar[str]
    """What Frechet-type distances, KID and precision/recall use."""
    logits_layer: ClassVar[str | None] = None
    """What the inception score uses."""
    spatial_layer: ClassVar[str | None] = None
    """What sFID uses."""
    published: ClassVar[bool] = True
    """Papers report scores on this extractor."""
    resize: str
    """The exact preprocessing, for reports."""
    banner: str = ""
    """What a report must say aloud besides the numbers."""

    def __init__(
        self,
        network: nn.Module,
        found: FoundWeights,
        layers: Sequence[str] | None = None,
        precision: Precision = "strict",
    ):
        super().__init__()
        wanted = tuple(layers) if layers else (self.feature_layer,)
        unknown = sorted(set(wanted) - set(self.dimensions))
        if unknown:
            raise DataError(
                f"extractor {self.family} has no layer {', '.join(unknown)}; it has {', '.join(self.dimensions)}"
            )
        self.layers = wanted
        self.checksum = found.checksum
        self.official = found.official
        self.precision: Precision = precision
        self.network = network.requires_grad_(False)
        self.train()

    @property
    def name(self) -> str:
        """Identifies the extractor in metric names; weights of one's own make it another extractor."""
        return self.family if self.official else f"{self.family}_{self.checksum[:8]}"

    @property
    def comparable_to_published(self) -> bool:
        """Scores may stand beside those of papers: a backbone that papers use, its official weights, full precision."""
        return self.published and self.official and self.precision == "strict"

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> the network's normalised float input [B, 3, R, R]."""

    @abstractmethod
    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        """Normalised inputs -> at least the layers of `self.layers`, each [B, d]."""

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> dict[str, Tensor]:
        """Normalised inputs [B, 3, R, R], as `prepare` gives them -> layers [B, d] in float32, at this precision."""
        with arithmetic(self.precision, inputs.device.type):
            found = self.features(inputs)
        return {layer: found[layer].float() for layer in self.layers}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 images [B, 3, H, W] -> {layer: [B, d] float32} for the layers asked for, on the extractor's device.

        Raises:
            DataError: another dtype or layout.
        """
        check_images(images)
        return self.embed(self.prepare(images.to(next(self.network.parameters()).device)))

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    def place(self, device: torch.device | str) -> Self:
        """On `device`, with channels-last weights (convolutions are a quarter to a half quicker)."""
        return self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def describe(self) -> dict[str, str | bool]:
        """Provenance for reports and fingerprints."""
        return {
            "backbone": self.name,
            "checksum": self.checksum,
            "resize": self.resize,
            "precision": self.precision,
            "comparable_to_published": self.comparable_to_published,
        }


class NormalisingExtractor(Extractor):
    """An extractor that resizes to pixels in [0, 1] and then normalises them: noise can be added in between."""

    @abstractmethod
    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> resized, float32 [B, 3, R, R] in [0, 1]."""

    @abstractmethod
    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] -> the network's input."""

    def prepare(self, images: Tensor) -> Tensor:
        return self.normalise(self.pixels(images))


def metric_name(metric: str, extractor: Extractor | str) -> str:
    """The name under which `metric` is reported: `fid` on Inception's official weights, `fd_dinov2` on DINOv2.

    `metric` is one of fid, kid, sfid, is, precision, recall, density, coverage, cmmd, ...; cmmd is CLIP's by
    definition and keeps its name there.
    """
    name = extractor if isinstance(extractor, str) else extractor.name
    if name == "inception" or (metric, name) == ("cmmd", "clip"):
        return metric
    return f"{_METRIC_STEMS.get(metric, metric)}_{name}"


def check_images(images: Tensor) -> None:
    """Refuses what is not a non-empty uint8 [B, 3, H, W], naming the likely mistake.

    Raises:
        DataError: with the shape and dtype got and what to do.
    """
    got = f"images {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
    if images.dtype != torch.uint8:
        raise DataError(f"{got}: extractors take uint8 0..255; round first (genlab.evaluation.quantise)")
    if images.ndim != 4:
        raise DataError(f"{got}: extractors take a batch [B, 3, H, W]")
    if images.shape[1] != 3:
        if images.shape[3] == 3:
            raise DataError(f"{got}: channels come last; extractors take [B, 3, H, W], so permute(0, 3, 1, 2)")
        hint = "; repeat grey images over three channels: expand(-1, 3, -1, -1)" if images.shape[1] == 1 else ""
        raise DataError(f"{got}: extractors take three channels, [B, 3, H, W]{hint}")
    if 0 in images.shape:
        raise DataError(f"{got}: there is no image in this batch")


@contextmanager
def arithmetic(precision: Precision, device: str) -> Iterator[None]:
    """Float32 arithmetic as `precision` says, for matrix products and convolutions; restored afterwards."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee" if precision == "strict" else "tf32"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for place, value in zip(places, before):
            place.fp32_precision = value
