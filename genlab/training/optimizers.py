"""Optimizers and learning-rate schedules as config classes that build them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import nn

from genlab.core.contracts import Network
from genlab.core.settings import Settings

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """Base of the optimizer configs. The learning rate comes from the loop, once per step."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of matrices and convolutions; never of norms, biases and embedding tables."""
    weight_decay_end: NonNegativeFloat | None = None
    """What it becomes by the end of training, along half a cosine (VAR-d30: from 0.05 to 0.08). Default: it stays."""

    def decay_at(self, progress: float) -> float:
        """The weight decay at a share of training, in [0, 1]."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return end + (self.weight_decay - end) * 0.5 * (1 + math.cos(math.pi * progress))

    def build(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters of `network`, in two groups: with and without weight decay."""
        exempt = network.no_decay() if isinstance(network, Network) else set()
        trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        decayed = [(name, p) for name, p in trainable if p.ndim >= 2 and name not in exempt]
        other = [(name, p) for name, p in trainable if p.ndim < 2 or name in exempt]
        groups = [
            {
                "params": [p for _, p in decayed],
                "weight_decay": self.weight_decay,
                "decays": True,
                **self.matrix_group(),
            },
            {"params": [p for _, p in other], "weight_decay": 0.0, "decays": False, **self.other_group()},
        ]
        return self.make([group for group in groups if group["params"]], lr)

    def matrix_group(self) -> dict[str, Any]:
        """Extra options of the group of matrices."""
        return {}

    def other_group(self) -> dict[str, Any]:
        """Extra options of the group of vectors, scalars and embedding tables."""
        return {}

    @abstractmethod
    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer: ...


class AdamW(OptimizerSettings):
    """AdamW (Loshchilov & Hutter 2019), torch's."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)


class RAdam(OptimizerSettings):
    """RAdam (Liu et al. 2020), torch's, with decoupled decay. Consistency models were trained with it."""

    name: Literal["radam"] = "radam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, lr=lr, betas=self.betas, eps=self.eps, decoupled_weight_decay=True)


class Lion(OptimizerSettings):
    """Lion (Chen et al. 2023, arXiv 2302.06675), timm's. Use 3-10x AdamW's decay and a 3-10x smaller rate."""

    name: Literal["lion"] = "lion"
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    caution: bool = False
    """Update only where momentum and gradient agree in sign (Liang et al. 2024)."""
    corrected_weight_decay: bool = False
    """Scale the decay by lr / peak lr once more."""

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        from timm.optim import Lion as TimmLion

        return TimmLion(
            groups,
            lr=lr,
            betas=self.betas,
            caution=self.caution,
            corrected_weight_decay=self.corrected_weight_decay,
        )


class Muon(OptimizerSettings):
    """Muon (Jordan et al. 2024) on matrices, AdamW on the rest; timm's, with steps as large as AdamW's."""

    name: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of the AdamW part."""

    def matrix_group(self) -> dict[str, Any]:
        return {"use_fallback": False}

    def other_group(self) -> dict[str, Any]:
        return {"use_fallback": True}

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        from timm.optim import Muon as TimmMuon

        return TimmMuon(groups, lr=lr, momentum=self.momentum, betas=self.betas, nesterov=True)


def inverse_root(images: float, start: float) -> float:
    """1 up to `start` images, then falling with their root.

    "Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al. 2024 (arXiv 2312.02696).
    """
    return max(images / start, 1.0) ** -0.5


class Schedule(Settings):
    """Learning rate as a factor of its peak, counted in images: linear warm-up, then a decay."""

    warmup: int = Field(default=0, ge=0)
    """Images of linear warm-up from 0."""
    decay: Literal["constant", "cosine", "linear", "inverse_root"] = "constant"
    """cosine and linear reach `final` at the end of training; inverse_root falls with the root of the images, whenever
    training ends (EDM2)."""
    decay_start: int = Field(default=0, ge=0)
    """Images at which the decay begins (for cosine and linear never before the warm-up ends)."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end of training, for cosine and linear."""

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.decay == "inverse_root" and self.decay_start == 0:
            raise ValueError(
                "inverse_root falls from decay_start on: got 0; set it to some images (EDM2: 70_000 batches)"
            )
        return self

    def factor(self, images: int, total: int) -> float:
        """Factor for the step that begins after `images` of `total` images; in [0, 1]."""
        if self.decay == "inverse_root":
            rise = min((images + 1) / (self.warmup + 1), 1.0)
            return rise * inverse_root(images, self.decay_start)
        if images < self.warmup:
            return (images + 1) / (self.warmup + 1)
        start = max(self.warmup, self.decay_start)
        if self.decay == "constant" or images <= start or total <= start:
            return 1.0
        progress = min((images - start) / (total - start), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else 1 - progress
        return self.final + (1 - self.final) * shape


OptimizerConfig = Annotated[AdamW | RAdam | Lion | Muon, Field(discriminator="name")]
