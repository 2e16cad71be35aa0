"""Files and folders of parquet: which are read together, and that it is their own rows that are read."""

import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from finetune.samples.source import read


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(path: Path, answer: str) -> Path:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]
    datasets.Dataset.from_list([{"messages": turns}]).to_parquet(path)
    return path


def answers(path: Path) -> list[Any]:
    return [one.turns[1].parts[0] for one in read(path, workers=1, say=lambda _: None)]


@pytest.mark.parametrize(
    ("stems", "found"),
    [
        (("train", "test"), "test, train"),
        (("train-0", "train-1", "validation-0"), "train, validation"),
        (("cats_train_0", "dogs_train_0", "cats_dev_0"), "dev, train"),
        (("Train", "Eval"), "eval, train"),
        (("train2017", "val2017"), "train, val"),
        (("train_images", "test_images", "more"), "test, train"),
        (("train-00000-of-00001-a09b74b3ef9c3b56", "test-00000-of-00001-e7d1c1d1c1d1c1d1"), "test, train"),
        (("cats-00000-of-00001", "dogs-00000-of-00001"), "cats, dogs"),
    ],
)
def test_splits_side_by_side_are_not_read_together(folder: Path, stems: tuple[str, ...], found: str):
    for stem in stems:
        write(folder / f"{stem}.parquet", stem)
    with pytest.raises(ValueError, match=f"data: found parts of {found}, expected one of them in a folder"):
        answers(folder)


@pytest.mark.parametrize(
    "stems",
    [
        ("part-0", "part-1"),
        ("train-0", "train-1"),
        ("cats_train", "dogs_train"),
        ("contest", "train", "values"),
        ("train-00000-of-00002", "train-00001-of-00002"),
        ("mini_dev_train_0", "train_0"),
    ],
)
def test_parts_of_one_split_are_read_together(folder: Path, stems: tuple[str, ...]):
    for stem in stems:
        write(folder / f"{stem}.parquet", stem)
    assert answers(folder) == sorted(stems)


@pytest.mark.parametrize(
    ("name", "other"),
    [("data[1]", "data1"), ("data*", "dataX"), ("data?", "dataX"), ("[a]/data", "a/data")],
)
def test_a_name_is_no_pattern(folder: Path, name: str, other: str):
    for stem in (name, other):
        (folder / stem).parent.mkdir(exist_ok=True)
        write(folder / f"{stem}.parquet", stem)
    assert answers(folder / f"{name}.parquet") == [name]


def test_a_file_replaced_within_the_same_moment_is_read_again(folder: Path):
    path = write(folder / "data.parquet", "old")
    before = path.stat()
    assert answers(path) == ["old"]
    write(path, "new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert answers(path) == ["new"]
    assert answers(path) == ["new"] and len(list((folder.parent / "cache" / "parquet").iterdir())) == 2
