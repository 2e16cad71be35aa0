"""Colours and scales of attention maps: maps shown side by side share one scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance

from diagnostics.comparison.maps import CellMap

INK, SOFT, FAINT, PAPER = (28, 30, 36), (98, 103, 115), (221, 224, 230), (255, 255, 255)

GOOD, BAD = (20, 122, 88), (190, 62, 40)

LESS, MORE = (
    (64, 156, 255),
    (255, 138, 51),
)  # difference: looks less, looks more; told apart by the colour-blind


class Scale(NamedTuple):
    """Where the colours end: ``top`` times the even share, shared by base and now, and ± ``swing`` for the
    difference; ``peak`` is the highest cell of both maps, which may lie beyond the colours."""

    top: float
    swing: float
    peak: float


def shared_scale(before: CellMap, after: CellMap) -> Scale:
    """One colour scale for base and now, fixed by both.

    It ends at the larger 99th percentile of the two maps, not at the maximum: one sink cell would otherwise
    leave everything else black. At least 2 (twice the even share), so that noise over an even map stays dark.
    """
    return series_scale([before, after])


def series_scale(maps: Sequence[CellMap]) -> Scale:
    """One colour scale for maps over steps, as ``shared_scale`` for two; differences are those from the first."""
    densities = np.stack([cells.density for cells in maps])
    swings = np.percentile(np.abs(densities - densities[0]), 99, axis=1)
    return Scale(
        top=common_top(maps),
        swing=float(max(1.0, *swings)),
        peak=float(max(cells.density.max() for cells in maps)),
    )


def common_top(maps: Sequence[CellMap]) -> float:
    """The end of the colour scale of maps shown side by side, of one picture or several; see ``shared_scale``."""
    return float(max(2.0, *(np.percentile(cells.density, 99) for cells in maps)))


def end_words(top: float) -> str:
    """The end of a scale in digits: "2", "2.5"."""
    return f"{top:.1f}".removesuffix(".0")


def dim(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The original at ``size`` (width, height), greyed and darkened so that the map over it is legible."""
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return ImageEnhance.Brightness(ImageEnhance.Color(small).enhance(0.45)).enhance(dimming(small))


def dimming(picture: Image.Image) -> float:
    """What share of its brightness a picture keeps, [0.5, 1]: bright ones less, or a night scene would vanish."""
    return float(np.clip(78 / max(float(np.asarray(picture).mean()), 1.0), 0.5, 1.0))


def heat_over(dimmed: Image.Image, pixels: Float[np.ndarray, "height width"], top: float) -> Image.Image:
    """The map in colour over the dimmed picture: 0 leaves the picture, ``top`` and more is brightest."""
    return tint(dimmed, np.clip(pixels * (255 / top), 0, 255), heat_colours())


def difference_over(
    dimmed: Image.Image, pixels: Float[np.ndarray, "height width"], swing: float
) -> Image.Image:
    """The difference over the dimmed picture: blue looks less, orange looks more, 0 leaves the picture."""
    return tint(dimmed, np.clip(pixels * (127.5 / swing) + 127.5, 0, 255), difference_colours())


@lru_cache(maxsize=1)
def heat_colours() -> UInt8[np.ndarray, "256 4"]:
    """Red, green, blue and opacity of a level: matplotlib's inferno without its black end, which is perceptually
    even and safe for the colour-blind."""
    level = np.linspace(0.0, 1.0, 256)
    colours = matplotlib.colormaps["inferno"](0.22 + 0.78 * level)
    colours[:, 3] = 0.9 * level**0.7
    return (colours * 255).round().astype(np.uint8)


@lru_cache(maxsize=1)
def difference_colours() -> UInt8[np.ndarray, "256 4"]:
    """Blue, nothing, orange: the sign is the hue, the size is the opacity."""
    level = np.linspace(-1.0, 1.0, 256)
    opacity = 0.9 * np.abs(level) ** 0.8 * 255
    hue = np.where(level[:, None] < 0, LESS, MORE)
    return np.concatenate([hue, opacity[:, None]], axis=1).round().astype(np.uint8)


def tint(
    below: Image.Image, level: Float[np.ndarray, "height width"], colours: UInt8[np.ndarray, "256 4"]
) -> Image.Image:
    above = Image.fromarray(np.take(colours, level.astype(np.uint8), axis=0))
    tinted = below.copy()
    tinted.paste(above, mask=above)
    return tinted
