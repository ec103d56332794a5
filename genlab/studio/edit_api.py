"""The named endpoint of the Edit panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genlab.studio.answers import changes, file, finished, refusing
from genlab.studio.edit_orders import IMAGE, MASK, EditOrder, place_edit
from genlab.studio.store import Job
from genlab.studio.uploads import receive
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING
from genlab.studio.workbench import Workbench


def edit_endpoint(bench: Workbench) -> None:
    """Add `edit` to the page that is being built."""

    async def edit(
        request: gr.Request,
        run: str,
        image: dict,
        classes: list,
        per_class: int = 1,
        seed: int = 0,
        settings: dict | None = None,
        mask: dict | None = None,
        region: str = "",
        size: float = 1.0,
        left: float = 0.5,
        top: float = 0.5,
        strength: float | None = None,
        from_scale: int | None = None,
    ) -> dict:
        """An `image` made anew in part (files are sent with `gradio_client.handle_file`), for each of `classes`.

        What is made anew: what a `mask` of the same size shows in white, a `region` (left half, right half, upper half,
        lower half, middle), all around the image if its `size` on the canvas is below 1, everything from `from_scale`
        on, or all of it after noise of some `strength` (0 to 1). Gives `images` with `labels`, an `archive` of them
        with image and mask as they were used, the `command` that makes the same of these, and `given`, the two.
        """
        with refusing():
            how = {"region": region, "share": size, "left": left, "top": top}
            how |= {"strength": strength, "from_scale": from_scale, "masked": bool(mask)}
            entry = bench.catalog.get(run)
            order = place_edit(entry, classes, per_class, seed, changes(settings), how, bench.limits)
            files = {IMAGE: receive(image)} | ({MASK: receive(mask)} if mask else {})
            job = bench.store.submit("edit", who(request), entry.name, order.wants(), files)
        return told_edit(job, await finished(bench, job))

    gr.api(edit, api_name="edit", **FOLLOWING)


def told_edit(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of an edit job for programs."""
    order = EditOrder.of(job.wants)
    return {
        "images": [file(job.results / name) for name, _ in result["files"]],
        "labels": list(order.labels),
        "archive": file(job.results / result["archive"]),
        "command": order.command(),
        "given": [file(job.results / name) for name, _ in result["given"]],
        "seconds": result["seconds"],
    }
