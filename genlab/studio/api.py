"""The named endpoints, for gradio_client and other programs: the same work as the panels, with plain values."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from genlab.studio.answers import changes, file, finished, refusing
from genlab.studio.compare_api import compare_endpoint, told_comparison
from genlab.studio.edit_api import edit_endpoint, told_edit
from genlab.studio.orders import Order, place
from genlab.studio.score_api import score_endpoints, told_score
from genlab.studio.store import Job
from genlab.studio.tokenizers_api import tokenizer_endpoints, told_reconstruction
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING
from genlab.studio.workbench import Workbench


def endpoints(bench: Workbench) -> None:
    """Add all named endpoints to the page that is being built."""
    _generate_endpoints(bench)
    compare_endpoint(bench)
    edit_endpoint(bench)
    tokenizer_endpoints(bench)
    score_endpoints(bench)
    _job_endpoints(bench)


def _generate_endpoints(bench: Workbench) -> None:
    """`runs`, `generate` and `submit`."""
    store = bench.store

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

    def ordered(request: gr.Request, run: str, classes: list, per_class: int, seed: int, settings: dict | None) -> Job:
        with refusing():
            order = place(bench.catalog.get(run), classes, per_class, seed, changes(settings), bench.limits)
            return store.submit("generate", who(request), order.entry.name, order.wants())

    async def generate(
        request: gr.Request, run: str, classes: list, per_class: int = 1, seed: int = 0, settings: dict | None = None
    ) -> dict:
        """Images of `classes` (numbers or names), with changes to the default sampling settings.

        Gives `images` (PNG files) with their `labels`, an `archive` of them, and the `command` that makes the same.
        """
        job = ordered(request, run, classes, per_class, seed, settings)
        return _told(job, await finished(bench, job))

    def submit(
        request: gr.Request, run: str, classes: list, per_class: int = 1, seed: int = 0, settings: dict | None = None
    ) -> str:
        """As `generate`, without waiting: the id of the job, which goes on whatever becomes of the caller."""
        job = ordered(request, run, classes, per_class, seed, settings)
        bench.workers.ensure()
        return job.id

    gr.api(runs, api_name="runs", queue=False)
    gr.api(generate, api_name="generate", **FOLLOWING)
    gr.api(submit, api_name="submit", queue=False)


def _job_endpoints(bench: Workbench) -> None:
    """`job`, `jobs` and `cancel`, for jobs of every kind."""
    store = bench.store

    def job(id: str) -> dict:
        """How a job stands: `status` (queued, running, done, failed, stopped), `done` (0 to 1), its `result`, ..."""
        with refusing():
            found = store.get(id)
        state, frame = store.state(found), store.frame(found) or {}
        return {
            "id": found.id,
            "kind": found.kind,
            "title": found.title,
            "status": state.status,
            "words": state.words or frame.get("words", ""),
            "done": 1.0 if state.status == "done" else frame.get("done", 0.0),
            "ahead": store.ahead(found) if state.status == "queued" else 0,
            "result": _TOLD.get(found.kind, _as_it_is)(found, state.result) if state.status == "done" else None,
        }

    def jobs(request: gr.Request) -> list[str]:
        """Ids of this session's jobs, newest first."""
        return [found.id for found in store.jobs(who(request))]

    def cancel(request: gr.Request, id: str = "") -> int:
        """Stop a job by its id, or all that this session has waiting or under way; how many that were."""
        with refusing():
            mine = [store.get(id)] if id else store.jobs(who(request))
        open_jobs = [found for found in mine if not store.state(found).over]
        for found in open_jobs:
            store.stop(found)
        return len(open_jobs)

    gr.api(jobs, api_name="jobs", queue=False)
    gr.api(job, api_name="job", queue=False)
    gr.api(cancel, api_name="cancel", queue=False)


def _told(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a generate job for programs."""
    order = Order.of(job.wants)
    return {
        "images": [file(job.results / name) for name, _ in result["files"]],
        "labels": list(order.labels),
        "archive": file(job.results / result["archive"]),
        "command": order.command(),
        "seconds": result["seconds"],
    }


def _as_it_is(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    return result


_TOLD: dict[str, Callable[[Job, dict[str, Any]], dict[str, Any]]] = {
    "generate": _told,
    "compare": told_comparison,
    "edit": told_edit,
    "reconstruct": told_reconstruction,
    "score": told_score,
}
"""How programs are told the results of each kind of job, if it has files."""
