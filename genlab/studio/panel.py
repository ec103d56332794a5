"""A panel whose work is a job: what all such panels have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from html import escape
from typing import Any, ClassVar, TypeAlias

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency

from genlab.core.errors import GenlabError
from genlab.studio import markup
from genlab.studio.sessions import keeps_up
from genlab.studio.store import Job
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING, News, watch
from genlab.studio.workbench import Workbench

Updates: TypeAlias = dict[Any, Any]
"""Component -> its new value or gr.update."""
Wants: TypeAlias = dict[str, Any]
"""What a job says to the worker."""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUICK: dict[str, Any] = {**PRIVATE, "queue": False, "show_progress": "hidden"}
"""Arguments of events that only touch the page."""


class JobPanel(ABC):
    """Builds itself where it is made. A subclass lays itself out, calls `build_start` within and `connect` at the end.

    Attributes:
        kind: of its jobs, as the worker knows them.
        action: on the button that starts one.
    """

    kind: ClassVar[str]
    action: ClassVar[str]

    def __init__(self, bench: Workbench, visitor: gr.BrowserState):
        self.bench, self.visitor = bench, visitor
        assert Context.root_block is not None  # the page that is being built
        self.page = Context.root_block
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Lay out the panel and connect it."""

    @abstractmethod
    def order(self, values: Updates) -> tuple[str, Wants]:
        """Title and wants of the job that the inputs ask for. Raises GenlabError for what cannot be done."""

    def files(self, values: Updates) -> dict[str, bytes]:
        """What the job is given besides its wants, by name; `Job.given` finds it. Raises GenlabError as `order`."""
        return {}

    @abstractmethod
    def begin(self, job: Job) -> Updates:
        """What a job that has just been asked for, or found again, shows. Raises GenlabError if it cannot be shown."""

    @abstractmethod
    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        """What its newest frame shows."""

    @abstractmethod
    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        """What came of it."""

    @abstractmethod
    def on_open(self, opened: Dependency) -> None:
        """Say by `load` what a page shows when it opens."""

    def build_start(self) -> None:
        """The buttons that start and stop, and the line that says how it goes."""
        with gr.Column(min_width=0, elem_classes="start"):  # on a phone it stays at the lower edge
            with gr.Row():
                self.start = gr.Button(self.action, variant="primary", interactive=False, scale=3)
                self.stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=90)
            self.status = gr.HTML(markup.status("Ready"))
        self.job = gr.State("")

    def connect(self, inputs: set[Any], shown: list[Any]) -> None:
        """Let `start` ask for a job, made of `inputs`, whose course fills `shown`."""
        self._outputs = [self.job, self.status, self.start, self.stop, *shown]
        # "once" would ignore a click soon after Stop; the button is off meanwhile
        self._following = {"show_progress": "hidden", "trigger_mode": "multiple", **PRIVATE, **FOLLOWING}
        self.also_starts(self.start, self.order, inputs)
        self.stop.click(self._stop, self.job, None, **QUICK)

    def also_starts(self, button: gr.Button, order: Callable[[Updates], tuple[str, Wants]], inputs: set[Any]) -> None:
        """Let `button` ask for the job that `order` makes of `inputs`; see `order` above."""

        async def start(values: Updates, request: gr.Request) -> AsyncIterator[Updates]:
            title, wants = asked(order, values)
            files = asked(self.files, values)
            job = asked(self.bench.store.submit, self.kind, who(request, values[self.visitor]), title, wants, files)
            self.bench.workers.ensure()
            async for updates in self._follow(job, request):
                yield updates

        button.click(start, {self.visitor, *inputs}, self._outputs, **self._following)

    def load(
        self, opened: Dependency, refresh: Callable[..., Updates], values: list[Any] | set[Any], shown: list[Any]
    ) -> None:
        """Once a page has `opened`, `refresh(values)` fills `shown`; then its visitor's newest job is followed."""
        found = opened.then(refresh, values, shown, **QUICK)
        found.then(self._attach, self.visitor, self._outputs, **self._following)

    async def _attach(self, visitor: str, request: gr.Request) -> AsyncIterator[Updates]:
        """Follow the visitor's newest job, which another page of theirs may have begun."""
        mine = (job for job in self.bench.store.jobs(who(request, visitor)) if job.kind == self.kind)
        job = next(mine, None)
        if job is None:
            yield {self.status: markup.status("Ready")}
            return
        async for updates in self._follow(job, request):
            yield updates

    async def _follow(self, job: Job, request: gr.Request) -> AsyncIterator[Updates]:
        """What the page shows, from now to the end of the job."""
        try:
            first = self.begin(job)
        except GenlabError:  # its run is gone
            yield {self.status: markup.status("Ready")}
            return
        busy = {self.start: gr.update(interactive=False), self.stop: gr.update(interactive=True)}
        yield first | busy | {self.job: job.id, self.status: markup.status("Preparing")}
        async for news in watch(self.bench.store, job):
            if news.state.over or keeps_up(self.page, request.session_hash):
                yield self._shown(job, news)
        if news.state.status == "failed":
            gr.Warning(escape(news.state.words), title="Not finished")

    def _shown(self, job: Job, news: News) -> Updates:
        state, frame = news.state, news.frame
        at_rest = {self.start: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        match state.status:
            case "queued":
                return {self.status: markup.waiting(news.ahead)}
            case "running":
                return self.forming(job, frame) if frame else {self.status: markup.status("Getting ready")}
            case "done":
                return at_rest | self.finished(job, state.result)
            case "stopped":
                return at_rest | {self.status: markup.status("Stopped")}
        return at_rest | {self.status: markup.status(f"Not finished: {state.words}")}

    def _stop(self, job: str) -> None:
        if job:
            self.bench.store.stop(asked(self.bench.store.get, job))


def asked(work: Callable[..., Any], *given: Any) -> Any:
    """`work(*given)`, with errors that are the visitor's to mend shown on the page, escaped."""
    try:
        return work(*given)
    except GenlabError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error
