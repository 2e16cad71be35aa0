"""Shares in words: none and all are said of none and all, and every number has its Chinese."""

import pytest

from diagnostics.comparison.legs.leg import percent, percent_interval, whole_percent
from diagnostics.report.languages import translated


@pytest.mark.parametrize(
    ("share", "words", "signed"),
    [
        (0.4129, "41.3 %", "+41.3 %"),
        (-0.05, "-5 %", "-5 %"),
        (0.0, "0 %", "0 %"),
        (-1e-9, "0 %", "0 %"),
        (0.0004, "under 0.1 %", "under +0.1 %"),
        (-0.0004, "over -0.1 %", "over -0.1 %"),
        (0.9995, "over 99.9 %", "over +99.9 %"),
        (-0.9996, "under -99.9 %", "under -99.9 %"),
        (1.0, "100 %", "+100 %"),
        (1.5, "150 %", "+150 %"),
    ],
)
def test_a_share_is_said_as_none_or_all_only_where_it_is(share: float, words: str, signed: str) -> None:
    assert (percent(share), percent(share, signed=True)) == (words, signed)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.4129, "41 %"),
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (0.996, "99.6 %"),
        (0.9996, "over 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_so_is_a_share_in_whole_per_cent(share: float, words: str) -> None:
    assert whole_percent(share) == words


@pytest.mark.parametrize(
    ("interval", "chinese"),
    [
        ((0.0004, 0.3), "95% 置信区间 不到 0.1% 至 30%"),
        ((-0.0004, 0.3), "95% 置信区间 超过 -0.1% 至 30%"),
        ((0.3, 0.9996), "95% 置信区间 30% 至 超过 99.9%"),
    ],
)
def test_the_bounds_of_an_interval_have_their_chinese(interval: tuple[float, float], chinese: str) -> None:
    words = percent_interval(interval, 0.95).replace("+", "")
    assert translated(f"70 % of the answers are right ({words}; at least 80 % must be).") == (
        f"70% 的回答正确（{chinese}；至少需 80%）。"
    )


def test_so_have_those_of_an_interval_whose_unit_stands_once() -> None:
    assert translated("interval 30 to over 99.9 %") == "区间 30 至 超过 99.9%"
    assert translated("over -0.1 to under +0.1 %") == "超过 -0.1 至 不到 +0.1%"
