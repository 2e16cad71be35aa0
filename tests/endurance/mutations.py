"""Hostile files made from sound ones: bytes, JSON with its structure, and what a name in a file may point to."""

import copy
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DEEP, HUGE = "@@deep@@", "@@huge@@"
TWICE = "@@twice@@"
"""Words that stand in a content for what json.dumps cannot write."""

NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    0.5,
    -0.5,
    1e-320,
    255,
    256,
    65_536,
    2**31,
    -(2**31),
    2**53,
    2**63,
    10**9,
    10**30,
    -(10**30),
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    HUGE,
)
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "x",
    "3",
    "true",
    "null",
    "auto",
    "a\0b",
    "\ud800",
    "é" * 500,
    "x" * 70_000,
    "\x1b[31mred\x1b[0m\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "a\nb\rc",
    "{{7*7}}",
    "{0.__class__}",
    "%s%s%n",
    "${HOME}",
    "<script>alert(1)</script>",
    "<image>",
    "<img>",
    "<box>(1,2),(3,4)</box>",
    "<box>",
    "<|im_end|>",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "~root",
    "file:///dev/zero",
    "data:image/png;base64,AAAA",
    "C:\\a\\b",
    "fifo.png",
    "loop.png",
    "zero.png",
    "folder.png",
    "empty.png",
    "a.png",
    "b.jpg",
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    [[]],
    [None],
    [1, 2, 3],
    ["x"],
    [0.1] * 50,
    {},
    {"a": 1},
    {"": None},
    {"path": "a.png"},
    DEEP,
)


class Change(NamedTuple):
    """One change of a content: where (list places as ``*``), and how."""

    where: str
    how: str

    def __str__(self) -> str:
        return f"{self.where}: {self.how}"


