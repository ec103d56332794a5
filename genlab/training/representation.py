"""REPA: a denoiser whose hidden tokens are drawn towards a vision encoder's features of the clean image.

"Representation Alignment for Generation", Yu et al., ICLR 2025 (arXiv 2410.06940).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.projector import Projector
from genlab.processes.alignment import alignment
from genlab.tokenization.losses.alignment import on_grid
from genlab.training.heads import WithHead
from genlab.training.vision_features import VisionEncoder, VisionFeatures


class ProjectedNetwork(WithHead):
    """A denoiser and the projector of the tokens that its block `depth` (1, 2, ...) gives."""

    def __init__(self, network: Network, depth: int, projector: nn.Module):
        super().__init__(network, projector)
        self._listening = False
        self._tokens = torch.empty(0)
        _block(network, depth).register_forward_hook(self._take)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, **options: Any) -> tuple[Any, Tensor]:
        """What the network makes of its inputs, and the projected tokens [B,N,D], sequences of images flattened."""
        self._listening = True  # not in the backward pass, where checkpointed blocks run again
        out = self.trained(x, t, label, **options)
        self._listening = False
        tokens, self._tokens = self._tokens, torch.empty(0)
        return out, self.head(tokens.flatten(0, -3))

    def _take(self, _module: nn.Module, _inputs: Any, out: Any) -> None:
        if self._listening:
            self._tokens = _tokens_of(out)


@dataclass(frozen=True)
class Aligned:
    """What an objective needs to train with REPA; see RepresentationAlignment for `weight`."""

    network: ProjectedNetwork
    encoder: VisionFeatures
    weight: float

    def losses(
        self,
        network: Callable[..., tuple[Tensor, Tensor]],
        features: Tensor,
        process: Callable[[Callable[..., Tensor]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The process's losses with weight * alignment added to "loss", and "alignment" (-cosine) itself; each [B].

        Args:
            network: the ProjectedNetwork, perhaps wrapped.
            features: [B,N',D] of the images, in the order in which the process passes them to the network.
            process: a network in the process's sense -> its losses.
        """
        projected: list[Tensor] = []

        def denoiser(x: Tensor, t: Tensor, label: Tensor, **options: Any) -> Tensor:
            out, tokens = network(x, t, label, **options)
            projected[:] = [tokens]
            return out

        losses = process(denoiser)
        side = math.isqrt(projected[0].shape[1])
        aligned = alignment(projected, [on_grid(features, (side, side))])
        return {**losses, "loss": losses["loss"] + self.weight * aligned, "alignment": aligned}


class RepresentationAlignment(Settings):
    """The `alignment:` section of a denoiser's recipe; the defaults are REPA's."""

    encoder: VisionEncoder
    depth: PositiveInt = 8
    """The block, counted from 1, whose output is aligned."""
    weight: NonNegativeFloat = 0.5
    """Of the alignment loss, beside the process's."""
    width: PositiveInt = 2048
    """Hidden width of the projector, which learns along with the network and is not exported."""

    def check(self, network: Network, spec: LatentSpec) -> None:
        """Raises ConfigError for networks whose hidden states are no square grid of tokens."""
        if spec.kind != "continuous":
            raise ConfigError(f"alignment: aligns denoisers of continuous tokens, not {spec.kind} ones; remove it")
        _block(network, self.depth)

    def build(self, network: Network, spec: LatentSpec) -> Aligned:
        """The network with a fresh projector, and the encoder.

        Raises:
            ConfigError: see `check`, and VisionEncoder.build.
            WeightsUnavailable: the encoder's weights are not to be had.
        """
        self.check(network, spec)
        side, width = _probe(network, spec, self.depth)
        encoder = self.encoder.build(side)
        projector = Projector(width, self.width, encoder.channels)
        return Aligned(ProjectedNetwork(network, self.depth, projector), encoder, self.weight)


def _block(network: nn.Module, depth: int) -> nn.Module:
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(
            f"alignment: {type(network).__name__} is no single stack of transformer blocks; choose network dit, fit or "
            "arflow, or remove alignment"
        )
    if depth > len(blocks):
        raise ConfigError(f"alignment.depth={depth}: the network has only {len(blocks)} blocks")
    return blocks[depth - 1]


def _tokens_of(out: Any) -> Tensor:
    """The tokens [...,L,D] among what a block returns: all of it, or its first part."""
    tokens: Tensor = out[0] if isinstance(out, tuple) else out
    return tokens


@torch.no_grad()
def _probe(network: Network, spec: LatentSpec, depth: int) -> tuple[int, int]:
    """(side of the token grid, width D) of a block's output, found by running the network on one sample of zeros."""
    seen: list[Tensor] = []
    hook = _block(network, depth).register_forward_hook(lambda _module, _inputs, out: seen.append(_tokens_of(out)))
    try:
        network(torch.zeros(1, *spec.shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    finally:
        hook.remove()
    length, width = seen[0].shape[-2:]
    side = math.isqrt(length)
    if seen[0].dim() < 3 or side * side != length:
        shape = tuple(seen[0].shape)
        raise ConfigError(
            f"alignment: block {depth} of {type(network).__name__} gives {shape}, no square grid of tokens"
        )
    return side, width
