"""Judges whether a generated text gives the right answer, by its words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from finetune.families.parts.thoughts import without_thought

ARTICLES = frozenset({"a", "an", "the"})
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese: words are not told apart by spaces, or, in Korean, have
particles joined to them."""
_IN_NUMBERS = re.compile(r"(?<=\d)[.,](?=\d)|(?<![\w.,])[-−](?=\d)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = str.maketrans("", "", "'’ʼ")


def normalised(text: str) -> str:
    """A text as it is judged: its words with a space between them, in one width and case, without punctuation and
    articles. A character of a script without spaces is a word of its own; symbols (+, %) are words.

        "It's the Oriental-Pearl ＴＯＷＥＲ!"  →  "its oriental pearl tower"
        "是东方明珠塔。"                        →  "是 东 方 明 珠 塔"
        "1,250.5 m"                          →  "1250.5 m"
    """
    words = _words(text)
    return " ".join(words[place] for place in _without_articles(words))


def says(generated: str, spellings: Sequence[str], foil: str | None) -> bool:
    """Is a spelling of the right answer among the words of a generated text, and the foil not?

    A foil inside a spelling that was found does not count ("not on it" says "not on it", not "on it"); a spelling
    inside a foil does ("Canton Tower" does not say "Tower"). Whole words count, so that "cat" is not in "catalogue";
    negations are not understood: "not a cat" says "cat". A thought says nothing (``without_thought``).
    """
    said = without_thought(generated)
    found = [place for spelling in spellings for place in _places(without_thought(spelling), said)]
    against = [] if foil is None else list(_places(without_thought(foil), said))
    return bool(found) and all(
        any(one.start <= other.start and other.stop <= one.stop for one in found) for other in against
    )


def _places(wanted: str, text: str) -> Iterator[range]:
    """Where the words of ``wanted`` follow each other in a text, with their articles ("option A is right" says
    "option A") or without: ranges of its words."""
    words, said = _words(wanted), _words(text)
    every, some = range(len(said)), _without_articles(said)
    for sought, places in ((words, every), ([words[place] for place in _without_articles(words)], some)):
        for start in range(len(places) - len(sought) + 1) if sought else ():
            if [said[place] for place in places[start : start + len(sought)]] == sought:
                yield range(places[start], places[start + len(sought) - 1] + 1)


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _THOUSANDS.sub("", folded.translate(_APOSTROPHES))
    kept = {match.start() for match in _IN_NUMBERS.finditer(folded)}
    spaced = "".join(
        letter if place in kept else _spaced(letter) for place, letter in enumerate(folded)
    ).split()
    return spaced or list("".join(folded.split()))  # punctuation alone is all that was said


def _spaced(letter: str) -> str:
    """A letter or digit as it is, a space for punctuation, and what is a word of its own between spaces."""
    kind = unicodedata.category(letter)[0]
    if letter == "%" or kind == "S" or (kind in "LMN" and WITHOUT_SPACES.match(letter)):
        return f" {letter} "
    return letter if kind in "LMN" else " "


def _without_articles(words: Sequence[str]) -> list[int]:
    """Places of the words that are no articles. An article stands before a word: the last of "it is A" is none, and the
    first of "A座"."""
    return [
        place
        for place, word in enumerate(words)
        if word not in ARTICLES or place + 1 == len(words) or WITHOUT_SPACES.match(words[place + 1])
    ]
