"""ResGen: a transformer that sees the sum of the visible residual codes and predicts that of the masked ones.

"Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", Kim et al., ICML 2025 (arXiv
2412.10208). The paper's code and weights are not public: a bidirectional transformer with classes and a mixture of
Gaussians at its end is what it says; the DiT-type blocks, how counts enter and the head's rank are our reading.

Letters: B batch, L positions of the grid (row by row), C channels of a code vector, D codes of a position, W width,
M components of the mixture, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.adaln import modulate, modulation, norm
from genlab.nn.attention import Attention
from genlab.nn.embed import TimeEmbedding, sincos_2d
from genlab.nn.mixture import Mixture, MixtureHead, components
from genlab.nn.mlp import Mlp
from genlab.nn.rope import FixedRope
from genlab.tokenization.quantizers.kmeans import kmeans

_RATIO_TICKS = 1000  # shares of masked cells are embedded as times up to this


class Block(nn.Module):
    """The adaLN-Zero block of DiT (Peebles & Xie 2023, figure 3), under modulations that were computed before."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, rotate: FixedRope | None):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn = Attention(width, heads, rotate=rotate)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        """Tokens [B,L,W] under modulation [B,6W] -> [B,L,W]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = m.chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class ResGen(Network):
    """`forward(visible[B,L,C], masked[B,L], label[B], target[B,L,C], unit[B,L])` -> log pi and log N(target), [B,L,M].

    Args:
        grid: (H, W) of the codes; L = H W.
        channels: C.
        code_depth: D.
        width, depth, heads, mlp_ratio: the sizes; `width` divisible by `heads` and by 4.
        components, rank: of the mixture's means.
        log_scales: least and largest logarithm of the mixture's scale, in units of the target.
        kmeans: iterations of k-means on the targets of the first training batch, which make the first means; 0: random.
        positions: sincos (added to tokens) or rope (turns queries and keys; needs width / heads divisible by 4).
        ratio: blocks are also told what share of all cells is masked.
        num_classes: K; 0 for an unconditional network, whose only label is 0.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        code_depth: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        components: int = 1024,
        rank: int = 64,
        log_scales: tuple[float, float] = (-7.0, 2.0),
        kmeans: int = 10,
        positions: Literal["sincos", "rope"] = "sincos",
        ratio: bool = False,
        num_classes: int = 1000,
    ):
        super().__init__()
        if problem := _size_problem(width, heads, positions):
            raise ConfigError(f"network: {problem}")
        self.num_classes, self.code_depth = num_classes, code_depth
        self.channels, self.components = channels, components
        self.grid = grid
        self.visible_embedder = nn.Linear(channels, width)
        self.count_embedder = nn.Embedding(code_depth + 1, width)
        self.label_embedder = nn.Embedding(num_classes + 1, width)
        self.ratio_embedder = TimeEmbedding(width) if ratio else None
        places = sincos_2d(width, grid).unsqueeze(0) if positions == "sincos" else None
        self.register_buffer("pos_embed", places, persistent=False)  # [1,L,W]
        rotate = FixedRope(width // heads, grid) if positions == "rope" else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rotate) for _ in range(depth))
        self.modulations = nn.ModuleList(modulation(width, 6) for _ in range(depth))
        self.norm_final = norm(width)
        self.modulation_final = modulation(width, 2)
        self._initialise()
        self.head = MixtureHead(width, channels, components, rank, log_scales)
        self.kmeans = kmeans
        self.register_buffer("started", torch.tensor(kmeans == 0))
        self._started = kmeans == 0  # what the buffer says, on the CPU; false as long as it was not read

    pos_embed: Tensor | None
    started: Tensor
    """bool []: the means have been made from data."""

    def forward(
        self, visible: Tensor, masked: Tensor, label: Tensor, target: Tensor, unit: Tensor, floor: float = -math.inf
    ) -> tuple[Tensor, Tensor]:
        """log pi and log N(target) [B,L,M] each, float32, of the mixture at every position.

        Args:
            visible: [B,L,C], sums of the visible code vectors.
            masked: int64 [B,L], numbers of masked codes 0..D.
            label: int64 [B].
            target: [B,L,C].
            unit: [B,L], about the standard deviation of each target.
            floor: least log s of the mixture, where that is more than the network's own.
        """
        if self.training and not self._started:
            self._start(masked, target / unit.unsqueeze(-1))
        c = self.condition(label, masked)
        h = self._run(visible, masked, [layer(c) for layer in self.modulations], self.modulation_final(c))
        with torch.autocast(h.device.type, enabled=False):
            mixture = self.head(h, unit, floor)
            return mixture.log_weights(), mixture.log_densities(target.float())

    def decoder(self, label: Tensor, floor: float = -math.inf) -> Decoder:
        """What samples for labels [B], a step at a time; `floor` as in `forward`."""
        return Decoder(self, label, floor)

    def condition(self, label: Tensor, masked: Tensor) -> Tensor:
        """What modulates [B,W]."""
        c = self.label_embedder(label)
        if self.ratio_embedder is None:
            return c
        share = masked.sum(1) / (masked.shape[1] * self.code_depth)  # [B]
        return c + self.ratio_embedder(share * _RATIO_TICKS)

    def _run(self, visible: Tensor, masked: Tensor, modulations: list[Tensor], final: Tensor) -> Tensor:
        """The features [B,L,W] that the head reads."""
        dtype = self.visible_embedder.weight.dtype
        x = self.visible_embedder(visible.to(dtype)) + self.count_embedder(masked)  # [B,L,W]
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(dtype)
        for block, m in zip(self.blocks, modulations):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, m, use_reentrant=False)
            else:
                x = block(x, m)
        shift, scale = final.chunk(2, dim=1)
        return modulate(self.norm_final(x), shift, scale)

    @torch.no_grad()
    def _start(self, masked: Tensor, target: Tensor) -> None:
        """The mixture's means from a first batch of targets [B,L,C], in their units; that of the first process."""
        if not self.started:
            vectors = target[masked > 0].float()  # [N,C]
            first = torch.arange(self.components, device=vectors.device) * len(vectors) // self.components
            means, bins = kmeans(vectors, vectors[first], self.kmeans)
            spread = (vectors.square().sum() - (bins.unsqueeze(1) * means.square()).sum()) / vectors.numel()
            values = torch.cat([means.flatten(), spread.clamp_min(0).sqrt().view(1)])
            if dist.is_initialized():
                dist.broadcast(values, 0)
            self.head.start(values[:-1].view_as(means), values[-1])
            self.started.fill_(True)
        self._started = True

    def _initialise(self) -> None:
        """Xavier weights and small embeddings; blocks begin as the identity (adaLN-Zero)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name.startswith("modulation"):
                nn.init.zeros_(parameter)
            elif "embedder" in name and name != "visible_embedder.weight":
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter)


@dataclass(frozen=True)
class _Conditions:
    modulations: list[Tensor]
    """[B,6W] of each block."""
    final: Tensor
    """[B,2W]."""


class Decoder:
    """A `ResGen` for given labels [B]; what does not change between steps is computed once."""

    def __init__(self, network: ResGen, label: Tensor, floor: float = -math.inf):
        self._network, self._label, self._floor = network, label, floor
        self._shared = components(network.head.bases.float(), network.head.means.float())
        self._fixed = self._conditions(network.label_embedder(label)) if network.ratio_embedder is None else None

    def step(self, visible: Tensor, masked: Tensor, unit: Tensor) -> Mixture:
        """The mixture [B',L] of the first B' labels; `visible` [B',L,C], `masked` and `unit` [B',L] as in `forward`."""
        rows = len(visible)
        conditions = self._fixed
        if conditions is None:
            conditions = self._conditions(self._network.condition(self._label[:rows], masked))
        modulations = [m[:rows] for m in conditions.modulations]
        h = self._network._run(visible, masked, modulations, conditions.final[:rows])
        return self._network.head(h, unit, self._floor, self._shared)

    def _conditions(self, c: Tensor) -> _Conditions:
        return _Conditions([layer(c) for layer in self._network.modulations], self._network.modulation_final(c))


def _size_problem(width: int, heads: int, positions: str) -> str | None:
    """What is wrong with the width, if anything."""
    if width % heads:
        return f"width must be divisible by heads: got width {width}, heads {heads}; try width {heads * 64}"
    if width % 4:
        return f"width must be divisible by 4 (sine-cosine positions): got {width}; try {width + 4 - width % 4}"
    if positions == "rope" and width // heads % 4:
        return f"positions rope needs width / heads divisible by 4: got {width} / {heads}; try other heads, or sincos"
    return None


class ResGenConfig(Settings):
    """A ResGen. What the paper leaves open, as far as we could read it, has our choice as its default."""

    name: Literal["resgen"] = "resgen"
    width: int = Field(384, ge=1, le=65_536)
    """Features of a token; divisible by heads and by 4."""
    depth: int = Field(12, ge=1, le=1024)
    """Blocks."""
    heads: int = Field(6, ge=1, le=1024)
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width."""
    components: int = Field(1024, ge=1, le=65_536)
    """Gaussians of the mixture."""
    rank: int = Field(64, ge=1, le=4096)
    """Features of which each Gaussian's mean is an affine function."""
    log_scales: tuple[float, float] = (-7.0, 2.0)
    """Least and largest logarithm of the mixture's scale, in units of the target's standard deviation."""
    kmeans: NonNegativeInt = 10
    """Iterations of k-means on the targets of the first training batch, which make the first means; 0: random ones."""
    positions: Literal["sincos", "rope"] = "sincos"
    """How tokens know their places: sincos adds waves to them, rope turns queries and keys."""
    ratio: bool = False
    """Blocks are also told what share of all codes is masked; then their modulation is computed anew at each step."""

    latents: ClassVar[frozenset[str]] = frozenset({"residual"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if problem := _size_problem(self.width, self.heads, self.positions):
            raise ValueError(problem)
        if self.log_scales[0] >= self.log_scales[1]:
            raise ValueError(f"log_scales are the least and the largest: got {list(self.log_scales)}; swap them")
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> ResGen:
        """The network for codes of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents or spec.depth is None:
            raise ConfigError(
                f"network resgen works on residual codes: got {spec.kind} ones from the tokenizer; choose a residual "
                "quantizer, or another network"
            )
        sizes: dict[str, Any] = self.model_dump(exclude={"name"})
        return ResGen(grid=spec.grid, channels=spec.channels, code_depth=spec.depth, num_classes=num_classes, **sizes)
