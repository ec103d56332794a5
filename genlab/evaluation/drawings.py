"""Pictures inside reports: image grids as PNG data, plots as SVG that follows the page's light or dark colours."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

_WIDTH, _HEIGHT = 460, 330
_MARGIN, _EDGE = 52, 12  # with ticks and titles, and without


def grid_png(images: Tensor, columns: int = 8, cell: int = 72) -> str:
    """uint8 images [n,3,R,R] as the base64 of one PNG; small ones are enlarged without smoothing to about `cell`."""
    size = images.shape[-1]
    if size <= cell:
        factor = max(1, cell // size)
        images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    gap, side = 4, images.shape[-1]
    rows = -(-len(images) // columns)
    sheet = torch.zeros(4, rows * (side + gap) - gap, columns * (side + gap) - gap, dtype=torch.uint8)  # clear gaps
    for number, image in enumerate(images):
        top, left = (side + gap) * (number // columns), (side + gap) * (number % columns)
        sheet[:3, top : top + side, left : left + side] = image
        sheet[3, top : top + side, left : left + side] = 255
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy(), "RGBA")
    limit = columns * 2 * cell
    if picture.width > limit:
        picture = picture.resize((limit, round(picture.height * limit / picture.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


@dataclass(frozen=True)
class Point:
    """One point of a plot."""

    x: float
    y: float
    label: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    front: bool = False
    """On the Pareto front."""


@dataclass(frozen=True)
class Axis:
    """One axis: its words, range and scale."""

    title: str
    low: float
    high: float
    log: bool = False
    rising: bool = False
    """More is better, as of images per second; costs are better if lower."""

    def place(self, value: float) -> float:
        """0..1 along the axis."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = self.high / self.low < 100
            values = [m * 10.0**d for d in decades for m in ((1, 2, 5) if fine else (1,))]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
            values = [
                step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
        return [value for value in values if self.low <= value <= self.high * (1 + 1e-9)]


def axis_for(title: str, values: Sequence[float], rising: bool = False) -> Axis:
    """An axis around `values`: logarithmic where they are positive and span more than a factor of four."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 4:
        return Axis(title, low / 1.5, high * 1.5, log=True, rising=rising)
    pad = 0.15 * (high - low) or 0.15 * abs(high) or 1.0
    return Axis(title, max(low - pad, 0.0) if low >= 0 else low - pad, high + pad, rising=rising)


def plot_svg(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """A scatter plot with intervals and, through the points marked `front`, a stepped front."""
    right, bottom = _WIDTH - _EDGE, _HEIGHT - _MARGIN
    title = html.escape(f"{y.title} against {x.title}")
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">']
    for value in x.ticks():
        parts.append(_line("gridline", _px(x, value), _EDGE, _px(x, value), bottom))
        parts.append(_text("tick", "middle", f"{value:g}", f'x="{_px(x, value):.1f}" y="{bottom + 16}"'))
    for value in y.ticks():
        parts.append(_line("gridline", _MARGIN, _py(y, value), right, _py(y, value)))
        parts.append(_text("tick", "end", f"{value:g}", f'x="{_MARGIN - 8}" y="{_py(y, value) + 4:.1f}"'))
    parts.append(_text("axis", "middle", x.title, f'x="{(_MARGIN + right) / 2}" y="{_HEIGHT - 10}"'))
    parts.append(_text("axis", "middle", y.title, f'transform="translate(14 {bottom / 2}) rotate(-90)"'))
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    if len(front) > 1:
        steps = [f"M{_px(x, front[0].x):.1f} {_py(y, front[0].y):.1f}"]
        moves = [(f"H{_px(x, point.x):.1f}", f"V{_py(y, point.y):.1f}") for point in front[1:]]
        steps += [down + across if x.rising else across + down for across, down in moves]
        parts.append(f'<path class="front" d="{"".join(steps)}"/>')
    parts += [mark for point in points for mark in _marks(point, x, y)]
    return "".join([*parts, "</svg>"])


def pareto(points: Sequence[tuple[float, float]], better: str) -> list[bool]:
    """Which (cost, quality) points no other one beats in both, less cost and `better` ("lower", "higher") quality."""
    sign = -1.0 if better == "higher" else 1.0
    signed = [(cost, sign * quality) for cost, quality in points]
    return [not any(a[0] <= b[0] and a[1] <= b[1] and a != b for a in signed) for b in signed]


def _marks(point: Point, x: Axis, y: Axis) -> list[str]:
    """A point's intervals, dot and name; the name goes where there is room."""
    px, py = _px(x, point.x), _py(y, point.y)
    marks = []
    if point.x_interval:
        a, b = (_px(x, min(max(value, x.low), x.high)) for value in point.x_interval)
        marks.append(_line("interval", a, py, b, py))
    if point.y_interval:
        a, b = (_py(y, min(max(value, y.low), y.high)) for value in point.y_interval)
        marks.append(_line("interval", px, a, px, b))
    marks.append(f'<circle class="{"dot best" if point.front else "dot"}" cx="{px:.1f}" cy="{py:.1f}" r="5"/>')
    anchor, across = ("end", px - 10) if px > 0.7 * _WIDTH else ("start", px + 10)
    down = py + 18 if py < 3 * _EDGE else py - 8
    marks.append(_text("name", anchor, point.label, f'x="{across:.1f}" y="{down:.1f}"'))
    return marks


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(css: str, anchor: str, words: str, place: str) -> str:
    return f'<text class="{css}" text-anchor="{anchor}" {place}>{html.escape(words)}</text>'


def _px(axis: Axis, value: float) -> float:
    return _MARGIN + axis.place(value) * (_WIDTH - _MARGIN - _EDGE)


def _py(axis: Axis, value: float) -> float:
    return (_HEIGHT - _MARGIN) - axis.place(value) * (_HEIGHT - _MARGIN - _EDGE)
