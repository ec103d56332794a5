"""The studio's page: its panels and its named endpoints."""

from __future__ import annotations

import gradio as gr

from genlab.studio.api import endpoints
from genlab.studio.compare import ComparePanel
from genlab.studio.edit import EditPanel
from genlab.studio.generate import GeneratePanel
from genlab.studio.jobs import JobsPanel
from genlab.studio.page import Page
from genlab.studio.panel import JobPanel
from genlab.studio.score import ScorePanel
from genlab.studio.ticking import tick_in_sight
from genlab.studio.tokenizers_panel import TokenizersPanel
from genlab.studio.train import TrainPanel
from genlab.studio.visitors import greet, visitor_state
from genlab.studio.workbench import Workbench

_HEAD = "<h1>genlab studio</h1><p>Look at what your generators have learnt.</p>"
PANELS: dict[str, type[JobPanel] | type[JobsPanel]] = {
    "Generate": GeneratePanel,
    "Compare": ComparePanel,
    "Edit": EditPanel,
    "Tokenizers": TokenizersPanel,
    "Score": ScorePanel,
    "Train": TrainPanel,
    "Jobs": JobsPanel,
}


def build(bench: Workbench) -> gr.Blocks:
    """The page with all panels and the named endpoints."""
    gr.set_static_paths([bench.store.results])  # served from where they lie instead of being copied
    with Page(title="genlab studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_HEAD, elem_classes="head")
        visitor = visitor_state(bench.store)
        panels, tabs = [], []
        with gr.Tabs():
            for title, kind in PANELS.items():
                with gr.Tab(title, id=title.lower()) as tab:
                    panels.append(kind(bench, visitor))
                tabs.append(tab)
        tick_in_sight(page, tabs)
        endpoints(bench)
        opened = page.load(greet, visitor, visitor, queue=False, show_progress="hidden", api_visibility="private")
        for panel in panels:
            panel.on_open(opened)
    return page.queue(status_update_rate=2)
