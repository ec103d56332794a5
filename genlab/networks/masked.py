"""What networks share that fill in masked codes: codes as vectors, blocks with a context, and logits.

They are those of ENAT (Ni et al., NeurIPS 2024, arXiv 2411.06959), whose parameter names they have; enat.py puts them
together as published, masked_transformer.py in the plain way.

Letters: B batch, L positions, of a row: n at hand, p of its context, m masked ones; N masked ones of the batch,
D width, H heads, d = D/H, V vocabulary, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.adaln import modulation, norm
from genlab.nn.embed import LabelEmbedding
from genlab.nn.mlp import Mlp
from genlab.nn.selection import Uneven

Previous: TypeAlias = tuple[Tensor, Tensor]
"""What an earlier pass made of fewer codes: features [B,L,D], and where it saw none, bool [B,L]."""


class Decoder(ABC):
    """Generation of the images of some labels, step by step."""

    @abstractmethod
    def step(self, tokens: Tensor, masked: Tensor, fresh: Tensor) -> Tensor:
        """Logits [B,m,V] of the masked positions. Never waits for the device.

        Args:
            tokens: int64 [B,L], V where masked.
            masked: int64 [B,m], the positions that are masked, in rising order.
            fresh: int64 [B,n], those that are not but were in the step before, in rising order; at the first step, all
                that are given.
        """
        ...


class CodeEmbedding(nn.Module):
    """Codes and places as normalised vectors; `rows` includes the mask token."""

    def __init__(self, rows: int, positions: int, width: int, dropout: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(rows, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens [B,n] at positions [B,n], by default all, -> [B,n,D]."""
        places = self.position_embeddings.weight if positions is None else self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens) + places))


class Attention(nn.Module):
    """Attention to the tokens themselves and, with `context`, to others that have a projection of their own."""

    def __init__(self, width: int, heads: int, context: bool):
        super().__init__()
        if width % heads:
            raise ConfigError(f"network: width must be divisible by heads: got width {width}, heads {heads}")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.ModuleDict({name: nn.Linear(width, 2 * width) for name in ("AB" if context else "B")})
        self.proj = nn.Linear(width, width)
        if not context:
            self.kv["B"].get_parameter("bias").register_hook(_without_key_half)

    def forward(self, x: Tensor, context: Tensor | None, uneven: Uneven | None) -> Tensor:
        """x [B,n,D] and its context [B,p,D] -> [B,n,D]; both may be packed, as `uneven` says."""
        q, kv = self.q(x), self.kv["B"](x)  # [B,n,D], [B,n,2D]
        if uneven is not None:
            q, kv = uneven.tokens.pad(q), uneven.tokens.pad(kv)
        if context is not None:
            other = self.kv["A"](context)  # [B,p,2D]
            kv = torch.cat([other if uneven is None else uneven.context.pad(other), kv], dim=1)  # [B,p+n,2D]
        q = q.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B,H,n,d]
        k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # 2 x [B,H,p+n,d]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if uneven is None else uneven.mask)  # [B,H,n,d]
        x = x.transpose(1, 2).flatten(2)  # [B,n,D]
        return self.proj(x if uneven is None else uneven.tokens.unpad(x))


class Block(nn.Module):
    """Attention and a perceptron, both on modulated norms and behind gates (adaLN-Zero).

    Args:
        context: it also attends to a context, which has a modulation and a projection of its own.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, context: bool = False):
        super().__init__()
        self.norm = norm(width)
        self.attn = Attention(width, heads, context)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.adaLN_modulation = modulation(width, 8 if context else 6)

    def modulation(self, c: Tensor) -> Tensor:
        """Class vectors [B,D] -> [B,6 or 8,1,D]: shift, scale, (the context's,) gate; shift, scale, gate."""
        return self.adaLN_modulation(c).unflatten(1, (-1, 1, c.shape[1]))

    def forward(self, x: Tensor, m: Tensor, context: Tensor | None = None, uneven: Uneven | None = None) -> Tensor:
        """x [B,n,D] under a modulation -> [B,n,D]. `context` [B,p,D] is normalised already, and never updated. Where
        rows are not even, both may be packed."""
        if context is not None:
            shift, scale = (m[:, 2:4] if uneven is None else uneven.context.spread(m[:, 2:4])).unbind(1)  # 2 x [B,1,D]
            context = torch.addcmul(shift, context, 1 + scale)  # [B,p,D]
        m = m if uneven is None else uneven.tokens.spread(m)
        shift, scale, *_, gate, mlp_shift, mlp_scale, mlp_gate = m.unbind(1)  # 6 or 8 x [B,1,D]
        x = torch.addcmul(x, gate, self.attn(torch.addcmul(shift, self.norm(x), 1 + scale), context, uneven))
        return torch.addcmul(x, mlp_gate, self.mlp(torch.addcmul(mlp_shift, self.norm(x), 1 + mlp_scale)))


class CodeHead(nn.Module):
    """Features -> logits by the table of codes, which gets no gradient here, and a bias."""

    def __init__(self, width: int, rows: int):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.empty(1, 1, rows))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x [...,D] and the table [V+1,D], whose last row is the mask token's, -> [...,V]."""
        return F.linear(self.ln(F.gelu(self.fc(x))), table[:-1].detach(), self.bias[0, 0, :-1])


