"""A source without some of its classes; their numbers and names stay what they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genlab.core.contracts import Raw
from genlab.core.errors import DataError
from genlab.data.latents import LatentSource
from genlab.data.loader import Source
from genlab.data.source import ImageSource, digest


def restrict(source: Source, classes: Collection[int]) -> ImageSource | LatentSource:
    """The images of `source` whose label is among `classes`, in their order.

    Raises:
        DataError: a stream, whose labels are not known beforehand, or no image of these classes.
    """
    if not isinstance(source, ImageSource | LatentSource):
        raise DataError("data: a stream cannot be restricted to some classes; use a folder, or cache its latents")
    chosen = torch.isin(source.labels(), torch.tensor(sorted(classes))).nonzero().flatten().numpy()
    if len(chosen) == 0:
        raise DataError(f"data: holds no image of the classes {sorted(classes)[:5]}; give these to another part")
    return LatentSubset(source, chosen) if isinstance(source, LatentSource) else ImageSubset(source, chosen)


class ImageSubset(ImageSource):
    """The images `rows`, int64 [N], of another source."""

    def __init__(self, source: ImageSource, rows: NDArray[np.int64]):
        super().__init__(source.class_names, source.image_size)
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        return self._source.fetch(self._rows[np.asarray(indices)].tolist(), positions)

    def labels(self) -> Tensor:
        return self._source.labels()[self._rows]

    def fingerprint(self) -> str:
        return digest(self._source.fingerprint(), self._rows.tobytes())

    def unreadable(self) -> dict[str, str]:
        return self._source.unreadable()


class LatentSubset(LatentSource):
    """The latents `rows`, int64 [N], of a cache."""

    def __init__(self, source: LatentSource, rows: NDArray[np.int64]):
        self.__dict__.update(source.__dict__)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> tuple[Raw, Tensor]:
        return super().fetch(self._rows[np.asarray(indices)].tolist(), positions)

    def labels(self) -> Tensor:
        return super().labels()[self._rows]

    def fingerprint(self) -> str:
        return digest(super().fingerprint(), self._rows.tobytes())
