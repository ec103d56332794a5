"""Adversarial losses of tokenizer training: what both players minimise, when, and how strongly.

Logits may have any shape [B, ...]; losses are per sample, [B], the mean over a sample's logits.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from genlab.core.settings import Settings
from genlab.tokenization.losses.augment import Policy
from genlab.tokenization.losses.dino_discriminator import Dino
from genlab.tokenization.losses.discriminators import PatchGAN, StyleGAN

AdversarialLoss: TypeAlias = Literal["hinge", "vanilla", "non_saturating"]
DiscriminatorConfig: TypeAlias = Annotated[PatchGAN | StyleGAN | Dino, Field(discriminator="name")]


def per_sample(values: Tensor) -> Tensor:
    """[B, ...] -> means [B] in float32."""
    return values.float().reshape(len(values), -1).mean(1)


def generator_loss(fake: Tensor, loss: AdversarialLoss = "hinge") -> Tensor:
    """Logits of reconstructions -> what the tokenizer minimises, [B].

    hinge and vanilla: -D, as VQGAN has it for both; non_saturating: softplus(-D) (Goodfellow et al. 2014).
    """
    fake = fake.float()
    return per_sample(F.softplus(-fake) if loss == "non_saturating" else -fake)


def discriminator_loss(real: Tensor, fake: Tensor, loss: AdversarialLoss = "hinge") -> Tensor:
    """Logits of images and reconstructions -> what the discriminator minimises, [B].

    Half the sum over both, as VQGAN has it: hinge relu(1 - D(x)) + relu(1 + D(x')), else the logistic loss
    softplus(-D(x)) + softplus(D(x')).
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        return 0.5 * (per_sample(F.relu(1.0 - real)) + per_sample(F.relu(1.0 + fake)))
    return 0.5 * (per_sample(F.softplus(-real)) + per_sample(F.softplus(fake)))


def adaptive_weight(
    reconstruction: Tensor,
    other: Tensor,
    layer: Tensor,
    lowest: float = 0.0,
    highest: float = 1e4,
    eps: float = 1e-4,
) -> Tensor:
    """|d reconstruction / d layer| / |d other / d layer|, clamped: a scalar without graph (Esser et al. 2021).

    Multiplying the loss `other` by it gives both losses (scalars) equal force on `layer`, the decoder's last weights.
    The graph is kept for the backward pass; where the layer has no part in a loss its gradient counts as 0. In
    distributed training this is the ratio of one process.
    """
    norms = []
    for loss in (reconstruction, other):
        (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
        norms.append(loss.new_zeros(()) if gradient is None else gradient.float().norm())
    return (norms[0] / (norms[1] + eps)).clamp(lowest, highest).detach()


class LeCam(nn.Module):
    """Keeps each side's logits near the running mean of the other's (Tseng et al. 2021): for few data.

    The means are buffers, so that they are saved; they start at the first batch's.
    """

    real: Tensor
    fake: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take the logits of one batch into the means, over all processes. A collective call."""
        means = torch.stack([real.float().mean(), fake.float().mean()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(means)
            means /= torch.distributed.get_world_size()
        decay = torch.where(self.updates == 0, 0.0, self.decay)
        self.real.lerp_(means[0], 1.0 - decay)
        self.fake.lerp_(means[1], 1.0 - decay)
        self.updates += 1

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """relu(D(x) - mean fake)^2 + relu(mean real - D(x'))^2, [B]; add to the discriminator's loss."""
        real, fake = real.float(), fake.float()
        return per_sample(F.relu(real - self.fake).square()) + per_sample(F.relu(self.real - fake).square())


class AdversarialSettings(Settings):
    """A discriminator beside the tokenizer."""

    discriminator: DiscriminatorConfig = PatchGAN()
    loss: AdversarialLoss = "hinge"
    weight: NonNegativeFloat = 0.5
    """Of the adversarial loss in the tokenizer's."""
    adaptive: bool = True
    """Multiply the weight by the ratio of gradients at the decoder's last layer."""
    adaptive_range: tuple[NonNegativeFloat, PositiveFloat] = (0.0, 1e4)
    """Bounds of that ratio; VAR's trainer has 0.015 below."""
    start: NonNegativeInt = 0
    """Images seen after which the discriminator trains; nothing adversarial is computed before."""
    discriminator_warmup: NonNegativeInt = 0
    """Images for which only the discriminator trains, from `start` on."""
    ramp: NonNegativeInt = 0
    """Images over which the tokenizer's adversarial weight then rises linearly from 0."""
    lecam: NonNegativeFloat = 0.0
    """Weight of the LeCam term in the discriminator's loss."""
    lecam_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    augment: tuple[Policy, ...] = ()
    """DiffAugment of what the discriminator sees."""
    lr: PositiveFloat = 1e-4
    """Learning rate of the discriminator."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Of the discriminator's Adam."""

    def discriminator_trains(self, seen: int) -> bool:
        """Whether the discriminator takes part after `seen` images."""
        return seen >= self.start

    def factor(self, seen: int) -> float:
        """Share of the adversarial weight in the tokenizer's loss after `seen` images: 0, then a ramp up to 1."""
        since = seen - self.start - self.discriminator_warmup
        if since < 0:
            return 0.0
        return min(1.0, since / self.ramp) if self.ramp else 1.0
