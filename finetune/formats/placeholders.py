"""``<image>`` in a text stands for the next picture of the record's list, ``<video>`` for the next video."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from finetune.conversation import ImageRef, VideoRef
from finetune.formats.record import Record

Kind = Literal["image", "video"]
_PLACE = re.compile("<(image|video)>")
_WORDS = {"image": "picture", "video": "video"}


class Queue:
    """The pictures and videos beside the conversation, handed out in order.

    ``"<image>\\nWhat is this?"`` with ``image: "a.png"`` → ``(ImageRef("a.png"), "\\nWhat is this?")``.

    Without a video beside it a ``<video>`` in a text is words, as it is to data of pictures alone.

    images, videos   the keys under which they stand
    """

    def __init__(self, record: Record, images: str, videos: str) -> None:
        self.record = record
        self.keys: dict[Kind, str] = {"image": images, "video": videos}
        self.media: dict[Kind, list[Any]] = {
            "image": _listed(record.content.get(images), images, record.picture),
            "video": _listed(record.content.get(videos), videos, record.video),
        }
        self.asked: dict[Kind, int] = {"image": 0, "video": 0}

    def take(self, kind: Kind) -> Iterator[ImageRef | VideoRef]:
        """The next picture or video, or nothing where there is none left."""
        yield from self.media[kind][self.asked[kind] : self.asked[kind] + 1]
        self.asked[kind] += 1

    def split(self, text: str) -> Iterator[str | ImageRef | VideoRef]:
        """A text's words, pictures and videos in reading order."""
        position = 0
        for match in _PLACE.finditer(text):
            if match[1] == "video" and not self.media["video"]:
                continue
            yield text[position : match.start()]
            yield from self.take("image" if match[1] == "image" else "video")
            position = match.end()
        yield text[position:]

    def close(self) -> None:
        """A fault where the text asks for more or fewer pictures or videos than there are."""
        for kind, key in self.keys.items():
            there, asked = len(self.media[kind]), self.asked[kind]
            if asked != there:
                self.record.fault(
                    f"{key}: found {_count(there, _WORDS[kind])} and {_count(asked, f'<{kind}>')} in the "
                    f"text, expected one of them for each {_WORDS[kind]}, where it belongs"
                )


def _listed(given: Any, key: str, find: Callable[[Any, str], Any]) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list):
        return [find(given, key)]
    return [find(spec, f"{key}[{i}]") for i, spec in enumerate(given)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if what.isalpha() and number != 1 else ''}"
