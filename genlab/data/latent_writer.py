"""Writing a latent cache: shards are functions of ranges of images, so any number of processes, killed at any time and
started again, leave the same folder.

While a cache is made, its folder also holds `plan.json` (what it will be) and, beside each finished shard, a .json with
its checksum and statistics; `index.json` takes their place in the end.
"""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.core.contracts import LatentSpec, Raw, Tokenizer, to_float
from genlab.core.errors import DataError, GenlabError, NonFinite
from genlab.core.files import remove_unfinished, write_text
from genlab.core.settings import Settings
from genlab.data.latent_index import INDEX, Index, Plan, Shard, Stored, damage, read_index
from genlab.data.latent_shards import torch_dtype, write_shard
from genlab.data.latent_statistics import measure, merge
from genlab.data.source import ImageSource
from genlab.data.stream_reader import ahead

PLAN = "plan.json"
_READ_AHEAD = 2
"""Batches per thread."""
_MIB = 2**20


class Finished(Settings):
    """What is noted beside a finished shard until the cache is whole."""

    shard: Shard
    statistics: dict[str, Any]
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Encoder:
    """Images of a source -> raw latents, as they are stored."""

    source: ImageSource
    """Without flips; with random crops or none."""
    tokenizer: Tokenizer
    """In evaluation mode."""
    device: torch.device

    def fetch(self, indices: Sequence[int], plan: Plan) -> tuple[Tensor, Tensor]:
        """All views uint8 [n,V,3,R,R] and labels int64 [n]. Crop c of image i is drawn as for position cN + i."""
        views: list[Tensor] = []
        for crop in range(plan.crops):
            images, label = self.source.fetch(indices, [crop * plan.images + index for index in indices])
            views += [images, images.flip(3)] if plan.flips else [images]
        return torch.stack(views, dim=1), label

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Views uint8 [n,V,3,R,R] -> named raw latents [n,V,...] on the CPU, in the encoder's own dtype."""
        raw = self.tokenizer.encode(to_float(images.flatten(0, 1).to(self.device)))
        return {name: value.cpu().unflatten(0, images.shape[:2]) for name, value in _named(raw).items()}

    def layout(self, dtype: str) -> dict[str, Stored]:
        """The tensors of one view, found with a black image; `dtype` is for continuous ones."""
        side = self.tokenizer.spec.image_size
        spec = self.tokenizer.spec
        found = self.encode(torch.zeros(1, 1, 3, side, side, dtype=torch.uint8))
        codes = "uint16" if spec.vocab is not None and spec.vocab <= 2**16 else "int32"
        return {
            name: Stored.model_validate(
                {"shape": value.shape[2:], "dtype": dtype if value.is_floating_point() else codes}
            )
            for name, value in found.items()
        }


def bytes_per_image(tensors: Iterable[Stored], views: int) -> int:
    """Disk space of one image with its label."""
    return 8 + views * sum(math.prod(stored.shape) * torch_dtype(stored.dtype).itemsize for stored in tensors)


def open_folder(folder: Path, plan: Plan) -> tuple[Plan, Index | None]:
    """What is there already of the cache: its plan (else the one given), and its index if it was whole once.

    Raises:
        DataError: `folder` holds something else, or a cache of another tokenizer, transform or layout.
    """
    if (folder / INDEX).exists():
        index = read_index(folder)
        _match(folder, index, plan)
        return index, index
    if (folder / PLAN).exists():
        try:
            begun = Plan.model_validate_json((folder / PLAN).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{folder / PLAN}: damaged; remove the folder and cache again") from error
        _match(folder, begun, plan)
        return begun, None
    if folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir())):
        raise DataError(f"{folder}: holds other things and no latent cache; choose a new folder with -o")
    return plan, None


