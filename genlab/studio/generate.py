"""The Generate panel: choose a generator and classes, watch images form, take them away."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.core.contracts import SamplingSettings
from genlab.core.errors import GenlabError
from genlab.studio import choices, markup
from genlab.studio.catalog import Entry
from genlab.studio.controls import Controls
from genlab.studio.fields import settings_classes, without_effect
from genlab.studio.gallery import LiveGallery
from genlab.studio.orders import LARGEST_SEED, Order, merge, place
from genlab.studio.panel import QUICK, JobPanel, Updates, Wants, asked
from genlab.studio.remade import order_behind
from genlab.studio.store import Job

_FEW = 10  # classes that are chosen at first
_SMOOTH = 128  # from this side on, images are shown smoothed
_ROOMY = 16  # up to so many images are shown large


class GeneratePanel(JobPanel):
    """Classes and a seed to images."""

    kind = "generate"
    action = "Generate"

    def build(self) -> None:
        with gr.Column(visible=False) as self.empty:
            self.advice = gr.HTML()
            self.look_again = gr.Button("Refresh", variant="primary", elem_classes="centred")
        with gr.Row(equal_height=False) as self.workspace:
            with gr.Column(scale=2, min_width=300):
                self._build_order()
            with gr.Column(scale=3, min_width=300):
                self._build_result()
        self.notes = gr.HTML()
        self._connect()

    def _build_order(self) -> None:
        with gr.Row():
            self.run = gr.Dropdown([], label="Run", scale=4, min_width=180)
            self.look = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        self.card = gr.HTML()
        searched: dict[str, Any] = {"multiselect": True, "allow_custom_value": True}
        self.classes = gr.Dropdown([], label="Classes", info="Type to search by name or number.", **searched)
        with gr.Row():
            self.per_class = _whole(4, "Images per class", 1, self.bench.limits.images)
            self.seed = _whole(0, "Seed", 0, LARGEST_SEED)
        with gr.Row():
            self.random_classes = gr.Button("Random classes", size="sm", min_width=120)
            self.random_seed = gr.Button("Random seed", size="sm", min_width=120)
            self.made = gr.UploadButton("Settings from an image", size="sm", min_width=160, file_types=[".png"])
        self.controls = [Controls(settings) for settings in settings_classes()]

    def _build_result(self) -> None:
        self.build_start()
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
        parts: set[Any] = {part for controls in self.controls for part in controls.components}
        choice: Any = [self.run, self.card, self.classes, self.random_classes, *self._control_outputs()]
        page: Any = [*choice, self.empty, self.advice, self.workspace, self.notes, self.start]
        for button in (self.look, self.look_again):
            button.click(self.refresh, self.run, page, **QUICK)
        self.run.input(self._select, self.run, choice, **QUICK)
        self.random_seed.click(lambda: random.randrange(2**31), None, self.seed, **QUICK)
        self.random_classes.click(self._draw_classes, [self.run, self.classes], self.classes, **QUICK)
        asked_for: Any = [*choice, self.per_class, self.seed]
        for controls in self.controls:
            own: list[Any] = controls.components
            changes = [part.change for part in own]
            # an event for each part would make the page heavy; the last of many changes at once is enough
            gr.on(changes, self._hide_idle, {self.run, *own}, own, trigger_mode="always_last", **QUICK)
        inputs = {self.run, self.classes, self.per_class, self.seed, *parts}
        self.connect(inputs, [self.gallery, self.archive, self.command])
        self.made.upload(self._as_made, self.made, asked_for, **self._following)
        self.page_outputs = page

    def on_open(self, opened: Dependency) -> None:
        """Look for generators whenever a page opens."""
        self.load(opened, self.refresh, [self.run], self.page_outputs)

    def _control_outputs(self) -> list[Any]:
        return [part for controls in self.controls for part in [controls.group, *controls.components]]

    def refresh(self, current: str | None) -> Updates:
        scan = self.bench.catalog.refresh()
        entries = sorted(scan.entries.values(), key=lambda entry: entry.name)
        chosen = scan.entries.get(current or "") or (entries[0] if entries else None)
        found: Updates = {
            self.notes: markup.notes(scan.notes),
            self.empty: gr.update(visible=not entries),
            self.advice: markup.no_runs(self.bench.catalog.sources),
            self.workspace: gr.update(visible=bool(entries)),
            self.start: gr.update(interactive=bool(entries)),
            self.run: gr.update(choices=choices.of_runs(scan), value=chosen.id if chosen else None),
        }
        if chosen is None:
            return found | {self.card: ""}
        return found if chosen.id == current else found | self._show(chosen)

    def _select(self, run: str) -> Updates:
        return self._show(asked(self.bench.catalog.get, run))

    def _as_made(self, sent: str) -> Updates:
        """The settings that an uploaded image was made with."""
        scan = self.bench.catalog.refresh()
        order = asked(order_behind, sent, scan, self.bench.limits)
        return {
            **self._show(order.entry, order.settings),
            self.run: gr.update(choices=choices.of_runs(scan), value=order.entry.id),
            self.classes: gr.update(
                choices=choices.of_classes(order.entry), value=list(order.classes), visible=bool(order.classes)
            ),
            self.per_class: order.per_class,
            self.seed: order.seed,
        }

    def _show(self, entry: Entry, settings: SamplingSettings | None = None) -> Updates:
        """The controls for a run, set to `settings` or its own."""
        settings = settings or entry.sampling
        first = list(range(min(entry.num_classes, _FEW)))
        few = entry.num_classes > 0
        updates: Updates = {
            self.card: markup.run_card(entry),
            self.classes: gr.update(choices=choices.of_classes(entry), value=first, visible=few),
            self.random_classes: gr.update(visible=few),
        }
        for controls in self.controls:
            if isinstance(entry.sampling, controls.settings):
                updates |= controls.show(settings, without_effect(entry, settings), chosen=True)
            else:
                updates[controls.group] = gr.update(visible=False)
        return updates

    def _hide_idle(self, values: Updates) -> Updates:
        try:
            entry = self.bench.catalog.get(values[self.run])
            controls = self._controls(entry)
            settings = merge(entry.sampling, controls.read(values))
        except (GenlabError, KeyError):  # half typed, which is said when it is used; or of another run than is chosen
            return {part: gr.skip() for part in values if part is not self.run}
        return controls.hide(without_effect(entry, settings))

    def _controls(self, entry: Entry) -> Controls:
        return next(controls for controls in self.controls if isinstance(entry.sampling, controls.settings))

    def _draw_classes(self, run: str, classes: list[Any]) -> list[int]:
        entry = asked(self.bench.catalog.get, run)
        count = min(max(len(classes or ()), 1), entry.num_classes)
        return random.sample(range(entry.num_classes), count)

    def order(self, values: Updates) -> tuple[str, Wants]:
        entry = self.bench.catalog.get(values[self.run])
        changes = self._controls(entry).read(values)
        given = values[self.classes], values[self.per_class], values[self.seed]
        order = place(entry, *given, changes, self.bench.limits)
        return entry.name, order.wants()

    def begin(self, job: Job) -> Updates:
        order = Order.of(job.wants)
        return {
            self.gallery: gr.update(value=[], elem_classes=_gallery_classes(order)),
            self.command: order.command() or "(genlab sample cannot be asked for these classes)",
            self.archive: gr.update(interactive=False),
        }

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        return {self.gallery: frame["pictures"], self.status: markup.progress(frame)}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        return {
            self.gallery: [(job.results / name, caption) for name, caption in result["files"]],
            self.archive: gr.update(value=job.results / result["archive"], interactive=True),
            self.status: markup.finished(len(result["files"]), result["seconds"]),
        }


def _whole(value: int, label: str, low: int, high: int) -> gr.Number:
    return gr.Number(value, label=label, precision=0, minimum=low, maximum=high, step=1, min_width=120)


def _gallery_classes(order: Order) -> list[str]:
    few = ["few"] if len(order.labels) <= _ROOMY else []
    return few if order.entry.image_size >= _SMOOTH else [*few, "pixelated"]