class MaskedNetwork(Network):
    """`forward(tokens[B,L], label[B], previous=None) -> logits[N,V]` of the masked positions, row by row.

    Args:
        positions: L, the places of the latent grid, row by row.
        vocab: V; the code V stands for a masked one.
        width: D.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        blocks: of the same width.
        dropout: of what enters the first block, in training; in [0, 1).
    """

    reuses: ClassVar[bool] = False
    """Whether it makes use of `previous`."""

    def __init__(
        self, positions: int, vocab: int, width: int, num_classes: int, blocks: Sequence[Block], dropout: float
    ):
        super().__init__()
        self.num_classes, self.positions, self.vocab, self.mask_token = num_classes, positions, vocab, vocab
        self.x_embedder = CodeEmbedding(vocab + 1, positions, width, dropout)
        self.y_embedder = LabelEmbedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.mlm_layer = CodeHead(width, vocab + 1)

    @abstractmethod
    def features(self, tokens: Tensor, label: Tensor, previous: Previous | None = None) -> Tensor:
        """Tokens int64 [B,L], V where masked, and labels [B] -> what `logits` takes, [B,L,D]."""

    @abstractmethod
    def decoder(self, label: Tensor) -> Decoder:
        """For the images of label int64 [B]; all that depends on the class alone is computed here."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B,L] -> [B,L,D]. Raises ConfigError for another L than the network's."""
        if tokens.shape[1] != self.positions:
            raise ConfigError(f"tokens of {tokens.shape[1]} positions, but the network has {self.positions}")
        return self.x_embedder(tokens)

    def logits(self, features: Tensor) -> Tensor:
        """[...,D] -> [...,V]."""
        return self.mlm_layer(self.norm(features), self.x_embedder.word_embeddings.weight)

    def modulations(self, label: Tensor) -> list[Tensor]:
        """Of every block, for label int64 [B]."""
        c = self.y_embedder(label)  # [B,D]
        return [block.modulation(c) for block in cast(list[Block], list(self.blocks))]

    def no_decay(self) -> set[str]:
        """None: the reference decays the tables too."""
        return set()

    def through(self, block: nn.Module, x: Tensor, *arguments: Tensor | Uneven | None) -> Tensor:
        """One block, whose activations are stored or computed again for the backward pass."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *arguments, use_reentrant=False)
        return block(x, *arguments)

    def initialise(self) -> None:
        """Xavier weights and no biases; small embeddings; blocks that say nothing yet."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
            elif "embeddings" in name or "embedding_table" in name:
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)


class MaskedSettings(Settings):
    """What the configs of these networks share. `preset` fills in the sizes that are not given."""

    width: PositiveInt = 384
    """Features of a position; divisible by heads."""
    heads: PositiveInt = 6
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """In training, of embedded codes."""

    latents: ClassVar[frozenset[str]] = frozenset({"codes"})
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
        if spec.kind not in self.latents or spec.vocab is None:
            raise ConfigError(
                f"network {name} works on codes: got {spec.kind} from the tokenizer; choose another network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return {"grid": spec.grid, "vocab": spec.vocab, "num_classes": num_classes, **sizes}


def _without_key_half(gradient: Tensor) -> Tensor:
    """The gradient [2D] of the fused bias with zeros for the key, whose own is rounding noise: softmax ignores a bias
    that all keys share, and Adam would turn the noise into steps of the size of the learning rate."""
    keys, values = gradient.chunk(2)
    return torch.cat([torch.zeros_like(keys), values])
