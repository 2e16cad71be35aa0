import pytest

from finetune.percent import percent_words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (-1e-9, "0 %"),
        (0.0004, "under 0.1 %"),
        (0.0005, "0.1 %"),
        (0.004, "0.4 %"),
        (0.025, "2.5 %"),
        (0.4, "40 %"),
        (0.996, "99.6 %"),
        (0.9996, "over 99.9 %"),
        (1 - 1e-9, "100 %"),
        (1.0, "100 %"),
        (1.5, "150 %"),
    ],
)
def test_none_and_all_are_said_of_none_and_all(share: float, words: str) -> None:
    assert percent_words(share) == words
