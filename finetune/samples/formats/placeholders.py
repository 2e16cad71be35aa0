"""``<image>`` in a text stands for the next picture in the record's list, ``<video>`` for the next video.

A backslash keeps either as text: ``\\<image>`` is the word ``<image>``, not a picture. Without a backslash, and without
a picture to stand for, it is a fault: the model would learn to read pictures as words. ``<img>path</img>`` is a picture
in Qwen-VL's format alone; here it is a fault, and ``\\<img>`` the word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from finetune.printable import one_line
from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.formats.record import MEDIA_KEYS, Record

Kind = Literal["image", "video"]
QWEN_VL_PICTURE = re.compile(r"(?<!\\)<img>(.*?)(?<!\\)</img>", re.DOTALL)
QWEN_VL_MARK = re.compile(r"(?<!\\)</?img>")
MEDIA_PLACE = re.compile(r"(?<!\\)<(image|video)>")
_PLACE = re.compile(r"(\\?)<(image|video|/?img)>")
_WORDS = {"image": "picture", "video": "video"}
_OTHER_PLACE = re.compile(
    r"<\|(?:vision_start|image_pad|video_pad|image|video)\|>|<start_of_image>|<IMG_CONTEXT>|<image_soft_token>"
)
"""Placeholders of models' own prompts, as ``<img>`` is. In data they are text; if a picture lacks a placeholder, one of
them was meant to be it."""
_ESCAPE = "to keep it as text, put a backslash before it: \\"


class Queue:
    """The pictures and videos beside the conversation, or inside one turn, assigned to placeholders in order.

    ``"<image>\\nWhat is this?"`` with ``image: "a.png"`` → ``(ImageRef("a.png"), "\\nWhat is this?")``.

    owner       the record or turn that holds their keys
    at          prefix of a key in faults: "" or ``messages[0].``
    usual       the key that a fault names if the record has none
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
        """The next picture or video; nothing if none is left."""
        yield from self.media[kind][self.asked[kind] : self.asked[kind] + 1]
        self.asked[kind] += 1

    def split(self, text: str, at: str, *, alone: bool = False) -> Iterator[str | ImageRef | VideoRef]:
        """A text's words, pictures and videos in reading order.

        at      its field, for faults
        alone   the turn has its pictures as parts: each is where its part is, and ``<image>`` in its text is a fault
                unless there are pictures beside the text too
        """
        self._check_qwen_vl(text, at)
        if alone:
            self._check_alone(text, at)
        position = 0
        for match in _PLACE.finditer(text):
            kind = _kind(match[2])
            if match[1]:
                yield text[position : match.start()]
                position = match.start() + 1
            elif match[2].endswith("img"):
                self.other_place = self.other_place or match[0]
            elif self.media[kind] or not alone:
                yield text[position : match.start()]
                yield from self.take(kind)
                position = match.end()
        yield text[position:]

    def words(self, text: str, at: str) -> Iterator[str]:
        """A text where pictures and videos have no place; a fault where it has one of their marks."""
        self._check_qwen_vl(text, at)
        found = MEDIA_PLACE.search(text)
        if found is not None:
            self.record.fault(
                f"{at}: found {found[0]}, expected pictures and videos in the user's turns; {_ESCAPE}{found[0]}"
            )
        yield _PLACE.sub(lambda place: place[0].removeprefix("\\"), text)

    def _check_alone(self, text: str, at: str) -> None:
        """A fault for a mark that stands for none of the turn's own parts, and for nothing beside the text."""
        found = next((one for one in MEDIA_PLACE.finditer(text) if not self.media[_kind(one[1])]), None)
        if found is not None:
            self.record.fault(
                f"{at}: found {found[0]} beside pictures or videos that are parts of their own, expected none in the "
                f"text: each of them is where its part is; leave {found[0]} out; {_ESCAPE}{found[0]}"
            )

    def _check_qwen_vl(self, text: str, at: str) -> None:
        """A fault for a picture in Qwen-VL's markup: its path would be trained as words, and the picture left out."""
        found = QWEN_VL_PICTURE.search(text)
        if found is not None:
            self.record.fault(
                f"{at}: found {one_line(found[0], 120)}, which is plain text in this format; expected "
                f"<image> and the picture named under {self.keys['image']} (or --data_format qwen-vl, for "
                "conversations of user and assistant); to keep it as words write \\<img>"
            )

    def unplaced(self, text: str) -> list[Any]:
        """All media if the text has no placeholder at all; they then count as placed."""
        other = _OTHER_PLACE.search(text)
        if other is not None:
            self.other_place = other[0]
        if any(self.asked.values()) or self.other_place:
            return []
        self.asked = {kind: len(found) for kind, found in self.media.items()}
        return [one for found in self.media.values() for one in found]

    def close(self) -> None:
        """Records a fault if the text has more or fewer placeholders than there are pictures or videos."""
        for kind, key in self.keys.items():
            there, asked = len(self.media[kind]), self.asked[kind]
            if asked != there:
                hint = f"; {_ESCAPE}<{kind}>" if asked > there else ""
                if asked < there and self.other_place:
                    hint = f"; the text has {self.other_place}, which is plain text in data: write <{kind}> instead"
                self.record.fault(
                    f"{key}: found {_count(there, _WORDS[kind])} and {_count(asked, f'<{kind}>')} in the "
                    f"text, expected one for each {_WORDS[kind]}, where it belongs{hint}"
                )


def _kind(mark: str) -> Kind:
    return "video" if mark == "video" else "image"


def _listed(given: Any, key: str, find: Any) -> Iterator[Any]:
    if not isinstance(given, list):
        yield find(given, key)
    else:
        for i, spec in enumerate(given):
            yield find(spec, f"{key}[{i}]")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if what.isalpha() and number != 1 else ''}"
