"""Break the code on purpose and see that a test fails.

    python -m tests.mutants.run                  every mutant of mutants.json, two at a time
    python -m tests.mutants.run label rank       those whose name holds one of these words

Each mutant is one replacement in one file, tried in a copy of the tracked files; its tests must pass on the code
as it is and fail on the mutant. The exit status is 1 where a mutant survives.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.json")
AT_ONCE = 2


class Mutant(NamedTuple):
    """name    what is broken, in a few words
    file    path from the project's root
    old     text that stands there exactly once
    new     what replaces it
    tests   pytest arguments that must fail"""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path = LIST) -> list[Mutant]:
    """The list. Raises ValueError for a mutant whose text is not there exactly once, or that changes nothing."""
    mutants = [Mutant(**{**one, "tests": tuple(one["tests"])}) for one in json.loads(path.read_text("utf-8"))]
    for one in mutants:
        found = (ROOT / one.file).read_text("utf-8").count(one.old)
        if found != 1 or one.old == one.new:
            raise ValueError(f"{path}: {one.name!r}: {one.file} holds its text {found} times, expected once")
    return mutants


def survives(mutant: Mutant) -> bool:
    """Do its tests pass all the same?"""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        _copy_tracked(copy)
        target = copy / mutant.file
        target.write_text(target.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
        return _passes(copy, mutant.tests)


def _copy_tracked(copy: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")


def _passes(folder: Path, tests: Sequence[str]) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", *tests],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode not in (0, 1):  # 1: tests failed; all else is no verdict
        raise RuntimeError(f"pytest {' '.join(tests)} ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.returncode == 0


def main(words: Sequence[str]) -> int:
    chosen = [one for one in read() if not words or any(word in one.name for word in words)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(zip(chosen, pool.map(survives, chosen), strict=True))
    for mutant, survived in outcomes:
        print(f"{'SURVIVED' if survived else 'caught  '}  {mutant.name}")
    survivors = sum(survived for _, survived in outcomes)
    print(f"{len(outcomes) - survivors} of {len(outcomes)} mutants caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
