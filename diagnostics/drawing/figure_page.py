"""The page of a matplotlib figure: type as large as the page allows, titles and tokens cut to fit, the colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from diagnostics.drawing.attention_matrix import AttentionMatrix
from finetune.fonts import Pen, drawable, text_font

UNSEEN, HATCH = "#9a9a9a", "#c4c4c4"  # greys that the colours of shares do not have
NO_VALUE = "#4fb3ff"  # nor this blue
SLIVER = 20
"""Pictures longer than this many times their width are drawn wider: 4 × 3,000 pixels would be a line."""
BAR_MAX = 0.5  # of the panels beside it

POINTS = (6.5, 10.0)
"""Type size on the smallest page, and on every page that is large enough, in points."""
LEADING = 1.45
"""Line height as a multiple of the type size; Chinese characters, which are taller, fit too."""
MEASURED = 64  # pixels: fonts are measured at one size and scaled


class Page:
    """One figure and its letters: as large as the page allows, and cut with an ellipsis rather than by its border."""

    def __init__(
        self, figsize: tuple[float, float], layout: Literal["constrained", "compressed"] = "constrained"
    ) -> None:
        self.figure = Figure(figsize=figsize, layout=layout)
        self.width, self.height = (72 * inches for inches in figsize)  # in points
        self.points = float(np.clip(min(self.width, self.height) / 32, *POINTS))
        self.legend = 0.0  # points that a legend takes

    @property
    def _beside(self) -> float:
        """Points that the colour bar, its ticks and its label take."""
        return 6.5 * self.points

    def title(self, axes: Axes, text: str, *, width: float, loc: Literal["left", "center"] = "left") -> None:
        """What stands over one panel, ``width`` points wide at most."""
        axes.set_title(_fitted(text, self.points, width), loc=loc, fontproperties=font(text, self.points))

    def heading(self, text: str) -> None:
        """What stands over all panels, if anything."""
        if not text:
            return
        shown = _fitted(text, 1.1 * self.points, 0.95 * self.width)
        self.figure.suptitle(shown, fontproperties=font(text, 1.1 * self.points))

    def bar(
        self, shown: AxesImage, axes: Axes | list[Axes], unit: str, *, across: float | None = None
    ) -> None:
        """The colour bar of panels that take ``across`` points (None: the page), a letter wide whatever they are."""
        # More than its width: else it is as short as it is narrow. Beside narrow panels, never most of the page.
        share = min(2 * self.points / (across or self.width), BAR_MAX)
        bar = self.figure.colorbar(shown, ax=axes, fraction=share, pad=0.01, aspect=self.height / self.points)
        bar.set_label(unit, fontsize=self.points)
        bar.ax.tick_params(labelsize=0.9 * self.points)
        bar.locator = MaxNLocator(nbins=max(2, int(self.height / 60)))
        bar.update_ticks()

    def row(self, panels: int, picture: Image.Image) -> tuple[int, float]:
        """How many panels stand in a row so that the pictures are largest, and how many points wide each is then."""

        def scale(columns: int) -> float:
            across = (self.width - self._beside) / columns - 0.5 * self.points
            down = self.height / math.ceil(panels / columns) - 2.2 * self.points
            return min(across / wide, down / high)

        wide, high = drawn_size(picture)
        columns = max(range(1, panels + 1), key=scale)
        return columns, scale(columns) * wide

    def mark_unseen(self, axes: Axes, drawn: AttentionMatrix) -> None:
        """What has no colour of the scale: tokens that come later, and places without a value; and a legend of both."""
        axes.set_facecolor(UNSEEN)
        axes.patch.set(hatch="////", edgecolor=HATCH)
        found = []
        if drawn.is_future.any():
            found.append(
                Patch(facecolor=UNSEEN, hatch="////", edgecolor=HATCH, label="comes later, cannot be seen")
            )
        lacking = np.isnan(drawn.values) & ~drawn.is_future
        if lacking.any():
            over = np.ma.masked_array(np.ones(lacking.shape), ~lacking)
            colours = ListedColormap([NO_VALUE])
            axes.imshow(over, cmap=colours, aspect="auto", interpolation="nearest")
            found.append(Patch(facecolor=NO_VALUE, label=f"no value (NaN): {int(lacking.sum()):,}"))
        if found:
            self.legend = 2 * self.points
            self.figure.legend(
                handles=found, loc="outside lower left", ncols=len(found), fontsize=0.9 * self.points, frameon=False,
                borderaxespad=0.2, handlelength=1.5,
            )  # fmt: skip

    def name_tokens(self, axes: Axes, keys: Sequence[str], queries: Sequence[str]) -> None:
        """Both axes' tokens: as many as can be read, every n-th where they are too many."""
        size = 0.9 * self.points
        across = [_fitted(token, size, 0.3 * self.height) for token in keys]
        down = [_fitted(token, size, 0.25 * self.width) for token in queries]
        widest, margin = (max(_text_width(label, size) for label in labels) for labels in (across, down))
        room = self.width - margin - self._beside - 4 * self.points
        lying, upright = (
            math.ceil(len(across) * step / room) for step in (widest + 0.6 * size, LEADING * size)
        )
        below = 1.5 * size if lying <= upright else widest
        _ticks(axes.xaxis, across, size, min(lying, upright), rotation=0 if lying <= upright else 90)
        room = self.height - below - 7 * self.points - self.legend
        _ticks(axes.yaxis, down, size, math.ceil(len(down) * LEADING * size / room), rotation=0)


def drawn_size(picture: Image.Image) -> tuple[float, float]:
    """Width and height, in any unit, of the picture as it is drawn: true but for slivers, which could not be seen."""
    longest = max(picture.size)
    return max(picture.width, longest / SLIVER), max(picture.height, longest / SLIVER)


def _label(token: str) -> str:
    """A token for a tick or a title: white space made visible, what the font lacks spelled out."""
    shown = token.replace("\n", "\\n").replace("\t", "\\t")
    shown = shown if shown.strip() else "·" * max(1, len(shown))
    return drawable(shown, text_font(shown))


def _fitted(token: str, size: float, width: float) -> str:
    """A token's label of at most ``width`` points, with an ellipsis where it is longer."""
    shown = _label(token)
    while len(shown) > 1 and _text_width(shown, size) > width:
        shown = shown[: -2 if shown.endswith("…") else -1] + "…"
    # matplotlib would read $…$ as mathematics
    return shown.replace("$", r"\$")


def _text_width(text: str, size: float) -> float:
    """Points that one line takes."""
    return Pen(text_font(text)).width(text.replace(r"\$", "$"), MEASURED) * size / MEASURED


def font(text: str, size: float) -> FontProperties:
    """The font to write ``text`` with; asks for nothing global (no rcParams, no font registry)."""
    return FontProperties(fname=str(text_font(text)), size=size)


def _ticks(axis: Axis, labels: Sequence[str], size: float, every: int, *, rotation: int) -> None:
    places = range(0, len(labels), every)
    axis.set_ticks(places, [labels[place] for place in places])
    properties = font("".join(labels), size)
    for text in axis.get_ticklabels():
        text.set_fontproperties(properties)
        text.set_rotation(rotation)
