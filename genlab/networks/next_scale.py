"""The trunk of next-scale generators: VAR, FlexVAR and M-VAR (var.py, flexvar.py, mvar.py) differ in blocks and places.

"Visual Autoregressive Modeling", Tian et al., NeurIPS 2024 (arXiv 2404.02905). The sequence holds the maps of all
scales, coarse to fine. What stands at a scale is made of the coarser ones by the tokenizer (the first scale has the
class alone), and what comes out are the codes of the same scale, all at once. Parameter names are those of the official
checkpoints.

Letters: B batch, S scales, l a scale's positions, L positions in all, D width, C channels of the tokenizer's maps,
V vocabulary, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.adaln import modulation, norm
from genlab.nn.kv_cache import KvCache
from genlab.nn.mlp import Mlp
from genlab.nn.scale_attention import ScaleAttention
from genlab.nn.scales import Attend, Grid, Schedule, block_causal, grids_of, lengths_of


class Block(nn.Module):
    """Attention and a perceptron, both on modulated norms and behind gates.

    Args:
        unit_attention: see `ScaleAttention`.
        shared: the modulation is the network's one for all blocks plus a constant of the block.
    """

    layers: ClassVar[int] = 2
    """That are modulated, each by a gate, a scale and a shift."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, unit_attention: bool, shared: bool = False):
        super().__init__()
        self.norm = norm(width)
        self.attn = ScaleAttention(width, heads, unit_attention)
        self.ffn = Mlp(width, round(width * mlp_ratio))
        self.ada_lin = None if shared else modulation(width, 3 * self.layers)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 3 * self.layers, width)) if shared else None

    def modulation(self, c: Tensor) -> Tensor:
        """Class vectors [B,D], or the shared modulation of them, -> [B,3 layers,1,D]: gates, then scales, then shifts.

        What is one already is left alone.
        """
        if c.dim() == 4:
            return c
        m = (c if self.ada_lin is None else self.ada_lin(c)).unflatten(1, (3 * self.layers, -1))  # [B,3 layers,D]
        return (m if self.ada_gss is None else m + self.ada_gss[0]).unsqueeze(2)

    def forward(self, x: Tensor, c: Tensor, attend: Attend) -> Tensor:
        """Positions x [B,T,D] under what `modulation` takes -> [B,T,D]."""
        m = self.modulation(c)
        x = self.add(x, m, 0, lambda here: self.attn(here, attend))
        return self.add(x, m, 1, self.ffn)

    def add(self, x: Tensor, m: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """x + gate * layer(norm(x) * (1 + scale) + shift), for layer `number` of the modulation m."""
        gate, scale, shift = (m[:, part * self.layers + number] for part in range(3))  # 3 x [B,1,D]
        return torch.addcmul(x, gate, layer(torch.addcmul(shift, self.norm(x), 1 + scale)))


class Head(nn.Module):
    """The modulation of the norm before the logits."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.ada_lin = modulation(width, 2)

    def modulation(self, c: Tensor) -> Tensor:
        """Class vectors [B,D] -> scale and shift [B,2,1,D]. What is one already is left alone."""
        return c if c.dim() == 4 else self.ada_lin(c).unflatten(1, (2, -1)).unsqueeze(2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """[B,T,D] under what `modulation` takes -> [B,T,D]."""
        m = self.modulation(c)
        return torch.addcmul(m[:, 1], self.norm(x), 1 + m[:, 0])


@dataclass
class Progress:
    """A batch of sequences that is being generated; made by `start`, moved on by `step`."""

    grids: tuple[Grid, ...]
    first: Tensor
    """[B,l_0,D], what stands at the first scale."""
    places: Tensor
    """[1,L,D], added to what stands there."""
    modulations: list[Tensor]
    """Of each block [B,n,1,D]; they depend on the class alone."""
    head: Tensor
    """[B,2,1,D]."""
    contexts: list[tuple[Any, ...]]
    """What each block takes besides: caches and memories."""
    scales: int = 0
    """Done so far."""
    positions: int = 0
    """Done so far."""


class NextScaleNetwork(Network):
    """`forward(inputs[B,L-l_0,C], label[B], scales) -> logits[B,L,V]`, all scales at once, as in training.

    `start` and `step` compute the same scale by scale, with what is known of the coarser ones.

    Args:
        scales: the schedule, coarse to fine.
        channels: C.
        vocab: V.
        width: D.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        blocks: take (x, condition, *context) and give x.
        shared: the blocks share one modulation.
        drop_path: see `NextScaleSettings`.
    """

    def __init__(
        self,
        scales: Schedule,
        channels: int,
        vocab: int,
        width: int,
        num_classes: int,
        blocks: Sequence[Block],
        shared: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.vocab, self.drop_path = num_classes, vocab, drop_path
        self.grids = grids_of(scales)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, lengths_of(self.grids)[0], width))
        self.word_embed = nn.Linear(channels, width)
        self.shared_ada_lin = modulation(width, 3 * blocks[0].layers) if shared else None
        self.blocks = nn.ModuleList(blocks)
        self.head_nm = Head(width)
        self.head = nn.Linear(width, vocab)

    @abstractmethod
    def places(self, grids: Sequence[Grid]) -> Tensor:
        """[1,L,D] that tell positions apart."""

    def parallel(self, grids: Sequence[Grid]) -> list[tuple[Any, ...]]:
        """Each block's context for whole sequences: a position sees its own scale and all coarser ones."""
        return [(block_causal(grids),)] * len(self.blocks)

    def sequential(self, grids: Sequence[Grid]) -> list[tuple[Any, ...]]:
        """Each block's context, empty, for sequences that come scale by scale: a cache of L keys and values."""
        return [(KvCache(sum(lengths_of(grids))).attend,) for _ in self.blocks]

    def forward(
        self, inputs: Tensor, label: Tensor, scales: Schedule | None = None, draw: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Inputs [B,L-l_0,C] as the tokenizer makes them of codes, label int64 [B] -> logits [B,L,V].

        Args:
            draw: n -> [B,n], uniform on [0, 1), from the samples' own streams; what random depth goes by in training.

        Raises:
            ConfigError: a schedule that the network cannot follow, or inputs of another length.
        """
        grids = self.check(scales)
        expected = sum(lengths_of(grids)[1:])
        if inputs.shape[1] != expected:
            raise ConfigError(
                f"inputs of {inputs.shape[1]} positions, but scales {list(grids)} after the first have {expected}"
            )
        c = self.class_emb(label)  # [B,D]
        first = c.unsqueeze(1) + self.pos_start  # [B,l_0,D]
        x = torch.cat([first, self.word_embed(inputs).to(first.dtype)], dim=1) + self.places(grids)  # [B,L,D]
        conditions = [self._shared(c)] * len(self.blocks)
        if draw is not None and self.drop_path and self.training:
            conditions = self._thinned(conditions, draw)
        x = self._through(x, conditions, self.parallel(grids))
        return self.head(self.head_nm(x, c))

    def start(self, label: Tensor, scales: Schedule | None = None) -> Progress:
        """Begin sequences of label int64 [B]; all that depends on the class alone is computed here, once a class.

        Raises:
            ConfigError: a schedule that the network cannot follow.
        """
        grids = self.check(scales)
        classes, row = label.unique(return_inverse=True)
        c = self.class_emb(classes)  # [n,D]
        return Progress(
            grids=grids,
            first=(c.unsqueeze(1) + self.pos_start)[row],
            places=self.places(grids),
            modulations=[block.modulation(self._shared(c))[row] for block in self._blocks],
            head=self.head_nm.modulation(c)[row],
            contexts=self.sequential(grids),
        )

    def step(self, progress: Progress, inputs: Tensor | None) -> Tensor:
        """The next scale of sequences: its logits [B,l,V].

        Args:
            inputs: [B,l,C], or for several sequences of the same codes (conditional, unconditional) fewer rows, to be
                repeated; None at the first scale.

        Raises:
            ConfigError: all scales have been done, or the inputs are of another size than the next.
        """
        if progress.scales == len(progress.grids):
            raise ConfigError(f"all {len(progress.grids)} scales are done; the cache has no room for more")
        length = lengths_of(progress.grids)[progress.scales]
        x = progress.first
        if inputs is not None:
            x = self.word_embed(inputs).to(x.dtype).repeat(len(x) // len(inputs), 1, 1)
        if x.shape[1] != length or (inputs is None) != (progress.scales == 0):
            raise ConfigError(f"scale {progress.scales} has {length} positions, but its input has {x.shape[1]}")
        x = x + progress.places[:, progress.positions : progress.positions + length]
        x = self._through(x, progress.modulations, progress.contexts)
        progress.scales += 1
        progress.positions += length
        return self.head(self.head_nm(x, progress.head))

    def check(self, scales: Schedule | None) -> tuple[Grid, ...]:
        """The schedule, by default the network's own. Raises ConfigError if the network cannot follow it."""
        grids = self.grids if scales is None else grids_of(scales)
        if lengths_of(grids)[:1] != [self.pos_start.shape[1]]:
            raise ConfigError(
                f"scales {list(grids)}: the first must have {self.pos_start.shape[1]} positions, as in training"
            )
        return grids

    def no_decay(self) -> set[str]:
        """Places, levels and the blocks' constants; the table of classes does decay (as in the official code)."""
        spared = ("pos_start", "pos_1LC", "lvl_embed", "ada_gss", "scale_mul")
        return {name for name, _ in self.named_parameters() if any(word in name for word in spared)}

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _shared(self, c: Tensor) -> Tensor:
        """What all blocks are told of class vectors c [B,D]."""
        return c if self.shared_ada_lin is None else self.shared_ada_lin(c)

    def _thinned(self, conditions: Sequence[Tensor], draw: Callable[[int], Tensor]) -> list[Tensor]:
        """The blocks' modulations, with gates shut at random and the others opened as much wider on the average.

        "Deep Networks with Stochastic Depth", Huang et al., ECCV 2016: the deeper the block, the more often.
        """
        depth, layers = len(self.blocks), self._blocks[0].layers
        chances = draw(depth * layers).unflatten(1, (depth, layers))  # [B,depth,layers]
        rate = torch.linspace(0, self.drop_path, depth, device=chances.device)[:, None]  # [depth,1]
        factors = (chances >= rate) / (1 - rate)  # [B,depth,layers]
        thinned: list[Tensor] = []
        for block, c, factor in zip(self._blocks, conditions, factors.unbind(1)):
            gates, others = block.modulation(c).split([layers, 2 * layers], dim=1)
            thinned.append(torch.cat([gates * factor[:, :, None, None].to(gates.dtype), others], dim=1))
        return thinned

    def _through(self, x: Tensor, conditions: Sequence[Tensor], contexts: Sequence[tuple[Any, ...]]) -> Tensor:
        for block, c, context in zip(self._blocks, conditions, contexts):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, *context, use_reentrant=False)
            else:
                x = block(x, c, *context)
        return x

    @torch.no_grad()
    def initialise(self, gate: float, scaled_gates: int) -> None:
        """As the official code: matrices of standard deviation sqrt(1 / 3D), small where blocks and network speak.

        Args:
            gate: factor of the modulations' gates.
            scaled_gates: how many of each block's gates it concerns; the rest is halved, as scales and shifts are.
        """
        width, depth = self.pos_start.shape[2], len(self.blocks)
        std = (1 / width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_start, std=std)
        self.head.weight.mul_(0.02)
        self.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)
        for block in self._blocks:
            block.attn.proj.weight.div_((2 * depth) ** 0.5)
            block.ffn.fc2.weight.div_((2 * depth) ** 0.5)
            if block.ada_gss is not None:
                nn.init.normal_(block.ada_gss, std=width**-0.5)
                block.ada_gss[:, :, :scaled_gates].mul_(gate)
                block.ada_gss[:, :, scaled_gates:].mul_(0.5)
            elif block.ada_lin is not None:
                weight = block.ada_lin.get_parameter("1.weight")
                weight[: scaled_gates * width].mul_(gate)
                weight[scaled_gates * width :].mul_(0.5)


