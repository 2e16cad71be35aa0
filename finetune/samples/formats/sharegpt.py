"""ShareGPT: conversations of human and gpt (or user and assistant), ``images`` and ``system`` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.samples.formats import dialogue
from finetune.samples.formats.placeholders import QWEN_VL_MARK, Kind
from finetune.samples.formats.record import Record, Spoken

NAME = "sharegpt"
SHAPE = (
    '{"conversations": [{"from": "human" | "gpt" (or "user" | "assistant"), "value": "<image>What is this?"}], '
    '"images": [path, ...], "videos": [path, ...], "system": text}'
)


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Whether the record could be in this format."""
    if "conversations" not in record or record.keys() & {"image", "video"}:
        return False
    return roles <= dialogue.ALL_ROLES.keys() and not QWEN_VL_MARK.search(text)


def turns(record: Record) -> list[Spoken]:
    usual: Mapping[Kind, str] = {"image": "images", "video": "videos"}
    spelling = ("from", "value")
    return dialogue.conversation(
        record, "conversations", spelling, dialogue.ALL_ROLES, usual=usual, first=False
    )
