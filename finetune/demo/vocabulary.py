"""The small vocabulary, in the file format of `qwen.tiktoken`.

A line holds a token's bytes in base64 and its rank. The 256 single bytes come first, in the order of the published
file, so that any text can be encoded; then the merges, learned from the words of the demo until each is one token.
Qwen's 217 special tokens follow the ranks and are not in the file.
"""

import base64
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import regex

from finetune.demo.questions import SEPARATOR, all_texts
from finetune.files import write_atomically
from finetune.qwen_vl.tokenization import SPLIT_PATTERN

CHAT_WORDS = (
    "system", "user", "assistant", "You are a helpful assistant.", "Picture 1: ", "Picture 2: ", "\n", "\n\n"
)  # fmt: skip


def byte_order() -> list[bytes]:
    """The 256 bytes in the order of the published file: the printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [bytes([byte]) for byte in (*printable, *(byte for byte in range(256) if byte not in printable))]


def learn_ranks(texts: Iterable[str]) -> list[bytes]:
    """Tokens by rank: the bytes, then byte pairs merged by frequency until every word of `texts` is one token.

    Words are the pieces of Qwen's pattern; `|` in a text splits further and is dropped.
    Ties are broken by the bytes, so the result depends only on the texts.
    """
    words = Counter(
        piece.encode()
        for text in texts
        for part in text.split(SEPARATOR)
        for piece in regex.findall(SPLIT_PATTERN, part)
    )
    split = {word: [bytes([byte]) for byte in word] for word in words}
    ranks = byte_order()
    while True:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return ranks
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.append(first + second)
        for word, parts in split.items():
            split[word] = _merge(parts, first, second)


def _merge(parts: list[bytes], first: bytes, second: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in parts:
        if merged and merged[-1] == first and part == second:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged


def demo_ranks() -> list[bytes]:
    """The demo's own vocabulary."""
    return learn_ranks([*CHAT_WORDS, *all_texts()])


def write_ranks(ranks: list[bytes], path: Path) -> None:
    """Write a tiktoken file: a base64 token and its rank on each line."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    write_atomically(path, b"".join(lines))
