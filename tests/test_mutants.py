"""The list of mutants is of the code as it is. Running them takes minutes: ``python -m tests.mutants.run``."""

import json
from pathlib import Path

import pytest

from tests.mutants import run


def test_every_mutant_changes_one_place_and_names_tests_that_are_there():
    mutants = run.read()
    assert len({one.name for one in mutants}) == len(mutants) >= 14
    for one in mutants:
        assert one.tests and all((run.ROOT / test).is_file() for test in one.tests), one.name


def test_a_mutant_of_what_is_not_there_is_an_error(tmp_path: Path):
    path = tmp_path / "mutants.json"
    path.write_text(
        json.dumps([{"name": "a", "file": "finetune.py", "old": "no such text", "new": "", "tests": ["x"]}])
    )
    with pytest.raises(ValueError, match="'a': finetune.py holds its text 0 times, expected once"):
        run.read(path)
