"""The Tokenizers panel: what an image loses on its way through a tokenizer, and the codes in between."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.studio import markup, tokenizer_markup
from genlab.studio.catalog import Scan
from genlab.studio.gallery import LiveGallery
from genlab.studio.panel import QUICK, JobPanel, Updates, Wants, asked
from genlab.studio.picture_input import PictureInput
from genlab.studio.store import Job
from genlab.studio.tokenizer_entries import TokenizerEntry
from genlab.studio.tokenizer_orders import LAST_NUMBER, MOST_COUNTED, UPLOAD, TokenizerOrder, place
from genlab.studio.uploads import receive

_SENT = ("An image of mine", "")
_SMOOTH = 128  # from this side on, images are shown smoothed
_ROW, _ONE_ROW, _TWO_ROWS = 5, 190, 350  # pictures in a row on a wide screen; heights in pixels


class TokenizersPanel(JobPanel):
    """An image to its codes and back."""

    kind = "reconstruct"
    action = "Reconstruct"

    def build(self) -> None:
        self.empty = gr.HTML(visible=False)
        with gr.Row(equal_height=False) as self.workspace:
            with gr.Column(scale=2, min_width=300):
                self._build_order()
            with gr.Column(scale=3, min_width=300):
                self._build_result()
        self._connect()

    def _build_order(self) -> None:
        with gr.Row():
            self.tokenizer = gr.Dropdown([], label="Tokenizer", scale=4, min_width=180)
            self.look = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        self.card = gr.HTML()
        self.data = gr.Radio([_SENT], value="", label="Image")
        self.sent = PictureInput(
            label="An image of mine", show_label=False, elem_id="sent",
            placeholder="Drop a PNG, JPEG or WebP here, up to 16 MB",
            sources=["upload", "clipboard"], type="filepath", image_mode=None, height=240, buttons=[],
        )  # fmt: skip
        with gr.Row(visible=False) as self.choice:
            self.number = gr.Number(0, label="Image number", precision=0, minimum=0, maximum=LAST_NUMBER, min_width=120)
            self.draw = gr.Button("Random image", size="sm", min_width=120, elem_classes="beside")
        self.counted = gr.Slider(
            0, MOST_COUNTED, 64, step=16, label="Images to count codes over", info="0: only the image itself."
        )

    def _build_result(self) -> None:
        self.build_start()
        self.images = _gallery("Image, reconstruction and difference", 270, elem_classes="tiles triple")
        self.measures = gr.HTML(elem_classes="measured")
        with gr.Column(visible=False) as self.steps_part:
            gr.HTML(tokenizer_markup.heading("From the first codes alone"))
            self.steps = _gallery("From the first codes alone", elem_classes="tiles")
        with gr.Column(visible=False) as self.codes_part:
            self.codes_title = gr.HTML()
            self.codes = _gallery("Codes", elem_classes="tiles pixelated")
        self.usage = gr.HTML()

    def _connect(self) -> None:
        selected: Any = [self.card, self.data, self.sent, self.choice, self.counted]
        self._page_outputs: Any = [self.tokenizer, self.empty, self.workspace, self.start, *selected]
        self.look.click(self._refresh, [self.tokenizer, self.data], self._page_outputs, **QUICK)
        self.tokenizer.input(self._select, [self.tokenizer, self.data], selected, **QUICK)
        self.data.change(self._choose, self.data, [self.sent, self.choice], **QUICK)
        self.draw.click(lambda: random.randint(0, LAST_NUMBER), None, self.number, **QUICK)
        inputs = {self.tokenizer, self.data, self.sent, self.number, self.counted}
        parts = [self.steps_part, self.steps, self.codes_part, self.codes_title, self.codes]
        self.connect(inputs, [self.images, self.measures, *parts, self.usage])

    def on_open(self, opened: Dependency) -> None:
        """Look for tokenizers whenever a page opens."""
        self.load(opened, self._refresh, [self.tokenizer, self.data], self._page_outputs)

    def _refresh(self, current: str | None, data: str) -> Updates:
        scan = self.bench.catalog.refresh()
        chosen = scan.tokenizers.get(current or "") or next(iter(_sorted(scan)), None)
        found: Updates = {
            self.tokenizer: gr.update(
                choices=[(entry.name, entry.id) for entry in _sorted(scan)], value=chosen.id if chosen else None
            ),
            self.empty: gr.update(
                visible=chosen is None, value=tokenizer_markup.no_tokenizers(self.bench.catalog.sources)
            ),
            self.workspace: gr.update(visible=chosen is not None),
            self.start: gr.update(interactive=chosen is not None),
        }
        return found if chosen is None or chosen.id == current else found | self._show(chosen, None)

    def _select(self, tokenizer: str, data: str) -> Updates:
        return self._show(asked(self.bench.catalog.get_tokenizer, tokenizer), data)

    def _show(self, entry: TokenizerEntry, data: str | None) -> Updates:
        """The controls for a tokenizer; `data` stays chosen if it is offered, None: take the tokenizer's first."""
        offered = [*entry.samples, ""]
        chosen = data if data in offered else offered[0]
        return {
            self.card: tokenizer_markup.card(entry),
            self.data: gr.update(choices=[*((name, name) for name in entry.samples), _SENT], value=chosen),
            self.counted: gr.update(visible=bool(entry.groups and entry.samples)),
            **self._choose(chosen),
        }

    def _choose(self, data: str) -> Updates:
        return {self.sent: gr.update(visible=data == ""), self.choice: gr.update(visible=data != "")}

    def order(self, values: Updates) -> tuple[str, Wants]:
        entry = self.bench.catalog.get_tokenizer(values[self.tokenizer])
        order = place(entry, values[self.data], values[self.number], values[self.counted])
        return entry.name, order.wants()

    def files(self, values: Updates) -> dict[str, bytes]:
        """The image, if it is one of the visitor's."""
        return {} if values[self.data] else {UPLOAD: receive(values[self.sent])}

    def begin(self, job: Job) -> Updates:
        entry = TokenizerOrder.of(job.wants).entry
        look = [] if entry.spec.image_size >= _SMOOTH else ["pixelated"]
        title = "Codes, each in a colour of its own" if entry.groups else "Channels of the latent"
        height = _TWO_ROWS if (len(entry.groups) or entry.spec.channels) > _ROW else _ONE_ROW
        return {
            self.images: gr.update(value=[], elem_classes=["tiles", "triple", *look]),
            self.measures: "",
            self.steps_part: gr.update(visible=len(entry.groups) > 1),
            self.steps: gr.update(value=[], height=height, elem_classes=["tiles", *look]),
            self.codes_part: gr.update(visible=True),
            self.codes_title: tokenizer_markup.heading(title),
            self.codes: gr.update(value=[], height=height),
            self.usage: "",
        }

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        return {self.status: markup.working(frame), **self._shown_of(job, frame.get("partial", {}))}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        words = f"Reconstructed in {tokenizer_markup.moment(result['seconds'])}"
        return {self.status: markup.status(words, 1.0), **self._shown_of(job, result)}

    def _shown_of(self, job: Job, result: Mapping[str, Any]) -> Updates:
        """What there is of a result so far."""
        parts = {"images": self.images, "steps": self.steps, "codes": self.codes}
        shown: Updates = {
            gallery: [(job.results / file, caption) for file, caption in result[part]]
            for part, gallery in parts.items()
            if part in result
        }
        if "measures" in result:
            shown[self.measures] = tokenizer_markup.measures(result)
        if "usage" in result:
            shown[self.usage] = tokenizer_markup.usage(result["usage"])
        return shown


def _gallery(label: str, height: int = _ONE_ROW, **more: Any) -> Any:
    shape: dict[str, Any] = {"height": height, "object_fit": "contain", "fit_columns": False}
    buttons = ["download", "fullscreen"]
    return LiveGallery(label=label, show_label=False, interactive=False, buttons=buttons, **shape, **more)


def _sorted(scan: Scan) -> list[TokenizerEntry]:
    return sorted(scan.tokenizers.values(), key=lambda entry: entry.name)
