"""One resolution of DiMR: blocks with long skips over an embedding of the whole input (DiMR, section 3.2).

Letters: B batch, C latent channels, H W latent grid, h w the stage's own grid, D width, D' width of the stage before,
T tokens, r the ratio of this grid to the one before.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.errors import ConfigError
from genlab.networks.dimr_blocks import NORMS, ConvNeXtBlock, NormName, TransformerBlock
from genlab.nn.td_concat import RunningConcat, TdConcatLinear
from genlab.nn.td_norm import TdLayerNorm, TimeVectors, Vectors

BlockName: TypeAlias = Literal["transformer", "convnext"]


class Upsample(nn.Module):
    """All features of the stage before, [B,h/r,w/r,D'] each, as one map [B,h,w,D] for this stage."""

    def __init__(self, maps: int, width_before: int, width: int, ratio: int, times: TimeVectors):
        super().__init__()
        self.ratio = ratio
        self.project = TdConcatLinear(maps, width_before, width * ratio * ratio, times)
        self.norm = TdLayerNorm(width, times)

    def forward(self, features: RunningConcat, vectors: Vectors) -> Tensor:
        x = features.finish().unflatten(3, (self.ratio, self.ratio, -1))  # [B,h/r,w/r,r,r,D]
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)  # [B,h,w,D]
        return self.norm(x, vectors)


class Stage(nn.Module):
    """Embedding, blocks and head of one resolution.

    Args:
        grid: (h, w) of the position table; smaller inputs use its top left part.
        channels: C.
        times: where the norms keep their vectors.
        before: the stage before, or None for the first.
        block: what the blocks are. The class enters transformers, as a token.
        width, depth: D, divisible by `heads` in a transformer; and the number of blocks, odd.
        hidden: features inside the blocks' perceptrons; None: 2 D.
        patch: side of a patch of the embedding.
        pool: the input is averaged over squares of this side before.
        heads: attention heads of a transformer.
        kernel: side of a ConvNeXt's convolutions, odd.
        head_kernel: side of the head's convolution, odd.
        dropout: probability in front of each residual sum.
        norm: of the blocks.
        rope: rotary positions in place of a transformer's table; needs num_classes 0.
        num_classes: K.

    Raises:
        ConfigError: sizes that do not fit.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        times: TimeVectors,
        before: Stage | None,
        block: BlockName,
        width: int,
        depth: int,
        hidden: int | None = None,
        patch: int = 1,
        pool: int = 1,
        heads: int = 8,
        kernel: int = 7,
        head_kernel: int = 3,
        dropout: float = 0.0,
        norm: NormName = "td_rms",
        rope: bool = False,
        num_classes: int = 0,
    ):
        super().__init__()
        self.grid, self.patch, self.pool = grid, patch, pool
        self.tokens = block == "transformer"
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Embedding(grid[0] * grid[1], width) if not (rope and self.tokens) else None
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes and self.tokens else None
        self.upsample = None
        if before is not None:
            ratio = _ratio(before.grid, grid)
            self.upsample = Upsample(len(before.blocks) + 1, before.patches.out_channels, width, ratio, times)
        make = partial(NORMS[norm], times=times)  # type: ignore[call-arg]
        hidden = hidden or 2 * width
        self.blocks: nn.ModuleList = nn.ModuleList(
            TransformerBlock(width, hidden, heads, make, dropout, rope)
            if self.tokens
            else ConvNeXtBlock(width, hidden, kernel, make, dropout)
            for _ in range(depth)
        )
        self.skip_denses = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth // 2))
        self.head_norm = TdLayerNorm(width, times)
        self.head = nn.Conv2d(width, channels, head_kernel, padding=head_kernel // 2)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        vectors: Vectors,
        before: RunningConcat | None,
        following: RunningConcat | None,
        detach: bool,
        recompute: bool,
    ) -> Tensor:
        """x [B,C,H,W], label [B] -> the last block's features [B,h,w,D].

        Args:
            before: the features of the stage before.
            following: takes the embedding and the output of every block, for the next stage.
            detach: keep the gradients of `following` from this stage.
            recompute: checkpoint each block.
        """
        h = self._embed(x)  # [B,h,w,D]
        if self.upsample is not None and before is not None:
            h = h + self.upsample(before, vectors)
        grid = (h.shape[1], h.shape[2])
        if self.tokens:
            h = h.flatten(1, 2)  # [B,T,D]
        if self.classes is not None:
            h = torch.cat([self.classes(label).unsqueeze(1), h], dim=1)  # [B,1+T,D]
        skips: list[Tensor] = []
        half = len(self.skip_denses)
        for count in range(len(self.blocks) + 1):
            if following is not None:
                following.add(self._as_map(h.detach() if detach else h, grid))
            if count == len(self.blocks):
                break
            if count > half:
                h = self.skip_denses[count - half - 1](torch.cat([h, skips.pop()], dim=-1))
            block = self.blocks[count]
            h = checkpoint(block, h, vectors, grid, use_reentrant=False) if recompute else block(h, vectors, grid)
            if count < half:
                skips.append(h)
        return self._as_map(h, grid)

    def collect(self, vectors: Vectors) -> RunningConcat:
        """Takes the features of the stage before, for `forward`."""
        assert self.upsample is not None, "the first stage has none before it"
        return self.upsample.project.start(vectors)

    def predict(self, h: Tensor, vectors: Vectors) -> Tensor:
        """Features [B,h,w,D] -> [B,C,h,w]."""
        return self.head(self.head_norm(h, vectors).permute(0, 3, 1, 2))

    def _embed(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,h,w,D]. Raises ConfigError for a grid that patches do not tile, or beyond the table."""
        rows, columns = (side // (self.patch * self.pool) for side in x.shape[2:])
        tiled = (rows * self.patch * self.pool, columns * self.patch * self.pool) == tuple(x.shape[2:])
        if not tiled or rows > self.grid[0] or columns > self.grid[1]:
            unit = self.patch * self.pool
            raise ConfigError(
                f"this DiMR takes latents of up to {self.grid[0] * unit} x {self.grid[1] * unit}, in multiples of "
                f"{unit}: got {x.shape[2]} x {x.shape[3]}"
            )
        x = F.avg_pool2d(x, self.pool) if self.pool > 1 else x  # [B,C,H/pool,W/pool]
        h = self.patches(x.to(self.patches.weight.dtype)).permute(0, 2, 3, 1)  # [B,h,w,D]
        if self.positions is None:
            return h
        return h + self.positions.weight.view(*self.grid, -1)[:rows, :columns]

    def _as_map(self, h: Tensor, grid: tuple[int, int]) -> Tensor:
        """Without the class token, [B,h,w,D]."""
        return h[:, -grid[0] * grid[1] :].unflatten(1, grid) if self.tokens else h


def _ratio(before: tuple[int, int], grid: tuple[int, int]) -> int:
    """r. Raises ConfigError when it is no whole number."""
    ratio = grid[0] // before[0]
    if ratio < 1 or (before[0] * ratio, before[1] * ratio) != grid:
        raise ConfigError(
            "network.stages: each stage's grid must be a multiple of the one before: got "
            f"{before[0]} x {before[1]}, then {grid[0]} x {grid[1]}; halve the patch from stage to stage"
        )
    return ratio
