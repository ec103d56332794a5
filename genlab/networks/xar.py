"""xAR: a transformer that tells the velocity of one entity of an image in the light of the entities before it.

"Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", Ren et al., ICCV 2025 (arXiv 2502.20388).
Parameter names are those of the official checkpoints. "Encoder" and "decoder" are only names: both are under the same
block-causal attention.

Letters: B batch, R rows (conditional and unconditional ones), C latent channels, H W latent grid, G entities, n tokens
of an entity, L tokens in all, F = C p p features of a token of p x p positions, D width, K classes, U conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.networks.xar_blocks import Attend, Block, Turns
from genlab.networks.xar_entities import Kind, entities
from genlab.nn.block_causal import BlockCausal
from genlab.nn.cell_cache import CellCache
from genlab.nn.embed import TimeEmbedding
from genlab.nn.rms_norm import RmsNorm

Preset: TypeAlias = Literal["xAR-B", "xAR-L", "xAR-H"]


class XAR(Network):
    """`forward(x, t, label)` -> velocities of the shape of x: images [B,C,H,W], or sequences of tokens [B,L,F].

    Args:
        grid: (H, W), of any size that the entities divide.
        channels: C.
        entity, entity_size, scales, patch: what is generated at once; see `genlab.networks.xar_entities.entities`.
        width, encoder_depth, decoder_depth, heads: the sizes; `width` divisible by heads, and a head's by 4.
        decoder_heads: heads of the second half, where they differ.
        mlp_ratio: the perceptron has int(width * mlp_ratio * 2/3) hidden features.
        mlp_multiple: which are rounded up to a multiple of this.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        dropout: of attention weights and of what branches add, in training.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        entity: Kind = "cell",
        entity_size: int | None = None,
        scales: tuple[int, ...] | None = None,
        patch: int = 1,
        width: int = 768,
        encoder_depth: int = 8,
        decoder_depth: int = 8,
        heads: int = 12,
        decoder_heads: int | None = None,
        mlp_ratio: float = 4.0,
        mlp_multiple: int = 1,
        num_classes: int = 1000,
        dropout: float = 0.1,
    ):
        super().__init__()
        decoder_heads = decoder_heads or heads
        for each in (heads, decoder_heads):
            if problem := _size_problem(width, each):
                raise ConfigError(f"network: {problem}")
        self.num_classes = num_classes
        if grid[0] % patch or grid[1] % patch:
            raise ConfigError(
                f"network.patch must divide the latent grid: got patch {patch} for a grid of {grid[0]} x {grid[1]}; "
                "choose another patch or image size"
            )
        tokens, features = (grid[0] // patch, grid[1] // patch), channels * patch**2
        self.entities = entities(tokens, entity, entity_size, scales, patch)
        self.attend = BlockCausal(self.entities.sizes)
        self.turns = nn.ModuleList(Turns(width // each, self.entities.places) for each in (heads, decoder_heads))
        self.hidden = hidden = -(-int(width * mlp_ratio * 2 / 3) // mlp_multiple) * mlp_multiple
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.time_embed = TimeEmbedding(width)
        self.z_proj = nn.Linear(features, width)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, self.entities.length, width))
        self.z_proj_ln = RmsNorm(width)
        self.encoder_blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(encoder_depth))
        self.encoder_norm = RmsNorm(width)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, self.entities.length, width))
        self.decoder_blocks = nn.ModuleList(Block(width, decoder_heads, hidden, dropout) for _ in range(decoder_depth))
        self.decoder_norm = RmsNorm(width)
        self.pred = nn.Linear(width, features)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Every entity at once, each at its own time and seeing those before it as they are in x.

        Args:
            x: [B,C,H,W] or [B,L,F].
            t: [B,G], or [B] for all entities; 0 is clean and 1000 is noise.
            label: int64 [B].

        Returns:
            d x / d (t / 1000), in the shape and dtype of x.
        """
        if x.dim() == 4:
            return self.entities.restore(self(self.entities.arrange(x), t, label))
        t = t if t.dim() == 2 else t[:, None].expand(-1, len(self.entities))  # [B,G]
        times = self.time_embed(t.flatten()).unflatten(0, t.shape)  # [B,G,D]
        c = self._per_token(self.class_emb(label)[:, None] + times)  # [B,E,D]
        every = slice(0, self.entities.length)
        h = self._enter(x, every)  # [B,L,D]
        for number, block in enumerate(self._blocks()):
            h = self._between(h, number, every)
            arguments = (h, block.ada_lin(c), self._turns(number, every), self.attend)
            if self.activation_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, *arguments, use_reentrant=False)  # [B,L,D]
            else:
                h = block(*arguments)  # [B,L,D]
        return self._leave(h).to(x.dtype)

    def no_decay(self) -> set[str]:
        """None: the reference decays positions and classes too."""
        return set()

    def new_cache(self, rows: int) -> CellCache:
        """An empty cache for `rows` images."""
        return CellCache(len(self.encoder_blocks) + len(self.decoder_blocks), rows, self.entities.length)

    def modulations(self, t: Tensor, label: Tensor) -> Tensor:
        """What all blocks make of the conditions of times t [U] and labels [U] -> [blocks,U,6D]."""
        c = self.class_emb(label) + self.time_embed(t)  # [U,D]
        return torch.stack([block.ada_lin(c) for block in self._blocks()])

    def step(self, x: Tensor, entity: int, m: Tensor, cache: CellCache) -> Tensor:
        """The velocities of one entity x [R,n,F] after the entities in `cache`, which takes it up as well.

        Args:
            m: [blocks,R,6D], the modulations of each row.

        Raises:
            ConfigError: the cache is too short.
        """
        span = self.entities.span(entity)
        h = self._enter(x, span)  # [R,n,D]
        for number, block in enumerate(self._blocks()):
            attend = self._cached(cache, number, span)
            h = block(self._between(h, number, span), m[number, :, None], self._turns(number, span), attend)
        return self._leave(h).to(x.dtype)

    def remember(self, x: Tensor, entity: int, m: Tensor, cache: CellCache) -> None:
        """Take a finished entity x [R,n,F] up into `cache`; as `step`, without what only its velocities need."""
        span = self.entities.span(entity)
        h = self._enter(x, span)  # [R,n,D]
        *blocks, last = self._blocks()
        for number, block in enumerate(blocks):
            attend = self._cached(cache, number, span)
            h = block(self._between(h, number, span), m[number, :, None], self._turns(number, span), attend)
        number = len(blocks)
        k, v = last.keys(self._between(h, number, span), m[number, :, None], self._turns(number, span))
        self._write(cache, number, k, v, span)

    def _blocks(self) -> Iterator[Any]:
        yield from self.encoder_blocks
        yield from self.decoder_blocks

    def _enter(self, x: Tensor, span: slice) -> Tensor:
        """Tokens [B,n,F] of the places `span` -> [B,n,D]."""
        h = self.z_proj(x.to(self.z_proj.weight.dtype))
        return self.z_proj_ln(h + self.encoder_pos_embed_learned[:, span])

    def _between(self, h: Tensor, number: int, span: slice) -> Tensor:
        """What block `number` is given: the same tokens [B,n,D], but where the first half ends."""
        if number != len(self.encoder_blocks):
            return h
        return self.decoder_embed(self.encoder_norm(h)) + self.decoder_pos_embed_learned[:, span]

    def _leave(self, h: Tensor) -> Tensor:
        """[B,n,D] -> [B,n,F]."""
        return self.pred(self.decoder_norm(h))

    def _turns(self, number: int, span: slice) -> Tensor:
        return self.turns[number >= len(self.encoder_blocks)](span)

    def _per_token(self, c: Tensor) -> Tensor:
        """Conditions [B,G,D] of entities of equal size as they are; of others, one for each token [B,L,D]."""
        return c if len(set(self.entities.sizes)) == 1 else c[:, self.entities.owner]

    def _cached(self, cache: CellCache, layer: int, span: slice) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
            return F.scaled_dot_product_attention(q, *self._write(cache, layer, k, v, span))

        return attend

    def _write(self, cache: CellCache, layer: int, k: Tensor, v: Tensor, span: slice) -> tuple[Tensor, Tensor]:
        try:
            return cache.write(layer, k, v, span.start)
        except ValueError as error:
            raise ConfigError(f"{error}; make it with network.new_cache(rows) of the network that writes") from None

    def _initialise(self) -> None:
        """Xavier weights and no biases, everywhere; small embeddings."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("class_emb") or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)


