"""The Compare panel: the same classes and seed through several models, or through one under several values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from gradio.events import Dependency

from genlab.studio import choices, compare_markup, markup
from genlab.studio.catalog import Entry
from genlab.studio.compare_orders import (
    ADJUSTABLE,
    MODELS,
    VALUES,
    Comparison,
    adjustable,
    compare_models,
    compare_values,
    read_value,
    read_values,
)  # fmt: skip
from genlab.studio.fields import fields_of
from genlab.studio.gallery import LiveGallery
from genlab.studio.inputs import class_picker, whole_number
from genlab.studio.orders import LARGEST_SEED
from genlab.studio.panel import QUICK, JobPanel, Updates, Wants, asked
from genlab.studio.store import Job

_SIDE_BY_SIDE, _ONE = "Models side by side", "One model, several values"
_SUGGESTED = {"steps": (1, 2, 4, 8, 16, 32), "guidance": (1, 1.5, 2, 3, 5)}
_FEW = 10  # classes that are chosen at first
_SMOOTH = 128  # from this side on, images are shown smoothed
_NO_COMMAND = "(genlab sample cannot be asked for these classes)"
_NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
"""A clear pixel, where an image will be."""
Pictures: TypeAlias = list[tuple[str | Path, str]]
"""Files or data URIs, with captions."""


class ComparePanel(JobPanel):
    """Columns of images that differ in one thing."""

    kind = "compare"
    action = "Compare"

    def build(self) -> None:
        self._comparison = lru_cache(maxsize=64)(lambda job: Comparison.of(self.bench.store.get(job).wants))
        self.empty = gr.HTML(visible=False)
        with gr.Column() as self.workspace:
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=300):
                    self._build_subjects()
                with gr.Column(scale=1, min_width=300):
                    self._build_images()
            self.build_start()
            with gr.Column(visible=False) as self.results:
                self.table = gr.HTML()
                self._build_side_by_side()
                self._build_values()
                self._build_taking_away()
        self._connect()

    def _build_subjects(self) -> None:
        self.mode = gr.Radio([_SIDE_BY_SIDE, _ONE], value=_SIDE_BY_SIDE, label="Compare")
        with gr.Row():
            self.runs = gr.Dropdown(
                [], label="Models", multiselect=True, max_choices=MODELS, info=f"Two to {MODELS} of the same classes.",
                scale=4, min_width=180,
            )  # fmt: skip
            self.run = gr.Dropdown([], label="Model", visible=False, scale=4, min_width=180)
            self.look = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        with gr.Row(visible=False) as self.varying:
            self.varied = gr.Dropdown(list(ADJUSTABLE), value="steps", label="Setting", filterable=False, min_width=120)
            self.values = gr.Textbox(label="Values", info=f"Up to {VALUES} numbers.", max_lines=1, min_width=180)

    def _build_images(self) -> None:
        self.classes = class_picker()
        with gr.Row():
            self.per_class = whole_number("Images per class", 1, self.bench.limits.images, 1, min_width=110)
            self.seed = whole_number("Seed", 0, LARGEST_SEED, 0, min_width=110)
            own: dict[str, Any] = {"placeholder": "default", "max_lines": 1, "min_width": 110}  # a number is 0
            self.steps = gr.Textbox(label="Steps", **own)
            self.guidance = gr.Textbox(label="Guidance", **own)

    def _build_side_by_side(self) -> None:
        self.columns: list[Any] = []
        self.titles: list[gr.HTML] = []
        self.galleries: list[Any] = []
        with gr.Row(equal_height=False, elem_classes="side-by-side"):
            for number in range(1, MODELS + 1):
                with gr.Column(visible=False, min_width=140, elem_classes="compared") as column:
                    self.titles.append(gr.HTML())
                    self.galleries.append(_gallery(f"Images of model {number}"))
                self.columns.append(column)

    def _build_values(self) -> None:
        with gr.Column(visible=False) as self.one_model:
            self.slider = gr.Slider(
                1, VALUES, value=1, step=1, label="Value", interactive=False, buttons=[], elem_classes="stops"
            )
            self.large = _gallery("Images of one value")
            gr.HTML(compare_markup.heading("All values, one row for each image"))
            self.strip = _gallery("Images of all values")

    def _build_taking_away(self) -> None:
        self.archive = gr.DownloadButton("Download all as ZIP", interactive=False)
        self.commands = gr.Code(
            label="The same as commands", language="shell", lines=2, max_lines=4, buttons=["copy"], interactive=False,
            wrap_lines=True, show_line_numbers=False, elem_id="compare-commands",
        )  # fmt: skip

    def _connect(self) -> None:
        subject: set[Any] = {self.mode, self.runs, self.run, self.varied, self.classes}
        offered: list[Any] = [self.runs, self.run, self.varying, self.varied, self.steps, self.guidance]
        adapted: list[Any] = [*offered, self.classes, self.values]
        self.page_outputs = [self.empty, self.workspace, self.start, *adapted]
        self.look.click(self._refresh, subject, self.page_outputs, **QUICK)
        for part in (self.mode, self.runs, self.run):
            part.input(self._adapt, subject, adapted, **QUICK)
        self.varied.input(self._choose_setting, subject, [*offered, self.values], **QUICK)
        self.slider.input(self._look_at, [self.job, self.slider], [self.slider, self.large], **QUICK)
        self.subject = subject
        inputs = {*subject, self.values, self.per_class, self.seed, self.steps, self.guidance}
        views = [self.one_model, self.slider, self.large, self.strip, *self.columns, *self.titles, *self.galleries]
        self.connect(inputs, [self.results, self.table, *views, self.archive, self.commands])

    def on_open(self, opened: Dependency) -> None:
        """Look for generators whenever a page opens."""
        self.load(opened, self._refresh, self.subject, self.page_outputs)

    def _refresh(self, values: Updates) -> Updates:
        scan = self.bench.catalog.refresh()
        offered = choices.of_runs(scan)
        ids = [str(name) for _, name in offered]
        many = [name for name in values[self.runs] or () if name in ids]
        many = many or _alike([scan.entries[name] for name in ids])
        one = values[self.run] if values[self.run] in ids else next(iter(ids), None)
        updates = self._adapt({**values, self.runs: many, self.run: one})
        updates[self.runs] |= {"choices": offered, "value": many}
        updates[self.run] |= {"choices": offered, "value": one}
        return {
            self.empty: gr.update(visible=not ids, value=markup.no_runs(self.bench.catalog.sources)),
            self.workspace: gr.update(visible=bool(ids)),
            self.start: gr.update(interactive=bool(ids)),
            **updates,
        }

    def _adapt(self, values: Updates) -> Updates:
        """Offer what the chosen models have. Classes stay chosen where they are still offered."""
        entries = self._chosen(values)
        updates = self._offer(values, entries)
        updates[self.values] = _suggested(updates[self.varied]["value"], entries)
        return updates | {self.classes: _classes(entries, values[self.classes]) if entries else gr.skip()}

    def _choose_setting(self, values: Updates) -> Updates:
        entries = self._chosen(values)
        return {**self._offer(values, entries), self.values: _suggested(values[self.varied], entries)}

    def _offer(self, values: Updates, entries: Sequence[Entry]) -> Updates:
        one = values[self.mode] == _ONE
        able = [name for name in ADJUSTABLE if any(name in adjustable(entry) for entry in entries)]
        varied = values[self.varied] if values[self.varied] in able else next(iter(able), None)
        free = [name for name in able if not (one and name == varied)]
        return {
            self.runs: gr.update(visible=not one),
            self.run: gr.update(visible=one),
            self.varying: gr.update(visible=one),
            self.varied: gr.update(choices=able, value=varied),
            self.steps: gr.update(visible="steps" in free),
            self.guidance: gr.update(visible="guidance" in free),
        }

    def _chosen(self, values: Updates) -> list[Entry]:
        ids = [values[self.run]] if values[self.mode] == _ONE else values[self.runs] or ()
        return [asked(self.bench.catalog.get, name) for name in ids if name]

    def order(self, values: Updates) -> tuple[str, Wants]:
        typed = {"steps": values[self.steps], "guidance": values[self.guidance]}
        changes = {name: read_value(name, text) for name, text in typed.items() if text and text.strip()}
        given = values[self.classes], values[self.per_class], values[self.seed], changes, self.bench.limits
        if values[self.mode] == _ONE:
            entry = self.bench.catalog.get(values[self.run])
            comparison = compare_values(entry, values[self.varied], read_values(values[self.values]), *given)
        else:
            entries = [self.bench.catalog.get(name) for name in values[self.runs] or ()]
            comparison = compare_models(entries, *given)
        return comparison.title, comparison.wants()

    def begin(self, job: Job) -> Updates:
        comparison = self._comparison(job.id)
        orders = comparison.orders
        updates: Updates = {
            self.results: gr.update(visible=True),
            self.one_model: gr.update(visible=bool(comparison.varied)),
            self.archive: gr.update(interactive=False),
            self.commands: "\n".join(order.command() or _NO_COMMAND for order in orders),
        }
        for number, (column, title) in enumerate(zip(self.columns, self.titles)):
            here = number < len(orders) and not comparison.varied
            updates[column] = gr.update(visible=here)
            updates[title] = compare_markup.heading(comparison.heading(number)) if here else ""
        return updates | self._shown_of(job, comparison, ())

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        shown = self._shown_of(job, self._comparison(job.id), frame["columns"])
        return {self.status: markup.working(frame), **shown}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        comparison = self._comparison(job.id)
        shown = self._shown_of(job, comparison, result["columns"])
        if comparison.varied:
            shown[self.slider] |= {"interactive": True}
        images = sum(len(order.labels) for order in comparison.orders)
        return {
            self.status: markup.status(f"{images} images to compare", 1.0),
            self.archive: gr.update(value=job.results / result["archive"], interactive=True),
            **shown,
        }

    def _shown_of(self, job: Job, comparison: Comparison, columns: Sequence[Mapping[str, Any]]) -> Updates:
        """Table and images as far as there are some; the places of the others are kept free."""
        pictures = _pictures(job, comparison, columns)
        updates: Updates = {self.table: compare_markup.table(comparison, columns)}
        if comparison.varied:
            look = _look(comparison.orders[0].entry)
            strip = gr.update(value=_strip(comparison, pictures), columns=len(pictures), elem_classes=[*look, "strip"])
            return updates | self._slid(comparison, pictures, max(len(columns), 1)) | {self.strip: strip}
        begun = len(columns) or len(pictures)  # the places of the others are there since the beginning
        for gallery, found, order in list(zip(self.galleries, pictures, comparison.orders))[:begun]:
            updates[gallery] = gr.update(value=found, elem_classes=_look(order.entry))
        return updates

    def _look_at(self, job: str, number: int) -> Updates:
        """Move the slider of a finished job."""
        found = asked(self.bench.store.get, job)
        comparison, state = asked(self._comparison, job), self.bench.store.state(found)
        if state.status != "done" or not 1 <= number <= len(comparison.orders):
            return {self.slider: gr.skip(), self.large: gr.skip()}
        return self._slid(comparison, _pictures(found, comparison, state.result["columns"]), int(number))

    def _slid(self, comparison: Comparison, pictures: Sequence[Pictures], number: int) -> Updates:
        """The slider at value `number`, from 1, and its images."""
        slider = gr.update(maximum=len(pictures), value=number, label=comparison.heading(number - 1))
        look = _look(comparison.orders[0].entry)
        return {self.slider: slider, self.large: gr.update(value=pictures[number - 1], elem_classes=look)}


def _gallery(label: str, **more: Any) -> Any:
    buttons = ["download", "fullscreen"]
    shape: dict[str, Any] = {"height": "auto", "object_fit": "contain", "fit_columns": False}
    return LiveGallery(label=label, show_label=False, interactive=False, buttons=buttons, **shape, **more)


def _look(entry: Entry) -> list[str]:
    return ["tiles", "free", "fine" if entry.image_size >= _SMOOTH else "pixelated"]


def _alike(entries: Sequence[Entry]) -> list[str]:
    """Two generators of the same classes to begin with, where there are."""
    return [entry.id for entry in entries if entry.num_classes == entries[0].num_classes][:2]


def _classes(entries: Sequence[Entry], chosen: Sequence[Any] | None) -> Updates:
    """An update that offers the classes of the first, "no class" if all have that."""
    first, *others = entries
    offered = choices.of_classes(first)
    if any(entry.null_label is None for entry in others):
        offered = [choice for choice in offered if choice[1] != first.null_label]
    labels = [label for _, label in offered]
    kept = [label for label in chosen or () if label in labels]
    return gr.update(choices=offered, value=kept or labels[: min(first.num_classes, _FEW)], visible=bool(labels))


def _suggested(name: str | None, entries: Sequence[Entry] = ()) -> str:
    """Values of a setting to begin with, that the first generator takes."""
    values = _SUGGESTED.get(name or "", ())
    lowest = [field.low for entry in entries[:1] for field in fields_of(type(entry.sampling)) if field.name == name]
    return ", ".join(f"{value:g}" for value in values if all(low is None or value >= low for low in lowest))


def _pictures(job: Job, comparison: Comparison, columns: Sequence[Mapping[str, Any]]) -> list[Pictures]:
    """What each order shows: finished images, then forming ones, then free places."""
    shown = []
    for number, order in enumerate(comparison.orders):
        column = columns[number] if number < len(columns) else {}
        found = [(job.results / name, caption) for name, caption in column.get("files", ())]
        found += column.get("pictures", ())
        free = range(len(found), len(order.labels))
        shown.append([*found, *((_NOTHING, order.caption(index)) for index in free)])
    return shown


def _strip(comparison: Comparison, pictures: Sequence[Pictures]) -> Pictures:
    """All values of the first image, then of the second, and so on."""
    values = [f"{getattr(order.settings, comparison.varied):g}" for order in comparison.orders]
    return [(picture, value) for row in zip(*pictures) for (picture, _), value in zip(row, values)]
