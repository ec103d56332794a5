"""The losses of distribution matching distillation, as functions of what networks said.

"Improved Distribution Matching Distillation for Fast Image Synthesis", Yin et al., NeurIPS 2024 (arXiv 2405.14867);
the gradient is that of "One-step Diffusion with Distribution Matching Distillation", Yin et al., CVPR 2024. The
adversarial losses are the logistic ones of `genlab.tokenization.losses.adversarial`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.tokenization.losses.adversarial import discriminator_loss, generator_loss


def matching_gradient(data: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The direction [B,C,H,W] away from what the student's distribution has and the teacher's has not.

    (fake - real) / mean |data - real|, the mean being each sample's own; not finite values are 0. Up to a weight it is
    the difference of the scores of the two noised distributions, whatever their networks predict.

    Args:
        data: the student's samples.
        real, fake: the clean samples that teacher and critic see in them once they are noised.
    """
    scale = (data - real).abs().flatten(1).mean(1).view(-1, *[1] * (data.dim() - 1))  # [B,1,1,1]
    return ((fake - real) / scale).nan_to_num()


def pull(data: Tensor, gradient: Tensor) -> Tensor:
    """A loss [B] whose gradient with respect to `data` [B,C,H,W] is gradient / (C H W); its value tells little."""
    target = (data - gradient).detach()
    return 0.5 * (data - target).float().square().flatten(1).mean(1)


def convince(fake: Tensor) -> Tensor:
    """Logits of the student's samples [B,...] -> what the student minimises, softplus(-D): [B]."""
    return generator_loss(fake, "non_saturating")


def tell_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Logits -> what the critic's head minimises, softplus(D(fake)) + softplus(-D(real)): [B]."""
    return 2 * discriminator_loss(real, fake, "non_saturating")


def balance(matching: Tensor, adversarial: Tensor) -> Tensor:
    """The factor, a scalar, that gives two gradients at the samples [B,C,H,W] the same norm over all processes."""
    norms = torch.stack([matching.float().square().sum(), adversarial.float().square().sum()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(norms)
    return (norms[0] / norms[1].clamp_min(1e-20)).sqrt()
