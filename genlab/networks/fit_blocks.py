"""The parts of FiT and FiTv2: their block, their output layer, and the choices of norm, perceptron and modulation.

Letters: B batch, N tokens, n images in a row of tokens, D width, d features of a head, p patch side, o output channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from genlab.nn.adaln import modulation
from genlab.nn.gated_mlp import GatedMlp
from genlab.nn.grid_attention import GridAttention
from genlab.nn.grid_rope import Rotation
from genlab.nn.lora_modulation import lora_modulation
from genlab.nn.mlp import Mlp

Norm: TypeAlias = Literal["layernorm", "w_layernorm", "rmsnorm", "w_rmsnorm", "none"]
"""w_: with a weight of its own."""
Modulation: TypeAlias = Literal["full", "lora", "swiglu"]
Perceptron: TypeAlias = Literal["swiglu", "wide_swiglu", "gelu"]


class Places(NamedTuple):
    """Where the tokens of one forward stand, and which belong together."""

    turn: Rotation
    attend: Tensor | None = None
    """bool [B,1,N,N]: tokens of the same image; None: one image a row, nothing padded."""
    valid: Tensor | None = None
    """bool [B,N,1]: false for padding."""
    image: Tensor | None = None
    """int64 [B,N,1]: which of the row's conditions rules a token; None: there is one a row."""

    def spread(self, vectors: Tensor) -> Tensor:
        """What tokens [B,N or 1,D] take from conditions [B,n,D]."""
        if self.image is None:
            return vectors
        return vectors.gather(1, self.image.expand(-1, -1, vectors.shape[2]))


class PatchLinear(nn.Module):
    """Tokens [B,N,C*p*p] -> [B,N,D]."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.proj = nn.Linear(features, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.to(self.proj.weight.dtype))


class Block(nn.Module):
    """An adaLN block whose modulation may be a low-rank addition to a shared one (FiTv2, section 3.2)."""

    def __init__(self, width: int, attn: GridAttention, mlp: nn.Module, norm: Norm, modulate: nn.Module):
        super().__init__()
        self.norm1, self.attn = norm_layer(norm, width), attn
        self.norm2, self.mlp = norm_layer(norm, width), mlp
        self.adaLN_modulation = modulate

    def forward(self, x: Tensor, c: Tensor, shared: Tensor | None, places: Places) -> Tensor:
        """Tokens [B,N,D] under conditions c [B,n,D] and the shared modulation [B,n,6D] -> [B,N,D]."""
        m = self.adaLN_modulation(c)  # [B,n,6D]
        m = places.spread(m if shared is None else m + shared)  # [B,N|1,6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = m.chunk(6, dim=-1)  # 6 x [B,N|1,D]
        here = self.norm1(x) * (1 + scale1) + shift1  # [B,N,D]
        x = x + gate1 * self.attn(here, places.turn, places.attend, places.valid)  # [B,N,D]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)  # [B,N,D]


class FinalLayer(nn.Module):
    """Modulated norm and a Linear to the pixels of each patch."""

    def __init__(self, width: int, outputs: int, norm: Norm, modulate: nn.Module):
        super().__init__()
        self.norm_final = norm_layer(norm, width)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulate

    def forward(self, x: Tensor, c: Tensor, places: Places) -> Tensor:
        """Tokens [B,N,D] under conditions c [B,n,D] -> [B,N,o*p*p]."""
        shift, scale = places.spread(self.adaLN_modulation(c)).chunk(2, dim=-1)  # 2 x [B,N|1,D]
        return self.linear(self.norm_final(x) * (1 + scale) + shift)  # [B,N,o*p*p]


def norm_layer(kind: Norm, width: int) -> nn.Module:
    """A norm over `width` features."""
    weighted = kind.startswith("w_")
    match kind.removeprefix("w_"):
        case "layernorm":
            return nn.LayerNorm(width, eps=1e-6, elementwise_affine=weighted, bias=False)
        case "rmsnorm":
            return nn.RMSNorm(width, eps=1e-6, elementwise_affine=weighted)
        case _:
            return nn.Identity()


def perceptron(kind: Perceptron, width: int, hidden: int) -> nn.Module:
    """A block's perceptron; FiTv2 gives its third matrix the features that FiT had beyond (section 3.2)."""
    match kind:
        case "swiglu":
            return GatedMlp(width, hidden * 2 // 3)
        case "wide_swiglu":
            return GatedMlp(width, hidden)
        case "gelu":
            return Mlp(width, hidden)


def modulation_layer(kind: Modulation, width: int, count: int, rank: int, hidden: int) -> nn.Module:
    """Condition [...,D] -> [..., count * D]; `rank` is of "lora", `hidden` of "swiglu"."""
    match kind:
        case "full":
            return modulation(width, count)
        case "lora":
            return lora_modulation(width, count, rank)
        case "swiglu":
            return GatedMlp(width, hidden, count * width)
