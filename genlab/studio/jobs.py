"""The Jobs panel: what this visitor has asked for, and a way to stop it."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.studio import markup
from genlab.studio.panel import QUICK, Updates, asked
from genlab.studio.store import Job, State
from genlab.studio.visitors import who
from genlab.studio.workbench import Workbench

_TICK = 2.0  # seconds between looks
_MOST = 50  # jobs in the list


class JobsPanel:
    """The newest jobs of the visitor."""

    def __init__(self, bench: Workbench, visitor: gr.BrowserState):
        self.bench, self.visitor = bench, visitor
        gr.HTML('<p class="hint">Jobs go on when the page is closed. Results are kept for a day.</p>')
        self.table = gr.HTML(markup.jobs([]))
        with gr.Row():
            self.job = gr.Dropdown([], label="Waiting or under way", scale=4, min_width=200)
            self.stop = gr.Button(
                "Stop this job", variant="stop", interactive=False, size="sm", min_width=120, elem_classes="beside"
            )
        shown: list[Any] = [self.table, self.job, self.stop]
        gr.Timer(_TICK).tick(self._look, [self.visitor, self.job], shown, **QUICK)
        self.stop.click(self._stop, [self.visitor, self.job], shown, **QUICK)
        self._shown = shown

    def on_open(self, opened: Dependency) -> None:
        """Show the list when a page opens."""
        opened.then(self._look, [self.visitor, self.job], self._shown, **QUICK)

    def _look(self, visitor: str, chosen: str | None, request: gr.Request) -> Updates:
        store = self.bench.store
        found = [(job, store.state(job)) for job in store.jobs(who(request, visitor))[:_MOST]]
        open_jobs = [(_line(job, state), job.id) for job, state in found if not state.over]
        ids = [name for _, name in open_jobs]
        value = chosen if chosen in ids else next(iter(ids), None)
        return {
            self.table: markup.jobs([(job, state, self._words(job, state)) for job, state in found]),
            self.job: gr.update(choices=open_jobs, value=value, interactive=bool(ids)),
            self.stop: gr.update(interactive=bool(ids)),
        }

    def _stop(self, visitor: str, chosen: str | None, request: gr.Request) -> Updates:
        job = asked(self.bench.store.get, chosen)
        if job.owner == who(request, visitor):
            self.bench.store.stop(job)
        return self._look(visitor, chosen, request)

    def _words(self, job: Job, state: State) -> str:
        match state.status:
            case "queued":
                return f"{self.bench.store.ahead(job)} before it"
            case "running":
                frame = self.bench.store.frame(job) or {"done": 0.0}
                return f"{frame['done']:.0%}"
            case "done":
                return f"in {markup.duration(state.ended - state.begun)}"
        return state.words


def _line(job: Job, state: State) -> str:
    return f"{job.kind} · {job.title} · {time.strftime('%H:%M', time.localtime(int(job.id[:20]) / 1e9))}"
