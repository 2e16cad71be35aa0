from pathlib import Path
from typing import NamedTuple

from tests.order import SLOWEST, TESTS, slow_first


class Item(NamedTuple):
    path: Path
    place: int


def test_slow_files_come_first_and_all_others_as_they_were():
    first, second = (TESTS / name for name in SLOWEST[:2])
    given = [TESTS / "test_imports.py", second, TESTS / "finetune" / "test_files.py", first, second]
    items = [Item(path, place) for place, path in enumerate(given)]
    slow_first(items)
    assert [item.place for item in items] == [3, 1, 4, 0, 2]


def test_slow_files_are_there_and_once():
    assert all((TESTS / name).is_file() for name in SLOWEST)
    assert len({*SLOWEST}) == len(SLOWEST)
