"""What a file says reaches a terminal as text alone."""

import pytest

from finetune.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud83d alone", "\\ud83d alone"),
        ("东方明珠 é 😀\n\tnext", "东方明珠 é 😀\n\tnext"),
    ],
)
def test_what_steers_a_terminal_is_written_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_stays_within_its_line_and_its_length() -> None:
    assert one_line("a\nb\tc", 9) == "a\\nb\\tc"
    assert one_line("x" * 100, 10) == "x" * 9 + "…"
