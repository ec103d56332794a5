"""The studio's start."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from genlab.core.errors import GenlabError
from genlab.studio.access import credentials
from genlab.studio.store import Store
from genlab.studio.worker import Workers, page_open

_FOLDER = ".studio"  # of the first runs folder: the jobs


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
    if mcp:
        _check_mcp()
    with _quick_start():
        import torch

        from genlab.studio.catalog import Catalog
        from genlab.studio.page import ARGUMENTS
        from genlab.studio.panels import build
        from genlab.studio.sessions import Sessions
        from genlab.studio.theme import CSS, theme
        from genlab.studio.workbench import Workbench

        store = Store(_jobs_folder(runs))
        bench = Workbench(Catalog(runs), store, Workers(store.root, _devices(torch.accelerator)))
        page = build(bench)
    with page_open(store.root):
        try:
            with _listening(host, port):
                page.launch(
                    server_name=host, server_port=port, share=share, auth=allowed, theme=theme(), css=CSS, quiet=True,
                    footer_links=["api", "settings"], run_history=False, ssr_mode=False, prevent_thread_lock=True,
                    mcp_server=mcp, **ARGUMENTS, **more,
                )  # fmt: skip
            page.app.state_holder = Sessions(page)
            print(f"genlab studio at {page.share_url or page.local_url}", flush=True)
            bench.workers.ensure()  # loads what it needs while the page is being opened
            page.block_thread()
        finally:
            page.close()


@contextmanager
def _listening(host: str, port: int | None) -> Iterator[None]:
    """Raises GenlabError if the block cannot have the address."""
    try:
        yield
    except OSError as error:
        raise GenlabError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from error


def _check_mcp() -> None:
    """Raises GenlabError unless the package that Gradio needs for the Model Context Protocol is here."""
    try:
        found = version("mcp")
    except PackageNotFoundError:
        found = "not installed"
    if not found.startswith("1."):
        raise GenlabError(f'--mcp needs version 1 of the package mcp, which is {found}: pip install "mcp>=1.21,<2"')


@contextmanager
def _quick_start() -> Iterator[None]:
    """What is imported and built in the block stays; looking for garbage in it would take a second or two."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _jobs_folder(runs: Sequence[str | Path]) -> Path:
    """Beside the first folder of runs that can be written to, else in the user's cache, one for each set of `runs`."""
    for source in map(Path, runs):
        if not source.exists() and len(source.parts) == 1:  # `runs` before the first training
            source.mkdir()
        if source.is_dir() and os.access(source, os.W_OK) and not (source / "checkpoints").exists():
            return source / _FOLDER
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "genlab" / "studio" / hashlib.sha256("\n".join(map(str, runs)).encode()).hexdigest()[:16]


def _devices(accelerator: Any) -> tuple[str, ...]:
    """Each accelerator has a worker of its own; without one the processor has."""
    found = accelerator.current_accelerator(check_available=True)
    if found is None:
        return ("cpu",)
    return tuple(f"{found.type}:{index}" for index in range(accelerator.device_count()))
