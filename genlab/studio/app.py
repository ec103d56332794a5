"""The studio: its panels on one page, and its start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from genlab.core.errors import GenlabError
from genlab.studio.access import credentials
from genlab.studio.api import endpoints
from genlab.studio.catalog import Catalog
from genlab.studio.compare import ComparePanel
from genlab.studio.edit import EditPanel
from genlab.studio.generate import GeneratePanel
from genlab.studio.jobs import JobsPanel
from genlab.studio.page import REFUSALS, Page
from genlab.studio.panel import JobPanel
from genlab.studio.score import ScorePanel
from genlab.studio.store import Store
from genlab.studio.theme import CSS, theme
from genlab.studio.ticking import tick_in_sight
from genlab.studio.tokenizers_panel import TokenizersPanel
from genlab.studio.train import TrainPanel
from genlab.studio.uploads import LARGEST_BYTES
from genlab.studio.visitors import greet, visitor_state
from genlab.studio.workbench import Workbench
from genlab.studio.worker import Workers, page_open

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
_FOLDER = ".studio"  # of the first runs folder: the jobs


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


def launch(
    runs: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int | None = 7860,
    share: bool = False,
    auth: str | None = None,
    mcp: bool = False,
    **more: Any,
) -> None:
    """Serve the studio over the generators in `runs` until interrupted. Jobs under way go on, and are found again.

    Args:
        runs: run folders, exports, folders of them, or hub ids.
        host, share: an address that others can reach, or a public one of Gradio's, demands `auth`.
        auth: "user:password".
        mcp: offer the named endpoints as tools to language models (Model Context Protocol).

    Raises:
        GenlabError: open to others without a password, the port is taken, or what `mcp` needs is not installed.
    """
    allowed = credentials(host, share, auth)
    if mcp and find_spec("mcp") is None:
        raise GenlabError("--mcp needs an extra of Gradio's: install gradio[mcp]")
    store = Store(_jobs_folder(runs))
    bench = Workbench(Catalog(runs), store, Workers(store.root, _devices()))
    with page_open(store.root):
        bench.workers.ensure()  # loads what it needs while the page is being built
        page = build(bench)
        try:
            page.launch(
                server_name=host, server_port=port, share=share, auth=allowed, theme=theme(), css=CSS, quiet=True,
                footer_links=["api", "settings"], run_history=False, max_file_size=LARGEST_BYTES, ssr_mode=False,
                prevent_thread_lock=True, mcp_server=mcp, app_kwargs=REFUSALS, **more,
            )  # fmt: skip
            print(f"genlab studio at {page.share_url or page.local_url}", flush=True)
            page.block_thread()
        except OSError as error:
            raise GenlabError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from error
        finally:
            page.close()


def _jobs_folder(runs: Sequence[str | Path]) -> Path:
    """Beside the first folder of runs that can be written to, else in the user's cache, one for each set of `runs`."""
    for source in map(Path, runs):
        if not source.exists() and len(source.parts) == 1:  # `runs` before the first training
            source.mkdir()
        if source.is_dir() and os.access(source, os.W_OK) and not (source / "checkpoints").exists():
            return source / _FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "genlab" / "studio" / hashlib.sha256("\n".join(map(str, runs)).encode()).hexdigest()[:16]


def _devices() -> tuple[str, ...]:
    """Each accelerator has a worker of its own; without one the processor has."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return ("cpu",)
    return tuple(f"{found.type}:{index}" for index in range(torch.accelerator.device_count()))
