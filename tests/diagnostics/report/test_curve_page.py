"""What the last step up in samples changed, in a sentence."""

from typing import Any

from diagnostics.report.curve_page import neighbour_words
from diagnostics.report.languages import translated

NOTHING: dict[str, Any] = {
    "from": 10, "to": 1200, "answers": None, "attention": None, "cause": None, "rose": [], "fell": [],
}  # fmt: skip


def test_where_nothing_was_measured_nothing_is_said_of_chance() -> None:
    words = neighbour_words({"neighbours": [NOTHING]})
    assert words == "From 10 to 1,200 samples: not measured."
    assert translated(words) == "从 10 到 1,200 个样本：未测量。"
    change = {"difference": 0.02, "ci95": [-0.1, 0.1], "p_adjusted": 0.5}
    words = neighbour_words({"neighbours": [{**NOTHING, "answers": change}]})
    assert words == "From 10 to 1,200 samples: answers +2 % (-10 % to +10 %); nothing beyond chance."
