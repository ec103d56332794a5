"""References made from images: one pass, kept on disk for the next evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genlab.core.errors import DataError
from genlab.data.source import digest
from genlab.evaluation import pixels
from genlab.evaluation.asks import Ask
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.metrics import Need
from genlab.evaluation.progress import Progress
from genlab.evaluation.references import ROWS, Reference, cache_folder, load_reference, save_reference
from genlab.evaluation.session import Processes, Session
from genlab.evaluation.sources import ScoredImages


def build_references(
    source: ScoredImages,
    extractors: Sequence[Extractor],
    processes: Processes | None = None,
    cache: Path | None = None,
    tick: Callable[[int], None] = lambda images: None,
) -> dict[str, Reference]:
    """The reference that `source` is on each extractor, by the extractor's name; complete on the main process.

    Args:
        cache: folder of earlier results, and of this one if it is interrupted; None: `cache_folder()`.
    """
    folder = cache or cache_folder()
    files = {extractor.name: _file(folder, source, extractor) for extractor in extractors}
    known = {extractor.name for extractor in extractors if files[extractor.name].is_file()}
    if processes is not None:
        processes.wait_for_everyone()  # all must have looked before one writes
    found = {}
    for extractor in extractors:
        if extractor.name in known:
            found[extractor.name] = _cached(files[extractor.name], extractor, source)
    todo = [extractor for extractor in extractors if extractor.name not in found]
    if todo:
        found |= _make(source, todo, files, processes, tick)
    return found


def account(source: ScoredImages) -> dict[str, Any]:
    """What a reference made from `source` says of its data."""
    return {"kind": "images", "data": source.describe(), "image_size": source.image_size, "count": len(source)}


def _file(folder: Path, source: ScoredImages, extractor: Extractor) -> Path:
    tree = {"data": source.describe(), "extractor": extractor.describe(), "rows": ROWS, "count": len(source)}
    return folder / f"{extractor.name}-{digest(json.dumps(tree, sort_keys=True))}.npz"


def _cached(file: Path, extractor: Extractor, source: ScoredImages) -> Reference:
    try:
        reference = load_reference(file, extractor, source.image_size)
    except DataError as error:
        raise DataError(f"{error}\n(a cached reference; delete {file} to make it anew)") from error
    return replace(reference, account={**reference.account, "cached": True})


def _make(
    source: ScoredImages,
    extractors: Sequence[Extractor],
    files: dict[str, Path],
    processes: Processes | None,
    tick: Callable[[int], None],
) -> dict[str, Reference]:
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    name = digest(*(files[extractor.name].name for extractor in extractors))
    keep = [extractor for extractor in extractors if extractor.family != pixels.NAME]  # reading pixels is as quick
    progress = None
    if keep:
        folder = files[keep[0].name].parent
        progress = Progress(folder / f"{name}.progress", {"reference": name}, rank, world)
    asks = []
    for extractor in extractors:
        needs = {Need.MOMENTS, Need.FEATURES} | ({Need.SPATIAL} if extractor.spatial_layer else set())
        asks.append(Ask(extractor, frozenset(needs), most=min(ROWS, len(source))))
    result = Session(source, asks, processes, progress, tick=tick).run()
    found = {
        extractor.name: Reference(result.collected[extractor.name], account(source), list(source.warnings))
        for extractor in extractors
    }
    if rank == 0:
        for extractor in keep:
            save_reference(files[extractor.name], found[extractor.name], extractor)
        if progress is not None:
            progress.clear()
    return found
