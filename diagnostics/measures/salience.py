"""Places in a picture that are as salient as a region: a stricter control than any place of its size."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from finetune.families.parts.coverage import Box, disjoint_boxes

CANDIDATES = 256
"""Random places, from which the most similar ones are taken."""
PLACES = 8
SHARED_MAX = 0.1  # of a place's area, with any named region
CONTRAST_RATIO_MAX = 2.0

Place = list[tuple[float, float, float, float]]
"""Boxes that do not overlap."""


def salient_places(
    luminance: Float[np.ndarray, "height width"], regions: Mapping[str, Sequence[Box]], *, name: str
) -> dict[str, list[Place]]:
    """For each region, up to 8 places of its shape and area whose contrast is nearest its own; without regions for
    which no place within a factor of 2 of it was found.

    Contrast is the standard deviation of luminance inside the boxes. Untrained attention follows it as well (of the
    saliency map of Itti, Koch & Niebur, PAMI 1998, it is the intensity channel at one scale), so attention that has
    learned nothing prefers a region to background, but not to these places. 256 places are drawn as
    ``random_regions`` are: moved together, mirrored at times, inside the picture. Those that share more than a tenth
    of their area with any of the regions are left out. The same ``name`` (a probe's id) gives the same places.

    luminance   of the picture as shown, any unit
    regions     all that the probe names: name → boxes x0 y0 x1 y1 in pixels
    """
    sums = _integral(luminance)
    pieces = {region: np.array(disjoint_boxes(boxes)) for region, boxes in regions.items()}
    found: dict[str, list[Place]] = {}
    for region, own in pieces.items():
        places = _drawn(own, luminance.shape, np.random.default_rng(zlib.crc32(name.encode())))
        for other in pieces.values():
            places = places[_shared_areas(places, other) <= SHARED_MAX * _areas(own).sum()]
        if len(alike := _most_alike(places, _contrasts(sums, places), float(_contrasts(sums, own[None])[0]))):
            found[region] = [[(x0, y0, x1, y1) for x0, y0, x1, y1 in place] for place in alike.tolist()]
    return found


def _most_alike(
    places: Float[np.ndarray, "places pieces 4"], contrasts: Float[np.ndarray, " places"], wanted: float
) -> Float[np.ndarray, "kept pieces 4"]:
    """Compared as ratios; a flat place is like no region, and no place is like a flat region."""
    if wanted == 0:
        return places[:0]
    apart = np.abs(np.log(np.maximum(contrasts, 1e-12) / wanted))
    nearest = np.argsort(apart.round(6), kind="stable")[:PLACES]  # rounding decides nothing
    return places[nearest[apart[nearest] <= np.log(CONTRAST_RATIO_MAX)]]


def _drawn(
    pieces: Float[np.ndarray, "pieces 4"], shape: tuple[int, ...], rng: np.random.Generator
) -> Float[np.ndarray, "places pieces 4"]:
    low = pieces[:, :2].min(0)
    extent = pieces[:, 2:].max(0) - low
    places = np.tile(pieces - np.tile(low, 2), (CANDIDATES, 1, 1))
    for axis in (0, 1):
        mirrored = rng.random(CANDIDATES) < 0.5
        places[mirrored, :, axis::2] = extent[axis] - places[mirrored, :, axis::2][..., ::-1]
    room = np.maximum(np.array(shape[::-1]) - extent, 0).astype(int)
    return places + np.tile(rng.integers(0, room + 1, (CANDIDATES, 2)), 2)[:, None]


def _integral(luminance: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "2 rows columns"]:
    """Sums of luminance and of its square above and left of each corner of a pixel."""
    sums = np.zeros((2, luminance.shape[0] + 1, luminance.shape[1] + 1))
    inner = sums[:, 1:, 1:]  # written in place: a third of the time that copies take
    np.subtract(luminance, luminance.mean(), out=inner[0])
    np.square(inner[0], out=inner[1])
    for axis in (1, 2):
        np.cumsum(inner, axis=axis, out=inner)
    return sums


def _contrasts(
    sums: Float[np.ndarray, "2 rows columns"], places: Float[np.ndarray, "places pieces 4"]
) -> Float[np.ndarray, " places"]:
    """Standard deviation of luminance inside each place, over the pixels nearest its boxes."""
    corners = _pixels(places, sums.shape[1:])
    x0, y0, x1, y1 = np.moveaxis(corners, -1, 0)
    inside = sums[:, y1, x1] - sums[:, y0, x1] - sums[:, y1, x0] + sums[:, y0, x0]  # [2, places, pieces]
    count = np.maximum(_areas(corners).sum(-1), 1)
    mean, square = inside.sum(-1) / count
    variance = square - mean**2
    return np.sqrt(np.where(variance > 1e-9, variance, 0.0))  # the sums round


def _pixels(
    places: Float[np.ndarray, "places pieces 4"], corners: tuple[int, ...]
) -> Int[np.ndarray, "places pieces 4"]:
    rows, columns = corners
    return np.clip(np.rint(places).astype(int), 0, np.array([columns, rows, columns, rows]) - 1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[..., 2:] - boxes[..., :2]).prod(-1))


def _shared_areas(
    places: Float[np.ndarray, "places pieces 4"], others: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, " places"]:
    """Area that each place has in common with other boxes; within each of both, none overlap."""
    one, two = places[:, :, None], others[None, None]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    return np.asarray(np.clip(sides, 0, None).prod(-1).sum((1, 2)))


def curve_area(margins: Float[np.ndarray, " points"], shares: Sequence[float]) -> float:
    """Mean margin along a curve, nats: the trapezoid area over shares from 0 to 1.

    Low for deletion and high for insertion: the map shows what the answer needs (Petsiuk et al. 2018);
    compare with the control's.
    """
    return float(np.trapezoid(margins, shares))
