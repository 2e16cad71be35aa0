"""Alpaca: ``instruction``, ``input``, ``output`` (or ms-swift's ``query``, ``response``), earlier turns in ``history``.

``{"instruction": "What is this?", "input": "Be brief.", "output": "A dog."}`` is the question ``What is this?\\nBe
brief.`` and its answer. ``history`` holds earlier turns as ``[question, answer]`` pairs. As in LLaMA-Factory and
ms-swift, every answer is trained, including those in the history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.samples.conversation import Role
from finetune.samples.formats.dialogue import READ_BESIDE, first_placed
from finetune.samples.formats.placeholders import QWEN_VL_MARK, Kind, Queue
from finetune.samples.formats.record import LOOK_AT, Record, Spoken, a_kind, joined

NAME = "alpaca"
SHAPE = (
    '{"instruction": "<image>What is this?", "input": text, "output": text, "history": [[question, answer], ...], '
    '"images": [path, ...], "system": text} (or "query" and "response")'
)
QUESTIONS, ANSWERS = ("instruction", "query"), ("output", "response")


def may_be(record: Mapping[str, Any], roles: set[str], text: str) -> bool:
    """Whether the record could be in this format."""
    questions, answers = ([record[key] for key in keys if key in record] for keys in (QUESTIONS, ANSWERS))
    if not questions or not answers or record.keys() & {"messages", "conversations"}:
        return False
    return not QWEN_VL_MARK.search(repr([*questions, record.get("history")]))


def turns(record: Record) -> list[Spoken]:
    content = record.content
    if not isinstance(content, Mapping):
        record.fault(f"found {a_kind(content)}, expected an object with 'instruction' and 'output'")
        return []
    usual: Mapping[Kind, str] = {"image": "images", "video": "videos"}
    queue = Queue(record, content, "", usual)
    spoken = [
        Spoken(role, joined(queue.split(text, at)), at, at, at) for role, at, text in _texts(record, content)
    ]
    if not record.faults:
        # If no text has a placeholder for the pictures, ms-swift puts them first; LLaMA-Factory refuses the record.
        spoken = first_placed(record, spoken, queue) if content.get("query") is not None else spoken
        queue.close()
    spoken[-1] = spoken[-1]._replace(look_at=content.get(LOOK_AT))
    spoken = record.with_system(spoken, queue.words)
    record.leave_unread(content, "", "", {*QUESTIONS, *ANSWERS, "input", "history", LOOK_AT, *READ_BESIDE})
    record.check(spoken)
    return spoken


def _texts(record: Record, content: Mapping[str, Any]) -> Iterator[tuple[Role, str, str]]:
    """Role, field and text of each turn."""
    history = content.get("history")
    if history is not None and not isinstance(history, list):
        record.fault(f"history: found {a_kind(history)}, expected a list of [question, answer] pairs")
        history = None
    for i, pair in enumerate(history or []):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            record.fault(f"history[{i}]: found {pair!r:.80}, expected a pair of texts [question, answer]")
            continue
        yield "user", f"history[{i}][0]", pair[0]
        yield "assistant", f"history[{i}][1]", pair[1]
    at, question = _text(record, content, QUESTIONS)
    more = content.get("input")
    if more is not None and not isinstance(more, str):
        record.fault(f"input: found {a_kind(more)}, expected text")
        more = None
    yield "user", at, "\n".join(text for text in (question, more) if text)
    yield "assistant", *_text(record, content, ANSWERS)


def _text(record: Record, content: Mapping[str, Any], keys: tuple[str, str]) -> tuple[str, str]:
    """The field that holds a text (under one of two keys), and the text."""
    given = [key for key in keys if content.get(key) is not None]
    key = given[0] if given else keys[0]
    if len(given) > 1:
        record.fault(f"{given[1]}: found it beside {given[0]}, expected one of them")
    elif not given:
        record.fault(f"{key}: found none, expected text")
    elif not isinstance(content[key], str):
        record.fault(f"{key}: found {a_kind(content[key])}, expected text")
    else:
        return key, content[key]
    return key, ""
