"""JSON in the layouts found in practice: a list, one object per line, concatenated objects, a list in an object.

Accepted silently, because they are unambiguous: a byte order mark, UTF-16 and UTF-32, CRLF, trailing commas, NaN,
and objects over several lines or a list in a .jsonl. Everything else is an error with its position.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.fields import each_once
from finetune.samples.cache import keep
from finetune.samples.formats.record import kind
from finetune.samples.formats.unread import is_empty
from finetune.samples.listing import shortened

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile("[ \t\r\n\ufeff]*")
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)
_TURNS = ("messages", "conversations")  # every record has one of these keys
_DECODER = json.JSONDecoder()
TOO_DEEP = "lists or objects nested too deeply to be read"


def open_json(path: Path, cache_dir: Path) -> JsonRecords:
    """The records of a .json or .jsonl file.

    cache_dir   where a file in UTF-16 or UTF-32 is converted to UTF-8

    Raises ValueError with what was found and expected.
    """
    source = _in_utf8(path, cache_dir)
    if _holds_lines(source):
        return json_lines(source, path)
    try:
        return json_values(source, path)
    except ValueError:
        if path.suffix.lower() == ".json" or _first_character(source) == b"[":
            raise
    return json_lines(source, path)  # some lines are broken; this names each of them


class JsonRecords:
    """Records in a JSON file, addressed by byte ranges: 16 bytes of memory per record, 24 with line numbers.

    starts, ends   Int[records]: first byte of each record, and the byte after its last
    lines          Int[records]: line of each, from 1; None unless there is one record per line
    """

    def __init__(
        self,
        path: Path,
        starts: Int[np.ndarray, records],
        ends: Int[np.ndarray, records],
        lines: Int[np.ndarray, records] | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path, self.starts, self.ends, self.lines, self.notes = path, starts, ends, lines, notes
        self.stamp = _stamp(os.stat(path))
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        start, end = int(self.starts[index]), int(self.ends[index])
        # Not seek and read: forked processes share the file position.
        content = os.pread(self._opened(), end - start, start)
        try:
            text = content.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf_8(error)) from error
        try:
            return _loaded(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"broken JSON at column {error.colno}: {error.msg}") from error

    def name(self, index: int) -> tuple[str, ...]:
        line = () if self.lines is None else (f"line {self.lines[index]}",)
        return (f"record {index}", *line)

    def _opened(self) -> int:
        if self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            if _stamp(os.fstat(descriptor)) != self.stamp:
                raise ValueError(
                    f"{self.path}: the file has changed since this run began; start the run again"
                )
            self._descriptor = descriptor
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}


def json_lines(source: Path, name: Path) -> JsonRecords:
    """One record per line; skips empty lines. ``name``: the file's name in errors."""
    starts, ends, lines = array("q"), array("q"), array("q")
    with source.open("rb") as file:
        position = len(_BOM) if file.read(3) == _BOM else 0
        file.seek(position)
        for number, line in enumerate(file, start=1):
            if line.strip():
                starts.append(position)
                ends.append(position + len(line.rstrip(b"\r\n")))
                lines.append(number)
            position += len(line)
    if not starts:
        raise ValueError(f"{name}: the file is empty; expected one conversation per line")
    places = [np.frombuffer(one, np.int64) for one in (starts, ends, lines)]
    return JsonRecords(source, places[0], places[1], places[2])


