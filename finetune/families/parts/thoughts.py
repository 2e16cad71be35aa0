"""Thoughts (``<think>…</think>``): what a chat template writes of them before an answer, and answers that hold one.

    Qwen3-VL-Thinking          …assistant\\n<think>\\n                   open: answers begin inside a thought
    Qwen3.5 without thinking   …assistant\\n<think>\\n\\n</think>\\n\\n     closed: answers follow an empty one
    Qwen3                      …assistant\\n                          free: answers may hold one

Trap: these templates write a given answer behind an empty thought, whatever its prompt ends with, and drop the thoughts
of answers before the last question. They look for them in the words, which ``chat`` hides from them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune.families.parts.templates import Write, template_of
from finetune.samples.conversation import Role

OPEN, CLOSE = "<think>", "</think>"
PROMPT_END = 16
"""Tokens at the end of a prompt among which the thought that it begins is found."""
_ASKED, _THOUGHT, _ANSWER = "\ufdd3", "\ufdd4", "\ufdd5"  # noncharacters of Unicode: no template writes them
_USUAL = f"\n{CLOSE}\n\n"

Turns = Sequence[tuple[Role, Sequence[Any]]]


def without_thought(text: str) -> str:
    """What a text answers: nothing of what it thinks before, and nothing where it was cut off while thinking.

    "<think>The Canton Tower? No.</think>The Pearl Tower" → "The Pearl Tower"; "<think>The Canton Tower?" → ""
    """
    return text.rpartition(CLOSE)[2].partition(OPEN)[0]


def begun_by(prompt: str) -> str:
    """What a prompt has begun of the answer that follows it: ``<think>`` where it ends inside a thought, else "".

    A generated answer is judged with it, since one that is cut off while thinking has no mark of its own.
    """
    _, begun, after = prompt.rpartition(OPEN)
    return OPEN if begun and not after.strip() else ""


class Habit(NamedTuple):
    """What a chat template does with thoughts.

    opened    what its prompts end with, from ``<think>`` on; "" for nothing
    between   what it writes between a thought and the answer after it
    kept      whether it keeps the thoughts of answers before the last question
    """

    opened: str
    between: str
    kept: bool

    @property
    def is_open(self) -> bool:
        return bool(self.opened) and CLOSE not in self.opened

    @property
    def is_closed(self) -> bool:
        return CLOSE in self.opened


_HABITS: dict[tuple[type, str], Habit] = {}


def habit_of(processor: Any, write: Write) -> Habit | None:
    """Found by letting the template write thoughts; None if it knows none, as most do."""
    key = template_of(processor)
    if OPEN not in key[1]:
        return None
    if key not in _HABITS:
        _HABITS[key] = _found(write)
    return _HABITS[key]


def _found(write: Write) -> Habit:
    asked, answered = _message("user", _ASKED), _message("assistant", _THOUGHT + CLOSE + _ANSWER)
    tail = write([asked], True).partition(_ASKED)[2]
    opened = tail[tail.rfind(OPEN) :] if OPEN in tail else ""
    between = re.search(f"{_THOUGHT}(.*?){_ANSWER}", write([asked, answered], False), re.DOTALL)
    is_usual = between is None or CLOSE not in between[1]
    return Habit(
        opened,
        _USUAL if is_usual or between is None else between[1],
        _THOUGHT in write([asked, answered, asked], False),
    )


def _message(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": words}]}


def written_once(
    turns: Turns, habit: Habit, *, trained: Sequence[bool], generating: bool
) -> list[tuple[Role, Sequence[Any]]]:
    """Turns whose answers hold what follows the prompt, and no thought that the template drops.

    trained      of each turn, whether it is trained or measured if it is an answer
    generating   a prompt for an answer follows: these are only read

    Raises ValueError for an answer that would be trained or measured where this template never has it generated.
    """
    asked_last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=-1)
    found = []
    for i, (role, content) in enumerate(turns):
        split = _split(content) if role == "assistant" else None
        is_last = i == len(turns) - 1 and not generating
        if role == "assistant" and trained[i] and not generating and any(map(_is_something, content)):
            _check(habit, f"turn {i} (assistant)", split, is_last)
        if split is not None and is_last:
            content = _last(habit, content, split)
        elif split is not None and i < asked_last and not habit.kept:
            content = split.answer
        found.append((role, content))
    return found


class _Split(NamedTuple):
    """An answer cut at its ``</think>``, which is in neither part, nor are the line breaks around it."""

    thought: Sequence[Any]
    answer: Sequence[Any]

    @property
    def thinks(self) -> bool:
        return any(map(_is_something, self.thought))


def _split(content: Sequence[Any]) -> _Split | None:
    """None if there is no thought, or one that holds more than words."""
    for at, piece in enumerate(content):
        if not isinstance(piece, str):
            return None
        if CLOSE in piece:
            before, _, after = piece.partition(CLOSE)
            thought = [*content[:at], before.rstrip("\n")]
            thought[0] = re.sub(rf"^\s*{OPEN}", "", thought[0]) if type(thought[0]) is str else thought[0]
            return _Split(thought, [after.lstrip("\n"), *content[at + 1 :]])
    return None


def _is_something(piece: Any) -> bool:
    return not isinstance(piece, str) or bool(piece.strip())


def _last(habit: Habit, content: Sequence[Any], split: _Split) -> Sequence[Any]:
    """What follows the prompt's end of an answer that holds a thought."""
    if habit.is_closed:
        return content if split.thinks else split.answer
    if not habit.is_open:
        return content
    first, *rest = split.thought
    begins = first.lstrip("\n") if type(first) is str and habit.opened.endswith("\n") else first
    return [begins, *rest, habit.between, *split.answer]


def _check(habit: Habit, turn: str, split: _Split | None, is_last: bool) -> None:
    thinks = split is not None and split.thinks
    if habit.is_closed and thinks:
        raise ValueError(
            f"{turn}: found a thought ({OPEN}…{CLOSE}), expected an answer alone: answers of this model are learned, "
            "measured and generated without thinking, after an empty thought; leave the thought out"
        )
    if habit.is_open and is_last and split is None:
        raise ValueError(
            f"{turn}: found an answer without a thought, but this checkpoint's chat template has every answer begin "
            f"inside one (prompts end in {habit.opened!r}): it would be learned and measured where it is never given; "
            f'take the Instruct checkpoint, or write answers as "{OPEN}…{CLOSE}answer"'
        )
    if not is_last and (habit.is_open or (thinks and not habit.kept)):
        raise ValueError(
            f"{turn}: found an answer before the last one, which this checkpoint's chat template writes without its "
            "thought, though it is generated with one; expected the answer that is trained at the end: make a "
            'sample of each answer, or exclude those before the last one ("weight": 0)'
        )
