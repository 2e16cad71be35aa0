"""What the hostile files are judged by: each kind of escape is seen, and a sound refusal is none."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.endurance import hostile
from tests.endurance.mutations import changed, damaged, text_of


class Kind:
    name = "made up"
    refusals = (ValueError,)

    def __init__(self, work: Any) -> None:
        self.work = work

    def mutate(self, chance: random.Random) -> str:
        return "nothing"

    def read(self) -> Any:
        return self.work()


def raising(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "outcome", "words"),
    [
        (lambda: None, "accepted", ""),
        (raising(ValueError("data.json: found 1, expected text")), "refused", ""),
        (raising(KeyError("x")), "escaped", "KeyError"),
        (raising(SystemError("x")), "escaped", "SystemError"),
        (raising(ValueError("x" * 2048)), "escaped", "long message"),
        (raising(ValueError("\x1b[2J")), "escaped", "control characters"),
        (raising(ValueError("")), "escaped", "empty message"),
        (lambda: "a box outside", "escaped", "unsound: a box outside"),
        (lambda: os.write(1, b"x" * 30_000) and None, "escaped", "output of more than"),
    ],
)
def test_every_kind_of_escape_is_seen(work: Any, outcome: str, words: str) -> None:
    found, what, _, _ = hostile.judged(Kind(work), 0, 0, hostile.Output())
    assert found == outcome and what.startswith(words)


def test_a_number_gives_the_same_mutant_again(tmp_path: Path) -> None:
    content = {"a": [1, 2, {"b": "c"}], "d": None}

    def made(number: int) -> tuple[str, bytes]:
        chance = random.Random(number)
        return text_of(changed(content, chance)[0], chance), damaged(b"0123456789", chance)[0]

    assert [made(n) for n in range(50)] == [made(n) for n in range(50)]
    assert len({text for text, _ in map(made, range(50))}) > 30
