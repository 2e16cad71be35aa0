"""The inputs of a figure, normalised: arrays of any kind, and tokens in any tokenizer's spelling.

Weights come as NumPy arrays, tensors of torch (bfloat16, on a GPU, with a gradient) or lists; tokens as texts, as bytes
(Qwen-VL's), as byte-level vocabularies (``Ġtower``, ``å¡Ķ``) or SentencePiece (``▁tower``, ``<0xE5>``) spell them, or
as ids.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_FLOOR = -1e-6
"""Below it a weight is negative; above it, what arithmetic has left of a zero."""
_Piece = tuple[str, bytes]  # "bytes" with what they are, or "text" with its UTF-8


def as_array(values: Any, name: str) -> np.ndarray:
    """Weights as Float64.

    Raises ValueError for anything else: lists of unequal lengths, texts, None.
    """
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        if isinstance(values, list | tuple) and torch is not None:
            values = [as_array(one, name) if isinstance(one, torch.Tensor) else one for one in values]
        array = np.asarray(values)
        if array.dtype.kind not in "fiub" or array.size == 0:
            raise ValueError(f"{array.dtype} of shape {array.shape}")
    except ValueError as error:
        raise ValueError(
            f"{name} is no array of numbers: found {str(error)[:120]}; expected an array, a tensor or lists of equal "
            "lengths, with at least one number"
        ) from error
    return array.astype(np.float64)


def check_weights(values: np.ndarray, name: str) -> None:
    """Raises ValueError for values that attention cannot have: infinite or negative. NaN passes: it marks no value."""
    wrong = np.isinf(values) | (values < _FLOOR)
    if wrong.any():
        place = tuple(int(one) for one in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name} holds {values[place]:.4g} at {list(place)} (and {int(wrong.sum()) - 1} more like it); expected "
            "attention, which is finite and not negative: logits become so by a softmax over keys"
        )


def as_tokens(tokens: Any, name: str) -> list[str]:
    """A text for each token, as a person reads it: ids as numbers, None as ``None``, and a character that is cut by a
    border of tokens in each of its parts: ``塔 1/2``, ``塔 2/2``.

    Raises ValueError for what is no list of tokens.
    """
    # hasattr: arrays and tensors of ids, and their numbers, have no base in common.
    if hasattr(tokens, "tolist"):
        tokens = tokens.tolist()
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise ValueError(
            f"{name} is {str(type(tokens).__name__)!r}; expected a list with one token for each key"
        )
    given = [one.tolist() if hasattr(one, "tolist") else one for one in tokens]
    for at, one in enumerate(given):
        if not (one is None or isinstance(one, str | bytes | int)):
            raise ValueError(
                f"{name}[{at}] is of type {type(one).__name__}; expected a text, bytes, an id or None for each token"
            )
    decode = _byte_level if _is_byte_level(given) else _plain
    pieces = [decode(one) for one in given]
    texts: list[str] = []
    for kind, run in groupby(pieces, key=lambda piece: piece[0]):
        parts = [content for _, content in run]
        texts += (
            _characters(parts) if kind == "bytes" else [part.decode("utf-8", "replace") for part in parts]
        )
    return texts


def _plain(token: Any) -> _Piece:
    if isinstance(token, bytes):
        return "bytes", token
    if isinstance(token, str) and (found := _BYTE_TOKEN.fullmatch(token)):
        return "bytes", bytes.fromhex(found[1])
    text = token.replace("▁", " ") if isinstance(token, str) else str(token)
    return "text", text.encode("utf-8", "replace")


def _byte_level(token: Any) -> _Piece:
    if isinstance(token, str) and token and all(character in byte_of() for character in token):
        return "bytes", bytes(byte_of()[character] for character in token)
    return _plain(token)


def _is_byte_level(tokens: Sequence[Any]) -> bool:
    """Are these spelled as GPT-2's vocabulary spells bytes? Then some characters are beyond ASCII, and what they stand
    for is UTF-8, which accents and umlauts of plain text are not (``é`` would be a byte that begins nothing)."""
    known = byte_of()
    texts = [one if isinstance(one, str) else " " for one in tokens]
    runs = groupby(texts, key=lambda text: bool(text) and all(character in known for character in text))
    spelled = ["".join(run) for is_known, run in runs if is_known]
    return any(not run.isascii() for run in spelled) and all(
        _is_utf8(bytes(known[character] for character in run)) for run in spelled
    )


def _is_utf8(content: bytes) -> bool:
    """But for a character that is cut at either end: a list may begin or end anywhere."""
    start = next((at for at, byte in enumerate(content[:4]) if byte & 0xC0 != 0x80), min(len(content), 4))
    if start > 3:
        return False
    try:
        content[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


@lru_cache(maxsize=1)
def byte_of() -> dict[str, int]:
    """Character → the byte that it stands for in byte-level vocabularies: bytes that print stand for themselves, the
    others for U+0100 and what follows, in order (Radford et al., "Language models are unsupervised multitask learners",
    2019, §2.2; the vocabularies of Qwen2 and after)."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in prints)
    return {chr(byte): byte for byte in prints} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _characters(parts: Sequence[bytes]) -> list[str]:
    """The text of each token of bytes; bytes that are no character as ``\\xe5``.

    ``["东".encode(), b"\\xe5\\xa1", b"\\x94?"]`` → ``["东", "塔 1/2", "塔 2/2?"]``.
    """
    owners = [at for at, part in enumerate(parts) for _ in part]
    texts = [""] * len(parts)
    start = 0
    for character, length in _decoded(b"".join(parts)):
        tokens = list(dict.fromkeys(owners[start : start + length]))
        for number, token in enumerate(tokens, start=1):
            cut = f"{character} {number}/{len(tokens)}"
            texts[token] += character if len(tokens) == 1 else f" {cut}" if texts[token] else cut
        start += length
    return texts


def _decoded(content: bytes) -> Iterator[tuple[str, int]]:
    """Each character, and of how many bytes."""
    at = 0
    while at < len(content):
        length = next((one for one in range(1, 5) if _is_character(content[at : at + one])), 0)
        yield (content[at : at + length].decode(), length) if length else (f"\\x{content[at]:02x}", 1)
        at += length or 1


def _is_character(content: bytes) -> bool:
    try:
        return len(content.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False
