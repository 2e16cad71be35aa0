"""``<image>`` in a text stands for the next picture of the record's list, ``<video>`` for the next video.

A backslash before them makes words of them: ``\\<image>`` is ``<image>``, and no picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.formats.record import MEDIA_KEYS, Record

Kind = Literal["image", "video"]
_PLACE = re.compile(r"(\\?)<(image|video)>")
_WORDS = {"image": "picture", "video": "video"}
_OTHER_PLACE = re.compile(
    r"<\|(?:vision_start|image_pad|video_pad|image|video)\|>|<img>|</img>|<start_of_image>|<IMG_CONTEXT>|<image_soft_token>"
)
"""How models' own prompts mark a picture's place. In data they are words, but where a picture waits for its place they
were meant as one."""
ESCAPE = "a backslash before it makes a word of it: \\<image>"


class Queue:
    """The pictures and videos beside the conversation, or inside one turn, handed out in order.

    ``"<image>\\nWhat is this?"`` with ``image: "a.png"`` → ``(ImageRef("a.png"), "\\nWhat is this?")``.

    Without a video beside it a ``<video>`` in a text is words, as it is to data of pictures alone.

    owner       the record, or the turn, that has their keys
    at          before a key in faults: "" or ``messages[0].``
    usual       the key that a fault names where none is given
    """

    def __init__(self, record: Record, owner: Mapping[str, Any], at: str, usual: Mapping[Kind, str]) -> None:
        self.record = record
        self.keys: dict[Kind, str] = {}
        self.media: dict[Kind, list[Any]] = {"image": [], "video": []}
        self.asked: dict[Kind, int] = {"image": 0, "video": 0}
        self.other_place = ""
        for one in self.media:
            given = [key for key in MEDIA_KEYS[one] if owner.get(key) not in (None, "", [])]
            self.keys[one] = at + (given[0] if given else usual[one])
            if len(given) > 1:
                record.fault(f"{at}{given[1]}: found it beside {given[0]}, expected one of them")
            elif given:
                find = record.picture if one == "image" else record.video
                self.media[one] = [*_listed(owner[given[0]], at + given[0], find)]

    def take(self, kind: Kind) -> Iterator[ImageRef | VideoRef]:
        """The next picture or video, or nothing where there is none left."""
        yield from self.media[kind][self.asked[kind] : self.asked[kind] + 1]
        self.asked[kind] += 1

    def split(self, text: str, *, alone: bool = False) -> Iterator[str | ImageRef | VideoRef]:
        """A text's words, pictures and videos in reading order.

        alone   the text has its pictures around it, as parts: without one beside it ``<image>`` is words too
        """
        position = 0
        for match in _PLACE.finditer(text):
            kind: Kind = "image" if match[2] == "image" else "video"
            if match[1]:
                yield text[position : match.start()]
                position = match.start() + 1
            elif self.media[kind] or not (alone or kind == "video"):
                yield text[position : match.start()]
                yield from self.take(kind)
                position = match.end()
        yield text[position:]

    def unplaced(self, text: str) -> list[Any]:
        """All of the media, where the text has a place for none of them; they then count as placed."""
        other = _OTHER_PLACE.search(text)
        self.other_place = "" if other is None else other[0]
        if any(self.asked.values()) or other is not None:
            return []
        self.asked = {kind: len(found) for kind, found in self.media.items()}
        return [one for found in self.media.values() for one in found]

    def close(self) -> None:
        """A fault where the text asks for more or fewer pictures or videos than there are."""
        for kind, key in self.keys.items():
            there, asked = len(self.media[kind]), self.asked[kind]
            if asked != there:
                hint = f"; {ESCAPE}" if asked > there else ""
                if asked < there and self.other_place:
                    hint = (
                        f"; the text has {self.other_place}, which is words in data: write <{kind}> instead"
                    )
                self.record.fault(
                    f"{key}: found {_count(there, _WORDS[kind])} and {_count(asked, f'<{kind}>')} in the "
                    f"text, expected one of them for each {_WORDS[kind]}, where it belongs{hint}"
                )


def _listed(given: Any, key: str, find: Any) -> Iterator[Any]:
    if not isinstance(given, list):
        yield find(given, key)
    else:
        for i, spec in enumerate(given):
            yield find(spec, f"{key}[{i}]")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if what.isalpha() and number != 1 else ''}"
