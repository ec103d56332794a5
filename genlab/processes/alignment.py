"""Representation alignment (REPA, Yu et al., ICLR 2025, arXiv 2410.06940): hidden tokens are drawn towards the features
that pretrained encoders have of the clean image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Minus the cosine of projected tokens and features [B,T,z] (one pair an encoder), over tokens and encoders -> [B].

    Computed in float32, since norms overflow in float16.
    """
    cosines = [F.cosine_similarity(own.float(), other.float(), dim=-1) for own, other in zip(projected, features)]
    return -torch.stack([cosine.mean(1) for cosine in cosines]).mean(0)
