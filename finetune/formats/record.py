"""One record of the data on its way to a conversation: what every format needs, and the faults found on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from finetune.conversation import ImageRef, Part, Role, VideoRef

UNHEARD = ("audio", "audios")
"""Keys under which other trainers' data keeps sounds: left unread, ``<audio>`` would be learned as a word."""


class Spoken(NamedTuple):
    """A turn as a format finds it, before its boxes are looked for.

    at   the field of the record that holds the turn, such as ``conversations[0]``
    """

    role: Role
    parts: tuple[Part, ...]
    at: str


class Pictures(Protocol):
    """Finds the pictures and videos that records name."""

    def find(self, spec: Any, at: str) -> ImageRef:
        """The picture of a path, an address, or ``{"bytes", "path"}``, with its size where that is known.

        at   the field that names it
        Raises ValueError with what is wrong with it, in words that go behind the field's name.
        """

    def find_video(self, spec: Any, at: str) -> VideoRef:
        """The video of a path, or of ``{"frames": [path, ...], "fps": number}``; a list alone is its frames.

        Raises as ``find``.
        """


class Record:
    """One record: its content, where it stands, and the faults found in it so far."""

    def __init__(self, content: Any, where: str, pictures: Pictures) -> None:
        self.content, self.where, self.pictures = content, where, pictures
        self.faults: list[str] = []

    def fault(self, what: str) -> None:
        self.faults.append(f"{self.where}: {what}")

    def picture(self, spec: Any, at: str) -> ImageRef:
        """The picture that a field names; what is wrong with it is a fault."""
        try:
            return self.pictures.find(spec, at)
        except ValueError as error:
            self.fault(f"{at}: {error}")
            return ImageRef("", Path())

    def video(self, spec: Any, at: str) -> VideoRef:
        """The video that a field names; what is wrong with it is a fault."""
        try:
            return self.pictures.find_video(spec, at)
        except ValueError as error:
            self.fault(f"{at}: {error}")
            return VideoRef("", (0.0,))

    def items(self, key: str, keys: tuple[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The turns under ``key``, each with its field; whatever is no object with both ``keys`` is a fault."""
        described = f"{{{keys[0]!r}, {keys[1]!r}}}"
        if not isinstance(self.content, Mapping):
            return self.fault(f"found a {kind(self.content)}, expected an object with {key!r}")
        raw = self.content.get(key)
        if not isinstance(raw, list) or not raw:
            found = "none" if raw is None else "an empty list" if raw == [] else f"a {kind(raw)}"
            return self.fault(f"{key}: found {found}, expected a list of turns {described}")
        for i, item in enumerate(raw):
            if isinstance(item, Mapping) and all(one in item for one in keys):
                yield f"{key}[{i}]", item
            else:
                self.fault(f"{key}[{i}]: expected an object {described}, found {item!r:.80}")

    def role(self, at: str, found: Any, roles: Mapping[str, Role]) -> Role | None:
        """The role that a turn's word stands for; None, and a fault, where it stands for none."""
        if isinstance(found, str) and found in roles:
            return roles[found]
        user, assistant = (
            next(word for word in roles if roles[word] == role) for role in ("user", "assistant")
        )
        self.fault(f"{at}: unknown role {found!r}, expected {user} or {assistant} (or system, first)")
        return None

    def check(self, turns: Sequence[Spoken], role_key: str, text_key: str) -> None:
        """Faults of the conversation as a whole: who speaks when, answers without text, pictures in answers."""
        for turn in turns:
            text = "".join(part for part in turn.parts if isinstance(part, str))
            media = [part for part in turn.parts if isinstance(part, ImageRef | VideoRef)]
            if turn.role != "user" and media:
                found = "an image" if isinstance(media[0], ImageRef) else "a video"
                self.fault(
                    f"{turn.at}.{text_key}: found {found} {media[0].written!r} in a turn of the {turn.role}, "
                    "expected images in the user's turns"
                )
            elif turn.role == "assistant" and not text.strip():
                self.fault(f"{turn.at}.{text_key}: found an empty answer, expected text to learn")
        if isinstance(self.content, Mapping):
            for key in (key for key in UNHEARD if self.content.get(key)):
                self.fault(
                    f"{key}: found {self.content[key]!r:.80}, expected pictures and videos alone: no model here hears; "
                    "take the record out, or the sound out of the record"
                )
        if not self.faults:
            self._check_order(turns, role_key)

    def _check_order(self, turns: Sequence[Spoken], role_key: str) -> None:
        for turn in turns[1:]:
            if turn.role == "system":
                self.fault(f"{turn.at}.{role_key}: a system turn can only come first")
        spoken = [turn for turn in turns if turn.role != "system"]
        if not any(turn.role == "assistant" for turn in spoken):
            self.fault("found no assistant turn, so there is nothing to learn; add the answer")
        elif spoken[0].role == "assistant":
            self.fault(
                f"{spoken[0].at}.{role_key}: found assistant first, expected the user's turn before it"
            )
        for before, turn in itertools.pairwise(spoken):
            if before.role == turn.role:
                self.fault(
                    f"{turn.at}.{role_key}: two {turn.role} turns in a row; user and assistant take turns"
                )


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts with neighbouring texts made one, so that tokens may cross what was a border of the file alone.

    ``("a", "", "b", image, "c")`` → ``("ab", image, "c")``; without anything it is ``("",)``.
    """
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif part != "":
            merged.append(part)
    return tuple(merged) or ("",)
