"""The named endpoints of the Score panel."""

from __future__ import annotations

from typing import Any

import gradio as gr

from genlab.studio.answers import file, finished, refusing
from genlab.studio.reports import known_reports
from genlab.studio.score_orders import ScoreOrder, place, protocols_for
from genlab.studio.store import Job
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING
from genlab.studio.workbench import Workbench


def score_endpoints(bench: Workbench) -> None:
    """Add `score` and `reports` to the page that is being built."""

    async def score(
        request: gr.Request,
        run: str,
        protocol: str = "",
        samples: int = 0,
        seed: int = 0,
        metrics: list | None = None,
        settings: dict | None = None,
    ) -> dict:
        """Evaluate a generator under a protocol of `genlab evaluate` ("": the one that suits its data).

        `samples` 0: as many images as the protocol says; `metrics`: some of the protocol's; `settings`: changes to
        the sampling. Gives `scores` (value, 95 % interval, by class), `cost`, `warnings`, the `command` that gives the
        same, and `page`, the report as HTML. Stopped, it goes on where it was when the same is asked for again.
        """
        with refusing():
            entry = bench.catalog.get(run)
            offered = {fitting.name: fitting for fitting in protocols_for(entry)}
            name = protocol or next(iter(offered))
            count = samples or (offered[name].samples if name in offered else 0)
            order = place(entry, name, count, seed, metrics, settings)
            job = bench.store.submit("score", who(request), f"{entry.name}, {name}", order.wants())
        return told_score(job, await finished(bench, job))

    def reports() -> list[dict]:
        """All reports on the known runs, newest first, with their scores and what an image costs."""
        found = known_reports(bench.catalog.refresh().entries.values(), bench.store.root)
        return [
            {
                "id": report.id,
                "run": report.entry.id,
                "name": report.label,
                "protocol": report.tree.protocol.name,
                "samples": report.tree.samples,
                "scores": [score.model_dump(mode="json") for score in report.tree.scores],
                "cost": report.saved().cost,
            }
            for report in found
        ]

    gr.api(score, api_name="score", **FOLLOWING)
    gr.api(reports, api_name="reports", queue=False)


def told_score(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a score job for programs."""
    page = file(job.results / result["page"])
    return {**result, "page": page, "command": ScoreOrder.of(job.wants).command()}
