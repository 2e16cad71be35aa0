"""Compares answers up to spelling: equal, or one a prefix of the other."""

from __future__ import annotations

import unicodedata


def bare(text: str) -> str:
    """A text normalised for comparison: without character width, case, and surrounding space and punctuation.

    " “Canton Tower”. " and "ＣＡＮＴＯＮ tower" give "canton tower"; "。" alone stays as it is.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    inside = [place for place, letter in enumerate(folded) if not _is_around(letter)]
    return folded[inside[0] : inside[-1] + 1] if inside else folded


def _is_around(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PZC"


def begins(one: str, other: str) -> bool:
    """Whether two texts, normalised by ``bare``, are equal or one is a prefix of the other: 宝塔 and 宝塔山."""
    first, second = bare(one), bare(other)
    return first.startswith(second) or second.startswith(first)
