"""What data write beside a picture and the model reads otherwise: the line break that its chat template writes itself,
and the label of a picture that is read elsewhere than it stands.

    record      "<image>\\nWhat is this?"
    template    USER: <image>\\nWhat is this? ASSISTANT:      one line break, as the model was trained and is served
    Qwen        <|vision_start|>…<|vision_end|>\\nWhat is this?    the record's: this template writes none

    record      "Picture 1: <image>\\nWhat is this?"
    LLaVA       USER: <image>\\nWhat is this? ASSISTANT:      not "<image>\\nPicture 1: \\nWhat is this?"

Not of answers, whose words are learned as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune.families.parts.pieces import Picture, Piece, Turns, is_words
from finetune.families.parts.templates import Write, template_of
from finetune.samples.conversation import Role, without_label

_BEFORE, _BEHIND = "\ufdd6", "\ufdd7"  # noncharacters of Unicode: no template writes them


class Breaks(NamedTuple):
    """What a chat template does with a picture between words.

    moved    it, or the processor around it, reads the pictures of a turn before its words
    before   what is written between the words before it and the picture; "" where it is moved
    behind   what is written behind it, before words
    """

    moved: bool
    before: str
    behind: str


_BREAKS: dict[tuple[type, str, str], Breaks | None] = {}


def breaks_of(processor: Any, write: Write, image_token: str) -> Breaks | None:
    """Found by letting the template write a picture between words; None if it does not write all three."""
    key = *template_of(processor), image_token
    if key not in _BREAKS:
        _BREAKS[key] = _found(write, image_token)
    return _BREAKS[key]


def _found(write: Write, image_token: str) -> Breaks | None:
    content = [{"type": "text", "text": _BEFORE}, {"type": "image"}, {"type": "text", "text": _BEHIND}]
    try:
        written = write([{"role": "user", "content": content}], False)
    except ValueError:  # it refuses such a turn; what it makes of real ones is asked then
        return None
    first, last = (
        re.escape(image_token),
        f"(?:.*{re.escape(image_token)})?",
    )  # a picture in tiles has several places
    if apart := re.search(f"{_BEFORE}(.*?){first}{last}(.*?){_BEHIND}", written, re.DOTALL):
        return Breaks(False, apart[1], apart[2])
    if moved := re.search(f"{first}{last}(.*?){_BEFORE}.*?{_BEHIND}", written, re.DOTALL):
        return Breaks(True, "", moved[1])
    return None


def as_read(turns: Turns, breaks: Breaks) -> list[tuple[Role, Sequence[Piece]]]:
    """Turns without the line breaks beside pictures that the template writes too, and without breaks and labels that
    stood beside a picture which is read elsewhere. Answers stay as they stand."""
    change = _of_moved if breaks.moved else _of_placed
    return [(role, content if role == "assistant" else change(content, breaks)) for role, content in turns]


def _of_moved(content: Sequence[Piece], breaks: Breaks) -> Sequence[Piece]:
    """Pictures without their labels; at an end of the turn, without a break to their words: between words the break
    parts these."""
    pieces = list(content)
    for at, piece in enumerate(content[1:]):
        if isinstance(piece, Picture) and piece.kind == "image" and is_words(pieces[at]):
            pieces[at] = without_label(str(pieces[at]))
    pieces = _filled(pieces)
    if not breaks.behind:
        return pieces
    for places, cut in (
        (range(len(pieces)), without_first_break),
        (range(len(pieces) - 1, -1, -1), without_last_break),
    ):
        beside = False
        for at in places:
            if isinstance(pieces[at], Picture):
                beside = True
            elif not beside or not is_words(pieces[at]):
                break
            else:
                pieces[at], beside = cut(pieces[at]), False
                if pieces[at]:
                    break
    return _filled(pieces)


def _of_placed(content: Sequence[Piece], breaks: Breaks) -> Sequence[Piece]:
    pieces = list(content)
    for at, piece in enumerate(content):
        if not isinstance(piece, Picture):
            continue
        if "\n" in breaks.behind and at + 1 < len(pieces) and is_words(pieces[at + 1]):
            pieces[at + 1] = without_first_break(pieces[at + 1])
        if "\n" in breaks.before and at > 0 and is_words(pieces[at - 1]):
            pieces[at - 1] = without_last_break(pieces[at - 1])
    return _filled(pieces)


def is_ended(piece: Piece) -> bool:
    """Does it end with a line break of words?"""
    return is_words(piece) and str(piece).endswith("\n")


def without_first_break(words: Any) -> str:
    """Words without one line break at their beginning, of Windows too."""
    return re.sub(r"\A\r?\n", "", str(words))


def without_last_break(words: Any) -> str:
    """Words without one line break at their end."""
    return re.sub(r"\r?\n\Z", "", str(words))


def _filled(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece != ""]
