"""LLaVA: conversations of human and gpt, pictures under ``image``, ``<image>`` where each belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.formats.placeholders import Queue
from finetune.formats.record import Record, Spoken, joined

NAME = "llava"
SHAPE = (
    '{"id", "image": path | [path, ...] (or "video"), "conversations": [{"from": "human" | "gpt", '
    '"value": "<image>\\nWhat is this?"}]}'
)
ROLES: Mapping[str, Any] = {"system": "system", "human": "user", "gpt": "assistant"}


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Could the record be in this format?"""
    return (
        "conversations" in record
        and roles <= ROLES.keys()
        and not record.keys() & {"images", "videos", "system"}
    )


def turns(record: Record) -> list[Spoken]:
    return conversation(record, "image", "video", ROLES)


def conversation(record: Record, pictures: str, videos: str, roles: Mapping[str, Any]) -> list[Spoken]:
    """``conversations`` of ``from`` and ``value``, with the pictures and videos under their own keys."""
    if not isinstance(record.content, Mapping):
        list(record.items("conversations", ("from", "value")))
        return []
    queue, found = Queue(record, pictures, videos), []
    for at, item in record.items("conversations", ("from", "value")):
        role = record.role(f"{at}.from", item["from"], roles)
        if not isinstance(item["value"], str):
            record.fault(f"{at}: expected an object whose 'from' and 'value' are strings, found {item!r:.80}")
        elif role is not None:
            found.append(Spoken(role, joined(queue.split(item["value"])), at))
    if not record.faults:
        queue.close()
    record.check(found, "from", "value")
    return found
