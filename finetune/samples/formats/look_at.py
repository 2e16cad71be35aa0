"""Where an answer should look: ``look_at`` of a turn, checked against its words and pictures.

    {"from": "assistant", "value": "This is the Oriental Pearl Tower.",
     "look_at": [{"phrase": "Oriental Pearl Tower", "boxes": [[41, 30, 63, 52], [38, 70, 66, 98]]}]}

Boxes are in pixels of the upright picture. A relation has ``ends`` in place of ``boxes``: the boxes of its subject, and
those of its object. ``image`` says which picture, counted from 0 without videos, where there are several. A phrase has
as many entries as it is there, the first about the first, the second about the second. Without ``look_at``,
``<ref>phrase</ref><box>…</box>`` in an answer says the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from finetune.samples.box_numbers import Fractions, fractions
from finetune.samples.conversation import BoxRef, ImageRef, LookAt, Part, Turn, VideoRef
from finetune.samples.formats.record import LOOK_AT, Record, Spoken, a_kind
from finetune.samples.formats.unread import is_empty

KEYS = ("phrase", "boxes", "ends", "image")
MOST_ENDS = 2
EXPECTED = '{"phrase": words of the answer, "boxes": [[x0, y0, x1, y1], ...]}'


def look_at(
    record: Record, turn: Spoken, parts: Sequence[Part], images: Sequence[ImageRef | VideoRef]
) -> tuple[LookAt, ...]:
    """What a turn says about where to look; problems become faults.

    parts    the turn's words and boxes
    images   pictures and videos up to the turn
    """
    if is_empty(turn.look_at):
        return ()
    at = f"{turn.at}.{LOOK_AT}" if turn.at != turn.text_at else LOOK_AT
    if turn.role != "assistant" or not turn.trained:
        what = "an answer that is not learned" if turn.role == "assistant" else f"a turn of the {turn.role}"
        record.fault(f"{at}: found it in {what}, expected it in a learned answer, whose words it is about")
        return ()
    if not isinstance(turn.look_at, list):
        record.fault(f"{at}: found {a_kind(turn.look_at)}, expected a list of {EXPECTED}")
        return ()
    found = []
    for number, entry in enumerate(turn.look_at):
        try:
            found.append(_entry(entry, words_of(parts), images))
        except ValueError as error:
            record.fault(f"{at}[{number}]: {error}")
    for phrase, entries in Counter(composed(one.phrase) for one in found).items():
        there = len(occurrences(phrase, words_of(parts)))
        if there != entries:
            remedy = "add the others, or write a longer phrase that is there once"
            if entries > there:
                remedy = (
                    "put boxes to look at together into one entry (of several pictures they cannot be: write the "
                    "phrase once for each), and write phrases as the answer does, in its case"
                )
            record.fault(
                f"{at}: found {entries} with the phrase {phrase!r:.80}, which the answer {words_of(parts)!r:.120} has "
                f"{there} time{'s' * (there != 1)}, expected one for each, in order; {remedy}"
            )
    if not record.faults:
        _check_apart(record, at, found, words_of(parts))
    return tuple(found)


def _check_apart(record: Record, at: str, looks: Sequence[LookAt], words: str) -> None:
    """A fault for two phrases that begin together: one row of attention would be taught two places."""
    begun: dict[int, str] = {}
    for place in _of_entries(looks, words):
        phrase = place.look.phrase
        if (other := begun.setdefault(place.start, phrase)) != phrase:
            record.fault(
                f"{at}: found the phrases {other!r:.80} and {phrase!r:.80}, which begin at one place of the answer, "
                "expected one entry for each place; put boxes to look at together into one entry, or leave out the "
                "words that both have"
            )


def of_turn(turn: Turn) -> tuple[LookAt, ...]:
    """Where an answer should look: as its data says, otherwise as its markup says."""
    if turn.look_at or turn.role != "assistant" or not turn.trained:
        return turn.look_at
    return tuple(place.look for place in _of_markup(turn.parts))


class Place(NamedTuple):
    """Where an answer should look as it writes some of its words.

    start, end   the characters of ``words_of`` the answer that the look is about
    """

    look: LookAt
    start: int
    end: int


def places(turn: Turn) -> Iterator[Place]:
    """The looks of an answer (``of_turn``), each at its own words: of markup at its phrase, of ``look_at`` at the
    phrase's one occurrence, or at as many as there are entries, in order.

    ``"a cat, a cat"`` with two entries for "cat" → characters 2 to 5, and 9 to 12.

    Raises ValueError where the answer has a phrase less often.
    """
    if turn.look_at:
        yield from _of_entries(turn.look_at, words_of(turn.parts))
    elif turn.role == "assistant" and turn.trained:
        yield from _of_markup(turn.parts)


def words_of(parts: Sequence[Part]) -> str:
    """The words of a turn; of boxes the phrase that they belong to."""
    return "".join(map(said, parts))


def said(part: Part) -> str:
    """The words of a part of a turn, accents composed (NFC)."""
    words = part.label or "" if isinstance(part, BoxRef) else part
    return composed(words) if isinstance(words, str) else ""


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def occurrences(phrase: str, words: str) -> list[re.Match[str]]:
    """Where a phrase is in words, as a whole word: "on" is not the end of "person", nor "cat" the start of
    "category"; of one that is nowhere so, in its plural by -s or -es ("cats")."""
    wanted = composed(phrase)
    return [*whole_words(wanted).finditer(words)] or [*_in_plural(wanted).finditer(words)]


def _in_plural(phrase: str) -> re.Pattern[str]:
    return re.compile(f"(?<!{_LETTER}){re.escape(phrase)}(?=e?s(?!{_LETTER}))")


_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"  # Chinese, Japanese
    "\u1100-\u11ff\uac00-\ud7ff"  # Korean, which has spaces, and endings without one
)
_LETTER = rf"(?:[^\W\d_{_UNSPACED}]|[\u0300-\u036f\u0900-\u0963\u0970-\u0dff])"
"""A letter, or a sign above or beside one, of those scripts that are written with spaces between words."""


def whole_words(*phrases: str) -> re.Pattern[str]:
    """Any of the phrases, the first before the others, as whole words. Only letters of scripts with spaces make words
    longer: Chinese sets no borders."""
    return re.compile("|".join(map(_whole, phrases)))


def _whole(phrase: str) -> str:
    before = f"(?<!{_LETTER})" if re.match(_LETTER, phrase) else ""
    after = f"(?!{_LETTER})" if re.search(rf"{_LETTER}\Z", phrase) else ""
    return f"{before}{re.escape(phrase)}{after}"


def _of_entries(looks: Sequence[LookAt], words: str) -> Iterator[Place]:
    before = Counter[str]()
    for look in looks:
        found, phrase = occurrences(look.phrase, words), composed(look.phrase)
        number = 0 if len(found) == 1 else before[phrase]
        if number >= len(found):
            raise ValueError(
                f"look_at: phrase {look.phrase!r:.80} not found{' again' * bool(found)} in the answer {words!r:.120}; "
                "write it as the answer does"
            )
        before[phrase] += 1
        yield Place(look, found[number].start(), found[number].end())


def _of_markup(parts: Sequence[Part]) -> Iterator[Place]:
    ends = accumulate(len(said(part)) for part in parts)
    for part, end in zip(parts, ends, strict=True):
        if isinstance(part, BoxRef) and part.label and part.key != "point_2d" and part.boxes:
            yield Place(LookAt(part.label, (part.boxes,), part.image), end - len(said(part)), end)


def _entry(entry: Any, words: str, images: Sequence[ImageRef | VideoRef]) -> LookAt:
    if not isinstance(entry, Mapping):
        raise ValueError(f"found {a_kind(entry)}, expected {EXPECTED}")
    unknown = sorted(entry.keys() - {*KEYS})
    if unknown:
        raise ValueError(f"found {', '.join(map(repr, unknown))}, expected {', '.join(KEYS)} alone")
    phrase = entry.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"phrase: found {phrase!r:.80}, expected words of the answer")
    if composed(phrase) not in words:
        raise ValueError(
            f"phrase: {phrase!r:.80} is not in the answer {words!r:.120}; write it as the answer does"
        )
    if not occurrences(phrase, words):
        raise ValueError(
            f"phrase: {phrase!r:.80} is only inside a longer word of the answer {words!r:.120}; write the whole word"
        )
    number, image = _image(entry.get("image"), images)
    if image.size_pixels is None:
        return LookAt(phrase, (), number)  # the picture cannot be read, which is a fault already
    size = image.size_pixels
    return LookAt(phrase, tuple(_boxes(one, size) for one in _ends(entry)), number)


def _ends(entry: Mapping[str, Any]) -> list[Any]:
    boxes, ends = entry.get("boxes"), entry.get("ends")
    if (boxes is None) == (ends is None):
        found = "neither" if boxes is None else "both"
        raise ValueError(
            f"found {found} of boxes and ends, expected one: ends has the boxes of subject and object"
        )
    if ends is None:
        return [boxes]
    if not isinstance(ends, list) or len(ends) != MOST_ENDS:
        raise ValueError(
            f"ends: found {ends!r:.80}, expected two lists of boxes, of the subject and of the object"
        )
    return ends


def _boxes(boxes: Any, size: tuple[int, int]) -> tuple[Fractions, ...]:
    if not isinstance(boxes, list) or not boxes:
        raise ValueError(f"boxes: found {boxes!r:.80}, expected a list of [x0, y0, x1, y1] in pixels")
    return tuple(fractions(one, "pixels", size) for one in boxes)


def _image(named: Any, images: Sequence[ImageRef | VideoRef]) -> tuple[int, ImageRef]:
    """The picture that ``image`` names, and its place among pictures and videos: of picture, video,
    picture, number 1 is at place 2."""
    pictures = [(place, one) for place, one in enumerate(images) if isinstance(one, ImageRef)]
    count = len(pictures)
    if not count:
        videos = ", only videos: boxes are of pictures only" if images else ""
        raise ValueError(f"found boxes, but no picture before the answer{videos}")
    if named is None and count == 1:
        return pictures[0]
    if isinstance(named, int) and not isinstance(named, bool) and 0 <= named < count:
        return pictures[named]
    which = "none" if named is None else repr(named)
    beside = ", without videos" if count < len(images) else ""
    raise ValueError(
        f"image: found {which}, expected 0 to {count - 1}, counted from 0{beside}: which picture the boxes are in"
    )
