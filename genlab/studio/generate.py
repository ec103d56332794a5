"""The Generate panel: choose a generator and classes, watch images form, take them away."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.core.contracts import SamplingSettings
from genlab.studio import choices, markup
from genlab.studio.catalog import Entry
from genlab.studio.gallery import LiveGallery
from genlab.studio.image_panel import ImagePanel
from genlab.studio.inputs import class_picker, whole_number
from genlab.studio.orders import LARGEST_SEED, Order, place
from genlab.studio.panel import QUICK, Updates, Wants, asked
from genlab.studio.remade import order_behind
from genlab.studio.store import Job

_FEW = 10  # classes that are chosen at first
_ROOMY = 16  # up to so many images are shown large


class GeneratePanel(ImagePanel):
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
        self.classes = class_picker()
        with gr.Row():
            self.per_class = whole_number("Images per class", 1, self.bench.limits.images, 4)
            self.seed = whole_number("Seed", 0, LARGEST_SEED, 0)
        with gr.Row():
            self.random_classes = gr.Button("Random classes", size="sm", min_width=120)
            self.random_seed = gr.Button("Random seed", size="sm", min_width=120)
            self.made = gr.UploadButton("Settings from an image", size="sm", min_width=160, file_types=[".png"])
        self.build_controls()

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
        choice: Any = [self.run, self.card, self.classes, self.random_classes, *self.settings_outputs]
        page: Any = [*choice, self.empty, self.advice, self.workspace, self.notes, self.start]
        for button in (self.look, self.look_again):
            button.click(self.refresh, self.run, page, **QUICK)
        self.run.input(self._select, self.run, choice, **QUICK)
        self.random_seed.click(lambda: random.randrange(2**31), None, self.seed, **QUICK)
        self.random_classes.click(self._draw_classes, [self.run, self.classes], self.classes, **QUICK)
        asked_for: Any = [*choice, self.per_class, self.seed]
        self.connect_controls()
        inputs = {self.run, self.classes, self.per_class, self.seed, *self.settings_parts}
        self.connect(inputs, [self.gallery, self.archive, self.command])
        self.made.upload(self._as_made, self.made, asked_for, **self._following)
        self.page_outputs = page

    def on_open(self, opened: Dependency) -> None:
        """Look for generators whenever a page opens."""
        self.load(opened, self.refresh, [self.run], self.page_outputs)

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
        return {
            self.card: markup.run_card(entry),
            self.classes: gr.update(choices=choices.of_classes(entry), value=first, visible=few),
            self.random_classes: gr.update(visible=few),
            **self.show_settings(entry, settings),
        }

    def _draw_classes(self, run: str, classes: list[Any]) -> list[int]:
        entry = asked(self.bench.catalog.get, run)
        count = min(max(len(classes or ()), 1), entry.num_classes)
        return random.sample(range(entry.num_classes), count)

    def order(self, values: Updates) -> tuple[str, Wants]:
        entry = self.bench.catalog.get(values[self.run])
        changes = self.read_settings(entry, values)
        given = values[self.classes], values[self.per_class], values[self.seed]
        order = place(entry, *given, changes, self.bench.limits)
        return entry.name, order.wants()

    def begin(self, job: Job) -> Updates:
        order = Order.of(job.wants)
        few = ["few"] if len(order.labels) <= _ROOMY else []
        return self.ordered([*few, *self.pixel_by_pixel(order.entry)], order.command())
