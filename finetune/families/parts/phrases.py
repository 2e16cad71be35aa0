"""The text of each token, and the tokens that hold a phrase."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

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
    """The tokens, within start..end, of the phrase's first appearance; None if there is none.

    As a whole word where there is one ("on" is not the end of "person"), else anywhere.
    """
    ends = [len(unicodedata.normalize("NFC", read)) for read in accumulate(texts[start:end])]
    read = unicodedata.normalize("NFC", "".join(texts[start:end]))
    wanted = re.escape(unicodedata.normalize("NFC", phrase))
    match = re.search(rf"(?<![A-Za-z]){wanted}(?![A-Za-z])", read) or re.search(wanted, read)
    if match is None:
        return None
    return range(start + bisect_right(ends, match.start()), start + bisect_left(ends, match.end()) + 1)
