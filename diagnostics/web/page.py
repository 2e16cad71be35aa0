"""The page: chat, attention, before / after. ``build`` assembles it, ``serve`` starts it (by default only locally).

handlers   event handlers               layout   components
wiring     events → handlers            views    the numbers that the panes draw in the browser
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from diagnostics.web.gate import Gate
from diagnostics.web.handlers import Page
from diagnostics.web.layout import ASSETS, lay_out
from diagnostics.web.sessions import SESSIONS_MAX
from diagnostics.web.texts import TEXTS
from diagnostics.web.uploads import FILE_MAX_BYTES, bound_waiting
from diagnostics.web.wiring import wire

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
"""The only host names that a page for this machine answers to. Rejects other sites whose name resolves to it (DNS
rebinding)."""
FONTS = [
    "system-ui",
    "Noto Sans CJK SC",
    "sans-serif",
]  # fonts installed on the visitor's machine; none is downloaded


def build(page: Page, *, attention: bool) -> gr.Blocks:
    """The page; without ``attention`` only the chat."""
    with gr.Blocks(
        title=TEXTS["en"]["title"], analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as blocks:
        wire(page, blocks, lay_out(page, attention=attention))
    return blocks


def serve(
    blocks: gr.Blocks,
    *,
    server_name: str = "127.0.0.1",
    server_port: int = 8000,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    inbrowser: bool = False,
    wait: bool = True,
) -> str:
    """Start the page, log its URL and return it; with ``wait``, return only after the server ends.

    Serves no files except visitors' uploads and what is drawn for them.
    """
    hosts = LOOPBACK if server_name in LOOPBACK and not share else ("*",)
    known: set[str] = set()  # the host of --share, once it has one
    gate = Middleware(Gate, shared=known, uploaded=partial(bound_waiting, Path(get_upload_folder())))
    blocks.queue(api_open=False)
    _, address, shared = blocks.launch(
        server_name=server_name,
        server_port=server_port,
        share=share,
        auth=auth,
        inbrowser=inbrowser,
        prevent_thread_lock=True,
        max_file_size=FILE_MAX_BYTES,
        # Gradio keeps .25 MB of each page load, of 10,000 by itself; a session needs its own no longer than it lives.
        state_session_capacity=2 * SESSIONS_MAX,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        quiet=True,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts]), gate]},
        theme=gr.themes.Base(primary_hue="orange", font=FONTS, font_mono=["monospace"]),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
    )
    known |= {urlsplit(shared).netloc.lower()} if shared else set()
    logger.info("%s", " ".join(filter(None, (address, shared))))
    if wait:
        try:
            blocks.block_thread()
        finally:  # before its files are deleted
            blocks.close(verbose=False)
    return address
