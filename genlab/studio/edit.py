"""The Edit panel: an image, what of it shall be made anew, and what a generator makes of that."""

from __future__ import annotations

import random
from typing import Any, Literal, TypeAlias

import gradio as gr
from gradio.events import Dependency

from genlab.core.errors import GenlabError
from genlab.studio import choices, edit_markup, markup
from genlab.studio.catalog import Entry, Scan
from genlab.studio.edit_orders import IMAGE, REGIONS, SMALLEST, EditOrder, place_edit
from genlab.studio.edit_pictures import MADE, SENT, take
from genlab.studio.gallery import LiveGallery
from genlab.studio.image_panel import ImagePanel
from genlab.studio.inputs import class_picker, whole_number
from genlab.studio.mask_sheet import drawn_on, mask_sheet
from genlab.studio.orders import LARGEST_SEED
from genlab.studio.panel import QUICK, Updates, Wants, asked
from genlab.studio.picture_input import PictureInput
from genlab.studio.store import Job
from genlab.studio.tokenizer_entries import built_in
from genlab.studio.uploads import receive
from genlab.studio.visitors import who

Way: TypeAlias = Literal["paint", "around", "vary", "parts"]
_WAYS: dict[Way, tuple[str, str]] = {
    "paint": ("In-paint", "mask"),
    "around": ("Out-paint", "mask"),
    "vary": ("Variation", "strength"),
    "parts": ("From a scale on", "parts"),
}
"""Ways to edit: their names, and what a generator must be able to do."""
_DRAWN = ("drawn", "")
_VARIED = 0.6  # strength of a variation at first
_LAST_NUMBER = 10**6


