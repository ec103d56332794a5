"""The `finetune:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from genlab.core.settings import Settings
from genlab.finetuning.difffit import DiffFitSettings
from genlab.finetuning.lora import LoraSettings


class FullSettings(Settings):
    """All weights are trained, from those of the base on."""

    name: Literal["full"] = "full"


MethodSettings: TypeAlias = DiffFitSettings | LoraSettings | FullSettings
"""Told apart by `name`."""


class FinetuneSettings(Settings):
    """Start from a trained generator instead of from noise, and say what of it is trained."""

    base: str = Field(min_length=1)
    """A run folder, an export or a hub id. Its network is the recipe's but for classes and grid."""
    method: Annotated[MethodSettings, Field(discriminator="name")] = DiffFitSettings()
    """difffit (scales, biases, norms, classes), lora (low-rank changes) or full."""
