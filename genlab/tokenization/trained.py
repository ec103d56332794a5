"""A tokenizer that was trained or converted before, as part of a generator: frozen, and bound by its fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from genlab.core.contracts import LatentSpec, TrainableTokenizer
from genlab.core.errors import CheckpointError, ConfigError
from genlab.core.settings import Settings
from genlab.tokenization.configs import AnyTokenizer, TokenizerConfig
from genlab.tokenization.storage import find_folder, load_tokenizer, read_config, read_description


class Trained(Settings):
    """Work on the latents or codes of a trained tokenizer."""

    name: Literal["trained"] = "trained"
    path: str
    """A tokenizer's run, export or converted folder, or a hub repository."""
    recipe: str | None = None
    """The config that trains it (or describes the published one): what is checked while `path` is not there yet."""

    def latent_spec(self, image_size: int) -> LatentSpec:
        """What the tokenizer makes of R x R images, read from its description or, before it exists, from its recipe.

        Raises:
            CheckpointError: neither is there.
        """
        try:
            folder = find_folder(self.path) if self.recipe is None or Path(self.path).exists() else None
            if folder is None:
                return self._from_recipe().latent_spec(image_size)
            description = read_description(folder)
        except CheckpointError as error:
            raise CheckpointError(f"tokenizer.path: {error}{self._advice()}") from error
        spec = read_config(description, str(folder)).latent_spec(image_size)
        return replace(spec, fingerprint=str(description["fingerprint"]))

    def build(self, image_size: int) -> TrainableTokenizer:
        """The frozen tokenizer. Raises CheckpointError, which says how to make it, if it is absent or damaged."""
        try:
            return load_tokenizer(self.path, image_size)
        except CheckpointError as error:
            raise CheckpointError(f"tokenizer.path: {error}{self._advice()}") from error

    def _advice(self) -> str:
        return f".\nMake it with: accelerate launch genlab/train.py {self.recipe}" if self.recipe else ""

    def _from_recipe(self) -> AnyTokenizer:
        assert self.recipe is not None
        try:
            tree: Any = yaml.safe_load(Path(self.recipe).read_text(encoding="utf-8"))
            return TypeAdapter[AnyTokenizer](TokenizerConfig).validate_python(tree["tokenizer"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
            raise ConfigError(f"tokenizer.recipe: {self.recipe} holds no tokenizer ({error})") from error