class EditPanel(ImagePanel):
    """An image and classes to images."""

    kind = "edit"
    action = "Make anew"

    def build(self) -> None:
        self.empty = gr.HTML(visible=False)
        with gr.Row(equal_height=False) as self.workspace:
            with gr.Column(scale=1, min_width=300):
                self._build_image()
            with gr.Column(scale=1, min_width=300):
                self._build_result()
        self._connect()

    def _build_image(self) -> None:
        with gr.Row():
            self.run = gr.Dropdown([], label="Run", scale=4, min_width=180)
            self.look = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        self.card = gr.HTML()
        self.source = gr.Radio([("Mine", SENT)], value=SENT, label="Image")
        self.sent = PictureInput(
            label="PNG, JPEG or WebP, up to 16 MB", sources=["upload", "clipboard"], type="filepath", image_mode=None,
            height=180, buttons=[], visible=False, elem_id="edit-sent",
        )  # fmt: skip
        with gr.Row(visible=False) as self.choice:
            self.number = gr.Number(
                0, label="Image number", precision=0, minimum=0, maximum=_LAST_NUMBER, min_width=120
            )
            self.draw = gr.Button("Random image", size="sm", min_width=120, elem_classes="beside")
        self.picture = gr.State(None)
        self.way = gr.Radio([], label="What to do")
        self.sheet = mask_sheet()
        self.region = gr.Dropdown(
            [_DRAWN, *((name, name) for name in REGIONS)], value="", label="Region", filterable=False,
            info="What is drawn over, or a part besides.",
        )  # fmt: skip
        with gr.Row(visible=False) as self.place:
            shape: dict[str, Any] = {"minimum": 0.0, "maximum": 1.0, "step": 0.05, "min_width": 140}
            self.share = gr.Slider(value=0.6, label="Size on the canvas", **{**shape, "minimum": SMALLEST})
            self.left = gr.Slider(value=0.5, label="From left to right", **shape)
            self.top = gr.Slider(value=0.5, label="From top to bottom", **shape)
        self.strength = gr.Slider(
            SMALLEST / 2, 1, 1, step=0.05, label="Strength", visible=False,
            info="How much noise the image gets before it is made anew; at 1 nothing of it is left.",
        )  # fmt: skip
        self.from_scale = gr.Number(
            1, label="From scale", precision=0, minimum=0, maximum=255, step=1, visible=False,
            info="What is coarser stays. Of xAR: cells before this one.",
        )  # fmt: skip

    def _build_result(self) -> None:
        self.classes = class_picker()
        with gr.Row():
            self.per_class = whole_number("Images per class", 1, self.bench.limits.images, 8)
            self.seed = whole_number("Seed", 0, LARGEST_SEED, 0)
        with gr.Accordion("How to sample", open=False):
            self.build_controls()
        self.build_start()
        self.gallery = LiveGallery(
            label="Images", show_label=False, buttons=["download", "fullscreen"], interactive=False, height=460,
            object_fit="contain", columns=4, elem_classes="tiles",
        )  # fmt: skip
        self.archive = gr.DownloadButton("Download all as ZIP", interactive=False)
        self.command = gr.Code(
            label="The same as a command, beside the files of the ZIP", language="shell", lines=2, max_lines=4,
            buttons=["copy"], interactive=False, wrap_lines=True, show_line_numbers=False, elem_id="edit-command",
        )  # fmt: skip

    def _connect(self) -> None:
        image: list[Any] = [self.sent, self.choice, self.number, self.picture, self.sheet]
        ways: list[Any] = [self.sheet, self.region, self.place, self.strength, self.from_scale]
        shown = list(
            dict.fromkeys([self.card, self.source, self.way, self.classes, *self.settings_outputs, *image, *ways])
        )
        sliders = {self.share, self.left, self.top}
        self._read: set[Any] = {self.run, self.way, self.source, self.number, self.sent, self.picture, *sliders}
        self._read.add(self.visitor)
        self._page = [self.run, self.empty, self.workspace, self.start, *shown]
        self.look.click(self._refresh, self._read, self._page, **QUICK)
        self.run.input(self._select, self._read, shown, **QUICK)
        drawn = self.draw.click(lambda: random.randrange(_LAST_NUMBER), None, self.number, **QUICK)
        for event in (self.source.input, self.sent.change, self.number.input, drawn.then):
            event(self._choose, self._read, image, **QUICK)
        self.way.input(self._turn, self._read, ways, **QUICK)
        for slider in sliders:
            slider.change(self._lay, self._read, self.sheet, **QUICK)
        self.connect_controls()
        how = {self.way, self.sheet, self.region, self.strength, self.from_scale, *sliders}
        inputs = {self.run, self.picture, self.classes, self.per_class, self.seed, *how, *self.settings_parts}
        self.connect(inputs, [self.gallery, self.archive, self.command])

    def on_open(self, opened: Dependency) -> None:
        """Look for generators whenever a page opens."""
        self.load(opened, self._refresh, self._read, self._page)

    def _refresh(self, values: Updates, request: gr.Request) -> Updates:
        scan = self.bench.catalog.refresh()
        able = Scan({name: entry for name, entry in scan.entries.items() if entry.edits})
        chosen = able.entries.get(values[self.run] or "") or next(iter(able.entries.values()), None)
        found: Updates = {
            self.run: gr.update(choices=choices.of_runs(able), value=chosen.id if chosen else None),
            self.empty: gr.update(visible=chosen is None, value=edit_markup.nothing_to_edit(len(scan.entries))),
            self.workspace: gr.update(visible=chosen is not None),
            self.start: gr.update(interactive=chosen is not None),
        }
        if chosen is None or chosen.id == values[self.run]:
            return found
        return found | self._show(chosen, values, who(request, values[self.visitor]))

    def _select(self, values: Updates, request: gr.Request) -> Updates:
        entry = asked(self.bench.catalog.get, values[self.run])
        return self._show(entry, values, who(request, values[self.visitor]))

    def _show(self, entry: Entry, values: Updates, owner: str) -> Updates:
        """All that depends on the generator; what is chosen stays as far as it can."""
        ways = [(name, way) for way, (name, needed) in _WAYS.items() if needed in entry.edits]
        way = values[self.way] if values[self.way] in dict(ways).values() else ways[0][1]
        data = list(built_in(entry.image_size, entry.data))
        sources = [*((name, name) for name in data), ("Newest of Generate", MADE), ("Mine", SENT)]
        source = values[self.source] if values[self.sent] else next(iter(data), MADE)
        updates: Updates = {
            self.card: markup.run_card(entry),
            self.source: gr.update(choices=sources, value=source),
            self.way: gr.update(choices=ways, value=way),
            self.classes: gr.update(
                choices=choices.of_classes(entry), value=[0] if entry.num_classes else [], visible=entry.num_classes > 0
            ),
        }
        updates |= self.show_settings(entry, entry.sampling)
        now = {**values, self.way: way, self.source: source}
        try:
            image = self._taken(entry, now, owner)
        except GenlabError:  # nothing made or sent yet
            image = {self.picture: None, **self._inputs(now)}
        now[self.picture] = image[self.picture]
        return updates | image | self._turned(entry, now)

    def _choose(self, values: Updates, request: gr.Request) -> Updates:
        """Another image."""
        entry = asked(self.bench.catalog.get, values[self.run])
        if values[self.source] == SENT and not values[self.sent]:
            return {self.picture: None, self.sheet: self._lay({**values, self.picture: None}), **self._inputs(values)}
        return asked(self._taken, entry, values, who(request, values[self.visitor]))

    def _taken(self, entry: Entry, values: Updates, owner: str) -> Updates:
        """The image that is asked for, on its canvas. Raises GenlabError."""
        if values[self.source] == SENT:
            receive(values[self.sent])
            picture, number = values[self.sent], values[self.number]
        else:
            picture, number = take(self.bench.store, owner, entry, values[self.source], int(values[self.number] or 0))
        sheet = self._lay({**values, self.picture: picture})
        return {self.picture: picture, self.sheet: sheet, self.number: number, **self._inputs(values)}

    def _inputs(self, values: Updates) -> Updates:
        mine = values[self.source] == SENT
        return {self.sent: gr.update(visible=mine), self.choice: gr.update(visible=not mine)}

    def _turn(self, values: Updates) -> Updates:
        return self._turned(asked(self.bench.catalog.get, values[self.run]), values)

    def _turned(self, entry: Entry, values: Updates) -> Updates:
        """What a way to edit needs."""
        way: Way = values[self.way]
        strong = "strength" in entry.edits and way != "parts"
        return {
            self.sheet: self._lay(values),
            self.region: gr.update(visible=way == "paint"),
            self.place: gr.update(visible=way == "around"),
            self.strength: gr.update(visible=strong, value=_VARIED if way == "vary" else 1.0),
            self.from_scale: gr.update(visible=way == "parts"),
        }

    def _lay(self, values: Updates) -> dict[str, Any]:
        """The image on its canvas, as the sheet is told it."""
        way: Way = values[self.way]
        share = values[self.share] if way == "around" else 1.0
        lies = {"share": share, "left": values[self.left], "top": values[self.top], "draw": way == "paint"}
        return {"src": edit_markup.source_of(values[self.picture]), **lies}

    def order(self, values: Updates) -> tuple[str, Wants]:
        entry = self.bench.catalog.get(values[self.run])
        edit = self._edit(entry, values)
        given = values[self.classes], values[self.per_class], values[self.seed]
        order = place_edit(entry, *given, self.read_settings(entry, values), edit, self.bench.limits)
        return entry.name, order.wants()

    def _edit(self, entry: Entry, values: Updates) -> dict[str, Any]:
        """The fields of an Edit that the way has."""
        way: Way = values[self.way]
        strength = values[self.strength] if "strength" in entry.edits else None
        match way:
            case "paint":
                cells = drawn_on(values[self.sheet])
                if not cells and not values[self.region]:
                    raise GenlabError("draw over what shall be made anew, or choose a region")
                return {"cells": cells, "region": values[self.region], "strength": strength}
            case "around":
                if values[self.share] == 1:
                    raise GenlabError("make the image smaller than its canvas: what is around it will be painted")
                lies = {"share": values[self.share], "left": values[self.left], "top": values[self.top]}
                return {**lies, "strength": strength}
            case "vary":
                return {"strength": strength}
            case "parts":
                return {"from_scale": values[self.from_scale]}
        raise GenlabError("choose what to do")

    def files(self, values: Updates) -> dict[str, bytes]:
        picture = values[self.picture]
        return {IMAGE: picture if isinstance(picture, bytes) else receive(picture)}

    def begin(self, job: Job) -> Updates:
        order = EditOrder.of(job.wants)
        return self.ordered(["tiles", *self.pixel_by_pixel(order.entry)], order.command())