def hostile_names(folder: Path) -> None:
    """What a name in a file may point to: a pipe, a link to itself, a device, a folder, nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "fifo.png").exists():
        os.mkfifo(folder / "fifo.png")
    for name, target in (("loop.png", "loop.png"), ("zero.png", "/dev/zero")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    (folder / "folder.png").mkdir(exist_ok=True)
    (folder / "empty.png").touch()


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------


def changed(content: Any, chance: random.Random, most: int = 3) -> tuple[Any, list[Change]]:
    """A copy of a content with one to ``most`` changes; mostly one, so that what it does can be told."""
    made = copy.deepcopy(content)
    done: list[Change] = []
    for _ in range(1 if chance.random() < 0.75 else chance.randint(2, max(2, most))):
        places = list(_places(made, ""))
        if not places:
            break
        done.append(_change(chance, *chance.choice(places)))
    return made, done


def text_of(
    content: Any, chance: random.Random, *, ascii_only: bool | None = None, indent: int | None = None
) -> str:
    """JSON of a content in which the words above may stand."""
    plain = chance.random() < 0.6 if ascii_only is None else ascii_only
    try:
        text = json.dumps(content, ensure_ascii=plain, indent=indent)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(content, ensure_ascii=True, indent=indent)
    depth = chance.choice((600, 3_000, 100_000))
    deep = "[" * depth + "]" * depth if chance.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    text = text.replace(f'"{HUGE}"', "9" * 5_000).replace(f'"{DEEP}"', deep)
    return re.sub(re.escape(TWICE), "", text)


def _places(content: Any, at: str) -> Iterator[tuple[Any, Any, str]]:
    """(object or list, key, name) of every place below a content."""
    if isinstance(content, dict):
        for key in list(content):
            name = f"{at}.{key}" if at else str(key)
            yield content, key, name
            yield from _places(content[key], name)
    elif isinstance(content, list):
        for index in range(len(content)):
            yield content, index, f"{at}[*]"
            yield from _places(content[index], f"{at}[*]")


def _change(chance: random.Random, parent: Any, key: Any, name: str) -> Change:
    value = parent[key]
    ways: list[str] = ["other", "other", "delete", "alike", "alike", "wrapped"]
    if isinstance(parent, dict):
        ways += ["renamed", "twice", "swapped", "beside"]
    else:
        ways += ["repeated", "swapped"]
    if isinstance(value, list) and value:
        ways += ["turned", "cut", "grown"]
    how = chance.choice(ways)
    if how == "other":
        chosen = chance.choice(chance.choice((NUMBERS, TEXTS, OTHERS)))
        parent[key] = copy.deepcopy(chosen)
        return Change(name, f"{how} {_kind(value)} → {_brief(chosen)}")
    if how == "alike":
        return Change(name, _alike(chance, parent, key))
    if how == "delete":
        del parent[key]
    elif how == "wrapped":
        parent[key] = chance.choice(([value], {"value": value}, [value, value]))
    elif how == "renamed":
        fresh = chance.choice(
            (f"{key}s", f"{key}".upper(), f" {key}", f"{key}\x1b[2J", "", "x" * 5_000, "\ud800", "__class__")
        )
        parent[fresh] = parent.pop(key)
        return Change(name, f"{how} to {_brief(fresh)}")
    elif how == "twice":
        parent[f"{key}{TWICE}"] = copy.deepcopy(chance.choice(chance.choice((NUMBERS, TEXTS, OTHERS))))
    elif how == "beside":
        fresh = chance.choice(("extra", "type", "auto_map", "\x1b]0;title\x07", "image", "version"))
        if fresh not in parent:
            parent[fresh] = copy.deepcopy(chance.choice(chance.choice((NUMBERS, TEXTS, OTHERS))))
        return Change(name, f"{how} {_brief(fresh)}")
    elif how == "repeated":
        parent.insert(key, copy.deepcopy(value))
    elif how == "swapped":
        other = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif how == "turned":
        value.reverse()
    elif how == "cut":
        value.pop()
    elif how == "grown":
        value.extend(copy.deepcopy(value[:1]) * chance.choice((1, 2, 300)))
    return Change(name, how)


def _alike(chance: random.Random, parent: Any, key: Any) -> str:
    """A value near the right one: a number as text, a truth as a number, another sign, another size."""
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = chance.choice((int(value), str(value), str(value).lower(), not value, float(value)))
    elif isinstance(value, int | float):
        parent[key] = chance.choice(
            (str(value), bool(value), -value, value * 1000, value + 0.5, [value], value + 1, 10**15)
        )
    elif isinstance(value, str):
        parent[key] = chance.choice(
            (
                value + "x",
                value[:-1],
                value.upper(),
                value[::-1],
                f" {value} ",
                f"{value}\0",
                f"\x1b[1m{value}",
                [value],
                f"../{value}",
            )
        )
    elif isinstance(value, list):
        parent[key] = chance.choice(
            (value * 2, value[0] if value else None, {"0": value}, [value], json.dumps(value)[:300])
        )
    elif isinstance(value, dict):
        parent[key] = chance.choice(([*value.items()], [*value.values()], json.dumps(value)[:300], [value]))
    else:
        parent[key] = chance.choice(("None", "null", 0, False, []))
    return f"alike {_kind(value)} → {_brief(parent[key])}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _brief(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:36]}…"


# ---------------------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------------------


def damaged(
    content: bytes, chance: random.Random, others: Sequence[bytes] = (), *, head: int = 0
) -> tuple[bytes, str]:
    """Bytes changed, cut, spliced. ``head``: where half of the changes go, if a format keeps its sizes there."""
    how = chance.choice(("flips", "flips", "flips", "cut", "splice", "lost", "repeated", "inserted", "zeros"))
    size = len(content)
    reach = min(size, head) if head and chance.random() < 0.6 else size
    if not size:
        return content, "empty"
    at = chance.randrange(reach or 1)
    if how == "flips":
        made = bytearray(content)
        count = chance.choice((1, 1, 2, 5, 40))
        for _ in range(count):
            made[chance.randrange(reach or 1)] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
        return bytes(made), f"{count} bytes"
    if how == "cut":
        return content[:at], "cut"
    if how == "splice":
        other = chance.choice(others) if others else content
        there = chance.randrange(len(other) or 1)
        return content[:at] + other[there:], "spliced"
    length = chance.choice((1, 2, 4, 16, max(1, size // 7)))
    if how == "lost":
        return content[:at] + content[at + length :], f"{length} bytes lost"
    if how == "repeated":
        return content[:at] + content[at : at + length] * chance.choice((2, 3, 1_000)) + content[
            at + length :
        ], "repeated"
    if how == "zeros":
        return content[:at] + bytes(length) + content[at + length :], f"{length} zeros"
    fresh = chance.choice(
        (
            b"\0",
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\x1b[2J",
            b"\xef\xbb\xbf",
            b"9" * 5_000,
            b"[" * 60_000,
        )
    )
    return content[:at] + fresh + content[at:], f"{fresh[:4]!r} inserted"
