"""The adversarial side of DMD2: a small head on what a denoiser's encoder makes of a noised image, or a small network
of its own.

"Improved Distribution Matching Distillation for Fast Image Synthesis", Yin et al., NeurIPS 2024 (arXiv 2405.14867),
section 4.3. Where the features of a network are taken is decided here alone, by `feature_layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.networks.dimr import DiMR
from genlab.networks.edm2 import Edm2
from genlab.networks.edm_unet import EdmUNet
from genlab.training.heads import WithHead


class Head(nn.Sequential):
    """Feature maps [B,D,h,w] -> one logit each [B,1], in float32.

    Strided 4x4 convolutions halve the map `stages` times, one more covers what is left, each with GroupNorm and SiLU; a
    1x1 convolution ends it. GroupNorm of a 1x1 map compares the channels of a group, so groups must not be small.

    Args:
        channels: D.
        kernel: (height, width) of the last map.
        groups: of the norms; by default as many as leave 16 channels to each, at most 32.
    """

    def __init__(self, channels: int, stages: int, kernel: tuple[int, int], groups: int | None = None):
        groups = groups or math.gcd(channels, min(32, max(channels // 16, 1)))
        layers: list[nn.Module] = []
        for _ in range(stages):
            layers += [nn.Conv2d(channels, channels, 4, 2, 1), nn.GroupNorm(groups, channels), nn.SiLU()]
        layers += [nn.Conv2d(channels, channels, kernel), nn.GroupNorm(groups, channels), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(channels, 1, 1))

    @classmethod
    def on(cls, channels: int, side: tuple[int, int]) -> Head:
        """The head for maps of this (h, w): halved at least once, and until no side is above 4."""
        stages = max(1, math.ceil(math.log2(max(side) / 4))) if min(side) > 1 else 0
        return cls(channels, stages, (max(side[0] >> stages, 1), max(side[1] >> stages, 1)))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float()).flatten(1)


class Noised(NamedTuple):
    """What a denoiser is given: its own input x [B,C,H,W], its own time t [B] and labels [B]."""

    x: Tensor
    t: Tensor
    label: Tensor


class Discriminator(nn.Module):
    """A small convolution network that judges noised images by itself: `forward(noised)` -> one logit each [B,1].

    Strided 5x5 convolutions down to two pixels a side, as in DCGAN (arXiv 1511.06434) but without norms; then Linears
    that are told level and class, and that see where features are. The logit is a Linear of the last features plus
    their product with a vector of the class ("cGANs with Projection Discriminator", Miyato and Koyama 2018).

    Args:
        channels: C of the images.
        side: their (H, W).
        num_classes: K; 0 for one label.
        width: features after the first convolution; each next has twice as many, up to eight times.
        hidden: features of the Linears.
    """

    def __init__(self, channels: int, side: tuple[int, int], num_classes: int, width: int = 64, hidden: int = 256):
        super().__init__()
        halvings = max(1, math.ceil(math.log2(max(side) / 2)))
        widths = [channels, *(width << min(stage, 3) for stage in range(halvings))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 5, 2, 2) for a, b in pairwise(widths))
        rows, columns = (-(-length >> halvings) for length in side)
        self.whole = nn.Linear(widths[-1] * rows * columns, hidden)
        self.level, self.label = nn.Linear(1, hidden), nn.Embedding(max(num_classes, 1), hidden)
        self.hidden, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.projection = nn.Embedding(max(num_classes, 1), hidden)

    def forward(self, noised: Noised) -> Tensor:
        """x [B,C,H,W] of variance about 1, t [B] from 0 (data) to 1 (noise), label [B]: what `Dmd2.judged` gives."""
        with torch.autocast(noised.x.device.type, enabled=False):
            h = noised.x.float()
            for conv in self.convs:
                h = F.leaky_relu(conv(h), 0.2)  # [B,D,H/2,W/2], and so on
            h = self.whole(h.flatten(1)) + self.level(noised.t[:, None]) + self.label(noised.label)  # [B,F]
            h = F.leaky_relu(self.hidden(F.leaky_relu(h, 0.2)), 0.2)  # [B,F]
            by_class = (h * self.projection(noised.label)).sum(1, keepdim=True) / h.shape[1] ** 0.5
            return self.out(h) + by_class


class Critic(WithHead):
    """A denoiser of the student's samples with a head that tells them from real ones.

    Both are used in one forward pass, so that DDP sees it once before each backward pass. The denoiser stays in
    evaluation mode: whatever its teacher was trained with, DMD2 has no dropout.
    """

    def __init__(self, network: Network, head: nn.Module):
        super().__init__(network, head)
        self.num_classes = network.num_classes

    def forward(
        self, noised: Noised | None, judged: Noised | Tensor | None = None, **options: Any
    ) -> tuple[Any, Tensor | None]:
        """The network's output for `noised`, and a logit [B,1] for each of `judged`; None for what is not given.

        Args:
            judged: noised samples, for the head's own eyes where it is a Discriminator, else for this network's; or the
                features [B,D,h,w] that another network made of them.
            options: passed to the network with `noised`.
        """
        out = self.trained(*noised, **options) if noised is not None else None
        if judged is None:
            return out, None
        if isinstance(judged, Noised) and not isinstance(self.head, Discriminator):
            judged = features(self.trained, judged)
        return out, self.head(judged)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.trained.eval()
        return self

    def normalise_weights(self) -> None:
        if isinstance(self.trained, Network):
            self.trained.normalise_weights()


class _Enough(Exception):
    """Ends a forward pass whose rest nobody needs."""


def features(network: Any, noised: Noised) -> Tensor:
    """The feature map [B,D,h,w] of `feature_layer`; layers after it do not run."""
    layer, to_map = feature_layer(network)
    seen: list[Any] = []
    with _listening(layer, seen), suppress(_Enough):
        torch.compiler.disable(lambda: network(*noised))()  # compiled networks would run past the layer
    return to_map(seen[0])


def feature_layer(network: nn.Module) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The layer whose output the head sees, and how that becomes a map [B,D,h,w]: the hook for new architectures.

    U-Nets of EDM: the last block of the encoder (DMD2). Stacks of transformer blocks: the middle one (as FastGen has
    it). DiMR: the last block of the coarsest stage. A network of another kind names its own, an attribute
    `feature_layer` that gives maps.

    Raises:
        ConfigError: none is known.
    """
    if isinstance(own := getattr(network, "feature_layer", None), nn.Module):
        return own, lambda out: out
    if isinstance(network, EdmUNet | Edm2):
        return list(network.enc.values())[-1], lambda out: out
    if isinstance(network, DiMR):
        return network.stages[0], lambda out: out.permute(0, 3, 1, 2)
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.ModuleList):
        return blocks[max(len(blocks) // 2, 1) - 1], _tokens_as_map
    raise ConfigError(
        f"distillation.gan_weight: no features are known of {type(network).__name__} for a discriminator; set it to 0"
    )


def _tokens_as_map(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    if tokens.dim() != 3 or side * side != tokens.shape[1]:
        raise ConfigError(
            f"distillation.gan_weight: a block gives {tuple(tokens.shape)}, no square map to discriminate; set it to 0"
        )
    return tokens.transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
def head_for(network: Network, spec: LatentSpec) -> Head:
    """The head for the features of `network`, whose size is found by running it on one sample of zeros."""
    device = next(network.parameters()).device
    zeros = torch.zeros(1, *spec.shape, device=device)
    probe = Noised(zeros, zeros.new_zeros(1), torch.zeros(1, dtype=torch.long, device=device))
    _, channels, rows, columns = features(network, probe).shape
    return Head.on(channels, (rows, columns))


@contextmanager
def _listening(layer: nn.Module, seen: list[Any]) -> Iterator[None]:
    """Within the block, `layer`'s first output is put into `seen` and its pass ends there."""

    def take(_module: nn.Module, _inputs: Any, out: Any) -> None:
        seen.append(out)
        raise _Enough

    handle = layer.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()
