"""EDM2: a U-Net in which activations, weights and updates keep their magnitude.

"Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al., CVPR 2024 (arXiv 2312.02696).
Parameter names are those of the published files without `unet.`, but the outputs of `attn_qkv` are
ordered otherwise (see genlab.convert.edm). The network is told ln(sigma) / 4, which the process computes.

Letters: B batch, C channels of the state, H W its grid, N = H W, M width of the first level, E width of the embedding,
K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.networks.edm_unet import check_grid, class_rows
from genlab.nn.magnitude import Fourier, MagnitudeLayer, concatenate, mix, normalise, normalise_weights, silu
from genlab.nn.resample import Direction, Resample

Preset: TypeAlias = Literal[
    "edm2-xxs", "edm2-xs", "edm2-s", "edm2-m", "edm2-l", "edm2-xl", "edm2-xxl"
]  # fmt: skip
_RESIDUAL = 0.3
"""Share of a branch in each residual sum."""
_LIMIT = 256.0
"""Activations are clamped, for half precision."""


class Edm2Block(nn.Module):
    """A residual block of the encoder, which normalises its input, or of the decoder.

    Args:
        heads: of the attention after it; 0 for none. The outputs are divisible by it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        encoder: bool,
        heads: int = 0,
        resample: Direction | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.encoder, self.heads, self.dropout = encoder, heads, dropout
        self.resample = Resample(resample) if resample else nn.Identity()
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MagnitudeLayer(outputs if encoder else inputs, outputs, 3)
        self.emb_linear = MagnitudeLayer(embedding, outputs)
        self.conv_res1 = MagnitudeLayer(outputs, outputs, 3)
        self.conv_skip = MagnitudeLayer(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        if heads:
            self.attn_qkv = MagnitudeLayer(outputs, 3 * outputs, 1)  # outputs ordered [3, heads, C/heads]
            self.attn_proj = MagnitudeLayer(outputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B,C,H,W] with the embedding e [B,E] -> [B,outputs,H',W']."""
        x = self.resample(x)
        if self.encoder:
            x = normalise(self.conv_skip(x), dims=1)
        y = self.conv_res0(silu(x))  # [B,outputs,H',W']
        vector = self.emb_linear(e, self.emb_gain) + 1  # [B,outputs]
        y = silu(y * vector[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        x = mix(x if self.encoder else self.conv_skip(x), y, _RESIDUAL)
        if self.heads:
            x = mix(x, self._attend(x), _RESIDUAL)
        return x.clamp(-_LIMIT, _LIMIT)

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.attn_qkv(x).unflatten(1, (3, self.heads, -1)).flatten(4)  # [B,3,heads,C/heads,N]
        q, k, v = normalise(qkv.transpose(3, 4), dims=4).unbind(1)  # 3 x [B,heads,N,C/heads]
        a = F.scaled_dot_product_attention(q, k, v)  # [B,heads,N,C/heads]
        return self.attn_proj(a.transpose(2, 3).reshape(x.shape))


class Edm2(Network):
    """`forward(x[B,C,H,W], t[B], label[B]) -> [B,C,H,W]`, with t = ln(sigma) / 4; a fresh network returns zero.

    Args:
        grid: (H, W), divisible by 2 to the number of levels less one.
        channels: C.
        num_classes: K; 0 for an unconditional network.
        width: M.
        multipliers: the width of each level, as a multiple of M.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention: heights of the levels with attention.
        channels_per_head: features of a head.
        dropout: inside blocks, in training.
        uncertainty_features: sines from which the log-variance is read.
        time_multiplier: sines of t, as a multiple of M; by default as many as the first level is wide.
        embedding_multiplier: E / M; by default E is the width of the widest level.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        num_classes: int = 0,
        width: int = 192,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: tuple[int, ...] = (16, 8),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        uncertainty_features: int = 128,
        time_multiplier: int | None = None,
        embedding_multiplier: int | None = None,
    ):
        super().__init__()
        check_grid(grid, len(multipliers))
        self.num_classes = num_classes
        self._channels_per_head, self._dropout = channels_per_head, dropout
        widths = [width * multiplier for multiplier in multipliers]
        sines = widths[0] if time_multiplier is None else width * time_multiplier
        self._embedding = max(widths) if embedding_multiplier is None else width * embedding_multiplier
        self.emb_fourier = Fourier(sines)
        self.emb_noise = MagnitudeLayer(sines, self._embedding)
        if num_classes:
            self.emb_label = MagnitudeLayer(num_classes, self._embedding)
        levels = [(grid[0] >> level, grid[1] >> level) for level in range(len(multipliers))]
        skips = [widths[0]]  # channels of what the way up is given
        for level, features in enumerate(widths):
            skips += ([widths[level - 1]] if level else []) + [features] * blocks
        self.enc = nn.ModuleDict(dict(self._down(levels, channels, widths, blocks, attention)))
        self.dec = nn.ModuleDict(dict(self._up(levels, widths, blocks, attention, skips)))
        self.out_conv = MagnitudeLayer(widths[0], channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.logvar_fourier = Fourier(uncertainty_features)
        self.logvar_linear = MagnitudeLayer(uncertainty_features, 1)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor, log_variance: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [B,C,H,W], t [B] = ln(sigma) / 4, label int64 [B] or class shares [B,K] -> [B,C,H,W] in the dtype of x.

        Args:
            log_variance: also return how uncertain the network is at t, as the logarithm of a variance [B].
        """
        e = self.embed(t, label)  # [B,E]
        h = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # [B,C+1,H,W]
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            h = layer(h) if name.endswith("conv") else self._block(layer, h, e)
            skips.append(h)
        for name, layer in self.dec.items():
            h = concatenate(h, skips.pop()) if "block" in name else h
            h = self._block(layer, h, e)
        out = self.out_conv(h, self.out_gain).to(x.dtype)
        return (out, self.logvar_linear(self.logvar_fourier(t)).flatten()) if log_variance else out

    def embed(self, t: Tensor, label: Tensor) -> Tensor:
        """The embedding [B,E] that all blocks are told."""
        e = self.emb_noise(self.emb_fourier(t))
        if self.num_classes:
            rows = class_rows(label, self.num_classes) * math.sqrt(self.num_classes)
            e = mix(e, self.emb_label(rows), 0.5)
        return silu(e)

    def normalise_weights(self) -> None:
        """Reset the magnitude of all weights; to be called before each training step."""
        normalise_weights(self)

    def no_decay(self) -> set[str]:
        """All: weights are kept at unit magnitude."""
        return {name for name, _ in self.named_parameters()}

    def _block(self, block: nn.Module, x: Tensor, e: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, e, use_reentrant=False)
        return block(x, e)

    def _make_block(
        self, inputs: int, outputs: int, encoder: bool, attend: bool = False, resample: Direction | None = None
    ) -> Edm2Block:
        heads = outputs // self._channels_per_head if attend else 0
        if heads and outputs % heads:
            raise ConfigError(f"network.channels_per_head: {outputs} features make no {heads} heads of the same size")
        return Edm2Block(inputs, outputs, self._embedding, encoder, heads, resample, self._dropout)

    def _down(
        self,
        levels: list[tuple[int, int]],
        channels: int,
        widths: list[int],
        blocks: int,
        attention: tuple[int, ...],
    ) -> Iterator[tuple[str, nn.Module]]:
        """The layers of the encoder in order, by name."""
        features = widths[0]
        for level, ((rows, columns), outputs) in enumerate(zip(levels, widths)):
            place = f"{rows}x{columns}"
            if level == 0:
                yield f"{place}_conv", MagnitudeLayer(channels + 1, features, 3)
            else:
                yield f"{place}_down", self._make_block(features, features, encoder=True, resample="down")
            for index in range(blocks):
                yield f"{place}_block{index}", self._make_block(features, outputs, True, rows in attention)
                features = outputs

    def _up(
        self,
        levels: list[tuple[int, int]],
        widths: list[int],
        blocks: int,
        attention: tuple[int, ...],
        skips: list[int],
    ) -> Iterator[tuple[str, nn.Module]]:
        """The layers of the decoder in order, by name."""
        features = widths[-1]
        for level in reversed(range(len(levels))):
            (rows, columns), outputs = levels[level], widths[level]
            place = f"{rows}x{columns}"
            if level == len(levels) - 1:
                yield f"{place}_in0", self._make_block(features, features, False, attend=True)
                yield f"{place}_in1", self._make_block(features, features, False)
            else:
                yield f"{place}_up", self._make_block(features, features, False, resample="up")
            for index in range(blocks + 1):
                inputs = features + skips.pop()
                yield f"{place}_block{index}", self._make_block(inputs, outputs, False, rows in attention)
                features = outputs


class Edm2Config(Settings):
    """A magnitude-preserving U-Net (EDM2). `preset` fills in what is not given."""

    name: Literal["edm2"] = "edm2"
    preset: Preset | None = None
    """A published size, such as edm2-s; what is given beside it wins."""
    width: int = Field(64, ge=8, le=65_536)
    """Features of the first level before its multiplier."""
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), min_length=1)
    """Features of each level, as multiples of the width; each level halves the grid."""
    blocks: int = Field(2, ge=1, le=64)
    """Residual blocks of each level on the way down; one more on the way up."""
    attention: tuple[PositiveInt, ...] = (16, 8)
    """Heights of the levels that have attention."""
    channels_per_head: PositiveInt = 64
    """Features of a head. Levels with fewer features have no attention."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of features that training blanks in each block."""
    uncertainty_features: PositiveInt = 128
    """Sines from which the uncertainty at a noise level is read."""
    time_multiplier: PositiveInt | None = None
    """Sines at which the noise level is shown, as a multiple of the width; by default as many as the first level has
    features."""
    embedding_multiplier: PositiveInt | None = None
    """Features of what blocks are told of noise level and class, as a multiple of the width; by default as many as the
    widest level has."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    def build(self, spec: LatentSpec, num_classes: int) -> Edm2:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network edm2 works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return Edm2(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


_SIZES = {  # width, dropout in training
    "xxs": (64, 0.0),
    "xs": (128, 0.0),
    "s": (192, 0.0),
    "m": (256, 0.1),
    "l": (320, 0.1),
    "xl": (384, 0.1),
    "xxl": (448, 0.1),
}
PRESETS: dict[str, dict[str, Any]] = {
    f"edm2-{size}": {
        "width": width,
        "multipliers": (1, 2, 3, 4),
        "blocks": 3,
        "attention": (16, 8),
        "channels_per_head": 64,
        "dropout": dropout,
        "time_multiplier": None,
        "embedding_multiplier": None,
    }
    for size, (width, dropout) in _SIZES.items()
}
