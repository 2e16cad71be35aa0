"""Files and folders of records, each record read on demand."""

import glob
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from finetune import fields
from finetune.fields import NULL, OBJECT, TEXT, items, part
from finetune.printable import one_line
from finetune.samples.formats.json_files import open_json

_PART = re.compile(r"-\d+-of-\d+(?:-[0-9a-f]{16})?$")  # the hub once wrote a digest behind the numbers
_SPLITS = ("train", "test", "val", "valid", "validation", "dev", "eval")
_END = 2**16  # bytes; of a parquet file it is the footer, and all of a small file
WRITE_AGAIN = "write it again with save_to_disk"
SAVED_FILES: dict[str, fields.Shape] = {
    "state.json": {"_data_files": items(part({"filename": TEXT}))},
    "dataset_info.json": {"features": OBJECT | NULL},
}
KNOWN = ".json (a list), .jsonl, .parquet, or a folder of parquet or of Hugging Face datasets (save_to_disk)"


class Records(Protocol):
    """A picklable sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Raises ValueError for a broken record; its message follows the record's name."""

    def name(self, index: int) -> tuple[str, ...]:
        """A record's name in messages: ``("record 4", "line 5")``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on unread parts of the file."""


def open_records(path: Path, cache_dir: Path) -> Records:
    """The records of a file or folder.

    cache_dir   where parquet is unpacked for random access, and UTF-16 converted to UTF-8

    Raises ValueError with what was found and expected.
    """
    if path.is_dir():
        return _folder(path, cache_dir)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet([path], cache_dir)
        if suffix in (".json", ".jsonl", ".ndjson"):
            return open_json(path, cache_dir)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise ValueError(f"{path}: found a file of kind {suffix or 'without a suffix'!r}, expected {KNOWN}")


# ---------------------------------------------------------------------------------------------------------------------
# Arrow
# ---------------------------------------------------------------------------------------------------------------------


class ArrowRecords:
    """Rows of a Hugging Face dataset, memory-mapped: only its schema is in memory.

    dataset   datasets.Dataset
    """

    notes: tuple[str, ...] = ()

    def __init__(self, dataset: Any) -> None:
        self.features = dataset.features
        self.dataset = dataset.with_format("arrow")  # pictures stay bytes; they are not decoded here

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _decoded(self.dataset[index : index + 1].to_pylist()[0], self.features)

    def name(self, index: int) -> tuple[str, ...]:
        return (f"record {index}",)


def _decoded(value: Any, feature: Any) -> Any:
    """A value with its JSON-encoded columns (mixed types) decoded."""
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
        splits = fields.load(path / "dataset_dict.json", {"splits": items(TEXT)}).get("splits", [])
        shown = one_line(", ".join(splits), 200)
        raise ValueError(
            f"{path}: found the splits {shown}, expected one; give {path / (splits or ['train'])[0]}"
        )
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return _saved(path)
    parts = sorted(path.glob("*.parquet"))
    splits = _splits([part.stem for part in parts])
    if len(splits) > 1:
        raise ValueError(
            f"{path}: found parts of {', '.join(splits)}, expected one of them in a folder of its own"
        )
    if not parts:
        held = sorted(one.name for one in path.iterdir())[:5]
        raise ValueError(
            f"{path}: found a folder of {', '.join(held) or 'nothing'}, expected *.parquet or what "
            "datasets' save_to_disk writes; for other data give the file itself"
        )
    return _parquet(parts, cache_dir)


def _splits(stems: list[str]) -> list[str]:
    """What files are parts of, as their names say.

    train, cats_test_0 → test, train;  a-00000-of-00002, b-00000-of-00001 → a, b;  part-0, part-1 → nothing
    """
    parts = {_PART.sub("", stem) for stem in stems if _PART.search(stem)}
    if len(parts) > 1:
        return sorted(parts)
    words = ([word for word in re.split("[^a-z]+", stem.lower()) if word in _SPLITS] for stem in stems)
    return sorted({several[-1] for several in words if several})


def _saved(path: Path) -> ArrowRecords:
    import datasets

    for name, shape in SAVED_FILES.items():
        fields.load(path / name, shape, required=tuple(shape), remedy=WRITE_AGAIN)
    try:
        dataset = datasets.load_from_disk(str(path))
    except OSError as error:
        raise ValueError(
            f"{path}: broken dataset folder: {one_line(str(error), 300)}; {WRITE_AGAIN}"
        ) from error
    except Exception as error:  # of any kind: the library trusts the features that the folder describes
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"{path}: broken dataset folder: {reason}; {WRITE_AGAIN}") from error
    return _rows(path, dataset)


def _parquet(parts: list[Path], cache_dir: Path) -> ArrowRecords:
    """Parquet has no random access, so it is unpacked once into a memory-mapped file.

    datasets takes a name for a pattern, and an unpacked file for that of any other with its name and time.
    """
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    try:
        dataset = datasets.Dataset.from_parquet(
            [glob.escape(str(part)) for part in parts],
            cache_dir=str(cache_dir / "parquet" / _state(parts)),
        )
    except (pyarrow.ArrowException, DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{parts[0]}: cannot be read as parquet: {one_line(str(cause), 300)}") from error
    return _rows(parts[0], dataset)


def _state(parts: list[Path]) -> str:
    """Names one state of the files: their sizes, times and ends, where parquet has its footer."""
    hashed = hashlib.sha256()
    for path in parts:
        status = path.stat()
        with path.open("rb") as file:
            file.seek(max(status.st_size - _END, 0))
            end = hashlib.sha256(file.read()).hexdigest()
        hashed.update(f"{status.st_size} {status.st_mtime_ns} {end}\n".encode())
    return hashed.hexdigest()[:32]


def _rows(path: Path, dataset: Any) -> ArrowRecords:
    if not len(dataset):
        raise ValueError(f"{path}: has no rows; expected at least one conversation")
    try:
        # Arrow trusts the offsets in a file, and would read whatever lies there. Pictures' bytes are not read for this.
        dataset.data.table.validate(full=True)
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise ValueError(f"{path}: broken dataset: {one_line(str(error), 300)}; {WRITE_AGAIN}") from error
    return ArrowRecords(dataset)
