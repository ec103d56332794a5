"""What the parts of a generator promise each other.

A *tokenizer* turns images into tokens and back, a *network* maps noisy or partial tokens to predictions, a *process*
turns a network into a loss and into samples. Anything that keeps these contracts goes with anything else of its kind.

Letters used throughout: B batch, C latent channels, H W latent grid, R image side, L positions, D width, V vocabulary,
K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from genlab.core.settings import Settings
from samplers.noise import SampleRng

Raw: TypeAlias = (
    Tensor | dict[str, Tensor]
)  # what a tokenizer's encoder gives and a cache stores: pixels, moments, codes


@dataclass(frozen=True)
class LatentSpec:
    """What a tokenizer produces, and all that a network or a cache needs to know of it."""

    kind: Literal["continuous", "codes", "residual", "multiscale"]
    channels: int
    """C, the channels of a continuous latent or of a code vector."""
    grid: tuple[int, int]
    """(H, W)."""
    image_size: int
    """R, the side of the images that go in and come out."""
    vocab: int | None = None
    depth: int | None = None
    """Codes per position, for residual quantisation."""
    scales: tuple[int, ...] | None = None
    """Side of each scale, coarse to fine, for multi-scale quantisation."""
    mean: tuple[float, ...] = (0.0,)
    """Standardisation of raw latents, one value or one per channel: tokens = (raw - mean) / std."""
    std: tuple[float, ...] = (1.0,)
    fingerprint: str = ""
    """Identifies weights and settings; caches and generators refuse a tokenizer with another one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample's continuous tokens."""
        return (self.channels, *self.grid)


class Tokenizer(nn.Module, ABC):
    """Images [B,3,R,R] in [-1,1] <-> tokens."""

    spec: LatentSpec

    @abstractmethod
    def encode(self, images: Tensor) -> Raw:
        """Images [B,3,R,R] in [-1,1] -> what a cache stores (pixels, posterior moments, codes)."""

    @abstractmethod
    def prepare(self, raw: Raw, rng: SampleRng) -> Tensor:
        """Raw -> tokens as networks see them: a posterior sample, standardised; codes are left alone."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens -> images [B,3,R,R], nominally in [-1,1] (not clamped)."""


class Reconstruction(NamedTuple):
    """What a tokenizer in training makes of a batch of images."""

    images: Tensor
    """[B,3,R,R], nominally in [-1,1], with gradients to encoder and decoder."""
    loss: Tensor
    """[B], the tokenizer's own weighted terms: KL divergence, commitment, codebook, entropy."""
    terms: dict[str, Tensor]
    """The same terms one by one, unweighted, each [B], for the log."""
    codes: Tensor | None = None
    """int64 [B, ...] as `encode` gives them; None for continuous tokenizers. What usage is counted on."""
    latents: Tensor | None = None
    """[B,C,H,W] as the decoder got them, not standardised, with gradients; None for tokenizers of codes."""


class TrainableTokenizer(Tokenizer):
    """A tokenizer with parameters: `forward` is its training pass."""

    @abstractmethod
    def forward(self, images: Tensor, rng: SampleRng) -> Reconstruction:
        """Images [B,3,R,R] in [-1,1] -> their reconstruction with the tokenizer's own losses."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's output weight, at which the adversarial weight compares gradients (VQGAN, eq. 7)."""

    @property
    def last_encoder_layer(self) -> nn.Parameter | None:
        """The encoder's output weight, where the weight of an alignment compares them; None without such latents."""
        return None


