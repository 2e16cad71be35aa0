"""Validates JSON files field by field; errors name the field, what was found and what was expected.

A table declares what the fields of a file may hold:

    SHAPE = {"version": whole(1, 1), "visual": {"layers": whole(1, 1_000), "mlp_ratio": number(0, above=True)}}

and :func:`check` reports everything wrong in one ValueError: ``config.json: visual.layers: found "x", expected a whole
number from 1 to 1,000``. Fields that are not in the table may hold anything.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Union

from finetune.printable import one_line, printable

MOST_FAULTS_SHOWN = 8
MOST_CHARACTERS_SHOWN = 60
LONGEST_FAULT, MOST_BYTES_OF_FAULTS = 400, 1500
"""Of one fault in characters, and of all of a message in bytes: it stays below 2 kB."""
MOST_LEVELS = 100
"""Levels of lists and objects. Python reads 1,000 and more; what walks through them afterwards does not."""
MOST_BYTES = 2**28
"""Of a file with settings or results; read and checked, it takes ten times its size in memory."""


class Kind(NamedTuple):
    """What a field may hold, and the words for it that follow "expected"."""

    words: str
    fits: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":  # type: ignore[override]
        return Kind(f"{self.words} or {other.words}", lambda value: self.fits(value) or other.fits(value))


Shape = Mapping[str, Union[Kind, "Shape"]]


# ---------------------------------------------------------------------------------------------------------------------
# Kinds
# ---------------------------------------------------------------------------------------------------------------------


def whole(least: int = 0, most: int | None = None) -> Kind:
    """A whole number, including 2.0 and 2e8, because JSON has only one kind of number."""
    return Kind(
        f"a whole number {_span(least, most)}",
        lambda value: _is_number(value) and value == int(value) and _within(value, least, most),
    )


def number(least: float, most: float | None = None, *, above: bool = False) -> Kind:
    """A finite number; ``above``: more than ``least``."""
    words = f"a number above {least:g}" if above else f"a number {_span(least, most)}"
    words += f" and at most {most:g}" if above and most is not None else ""
    return Kind(
        words,
        lambda value: _is_number(value) and _within(value, least, most) and not (above and value == least),
    )


def one_of(*values: Any) -> Kind:
    # With the type, because True equals 1.
    known = [(type(value), value) for value in values]
    return Kind(" or ".join(map(shown, values)), lambda value: (type(value), value) in known)


def items(kind: Kind, count: int | None = None) -> Kind:
    return Kind(
        f"a list of {'' if count is None else f'{count}: '}{kind.words}",
        lambda value: (
            isinstance(value, list) and count in (None, len(value)) and all(kind.fits(one) for one in value)
        ),
    )


def by_name(kind: Kind) -> Kind:
    """An object with any keys, whose values are all of one kind."""
    return Kind(
        f"an object of {kind.words} by name",
        lambda value: isinstance(value, dict) and all(kind.fits(one) for one in value.values()),
    )


def part(shape: Shape) -> Kind:
    """An object with all of these fields, for lists of them and for what may be null."""
    return Kind(
        f"an object with {', '.join(shape)}",
        lambda value: not any(faults(value, shape, required=tuple(shape))),
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
NULL = Kind("null", lambda value: value is None)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _within(value: float, least: float, most: float | None) -> bool:
    return value >= least and (most is None or value <= most)


def _span(least: float, most: float | None) -> str:
    return f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading and checking
# ---------------------------------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """What a JSON file holds.

    Raises ValueError if it cannot be read, is no file (a pipe or a device would never end), is larger than 256 MiB, is
    not UTF-8, and as :func:`parse` does.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: found a folder, a pipe or a device, expected a file of JSON")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{path}: found {path.stat().st_size:,} bytes, expected JSON of at most {MOST_BYTES:,}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found byte {error.start} that is not UTF-8, expected JSON") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """The content of a JSON text; every ValueError begins with ``where``.

    Raises ValueError if it is broken, nested too deeply, has a key twice in one object (Python would keep the last, in
    silence), or holds half of a UTF-16 pair, which no file can be written with.
    """
    try:
        content = json.loads(text, object_pairs_hook=each_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {_broken(text, error)}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply to be read; is it the right file?") from error
    except TwiceError as error:
        raise ValueError(f"{where}: {error}; keep one") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise ValueError(f"{where}: found a number of thousands of digits; is it the right file?") from error
    if levels(content) > MOST_LEVELS:
        raise ValueError(f"{where}: nested too deeply to be read; is it the right file?")
    if "\\u" in text and has_half_pair(content):
        raise ValueError(
            f"{where}: found half of a UTF-16 pair (such as \\ud83d alone), which is no character"
        )
    return content


class TwiceError(ValueError):
    """A key that stands twice in one object."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs, for ``json.loads``. Raises TwiceError for a key that stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise TwiceError(f"the key {shown(twice)} appears twice in one object")
    return found


def levels(content: Any) -> int:
    """How deeply lists and objects lie in each other: ``{"a": [1]}`` has 2. Stops counting beyond MOST_LEVELS."""
    depth, inside = 0, [content]
    while inside and depth <= MOST_LEVELS:
        inside = [one for one in inside if isinstance(one, dict | list)]
        depth += bool(inside)
        inside = [below for one in inside for below in (one.values() if isinstance(one, dict) else one)]
    return depth


def has_half_pair(content: Any) -> bool:
    """Does a text in it hold half of a UTF-16 pair?"""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _broken(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()[:2]
    if not text.strip():
        return "the file is empty, expected JSON"
    hint = "; JSON has no comments: remove it" if rest in ("//", "/*") or rest[:1] == "#" else ""
    return f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg}){hint}"


def faults(content: Any, shape: Shape, *, required: Sequence[str] = (), at: str = "") -> Iterator[str]:
    """One for each field that does not match ``shape``, with the name of the field.

    required   fields that must be present
    at         prefix of every name
    """
    if not isinstance(content, dict):
        yield (
            f"{at.rstrip('.')}: found {shown(content)}, expected an object"
            if at
            else (f"found {shown(content)}, expected an object")
        )
        return
    for name in required:
        if name not in content:
            yield f"{at}{name}: missing"
    for name, kind in shape.items():
        if name not in content:
            continue
        value = content[name]
        if not isinstance(kind, Kind):
            yield from faults(value, kind, at=f"{at}{name}.")
        elif not kind.fits(value):
            yield f"{at}{name}: found {shown(value)}, expected {kind.words}"


def check(content: Any, shape: Shape, where: str, *, required: Sequence[str] = (), remedy: str = "") -> None:
    """Raises ValueError that begins with ``where`` and lists what is wrong, and ends with the remedy."""
    refuse(list(islice(faults(content, shape, required=required), MOST_FAULTS_SHOWN + 1)), where, remedy)


def load(path: Path, shape: Shape, *, required: Sequence[str] = (), remedy: str = "") -> Any:
    """:func:`read`, and :func:`check` what is read."""
    try:
        content = read(path)
    except ValueError as error:
        raise ValueError(f"{error}\n{remedy}" if remedy else str(error)) from error
    check(content, shape, str(path), required=required, remedy=remedy)
    return content


def refuse(found: Sequence[str], where: str, remedy: str = "") -> None:
    """Raises ValueError if anything is found."""
    if not found:
        return
    lines = [*_as_many_as_fit(found)]
    joined = lines[0] if len(lines) == 1 else "\n  ".join(["", *lines])
    raise ValueError(
        printable(f"{where}: {joined}".replace(": \n", ":\n") + (f"\n{remedy}" if remedy else ""))
    )


def _as_many_as_fit(found: Sequence[str]) -> Iterator[str]:
    room = MOST_BYTES_OF_FAULTS
    for number, fault in enumerate(found):
        line = one_line(fault, LONGEST_FAULT)
        room -= len(line.encode())
        if number and (number == MOST_FAULTS_SHOWN or room < 0):
            yield "…"
            return
        yield line


def shown(value: Any) -> str:
    """A value as JSON writes it, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    if isinstance(value, dict | list):  # their text may be of any length and depth
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return one_line(text, MOST_CHARACTERS_SHOWN)
