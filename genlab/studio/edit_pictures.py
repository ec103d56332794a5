"""Images at hand for the Edit panel: those that the visitor has made, and those of data that comes with genlab."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from genlab.core.errors import GenlabError
from genlab.data.source import ImageSource
from genlab.studio.catalog import Entry
from genlab.studio.pictures import to_png
from genlab.studio.store import Store
from genlab.studio.tokenizer_entries import BuiltIn, built_in

MADE, SENT = "made", ""


class Picture(NamedTuple):
    """One of several images."""

    data: bytes
    """A PNG file."""
    number: int


def take(store: Store, owner: str, entry: Entry, source: str, number: int) -> Picture:
    """Image `number`, counted round and round, of the visitor's newest results (MADE) or of data.

    Raises:
        GenlabError: there is none.
    """
    if source == MADE:
        files = _made(store, owner)
        if not files:
            raise GenlabError("no image has been made yet: do so in Generate, or choose another image here")
        return Picture(files[number % len(files)].read_bytes(), number % len(files))
    settings = built_in(entry.image_size, entry.data).get(source)
    if settings is None:
        raise GenlabError(f"image: {source[:40]!r} is not offered")
    images = _source(settings)
    place = number % len(images)
    return Picture(to_png(images.fetch([place])[0][0], {"data": source, "number": place}), place)


def _made(store: Store, owner: str) -> list[Path]:
    """The files of the newest generate job of a visitor that has some."""
    for job in store.jobs(owner):
        if job.kind == "generate" and (state := store.state(job)).status == "done":
            return [job.results / name for name, _ in state.result["files"] if (job.results / name).is_file()]
    return []


@lru_cache(maxsize=2)
def _source(settings: BuiltIn) -> ImageSource:
    return settings.build()
