"""The network of improved mean flow: a transformer whose conditions are tokens beside the patches, with two heads.

"Improved Mean Flows: On the Challenges of Fastforward Generative Models", Geng et al. 2025 (arXiv 2512.02012). It is
told how long a stretch of time to cross, and with which guidance it is to have been trained; not the time itself.

Letters: B batch, C latent channels, H W latent grid, p patch side, T = H W / p^2 patches, P condition tokens,
N = P + T, D width, A attention heads, d = D/A, K classes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.embed import LabelEmbedding, TimeEmbedding
from genlab.nn.grid_rope import Rotation
from genlab.nn.patch import PatchEmbedding, unpatchify
from genlab.nn.rms_norm import RmsNorm

Preset: TypeAlias = Literal["iMF-B/2", "iMF-M/2", "iMF-L/2", "iMF-XL/2"]
Head: TypeAlias = Literal["average", "velocity", "both"]
_BLOCK_GAIN = 0.32
"""Blocks start with weights of this standard deviation over the root of their inputs."""


class SequenceRope(nn.Module):
    """Turns adjacent features (2j, 2j+1) of heads [B,A,N,d] by position * 10000^(-2j/d) (Su et al. 2021, eq. 34)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, length: int):
        super().__init__()
        frequency = 10_000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)  # [d/2]
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # [N,d/2]
        self.register_buffer("cos", angle.cos().float()[None, None], persistent=False)  # [1,1,N,d/2]
        self.register_buffer("sin", angle.sin().float()[None, None], persistent=False)  # [1,1,N,d/2]

    def forward(self, x: Tensor) -> Tensor:
        """[B,A,N,d] -> [B,A,N,d]."""
        return Rotation(self.cos, self.sin)(x)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v without biases, q and k normalised and turned."""

    def __init__(self, width: int, heads: int, rope: SequenceRope):
        super().__init__()
        self.heads, self.rope = heads, rope
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RmsNorm(width // heads)
        self.k_norm = RmsNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,N,D]."""
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # 3 x [B,A,N,d]
        q, k = self.rope(self.q_norm(q)), self.rope(self.k_norm(k))  # 2 x [B,A,N,d]
        out = F.scaled_dot_product_attention(q, k, v)  # [B,A,N,d]
        return self.out_proj(out.transpose(1, 2).flatten(2))  # [B,N,D]


class SwiGlu(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6) without biases; over the last axis."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and a perceptron, each behind a gate per feature that starts at zero."""

    def __init__(self, width: int, heads: int, hidden: int, rope: SequenceRope):
        super().__init__()
        self.norm1 = RmsNorm(width)
        self.attn = Attention(width, heads, rope)
        self.attn_scale = nn.Parameter(torch.zeros(width))
        self.norm2 = RmsNorm(width)
        self.mlp = SwiGlu(width, hidden)
        self.mlp_scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,N,D]."""
        x = x + self.attn_scale * self.attn(self.norm1(x))
        return x + self.mlp_scale * self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Norm and a Linear to the pixels of each patch."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = RmsNorm(width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,p*p*C]."""
        return self.linear(self.norm(x))