def json_values(source: Path, name: Path) -> JsonRecords:
    """The items of one JSON list, of the only list in an object, or of concatenated objects.

    Holds the whole text in memory while it locates them.
    """
    content = source.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {_not_utf_8(error)}") from error
    if not text.strip("\ufeff \t\r\n"):
        raise ValueError(f"{name}: the file is empty; expected a JSON list of conversations")
    try:
        try:
            found = _found(text)
        except json.JSONDecodeError:
            found = _found(_without_trailing_commas(text))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "expected one JSON list of conversations"
        ) from error
    except _OtherJsonError as error:
        raise ValueError(f"{name}: {error}") from error
    if not found.spans:
        raise ValueError(f"{name}: the list is empty; expected at least one conversation")
    places = _in_bytes(text, found.spans)
    return JsonRecords(source, places[:, 0], places[:, 1], None, found.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Where values begin and end
# ---------------------------------------------------------------------------------------------------------------------


class _OtherJsonError(ValueError):
    """Valid JSON that is not a list of records."""


class _Found(NamedTuple):
    """First character of each record, and the one after its last."""

    spans: list[tuple[int, int]]
    notes: tuple[str, ...] = ()


def _found(text: str) -> _Found:
    """The records of a text. Raises json.JSONDecodeError for broken JSON, _OtherJsonError without records."""
    at = _behind_blanks(text, 0)
    if text[at] == "[":
        spans, end = _items(text, at)
        _check_end(text, end)
        return _Found(spans)
    first, end = _decoded(text, at)
    if not isinstance(first, Mapping):
        _check_end(text, end)
        raise _OtherJsonError(f"found a JSON {kind(first)}, expected a list of conversations")
    if _behind_blanks(text, end) < len(text):
        return _Found(_one_after_another(text, at))
    if any(key in first for key in _TURNS):
        return _Found([(at, end)])
    return _wrapped(text, at, first)


def _items(text: str, at: int) -> tuple[list[tuple[int, int]], int]:
    """Spans of the items of the list at ``at``, and its end: ``"[1, 22]"`` → ``([(1, 2), (4, 6)], 7)``."""
    spans: list[tuple[int, int]] = []
    separator = "["
    while text[at : at + 1] == separator:
        begin = _behind_blanks(text, at + 1)
        if separator == "[" and text[begin : begin + 1] == "]":
            at = begin
            break
        _, end = _decoded(text, begin)
        spans.append((begin, end))
        at, separator = _behind_blanks(text, end), ","
    if text[at : at + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    return spans, at + 1


def _one_after_another(text: str, at: int) -> list[tuple[int, int]]:
    """Objects separated only by whitespace."""
    spans = []
    while at < len(text):
        if text[at] != "{":
            raise json.JSONDecodeError("Extra data", text, at)
        _, end = _decoded(text, at)
        spans.append((at, end))
        at = _behind_blanks(text, end)
    return spans


def _wrapped(text: str, at: int, whole: Mapping[str, Any]) -> _Found:
    """The only list of objects in an object: ``{"version": 1, "data": [{…}, {…}]}``."""
    lists = [
        key
        for key, value in whole.items()
        if isinstance(value, list) and value and isinstance(value[0], Mapping)
    ]
    if not lists:
        raise _OtherJsonError("found a JSON object, expected a list of conversations")
    if len(lists) > 1:
        listed = ", ".join(f"{key!r:.40} ({len(whole[key]):,})" for key in lists[:5])
        raise _OtherJsonError(
            f"found a JSON object with the lists {listed}, expected one; write it to a file of its own"
        )
    (key,) = lists
    begin, *others = [value_at for name, value_at in _members(text, at) if name == key]
    if others:  # Python keeps the last, in silence
        raise _OtherJsonError(f"found the list {key!r:.40} twice in one object, expected it once")
    unread = (one for one, value in whole.items() if one != key and not is_empty(value))
    left = [f"key {one!r:.80} beside {key!r:.40} is not read" for one in unread]
    return _Found(_items(text, begin)[0], (f"records are read from the list {key!r:.40}", *left))


def _members(text: str, at: int) -> Iterator[tuple[str, int]]:
    """Each member of the object at ``at``: its key, and the position of its value."""
    at = _behind_blanks(text, at + 1)
    while text[at] != "}":
        key, at = _decoded(text, at)
        begin = _behind_blanks(text, _behind_blanks(text, at) + 1)
        yield key, begin
        at = _behind_blanks(text, _decoded(text, begin)[1])
        at = _behind_blanks(text, at + 1) if text[at] == "," else at


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The value at a position and the position after it. Raises json.JSONDecodeError for invalid JSON."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise json.JSONDecodeError(TOO_DEEP, text, at) from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number with thousands of digits
        raise json.JSONDecodeError(shortened(str(error), 80), text, at) from error


def _loaded(text: str) -> Any:
    try:
        try:
            return json.loads(text, object_pairs_hook=each_once)
        except json.JSONDecodeError as error:
            repaired = _without_trailing_commas(text)
            if repaired == text:
                raise
            try:
                return json.loads(repaired, object_pairs_hook=each_once)
            except json.JSONDecodeError:
                raise error from None
    except RecursionError as error:
        raise json.JSONDecodeError(TOO_DEEP, text, 0) from error


def _without_trailing_commas(text: str) -> str:
    """Replaces trailing commas with blanks, so that positions stay: ``[{"a": 1,},]`` → ``[{"a": 1 } ]``."""
    return _STRING_OR_COMMA.sub(lambda match: " " if match[0] == "," else match[0], text)


def _check_end(text: str, end: int) -> None:
    if (rest := _behind_blanks(text, end)) != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _in_bytes(text: str, spans: list[tuple[int, int]]) -> Int[np.ndarray, "items 2"]:
    """Character spans → byte spans in UTF-8: ``('[1, "ü"]', [(1, 2), (4, 7)])`` → ``[[1, 2], [4, 8]]``."""
    found = array("q")
    characters, offset = 0, 0  # characters counted so far, and the bytes they take
    for place in (place for span in spans for place in span):
        offset += len(text[characters:place].encode())
        characters = place
        found.append(offset)
    return np.frombuffer(found, np.int64).reshape(-1, 2)


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


# ---------------------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------------------


def _in_utf8(path: Path, cache_dir: Path) -> Path:
    """The file, converted to UTF-8 if needed: UTF-16 and UTF-32 show in their BOM, or in zeros beside a bracket."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding.startswith("utf-8"):
        return path
    content = path.read_bytes()
    try:
        written = content.decode(encoding).encode()
    except UnicodeError as error:
        raise ValueError(
            f"{path}: found broken {encoding.upper()}, expected UTF-8; save the file as UTF-8"
        ) from error
    place = cache_dir / "texts" / f"{hashlib.sha256(content).hexdigest()}{path.suffix}"
    if not place.is_file():
        keep(place, written)
    return place


def _not_utf_8(error: UnicodeDecodeError) -> str:
    """Where the file is not UTF-8, and a guess at its encoding. Only a hint: Latin-1 and Big5 decode as GB18030 too."""
    advice = "save the file as UTF-8"
    around = error.object[max(error.start - 20, 0) : error.start + 40]
    if "\ufffd" not in around.decode("gb18030", errors="replace").strip("\ufffd"):
        shown = around[min(error.start, 20) :].decode("gb18030", errors="ignore")[:12]
        advice += f" (as GB18030 it would read {shown!r}: iconv -f GB18030 -t UTF-8 FILE > NEW)"
    return f"byte {error.start} is not UTF-8; {advice}"


def _holds_lines(path: Path) -> bool:
    """Whether the file has one object per line, as many tools write even .json: its first non-blank line is a complete
    object, and others follow."""
    with path.open("rb") as file:
        first = (
            next((line for line in file if line.strip() not in (b"", _BOM)), b"").removeprefix(_BOM).strip()
        )
        if not first.startswith(b"{") or not any(line.strip() for line in file):
            return False
    try:
        return isinstance(_loaded(first.decode()), dict)
    except ValueError:
        return False


def _first_character(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64).removeprefix(_BOM).lstrip()[:1]


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
