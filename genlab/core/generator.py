"""A generator: tokenizer + network + process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genlab.core.contracts import Event, Network, OnStep, Process, SamplingSettings, Tokenizer
from genlab.core.errors import GenlabError
from samplers.noise import SampleRng


@dataclass(frozen=True)
class Generator:
    """All that is needed to turn labels and seeds into images."""

    tokenizer: Tokenizer
    network: Network
    process: Process
    sampling: SamplingSettings
    """Default settings."""
    class_names: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Generator:
        """The generator with its networks moved to `device` and in evaluation mode."""
        return replace(self, tokenizer=self.tokenizer.to(device).eval(), network=self.network.to(device).eval())

    @torch.no_grad()
    def sample(
        self, label: Tensor, rng: SampleRng, settings: SamplingSettings | None = None, on_step: OnStep | None = None
    ) -> Tensor:
        """Images [B,3,R,R] float32, nominally in [-1,1], for `label` [B] (`network.null_label`: no class).

        Args:
            rng: one stream per image, on the network's device; the only source of randomness.
            settings: the process's sampling settings; default: the generator's.
            on_step: called with the step and the present guess of the finished tokens; `decode_preview` shows it.
        """
        low, high = int(label.min()), int(label.max())
        if low < 0 or high > self.network.null_label:
            classes = self.network.num_classes
            raise GenlabError(
                f"label {low if low < 0 else high} is out of range: this generator has classes 0..{classes - 1}"
                f" and {classes} for no class"
            )
        tokens = self.process.sample(self.network, label, self.tokenizer.spec, rng, settings or self.sampling, on_step)
        return self.tokenizer.decode(tokens).float()

    def decode_preview(self, event: Event) -> Tensor:
        """The images [B,3,R,R] that an intermediate step promises."""
        return self.tokenizer.decode(event.tokens).float()
