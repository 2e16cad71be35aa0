"""Connects events to handlers, and handlers' results to components."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from diagnostics.web.handlers import Page, Step
from diagnostics.web.layout import Comparison, Layout
from diagnostics.web.sessions import Place
from diagnostics.web.texts import Language

_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {"show_progress": "hidden", **_PRIVATE}
_AT_ONCE: dict[str, Any] = {"concurrency_limit": None, **_QUIET}
"""Visitors who may wait for an answer at the same time; the engine queues them."""


def wire(page: Page, blocks: gr.Blocks, layout: Layout) -> None:
    """Connect every event of the page, inside its ``gr.Blocks``."""
    if layout.comparison is not None:
        _wire_comparison(page, layout, layout.comparison)
    attention: Any = layout.attention or gr.State("")  # without attention there is no pane
    _wire_chat(page, layout, attention)
    _wire_language(page, layout, attention)
    _wire_visit(page, blocks, layout, attention)


def _wire_comparison(page: Page, layout: Layout, tab: Comparison) -> None:
    def compare_two(
        key: str, language: Language, before: str, after: str, question: str, picture: str | None
    ) -> Iterator[Any]:
        yield from page.compare(key, language, (before, after), question, picture)

    def compare_all(key: str, language: Language, question: str, picture: str | None) -> Iterator[Any]:
        names = [name for _, name in page.checkpoints.names()]
        yield from page.compare(key, language, names, question, picture)

    visitor, asked, shown = (
        [layout.session, layout.language],
        [tab.question, tab.picture],
        [tab.pane, tab.status],
    )
    tab.compare.click(compare_two, [*visitor, tab.before, tab.after, *asked], shown, **_AT_ONCE)
    tab.compare_all.click(compare_all, [*visitor, *asked], shown, **_AT_ONCE)
    tab.stop.click(page.stop, layout.session, None, queue=False, **_PRIVATE)


def _wire_chat(page: Page, layout: Layout, attention: Any) -> None:
    """An answer also updates the attention pane, and fills in question and picture in before / after."""
    chat, tab = layout.chat, layout.comparison
    question: Any = tab.question if tab else gr.State("")
    picture: Any = tab.picture if tab else gr.State("")
    outputs = [*Step(chat.messages, chat.message, attention, question, picture, chat.status)]
    visitor = [layout.session, layout.language]

    def ask_example(key: str, language: Language, clicked: gr.EventData) -> Iterator[Step]:
        yield from page.ask_example(key, getattr(clicked, "number", None), language)

    chat.message.submit(page.send, [layout.session, chat.message, layout.language], outputs, **_AT_ONCE)
    chat.welcome.click(ask_example, visitor, outputs, **_AT_ONCE)
    chat.again.click(page.again, visitor, outputs, **_AT_ONCE)
    chat.stop.click(page.stop, layout.session, None, queue=False, **_PRIVATE)
    for cleared in (chat.clear.click, chat.messages.clear):
        cleared(page.clear, visitor, outputs, queue=False, **_PRIVATE)


def _wire_language(page: Page, layout: Layout, attention: Any) -> None:
    """A new language redraws the panes, the status lines and every translated component."""
    tab = layout.comparison
    panes: list[Any] = [attention, *([tab.pane] if tab else [])]
    statuses: dict[Place, Any] = {"chat": layout.chat.status, **({"compare": tab.status} if tab else {})}
    components = list(dict.fromkeys(one.component for one in layout.texts))

    def translate(key: str, language: Language, *values: str) -> list[Any]:
        page.speak(key, language)
        redrawn = [json.dumps({**json.loads(value or "{}"), "language": language}) for value in values]
        lines = [page.status(key, place, language) for place in statuses]
        updates = {component: gr.update() for component in components}
        for one in layout.texts:
            updates[one.component] |= one.update(language)
        return [*redrawn, *lines, *updates.values()]

    inputs, outputs = [layout.session, layout.language, *panes], [*panes, *statuses.values(), *components]
    layout.language.change(translate, inputs, outputs, queue=False, **_QUIET)


_KEEP = "(key) => { try { sessionStorage.setItem('web-demo-session', key); } catch { } return [key]; }"
_KEPT = "() => { try { return [sessionStorage.getItem('web-demo-session') || '']; } catch { return ['']; } }"
"""A tab's own storage: it outlives a reload, not the tab, and no other site can read it."""


def _wire_visit(page: Page, blocks: gr.Blocks, layout: Layout, attention: Any) -> None:
    """Loading the page opens a session in the browser's language, or the one that the tab had before a reload."""
    open_pages: dict[str, str] = {}  # Gradio's session hash → our key
    chat, tab = layout.chat, layout.comparison

    def enter(kept: str, request: gr.Request) -> list[Any]:
        key = page.enter(kept)
        if request.session_hash:
            open_pages[request.session_hash] = key
        accepted = request.headers.get("accept-language", "").lower()
        browsers: Language = "zh" if accepted.startswith("zh") else "en"
        language = page.sessions.get(key).language or browsers
        step, compared = page.resumed(key, language)
        return [
            key,
            language,
            step.pane,
            key,
            step.messages,
            step.message,
            *([step.question, step.picture, compared] if tab else []),
        ]

    def settle(key: str, offered: Language, now: Language) -> tuple[Language, Any]:
        language = offered if now == "en" else now  # else Chinese was selected during loading
        return language, page.chat_pane(key, language)

    def leave(request: gr.Request) -> None:
        key = open_pages.pop(request.session_hash or "", "")
        if key not in open_pages.values():  # after a reload the new page has it already
            page.sessions.leave(key)

    session, language, offered = layout.session, layout.language, gr.State("en")
    restored = [chat.messages, chat.message, *([tab.question, tab.picture, tab.pane] if tab else [])]
    entered = blocks.load(
        enter, layout.kept, [session, offered, attention, layout.kept, *restored], js=_KEPT, **_QUIET
    )
    entered.then(None, layout.kept, layout.kept, js=_KEEP, **_PRIVATE)
    entered.then(settle, [session, offered, language], [language, attention], **_QUIET)
    blocks.unload(leave)
