"""Corrupted files for fuzz tests: JSON with one to three faults, by seed."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.5, 10**9, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", "x",
    "auto", "3", "../../x", "a\0b", "\ud800", "é" * 500, [], [[]], [None], [1, 2, 3], ["x"], {}, {"a": 1}, {"": None},
)  # fmt: skip


def damaged(content: Any, seed: int) -> bytes:
    """``content`` as JSON with faults."""
    chance = random.Random(seed)
    kind = chance.random()
    if kind < 0.03:
        return b"[" * 50_000 if chance.random() < 0.5 else b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    if kind < 0.06:
        return json.dumps(chance.choice(VALUES)).encode()
    changed = copy.deepcopy(content)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            break
        parent, key = chance.choice(places)
        if chance.random() < 0.15:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(chance.choice(VALUES))
    text = json.dumps(changed).encode()
    if kind < 0.12:
        return text[: chance.randrange(len(text))]
    if kind < 0.15:
        at = chance.randrange(len(text))
        return text[:at] + chance.choice([b"\xff", b"\0", b"//", b"9" * 5000, b"\xef\xbb\xbf"]) + text[at:]
    return text


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key) below ``content``."""
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)
