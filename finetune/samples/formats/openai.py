"""OpenAI's messages: ``role`` and ``content`` (text or parts); ``images`` beside or inside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.samples.conversation import Role
from finetune.samples.formats import dialogue
from finetune.samples.formats.placeholders import Kind
from finetune.samples.formats.record import Record, Spoken

NAME = "openai"
SHAPE = (
    '{"messages": [{"role": "user" | "assistant", "content": text | [{"type": "text", "text": ...}, '
    '{"type": "image", "image": path}, {"type": "image_url", "image_url": {"url": path}}, '
    '{"type": "video", "video": path}]}], "images": [path, ...], "videos": [path, ...]}'
)
ROLES: Mapping[str, Role] = {
    "system": "system", "user": "user", "assistant": "assistant", "developer": "system",
    "human": "user", "gpt": "assistant",
}  # fmt: skip


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Whether the record could be in this format."""
    return "messages" in record and roles <= ROLES.keys()


def turns(record: Record) -> list[Spoken]:
    usual: Mapping[Kind, str] = {"image": "images", "video": "videos"}
    return dialogue.conversation(record, "messages", ("role", "content"), ROLES, usual=usual, first=True)
