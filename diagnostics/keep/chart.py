"""The study as a picture: right answers against the share of image tokens kept, a curve for each order."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diagnostics.drawing.figure_page import font
from diagnostics.keep.judging import Judgement
from diagnostics.keep.rankings import DIVPRUNE, FASTV, LEAST, MAP, ORDERS, RANDOM, REGION, TOWER
from diagnostics.keep.summary import Study, sentence

COLOURS = {
    MAP: "#c2571a", FASTV: "#8d4a9e", TOWER: "#8a6a00", DIVPRUNE: "#1f6fb2", RANDOM: "#646975", REGION: "#0e7a5c",
    LEAST: "#b23a5f",
}  # fmt: skip
DASHED = (RANDOM, REGION, LEAST)
"""What an order by attention is set against: chance, and both ends."""
COLUMNS, PANEL_INCHES, DPI = 3, (4.1, 3.1), 110
SPREAD = 0.008
"""Curves stand a little apart, so that their intervals do not cover each other; in shares of the tokens."""


def chart_figure(study: Study) -> Figure:
    """A panel for all probes and one for each group."""
    columns = min(COLUMNS, len(study.judgements))
    rows = -(-len(study.judgements) // columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, judged in zip(panels, study.judgements, strict=False):
        _draw(panel, study, judged)
    for panel in panels[len(study.judgements) :]:
        panel.set_axis_off()
    figure.suptitle(sentence(study), fontsize=11, wrap=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def chart_png(study: Study) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    chart_figure(study).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _draw(panel: Axes, study: Study, judged: Judgement) -> None:
    shares = [share for share in reversed(study.shares) if share < 1]
    drawn = [name for name in ORDERS if judged.cells[name] is not None]
    for at, name in enumerate(drawn):
        cells = judged.cells[name]
        assert cells is not None
        right = [cells[share].right for share in shares] + [judged.right]
        means = np.array([one.mean for one in right])
        below = np.array([one.mean - min(one.low, one.mean) for one in right])
        above = np.array([max(one.high, one.mean) - one.mean for one in right])
        panel.errorbar(
            np.array([*shares, 1.0]) + (at - (len(drawn) - 1) / 2) * SPREAD,
            means,
            yerr=[below, above],
            label=study.label(name),
            color=COLOURS[name],
            linestyle="--" if name in DASHED else "-",
            linewidth=1.4 if name in DASHED else 2,
            marker="o",
            markersize=3,
            elinewidth=0.8,
        )
    title = f"{judged.scope} ({judged.probes})"
    panel.set_title(title, fontproperties=font(title, 10))
    panel.set_ylim(-0.03, 1.05)
    panel.set_xticks([*shares, 1.0])
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.set_xlabel("of the image tokens kept", fontsize=9)
    panel.set_ylabel("right answers, 95 % intervals", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.25)
