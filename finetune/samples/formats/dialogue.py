"""What LLaVA, ShareGPT and OpenAI have in common: a list of turns, pictures and videos beside them or inside a turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.samples.conversation import Part, Role
from finetune.samples.formats.parts import contents
from finetune.samples.formats.placeholders import Kind, Queue
from finetune.samples.formats.record import MEDIA_KEYS, UNHEARD, Record, Spoken, joined

ROLES: Mapping[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
ALL_ROLES: Mapping[str, Role] = {**ROLES, "user": "user", "assistant": "assistant"}
READ_BESIDE = frozenset(("id", "system", "objects", *UNHEARD, *itertools.chain(*MEDIA_KEYS.values())))


def conversation(
    record: Record,
    key: str,
    spelling: tuple[str, str],
    roles: Mapping[str, Role],
    *,
    usual: Mapping[Kind, str],
    first: bool,
) -> list[Spoken]:
    """The turns under ``key``, with the pictures and videos beside them and inside them.

    usual   the keys that hold pictures and videos in this format, for faults
    first   if no text has a placeholder, media come first: a turn's own before its text, the record's before the
            first question (ms-swift, TRL); otherwise that is a fault
    """
    if not isinstance(record.content, Mapping):
        return [*map(_nothing, record.said(key, spelling, roles))]
    queue, found = Queue(record, record.content, "", usual), list[Spoken]()
    for one in record.said(key, spelling, roles):
        own = _own_queue(record, one.item, one.at, usual)
        parts = [
            *contents(
                record, one.content, one.text_at, f"{key}[].{one.text_at.rsplit('.', 1)[1]}", own or queue
            )
        ]
        if own is not None:
            parts = [*(own.unplaced(words(parts)) if first else ()), *parts]
            own.close()
        found.append(one.spoken(parts))
    if not record.faults:
        found = first_placed(record, found, queue) if first else found
        queue.close()
    found = record.with_system(found, queue.words)
    record.leave_unread(record.content, "", "", {key, *READ_BESIDE})
    record.check(found)
    return found


def _nothing(_: Any) -> Spoken:
    raise AssertionError("a record that is not an object has no turns")


def words(parts: Iterable[Part]) -> str:
    """The parts that are text, joined."""
    return "".join(part for part in parts if isinstance(part, str))


def _own_queue(record: Record, item: Mapping[str, Any], at: str, usual: Mapping[Kind, str]) -> Queue | None:
    """The queue of a turn with pictures or videos of its own (Ollama's messages); else None."""
    if all(item.get(key) in (None, "", []) for key in itertools.chain(*MEDIA_KEYS.values())):
        return None
    return Queue(record, item, f"{at}.", usual)


def first_placed(record: Record, turns: Sequence[Spoken], queue: Queue) -> list[Spoken]:
    """The turns, with pictures that have no placeholder moved before the first question."""
    if not any(queue.media.values()) or any(
        not isinstance(part, str) for turn in turns for part in turn.parts
    ):
        return [*turns]
    at = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if at is None:
        return [*turns]
    media = queue.unplaced("".join(words(turn.parts) for turn in turns))
    if not media:
        return [*turns]
    record.notes.add(("pictures or videos without a placeholder", "come before the first question"))
    placed = turns[at]._replace(parts=joined([*media, *turns[at].parts]))
    return [*turns[:at], placed, *turns[at + 1 :]]
