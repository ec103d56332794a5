"""The Generate panel: choose a generator and classes, watch images form, take them away."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.core.errors import GenlabError
from genlab.studio import markup
from genlab.studio.catalog import Entry, Scan
from genlab.studio.controls import Controls
from genlab.studio.fields import settings_classes, without_effect
from genlab.studio.gallery import LiveGallery
from genlab.studio.orders import LARGEST_SEED, Order, merge, place
from genlab.studio.store import Job
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING, News, watch
from genlab.studio.workbench import Workbench

_FEW = 10  # classes that are chosen at first
_SMOOTH = 128  # from this side on, images are shown smoothed
_ROOMY = 16  # up to so many images are shown large
Updates = dict[Any, Any]


class GeneratePanel:
    """Builds itself where it is made; `load` fills it when a page opens."""

    def __init__(self, bench: Workbench, visitor: gr.BrowserState):
        self.bench, self.visitor = bench, visitor
        self._build()
        self._connect()

    def _build(self) -> None:
        with gr.Column(visible=False) as self.empty:
            self.advice = gr.HTML()
            self.look_again = gr.Button("Refresh", variant="primary", elem_classes="centred")
        with gr.Row(equal_height=False) as self.workspace:
            with gr.Column(scale=2, min_width=300):
                self._build_order()
            with gr.Column(scale=3, min_width=300):
                self._build_result()
        self.notes = gr.HTML()

    def _build_order(self) -> None:
        with gr.Row():
            self.run = gr.Dropdown([], label="Run", scale=4, min_width=180)
            self.refresh = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        self.card = gr.HTML()
        searched: dict[str, Any] = {"multiselect": True, "allow_custom_value": True}
        self.classes = gr.Dropdown([], label="Classes", info="Type to search by name or number.", **searched)
        with gr.Row():
            self.per_class = _whole(4, "Images per class", 1, self.bench.limits.images)
            self.seed = _whole(0, "Seed", 0, LARGEST_SEED)
        with gr.Row():
            self.random_classes = gr.Button("Random classes", size="sm", min_width=120)
            self.random_seed = gr.Button("Random seed", size="sm", min_width=120)
        self.controls = [Controls(settings) for settings in settings_classes()]

    def _build_result(self) -> None:
        with gr.Row():
            self.generate = gr.Button("Generate", variant="primary", interactive=False, scale=3)
            self.stop = gr.Button("Stop", variant="stop", interactive=False, scale=1, min_width=90)
        self.job = gr.State("")
        self.status = gr.HTML(markup.status("Ready"))
        shape: dict[str, Any] = {"height": 560, "object_fit": "contain", "fit_columns": False, "elem_id": "gallery"}
        buttons = ["download", "fullscreen"]
        self.gallery = LiveGallery(label="Images", show_label=False, buttons=buttons, interactive=False, **shape)
        self.archive = gr.DownloadButton("Download all as ZIP", interactive=False)
        shown: dict[str, Any] = {
            "buttons": ["copy"],
            "interactive": False,
            "wrap_lines": True,
            "show_line_numbers": False,
        }
        self.command = gr.Code(
            label="The same as a command", language="shell", elem_id="command", lines=2, max_lines=4, **shown
        )

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        quick: dict[str, Any] = {**private, "queue": False, "show_progress": "hidden"}
        parts: set[Any] = {part for controls in self.controls for part in controls.components}
        choice: Any = [self.run, self.card, self.classes, self.random_classes, *self._control_outputs()]
        page: Any = [*choice, self.empty, self.advice, self.workspace, self.notes, self.generate]
        for button in (self.refresh, self.look_again):
            button.click(self._refresh, self.run, page, **quick)
        self.run.input(self._select, self.run, choice, **quick)
        self.random_seed.click(lambda: random.randrange(2**31), None, self.seed, **quick)
        self.random_classes.click(self._draw_classes, [self.run, self.classes], self.classes, **quick)
        for part in parts:
            part.change(self._hide_idle, {self.run, *parts}, list(parts), **quick)
        inputs = {self.run, self.classes, self.per_class, self.seed, self.visitor, *parts}
        self.result: Any = [
            self.job, self.gallery, self.status, self.archive, self.command, self.generate, self.stop
        ]  # fmt: skip
        # "once" would ignore a click soon after Stop; the button is off meanwhile
        self.following: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", **private, **FOLLOWING}
        self.generate.click(self._generate, inputs, self.result, **self.following)
        self.stop.click(self._stop, self.job, None, **quick)
        self.page_outputs = page

    def load(self, opened: Dependency) -> None:
        """Look for generators whenever a page opens, and show again what its visitor has under way."""
        quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        found = opened.then(self._refresh, self.run, self.page_outputs, queue=False, **quick)
        found.then(self._attach, self.visitor, self.result, **self.following)

    def _control_outputs(self) -> list[Any]:
        return [part for controls in self.controls for part in [controls.group, *controls.components]]

    def _refresh(self, current: str | None) -> Updates:
        scan = self.bench.catalog.refresh()
        entries = sorted(scan.entries.values(), key=lambda entry: entry.name)
        chosen = scan.entries.get(current or "") or (entries[0] if entries else None)
        found: Updates = {
            self.notes: markup.notes(scan.notes),
            self.empty: gr.update(visible=not entries),
            self.advice: markup.no_runs(self.bench.catalog.sources),
            self.workspace: gr.update(visible=bool(entries)),
            self.generate: gr.update(interactive=bool(entries)),
            self.run: gr.update(choices=_choices(scan), value=chosen.id if chosen else None),
        }
        if chosen is None:
            return found | {self.card: ""}
        return found if chosen.id == current else found | self._show(chosen)

    def _select(self, run: str) -> Updates:
        return self._show(_asked(self.bench.catalog.get, run))

    def _show(self, entry: Entry) -> Updates:
        choices: list[tuple[str, str | int | float]] = [(_numbered(entry, i), i) for i in range(entry.num_classes)]
        if entry.null_label is not None:
            choices.append(("no class", entry.null_label))
        first = list(range(min(entry.num_classes, _FEW)))
        few = entry.num_classes > 0
        updates: Updates = {
            self.card: markup.run_card(entry),
            self.classes: gr.update(choices=choices, value=first, visible=few),
            self.random_classes: gr.update(visible=few),
        }
        for controls in self.controls:
            if isinstance(entry.sampling, controls.settings):
                updates |= controls.show(entry.sampling, without_effect(entry, entry.sampling), chosen=True)
            else:
                updates[controls.group] = gr.update(visible=False)
        return updates

    def _hide_idle(self, values: Updates) -> Updates:
        try:
            entry = self.bench.catalog.get(values[self.run])
            controls = self._controls(entry)
            settings = merge(entry.sampling, controls.read(values))
        except GenlabError:  # half typed; said when it is used
            return {part: gr.skip() for controls in self.controls for part in controls.components}
        return controls.hide(without_effect(entry, settings))

    def _controls(self, entry: Entry) -> Controls:
        return next(controls for controls in self.controls if isinstance(entry.sampling, controls.settings))

    def _draw_classes(self, run: str, classes: list[Any]) -> list[int]:
        entry = _asked(self.bench.catalog.get, run)
        count = min(max(len(classes or ()), 1), entry.num_classes)
        return random.sample(range(entry.num_classes), count)

    async def _generate(self, values: Updates, request: gr.Request) -> AsyncIterator[Updates]:
        order = _asked(self._order, values)
        owner = who(request, values[self.visitor])
        job = _asked(self.bench.store.submit, "generate", owner, order.entry.name, order.wants())
        self.bench.workers.ensure()
        async for updates in self._follow(job, order):
            yield updates

    async def _attach(self, visitor: str, request: gr.Request) -> AsyncIterator[Updates]:
        """Follow the visitor's newest job, which another page of theirs may have begun."""
        jobs = [job for job in self.bench.store.jobs(who(request, visitor)) if job.kind == "generate"]
        try:
            order = Order.of(jobs[0].wants)
        except (IndexError, GenlabError):  # none, or its run is gone
            yield {self.status: markup.status("Ready")}
            return
        async for updates in self._follow(jobs[0], order):
            yield updates

    async def _follow(self, job: Job, order: Order) -> AsyncIterator[Updates]:
        """What the page shows, from now to the end of the job."""
        yield {
            self.job: job.id,
            self.gallery: gr.update(value=[], elem_classes=_gallery_classes(order)),
            self.status: markup.status("Preparing"),
            self.command: order.command() or "(genlab sample cannot be asked for these classes)",
            self.archive: gr.update(interactive=False),
            self.generate: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
        }
        async for news in watch(self.bench.store, job):
            yield self._shown(job, order, news)
        if news.state.status == "failed":
            gr.Warning(escape(news.state.words), title="Not finished")

    def _shown(self, job: Job, order: Order, news: News) -> Updates:
        total, state, frame = len(order.labels), news.state, news.frame
        at_rest = {self.generate: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        match state.status:
            case "queued":
                return {self.status: markup.waiting(news.ahead)}
            case "running" if frame is None:
                return {self.status: markup.status("Loading the model")}
            case "running":
                assert frame is not None
                pictures = [(picture, _caption(order, index)) for index, picture in frame["pictures"]]
                return {self.gallery: pictures, self.status: markup.progress(frame, total)}
            case "done":
                files = [(job.results / name, _caption(order, i)) for i, name in enumerate(state.result["files"])]
                return at_rest | {
                    self.gallery: files,
                    self.archive: gr.update(value=job.results / state.result["archive"], interactive=True),
                    self.status: markup.finished(total, state.result["seconds"]),
                }
            case "stopped":
                return at_rest | {self.status: markup.status("Stopped")}
        return at_rest | {self.status: markup.status("Not finished")}

    def _order(self, values: Updates) -> Order:
        entry = self.bench.catalog.get(values[self.run])
        changes = self._controls(entry).read(values)
        given = values[self.classes], values[self.per_class], values[self.seed]
        return place(entry, *given, changes, self.bench.limits)

    def _stop(self, job: str) -> None:
        if job:
            self.bench.store.stop(_asked(self.bench.store.get, job))


def _whole(value: int, label: str, low: int, high: int) -> gr.Number:
    return gr.Number(value, label=label, precision=0, minimum=low, maximum=high, step=1, min_width=120)


def _asked(work: Any, *given: Any) -> Any:
    """`work(*given)`, with errors that are the visitor's to mend shown on the page, escaped."""
    try:
        return work(*given)
    except GenlabError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def _choices(scan: Scan) -> list[tuple[str, str | int | float]]:
    """Names, with their folders where two runs bear the same one."""
    entries = sorted(scan.entries.values(), key=lambda entry: (entry.name, entry.source))
    names = [entry.name for entry in entries]
    return [(e.name if names.count(e.name) == 1 else f"{e.name} ({e.source})", e.id) for e in entries]


def _numbered(entry: Entry, label: int) -> str:
    name = entry.class_name(label)
    return name if name == str(label) else f"{label} · {name[:60]}"


def _gallery_classes(order: Order) -> list[str]:
    few = ["few"] if len(order.labels) <= _ROOMY else []
    return few if order.entry.image_size >= _SMOOTH else [*few, "pixelated"]


def _caption(order: Order, index: int) -> str:
    return order.entry.class_name(order.labels[index])
