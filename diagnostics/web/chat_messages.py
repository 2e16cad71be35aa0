"""A conversation for Gradio's chat: text without markup, pictures as files."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, TypeAlias

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
            messages.append(_message("assistant", readable(answer) or EMPTY_ANSWER))
            messages += [_message("assistant", CUT_ANSWER)] if number in session.cut else []
            if parse_boxes(answer) and at:
                messages.append(_message("assistant", pictures.boxed(session.pictures[at - 1], answer)))
    if writing is not None:
        messages.append(_message("assistant", readable(writing)))
    return messages


def readable(text: str) -> str:
    """An answer without markup, whole or torn. Phrases stay without coordinates, since their boxes are drawn; a box
    without a phrase keeps its coordinates."""
    words, named = "", False
    for part in to_list_format(text):
        if "box" in part:
            words += "" if named else f"[{part['box']}]"
        else:
            words += next(iter(part.values()))
            named = "ref" in part
    return _TORN_MARKUP.sub("", words)


def _message(role: str, content: str | Path) -> dict[str, Any]:
    """Escapes text: the chat would fetch the URL of an ``<img>`` in it."""
    shown = {"path": str(content)} if isinstance(content, Path) else html.escape(content, quote=False)
    return {"role": role, "content": shown}
