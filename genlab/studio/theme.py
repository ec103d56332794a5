"""How the studio looks: quiet colours on Gradio's theming, light and dark, with fonts that every system has."""

from __future__ import annotations

import gradio as gr

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.head h1 { font-size: 1.35rem; font-weight: 600; margin: 0; letter-spacing: -0.01em; }
.head p { margin: 0.1rem 0 0; color: var(--body-text-color-subdued); }
.card { padding: 0.15rem 0.1rem; line-height: 1.7; }
.card span { color: var(--body-text-color-subdued); white-space: nowrap; }
.card :is(strong, span):not(:last-child)::after { content: "·"; margin: 0 0.1em 0 0.45em; font-weight: 400;
  color: var(--body-text-color-subdued); }
.card.empty { max-width: 46rem; margin: 1rem auto; }
.card.hint { padding: 0.6rem 0; }
.centred { max-width: 46rem; margin: 0 auto; }
.card pre { padding: 0.6rem 0.8rem; margin: 0.4rem 0; border-radius: 8px; overflow-x: auto;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.notes { color: var(--body-text-color-subdued); font-size: 0.85rem; overflow-wrap: anywhere; }
.notes summary { cursor: pointer; }
.status { height: 2.2rem; }
progress { height: 6px; border: 0; border-radius: 3px; overflow: hidden; appearance: none;
  background: var(--border-color-primary); }
progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: var(--color-accent); }
progress::-moz-progress-bar { background: var(--color-accent); }
.status progress { width: 100%; display: block; }
.status span { display: block; margin-top: 0.4rem; font-variant-numeric: tabular-nums; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; color: var(--body-text-color-subdued); }
.runs { overflow-x: auto; }
.runs table { width: 100%; border: 0 !important; border-collapse: collapse; font-size: 0.85rem;
  font-variant-numeric: tabular-nums; }
