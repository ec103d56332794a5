"""Weights of a diffusion's squared errors over its noise levels.

Each is defined for the error of the clean sample, with r = alpha^2 / sigma^2 the signal-to-noise ratio. The noise's
squared error is r times that and the velocity's r + 1 times, so a weighting means the same whatever a network predicts.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Weighting: TypeAlias = Literal["none", "min_snr", "soft_min_snr", "p2", "truncated_snr"]


def loss_weight(
    weighting: Weighting,
    gamma: float | None,
    prediction: Literal["noise", "data", "velocity"],
    alpha: Tensor,
    sigma: Tensor,
) -> Tensor:
    """The factor of the squared error of `prediction`, in the shape of alpha and sigma; "none" is 1 for any prediction.

    Args:
        weighting: min_snr is min(r, gamma) (Hang et al. 2023), soft_min_snr r gamma / (r + gamma) (Crowson et al.
            2024), p2 r / (1 + r)^gamma (Choi et al. 2022), truncated_snr max(r, 1) (Salimans & Ho 2022, section 4).
        gamma: by default 5, and 1 for p2.
    """
    gamma = gamma or (1.0 if weighting == "p2" else 5.0)
    ratio = (alpha / sigma).square()
    match weighting:
        case "none":
            return torch.ones_like(ratio)
        case "min_snr":
            weight = ratio.clamp(max=gamma)
        case "soft_min_snr":
            weight = ratio * gamma / (ratio + gamma)
        case "p2":
            weight = ratio / (1 + ratio) ** gamma
        case "truncated_snr":
            weight = ratio.clamp(min=1)
    match prediction:
        case "noise":
            return weight / ratio
        case "data":
            return weight
        case "velocity":
            return weight / (ratio + 1)
