"""The Tokenizers panel's pieces of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from genlab.studio import markup
from genlab.studio.tokenizer_entries import TokenizerEntry

_MEASURES = {"psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.4f}"), "lpips": ("LPIPS (AlexNet)", "{:.4f}")}
_BAR, _HEIGHT = 4, 28  # pixels of a histogram


def card(entry: TokenizerEntry) -> str:
    """What a tokenizer is."""
    spec, (height, width) = entry.spec, entry.spec.grid
    facts = [escape(entry.system), f"{spec.image_size} × {spec.image_size} pixels"]
    if spec.vocab is None:
        facts.append(f"latents {spec.channels} × {height} × {width}")
    else:
        codes = sum(rows * columns for _, (rows, columns) in entry.groups)
        facts += [f"{codes:,} codes of {spec.vocab:,}", f"{codes * math.log2(spec.vocab):,.0f} bits an image"]
    if entry.data:
        facts.append(f"data {escape(entry.data)}")
    spans = " ".join(f"<span>{fact}</span>" for fact in facts)
    return f'<div class="card"><strong>{escape(entry.name)}</strong> {spans}</div>'


def no_tokenizers(sources: Sequence[str]) -> str:
    """What to do when there is none."""
    looked = ", ".join(f"<code>{escape(source)}</code>" for source in sources)
    return (
        f'<div class="card empty"><strong>No tokenizer in {looked} yet</strong>'
        "<p>The smallest one learns to code handwritten digits in a few minutes: start the recipe"
        " <code>digits/vq</code> in Train, or convert a published one with <code>genlab convert</code>."
        " Generators that work on pixels have none.</p></div>"
    )


def measures(result: Mapping[str, Any]) -> str:
    """How faithful the reconstruction is, and what could not be measured."""
    cells = [f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _measured(result.get("measures", {}))]
    cells.append(f"<div><dt>Time</dt><dd>{moment(result['seconds'])}</dd></div>")
    missing = "".join(f"<li>{escape(words)}</li>" for words in result.get("missing", ()))
    return f'<dl class="measures">{"".join(cells)}</dl><ul class="missing">{missing}</ul>'


def moment(seconds: float) -> str:
    """As `markup.duration`, for what is quick."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1.0 else markup.duration(seconds)


def heading(words: str) -> str:
    """The title of a part of the result."""
    return f'<h2 class="part">{escape(words)}</h2>'


def _measured(found: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [
        (name, "exact" if (value := found[key]) is None else form.format(value))
        for key, (name, form) in _MEASURES.items()
        if key in found
    ]


def usage(found: Mapping[str, Any]) -> str:
    """How many codes each depth or scale uses, in the image and over data."""
    of_data = f"{found['images']} images of {escape(found['data'])}" if found["images"] else ""
    heads = ["", "In this image", *([f"In {of_data}", "Perplexity", "Used codes, by use"] if of_data else [])]
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    rows = "".join(_row(group, found["vocab"]) for group in found["groups"])
    return f'<div class="runs usage"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(group: Mapping[str, Any], vocab: int) -> str:
    cells = [f"{group['used']:,} of {vocab:,} codes ({_percent(group['share'])})"]
    if "bars" in group:
        cells += [_percent(group["data_share"]), f"{group['perplexity']:,.1f}", _histogram(group["bars"])]
    return f'<tr><th scope="row">{escape(group["name"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _histogram(heights: Sequence[float]) -> str:
    """Bars on one line; heights 0..1."""
    bars = "".join(
        f'<rect x="{n * _BAR}" y="{_HEIGHT * (1 - height):.1f}" width="{_BAR - 1}" height="{_HEIGHT * height:.1f}"/>'
        for n, height in enumerate(heights)
    )
    size = f'width="{len(heights) * _BAR}" height="{_HEIGHT}"'
    return f'<svg class="histogram" {size} role="img" aria-label="Histogram of code use">{bars}</svg>'
