"""The U-Nets of EDM: ADM, DDPM++ and NCSN++, from the same parts.

"Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al., NeurIPS 2022 (arXiv 2206.00364).
Parameter names are those of the published files below `model.`, but the outputs of `qkv` are ordered otherwise
(see genlab.convert.edm). The network is told ln(sigma) / 4, which the process computes.

Letters: B batch, C channels of the state, H W its grid, M width of the first level, E width of the embedding,
A augmentation numbers, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.networks.edm_blocks import Block, BlockStyle, Conv, Norm
from genlab.nn.resample import BOX, Direction, Resample

Family: TypeAlias = Literal["adm", "song"]
Preset: TypeAlias = Literal[
    "adm-imagenet64", "ddpmpp-cifar10", "ncsnpp-cifar10", "ddpmpp-faces64", "ncsnpp-faces64"
]  # fmt: skip
_ROOT_HALF = math.sqrt(0.5)


class EdmUNet(Network):
    """`forward(x[B,C,H,W], t[B], label[B]) -> [B,C,H,W]`, with t = ln(sigma) / 4.

    Args:
        grid: (H, W), divisible by 2 to the number of levels less one.
        channels: C.
        num_classes: K; 0 for an unconditional network.
        family: "adm" scales and shifts by the embedding, "song" (DDPM++, NCSN++) adds it.
        width: M.
        multipliers: the width of each level, as a multiple of M.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention: heights of the levels with attention.
        channels_per_head: features of a head; None for one head. Levels with fewer features have no attention.
        dropout: inside blocks, in training.
        embedding_multiplier: E / M.
        augment_features: A, numbers that tell of an augmentation of the training data; 0 for none.
        time_features: of "song": sines of t at "positional" or random "fourier" frequencies.
        time_multiplier: of "song": how many of them, as a multiple of M.
        encoder, decoder: of "song": "standard"; "skip", where each level has its own picture of the input or output;
            for the encoder also "residual", where these pictures are features.
        taps: filter of the resampling.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        num_classes: int = 0,
        family: Family = "adm",
        width: int = 192,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: tuple[int, ...] = (32, 16, 8),
        channels_per_head: int | None = 64,
        dropout: float = 0.0,
        embedding_multiplier: int = 4,
        augment_features: int = 0,
        time_features: Literal["positional", "fourier"] = "positional",
        time_multiplier: int = 1,
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        taps: tuple[float, ...] = BOX,
    ):
        super().__init__()
        check_grid(grid, len(multipliers))
        self.num_classes, self.family = num_classes, family
        self._width, self._channels_per_head, self._taps = width, channels_per_head, taps
        self._embedding = width * embedding_multiplier
        if family == "adm":
            self._style = BlockStyle(taps=taps, dropout=dropout)
        else:
            self._style = BlockStyle(False, 1e-6, _ROOT_HALF, taps, project_resampled=True, dropout=dropout)
        self._make_embedding(width * time_multiplier, time_features, augment_features)
        levels = [(grid[0] >> level, grid[1] >> level) for level in range(len(multipliers))]
        widths = [width * multiplier for multiplier in multipliers]
        self.enc = nn.ModuleDict(dict(self._down(levels, channels, widths, blocks, attention, encoder)))
        skips = [width if family == "song" else widths[0]]  # channels of what the way up is given
        for level, features in enumerate(widths):
            skips += ([widths[level - 1]] if level else []) + [features] * blocks
        self.dec = nn.ModuleDict(dict(self._up(levels, channels, widths, blocks, attention, decoder, skips)))
        if family == "adm":
            self.out_norm = Norm(widths[0], self._style.eps)
            self.out_conv = Conv(widths[0], channels, 3)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, label: Tensor, augment: Tensor | None = None) -> Tensor:
        """x [B,C,H,W], t [B] = ln(sigma) / 4, label int64 [B] or class shares [B,K] -> [B,C,H,W] in the dtype of x.

        Args:
            augment: [B,A] of the augmentation; none is the same as zeros.
        """
        e = self.embed(t, label, augment)  # [B,E]
        features, skips = self.encode(x, e)
        return self._decode(features, skips, e).to(x.dtype)

    def embed(self, t: Tensor, label: Tensor, augment: Tensor | None = None) -> Tensor:
        """The embedding [B,E] that all blocks are told."""
        dtype = self.map_layer0.weight.dtype
        e = self.map_noise(t).to(dtype)  # [B,features]
        if self.family == "adm":
            e = self._add_augment(e, augment)
            e = self.map_layer1(F.silu(self.map_layer0(e)))
            if self.num_classes:
                e = e + self.map_label(class_rows(label, self.num_classes).to(dtype))
            return F.silu(e)
        e = torch.cat(e.chunk(2, dim=1)[::-1], dim=1)  # sines first
        if self.num_classes:
            e = e + self.map_label((class_rows(label, self.num_classes) * math.sqrt(self.num_classes)).to(dtype))
        e = self._add_augment(e, augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def encode(self, x: Tensor, e: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features of the last encoder block, and what each layer of the encoder passes to the decoder."""
        picture = x = x.to(self.map_layer0.weight.dtype)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            match name.partition("_")[2]:
                case "aux_down":
                    picture = layer(picture)
                case "aux_skip":
                    x = skips[-1] = x + layer(picture)
                case "aux_residual":
                    x = picture = skips[-1] = (x + layer(picture)) * _ROOT_HALF
                case "conv":
                    x = layer(x)
                    skips.append(x)
                case _:
                    x = self._block(layer, x, e)
                    skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], e: Tensor) -> Tensor:
        skips, picture = list(skips), None
        for name, layer in self.dec.items():
            match name.partition("_")[2]:
                case "aux_up":
                    picture = layer(picture)
                case "aux_norm":
                    normed = layer(x)
                case "aux_conv":
                    drawn = layer(F.silu(normed))
                    picture = drawn if picture is None else picture + drawn
                case role:
                    x = torch.cat([x, skips.pop()], dim=1) if role.startswith("block") else x
                    x = self._block(layer, x, e)
        return self.out_conv(F.silu(self.out_norm(x))) if picture is None else picture

    def _block(self, block: nn.Module, x: Tensor, e: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, e, use_reentrant=False)
        return block(x, e)

    def _add_augment(self, e: Tensor, augment: Tensor | None) -> Tensor:
        if self.map_augment is None or augment is None:
            return e
        return e + self.map_augment(augment.to(e.dtype))

    def _make_embedding(self, features: int, kind: str, augment_features: int) -> None:
        adm = self.family == "adm"
        self.map_noise = FourierTime(features) if kind == "fourier" else PositionalTime(features, endpoint=not adm)
        self.map_augment = nn.Linear(augment_features, features, bias=False) if augment_features else None
        self.map_layer0 = nn.Linear(features, self._embedding)
        self.map_layer1 = nn.Linear(self._embedding, self._embedding)
        if self.num_classes:
            self.map_label = nn.Linear(self.num_classes, self._embedding if adm else features, bias=not adm)

    def _make_block(self, inputs: int, outputs: int, attend: bool = False, resample: Direction | None = None) -> Block:
        heads = outputs // self._channels_per_head if self._channels_per_head else 1
        if attend and heads and outputs % heads:
            raise ConfigError(f"network.channels_per_head: {outputs} features make no {heads} heads of the same size")
        return Block(inputs, outputs, self._embedding, heads if attend else 0, resample, self._style)

    def _down(
        self,
        levels: list[tuple[int, int]],
        channels: int,
        widths: list[int],
        blocks: int,
        attention: tuple[int, ...],
        kind: str,
    ) -> Iterator[tuple[str, nn.Module]]:
        """The layers of the encoder in order, by name."""
        features = self._width if self.family == "song" else widths[0]
        picture = channels
        for level, ((rows, columns), outputs) in enumerate(zip(levels, widths)):
            place = f"{rows}x{columns}"
            if level == 0:
                yield f"{place}_conv", Conv(channels, features, 3)
            else:
                yield f"{place}_down", self._make_block(features, features, resample="down")
                if kind == "skip":
                    yield f"{place}_aux_down", Resample("down", self._taps)
                    yield f"{place}_aux_skip", Conv(channels, features, 1)
                if kind == "residual":
                    yield f"{place}_aux_residual", Conv(picture, features, 3, "down", self._taps, fused=True)
                    picture = features
            for index in range(blocks):
                yield f"{place}_block{index}", self._make_block(features, outputs, rows in attention)
                features = outputs

    def _up(
        self,
        levels: list[tuple[int, int]],
        channels: int,
        widths: list[int],
        blocks: int,
        attention: tuple[int, ...],
        kind: str,
        skips: list[int],
    ) -> Iterator[tuple[str, nn.Module]]:
        """The layers of the decoder in order, by name."""
        features, deepest, adm = widths[-1], len(levels) - 1, self.family == "adm"
        for level in reversed(range(len(levels))):
            (rows, columns), outputs = levels[level], widths[level]
            place = f"{rows}x{columns}"
            if level == deepest:
                yield f"{place}_in0", self._make_block(features, features, attend=True)
                yield f"{place}_in1", self._make_block(features, features)
            else:
                yield f"{place}_up", self._make_block(features, features, resample="up")
            for index in range(blocks + 1):
                attend = rows in attention and (adm or index == blocks)
                yield f"{place}_block{index}", self._make_block(features + skips.pop(), outputs, attend)
                features = outputs
            if not adm and (kind == "skip" or level == 0):
                if kind == "skip" and level != deepest:
                    yield f"{place}_aux_up", Resample("up", self._taps)
                yield f"{place}_aux_norm", Norm(features, self._style.eps)
                yield f"{place}_aux_conv", Conv(features, channels, 3)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published: ADM as PyTorch does it, DDPM++ and NCSN++ Xavier; (near) zero where residuals end."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            last = name.endswith(("conv1", "proj", "out_conv", "aux_conv"))
            if self.family == "song":
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.2) if name.endswith("qkv") else 1)
                module.weight.mul_(1e-5 if last else 1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif name == "map_label":
                nn.init.normal_(module.weight)
            elif last or name == "map_augment":
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class PositionalTime(nn.Module):
    """t [B] -> [B,n]: cosines, then sines, at n/2 geometric frequencies from 1 down to 1/10000.

    Args:
        endpoint: the last frequency is 1/10000; otherwise that would be the next.
    """

    def __init__(self, features: int, endpoint: bool):
        super().__init__()
        half = features // 2
        exponent = torch.arange(half, dtype=torch.float32) / max(half - endpoint, 1)
        self.register_buffer("freqs", 1e-4**exponent, persistent=False)  # [n/2]

    freqs: Tensor

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.freqs.float()  # [B,n/2]
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierTime(nn.Module):
    """t [B] -> [B,n]: cosines, then sines, at n/2 random frequencies of standard deviation 16."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("freqs", torch.randn(features // 2) * 16)  # [n/2]

    freqs: Tensor

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * (2 * math.pi * self.freqs.float())  # [B,n/2]
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def class_rows(label: Tensor, classes: int) -> Tensor:
    """label int64 [B] -> float32 [B,K] with a one for the class, all zero for label K; rows of shares stay."""
    if label.is_floating_point():
        return label
    return F.one_hot(label, classes + 1)[:, :classes].float()


def check_grid(grid: tuple[int, int], levels: int) -> None:
    """Raises ConfigError unless the grid can be halved often enough."""
    if any(side % (1 << (levels - 1)) for side in grid):
        raise ConfigError(
            f"network.multipliers: {levels} levels halve a grid of {grid[0]} x {grid[1]} {levels - 1} times, which "
            "leaves a fraction; take fewer levels, or another image size"
        )


class EdmUNetConfig(Settings):
    """A U-Net of EDM. `preset` fills in what is not given."""

    name: Literal["edm"] = "edm"
    preset: Preset | None = None
    """A published network, such as adm-imagenet64; what is given beside it wins."""
    family: Family = "adm"
    """adm scales and shifts by the noise level, song (DDPM++, NCSN++) adds it."""
    width: int = Field(64, ge=8, le=65_536, multiple_of=4)
    """Features of the first level before its multiplier."""
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), min_length=1)
    """Features of each level, as multiples of the width; each level halves the grid."""
    blocks: int = Field(2, ge=1, le=64)
    """Residual blocks of each level on the way down; one more on the way up."""
    attention: tuple[PositiveInt, ...] = (16, 8)
    """Heights of the levels that have attention."""
    channels_per_head: PositiveInt | None = 64
    """Features of a head; null for one head. Levels with fewer features have no attention."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of features that training blanks in each block."""
    time_features: Literal["positional", "fourier"] = "positional"
    """Frequencies at which the noise level is shown, of song: geometric or random ones."""
    time_multiplier: PositiveInt = 1
    """Their number, as a multiple of the width."""
    encoder: Literal["standard", "skip", "residual"] = "standard"
    """Of song: skip and residual show every level the input."""
    decoder: Literal["standard", "skip"] = "standard"
    """Of song: skip lets every level draw."""
    taps: tuple[float, ...] = BOX
    """Filter of the resampling; [1, 3, 3, 1] is smoother than [1, 1]."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        own = ("time_features", "time_multiplier", "encoder", "decoder")
        other = [key for key in own if getattr(self, key) != type(self).model_fields[key].default]
        if self.family == "adm" and other:
            raise ValueError(f"{', '.join(other)}: only of family song; set family to song, or leave them out")
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> EdmUNet:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network edm works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return EdmUNet(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


_SONG: dict[str, Any] = {"family": "song", "width": 128, "blocks": 4, "attention": (16,), "channels_per_head": None}
_NCSN: dict[str, Any] = {
    "time_features": "fourier",
    "time_multiplier": 2,
    "encoder": "residual",
    "taps": (1.0, 3.0, 3.0, 1.0),
}
_CIFAR: dict[str, Any] = {**_SONG, "multipliers": (2, 2, 2), "dropout": 0.13}
_FACES: dict[str, Any] = {**_SONG, "multipliers": (1, 2, 2, 2), "dropout": 0.05}
PRESETS: dict[str, dict[str, Any]] = {
    "adm-imagenet64": {
        "family": "adm",
        "width": 192,
        "multipliers": (1, 2, 3, 4),
        "blocks": 3,
        "attention": (32, 16, 8),
        "channels_per_head": 64,
        "dropout": 0.1,
    },
    "ddpmpp-cifar10": _CIFAR,
    "ncsnpp-cifar10": _CIFAR | _NCSN,
    "ddpmpp-faces64": _FACES,
    "ncsnpp-faces64": _FACES | _NCSN,
}
