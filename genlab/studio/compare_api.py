"""The named endpoint of the Compare panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genlab.core.errors import GenlabError
from genlab.studio.answers import changes, file, finished, refusing
from genlab.studio.compare_orders import Comparison, compare_models, compare_values
from genlab.studio.store import Job
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING
from genlab.studio.workbench import Workbench


def compare_endpoint(bench: Workbench) -> None:
    """Add `compare` to the page that is being built."""

    def ordered(
        runs: list, varied: str, values: list | None, classes: list, per_class: int, seed: int, changes: dict
    ) -> Comparison:
        if not isinstance(runs, list):
            raise GenlabError("runs: a list of ids is wanted")
        entries = [bench.catalog.get(run) for run in runs]
        given = classes, per_class, seed, changes, bench.limits
        if not varied and not values:
            return compare_models(entries, *given)
        if len(entries) != 1:
            raise GenlabError(f"values of one model are compared: got {len(entries)} models")
        return compare_values(entries[0], varied, values, *given)

    async def compare(
        request: gr.Request,
        runs: list,
        classes: list,
        per_class: int = 1,
        seed: int = 0,
        settings: dict | None = None,
        varied: str = "",
        values: list | None = None,
    ) -> dict:
        """The same classes and seed through two to four `runs`, or through one for each of `values` of `varied`.

        `settings` may change `steps` and `guidance` for all that have them; `varied` is one of these. Gives `columns`,
        each with its `run`, `sampling` settings, `images` (PNG files), `parameters`, `evaluations` of the network and
        `seconds` for an image, and the `command` that makes the same; the `labels`; and an `archive` of all.
        """
        with refusing():
            comparison = ordered(runs, varied, values, classes, per_class, seed, changes(settings))
            job = bench.store.submit("compare", who(request), comparison.title, comparison.wants())
        return told_comparison(job, await finished(bench, job))

    gr.api(compare, api_name="compare", **FOLLOWING)


def told_comparison(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a compare job for programs."""

    comparison = Comparison.of(job.wants)
    columns = [
        {
            "run": order.entry.id,
            "name": order.entry.name,
            "sampling": order.settings.model_dump(mode="json"),
            "images": [file(job.results / name) for name, _ in column["files"]],
            "parameters": column["parameters"],
            "evaluations": column["evaluations"],
            "seconds": column["seconds"],
            "command": order.command(),
        }
        for order, column in zip(comparison.orders, result["columns"])
    ]
    return {
        "columns": columns,
        "labels": list(comparison.orders[0].labels),
        "archive": file(job.results / result["archive"]),
    }
