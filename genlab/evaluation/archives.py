"""Sample archives: ADM's .npz (memory-mapped, not loaded) and .safetensors, read and written.

np.load cannot map a member of an npz, and 50,000 images at 256 pixels are 9.8 GB; but np.savez stores members
uncompressed, so the pixels lie in the file as they are, behind two headers.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import whole_file
from genlab.data.source import digest
from genlab.evaluation.sources import READ_AHEAD, Part, ScoredImages, known_sorted

_LABEL_KEYS = ("label", "labels", "arr_1")
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of name and extra field in a zip member's local header
_CHUNK = 1 << 24


def npz_keys(file: Path) -> set[str]:
    """The names of the arrays in an .npz.

    Raises:
        DataError: truncated, or no .npz.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{file}: no complete .npz file ({error}); copy or download it again") from error


def map_member(file: Path, key: str) -> NDArray[Any]:
    """One array of an .npz, memory-mapped where it is stored uncompressed, else loaded.

    Raises:
        DataError: truncated, missing, or an array of Python objects.
    """
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            member = archive.getinfo(f"{key}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with np.load(file, allow_pickle=False) as loaded:
                    return np.asarray(loaded[key])
            raw.seek(member.header_offset)
            name, extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
            raw.seek(name + extra, 1)
            version = np.lib.format.read_magic(raw)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(raw)
            if dtype.hasobject:
                raise DataError(f"{file}: {key} holds Python objects, which are never unpickled; save plain arrays")
            return np.memmap(file, dtype, "r", raw.tell(), shape, "F" if fortran else "C")
    except KeyError:
        raise DataError(f"{file}: has no array {key!r}; it has {', '.join(sorted(npz_keys(file)))}") from None
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        raise DataError(f"{file}: {key} cannot be read ({error}); the file is truncated or foreign") from error


class NpzImages(ScoredImages):
    """The images of an ADM archive, `arr_0` uint8 [N,R,R,3], with labels where there are some."""

    def __init__(self, file: Path, limit: int | None = None):
        self._file = file
        pixels = map_member(file, "arr_0")
        _check_layout(pixels, file)
        self._pixels = pixels[:limit]
        keys = npz_keys(file)
        label_key = next((key for key in _LABEL_KEYS if key in keys), None)
        self._labels = _labels(map_member(file, label_key), len(pixels), file)[:limit] if label_key else None
        classes = int(self._labels.max()) + 1 if self._labels is not None else 0
        super().__init__(len(self._pixels), pixels.shape[1], [str(label) for label in range(classes)])

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        for start in range(0, len(index), READ_AHEAD):
            cut = list(index[start : start + READ_AHEAD])
            images = torch.from_numpy(np.ascontiguousarray(self._pixels[cut].transpose(0, 3, 1, 2)))
            yield Part(cut, images, self._labels[cut] if self._labels is not None else None)

    def describe(self) -> dict[str, Any]:
        probe = np.ascontiguousarray(self._pixels[:: max(1, len(self) // 64)]).tobytes()
        return {"kind": "npz", "path": str(self._file), "images": len(self), "probe": digest(probe)}

    def name(self, index: int) -> str:
        return f"{self._file}: image {index}"

    def class_sorted(self) -> bool:
        return known_sorted(self._labels)


class SafetensorsImages(ScoredImages):
    """The images of `genlab sample --out FILE.safetensors`: `images` uint8 [N,3,R,R] and `label` [N]."""

    def __init__(self, file: Path):
        from safetensors import SafetensorError, safe_open

        self._file = file
        try:
            self._handle = safe_open(file, "pt")
            self._rows = self._handle.get_slice("images")
            shape, dtype = self._rows.get_shape(), self._rows.get_dtype()
            has_labels = "label" in self._handle.keys()  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: no complete .safetensors file of images ({error})") from error
        if dtype != "U8" or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise DataError(f"{file}: images are {dtype} {shape}; expected uint8 [N,3,R,R]")
        self._labels: Tensor | None = self._handle.get_tensor("label") if has_labels else None
        classes = int(self._labels.max()) + 1 if self._labels is not None else 0
        super().__init__(shape[0], shape[2], [str(label) for label in range(classes)])

    def parts(self, index: Sequence[int]) -> Iterator[Part]:
        for start in range(0, len(index), READ_AHEAD):
            cut = list(index[start : start + READ_AHEAD])
            images = torch.cat([self._rows[i : i + 1] for i in cut])
            yield Part(cut, images, self._labels[cut] if self._labels is not None else None)

    def describe(self) -> dict[str, Any]:
        status = self._file.stat()
        return {"kind": "safetensors", "path": str(self._file), "bytes": status.st_size, "modified": status.st_mtime_ns}

    def name(self, index: int) -> str:
        return f"{self._file}: image {index}"

    def class_sorted(self) -> bool:
        return known_sorted(self._labels)


def _check_layout(pixels: NDArray[Any], file: Path) -> None:
    got = f"{file}: arr_0 is {pixels.dtype} {list(pixels.shape)}, expected uint8 [N,R,R,3]"
    if pixels.dtype != np.uint8:
        raise DataError(f"{got}; round to 8 bits by your protocol's rule first")
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[3] != 3:
        raise DataError(f"{got}; channels come first here: transpose(0, 2, 3, 1)")
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] != pixels.shape[2] or not len(pixels):
        raise DataError(got)


def _labels(values: NDArray[Any], count: int, file: Path) -> Tensor:
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{file}: labels are {values.dtype} {list(values.shape)} for {count} images; expected [N] integers"
        )
    return torch.from_numpy(np.array(values, dtype=np.int64))


class ArchiveWriter:
    """Streams images into an ADM .npz, shuffled: judges that take chunks in file order then see mixed classes.

    Rows go to their places in a file beside `file`, from all processes and over restarts; `finish` wraps it up with
    `label` and `order` (row r of the archive is image order[r] of the plan).
    """

    def __init__(self, file: Path, count: int, image_size: int, seed: int, create: bool):
        self.file, self._staging = file, file.with_name(f".{file.name}.rows.npy")
        self.order = np.random.default_rng(seed).permutation(count)
        self._place = np.empty_like(self.order)
        self._place[self.order] = np.arange(count)
        shape = (count, image_size, image_size, 3)
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = self._staging.is_file() and np.load(self._staging, mmap_mode="r").shape == shape
            if not kept:
                np.lib.format.open_memmap(self._staging, "w+", np.uint8, shape).flush()
                np.lib.format.open_memmap(self._labels_file, "w+", np.int64, (count,)).flush()

    @property
    def _labels_file(self) -> Path:
        return self.file.with_name(f".{self.file.name}.labels.npy")

    def write(self, part: Part) -> None:
        """Put images into their rows."""
        rows = self._place[part.index]
        np.load(self._staging, mmap_mode="r+")[rows] = part.images.permute(0, 2, 3, 1).cpu().numpy()
        np.load(self._labels_file, mmap_mode="r+")[rows] = part.labels.numpy() if part.labels is not None else 0

    def finish(self) -> None:
        """Write the archive, whole or not at all, in pieces that fit in memory."""
        with (
            whole_file(self.file) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            with archive.open("arr_0.npy", "w", force_zip64=True) as member, self._staging.open("rb") as rows:
                while chunk := rows.read(_CHUNK):
                    member.write(chunk)
            for key, values in (("label", np.load(self._labels_file)), ("order", self.order)):
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
        self._staging.unlink()
        self._labels_file.unlink()
