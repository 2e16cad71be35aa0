"""What a turn is made of before its chat template writes it: words, control tokens, places of pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetune.samples.conversation import Role


class Control(str):
    """A control token that is meant as one; in a plain string the same characters are words."""


class Picture(NamedTuple):
    """The place of a picture or a video, and how many tokens it takes.

    kind   what the template calls it: "image", or "video" where it is the template that says where a video goes
    """

    tokens: int
    kind: str = "image"


class Slots(NamedTuple):
    """A control token many times over, written as it is, past the template: the place of a video, or of a frame."""

    token: str
    tokens: int


Piece = str | Control | Picture | Slots
Turns = Sequence[tuple[Role, Sequence[Piece]]]


def is_words(piece: Piece) -> bool:
    """Is it what people wrote?"""
    return isinstance(piece, str) and not isinstance(piece, Control)
