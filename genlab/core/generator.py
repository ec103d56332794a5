"""A generator: tokenizer + network + process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genlab.core.contracts import Event, Network, OnStep, Process, SamplingSettings, Tokenizer
from genlab.core.errors import ConfigError, GenlabError
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
    weaker: Network | None = None
    """What guidance leads away from, in place of the network's own prediction without a class; `guided_away_from`."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Generator:
        """The generator with its networks moved to `device` and in evaluation mode."""
        weaker = self.weaker.to(device).eval() if self.weaker is not None else None
        return replace(
            self, tokenizer=self.tokenizer.to(device).eval(), network=self.network.to(device).eval(), weaker=weaker
        )

    def guided_away_from(self, other: Generator) -> Generator:
        """The generator with autoguidance: `other`, a smaller or less trained one, makes the errors to be exaggerated.

        "Guiding a Diffusion Model with a Bad Version of Itself", Karras et al., NeurIPS 2024 (arXiv 2406.02507). How
        much is said by the sampling settings' `guidance`. An `other` without classes is told none.

        Raises:
            ConfigError: they differ in tokenizer, classes or process, or the process has no autoguidance.
        """
        if not self.process.takes_weaker:
            raise ConfigError(f"autoguidance: {type(self.process).__name__} has none; leave it out")
        ours, theirs = self.tokenizer.spec, other.tokenizer.spec
        if (ours.fingerprint, ours.shape) != (theirs.fingerprint, theirs.shape):
            raise ConfigError(
                "autoguidance: the weaker generator has another tokenizer; it must work on the same tokens"
            )
        if other.network.num_classes and (self.network.num_classes, self.class_names) != (
            other.network.num_classes,
            other.class_names,
        ):
            raise ConfigError(
                f"autoguidance: the weaker generator has {other.network.num_classes} classes, this one "
                f"{self.network.num_classes}, or of other names; it must know the same classes or none"
            )
        if self.process != other.process:
            raise ConfigError(f"autoguidance: the weaker generator has another process: {other.process}")
        return replace(self, weaker=other.network)

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
        self.check_label(label)
        settings = settings or self.sampling
        options = {} if self.weaker is None else {"weaker": self.weaker}
        tokens = self.process.sample(self.network, label, self.tokenizer.spec, rng, settings, on_step, **options)
        return self.process.decode(self.tokenizer, tokens, settings).float()

    def check_label(self, label: Tensor) -> None:
        """Raises GenlabError for a class that does not exist."""
        low, high = int(label.min()), int(label.max())
        if low < 0 or high > self.network.null_label:
            classes = self.network.num_classes
            raise GenlabError(
                f"label {low if low < 0 else high} is out of range: this generator has classes 0..{classes - 1}"
                f" and {classes} for no class"
            )

    def decode_preview(self, event: Event) -> Tensor:
        """The images [B,3,R,R] that an intermediate step promises."""
        return self.tokenizer.decode(event.tokens).float()
