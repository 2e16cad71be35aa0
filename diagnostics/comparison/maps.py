"""The maps of one probe side by side: before and after, or over the steps of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class RegionChange(NamedTuple):
    """Attention on one region in one layer: its share of the attention to the picture (mass), and enrichment."""

    region: str
    mass_before: float
    mass_after: float
    enrichment_before: float
    enrichment_after: float


@dataclass(frozen=True)
class CellMap:
    """Attention over the cells of one picture.

    density            Float[rows * columns]: multiples of the even share; 1 is uniform attention
    grid               (rows, columns)
    boxes_pixels       Float[rows * columns, 4]: x0 y0 x1 y1 of each cell in pixels of the original
    """

    density: np.ndarray
    grid: tuple[int, int]
    boxes_pixels: np.ndarray


@dataclass(frozen=True)
class LayerMaps:
    """One key layer of one probe: its maps before and now, and the numbers below them.

    trained_on   was attention trained on in this layer? It then looks where it was told to
    """

    layer: int
    before: CellMap
    after: CellMap
    readings: tuple[RegionChange, ...]
    trained_on: bool = False

    @property
    def name(self) -> str:
        """The layer, as pictures name it."""
        return layer_words(self.layer, self.trained_on)


class SaidBox(NamedTuple):
    """The box in a generated answer: x0 y0 x1 y1 in pixels of the original, and whether its IoU is above .5."""

    corners: tuple[float, float, float, float]
    is_right: bool


@dataclass(frozen=True)
class Outcome:
    """One model's generated answer ("" if none was generated), and log p(answer) - log p(foil).

    box   its generated box, if the right answer is a box and it generated one in the family's format
    """

    said: str
    margin_nats: float | None
    box: SaidBox | None = None


class StripPanel(NamedTuple):
    """One checkpoint on a strip; ``mass`` and ``enrichment`` of the judged region, None without one."""

    step: int
    map: CellMap
    mass: float | None
    enrichment: float | None
    outcome: Outcome


@dataclass(frozen=True)
class Strip:
    """One key layer of one probe over the steps of a training; ``trained_on`` as in ``LayerMaps``, at any of them."""

    layer: int
    panels: tuple[StripPanel, ...]
    trained_on: bool = False

    @property
    def name(self) -> str:
        """The layer, as pictures name it."""
        return layer_words(self.layer, self.trained_on)


TRAINED_ON = "trained on"
"""What is said of a layer, a head or a mean in which attention was trained on."""


def layer_words(layer: int, trained_on: bool) -> str:
    """``layer_words(8, True)`` → "layer 8, trained on"."""
    return f"layer {layer}, {TRAINED_ON}" if trained_on else f"layer {layer}"
