"""The named endpoints, for gradio_client and other programs: the same work as the panels, with plain values."""

from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr

from genlab.core.errors import GenlabError
from genlab.studio.jobs import Cancelled, Job
from genlab.studio.orders import place
from genlab.studio.workbench import Workbench


def endpoints(bench: Workbench) -> None:
    """Add `runs`, `generate` and `cancel` to the page that is being built."""

    def runs() -> list[dict]:
        """The generators: `id` is what `generate` takes; `sampling` are the default settings."""
        return [
            {
                "id": entry.id,
                "name": entry.name,
                "data": entry.data,
                "image_size": entry.image_size,
                "images": entry.images,
                "num_classes": entry.num_classes,
                "class_names": list(entry.class_names),
                "sampling": entry.sampling.model_dump(mode="json"),
            }
            for entry in bench.catalog.refresh().entries.values()
        ]

    def generate(
        request: gr.Request, run: str, classes: list, per_class: int = 1, seed: int = 0, settings: dict | None = None
    ) -> dict:
        """Images of `classes` (numbers or names), with changes to the default sampling settings.

        Gives `images` (PNG files) with their `labels`, an `archive` of them, and the `command` that makes the same.
        """
        try:
            if not isinstance(settings, dict | None):
                raise GenlabError("settings: a mapping of names to values is wanted")
            order = place(bench.catalog.get(run), classes, per_class, seed, settings or {}, bench.limits)
            with bench.jobs.entered(str(request.session_hash), Job(order)) as job:
                last = deque(job.frames(bench.models), maxlen=1).pop()
        except Cancelled:
            raise gr.Error("stopped", print_exception=False) from None
        except GenlabError as error:
            raise gr.Error(str(error), print_exception=False) from error
        images, archive = bench.outputs.deliver(order, last.images)
        return {
            "images": [_file(image) for image in images],
            "labels": list(order.labels),
            "archive": _file(archive),
            "command": order.command(),
        }

    def cancel(request: gr.Request) -> int:
        """Stop what this session's calls are making; how many calls that were."""
        return bench.jobs.cancel(str(request.session_hash))

    gr.api(runs, api_name="runs", queue=False)
    gr.api(generate, api_name="generate", **bench.queue)
    gr.api(cancel, api_name="cancel", queue=False)


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
