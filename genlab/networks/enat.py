"""ENAT: visible codes are encoded among themselves, and masked ones are decoded in their light.

"ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis", Ni et al., NeurIPS 2024 (arXiv
2411.06959). In generation, what was made of codes that have been visible before is not computed again: a perceptron
re-projects it. Parameter names are those of the official checkpoints.

Letters: B batch, L positions, of a row: o that are reused, n new ones, m masked ones; N masked ones of the batch,
D width, V vocabulary, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.networks.masked import Block, Decoder, MaskedNetwork, MaskedSettings, Previous
from genlab.nn.adaln import norm
from genlab.nn.mlp import Mlp
from genlab.nn.selection import Selection, Uneven, put

Preset: TypeAlias = Literal["ENAT-S", "ENAT-B", "ENAT-L"]
PRESETS: dict[str, dict[str, int]] = {
    "ENAT-S": {"encoder_depth": 15, "decoder_depth": 1, "width": 366, "heads": 6},
    "ENAT-B": {"encoder_depth": 15, "decoder_depth": 1, "width": 768, "heads": 8},
    "ENAT-L": {"encoder_depth": 22, "decoder_depth": 2, "width": 1024, "heads": 16},
}


class ReProjection(nn.Module):
    """f + MLP(LayerNorm(f)) of features [...,D], which takes the place of encoding them again."""

    def __init__(self, width: int, mlp_ratio: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * mlp_ratio))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.mlp(self.norm(features))


class ENAT(MaskedNetwork):
    """`forward(tokens[B,L], label[B], previous=None) -> logits[N,V]`; see `MaskedNetwork`.

    Args:
        grid: (H, W), with L = H W positions.
        vocab: V.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        width, encoder_depth, decoder_depth, heads, mlp_ratio, dropout: see `ENATConfig`.

    Raises:
        ConfigError: a width that the heads do not divide.
    """

    reuses = True

    def __init__(
        self,
        grid: tuple[int, int],
        vocab: int,
        num_classes: int = 1000,
        width: int = 384,
        encoder_depth: int = 7,
        decoder_depth: int = 1,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        depth = encoder_depth + decoder_depth
        blocks = [Block(width, heads, mlp_ratio, context=True) for _ in range(depth)]
        super().__init__(grid[0] * grid[1], vocab, width, num_classes, blocks, dropout)
        self.encoder_depth = encoder_depth
        self.prev_proj = ReProjection(width, mlp_ratio)
        self.context_norm = norm(width)
        self.initialise()

    def forward(self, tokens: Tensor, label: Tensor, previous: Previous | None = None) -> Tensor:
        """Rows may have different numbers of masked positions; they are packed then.

        Args:
            tokens: int64 [B,L], V where masked.
            label: int64 [B].
            previous: features [B,L,D] of the same images with more masked positions, which get no gradient, and where
                those were, bool [B,L]. They stand for what was visible then. All masked is the same as None.

        Returns:
            Logits [N,V] of the masked positions, row by row.
        """
        *_, (_, h) = self._hidden(tokens, label, previous)
        return self.logits(h.flatten(0, 1))

    def features(self, tokens: Tensor, label: Tensor, previous: Previous | None = None) -> Tensor:
        """As `forward`, but before the last norm, and of all positions: [B,L,D]. What `previous` is made of."""
        return put(self._hidden(tokens, label, previous))

    def decoder(self, label: Tensor) -> ENATDecoder:
        return ENATDecoder(self, label)

    def _hidden(self, tokens: Tensor, label: Tensor, previous: Previous | None) -> list[tuple[Selection, Tensor]]:
        """Reused, new and masked positions and their hidden features."""
        x = self.embed(tokens)  # [B,L,D]
        hidden = tokens == self.mask_token  # [B,L]
        reused = torch.zeros_like(hidden) if previous is None else ~(hidden | previous[1])
        parts = reused, ~(hidden | reused), ~hidden, hidden
        old, new, seen, masked = (Selection.of(chosen) for chosen in parts)
        before = self.prev_proj(old.take(x if previous is None else previous[0].detach()))  # [B,o,D]
        modulations = self.modulations(label)
        encoded = self.encode(new.take(x), before, modulations, Uneven.of(new, old))  # [B,n,D]
        visible = seen.take(put([(old, before), (new, encoded)]))  # [B,o+n,D]
        decoded = self.decode(masked.take(x), visible, modulations, Uneven.of(masked, seen))  # [B,m,D]
        return [(old, before), (new, encoded), (masked, decoded)]

    def encode(self, new: Tensor, old: Tensor, modulations: list[Tensor], uneven: Uneven | None = None) -> Tensor:
        """New visible positions [B,n,D] beside reused ones [B,o,D] -> [B,n,D]."""
        context = self.context_norm(old)
        for block, m in zip(self.blocks[: self.encoder_depth], modulations):
            new = self.through(block, new, m, context, uneven)
        return new

    def decode(
        self, masked: Tensor, visible: Tensor, modulations: list[Tensor], uneven: Uneven | None = None
    ) -> Tensor:
        """Masked positions [B,m,D] in the light of the visible ones [B,o+n,D] -> [B,m,D]."""
        context = self.context_norm(visible)
        for block, m in zip(self.blocks[self.encoder_depth :], modulations[self.encoder_depth :]):
            masked = self.through(block, masked, m, context, uneven)
        return masked


class ENATDecoder(Decoder):
    """Generation of the images of label [B]: encodes each position once, in the step after it became visible."""

    def __init__(self, network: ENAT, label: Tensor):
        self._network = network
        self._modulations = network.modulations(label)
        self._visible = self._modulations[0].new_empty(len(label), 0, self._modulations[0].shape[-1])
        """[B,o,D], in the order in which they became visible, which attention does not mind."""

    def step(self, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        network = self._network
        old = network.prev_proj(self._visible)  # [B,o,D]
        new, x = (network.x_embedder(tokens.gather(1, positions), positions) for positions in (fresh, masked))
        if fresh.shape[1]:
            new = network.encode(new, old, self._modulations)  # [B,n,D]
        self._visible = torch.cat([old, new], dim=1)
        return network.logits(network.decode(x, self._visible, self._modulations))


class ENATConfig(MaskedSettings):
    """An ENAT. `preset` fills in the sizes that are not given."""

    name: Literal["enat"] = "enat"
    preset: Preset | None = None
    """A published size, such as ENAT-L; what is given beside it wins."""
    encoder_depth: PositiveInt = 7
    """Blocks of visible positions: most of all."""
    decoder_depth: PositiveInt = 1
    """Blocks of masked positions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def build(self, spec: LatentSpec, num_classes: int) -> ENAT:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        return ENAT(**self.arguments(spec, num_classes))
