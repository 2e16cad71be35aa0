"""When two written answers are the same but for how they are written, and when one begins the other."""

from __future__ import annotations

import unicodedata


def bare(text: str) -> str:
    """A text without what does not tell answers apart: width, case, and space and punctuation around it.

    " “Canton Tower”. " and "ＣＡＮＴＯＮ tower" give "canton tower", "。" stays as it is.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    inside = [place for place, letter in enumerate(folded) if not _is_around(letter)]
    return folded[inside[0] : inside[-1] + 1] if inside else folded


def _is_around(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PZC"


def begins(one: str, other: str) -> bool:
    """Does one of two texts begin the other, or are they the same, as ``bare`` writes them? 宝塔 begins 宝塔山."""
    first, second = bare(one), bare(other)
    return first.startswith(second) or second.startswith(first)
