"""The plain transformer over masked codes: every position sees every other one, at every step.

The network of MaskGIT (Chang et al., CVPR 2022) with the class given by adaptive layer norm, as in DiT; what ENAT
(genlab/networks/enat.py) is compared with.

Letters: B batch, L positions, m masked ones, N masked ones of the batch, D width, V vocabulary, K classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from genlab.core.contracts import LatentSpec
from genlab.networks.masked import Block, Decoder, MaskedNetwork, MaskedSettings, Previous


class MaskedTransformer(MaskedNetwork):
    """`forward(tokens[B,L], label[B], previous=None) -> logits[N,V]`; see `MaskedNetwork`. `previous` is ignored.

    With `critic` it also tells tokens that were given from those that were guessed ("Improved Masked Image Generation
    with Token-Critic", Lezama et al., ECCV 2022; here by the generator's own features).

    Args:
        grid: (H, W), with L = H W positions.
        vocab: V.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        width, depth, heads, mlp_ratio, dropout, critic: see `MaskedTransformerConfig`.

    Raises:
        ConfigError: a width that the heads do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        vocab: int,
        num_classes: int = 1000,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        critic: bool = False,
    ):
        blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
        super().__init__(grid[0] * grid[1], vocab, width, num_classes, blocks, dropout)
        self.critic = nn.Linear(width, 1) if critic else None
        self.initialise()

    def forward(self, tokens: Tensor, label: Tensor, previous: Previous | None = None, judge: bool = False) -> Tensor:
        """Tokens int64 [B,L], V where masked, and label int64 [B] -> logits [N,V] of the masked ones, row by row.

        With `judge`, tokens all of which are codes -> the critic's logits [B,L] that they were given, not guessed.
        """
        if judge:
            return self.verdict(self.features(tokens, label))
        return self.logits(self.features(tokens, label)[tokens == self.mask_token])

    def features(self, tokens: Tensor, label: Tensor, previous: Previous | None = None) -> Tensor:
        """As `forward`, but before the last norm, and of all positions: [B,L,D]."""
        return self.hidden(tokens, self.modulations(label))

    def verdict(self, features: Tensor) -> Tensor:
        """[B,L,D] -> the critic's logits [B,L]."""
        assert self.critic is not None, "who asks has checked"
        return self.critic(self.norm(features)).squeeze(2)

    def hidden(self, tokens: Tensor, modulations: list[Tensor]) -> Tensor:
        """Tokens [B,L] under the modulations of the blocks -> [B,L,D]."""
        x = self.embed(tokens)  # [B,L,D]
        for block, m in zip(self.blocks, modulations):
            x = self.through(block, x, m)  # [B,L,D]
        return x

    def decoder(self, label: Tensor) -> PlainDecoder:
        return PlainDecoder(self, label)


class PlainDecoder(Decoder):
    """Generation of the images of label [B] by whole passes."""

    def __init__(self, network: MaskedTransformer, label: Tensor):
        self._network = network
        self._modulations = network.modulations(label)

    def step(self, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        hidden = self._network.hidden(tokens, self._modulations)  # [B,L,D]
        return self._network.logits(hidden.gather(1, masked.unsqueeze(2).expand(-1, -1, hidden.shape[2])))

    def judge(self, tokens: Tensor) -> Tensor:
        """Codes [B,L] -> the critic's logits [B,L]."""
        return self._network.verdict(self._network.hidden(tokens, self._modulations))


class MaskedTransformerConfig(MaskedSettings):
    """A plain masked transformer."""

    name: Literal["masked_transformer"] = "masked_transformer"
    depth: PositiveInt = 8
    """Blocks."""
    critic: bool = False
    """Also tell given tokens from guessed ones, for process.critic and sampling.order critic."""

    def build(self, spec: LatentSpec, num_classes: int) -> MaskedTransformer:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        return MaskedTransformer(**self.arguments(spec, num_classes))