class NextScaleSettings(Settings):
    """What the configs of next-scale networks share. `preset` fills in the sizes that are not given."""

    width: PositiveInt = 1024
    """Features of a position; divisible by heads."""
    depth: PositiveInt = 16
    """Blocks."""
    heads: PositiveInt = 16
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width."""
    unit_attention: bool = True
    """Queries and keys of length 1, with a learned factor for each head."""
    gate_init: PositiveFloat = 1e-3
    """Factor of the gates' initial weights; the deeper the network, the smaller."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """How often a sample in training goes around the last block's layers; around earlier ones less, down to never at
    the first (VAR: depth / 240)."""

    latents: ClassVar[frozenset[str]] = frozenset({"multiscale"})
    """The kinds of LatentSpec that it works on."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = cls.presets.get(data.get("preset", "")) if isinstance(data, dict) else None
        return {**preset, **data} if preset else data

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"width must be divisible by heads: got width {self.width}, heads {self.heads}; "
                f"try width {self.heads * 64}"
            )
        return self

    def arguments(self, spec: LatentSpec, num_classes: int) -> dict[str, Any]:
        """The network's arguments for codes of `spec`. Raises ConfigError if it cannot work on them."""
        name = getattr(self, "name", "")
        if spec.kind not in self.latents or spec.scales is None or spec.vocab is None:
            raise ConfigError(
                f"network {name} works on multiscale codes: got {spec.kind} from the tokenizer; choose another network"
            )
        if grids_of(spec.scales)[-1] != spec.grid:
            raise ConfigError(f"the tokenizer's scales {list(spec.scales)} must end with its grid {spec.grid}")
        sizes = self.model_dump(exclude={"name", "preset"})
        return {
            "scales": spec.scales, "channels": spec.channels, "vocab": spec.vocab, "num_classes": num_classes, **sizes,
        }  # fmt: skip
