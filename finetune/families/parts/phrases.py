"""The text of each token, and the tokens that hold a phrase, or the words of a turn."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, get_args

from finetune.samples.conversation import BoxKey, BoxRef, Part
from finetune.samples.formats.look_at import composed, occurrences, said

IMAGE_TOKEN_TEXT = "<image>"
MAX_BYTES_OF_A_CHARACTER = 4  # UTF-8


def token_texts(tokenizer: Any, ids: Sequence[int], image_positions: Collection[int] = ()) -> list[str]:
    """The text of each token, which joined give the whole text; an image token reads ``<image>``.

    A character split between tokens (byte-level vocabularies split rare Chinese ones) belongs to the token that
    completes it; the tokens before it have "".
    """
    texts: list[str] = []
    pending: list[int] = []
    before = _before_a_word(tokenizer)
    cut = len(str(tokenizer.decode(before))) if before else 0
    for position, token in enumerate(ids):
        if position in image_positions:
            texts.append(IMAGE_TOKEN_TEXT)
            pending = []
            continue
        pending.append(token)
        text = str(tokenizer.decode([*before, *pending]))[cut:]
        is_cut = text.endswith("\N{REPLACEMENT CHARACTER}") and len(pending) < MAX_BYTES_OF_A_CHARACTER
        texts.append("" if is_cut else text)
        pending = pending if is_cut else []
    return texts


def _before_a_word(tokenizer: Any) -> list[int]:
    """Ids to decode before a token, so that it keeps its space. [] for tokenizers that drop none.

    Trap: SentencePiece drops the space of the first token ("▁on" → "on"). Token by token, "Canton is on it" then reads
    "Cantonisonit", in which "on" is no whole word and is found in "Canton".
    """
    ids = list(tokenizer("a a", add_special_tokens=False)["input_ids"])
    alone = "".join(str(tokenizer.decode([one])) for one in ids)
    return ids if alone == "aa" else []


def find_phrase(phrase: str, texts: Sequence[str], start: int, end: int) -> int | None:
    """Index of the token, within start..end, that completes the phrase (``find_span``)."""
    span = find_span(phrase, texts, start, end)
    return None if span is None else span[-1]


def find_span(phrase: str, texts: Sequence[str], start: int, end: int) -> range | None:
    """The tokens, within start..end, of the phrase's first appearance as a whole word ("on" is not the end of
    "person"); None if there is none."""
    found = occurrences(phrase, composed("".join(texts[start:end])))
    if not found:
        return None
    ends = _ends(texts[start:end])
    return range(start + bisect_right(ends, found[0].start()), start + bisect_left(ends, found[0].end()) + 1)


class Written(NamedTuple):
    """The words of one part of a turn, and where a model's tokens write them.

    start    the first of its characters among the words of the turn (``words_of``)
    places   of each of its characters, the place in the text that the tokens give
    """

    start: int
    places: Sequence[int]


def written_words(parts: Sequence[Part], texts: Sequence[str]) -> list[Written]:
    """Where the tokens of a turn write the words of its parts, whatever stands between them: numbers, marks, JSON.

    texts   of the turn's tokens

    ``("a ", cat, " 2")``, tokens ``a {"bbox_2d": [1, 2, 3, 4], "label": "cat"} 2`` → places 0 and 1; 38 to 40; 43, 44.

    Raises ValueError if the tokens do not give the words.
    """
    read = composed("".join(texts))
    # A family writes the phrase of several boxes once, or with each box (JSON, PaliGemma); a turn is of one kind.
    for with_each in (True, False):
        places = _places(parts, read, with_each=with_each)
        if places is not None:
            starts = accumulate(map(len, places), initial=0)
            return [*map(Written, starts, places)]
    raise ValueError(
        f"look_at: found the tokens of the answer {read!r:.120}, expected the words "
        f"{' … '.join(filter(None, map(said, parts)))!r:.120} in them; the tokenizer changes them: leave the sample out"
    )


def tokens_of(start: int, end: int, written: Sequence[Written], texts: Sequence[str]) -> list[int]:
    """The tokens that write the characters from start to end of a turn's words."""
    ends, found = _ends(texts), dict[int, None]()
    for one in written:
        inside = one.places[max(start - one.start, 0) : max(end - one.start, 0)]
        if inside:
            found |= dict.fromkeys(range(bisect_right(ends, inside[0]), bisect_right(ends, inside[-1]) + 1))
    return [*found]


def _ends(texts: Sequence[str]) -> list[int]:
    """Where each token ends in the text of all."""
    return [len(composed(read)) for read in accumulate(texts)]


def _places(parts: Sequence[Part], read: str, *, with_each: bool) -> list[Sequence[int]] | None:
    """Of each part's characters the place in what is read; None if the parts are not in it, one behind the other."""
    found, at = list[Sequence[int]](), 0
    for number, part in enumerate(parts):
        if isinstance(part, BoxRef):
            times = max(len(part.boxes), 1) if with_each else 1
            several = _phrases(said(part), read, at, times)
        else:
            several = _verbatim(said(part), read, at, last=number == len(parts) - 1)
        if several is None:
            return None
        found.append(several[0])
        at = several[-1][-1] + 1 if several[-1] else at
    return found


def _verbatim(words: str, read: str, at: int, *, last: bool) -> list[Sequence[int]] | None:
    """The next place of a text between boxes; of the last one, the last. None without one."""
    start = read.rfind(words) if last else read.find(words, at)
    return None if start < at else [range(start, start + len(words))]


def _phrases(phrase: str, read: str, at: int, times: int) -> list[Sequence[int]] | None:
    """The next places of a box's phrase, of none none; None if there are fewer."""
    if not phrase:
        return [()]
    found = list[Sequence[int]]()
    for _ in range(times):
        match = _forms(phrase).search(read[at:]) or re.search(f"(?P<plain>{re.escape(phrase)})", read[at:])
        if match is None:
            return None
        start = at + match.start(str(match.lastgroup))
        escaped = match.lastgroup == "json"
        lengths = (len(_in_json(one)) if escaped else 1 for one in phrase)
        found.append([*accumulate(lengths, initial=start)][:-1])
        at += match.end(str(match.lastgroup))
    return found


def _forms(phrase: str) -> re.Pattern[str]:
    """A box's phrase as families write it: in JSON, between marks, or alone, and then no part of a number."""
    plain, escaped, keys = re.escape(phrase), re.escape(_in_json(phrase)), "|".join(get_args(BoxKey))
    return re.compile(
        rf'\{{"(?:{keys})": \[[^\]]*\], "label": "(?P<json>{escaped})"|<ref>(?P<ref>{plain})</ref>|'
        rf"<\|object_ref_start\|>(?P<object>{plain})<\|object_ref_end\|>|(?<![\d.])(?P<plain>{plain})(?!\d)"
    )


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