class IMFDiT(Network):
    """`forward(x[B,C,H,W], t[B], label[B], interval[B] = 0, ...) -> [B,C,H,W]`; a fresh network returns exactly zero.

    Args:
        grid: (H, W), each divisible by `patch`.
        channels: C.
        patch, width, depth, heads: the sizes; `width` divisible by `heads`, and width / heads even.
        mlp_ratio: hidden features of the perceptrons, as a multiple of the width, rounded down.
        head_depth: how many of the last blocks each head has of its own.
        class_tokens, guidance_tokens, window_tokens, time_tokens: how many tokens carry each condition; the window of
            guidance has `window_tokens` for each of its ends.
        num_classes: K.
        velocity_head: whether there is a head for the velocity, which only training needs.

    Raises:
        ConfigError: sizes that do not divide.
    """

    takes_interval: ClassVar[bool] = True
    takes_guidance: ClassVar[bool] = True

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        patch: int = 2,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 8 / 3,
        head_depth: int = 8,
        class_tokens: int = 8,
        guidance_tokens: int = 4,
        window_tokens: int = 2,
        time_tokens: int = 4,
        num_classes: int = 1000,
        velocity_head: bool = True,
    ):
        super().__init__()
        if grid[0] % patch or grid[1] % patch:
            raise ConfigError(
                f"network.patch must divide the latent grid: got patch {patch} for a grid of {grid[0]} x {grid[1]}; "
                "choose another patch or image size"
            )
        self.num_classes, self.patch = num_classes, patch
        self.token_grid = (grid[0] // patch, grid[1] // patch)
        self.x_embedder = PatchEmbedding(channels, patch, width)
        self.y_embedder = LabelEmbedding(num_classes + 1, width)
        self.h_embedder = TimeEmbedding(width)
        self.omega_embedder = TimeEmbedding(width)
        self.cfg_t_start_embedder = TimeEmbedding(width)
        self.cfg_t_end_embedder = TimeEmbedding(width)
        self.class_tokens = nn.Parameter(torch.empty(class_tokens, width))
        self.omega_tokens = nn.Parameter(torch.empty(guidance_tokens, width))
        self.t_min_tokens = nn.Parameter(torch.empty(window_tokens, width))
        self.t_max_tokens = nn.Parameter(torch.empty(window_tokens, width))
        self.time_tokens = nn.Parameter(torch.empty(time_tokens, width))
        conditions = class_tokens + guidance_tokens + 2 * window_tokens + time_tokens
        rope = SequenceRope(width // heads, conditions + self.token_grid[0] * self.token_grid[1])

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, heads, int(width * mlp_ratio), rope) for _ in range(count))

        self.shared_blocks = blocks(depth - head_depth)
        self.u_heads, self.u_final_layer = blocks(head_depth), FinalLayer(width, patch * patch * channels)
        if velocity_head:
            self.v_heads, self.v_final_layer = blocks(head_depth), FinalLayer(width, patch * patch * channels)
        self._initialise()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor,
        interval: Tensor | None = None,
        guidance: Tensor | None = None,
        window: Tensor | None = None,
        head: Head = "average",
    ) -> Tensor:
        """The average velocity [B,C,H,W], the velocity at t, or both [B,2C,H,W].

        Args:
            x: [B,C,H,W].
            t: [B]; not used, the state tells it.
            label: int64 [B].
            interval: t - r, the length of time to cross [B]; by default 0.
            guidance: the scale [B] >= 1 of the guidance that is wanted; by default 1, none.
            window: the times [B,2] between which it is wanted; by default all, (0, 1).
        """
        guidance = torch.ones_like(t) if guidance is None else guidance
        start, end = (torch.zeros_like(t), torch.ones_like(t)) if window is None else window.unbind(1)  # 2 x [B]
        groups = [  # 5 x ([n,D], [B,D])
            (self.class_tokens, self.y_embedder(label)),
            (self.omega_tokens, self.omega_embedder(1 - 1 / guidance)),
            (self.t_min_tokens, self.cfg_t_start_embedder(start)),
            (self.t_max_tokens, self.cfg_t_end_embedder(end)),
            (self.time_tokens, self.h_embedder(torch.zeros_like(t) if interval is None else interval)),
        ]
        patches = self.x_embedder(x)  # [B,T,D]
        tokens = torch.cat([own + vector.unsqueeze(1) for own, vector in groups] + [patches], dim=1)  # [B,N,D]
        tokens = self._through(self.shared_blocks, tokens)  # [B,N,D]
        out = []
        if head != "velocity":
            out.append(self.u_final_layer(self._through(self.u_heads, tokens)[:, -patches.shape[1] :]))
        if head != "average":
            out.append(self.v_final_layer(self._through(self.v_heads, tokens)[:, -patches.shape[1] :]))
        maps = [unpatchify(each, self.token_grid, self.patch) for each in out]  # 1 or 2 x [B,C,H,W]
        return torch.cat(maps, dim=1).to(x.dtype)

    def _through(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)  # [B,N,D]
            else:
                x = block(x)  # [B,N,D]
        return x

    def _initialise(self) -> None:
        """Normal weights scaled by their inputs; zero where blocks and the network speak."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue  # their weights are 1
            if name.endswith(("bias", "_scale")) or "final_layer" in name:
                nn.init.zeros_(parameter)
            elif name.startswith("x_embedder"):
                nn.init.xavier_uniform_(parameter.flatten(1))
            else:
                gain = _BLOCK_GAIN if "blocks" in name or "_heads" in name else 1.0
                nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))


class IMFDiTConfig(Settings):
    """The transformer of improved mean flow. `preset` fills in the sizes that are not given."""

    name: Literal["imf_dit"] = "imf_dit"
    preset: Preset | None = None
    """A published size, such as iMF-XL/2; what is given beside it wins."""
    patch: int = Field(2, ge=1, le=256)
    """Side of a patch."""
    width: int = Field(768, ge=1, le=65_536)
    """Features of a token; divisible by heads, and evenly."""
    depth: int = Field(12, ge=1, le=1024)
    """Blocks on the way from the input to either head's output."""
    heads: int = Field(12, ge=1, le=1024)
    """Attention heads."""
    mlp_ratio: PositiveFloat = 8 / 3
    """Hidden features of a block's perceptron, as a multiple of the width."""
    head_depth: PositiveInt = 8
    """The last blocks, of which average velocity and velocity each have their own."""
    class_tokens: PositiveInt = 8
    """Tokens that carry the class."""
    guidance_tokens: PositiveInt = 4
    """Tokens that carry the guidance scale."""
    window_tokens: PositiveInt = 2
    """Tokens that carry each end of the interval of guidance."""
    time_tokens: PositiveInt = 4
    """Tokens that carry the length of time to cross."""
    velocity_head: bool = True
    """Have the head for the velocity, which only training needs; published files lack it."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width / heads must be an even number: got width {self.width}, heads {self.heads}; "
                f"try width {self.heads * 64}"
            )
        if self.head_depth > self.depth:
            raise ValueError(f"head_depth is part of depth: got {self.head_depth} of {self.depth}; lower head_depth")
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> IMFDiT:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(f"network imf_dit works on continuous latents: got {spec.kind} from the tokenizer")
        sizes = self.model_dump(exclude={"name", "preset"})
        return IMFDiT(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


PRESETS: dict[str, dict[str, Any]] = {
    "iMF-B/2": {"depth": 12, "width": 768, "heads": 12, "patch": 2},
    "iMF-M/2": {"depth": 24, "width": 768, "heads": 12, "patch": 2},
    "iMF-L/2": {"depth": 32, "width": 1024, "heads": 16, "patch": 2},
    "iMF-XL/2": {"depth": 48, "width": 1024, "heads": 16, "patch": 2},
}
