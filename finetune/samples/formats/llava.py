"""LLaVA: conversations of human and gpt, pictures under ``image``, an ``<image>`` placeholder for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.samples.formats import dialogue
from finetune.samples.formats.placeholders import QWEN_VL_MARK, Kind
from finetune.samples.formats.record import Record, Spoken

NAME = "llava"
SHAPE = (
    '{"id", "image": path | [path, ...] (or "video"), "conversations": [{"from": "human" | "gpt", '
    '"value": "<image>\\nWhat is this?"}]}'
)


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Whether the record could be in this format."""
    if "conversations" not in record or record.keys() & {"images", "videos", "system"}:
        return False
    return roles <= dialogue.ROLES.keys() or (
        roles <= dialogue.ALL_ROLES.keys() and not QWEN_VL_MARK.search(text)
    )


def turns(record: Record) -> list[Spoken]:
    usual: Mapping[Kind, str] = {"image": "image", "video": "video"}
    spelling = ("from", "value")
    return dialogue.conversation(
        record, "conversations", spelling, dialogue.ALL_ROLES, usual=usual, first=False
    )
