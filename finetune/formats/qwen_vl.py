"""Qwen-VL (2023): conversations of user and assistant, pictures as ``<img>path</img>`` in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.conversation import ImageRef
from finetune.formats.record import Record, Spoken, joined

NAME = "qwen-vl"
SHAPE = (
    '{"id", "conversations": [{"from": "user" | "assistant", '
    '"value": "Picture 1: <img>path</img>\\nWhat is this?"}]}'
)
ROLES: Mapping[str, Any] = {"system": "system", "user": "user", "assistant": "assistant"}
IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Could the record be in this format?"""
    if "conversations" not in record or not roles <= ROLES.keys():
        return False
    return "<image>" not in text and not record.keys() & {"image", "images", "video", "videos", "system"}


def turns(record: Record) -> list[Spoken]:
    found = []
    for at, item in record.items("conversations", ("from", "value")):
        role = record.role(f"{at}.from", item["from"], ROLES)
        if not isinstance(item["value"], str):
            record.fault(f"{at}: expected an object whose 'from' and 'value' are strings, found {item!r:.80}")
        elif role is not None:
            found.append(Spoken(role, joined(_parts(record, item["value"], f"{at}.value")), at))
    record.check(found, "from", "value")
    return found


def _parts(record: Record, text: str, at: str) -> Iterator[str | ImageRef]:
    """``"Picture 1: <img>a.png</img>\\nWhat?"`` → ``"Picture 1: "``, ``ImageRef("a.png")``, ``"\\nWhat?"``."""
    rest = IMAGE.sub("", text)
    for marker, missing in (("<img>", "</img>"), ("</img>", "<img>")):
        if marker in rest:
            record.fault(f"{at}: found {marker} without {missing}; an image is written <img>path</img>")
    position = 0
    for match in IMAGE.finditer(text):
        yield text[position : match.start()]
        if written := match[1].strip():
            yield record.picture(written, at)
        else:
            record.fault(f"{at}: found <img></img> without a path")
        position = match.end()
    yield text[position:]
