"""An image on its canvas, to draw a mask on.

Gradio's own editor of images draws through WebGL all the time, which stalls browsers without a graphics card, and sends
files of pixels; this one sends a grid of cells, which needs no decoding.

The page is told `src`, `share`, `left`, `top` (see `edit_orders.Edit`) and `draw`, and tells `mask`, the cells row by
row as hexadecimal digits. Another image clears the mask.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from genlab.studio.edit_orders import CELLS

_PAGE = f"""<div class="canvas"><img alt="The image on its canvas"><p class="hint">No image yet</p>
<canvas width="{CELLS}" height="{CELLS}" tabindex="0" role="application" aria-label="Draw over what shall be made anew.
 With the keyboard: arrows move, the space bar draws."></canvas></div>
<div class="tools"><label>Brush <input type="range" min="1" max="16" value="5" aria-label="Size of the brush"></label>
<button type="button" data-do="erase" aria-pressed="false">Erase</button>
<button type="button" data-do="clear">Clear</button></div>"""

_SCRIPT = """
const side = CELLS, cells = new Uint8Array(side * side), cursor = [side / 2, side / 2];
const find = (part) => element.querySelector(part);
let told = {src: "", share: 1, left: 0.5, top: 0.5, draw: true}, erase = false, last = null, keys = false;

function draw() {
  const image = find("img"), canvas = find("canvas"), rest = 1 - told.share;
  image.hidden = !told.src;
  find("p").hidden = Boolean(told.src);
  if (told.src && image.getAttribute("src") !== told.src) image.src = told.src;
  image.style.width = `${100 * told.share}%`;
  image.style.left = `${100 * told.left * rest}%`;
  image.style.top = `${100 * told.top * rest}%`;
  canvas.hidden = find(".tools").hidden = !told.draw || !told.src;
  find("[data-do=erase]").setAttribute("aria-pressed", erase);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, side, side);
  context.fillStyle = "rgba(20, 184, 166, 0.65)";
  cells.forEach((on, i) => on && context.fillRect(i % side, Math.floor(i / side), 1, 1));
  context.strokeStyle = "rgb(20, 184, 166)";
  if (keys) context.strokeRect(cursor[0] - 1.5, cursor[1] - 1.5, 3, 3);
}

function tell() {
  let mask = "";
  for (let i = 0; i < cells.length; i += 4)
    mask += (8 * cells[i] + 4 * cells[i + 1] + 2 * cells[i + 2] + cells[i + 3]).toString(16);
  props.value = {mask: cells.some(Boolean) ? mask : ""};
}

function take() {
  const value = props.value || {};
  if (!("src" in value)) return draw();
  if (value.src !== told.src) cells.fill(0);
  told = value;
  draw();
  if (cells.some(Boolean)) tell();
}

function dab(x, y) {
  const radius = Number(find("input").value) / 2;
  for (let j = 0; j < side; j++)
    for (let i = 0; i < side; i++)
      if (Math.hypot(i + 0.5 - x, j + 0.5 - y) <= radius + 0.5) cells[j * side + i] = erase ? 0 : 1;
}

function stroke(event) {
  const box = find("canvas").getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * side, y = (event.clientY - box.top) / box.height * side;
  const from = last || [x, y], steps = Math.max(Math.ceil(Math.hypot(x - from[0], y - from[1])), 1);
  for (let k = 1; k <= steps; k++) dab(from[0] + (x - from[0]) * k / steps, from[1] + (y - from[1]) * k / steps);
  last = [x, y];
  draw();
}

element.addEventListener("pointerdown", (event) => {
  if (event.target.tagName !== "CANVAS") return;
  event.target.setPointerCapture(event.pointerId);
  keys = false;
  stroke(event);
});
element.addEventListener("pointermove", (event) => last && stroke(event));
for (const end of ["pointerup", "pointercancel"])
  element.addEventListener(end, () => { if (last) { last = null; tell(); } });
element.addEventListener("click", (event) => {
  const work = event.target.dataset.do;
  if (work === "erase") erase = !erase;
  if (work === "clear") { cells.fill(0); erase = false; tell(); }
  if (work) draw();
});
element.addEventListener("keydown", (event) => {
  const moves = {ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2], " ": [0, 0]};
  if (event.target.tagName !== "CANVAS" || !(event.key in moves)) return;
  event.preventDefault();
  keys = true;
  moves[event.key].forEach((step, axis) => cursor[axis] = Math.min(Math.max(cursor[axis] + step, 0), side));
  if (event.key === " ") { dab(...cursor); tell(); }
  draw();
});
watch("value", take);
take();
"""


def mask_sheet() -> gr.HTML:
    """The component; its value is a mapping, see above."""
    return gr.HTML(value={}, html_template=_PAGE, js_on_load=_SCRIPT.replace("CELLS", str(CELLS)), elem_classes="sheet")


def drawn_on(value: Any) -> str:
    """The mask that a page told, unchecked; "" if nothing was drawn."""
    return value.get("mask", "") if isinstance(value, dict) else ""