def _size_problem(width: int, heads: int) -> str | None:
    """What is wrong with the width, if anything."""
    if width % heads:
        return f"width must be divisible by heads: got width {width}, heads {heads}; try width {heads * 64}"
    if width // heads % 4:
        return f"a head must have a multiple of 4 features (rotary positions): got {width // heads}; try {heads * 64}"
    return None


class XARConfig(Settings):
    """An xAR network. `preset` fills in the sizes that are not given."""

    name: Literal["xar"] = "xar"
    preset: Preset | None = None
    """A published size, such as xAR-B; what is given beside it wins."""
    entity: Kind = "cell"
    """What is generated at once: patch (one token), cell (a square of them, as published), subsample (every so many
    rows and columns), scale (coarse to fine), or the whole image."""
    entity_size: PositiveInt | None = None
    """Side of a cell or stride of a subsample, in tokens; by default half the shorter side of the grid."""
    scales: tuple[PositiveInt, ...] | None = None
    """Longer side of each scale, up to that of the grid; by default powers of two."""
    patch: PositiveInt = 1
    """Latent positions on a side of a token; published sizes have 1."""
    width: PositiveInt = 384
    """Features of a token; divisible by heads, and a head's by 4."""
    encoder_depth: PositiveInt = 6
    """Blocks of the first half."""
    decoder_depth: PositiveInt = 6
    """Blocks of the second half, which get positions anew."""
    heads: PositiveInt = 6
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of 3/2 of the width."""
    mlp_multiple: PositiveInt = 1
    """Round hidden features up to a multiple of this: 8 is quicker on GPUs, and exact for published weights."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In training: of attention weights, and of what attention and perceptron add."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if problem := _size_problem(self.width, self.heads):
            raise ValueError(problem)
        if self.entity_size is not None and self.entity not in ("cell", "subsample"):
            raise ValueError(
                f"entity_size is of cells and subsamples: got {self.entity_size} for {self.entity}; remove it"
            )
        if self.scales is not None and self.entity != "scale":
            raise ValueError(f"scales are of entity scale: got {list(self.scales)} for {self.entity}; remove them")
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> XAR:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network xar works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return XAR(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


PRESETS: dict[str, dict[str, int]] = {  # the repository's presets
    "xAR-B": {"width": 768, "encoder_depth": 8, "decoder_depth": 8, "heads": 12},
    "xAR-L": {"width": 1024, "encoder_depth": 16, "decoder_depth": 16, "heads": 16},
    "xAR-H": {"width": 1280, "encoder_depth": 20, "decoder_depth": 20, "heads": 16},
}
