"""Unread keys of a record: which are worth a note, and which look like pictures or videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LONGEST_PATH = 4096
_MEDIA_NAME = re.compile(
    r"\.(png|jpe?g|jfif|webp|bmp|gif|tiff?|heic|heif|avif|mp4|mov|avi|mkv|webm|m4v)(\?.*)?$", re.IGNORECASE
)


def is_empty(value: Any) -> bool:
    """Whether a value is empty, so that ignoring it loses nothing: null, "", [], {}, or these as JSON in a string."""
    return (
        value is None
        or (isinstance(value, str | list | tuple | Mapping) and not len(value))
        or value in ("[]", "{}")
    )


def looks_like_media(value: Any) -> bool:
    """Whether a value is the path, URL or bytes of a picture or video, or a list of those.

    ``"a.png"``, ``["a.jpg"]``, ``{"bytes": b"…", "path": None}``, ``"data:image/png;base64,…"`` → True.
    """
    if isinstance(value, str):
        return value[:11].lower() == "data:image/" or (
            len(value) < LONGEST_PATH and "\n" not in value and _MEDIA_NAME.search(value) is not None
        )
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or looks_like_media(
            value.get("path") or value.get("url")
        )
    if isinstance(value, list | tuple):
        return bool(value) and looks_like_media(value[0])
    return isinstance(value, bytes)
