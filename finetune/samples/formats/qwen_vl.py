"""Qwen-VL (2023): conversations of user and assistant, pictures as ``<img>path</img>`` in the text."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.samples.conversation import ImageRef, Role
from finetune.samples.formats.dialogue import READ_BESIDE
from finetune.samples.formats.placeholders import MEDIA_PLACE, QWEN_VL_PICTURE
from finetune.samples.formats.record import MEDIA_KEYS, Record, Spoken
from finetune.samples.formats.unread import is_empty

NAME = "qwen-vl"
SHAPE = (
    '{"id", "conversations": [{"from": "user" | "assistant", '
    '"value": "Picture 1: <img>path</img>\\nWhat is this?"}]}'
)
ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
# A backslash keeps it as text, as for <image> in other formats.
_WORD = re.compile(r"\\(</?img>|<image>|<video>)")
_ELSEWHERE = re.compile(
    r"(?<!\\)<image>"
)  # a picture's place in other formats; <video> may be a word about pages


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Whether the record could be in this format."""
    if "conversations" not in record or not roles <= ROLES.keys():
        return False
    return not _ELSEWHERE.search(text) and not record.keys() & {
        "system",
        *itertools.chain(*MEDIA_KEYS.values()),
    }


def turns(record: Record) -> list[Spoken]:
    found = []
    for one in record.said("conversations", ("from", "value"), ROLES):
        _check_beside(record, one.item, f"{one.at}.")
        if isinstance(one.content, str):
            found.append(one.spoken(_parts(record, one.content, one.text_at)))
        else:
            record.fault(
                f"{one.at}: expected an object whose 'from' and 'value' are strings, found {one.item!r:.80}"
            )
    if isinstance(record.content, Mapping):
        _check_beside(record, record.content, "")
        found = record.with_system(found, functools.partial(_parts, record))
        record.leave_unread(record.content, "", "", {"conversations", *READ_BESIDE})
    record.check(found)
    return found


def _check_beside(record: Record, owner: Mapping[str, Any], at: str) -> None:
    """Faults for pictures beside the text: this format has no placeholder for them."""
    for key in itertools.chain(*MEDIA_KEYS.values()):
        if not is_empty(owner.get(key)):
            record.fault(
                f"{at}{key}: found {owner[key]!r:.80}, expected pictures in the text, as <img>path</img>; with "
                "<image> in the text the data is in another format (--data_format llava or sharegpt)"
            )


def _parts(record: Record, text: str, at: str) -> Iterator[str | ImageRef]:
    """``"Picture 1: <img>a.png</img>\\nWhat?"`` → ``"Picture 1: "``, ``ImageRef("a.png")``, ``"\\nWhat?"``."""
    rest = _WORD.sub("", QWEN_VL_PICTURE.sub("", text))
    for marker, missing in (("<img>", "</img>"), ("</img>", "<img>")):
        if marker in rest:
            record.fault(
                f"{at}: found {marker} without {missing}; write a picture as <img>path</img>, plain text as \\{marker}"
            )
    if found := MEDIA_PLACE.search(text):
        record.fault(
            f"{at}: found {found[0]}, which is plain text in this format; expected a picture as <img>path</img> (or "
            "--data_format llava or sharegpt, with pictures beside the text); to keep it as text, put a backslash "
            f"before it: \\{found[0]}"
        )
    position = 0
    for match in QWEN_VL_PICTURE.finditer(text):
        yield _WORD.sub(r"\1", text[position : match.start()])
        if written := match[1].strip():
            yield record.picture(written, at)
        else:
            record.fault(f"{at}: found <img></img> without a path")
        position = match.end()
    yield _WORD.sub(r"\1", text[position:])
