"""A latent cache as training data: what `genlab cache` wrote, in the order of the images it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError, model_validator
from torch import Tensor

from genlab.core.contracts import Raw
from genlab.core.errors import DataError
from genlab.core.settings import Settings
from genlab.data.latent_index import Index, damage, read_index
from genlab.data.latent_shards import read_shard
from genlab.data.source import Images, ImageSource, ImageStream, Split
from samplers.noise import spawn


class Latents(Settings):
    """Cached latents or codes."""

    name: Literal["latents"] = "latents"
    path: Path
    """The folder that `genlab cache` made."""
    size: int
    """Side R of the images that were encoded; default: as the cache says."""
    fingerprint: str
    """Of tokenizer, images, transform and views; default: the cache's. A run continues only with the same."""
    flip: bool = True
    """Use the mirrored views, where the cache has them."""

    @model_validator(mode="before")
    @classmethod
    def _describe(cls, value: Any) -> Any:
        """Take what is not given from the cache, so that a run's config tells it even when the cache is gone."""
        given = isinstance(value, dict) and {"size", "fingerprint"} <= value.keys()
        if isinstance(value, dict) and isinstance(value.get("path"), str | Path) and not given:
            index = read_index(Path(value["path"]))
            return {"size": index.spec.image_size, "fingerprint": index.fingerprint()} | value
        return value

    def build(self, split: Split = "train") -> LatentSource | ImageSource | ImageStream:
        """The cache; for the test split, the held-out images of the data it was made of.

        Raises:
            DataError: the cache is missing, damaged, or not the one that this config describes.
        """
        index = read_index(self.path)
        if self.size != index.spec.image_size:
            raise DataError(f"{self.path}: made of images of {index.spec.image_size} pixels, data.size is {self.size}")
        if self.fingerprint != index.fingerprint():
            raise DataError(
                f"{self.path}: of another tokenizer, transform or data: it is {index.fingerprint()}, data.fingerprint"
                f" says {self.fingerprint}"
            )
        source = LatentSource(self.path, index, self.flip)
        return source if split == "train" else source.build_images(split)


class LatentSource(Images):
    """Raw latents of N images, memory-mapped. Which images stand where is as for any source of N images.

    Raises:
        DataError: a shard is missing or truncated.
    """

    def __init__(self, folder: Path, index: Index, flip: bool = True):
        super().__init__(index.class_names, index.spec.image_size)
        for shard in index.shards:
            if wrong := damage(folder, shard):
                raise DataError(f"{wrong}; `genlab cache` with the same settings makes it again")
        self.index = index
        self._folder, self._flip = folder, flip
        self._shards: dict[int, dict[str, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return self.index.images

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # data workers map the files themselves

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Raw, Tensor]:
        """Raw latents, float32 or int64 [n, ...], and labels int64 [n].

        Args:
            indices: which images, each in 0..N-1.
            positions: each image's place in the endless training sequence, which with the seed of the images chooses
                flips (the same ones as without a cache) and crops. None: the first crop, not mirrored.
        """
        shards, places = np.divmod(np.asarray(indices, dtype=np.int64), self.index.shard_size)
        views = self._views(positions, len(places))
        stored = {
            name: np.empty((len(places), *tensor.shape), "uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
            for name, tensor in self.index.tensors.items()
        }
        labels = np.empty(len(places), dtype=np.int64)
        for number in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == number)
            arrays = self._shard(number)
            labels[chosen] = arrays["label"][places[chosen]]
            for name, values in stored.items():
                values[chosen] = arrays[name][places[chosen], views[chosen]]
        raw = {name: _widen(values, self.index.tensors[name].dtype) for name, values in stored.items()}
        label = torch.from_numpy(labels)
        return (raw["raw"] if "raw" in raw else {name.removeprefix("raw."): x for name, x in raw.items()}), label

    def labels(self) -> Tensor:
        """int64 [N], of all images in order."""
        shards = [self._shard(number)["label"] for number in range(len(self.index.shards))]
        return torch.from_numpy(np.concatenate(shards).astype(np.int64))

    def stored(self, name: str, indices: Sequence[int]) -> Tensor:
        """All views of the tensor `name` of some images, float32 or int64 [n,V,...]."""
        places = [divmod(index, self.index.shard_size) for index in indices]
        rows = np.stack([self._shard(number)[name][place] for number, place in places])
        return _widen(rows, self.index.tensors[name].dtype)

    def fingerprint(self) -> str:
        return self.index.fingerprint()

    def unreadable(self) -> dict[str, str]:
        return self.index.unreadable

    def build_images(self, split: Split = "train") -> ImageSource | ImageStream:
        """The images that were encoded, or their test split: for scores. Raises DataError if they are not there."""
        from genlab.data.configs import DataConfig  # which holds Latents itself

        try:
            config: Any = TypeAdapter(DataConfig).validate_python(self.index.data)
        except ValidationError as error:
            raise DataError(f"{self._folder}: cannot tell what images it was made of ({error})") from error
        source: ImageSource | ImageStream = config.build(split)
        return source

    def _views(self, positions: Sequence[int] | None, count: int) -> NDArray[np.int64]:
        """Which view of each image, [n]."""
        if positions is None or self.index.views == 1:
            return np.zeros(count, dtype=np.int64)
        # Sources draw the flip first and from the same streams, so a cache and its images flip alike.
        choices = spawn(int(self.index.data.get("seed", 0)), positions).uniform(2).numpy()  # [n,2]
        crops = (choices[:, 1] * self.index.crops).astype(np.int64)
        if not self.index.flips:
            return crops
        return 2 * crops + ((choices[:, 0] < 0.5) & self._flip)

    def _shard(self, number: int) -> dict[str, NDArray[Any]]:
        if number not in self._shards:
            file = self._folder / self.index.shards[number].file
            self._shards[number] = read_shard(file, self.index.metadata)
        return self._shards[number]


def _widen(values: NDArray[Any], dtype: str) -> Tensor:
    """Stored values as tokenizers want them: float32 or int64."""
    if dtype == "bfloat16":
        return torch.from_numpy(values).view(torch.bfloat16).float()
    return torch.from_numpy(values.astype(np.float32 if dtype.startswith("float") else np.int64, copy=False))
