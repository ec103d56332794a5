"""How the studio looks: quiet colours on Gradio's theming, light and dark, with fonts that every system has."""

from __future__ import annotations

import gradio as gr

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.head h1 { font-size: 1.35rem; font-weight: 600; margin: 0; letter-spacing: -0.01em; }
.head p { margin: 0.1rem 0 0; color: var(--body-text-color-subdued); }
.card { padding: 0.15rem 0.1rem; line-height: 1.7; }
.card span { color: var(--body-text-color-subdued); white-space: nowrap; }
.card span::before { content: "·"; margin: 0 0.45em; }
.card.empty { max-width: 46rem; margin: 1rem auto; }
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
.runs th, .runs td { text-align: left; padding: 0.4rem 0.8rem 0.4rem 0 !important; white-space: nowrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.runs th { font-weight: 500; color: var(--body-text-color-subdued); }
.runs tr.active strong, .runs tr.running strong { color: var(--color-accent); }
.runs progress { width: 4.5rem; height: 6px; vertical-align: middle; margin-right: 0.3rem; }
.jobs td:last-child { white-space: normal; }
.hint { color: var(--body-text-color-subdued); margin: 0; }
.picture { margin: 0; }
.picture img { max-width: 100%; image-rendering: pixelated; min-width: min(100%, 20rem); }
.picture figcaption { font-size: 0.85rem; color: var(--body-text-color-subdued); }
.fields .block { display: flex; flex-direction: column; justify-content: end; }
.beside { align-self: end; flex-grow: 0 !important; height: 2.6rem; }
.pixelated img { image-rendering: pixelated; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) !important; overflow-x: hidden; }
#gallery.few .grid-container { grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)) !important; }
#gallery .thumbnail-lg { aspect-ratio: auto !important; display: flex; flex-direction: column; border-radius: 6px;
  background: var(--background-fill-secondary); }
#gallery .thumbnail-lg img { aspect-ratio: 1; height: auto; width: 100%; }
#gallery .caption-label { position: static; max-width: 100%; border: 0; background: none; font-size: 0.72rem;
  padding: 0.1rem 0.35rem; color: var(--body-text-color-subdued); text-align: center; }
@media (max-width: 640px) {
  .gradio-container main { padding: 0.5rem !important; }
  #gallery { height: 62vh !important; }
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
