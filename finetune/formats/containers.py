"""Files and folders of records, each record read when it is asked for."""

import json
import os
import re
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from finetune.formats.record import kind

_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = re.compile(r"[ \t\r\n]*")
_PART = re.compile(r"-\d+-of-\d+$")
KNOWN = ".json (a list), .jsonl, .parquet, or a folder of parquet or of Hugging Face datasets (save_to_disk)"


class Records(Protocol):
    """Records in order; they can be sent to other processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Raises ValueError, in words that go behind the record's name, where it is broken."""

    def name(self, index: int) -> tuple[str, ...]:
        """What a record is called: ``("record 4", "line 5")``."""


def open_records(path: Path, cache_dir: Path) -> Records:
    """The records of a file or folder.

    cache_dir   where parquet is unpacked so that it can be read at any place

    Raises ValueError that says what was found and expected.
    """
    if path.is_dir():
        return _folder(path, cache_dir)
    if not path.is_file():
        raise ValueError(f"{path}: cannot be read: there is no such file or folder")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet([path], cache_dir)
        if suffix in (".jsonl", ".ndjson"):
            return json_lines(path)
        if suffix == ".json":
            return json_lines(path) if _holds_lines(path) else json_list(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise ValueError(f"{path}: found a file of kind {suffix or 'without a suffix'!r}, expected {KNOWN}")


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------


class JsonRecords:
    """Records in a JSON file, found by where they begin and end: 16 bytes a record are held, 24 with lines.

    starts, ends   Int[records]: first byte of each record, and the byte behind its last
    lines          Int[records]: the line of each, counted from 1; None in a list
    """

    def __init__(
        self,
        path: Path,
        starts: Int[np.ndarray, "records"],
        ends: Int[np.ndarray, "records"],
        lines: Int[np.ndarray, "records"] | None,
    ) -> None:
        self.path, self.starts, self.ends, self.lines = path, starts, ends, lines
        self.stamp = _stamp(os.stat(path))
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        start, end = int(self.starts[index]), int(self.ends[index])
        # Not seek and read: processes that were forked share the file's position.
        content = os.pread(self._opened(), end - start, start)
        try:
            return json.loads(content.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from error
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


def json_lines(path: Path) -> JsonRecords:
    """One record a line; empty lines are passed over."""
    starts, ends, lines = array("q"), array("q"), array("q")
    with path.open("rb") as file:
        head = file.read(3)
        if head[:2] in _UTF_16:
            raise ValueError(f"{path}: byte 0 is not UTF-8; save the file as UTF-8")
        position = len(_BOM) if head == _BOM else 0
        file.seek(position)
        for number, line in enumerate(file, start=1):
            if line.strip():
                if not starts and line.lstrip().startswith(b"["):
                    raise ValueError(f"{path}: found a list, expected one object a line; call the file .json")
                starts.append(position)
                ends.append(position + len(line.rstrip(b"\r\n")))
                lines.append(number)
            position += len(line)
    if not starts:
        raise ValueError(f"{path}: the file is empty; expected one conversation a line")
    return JsonRecords(path, *(np.frombuffer(one, np.int64) for one in (starts, ends, lines)))


def json_list(path: Path) -> JsonRecords:
    """The items of one JSON list. The file is held as text once, while their places are looked for."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if not text.strip("\ufeff \t\r\n"):
        raise ValueError(f"{path}: the file is empty; expected a JSON list of conversations")
    try:
        spans = _items(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "expected one JSON list of conversations"
        ) from error
    if spans is None:
        found = kind(json.loads(text.removeprefix("\ufeff")))
        raise ValueError(f"{path}: found a JSON {found}, expected a list of conversations")
    if not len(spans):
        raise ValueError(f"{path}: the list is empty; expected at least one conversation")
    return JsonRecords(path, spans[:, 0], spans[:, 1], None)


def _items(text: str) -> Int[np.ndarray, "items 2"] | None:
    """First byte, and byte behind the last, of each item of a JSON list in UTF-8; None where it is no list.

    ``'[1, "ü"]'`` → ``[[1, 2], [4, 8]]``.

    Raises json.JSONDecodeError.
    """
    decoder, spans = json.JSONDecoder(), array("q")
    at = _behind_blanks(text, text.startswith("\ufeff"))
    if text[at] != "[":
        json.loads(text.removeprefix("\ufeff"))
        return None
    characters, offset = 0, 0  # how many of the text's characters were counted, and the bytes they take
    separator = "["
    while text[at : at + 1] == separator:
        begin = _behind_blanks(text, at + 1)
        if separator == "[" and text[begin : begin + 1] == "]":
            at = begin
            break
        _, end = decoder.raw_decode(text, begin)
        offset += len(text[characters:begin].encode())
        spans.append(offset)
        offset += len(text[begin:end].encode())
        spans.append(offset)
        characters = end
        at, separator = _behind_blanks(text, end), ","
    if text[at : at + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (rest := _behind_blanks(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    return np.frombuffer(spans, np.int64).reshape(-1, 2)


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


def _holds_lines(path: Path) -> bool:
    """Is a .json file one object a line, as many tools write it?"""
    with path.open("rb") as file:
        first = file.readline().removeprefix(_BOM).strip()
        if not first.startswith(b"{") or not any(line.strip() for line in file):
            return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


# ---------------------------------------------------------------------------------------------------------------------
# Arrow
# ---------------------------------------------------------------------------------------------------------------------


class ArrowRecords:
    """Rows of a Hugging Face dataset, mapped from disk: nothing but its schema is held.

    dataset   datasets.Dataset
    """

    def __init__(self, dataset: Any) -> None:
        self.features = dataset.features
        self.dataset = dataset.with_format("arrow")  # pictures stay bytes, they are not decoded here

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _decoded(self.dataset[index : index + 1].to_pylist()[0], self.features)

    def name(self, index: int) -> tuple[str, ...]:
        return (f"record {index}",)


def _decoded(value: Any, feature: Any) -> Any:
    """A value with its columns of mixed values, which are kept as texts of JSON, read."""
    import datasets

    if isinstance(feature, datasets.Json) and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {key: _decoded(one, feature.get(key)) for key, one in value.items()}
    if isinstance(value, list) and isinstance(feature, datasets.List | datasets.LargeList):
        return [_decoded(one, feature.feature) for one in value]
    return value


def _folder(path: Path, cache_dir: Path) -> ArrowRecords:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise ValueError(
            f"{path}: found the splits {', '.join(splits)}, expected one; give {path / (splits or ['train'])[0]}"
        )
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return _saved(path)
    parts = sorted(path.glob("*.parquet"))
    splits = sorted({_PART.sub("", part.stem) for part in parts if _PART.search(part.stem)})
    if len(splits) > 1:
        raise ValueError(
            f"{path}: found parts of {', '.join(splits)}, expected one of them in a folder of its own"
        )
    if not parts:
        held = sorted(one.name for one in path.iterdir())[:5]
        raise ValueError(
            f"{path}: found a folder of {', '.join(held) or 'nothing'}, expected *.parquet or what "
            "datasets' save_to_disk writes; of other data give the file"
        )
    return _parquet(parts, cache_dir)


def _saved(path: Path) -> ArrowRecords:
    import datasets
    import pyarrow

    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{path}: broken dataset folder: {error}; write it again with save_to_disk"
        ) from error
    return _rows(path, dataset)


def _parquet(parts: list[Path], cache_dir: Path) -> ArrowRecords:
    """Parquet can be read from its start alone, so it is unpacked once into a file that is mapped."""
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    try:
        dataset = datasets.Dataset.from_parquet(
            [str(part) for part in parts], cache_dir=str(cache_dir / "parquet")
        )
    except (pyarrow.ArrowException, DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{parts[0]}: cannot be read as parquet: {cause}") from error
    return _rows(parts[0], dataset)


def _rows(path: Path, dataset: Any) -> ArrowRecords:
    if not len(dataset):
        raise ValueError(f"{path}: has no rows; expected at least one conversation")
    return ArrowRecords(dataset)
