"""One shard of a latent cache: a safetensors file, written whole or not at all, and read through a memory map.

    label         int64 [n]
    raw[.KEY]     [n, V, ...]: V views of each image, what the tokenizer's encoder gave

The header repeats the fingerprints of the cache, so that a shard of another one is not taken for its own.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genlab.core.errors import DataError
from genlab.core.files import whole_file

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U16": "uint16", "I32": "int32", "I64": "int64"}
_CODES = {name: code for code, name in _NAMES.items()}
_BLOCK = 1 << 24
"""Bytes read at once for a checksum."""


class Written(NamedTuple):
    """What identifies a finished file."""

    bytes: int
    crc32: int


def torch_dtype(name: str) -> torch.dtype:
    """ "uint16" -> torch.uint16."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def write_shard(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """Write a safetensors file atomically, without a second copy in memory; equal input gives equal bytes.

    Raises:
        GenlabError: the disk is full; nothing half-written is left.
    """
    parts: list[Any] = [tensor.contiguous().flatten().view(torch.uint8).numpy() for tensor in tensors.values()]
    written = Written(0, 0)
    with whole_file(file) as temporary, temporary.open("wb") as out:
        for part in (_header(tensors, metadata), *(part.data for part in parts)):
            out.write(part)
            written = Written(written.bytes + len(part), zlib.crc32(part, written.crc32))
    return written


def checksum(file: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def read_shard(file: Path, metadata: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """The arrays of a shard, mapped, not read; bfloat16 as the uint16 of the same bits.

    Args:
        metadata: what the header must say.

    Raises:
        DataError: the file is missing, damaged, or of another cache.
    """
    try:
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        found = header.pop("__metadata__", {})
        arrays = dict(_arrays(mapped, 8 + length, header))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: missing or damaged ({error}); `genlab cache` makes it again") from error
    for key, value in metadata.items():
        if found.get(key) != value:
            raise DataError(f"{file}: of another cache ({key} {found.get(key)}, not {value}); `genlab cache` it again")
    return arrays


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header: its length, then JSON padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        code = _CODES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _arrays(mapped: mmap.mmap, start: int, header: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, entry in header.items():
        kind = _NAMES[entry["dtype"]]
        dtype = np.dtype("uint16" if kind == "bfloat16" else kind)
        count = int(np.prod(entry["shape"]))
        values: NDArray[Any] = np.frombuffer(mapped, dtype, count, start + entry["data_offsets"][0])
        yield name, values.reshape(entry["shape"])
