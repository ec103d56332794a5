"""What sampling begins from in place of noise: an image, noised in part, of which some may stay.

Image-to-image is "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", Meng et al., ICLR
2022 (arXiv 2108.01073): noise the image to some time and sample from there. Filling a hole follows "RePaint", Lugmayr
et al., CVPR 2022 (arXiv 2201.09865), without its resampling, and is approximate: in each step the predicted clean
sample is replaced where the image is known, so that the sampler itself noises the known part again, for whichever
sampler. What is made anew is drawn towards its surroundings only by what the network makes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genlab.core.errors import ConfigError


@dataclass(frozen=True)
class Start:
    """A beginning for each sample of a batch."""

    tokens: Tensor
    """[B,C,H,W], clean, as networks see them."""
    strength: float = 1.0
    """In (0,1]: sigma / (alpha + sigma) of the first state, with data of unit variance; so the share of noise on the
    straight path, and the same amount of noise in any process. At 1 there is nothing but noise."""
    keep: Tensor | None = None
    """bool [H,W], true where the tokens stay; None: nowhere."""

    def row(self, row: int) -> Start:
        """That of one sample, as a batch of one."""
        return replace(self, tokens=self.tokens[row : row + 1])

    @property
    def noise_to_signal(self) -> float:
        """sigma / alpha of the first state; infinite at strength 1."""
        return math.inf if self.strength == 1 else self.strength / (1 - self.strength)

    @property
    def log_snr(self) -> float:
        """ln(alpha / sigma) of the first state."""
        return -math.log(self.noise_to_signal)

    def state(self, alpha: float | Tensor, sigma: float | Tensor, noise: Tensor) -> Tensor:
        """The first state, alpha tokens + sigma noise [B,C,H,W], or the noise itself at strength 1."""
        return noise if self.strength == 1 else alpha * self.tokens + sigma * noise

    def hold(self, data: Tensor) -> Tensor:
        """Clean samples [B,C,H,W] with the tokens where they stay."""
        return data if self.keep is None else torch.where(self.keep, self.tokens.to(data.dtype), data)


def check_begun(start: Start, begun: bool) -> None:
    """Raises ConfigError unless sampling has `begun`: the first state has more noise than the last."""
    if not begun:
        raise ConfigError(f"strength {start.strength:g} is less than the noise at which sampling ends; take more")
