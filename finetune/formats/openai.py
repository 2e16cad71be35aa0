"""OpenAI's messages: ``role`` and ``content``, which is text or parts; ``images`` may stand beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.conversation import ImageRef, VideoRef
from finetune.formats.placeholders import Queue
from finetune.formats.record import Record, Spoken, joined, kind

NAME = "openai"
SHAPE = (
    '{"messages": [{"role": "user" | "assistant", "content": text | [{"type": "text", "text": ...}, '
    '{"type": "image", "image": path}, {"type": "image_url", "image_url": {"url": path}}, '
    '{"type": "video", "video": path}]}], "images": [path, ...], "videos": [path, ...]}'
)
ROLES: Mapping[str, Any] = {"system": "system", "user": "user", "assistant": "assistant"}
PART_KEYS = {
    "image": ("image", "path", "url"), "image_url": ("image_url",),
    "video": ("video", "path", "url"), "video_url": ("video_url",),
}  # fmt: skip


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Could the record be in this format?"""
    return "messages" in record and roles <= ROLES.keys()


def turns(record: Record) -> list[Spoken]:
    if not isinstance(record.content, Mapping):
        list(record.items("messages", ("role", "content")))
        return []
    queue, found = Queue(record, "images", "videos"), []
    for at, item in record.items("messages", ("role", "content")):
        role = record.role(f"{at}.role", item["role"], ROLES)
        parts = joined(_parts(record, item["content"], f"{at}.content", queue))
        if role is not None:
            found.append(Spoken(role, parts, at))
    if not record.faults:
        queue.close()
    record.check(found, "role", "content")
    return found


def _parts(record: Record, content: Any, at: str, queue: Queue) -> Iterator[str | ImageRef | VideoRef]:
    if isinstance(content, str):
        yield from queue.split(content)
    elif isinstance(content, list):
        for i, part in enumerate(content):
            yield from _part(record, part, f"{at}[{i}]", queue)
    else:
        record.fault(f"{at}: found a {kind(content)}, expected text or a list of parts")


def _part(record: Record, part: Any, at: str, queue: Queue) -> Iterator[str | ImageRef | VideoRef]:
    what = part.get("type") if isinstance(part, Mapping) else None
    if what == "text" and isinstance(part.get("text"), str):
        yield from queue.split(part["text"])
    elif what in PART_KEYS:
        key = next((key for key in PART_KEYS[what] if part.get(key) is not None), None)
        spec = None if key is None else part[key]
        is_video = what.startswith("video")
        if what.endswith("_url") and isinstance(spec, Mapping):
            spec = spec.get("url")
        if is_video and isinstance(spec, list) and part.get("fps") is not None:  # as Qwen's own examples are
            spec = {"frames": spec, "fps": part["fps"]}
        if spec is not None:
            yield (record.video if is_video else record.picture)(spec, f"{at}.{key}")
        else:  # as Hugging Face's chats are: the place here, the picture in the list beside the messages
            yield from queue.take("video" if is_video else "image")
    else:
        record.fault(
            f"{at}: found {part!r:.80}, expected a part of type text, image, image_url or video with what it names"
        )
