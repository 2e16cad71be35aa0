"""A turn's content: text, or a list of typed parts as OpenAI, transformers, Qwen and Anthropic write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.formats.placeholders import Kind, Queue
from finetune.samples.formats.record import Record, a_kind
from finetune.samples.formats.unread import is_empty

Found = str | ImageRef | VideoRef

TEXTS = ("text", "input_text", "output_text")
PART_KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "path", "url", "image_url", "base64", "source"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
    "video": ("video", "path", "url"),
    "video_url": ("video_url",),
}
_WITHOUT_TYPE = ("text", "image", "image_url", "video")
"""Keys that give the type of a part without ``type`` (DashScope, Qwen-VL's own lists)."""


def contents(record: Record, content: Any, at: str, name: str, queue: Queue) -> Iterator[Found]:
    """Words, pictures and videos of a turn's content, in order.

    at     its field: ``messages[0].content``
    name   the field without indices, for notes: ``messages[].content``
    """
    if isinstance(content, str):
        yield from queue.split(content, at)
    elif isinstance(content, list):
        holds_media = any(_names_media(part) for part in content)
        for i, part in enumerate(content):
            yield from _part(record, part, f"{at}[{i}]", f"{name}[].", queue, holds_media)
    else:
        record.fault(f"{at}: found {a_kind(content)}, expected text or a list of parts")


def _names_media(part: Any) -> bool:
    return isinstance(part, Mapping) and any(
        not is_empty(part.get(key)) for keys in PART_KEYS.values() for key in keys
    )


def _type(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    what = part.get("type")
    if what is None:
        keys = [key for key in _WITHOUT_TYPE if not is_empty(part.get(key))]
        return keys[0] if len(keys) == 1 else None
    return what if isinstance(what, str) else None


def _part(record: Record, part: Any, at: str, name: str, queue: Queue, holds_media: bool) -> Iterator[Found]:
    """One part; ``holds_media``: whether parts of this turn name pictures themselves."""
    what = _type(part)
    if isinstance(part, str):
        yield from queue.split(part, at)
    elif what in TEXTS and isinstance(part.get("text"), str):
        if _names_media(part):
            record.fault(
                f"{at}: found a picture or a video in a part of type text, expected a part of its own"
            )
        record.leave_unread(part, name, at, ("type", "text"))
        yield from queue.split(part["text"], at, alone=holds_media)
    elif what is not None and what in PART_KEYS:
        yield from _media(record, part, what, at, name, queue)
    else:
        record.fault(
            f"{at}: found {part!r:.80}, expected a part of type text, image, image_url or video with the key it names"
        )


def _media(
    record: Record, part: Mapping[str, Any], what: str, at: str, name: str, queue: Queue
) -> Iterator[Found]:
    named: Kind = "video" if what.startswith("video") else "image"
    key = next((key for key in PART_KEYS[what] if part.get(key) is not None), None)
    spec = None if key is None else part[key]
    read = {"type", "text"} if key is None else {"type", "text", key}
    if isinstance(spec, Mapping) and key in ("image_url", "video_url", "source", "image", "video"):
        spec = _inside(record, spec, f"{at}.{key}", f"{name}{key}.")
    if (
        named == "video" and isinstance(spec, list) and part.get("fps") is not None
    ):  # as in Qwen's own examples
        spec = {"frames": spec, "fps": part["fps"]}
        read.add("fps")
    if not is_empty(part.get("text")):
        record.fault(f"{at}.text: found text in a part of type {what}, expected it in a part of type text")
    numbered = spec is None and isinstance(part.get("index"), int) and not isinstance(part["index"], bool)
    record.leave_unread(part, name, at, read | ({"index"} if numbered else set()))
    if numbered and part["index"] != queue.asked[named]:
        record.fault(
            f"{at}.index: found {part['index']}, expected {queue.asked[named]}: places take the pictures of the list "
            "in its order, each once; put the list into the order of their places"
        )
    if spec is not None:
        yield (record.video if named == "video" else record.picture)(spec, f"{at}.{key}")
    else:  # as in Hugging Face's chats: a placeholder here, the picture in the list beside the messages
        yield from queue.take(named)


def _inside(record: Record, spec: Mapping[str, Any], at: str, name: str) -> Any:
    """The content of ``{"url": …}`` and of Anthropic's ``{"type": "base64", "data": …}``; anything else unchanged."""
    key = next((key for key in ("url", "data") if isinstance(spec.get(key), str)), None)
    if key is None:
        return spec
    record.leave_unread(spec, name, at, (key, "type", "media_type"))
    return spec[key]
