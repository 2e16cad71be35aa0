"""ShareGPT: conversations of human and gpt (or user and assistant), ``images`` and ``system`` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.formats import llava
from finetune.formats.record import Record, Spoken, kind

NAME = "sharegpt"
SHAPE = (
    '{"conversations": [{"from": "human" | "gpt" (or "user" | "assistant"), "value": "<image>What is this?"}], '
    '"images": [path, ...], "videos": [path, ...], "system": text}'
)
ROLES: Mapping[str, Any] = {**llava.ROLES, "user": "user", "assistant": "assistant"}


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Could the record be in this format?"""
    if "conversations" not in record or record.keys() & {"image", "video"} or not roles <= ROLES.keys():
        return False
    return "<img>" not in text and "</img>" not in text


def turns(record: Record) -> list[Spoken]:
    found = llava.conversation(record, "images", "videos", ROLES)
    system = record.content.get("system") if isinstance(record.content, Mapping) else None
    if system is None or system == "":
        return found
    if not isinstance(system, str):
        record.fault(f"system: found a {kind(system)}, expected text")
    elif found and found[0].role == "system":
        record.fault(f"{found[0].at}.from: a second system turn, beside the key 'system'; leave one out")
    else:
        found.insert(0, Spoken("system", (system,), "system"))
    return found