class Network(nn.Module):
    """A pure function of its inputs: no schedule, no label dropout, no guidance, no loss.

    Denoisers: `forward(x[B,C,H,W], t[B], label[B]) -> [B,C',H,W]`.
    Sequence models: `forward(tokens, label[B], cache=None) -> logits or regression targets`.
    """

    num_classes: int
    """K; 0 means unconditional."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of storing its activations."""

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": always K, the row after the last class."""
        return self.num_classes

    def normalise_weights(self) -> None:
        """Called before each training step; networks that keep weights at fixed magnitudes restore them here (EDM2)."""

    def no_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone, besides vectors and scalars."""
        return {
            f"{prefix}.weight" if prefix else "weight"
            for prefix, module in self.named_modules()
            if isinstance(module, nn.Embedding)
        }


class SamplingSettings(Settings):
    """How a process samples; each process has its own subclass with its own fields."""

    def idle(self) -> set[str]:
        """Names of fields that have no effect under the present values of the others; pages hide them."""
        return set()


class Event(NamedTuple):
    """What `on_step` receives while samples form."""

    step: int
    """Steps done, 1..steps."""
    steps: int
    """Steps in all (an estimate for adaptive solvers)."""
    tokens: Tensor
    """The present guess of the finished tokens (for diffusion and flow: the predicted clean sample), to be decoded."""


OnStep: TypeAlias = Callable[[Event], None]

EditKind: TypeAlias = Literal["mask", "parts", "strength"]
"""Making anew what a mask chooses, all from some scale or entity on, or the whole from a noised image."""


class Process(ABC):
    """How a network becomes a loss and samples. Holds hyper-parameters only, no parameters and no state."""

    takes_weaker: ClassVar[bool] = False
    """Whether `sample` also takes `weaker`, a second network to guide away from (autoguidance)."""
    edits: ClassVar[frozenset[EditKind]] = frozenset()
    """What it can change of a given image; see `genlab.editing`."""
    takes_average: ClassVar[bool] = False
    """Whether `loss` also takes `average`: the network under its moving average, without gradients."""

    @property
    def average_decay(self) -> Callable[[int], float] | None:
        """That average's decay in update 0, 1, ..., if it has one of its own; else it is the first that a run keeps."""
        return None

    def over(self, tokenizer: Tokenizer) -> Process:
        """The process on the tokens of `tokenizer`; one that needs more of it than its spec keeps a reference here."""
        return self

    def at(self, step: int) -> Process:
        """The process as it trains in update `step` (0, 1, ...); one with a curriculum changes on the way."""
        return self

    def decode(self, tokenizer: Tokenizer, tokens: Tensor, settings: Any) -> Tensor:
        """Images [B,3,R,R], nominally in [-1,1], of what `sample` gave under `settings`."""
        return tokenizer.decode(tokens)

    @abstractmethod
    def loss(self, network: Callable[..., Tensor], tokens: Tensor, label: Tensor, rng: SampleRng) -> dict[str, Tensor]:
        """Named losses, each [B]; the entry "loss" is what is minimised, the others are logged.

        `network` may be wrapped (DDP, FSDP, compiled): only its forward is used. `label` has been dropped already.
        """

    @abstractmethod
    def sample(
        self,
        network: Network,
        label: Tensor,
        spec: LatentSpec,
        rng: SampleRng,
        settings: Any,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Tokens for `label` [B], from the samples' own streams. `on_step` may raise to stop the work.

        `settings` is an instance of this process's subclass of SamplingSettings.
        """


@dataclass
class Batch:
    """One micro-batch as it reaches an objective."""

    label: Tensor
    """int64 [B]; all zero where the data has no labels (K = 0, so 0 is then the null label)."""
    position: Tensor
    """int64 [B], the place of each sample in the endless training sequence: the identity for random numbers."""
    images: Tensor | None = None
    """uint8 [B,3,R,R], unless latents were cached."""
    raw: Raw | None = None
    """What the tokenizer's encoder gave, from a cache."""
    extra: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, copied without waiting."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return None if value is None else value.to(device, non_blocking=True)

        return Batch(move(self.label), move(self.position), move(self.images), move(self.raw), move(self.extra))


def to_float(images: Tensor) -> Tensor:
    """uint8 images 0..255 -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8: 127.5 x + 128, truncated and clamped, as DiT, SiT and ADM do (rounds half up)."""
    return images.float().mul(127.5).add_(128.0).clamp_(0.0, 255.0).to(torch.uint8)
