"""DiT: a vision transformer over latent patches, conditioned by adaptive layer norm whose gates start at zero.

"Scalable Diffusion Models with Transformers", Peebles & Xie, ICCV 2023 (arXiv 2212.09748). SiT (Ma et al., ECCV 2024)
is the same network fed with times in [0, 1]; LightningDiT (Yao et al., CVPR 2025, arXiv 2501.01423) is what the block
options make of it. Parameter names are those of the official checkpoints.

Letters: B batch, C latent channels, H W latent grid, p patch side, h = H/p and w = W/p, T = h w tokens, D width,
K classes, o = C output channels, or 2C with `learn_sigma`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.adaln import modulate, modulation, norm
from genlab.nn.attention import Attention
from genlab.nn.embed import LabelEmbedding, TimeEmbedding, sincos_2d
from genlab.nn.mlp import Mlp, SwiGlu
from genlab.nn.patch import PatchEmbedding, unpatchify
from genlab.nn.rms_norm import RmsNorm
from genlab.nn.rope import FixedRope

Preset: TypeAlias = Literal[
    "DiT-S/2", "DiT-S/4", "DiT-S/8", "DiT-B/2", "DiT-B/4", "DiT-B/8",
    "DiT-L/2", "DiT-L/4", "DiT-L/8", "DiT-XL/2", "DiT-XL/4", "DiT-XL/8",
    "LightningDiT-B/1", "LightningDiT-B/2", "LightningDiT-L/1", "LightningDiT-L/2", "LightningDiT-XL/1",
    "LightningDiT-XL/2", "LightningDiT-1p0B/1", "LightningDiT-1p0B/2", "LightningDiT-1p6B/1", "LightningDiT-1p6B/2",
]  # fmt: skip
QkNorm: TypeAlias = Literal["none", "layer", "rms"]


class Block(nn.Module):
    """The adaLN-Zero block (section 3.2 and figure 3 of the paper); the arguments are those of `DiT`."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        rms_norm: bool = False,
        swiglu: bool = False,
        qk_norm: QkNorm = "none",
        shift: bool = True,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.shift = shift
        self.norm1 = norm(width, rms_norm)
        self.attn = Attention(width, heads, _QK_NORMS[qk_norm], rotate)
        self.norm2 = norm(width, rms_norm)
        self.mlp = SwiGlu(width, int(2 / 3 * hidden)) if swiglu else Mlp(width, hidden)
        self.adaLN_modulation = modulation(width, 6 if shift else 4)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens [B,T,D] under condition c [B,D] -> [B,T,D]."""
        vectors = self.adaLN_modulation(c).unflatten(1, (-1, x.shape[2])).unbind(1)  # 6 or 4 x [B,D]
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        else:
            shift1 = shift2 = None
            scale1, gate1, scale2, gate2 = vectors
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))  # [B,T,D]
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))  # [B,T,D]


class FinalLayer(nn.Module):
    """Modulated norm and a Linear to the pixels of each patch."""

    def __init__(self, width: int, outputs: int, rms_norm: bool = False):
        super().__init__()
        self.norm_final = norm(width, rms_norm)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens [B,T,D] under condition c [B,D] -> [B,T,p*p*o]."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # 2 x [B,D]
        return self.linear(modulate(self.norm_final(x), shift, scale))  # [B,T,p*p*o]


class DiT(Network):
    """`forward(x[B,C,H,W], t[B], label[B]) -> [B,o,H,W]`; a fresh network returns exactly zero.

    Args:
        grid: (H, W), each divisible by `patch`; need not be square.
        channels: C.
        patch, width, depth, heads, mlp_ratio: the sizes; `width` divisible by `heads` and by 4.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        learn_sigma: twice the output channels: the prediction, then what a diffusion makes its variance from. A process
            reads the channels it understands; flows read the first C.
        null_row: the label table has a row K for "no class". Without it there is no `null_label`.
        rms_norm: RMSNorm with weights in place of layer norm without.
        swiglu: SwiGLU perceptrons of 2/3 of the hidden features, so of about the same size.
        rope: rotary positions for queries and keys, besides the absolute ones; needs width / heads divisible by 4.
        qk_norm: norm of queries and keys per head: none, layer or rms.
        shift: blocks shift normalised tokens as well as scaling them.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        null_row: bool = True,
        rms_norm: bool = False,
        swiglu: bool = False,
        rope: bool = False,
        qk_norm: QkNorm = "none",
        shift: bool = True,
    ):
        super().__init__()
        _check_sizes(grid, patch, width, heads, rope)
        if num_classes == 0 and not null_row:
            raise ConfigError("num_classes = 0 leaves only the null row: got null_row = false; set it to true")
        self.num_classes = num_classes
        self.null_row = null_row
        self.patch = patch
        self.token_grid = (grid[0] // patch, grid[1] // patch)
        outputs = patch * patch * channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbedding(channels, patch, width)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(num_classes + null_row, width)
        self.register_buffer("pos_embed", sincos_2d(width, self.token_grid).unsqueeze(0))  # [1,T,D]
        rotate = FixedRope(width // heads, self.token_grid) if rope else None
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, rms_norm, swiglu, qk_norm, shift, rotate) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, outputs, rms_norm)
        self._initialise()

    pos_embed: Tensor

    @property
    def null_label(self) -> int:
        """K. Raises ConfigError for a network that was built without a null row."""
        if not self.null_row:
            raise ConfigError(
                "this network has no null label (null_row = false), which guidance and label dropout need; "
                "sample with guidance 1 or train a network with null_row = true"
            )
        return self.num_classes

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x [B,C,H,W], t [B] in the weights' own unit, label int64 [B] -> [B,o,H,W] in the dtype of x."""
        tokens = self.x_embedder(x) + self.pos_embed  # [B,T,D]
        c = self.t_embedder(t) + self.y_embedder(label)  # [B,D]
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, c, use_reentrant=False)  # [B,T,D]
            else:
                tokens = block(tokens, c)  # [B,T,D]
        tokens = self.final_layer(tokens, c)  # [B,T,p*p*o]
        return unpatchify(tokens, self.token_grid, self.patch).to(x.dtype)  # [B,o,H,W]

    def _initialise(self) -> None:
        """Xavier weights and small embeddings; zero where blocks and the network speak (section 3.2, adaLN-Zero)."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue  # their weights are 1
            if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))


def _size_problem(width: int, heads: int, rope: bool) -> str | None:
    """What is wrong with the width, if anything."""
    if width % heads:
        return f"width must be divisible by heads: got width {width}, heads {heads}; try width {heads * 64}"
    if width % 4:
        return f"width must be divisible by 4 (sine-cosine positions): got {width}; try {width + 4 - width % 4}"
    if rope and width // heads % 4:
        return f"rope needs width / heads divisible by 4: got {width} / {heads}; try other heads, or rope false"
    return None


def _check_sizes(grid: tuple[int, int], patch: int, width: int, heads: int, rope: bool) -> None:
    """Raises ConfigError when something does not divide."""
    if problem := _size_problem(width, heads, rope):
        raise ConfigError(f"network: {problem}")
    if grid[0] % patch or grid[1] % patch:
        raise ConfigError(
            f"network.patch must divide the latent grid: got patch {patch} for a grid of {grid[0]} x {grid[1]}; "
            "choose another patch or image size"
        )


class DiTConfig(Settings):
    """A DiT. `preset` fills in the sizes that are not given."""

    name: Literal["dit"] = "dit"
    preset: Preset | None = None
    """A published size, such as DiT-XL/2; what is given beside it wins."""
    patch: int = Field(2, ge=1, le=256)
    """Side of a patch; time goes up with the inverse fourth power at worst."""
    width: int = Field(384, ge=1, le=65_536)
    """Features of a token; divisible by heads and by 4."""
    depth: int = Field(12, ge=1, le=1024)
    """Blocks."""
    heads: int = Field(6, ge=1, le=1024)
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width."""
    learn_sigma: bool = False
    """Twice the output channels, for a diffusion that learns its variance; official SiT weights have them unused."""
    rms_norm: bool = False
    """RMSNorm in place of layer norm (LightningDiT)."""
    swiglu: bool = False
    """SwiGLU in place of GELU, at about the same size (LightningDiT)."""
    rope: bool = False
    """Rotary positions besides the absolute ones (LightningDiT); needs width / heads divisible by 4."""
    qk_norm: QkNorm = "none"
    """Norm of queries and keys (none, layer or rms): against divergence in long or half-precision runs."""
    shift: bool = True
    """Blocks shift normalised tokens as well as scaling them."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if problem := _size_problem(self.width, self.heads, self.rope):
            raise ValueError(problem)
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> DiT:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network dit works on continuous latents: got {spec.kind} from the tokenizer; choose another network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return DiT(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


_QK_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "layer": nn.LayerNorm,
    "rms": RmsNorm,
}
_SIZES = {  # table 1 of the paper; the last two are LightningDiT's
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
    "1p0B": {"depth": 24, "width": 1536, "heads": 24},
    "1p6B": {"depth": 28, "width": 1792, "heads": 28},
}
_LIGHTNING = {"rms_norm": True, "swiglu": True, "rope": True}
PRESETS: dict[str, dict[str, Any]] = {
    f"DiT-{size}/{patch}": {**_SIZES[size], "patch": patch} for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)
} | {
    f"LightningDiT-{size}/{patch}": {**_SIZES[size], "patch": patch, **_LIGHTNING}
    for size in ("B", "L", "XL", "1p0B", "1p6B")
    for patch in (1, 2)
}
