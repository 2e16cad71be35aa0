"""A conversation for Gradio's chat: text without markup, pictures as files."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, TypeAlias

from diagnostics.web.named_pictures import about
from diagnostics.web.sessions import Session
from finetune.samples.markup import parse_boxes, to_list_format

Messages: TypeAlias = list[dict[str, Any]]
EMPTY_ANSWER = "∅ (empty answer · 空回答)"
CUT_ANSWER = "✂ (cut off by the token limit or by Stop · 未答完：达到词元上限或被停止)"
_TORN_MARKUP = re.compile(r"</?(?:ref|box|quad)>")


def chat_messages(session: Session, writing: str | None = None) -> Messages:
    """The conversation in Gradio's message format; ``writing``: the partial answer during generation."""
    messages: Messages = []
    pictures = session.files
    at = 0
    for number, (question, answer) in enumerate(session.exchanges):
        count = session.added[number]
        sent = session.pictures[at : at + count]
        at += count
        messages += [_message("user", pictures.shown(upload)) for upload in sent]
        messages += [_message("user", question)] if question else []
        is_open = number == len(session.exchanges) - 1 and session.turns[-1].role == "user"
        if answer or not is_open:
            messages.append(_message("assistant", readable(answer, boxes_drawn=bool(at)) or EMPTY_ANSWER))
            messages += [_message("assistant", CUT_ANSWER)] if number in session.cut else []
            if parse_boxes(answer) and at:
                seen = session.pictures[about(question, at)]
                messages.append(_message("assistant", pictures.boxed(seen, answer)))
    if writing is not None:
        messages.append(_message("assistant", readable(writing, boxes_drawn=bool(at))))
    return messages


def readable(text: str, *, boxes_drawn: bool) -> str:
    """An answer without markup, whole or torn.

    boxes_drawn   whether its boxes are drawn beside it: then a phrase stays without the coordinates of those that can
                  be. A box without a phrase keeps its coordinates.
    """
    words, named = "", False
    for part in to_list_format(text):
        if "box" not in part:
            words += next(iter(part.values()))
            named = "ref" in part
        elif not (boxes_drawn and named and parse_boxes(f"<box>{part['box']}</box>")):
            words += f"{_gap(words)}{_bracketed(part['box'])}"
    return _TORN_MARKUP.sub("", words)


def _gap(words: str) -> str:
    return " " if words and not words[-1].isspace() else ""


def _bracketed(numbers: str) -> str:
    """The numbers of a box; lists have brackets of their own."""
    return numbers if numbers.lstrip().startswith("[") else f"[{numbers}]"


def _message(role: str, content: str | Path) -> dict[str, Any]:
    """Escapes text: the chat would fetch the URL of an ``<img>`` in it."""
    shown = {"path": str(content)} if isinstance(content, Path) else html.escape(content, quote=False)
    return {"role": role, "content": shown}