def begin(folder: Path, plan: Plan, index: Index | None) -> None:
    """Prepare the folder for all processes.

    Raises:
        DataError: the disk has too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    needed, free = missing_bytes(folder, plan, index), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the cache needs {needed / _MIB:,.0f} MiB more, the disk has {free / _MIB:,.0f}; make room,"
            " or choose --dtype fp16, no --flips or fewer --crops"
        )
    if index is None and not (folder / PLAN).exists():
        write_text(folder / PLAN, plan.model_dump_json(indent=1))


def pending(folder: Path, plan: Plan, index: Index | None) -> list[int]:
    """The numbers of the shards that are not there, or damaged."""
    known = (_known(folder, number, index) for number in range(len(plan.ranges)))
    return [number for number, shard in enumerate(known) if shard is None or damage(folder, shard)]


def missing_bytes(folder: Path, plan: Plan, index: Index | None) -> int:
    """Disk space that the rest of the cache needs."""
    images = sum(len(plan.ranges[number]) for number in pending(folder, plan, index))
    return images * bytes_per_image(plan.tensors.values(), plan.views)


def write_shards(
    folder: Path, plan: Plan, numbers: Sequence[int], encoder: Encoder, *, batch: int, workers: int
) -> Iterator[int]:
    """Make the shards `numbers`; the count of images of each as it is finished.

    Images are read ahead in `workers` threads and shards are written in another, while the encoder works.

    Args:
        batch: views that the encoder sees at once.

    Raises:
        GenlabError: too many unreadable images, latents that cannot be stored, a full disk. Finished shards stay.
    """
    step = max(batch // plan.views, 1)
    parts = (
        (number, images[first : first + step])
        for number in numbers
        for images in [plan.ranges[number]]
        for first in range(0, len(images), step)
    )

    def fetch(part: tuple[int, range]) -> tuple[int, Tensor, Tensor]:
        return part[0], *encoder.fetch(part[1], plan)

    with ThreadPoolExecutor(1, "write") as writer:
        writing: Future[int] | None = None
        fetched = ahead(fetch, parts, _READ_AHEAD * workers, workers)
        for number, group in groupby(fetched, key=lambda part: part[0]):
            tensors = _encode_shard(plan, number, ((images, label) for _, images, label in group), encoder)
            if writing is not None:
                yield writing.result()
            writing = writer.submit(_finish_shard, folder, plan, number, tensors, encoder.source)
        if writing is not None:
            yield writing.result()


def wait_until_whole(folder: Path, plan: Plan, index: Index | None, seconds: float = 0.2) -> None:
    """Wait for the shards of the other processes: longer than collective operations would."""
    while pending(folder, plan, index):
        time.sleep(seconds)


def finish(folder: Path, plan: Plan, index: Index | None) -> Index:
    """Write the index of a cache whose shards are all there, and remove the notes that it replaces."""
    notes = [_note(folder, number) for number in range(len(plan.ranges))]
    if index is None:
        found = [note for note in notes if note is not None]
        index = Index(
            **dict(plan),
            statistics=merge(note.statistics for note in found),
            unreadable=dict(sorted((name, why) for note in found for name, why in note.unreadable.items())),
            shards=tuple(note.shard for note in found),
        )
    else:  # it was whole before, and some shards were made again
        shards = tuple(note.shard if note else shard for note, shard in zip(notes, index.shards, strict=True))
        index = index.model_copy(update={"shards": shards})
    write_text(folder / INDEX, index.model_dump_json(indent=1))
    for number in range(len(plan.ranges)):
        _note_file(folder, number).unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)
    return index


def to_stored(value: Tensor, dtype: str, spec: LatentSpec, where: str) -> Tensor:
    """Raw latents in the dtype of the cache.

    Raises:
        NonFinite: values that are not finite, or too large for `dtype`.
        DataError: codes beyond the vocabulary.
    """
    stored = value.to(torch_dtype(dtype))
    if stored.is_floating_point():
        if not stored.isfinite().all():
            least, most = value.min().item(), value.max().item()
            advice = "; choose --dtype bf16 or fp32" if value.isfinite().all() else ""
            raise NonFinite(f"{where}: latents from {least:g} to {most:g} cannot be stored as {dtype}{advice}")
    elif value.min() < 0 or value.max() >= (spec.vocab or 2**31):
        raise DataError(f"{where}: codes {value.min()}..{value.max()}, the tokenizer has 0..{(spec.vocab or 0) - 1}")
    return stored


def _encode_shard(
    plan: Plan, number: int, parts: Iterator[tuple[Tensor, Tensor]], encoder: Encoder
) -> dict[str, Tensor]:
    count = len(plan.ranges[number])
    tensors = {"label": torch.empty(count, dtype=torch.int64)} | {
        name: torch.empty(count, plan.views, *stored.shape, dtype=torch_dtype(stored.dtype))
        for name, stored in plan.tensors.items()
    }
    done = 0
    for images, label in parts:
        rows = slice(done, done + len(label))
        first = plan.ranges[number][done]
        where = f"images {first}..{first + len(label) - 1}"
        tensors["label"][rows] = label
        for name, value in encoder.encode(images).items():
            tensors[name][rows] = to_stored(value, plan.tensors[name].dtype, plan.spec, where)
        done = rows.stop
    return tensors


def _finish_shard(folder: Path, plan: Plan, number: int, tensors: dict[str, Tensor], source: ImageSource) -> int:
    file = folder / f"latents-{number:05d}.safetensors"
    count = len(tensors["label"])
    statistics = measure(tensors[next(iter(plan.tensors))], plan.spec)
    try:
        written = write_shard(file, tensors, plan.metadata)
        shard = Shard(file=file.name, images=count, bytes=written.bytes, crc32=written.crc32)
        note = Finished(shard=shard, statistics=statistics, unreadable=source.unreadable())
        write_text(_note_file(folder, number), note.model_dump_json())
    except GenlabError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = missing_bytes(folder, plan, None) / _MIB
            raise DataError(
                f"{error}. The rest of the cache needs {needed:,.1f} MiB; then the same command continues"
            ) from error
        raise
    return count


def _named(raw: Raw) -> dict[str, Tensor]:
    return {f"raw.{name}": value for name, value in raw.items()} if isinstance(raw, dict) else {"raw": raw}


def _note_file(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.json"


def _note(folder: Path, number: int) -> Finished | None:
    file = _note_file(folder, number)
    try:
        return Finished.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _known(folder: Path, number: int, index: Index | None) -> Shard | None:
    note = _note(folder, number)
    return note.shard if note else index.shards[number] if index else None


def _match(folder: Path, begun: Plan, plan: Plan) -> None:
    """Raises DataError unless `begun`, found in `folder`, is what `plan` asks for."""
    if begun.spec.fingerprint != plan.spec.fingerprint:
        raise DataError(
            f"{folder}: holds the latents of tokenizer {begun.spec.fingerprint}, this config's is"
            f" {plan.spec.fingerprint}; choose another folder with -o"
        )
    if begun.data_fingerprint != plan.data_fingerprint:
        raise DataError(
            f"{folder}: was made of other images or with another transform: {begun.data_fingerprint}, this config's"
            f" are {plan.data_fingerprint}; choose another folder with -o"
        )
    compared = {name: (getattr(begun, name), getattr(plan, name)) for name in Plan.model_fields}
    for name, (old, new) in compared.items():
        if old != new and name not in ("data", "tokenizer"):  # the same images may have another path by now
            raise DataError(f"{folder}: was begun with {name} {old}, now {new}; choose another folder with -o")
