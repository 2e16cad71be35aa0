"""A conversation for Gradio's chat: text without markup, pictures as files."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, TypeAlias

from PIL import ImageFont

from diagnostics.web.sessions import Session, Upload
from finetune.fonts import text_font
from finetune.samples.markup import draw_boxes, parse_boxes, to_list_format

Messages: TypeAlias = list[dict[str, Any]]
EMPTY_ANSWER = "∅ (empty answer · 空回答)"
SHOWN_PIXELS = 1024  # the longer side of a picture in the chat
BOXED_PIXELS = 480  # a smaller picture is enlarged before boxes are drawn on it


class PictureFiles:
    """Pictures of all sessions, as files in a folder that is deleted with the server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shown(self, upload: Upload) -> Path:
        """Upright and scaled down for the screen; written once."""
        place = self._folder / f"{abs(hash(upload.data)):x}.jpg"
        if not place.is_file():
            small = upload.open().convert("RGB")
            small.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
            small.save(place, quality=90)
        return place

    def original(self, upload: Upload) -> Path:
        """The bytes as uploaded, under the visitor's own file name."""
        place = self._folder / f"{abs(hash(upload.data)):x}" / upload.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(upload.data)
        return place

    def boxed(self, upload: Upload, answer: str) -> Path:
        """The picture with the answer's boxes drawn on it; written once."""
        place = self._folder / f"{abs(hash((upload.data, answer))):x}.png"
        if not place.is_file():
            picture = upload.open().convert("RGB")
            factor = max(1, round(BOXED_PIXELS / max(picture.size)))
            picture = picture.resize((picture.width * factor, picture.height * factor))
            draw_boxes(picture, answer, font=ImageFont.truetype(str(text_font(answer)), 18)).save(place)
        return place


def chat_messages(session: Session, pictures: PictureFiles, writing: str | None = None) -> Messages:
    """The conversation in Gradio's message format; ``writing``: the partial answer during generation."""
    messages: Messages = []
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
            if parse_boxes(answer) and at:
                messages.append(_message("assistant", pictures.boxed(session.pictures[at - 1], answer)))
    if writing is not None:
        messages.append(_message("assistant", readable(writing)))
    return messages


def readable(text: str) -> str:
    """An answer without markup. Phrases stay without coordinates, since their boxes are drawn; a box without a phrase
    keeps its coordinates."""
    words, named = "", False
    for part in to_list_format(text):
        if "box" in part:
            words += "" if named else f"[{part['box']}]"
        else:
            words += next(iter(part.values()))
            named = "ref" in part
    return words


def _message(role: str, content: str | Path) -> dict[str, Any]:
    """Escapes text: the chat would fetch the URL of an ``<img>`` in it."""
    shown = {"path": str(content)} if isinstance(content, Path) else html.escape(content, quote=False)
    return {"role": role, "content": shown}
