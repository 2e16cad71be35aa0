"""One record on its way to a conversation: parsing that all formats share, and the faults found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from finetune.samples.conversation import ImageRef, Part, Role, VideoRef
from finetune.samples.formats.unread import is_empty, looks_like_media

UNHEARD = ("audio", "audios")
"""Keys for audio in other trainers' data; ignoring them would train ``<audio>`` as text."""
MEDIA_KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "image_path", "image_paths"),
    "video": ("video", "videos", "video_path", "video_paths"),
}
"""Keys of pictures and videos, beside a record's turns or inside one."""
SPELLINGS = (("from", "value"), ("role", "content"))
"""Keys of a turn's role and text."""
TRAINING_MARKS = ("weight", "loss", "loss_mask", "loss_scale", "train", "training", "train_on_turn")
"""Keys of a turn that include or exclude an answer from training: 1 or true, 0 or false (OpenAI's ``weight``,
ms-swift's and ChatGLM's ``loss``, axolotl's ``train``)."""
LOOK_AT = "look_at"
"""Key of an answer under which data says where to look (``finetune.samples.formats.look_at``)."""
TOOL_ROLES = frozenset(
    (
        "tool",
        "function",
        "function_call",
        "observation",
        "tool_call",
        "tool_calls",
        "tool_response",
        "tool_result",
    )
)
TOOL_KEYS = ("tool_calls", "function_call")


Note = tuple[str, str]
"""What is not read, and what happens to it; the message puts the number of records between them."""


class Spoken(NamedTuple):
    """A turn as a format reads it, before boxes are parsed.

    at        the record's field that holds the turn, such as ``conversations[0]``
    role_at   the field of its role
    text_at   the field of its text
    trained   as ``Turn.trained``
    look_at   as it is written; None where there is none
    """

    role: Role
    parts: tuple[Part, ...]
    at: str
    role_at: str
    text_at: str
    trained: bool = True
    look_at: Any = None


class Said(NamedTuple):
    """A turn of a record whose text is not parsed yet.

    item   the turn as written
    """

    role: Role
    content: Any
    item: Mapping[str, Any]
    at: str
    role_at: str
    text_at: str
    trained: bool

    def spoken(self, parts: Iterable[Part]) -> Spoken:
        look_at = self.item.get(LOOK_AT)
        return Spoken(self.role, joined(parts), self.at, self.role_at, self.text_at, self.trained, look_at)


class Pictures(Protocol):
    """Finds the pictures and videos that records name."""

    def find(self, spec: Any, at: str) -> ImageRef:
        """The picture at a path or URL, or in ``{"bytes", "path"}``, with its size if known.

        at   the field that names it
        Raises ValueError with a message that follows the field's name.
        """

    def find_video(self, spec: Any, at: str) -> VideoRef:
        """The video at a path, or of ``{"frames": [path, ...], "fps": number}``; a bare list holds its frames.

        Raises as ``find`` does.
        """


