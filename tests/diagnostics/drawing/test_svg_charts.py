"""Charts by what is in them: where a number lands on the paper, which words stand beside it."""

import base64
import io
import re
from itertools import pairwise

import pytest
from PIL import Image

from diagnostics.drawing.svg_charts import (
    LABEL_HEIGHT,
    Line,
    apart,
    forest,
    inline_picture,
    line_chart,
    margin_charts,
    round_ticks,
    share_bars,
    spread,
    tick_words,
)


def points(chart: str) -> list[list[tuple[float, float]]]:
    """The points of each line, in its order."""
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]
        for line in re.findall(r'<polyline points="(.*?)"', chart)
    ]


def test_lines_lie_where_their_numbers_are() -> None:
    chart = line_chart("t", [Line("a", [0.0, 1.0, 0.5])], [0, 100, 400], unit="step", ends=(0.0, 1.0))
    ((first, second, third),) = points(chart)
    assert first[1] > third[1] > second[1]  # more is higher
    assert third[1] == pytest.approx((first[1] + second[1]) / 2)
    # steps as far apart as they are, not as many as they are
    assert (second[0] - first[0]) / (third[0] - first[0]) == pytest.approx(0.25, abs=0.01)


def test_the_scale_holds_zero_and_everything() -> None:
    ((low, high),) = points(line_chart("t", [Line("a", [3.0, 4.0])], [0, 1], unit="step"))
    ((_, top), (_, bottom)) = points(
        line_chart("t", [Line("a", [0, 4.0]), Line("b", [0, -4.0])], [0, 1], unit="s")
    )
    assert low[1] - high[1] < 40  # 3 and 4 of 0 to 4: a quarter of the height
    assert bottom[1] > top[1]


def test_a_still_line_is_drawn() -> None:
    ((first, last),) = points(line_chart("t", [Line("a", [0.0, 0.0])], [0, 1], unit="step"))
    assert first[1] == last[1] and first[0] < last[0]
    assert points(line_chart("t", [Line("a", [1.0])], [5], unit="step"))[0]


def test_charts_say_their_numbers_in_words() -> None:
    chart = line_chart(
        "right &lt;answers&gt;", [Line("a", [0.0, 0.975])], [0, 1], unit="step", ends=(0, 1), as_percent=True
    )
    assert 'aria-label="lines: a: 0 % → 97.5 %"' in chart and "<h3>right &lt;answers&gt;</h3>" in chart


def test_a_seventh_line_is_told_from_the_first_and_a_control_is_faint() -> None:
    lines = [Line(str(n), [0.0, float(n)], faint=n == 7) for n in range(8)]
    kinds = re.findall(r'<g class="(line .*?)"', line_chart("t", lines, [0, 1], unit="step"))
    assert kinds[0] == "line c0" and kinds[6] == "line c0 again" and kinds[7] == "line c1 again faint"


def test_names_keep_apart_and_inside() -> None:
    chart = line_chart("t", [Line(f"name {n}", [0.0, 1.0]) for n in range(4)], [0, 1], unit="step")
    heights = [float(y) for y in re.findall(r'y="([\d.]+)">name', chart)]
    assert heights == sorted(heights) and heights[0] >= 20
    assert min(b - a for a, b in pairwise(heights)) >= LABEL_HEIGHT - 0.2
    assert "a very long gro…" in line_chart("t", [Line("a very long group name", [0, 1])], [0, 1], unit="s")


def test_heights_are_spread_about_their_middle() -> None:
    assert spread([10.0, 10.0], 12) == pytest.approx([4.0, 16.0])
    assert spread([50.0, 10.0], 12) == [50.0, 10.0]
    assert spread([12.0, 10.0], 12) == pytest.approx([17.0, 5.0])
    assert spread([], 12) == []


def test_a_line_for_each_probe_and_how_many_are_right() -> None:
    chart = margin_charts({"a & b": [(-1.0, 2.0), (1.0, 0.0), (-3.0, -2.0)]})
    assert chart.count('<line class="good"') == 1 and chart.count('<line class="bad"') == 2
    assert 'aria-label="1 of 3 right before, 1 now"' in chart and ">a &amp; b</h3>" in chart
    assert chart.count('class="bad hollow"') == 4  # wrong answers differ without colour


def test_the_charts_of_margins_share_one_scale() -> None:
    chart = margin_charts({"a": [(-1.0, 2.0)], "b": [(-10.0, 20.0)]})
    heights = [float(one) for one in re.findall(r'class="zero"[^>]*y1="([\d.]+)"', chart)]
    assert heights[0] == heights[1]
    assert chart.count(">+20</text>") == chart.count(">-10</text>") == 2


def test_a_forest_has_an_axis_of_round_numbers_and_its_unit() -> None:
    one = {"layer": 3, "difference": -0.001, "ci95": [-0.004, 17.0], "before": 1.0, "after": 2.0}
    drawn = forest({"a": {"enrichment_by_layer": [one]}})
    assert re.findall(r'<span style="left:[\d.]+%">(.*?)</span>', drawn) == ["0", "+5", "+10", "+15"]
    assert "times the even share" in drawn
    assert 'aria-label="change +0.00, interval +0.00 to +17.00"' in drawn
    assert round_ticks(-3.0, 17.0) == [0.0, 5.0, 10.0, 15.0] and round_ticks(-0.31, 0.3) == pytest.approx(
        [-0.2, 0.0, 0.2]
    )


def test_shares_before_and_after() -> None:
    bars = share_bars({"base": 1.0}, {"spheres": 0.9, "base": 0.1})
    assert bars.index("spheres") < bars.index("base")
    assert re.findall(r'class="(was|is)" style="width:([\d.]+)%"', bars) == [
        ("was", "0.0"),
        ("is", "90.0"),
        ("was", "100.0"),
        ("is", "10.0"),
    ]


def test_numbers_have_no_more_digits_than_can_be_told_apart() -> None:
    assert [tick_words(v) for v in (0.0, 0.123, -1.26, 12.6, 3.0)] == ["0", "+0.12", "-1.3", "+13", "+3"]
    assert tick_words(250, plain=True) == "250"
    assert [tick_words(-0.003), tick_words(-0.003, plain=True)] == ["0", "0"]
    assert apart([-0.5, 0.0, 10.0], 10.5) == [0.0, 10.0]


def test_a_picture_is_inside_its_address() -> None:
    address = inline_picture(Image.new("RGB", (6, 4), (200, 30, 30)))
    content = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(content)).size == (6, 4)
