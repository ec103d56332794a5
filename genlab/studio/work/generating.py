"""The work of the Generate panel: an order filled, with pictures of what forms."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.core import contracts
from genlab.core.contracts import to_uint8
from genlab.core.generator import Generator
from genlab.sampling import sample_images
from genlab.studio.models import Models
from genlab.studio.orders import Order
from genlab.studio.pictures import to_data_uri, to_png
from genlab.studio.worker import Running

BATCH = 64  # as `genlab sample` by default: the same batches give the same images to the last bit
_PAUSE = 0.15  # seconds between previews, at least
_FLOW = 4e6  # bytes of previews a second, at most: a page that cannot keep up would pile them up
_DRAWING = 0.005  # seconds that a busy browser takes for a picture, in which it does not hear of clicks


def generate(running: Running, models: Models) -> dict[str, Any]:
    """Fill an order: `files` with captions, their `archive` below the job's results, and the `seconds` it took.

    While images form, frames have `pictures`, pairs of data URI and caption, and how many of `total` are `finished`.
    """
    order = Order.of(running.job.wants)
    generator = models.get(order.entry)
    begun = time.monotonic()
    images = fill(running, generator, order)
    seconds = time.monotonic() - begun
    files, archive = deliver(order, images, running.job.results)
    named = [(file.name, order.caption(index)) for index, file in enumerate(files)]
    return {"files": named, "archive": archive.name, "seconds": seconds}


def pause(spent: float, pictures: Sequence[str]) -> float:
    """Seconds until the next preview: slow decoders are asked less often, and pages get what they can draw and load.

    Args:
        spent: on this one.
        pictures: what the page was given, as data URIs.
    """
    return max(_PAUSE, 3 * spent, _DRAWING * len(pictures), sum(map(len, pictures)) / _FLOW)


def fill(running: Running, generator: Generator, order: Order) -> dict[int, Tensor]:
    """The images of an order by index, uint8 [3,R,R]. Raises Stopped within a sampling step."""
    total = len(order.labels)
    ready: dict[int, Tensor] = {}
    shown: dict[int, str] = {}
    next_preview, words = 0.0, ""

    def show(done: float, forming: Mapping[int, str]) -> None:
        pictures = [(picture, order.caption(index)) for index, picture in sorted(({**shown, **forming}).items())]
        running.show(done, words, pictures=pictures, finished=len(ready), total=total)

    def on_smaller(batch: int) -> None:
        nonlocal words
        words = f"short of memory: {batch} at a time"
        show(len(ready) / total, {})

    def on_step(event: contracts.Event) -> None:
        nonlocal next_preview
        running.check()
        now = time.monotonic()
        if now < next_preview or event.step == event.steps:
            return
        present = to_uint8(generator.decode_preview(event)).cpu()
        forming = {index: to_data_uri(image) for index, image in enumerate(present, start=len(ready))}
        done = (len(ready) + len(present) * event.step / event.steps) / total
        show(done, forming)
        shown_at = time.monotonic()
        next_preview = shown_at + pause(shown_at - now, [*shown.values(), *forming.values()])

    running.check()
    plan = generator, order.labels, order.seed, range(total), BATCH, order.settings
    for indices, images in sample_images(*plan, on_step, on_smaller=on_smaller):
        running.check()
        ready |= dict(zip(indices, images))
        if len(ready) < total:
            shown |= {index: to_data_uri(image) for index, image in zip(indices, images)}
            show(len(ready) / total, {})
    return ready


def deliver(order: Order, images: Mapping[int, Tensor], folder: Path) -> tuple[list[Path], Path]:
    """Each image as a PNG file in `folder`, and all of them in a ZIP there."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", order.entry.name)[:80]
    archive = folder / f"{stem}-seed{order.seed}.zip"
    files = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for index, image in sorted(images.items()):
            data = to_png(image, order.metadata(index))
            file = folder / f"{index:06d}-{order.labels[index]:04d}.png"
            file.write_bytes(data)
            zipped.writestr(file.name, data)
            files.append(file)
    return files, archive