class Record:
    """One record: its content, its place in the file, the faults found so far, and notes on what is not read.

    notes   worded without the record's own values, so that they can be counted over all records
    """

    def __init__(self, content: Any, where: str, pictures: Pictures) -> None:
        self.content, self.where, self.pictures = content, where, pictures
        self.faults: list[str] = []
        self.notes: set[Note] = set()
        self._unread: list[tuple[str, str, Any]] = []

    def fault(self, what: str) -> None:
        self.faults.append(f"{self.where}: {what}")

    def picture(self, spec: Any, at: str) -> ImageRef:
        """The picture that a field names; problems become faults."""
        try:
            return self.pictures.find(spec, at)
        except ValueError as error:
            self.fault(f"{at}: {error}")
            return ImageRef("", Path())

    def video(self, spec: Any, at: str) -> VideoRef:
        """The video that a field names; problems become faults."""
        try:
            return self.pictures.find_video(spec, at)
        except ValueError as error:
            self.fault(f"{at}: {error}")
            return VideoRef("", (0.0,))

    # --- turns -------------------------------------------------------------------------------------------
    def said(self, key: str, spelling: tuple[str, str], roles: Mapping[str, Role]) -> Iterator[Said]:
        """The turns under ``key``; anything that is not a turn with a known role is a fault.

        spelling   the expected keys; the other spelling is read too
        """
        items = [*self._items(key, spelling)]
        if self._calls_tools(key, items):
            return
        for at, item, (role_key, text_key) in items:
            role = self._role(f"{at}.{role_key}", item[role_key], roles)
            self._hear(item, f"{at}.")
            if role is not None:
                trained = self._is_trained(item, at, key, role)
                yield Said(role, item[text_key], item, at, f"{at}.{role_key}", f"{at}.{text_key}", trained)
            read = {
                role_key,
                text_key,
                LOOK_AT,
                *TRAINING_MARKS,
                *UNHEARD,
                *itertools.chain(*MEDIA_KEYS.values()),
            }
            self.leave_unread(item, f"{key}[].", at, read)

    def _items(
        self, key: str, spelling: tuple[str, str]
    ) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, str]]]:
        """Each turn with its field and the keys it uses."""
        described = f"{{{spelling[0]!r}, {spelling[1]!r}}}"
        if not isinstance(self.content, Mapping):
            return self.fault(f"found {a_kind(self.content)}, expected an object with {key!r}")
        raw = self.content.get(key)
        if not isinstance(raw, list) or not raw:
            found = "none" if raw is None else "an empty list" if raw == [] else f"{a_kind(raw)}"
            return self.fault(f"{key}: found {found}, expected a list of turns {described}")
        for i, item in enumerate(raw):
            keys = spelling_of(item, spelling)
            if keys is not None:
                yield f"{key}[{i}]", item, keys
            else:
                self.fault(f"{key}[{i}]: expected an object {described}, found {item!r:.80}")

    def _calls_tools(self, key: str, items: Sequence[tuple[str, Mapping[str, Any], tuple[str, str]]]) -> bool:
        for at, item, (role_key, _) in items:
            called = [one for one in TOOL_KEYS if not is_empty(item.get(one))]
            field = f"{at}.{called[0]}" if called else f"{at}.{role_key}"
            if called or (isinstance(item[role_key], str) and item[role_key] in TOOL_ROLES):
                self.fault(
                    f"{field}: found a tool call or its result, which is not supported, expected only turns of user "
                    "and assistant; leave the record out"
                )
                return True
        return False

    def _role(self, at: str, found: Any, roles: Mapping[str, Role]) -> Role | None:
        """The role that a turn names; None and a fault if it is unknown."""
        if isinstance(found, str) and found in roles:
            return roles[found]
        user, assistant = (
            next(word for word in roles if roles[word] == role) for role in ("user", "assistant")
        )
        self.fault(f"{at}: unknown role {found!r:.80}, expected {user} or {assistant} (or system, first)")
        return None

    def _is_trained(self, item: Mapping[str, Any], at: str, key: str, role: Role) -> bool:
        """Whether the turn is trained according to its own keys; without one it is."""
        if not is_empty(item.get("mask")):
            self.fault(
                f"{at}.mask: found {item['mask']!r:.40}, which is ambiguous (trained, or masked out); expected "
                '"weight": 0 or "weight": 1'
            )
        marks = {one: item[one] for one in TRAINING_MARKS if item.get(one) is not None}
        for mark, value in marks.items():
            if value not in (0, 1) or isinstance(value, str):
                self.fault(
                    f"{at}.{mark}: found {value!r:.40}, expected 1 or true to train the answer, 0 or false to "
                    "leave it out"
                )
                return True
        if role != "assistant":
            for mark in (mark for mark, value in marks.items() if value):
                self.notes.add(
                    (f"key '{key}[].{mark}' of a {role}'s turn", "is not read: only answers are trained")
                )
            return True
        if len({bool(value) for value in marks.values()}) > 1:
            listed = ", ".join(f"{mark}: {value!r}" for mark, value in marks.items())
            self.fault(f"{at}: found {listed}, which contradict each other; keep one")
        return all(marks.values())

    def check(self, turns: Sequence[Spoken]) -> None:
        """Faults of the whole conversation: order of turns, answers without text, pictures in answers."""
        for turn in turns:
            text = "".join(part for part in turn.parts if isinstance(part, str))
            media = [part for part in turn.parts if isinstance(part, ImageRef | VideoRef)]
            if turn.role != "user" and media:
                found = "a picture" if isinstance(media[0], ImageRef) else "a video"
                self.fault(
                    f"{turn.text_at}: found {found} {media[0].written!r:.200} in a turn of the {turn.role}, "
                    "expected pictures in the user's turns"
                )
            elif turn.role == "assistant" and turn.trained and not text.strip():
                self.fault(f"{turn.text_at}: found an empty answer, expected text to train on")
            self.check_characters(text, turn.text_at)
        if isinstance(self.content, Mapping):
            self._hear(self.content, "")
        if not self.faults:
            self._check_order(turns)
        has_media = any(isinstance(part, ImageRef | VideoRef) for turn in turns for part in turn.parts)
        self._judge_unread(has_media)

    def check_characters(self, text: str, at: str) -> None:
        """A fault for half of a surrogate pair."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # "\ud83d" in JSON: an emoji cut in two
            self.fault(
                f"{at}: found {text[error.start]!r} at character {error.start}, half of a surrogate pair, expected "
                "whole characters; export the text from its source again"
            )

    def _hear(self, owner: Mapping[str, Any], at: str) -> None:
        for key in (key for key in UNHEARD if owner.get(key)):
            self.fault(
                f"{at}{key}: found {owner[key]!r:.80}, but audio is not supported; remove it from the record, or "
                "leave the record out"
            )

    def _check_order(self, turns: Sequence[Spoken]) -> None:
        for turn in turns[1:]:
            if turn.role == "system":
                self.fault(f"{turn.role_at}: a system turn can only come first")
        spoken = [turn for turn in turns if turn.role != "system"]
        if not any(turn.role == "assistant" for turn in spoken):
            self.fault("found no assistant turn, so there is nothing to train on; add the answer")
        elif spoken[0].role == "assistant":
            self.fault(f"{spoken[0].role_at}: found assistant first, expected the user's turn before it")
        elif not any(turn.role == "assistant" and turn.trained for turn in spoken):
            self.fault(
                "found every answer excluded from training (weight 0 or the like), expected one to train on"
            )
        for before, turn in itertools.pairwise(spoken):
            if before.role == turn.role:
                self.fault(
                    f"{turn.role_at}: two {turn.role} turns in a row; user and assistant must alternate"
                )

    def with_system(
        self, turns: Sequence[Spoken], parts: Callable[[str, str], Iterable[Part]]
    ) -> list[Spoken]:
        """The turns, after the record's own ``system`` prompt if it has one.

        parts   of a text and its field: as the format reads it
        """
        system = self.content.get("system") if isinstance(self.content, Mapping) else None
        if system is None or system == "":
            return [*turns]
        if not isinstance(system, str):
            self.fault(f"system: found {a_kind(system)}, expected text")
        elif turns and turns[0].role == "system":
            self.fault(f"{turns[0].role_at}: a second system turn, beside the key 'system'; leave one out")
        else:
            return [Spoken("system", joined(parts(system, "system")), "system", "system", "system"), *turns]
        return [*turns]

    # --- what is not read --------------------------------------------------------------------------------
    def leave_unread(self, owner: Mapping[str, Any], prefix: str, at: str, read: Iterable[str]) -> None:
        """Notes an object's keys that are not read.

        prefix   of a key in notes, the same for all records: ``messages[].``
        at       the object's field, "" for the record
        """
        known = set(read)
        for key, value in owner.items():
            if key not in known and not is_empty(value):
                self._unread.append((f"{prefix}{key}"[:80], f"{at}.{key}" if at else str(key), value))

    def _judge_unread(self, has_media: bool) -> None:
        """An unread picture in a record without media is a fault; anything else becomes a note."""
        for name, at, value in self._unread:
            if not has_media and looks_like_media(value):
                self.fault(
                    f"{at[:80]}: found {value!r:.80}, which looks like a picture or a video and is not read, expected "
                    "it under image or images (video or videos)"
                )
            self.notes.add((f"key {name!r}", "is not read"))


def spelling_of(item: Any, first: tuple[str, str] = SPELLINGS[0]) -> tuple[str, str] | None:
    """The keys of a turn's role and text; None if it has neither pair."""
    if not isinstance(item, Mapping):
        return None
    # Formats with one schema for all rows fill the other spelling with nulls.
    for keys in (first, *SPELLINGS):
        if all(item.get(key) is not None for key in keys):
            return keys
    return next((keys for keys in (first, *SPELLINGS) if all(key in item for key in keys)), None)


def kind(value: Any) -> str:
    """JSON's name for a value's type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def a_kind(value: Any) -> str:
    """The same with its article: "a list", "an object", "null"."""
    name = kind(value)
    return name if name == "null" else f"{'an' if name == 'object' else 'a'} {name}"


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts with adjacent texts merged, so that tokens can span boundaries that exist only in the file.

    ``("a", "", "b", image, "c")`` → ``("ab", image, "c")``; no parts at all give ``("",)``.
    """
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif part != "":
            merged.append(part)
    return tuple(merged) or ("",)