.runs tr { border: 0 !important; }
.runs th, .runs td { text-align: left; padding: 0.4rem 0.8rem 0.4rem 0 !important; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.runs th { font-weight: 500; color: var(--body-text-color-subdued); }
.runs tr.active strong, .runs tr.running strong { color: var(--color-accent); }
.runs progress { width: 4.5rem; height: 6px; vertical-align: middle; margin-right: 0.3rem; }
.jobs td:last-child { white-space: normal; min-width: 7rem; }
.live { max-height: 19rem; overflow-y: auto; }
.live thead { position: sticky; top: 0; background: var(--body-background-fill); }
.hint { color: var(--body-text-color-subdued); margin: 0; }
.picture { margin: 0; }
.picture img { max-width: 100%; image-rendering: pixelated; min-width: min(100%, 20rem); }
.picture figcaption { font-size: 0.85rem; color: var(--body-text-color-subdued); }
.fields .block { display: flex; flex-direction: column; justify-content: end; }
.beside { align-self: end; flex-grow: 0 !important; height: 2.6rem; white-space: nowrap; }
:is(#command, #compare-commands, #edit-command) .empty { min-height: 3.6rem !important; height: 3.6rem; }
.pixelated img { image-rendering: pixelated; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) !important; overflow-x: hidden; }
#gallery.few .grid-container { grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)) !important; }
:is(#gallery, .tiles) .thumbnail-lg { aspect-ratio: auto !important; display: flex; flex-direction: column;
  border-radius: 6px; background: var(--background-fill-secondary); }
:is(#gallery, .tiles) .thumbnail-lg img { aspect-ratio: 1; height: auto; width: 100%; }
:is(#gallery, .tiles) .caption-label { position: static; max-width: 100%; border: 0; background: none;
  font-size: 0.72rem; padding: 0.1rem 0.35rem; color: var(--body-text-color-subdued); text-align: center; }
.tiles .grid-container { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important; overflow-x: hidden; }
.free .fixed-height { min-height: 15rem; max-height: none; }
.free .grid-container { grid-template-rows: none; grid-auto-rows: auto; }
.fine .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
.strip { width: fit-content !important; max-width: 100%; }
.strip .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 6.5rem)) !important; }
.strip.fine .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 9rem)) !important; }
.compared-table table { table-layout: fixed; min-width: 36rem; }
.compared-table th, .compared-table td { overflow: hidden; text-overflow: ellipsis; }
.compared-table tbody th { color: var(--body-text-color); }
.column-title { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.stops .tab-like-container, .stops .min_value, .stops .max_value { display: none; }
.triple .grid-container { grid-template-columns: repeat(3, 1fr) !important; }
.part { font-size: 0.95rem !important; font-weight: 500; margin: 0.4rem 0 -0.4rem !important; }
.measured { min-height: 4.6rem; }
.measures { display: flex; flex-wrap: wrap; gap: 0.2rem 1.8rem; margin: 0; }
.measures dt { font-size: 0.8rem; color: var(--body-text-color-subdued); }
.measures dd { margin: 0; font-size: 1.05rem; font-variant-numeric: tabular-nums; }
.missing li { font-size: 0.8rem; list-style: none; margin: 0; overflow-wrap: anywhere;
  color: var(--body-text-color-subdued); }
.missing { padding: 0 !important; margin: 0.3rem 0 0 !important; }
.histogram { fill: var(--color-accent); vertical-align: middle; }
.runs tbody th { font-weight: 500; color: inherit; }
.scores td:last-child { white-space: normal; min-width: 14rem; color: var(--body-text-color-subdued); }
.compared th span { font-weight: 400; font-size: 0.8rem; white-space: normal; color: var(--body-text-color-subdued); }
.compared tbody th { min-width: 12rem; white-space: normal; }
.by-class { font-size: 0.95rem !important; font-weight: 500; margin: 1rem 0 0.2rem !important; }
.classes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 0.4rem 2rem; }
.classes h3 { font-size: 0.8rem; font-weight: 500; margin: 0.3rem 0; color: var(--body-text-color-subdued); }
.class { margin-bottom: 0.5rem; font-size: 0.85rem; }
.class span { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; margin-left: 0.4rem; }
.class img { display: block; max-height: 2.6rem; max-width: 100%; margin-top: 0.15rem; }
.plot svg { width: 100%; height: auto; max-width: 40rem; display: block; margin: 0 auto; }
.plot :is(.tick, .axis, .name) { font-size: 11px; fill: var(--body-text-color-subdued); }
.plot .name { fill: var(--body-text-color); }
.plot .gridline { stroke: var(--border-color-primary); }
.plot .interval { stroke: var(--body-text-color-subdued); stroke-width: 1.2; }
.plot .dot { fill: var(--body-text-color-subdued); }
.plot .dot.best { fill: var(--color-accent); }
.plot .front { fill: none; stroke: var(--color-accent); stroke-width: 1.5; stroke-dasharray: 5 4; }
iframe.report { width: 100%; height: 70vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.canvas { position: relative; width: min(100%, 27rem); aspect-ratio: 1; margin: 0 auto; overflow: hidden;
  border: 1px dashed var(--border-color-primary); border-radius: 6px; background: var(--background-fill-secondary); }
.canvas img, .canvas canvas { position: absolute; margin: 0; image-rendering: pixelated; }
.canvas img { aspect-ratio: 1; object-fit: cover; }
.canvas canvas { inset: 0; width: 100%; height: 100%; touch-action: none; cursor: crosshair; }
.canvas .hint { text-align: center; padding-top: 45%; }
.canvas [hidden], .tools[hidden] { display: none !important; }
.tools { display: flex; flex-wrap: wrap; gap: 0.9rem; align-items: center; justify-content: center; margin-top: 0.5rem;
  font-size: 0.85rem; }
.tools label { display: flex; gap: 0.5rem; align-items: center; }
.tools input { accent-color: var(--color-accent); width: 8rem; }
.tools button { padding: 0.25rem 0.8rem; font-size: inherit; font-weight: 400;
  border-radius: 6px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); cursor: pointer; }
.tools button[aria-pressed=true] { border-color: var(--color-accent); color: var(--color-accent); }
@media (max-width: 640px) {
  .gradio-container main { padding: 0.5rem 0.5rem 7rem !important; }
  .start { position: fixed; inset: auto 0 0; z-index: 40; padding: 0.5rem 0.75rem 0; gap: 0;
    background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary); }
  :is(.live, .jobs) :is(th, td) { padding-right: 0.5rem !important; }
  .live :is(th, td):nth-child(2), .jobs :is(th, td):nth-child(1) { display: none; }
  .jobs td { white-space: normal; overflow-wrap: anywhere; }
  #gallery { height: 62vh !important; }
  .compared .pixelated .grid-container { grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)) !important; }
  .tiles:not(.triple, .strip, .compared *) .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)) !important; }
  .triple { height: 9.2rem !important; }
  .plot :is(.tick, .axis, .name) { font-size: 15px; }
  .triple .caption-label { font-size: 0.66rem !important; padding: 0.15rem 0 !important; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""


def theme() -> gr.themes.Base:
    """The colours and shapes."""
    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    base = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="stone", radius_size="md", font=sans, font_mono=mono
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_info_text_size="*text_xs",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_title_text_color="*neutral_700",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )
