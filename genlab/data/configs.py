"""The union of all data configs, told apart by their `name`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from genlab.data.digits import Digits
from genlab.data.folder import Folder
from genlab.data.fractals import Fractals
from genlab.data.huggingface import HuggingFace
from genlab.data.latents import Latents
from genlab.data.photos import Photos
from genlab.data.shards import WebDataset

DataConfig: TypeAlias = Annotated[
    Digits | Photos | Fractals | Folder | HuggingFace | WebDataset | Latents, Field(discriminator="name")
]
