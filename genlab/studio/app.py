"""The studio: its panels on one page, and its start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from genlab.core.errors import GenlabError
from genlab.studio.access import credentials
from genlab.studio.api import endpoints
from genlab.studio.catalog import Catalog
from genlab.studio.generate import GeneratePanel
from genlab.studio.theme import CSS, theme
from genlab.studio.workbench import Workbench

_WAITING = 64  # orders in the queue; more are turned away
_HEAD = "<h1>genlab studio</h1><p>Look at what your generators have learnt.</p>"


def build(bench: Workbench) -> gr.Blocks:
    """The page with all panels and the named endpoints."""
    gr.set_static_paths([bench.outputs.root])  # served from where they lie instead of being copied
    with gr.Blocks(title="genlab studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_HEAD, elem_classes="head")
        panels = [GeneratePanel(bench)]
        endpoints(bench)
        for panel in panels:
            panel.load(page)
    return page.queue(max_size=_WAITING, status_update_rate=2)


def launch(
    runs: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int | None = 7860,
    share: bool = False,
    auth: str | None = None,
    block: bool = True,
    **more: Any,
) -> gr.Blocks:
    """Serve the studio over the generators in `runs` until interrupted.

    Args:
        runs: run folders, exports, folders of them, or hub ids.
        host, share: an address that others can reach, or a public one of Gradio's, demands `auth`.
        auth: "user:password".
        block: False returns at once; the page is closed with `close()`.

    Raises:
        GenlabError: open to others without a password, or the port is taken.
    """
    allowed = credentials(host, share, auth)
    bench = Workbench(Catalog(runs))
    page = build(bench)
    try:
        page.launch(
            server_name=host, server_port=port, share=share, auth=allowed, theme=theme(), css=CSS, quiet=True,
            footer_links=["api", "settings"], run_history=False, max_file_size="1mb", ssr_mode=False,
            prevent_thread_lock=True, **more,
        )  # fmt: skip
        print(f"genlab studio at {page.share_url or page.local_url}", flush=True)
        if block:
            page.block_thread()
    except OSError as error:
        raise GenlabError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from error
    finally:
        if block:
            page.close()
            bench.outputs.close()
    return page
