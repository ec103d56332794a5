"""ARFlow: a DiT over sequences of images, each of which remembers those before it through a state of fixed size.

"ARFlow: Autoregressive Flow with Hybrid Linear Attention", Hui et al. 2025 (arXiv 2501.16085). In training a sequence
holds different images of a class, from the noisiest to the cleanest; in sampling it holds the states of one image on
its way from noise. Parameter names are those of the official checkpoints, but for the fused projections of attention
(see genlab.convert.arflow).

Letters: B batch, S images in a sequence, C latent channels, H W latent grid, p patch side, h = H/p and w = W/p,
N = h w tokens of an image, D width, K classes, o = C output channels, or 2C with `learn_sigma`; a state is
[B,heads,d,d] with d = D/heads.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import LatentSpec, Network
from genlab.core.errors import ConfigError
from genlab.core.settings import Settings
from genlab.nn.adaln import modulation, norm
from genlab.nn.embed import LabelEmbedding, TimeEmbedding, sincos_2d
from genlab.nn.linear_attention import HybridAttention
from genlab.nn.mlp import Mlp
from genlab.nn.patch import PatchEmbedding, unpatchify

Preset: TypeAlias = Literal[
    "ARFlow-S/2", "ARFlow-S/4", "ARFlow-S/8", "ARFlow-B/2", "ARFlow-B/4", "ARFlow-B/8",
    "ARFlow-L/2", "ARFlow-L/4", "ARFlow-L/8", "ARFlow-XL/2", "ARFlow-XL/4", "ARFlow-XL/8",
]  # fmt: skip


class Block(nn.Module):
    """The adaLN-Zero block, with attention that also reads and writes the state (figure 3 of the paper)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = norm(width)
        self.attn = HybridAttention(width, heads)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = modulation(width, 6)

    def forward(
        self, x: Tensor, c: Tensor, state: Tensor | None, same: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens x [B,S,N,D] under conditions c [B,S,D] -> [B,S,N,D], and the state after them; see HybridAttention."""
        m = self.adaLN_modulation(c).unsqueeze(2)  # [B,S,1,6D]
        shift1, scale1, gate1, shift2, scale2, gate2 = m.chunk(6, dim=-1)  # 6 x [B,S,1,D]
        here = torch.addcmul(shift1, self.norm1(x), 1 + scale1)  # [B,S,N,D]
        attended, state = self.attn(here, c.unsqueeze(2), state, same, keep)  # [B,S,N,D]
        x = torch.addcmul(x, gate1, attended)  # [B,S,N,D]
        here = torch.addcmul(shift2, self.norm2(x), 1 + scale2)  # [B,S,N,D]
        return torch.addcmul(x, gate2, self.mlp(here)), state  # [B,S,N,D]


class FinalLayer(nn.Module):
    """Modulated norm and a Linear to the pixels of each patch."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_final = norm(width)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [B,S,N,D] under conditions c [B,S,D] -> [B,S,N,p*p*o]."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(2).chunk(2, dim=-1)  # 2 x [B,S,1,D]
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class ARFlow(Network):
    """`forward(x[B,S,C,H,W], t[B,S], label[B]) -> [B,S,o,H,W]`, or without S for single images that remember nothing.

    A fresh network returns exactly zero.

    Args:
        grid: (H, W), each divisible by `patch`; need not be square.
        channels: C.
        patch, width, depth, heads, mlp_ratio: the sizes; `width` divisible by `heads` and by 4.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        learn_sigma: twice the output channels, as in the official weights, where the second half is unused.
        null_row: the label table has a row K for "no class". Without it there is no `null_label`.

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
    ):
        super().__init__()
        _check(grid, patch, width, heads, num_classes, null_row)
        self.num_classes, self.null_row = num_classes, null_row
        self.patch = patch
        self.token_grid = (grid[0] // patch, grid[1] // patch)
        self.x_embedder = PatchEmbedding(channels, patch, width)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(num_classes + null_row, width)
        self.register_buffer("pos_embed", sincos_2d(width, self.token_grid).unsqueeze(0))  # [1,N,D]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels * (2 if learn_sigma else 1))
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
        """x [B,S,C,H,W], t [B,S] in [0, 1], label int64 [B] or [B,S] -> [B,S,o,H,W] in the dtype of x.

        An image knows of the images of its own label before it in its sequence.
        """
        if x.dim() == 4:
            return self._run(x[:, None], t[:, None], label[:, None], None, None, keep=False)[0][:, 0]
        same = None
        if label.dim() == 1:
            label = label[:, None].expand(t.shape)  # [B,S]
        else:
            same = label[:, :, None] == label[:, None, :]  # [B,S,S]
        return self._run(x, t, label, None, same, keep=False)[0]

    def step(self, x: Tensor, t: Tensor, label: Tensor, states: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The next images x [B,C,H,W] at t [B] of sequences of label [B], after `states` (None: the first).

        Returns:
            [B,o,H,W], and the states after these images, one for each block.
        """
        out, after = self._run(x[:, None], t[:, None], label[:, None], states, None, keep=True)
        return out[:, 0], [state for state in after if state is not None]

    def _run(
        self, x: Tensor, t: Tensor, label: Tensor, states: list[Tensor] | None, same: Tensor | None, keep: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        tokens = self.x_embedder(x.flatten(0, 1)) + self.pos_embed  # [B*S,N,D]
        tokens = tokens.unflatten(0, x.shape[:2])  # [B,S,N,D]
        c = (self.t_embedder(t.flatten()) + self.y_embedder(label.flatten())).unflatten(0, t.shape)  # [B,S,D]
        after: list[Tensor | None] = []
        for number, block in enumerate(self.blocks):
            arguments = (tokens, c, states[number] if states else None, same, keep)
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens, state = checkpoint(block, *arguments, use_reentrant=False)  # [B,S,N,D]
            else:
                tokens, state = block(*arguments)  # [B,S,N,D]
            after.append(state)
        out = self.final_layer(tokens, c).flatten(0, 1)  # [B*S,N,p*p*o]
        return unpatchify(out, self.token_grid, self.patch).unflatten(0, x.shape[:2]).to(x.dtype), after

    def _initialise(self) -> None:
        """Xavier weights, each projection for itself, and small embeddings; zero where blocks and network speak."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("attn.in_proj.weight"):
                for projection in parameter.detach().split(parameter.shape[1]):
                    nn.init.xavier_uniform_(projection)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))


def _size_problem(width: int, heads: int) -> str | None:
    """What is wrong with the width, if anything."""
    if width % heads:
        return f"width must be divisible by heads: got width {width}, heads {heads}; try width {heads * 64}"
    if width % 4:
        return f"width must be divisible by 4 (sine-cosine positions): got {width}; try {width + 4 - width % 4}"
    return None


def _check(grid: tuple[int, int], patch: int, width: int, heads: int, num_classes: int, null_row: bool) -> None:
    """Raises ConfigError when something does not divide, or no label is left."""
    if problem := _size_problem(width, heads):
        raise ConfigError(f"network: {problem}")
    if grid[0] % patch or grid[1] % patch:
        raise ConfigError(
            f"network.patch must divide the latent grid: got patch {patch} for a grid of {grid[0]} x {grid[1]}; "
            "choose another patch or image size"
        )
    if num_classes == 0 and not null_row:
        raise ConfigError("num_classes = 0 leaves only the null row: got null_row = false; set it to true")


class ARFlowConfig(Settings):
    """An ARFlow network. `preset` fills in the sizes that are not given."""

    name: Literal["arflow"] = "arflow"
    preset: Preset | None = None
    """A published size, such as ARFlow-XL/2; what is given beside it wins."""
    patch: PositiveInt = 2
    """Side of a patch; time goes up with the inverse fourth power at worst."""
    width: PositiveInt = 384
    """Features of a token; divisible by heads and by 4."""
    depth: PositiveInt = 12
    """Blocks."""
    heads: PositiveInt = 6
    """Attention heads."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of a block's perceptron, as a multiple of the width."""
    learn_sigma: bool = False
    """Twice the output channels; official weights have them unused."""

    latents: ClassVar[frozenset[str]] = frozenset({"continuous"})
    """The kinds of LatentSpec that it works on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS[preset], **data} if preset in PRESETS else data

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if problem := _size_problem(self.width, self.heads):
            raise ValueError(problem)
        return self

    def build(self, spec: LatentSpec, num_classes: int) -> ARFlow:
        """The network for latents of `spec` and K = num_classes (0: unconditional). Raises ConfigError."""
        if spec.kind not in self.latents:
            raise ConfigError(
                f"network arflow works on continuous latents: got {spec.kind} from the tokenizer; choose another"
                " network"
            )
        sizes = self.model_dump(exclude={"name", "preset"})
        return ARFlow(grid=spec.grid, channels=spec.channels, num_classes=num_classes, **sizes)


_SIZES = {  # the repository's presets; XL of larger patches has 16 heads
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 18},
}
PRESETS: dict[str, dict[str, int]] = {
    f"ARFlow-{size}/{patch}": {**sizes, "patch": patch} for size, sizes in _SIZES.items() for patch in (2, 4, 8)
}
PRESETS["ARFlow-XL/4"]["heads"] = PRESETS["ARFlow-XL/8"]["heads"] = 16
