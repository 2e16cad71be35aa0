"""The curve's points stand at the share that their bars are intervals of."""

from typing import Any

import pytest

from diagnostics.drawing.curve_chart import curve_figure, draws_by_picture
from diagnostics.report.curve_page import _by_picture


def point(samples: int, right: float, pictures_right: float | None, ends: list[float]) -> dict[str, Any]:
    measured = {"right": right, "pictures_right": pictures_right, "right_ci95": ends}
    return {"samples": samples, **measured, "enrichment": None, "cost_nats": None, "holds": True}


def drawn(
    points: list[dict[str, Any]], base: float | None, language: str = "en"
) -> tuple[str, list[float], list[list[float]], list[float]]:
    """Of the panel of right answers: its title, the heights of points, of the bars' ends, and of the base."""
    group = {
        "base": {"right": 0.1, "pictures_right": base, "enrichment": None, "cost_nats": None},
        "points": points,
    }
    (axes,) = curve_figure({"towers": group}, (), language).axes  # type: ignore[arg-type]
    heights = [[float(y) for y in line.get_ydata()] for line in axes.lines]  # type: ignore[union-attr]
    marks = [line.get_marker() for line in axes.lines]
    of_points = [one[0] for one, mark in zip(heights, marks, strict=True) if mark == "o"]
    bars = [one for one, line in zip(heights, axes.lines, strict=True) if line.get_alpha() == 0.75]
    return (
        axes.get_title("left"),
        of_points,
        bars,
        [one[0] for one, mark in zip(heights, marks, strict=True) if mark == "s"],
    )


def test_where_probes_share_pictures_the_share_of_pictures_is_drawn() -> None:
    points = [point(100, 0.7, 0.4, [0.2, 0.6]), point(400, 0.9, 0.62, [0.5, 0.61])]
    title, heights, bars, base = drawn(points, 0.05)
    assert (heights, base) == ([0.4, 0.62], [0.05])
    assert bars == [[0.2, 0.6], [0.5, 0.62]]  # a bar contains its point
    assert title == "right answers, by picture"
    assert drawn(points, 0.05, "zh")[0] == "答对比例（按图片）"


def test_where_none_do_the_share_of_answers_is_drawn() -> None:
    points = [point(100, 0.7, None, [0.5, 0.85])]
    assert drawn(points, None) == ("right answers", [0.7], [[0.5, 0.85]], [0.1])


@pytest.mark.parametrize("base", [None, 0.05])
def test_a_bar_of_another_share_is_not_drawn(base: float | None) -> None:
    """One run is of an earlier version, which kept the interval of pictures without their share."""
    points = [point(100, 0.7, None, [0.2, 0.6]), point(400, 0.9, 0.62, [0.5, 0.7])]
    assert drawn(points, base) == ("right answers", [0.7, 0.9], [], [0.1])


@pytest.mark.parametrize(("first", "by_picture"), [(None, False), (0.4, True)])
def test_by_picture_is_said_where_it_is_drawn(first: float | None, by_picture: bool) -> None:
    """Of one run without the share of pictures, all answers are drawn."""
    points = [point(100, 0.7, first, [0.2, 0.6]), point(400, 0.9, 0.62, [0.5, 0.7])]
    base = {"right": 0.1, "pictures_right": 0.05, "enrichment": None, "cost_nats": None}
    groups = {"towers": {"base": base, "points": points}}
    assert draws_by_picture(groups) is by_picture
    assert ("by picture" in drawn(points, 0.05)[0]) is by_picture
    assert ("counted once" in _by_picture(groups)) is by_picture
