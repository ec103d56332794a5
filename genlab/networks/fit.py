"""FiT and FiTv2: vision transformers over latent patches of any grid, with rotary positions.

"FiT: Flexible Vision Transformer for Diffusion Model", Lu et al., ICML 2024 (arXiv 2402.12376); "FiTv2: Scalable and
Improved Flexible Vision Transformer for Diffusion Model", Wang et al. 2024 (arXiv 2410.13925). Parameter names are
those of the official checkpoints.

Letters: B batch, C latent channels, H W latent grid, p patch side, h = H/p and w = W/p, N tokens (h w of an image, or
padded or packed), n images in a row of tokens, D width, d features of a head, K classes, o = C output channels, or 2C
with `learn_sigma`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genlab.core.contracts import Network
from genlab.core.errors import ConfigError
from genlab.networks.fit_blocks import (
    Block,
    FinalLayer,
    Modulation,
    Norm,
    PatchLinear,
    Perceptron,
    Places,
    modulation_layer,
    norm_layer,
    perceptron,
)
from genlab.nn.channel_patches import from_patches, to_patches
from genlab.nn.embed import LabelEmbedding, TimeEmbedding
from genlab.nn.grid_attention import GridAttention
from genlab.nn.grid_rope import Extrapolation, GridRope, Rotation, grid_places


class FiT(Network):
    """`forward(x[B,C,H,W], t[B], label[B]) -> [B,o,H,W]`, or the same on tokens; a fresh network returns exactly zero.

    Args:
        grid: (H, W) of the images it is used on by default, each divisible by `patch`; others are taken as well.
        channels: C.
        patch, width, depth, heads, mlp_ratio: the sizes; `width` divisible by `heads` and each head by 4.
        num_classes: K; 0 for an unconditional network, whose only label is 0.
        learn_sigma: twice the output channels (FiT); flows have no use for them (FiTv2).
        null_row: the label table has a row K for "no class". Without it there is no `null_label`.
        mlp: "swiglu" (FiTv2; two thirds of the hidden features), "wide_swiglu" (FiT) or "gelu".
        modulation: "lora" (FiTv2), "full" (FiT) or "swiglu".
        lora_rank: of "lora"; by default a quarter of the width.
        norm: before attention, perceptron and output.
        q_norm, k_norm: of each head's queries and keys; "layernorm" in FiTv2, none in FiT.
        turn_values: rotary positions on values too.
        time_shift: s; times become min(s t / (1 + (s - 1) t), 1), and 1 leaves them alone.
        extrapolation, decoupled: how rotary frequencies adapt to grids larger than `trained_side`; see GridRope.
        trained_side: tokens on a side of the grids that the weights were trained on.
        target: (rows, columns) in tokens to adapt to; by default those of `grid`.
        online: adapt to each image's own size instead.

    Raises:
        ConfigError: sizes that do not divide, options that exclude each other.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        patch: int = 2,
        width: int = 1152,
        depth: int = 36,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        null_row: bool = True,
        mlp: Perceptron = "swiglu",
        modulation: Modulation = "lora",
        lora_rank: int | None = None,
        norm: Norm = "layernorm",
        q_norm: Norm = "layernorm",
        k_norm: Norm = "layernorm",
        turn_values: bool = False,
        time_shift: float = 1.0,
        extrapolation: Extrapolation = "normal",
        decoupled: bool = False,
        trained_side: int = 16,
        target: tuple[int, int] | None = None,
        online: bool = False,
    ):
        super().__init__()
        problem = size_problem(width, heads) or _patch_problem(grid, patch) or rope_problem(extrapolation, online)
        if problem:
            raise ConfigError(f"network: {problem}")
        if num_classes == 0 and not null_row:
            raise ConfigError("num_classes = 0 leaves only the null row: got null_row = false; set it to true")
        self.num_classes, self.null_row = num_classes, null_row
        self.patch, self.channels = patch, channels
        self.token_grid = (grid[0] // patch, grid[1] // patch)
        self.time_shift, self.online = time_shift, online
        self.rope = GridRope(width // heads, extrapolation, decoupled, trained_side, target or self.token_grid)
        self.x_embedder = PatchLinear(channels * patch * patch, width)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(num_classes + null_row, width)
        rank, head = lora_rank or width // 4, width // heads
        self.global_adaLN_modulation = modulation_layer("full", width, 6, rank, 0) if modulation == "lora" else None
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attn = GridAttention(width, heads, norm_layer(q_norm, head), norm_layer(k_norm, head), turn_values)
            modulate = modulation_layer(modulation, width, 6, rank, 3 * (width // 4))
            self.blocks.append(Block(width, attn, perceptron(mlp, width, int(mlp_ratio * width)), norm, modulate))
        outputs = channels * patch * patch * (2 if learn_sigma else 1)
        final = modulation_layer("full" if modulation == "lora" else modulation, width, 2, rank, width // 2)
        self.final_layer = FinalLayer(width, outputs, norm, final)
        turn = self._turn(grid_places(*self.token_grid), torch.tensor([[self.token_grid]]))
        self.register_buffer("_cos", turn.cos, persistent=False)  # [1,1,N,d/2]
        self.register_buffer("_sin", turn.sin, persistent=False)  # [1,1,N,d/2]
        self._initialise()

    _cos: Tensor
    _sin: Tensor

    @property
    def null_label(self) -> int:
        """K. Raises ConfigError for a network that was built without a null row."""
        if not self.null_row:
            raise ConfigError(
                "this network has no null label (null_row = false), which guidance and label dropout need; "
                "sample with guidance 1 or train a network with null_row = true"
            )
        return self.num_classes

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor,
        grid: Tensor | None = None,
        mask: Tensor | None = None,
        size: Tensor | None = None,
    ) -> Tensor:
        """Latents x [B,C,H,W] -> [B,o,H,W], or rows of tokens x [B,N,C*p*p] -> [B,N,o*p*p]; in the dtype of x.

        Args:
            t, label: [B] (t in the weights' own unit), or [B,n] for rows in which n images are packed.
            grid: int [B,2,N] marks the form for rows: each token's column, then its row, in its image.
            mask: [B,N], 0 for padding and the number 1..n of each token's image; None: all belong to one image.
            size: int [B,n,2], (rows, columns) of each image, which only `online` extrapolation reads.
        """
        if grid is not None:
            return self._run(x, t, label, self._places(grid, mask, size, packed=t.dim() == 2)).to(x.dtype)
        rows, columns = self._tokens_of(x)
        if (rows, columns) == self.token_grid:
            turn = Rotation(self._cos, self._sin)
        else:
            turn = self._turn(grid_places(rows, columns, x.device), torch.tensor([[[rows, columns]]], device=x.device))
        tokens = self._run(to_patches(x, self.patch), t, label, Places(turn))  # [B,N,o*p*p]
        return from_patches(tokens, (rows, columns), self.patch).to(x.dtype)  # [B,o,H,W]

    def _run(self, x: Tensor, t: Tensor, label: Tensor, places: Places) -> Tensor:
        x = self.x_embedder(x)  # [B,N,D]
        if self.time_shift != 1.0:
            t = (self.time_shift * t / (1 + (self.time_shift - 1) * t)).clamp(max=1.0)
        c = self.t_embedder(t.flatten()) + self.y_embedder(label.flatten())  # [B*n,D]
        c = c.view(len(x), -1, c.shape[1])  # [B,n,D]
        shared = None if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)  # [B,n,6D]
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, shared, places, use_reentrant=False)  # [B,N,D]
            else:
                x = block(x, c, shared, places)  # [B,N,D]
        x = self.final_layer(x, c, places)  # [B,N,o*p*p]
        return x if places.valid is None else x * places.valid

    def _places(self, grid: Tensor, mask: Tensor | None, size: Tensor | None, packed: bool) -> Places:
        if mask is None:
            return Places(self._turn(grid, size))
        image = (mask.long() - 1).clamp(min=0).unsqueeze(2)  # [B,N,1]
        if size is not None and size.shape[1] > 1:
            size = size.gather(1, image.expand(-1, -1, 2))  # [B,N,2]
        attend = mask[:, None, :, None] == mask[:, None, None, :]  # [B,1,N,N]
        return Places(self._turn(grid, size), attend, (mask != 0).unsqueeze(2), image if packed else None)

    def _turn(self, grid: Tensor, size: Tensor | None) -> Rotation:
        if self.online and size is None:
            raise ConfigError("online extrapolation needs the size of every image: got none; pass `size`")
        return self.rope.rotation(grid, size if self.online else None)

    def _tokens_of(self, x: Tensor) -> tuple[int, int]:
        """(h, w) of latents [B,C,H,W]."""
        height, width = x.shape[2:]
        if problem := _patch_problem((height, width), self.patch):
            raise ConfigError(problem)
        return height // self.patch, width // self.patch

    def _initialise(self) -> None:
        """Xavier weights and small embeddings; zero where blocks, shared modulation and network speak."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (*self.t_embedder.mlp.parameters(), *self.y_embedder.parameters()):
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
        modulations = [module.adaLN_modulation for module in (*self.blocks, self.final_layer)]
        for module in (*modulations, self.global_adaLN_modulation):
            if module is not None:
                nn.init.zeros_(list(module.modules())[-1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)


def size_problem(width: int, heads: int) -> str | None:
    """What is wrong with the width, if anything."""
    if width % heads:
        return f"width must be divisible by heads: got width {width}, heads {heads}; try width {heads * 64}"
    if width // heads % 4:
        return f"a head must have a multiple of 4 features (two axes of pairs): got {width} / {heads}"
    return None


def rope_problem(extrapolation: Extrapolation, online: bool) -> str | None:
    """What is wrong with the choice of extrapolation, if anything."""
    if online and extrapolation in ("yarn", "ntk-aware-pro1", "ntk-aware-pro2"):
        return f"online extrapolation has no magnitude: got {extrapolation}; choose ntk-aware, ntk-by-parts or linear"
    return None


def _patch_problem(grid: tuple[int, int], patch: int) -> str | None:
    if grid[0] % patch or grid[1] % patch:
        return (
            f"patch must divide the latent grid: got patch {patch} for a grid of {grid[0]} x {grid[1]}; "
            "choose another patch or image size"
        )
    return None
