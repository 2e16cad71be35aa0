"""Refuses what other sites make a visitor's browser send, before Gradio reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOREIGN = "This request comes from another site; open the page itself."


class Gate:
    """ASGI middleware: requests of other sites' pages get 403; after each upload ``uploaded`` is called.

    A browser sends ``Origin`` with every request that can change something, and ``Sec-Fetch-Site`` with all. Another
    site may link to the page (a navigation), but not upload to it, call its functions or load its files. Programs
    without a browser send neither header.

    shared   further host names under which the page is known: that of ``--share``
    """

    def __init__(self, app: ASGIApp, *, shared: set[str], uploaded: Callable[[], None]) -> None:
        self._app = app
        self._shared = shared
        self._uploaded = uploaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if is_foreign(str(scope.get("method", "GET")), Headers(scope=scope), self._shared):
            await PlainTextResponse(FOREIGN, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)
        if scope["path"].endswith("/upload"):
            await asyncio.to_thread(self._uploaded)


def is_foreign(method: str, headers: Headers, shared: set[str]) -> bool:
    """Whether a page of another site made the browser send this."""
    own = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower(), *shared} - {""}
    if (origin := headers.get("origin")) is not None:
        return urlsplit(origin).netloc.lower() not in own  # "null", a sandboxed page's, has no host
    navigates = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates
