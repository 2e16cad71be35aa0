"""Numbers of attention: pure functions of arrays, each with unit, range and source.

a is one query's attention row (one layer, head), I the image keys, w the share of each cell that a region
covers, p the shares over cells, Σ p = 1 (``geometry.cells_from_row``). Any number of leading axes (layers,
heads, …) is kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from diagnostics.geometry import Box, shared_area_pixels

CANDIDATES = 64  # places tried for one random region before the least overlapping is taken


def visual_share(
    rows: Float[np.ndarray, "*batch keys"], positions: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, "*batch"]:
    """How much of a row lies on the image? V = Σ_I a. Unit: share of attention, range [0, 1].

    It falls with the image's share of all tokens: compare it at the same prompt only.
    """
    return rows[..., positions].sum(-1)


def region_mass(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, "*batch"]:
    """How much of the attention to the image lies on the region? M = Σ w·p. Unit: share, range [0, 1].

    Grows with the region's area; ``enrichment`` does not. p = [.5, .25, .25], w = [1, .5, 0] give .625.
    """
    return cells @ coverage


def enrichment(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, "*batch"]:
    """How many times more than its area's share does the region get? E = M / (Σ w / cells).

    Unit: times, range [0, cells / Σ w]; 1 is what looking anywhere gives. p = [.5, .25, .25], w = [1, .5, 0]
    give .625 / .5 = 1.25. Compare with area-matched random regions (``random_regions``): the middle of
    pictures wins often.

    Raises ValueError for a region that covers no cell.
    """
    share = float(coverage.mean())
    if share <= 0:
        raise ValueError("enrichment: the region covers no cell of the image, expected an area above 0")
    return region_mass(cells, coverage) / share


def entropy(cells: Float[np.ndarray, "*batch cells"]) -> Float[np.ndarray, "*batch"]:
    """How spread is the attention? −Σ p log p / log(cells). Unit: share of the largest entropy, range [0, 1].

    Its shape only: it says nothing of where, and does not predict correctness ("VLM reliability probe",
    2026).
    """
    logs = np.log(cells, out=np.zeros_like(cells, dtype=np.float64), where=cells > 0)
    return -(cells * logs).sum(-1) / np.log(cells.shape[-1])


def pointing_game(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Bool[np.ndarray, "*batch"]:
    """Does the strongest cell touch the region? (Zhang et al. 2016, arXiv 1608.00507, section 4.1; a cell
    stands for their tolerance of 15 pixels.) Sinks win the argmax: read it beside the mass."""
    return coverage[cells.argmax(-1)] > 0


def jensen_shannon_nats(
    first: Float[np.ndarray, "*batch cells"], second: Float[np.ndarray, "*batch cells"]
) -> Float[np.ndarray, "*batch"]:
    """How far did the attention move? ½ KL(p‖m) + ½ KL(q‖m), m = (p + q) / 2. Unit: nats, range [0, ln 2].

    Finite and symmetric where KL is not: a cell may have no attention at all. [1, 0] against [.5, .5] gives
    .2158. Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    middle = (first + second) / 2
    return np.maximum((_kl_nats(first, middle) + _kl_nats(second, middle)) / 2, 0.0)


def random_regions(
    boxes: Sequence[Box], image_size_pixels: tuple[int, int], *, count: int, name: str
) -> list[list[tuple[float, float, float, float]]]:
    """Regions of the very same shape and area elsewhere in the image, the control of every claim about a
    region.

    The boxes are moved together, and mirrored at times, to places drawn uniformly; one that shares nothing
    with the region is taken at once, else the one that shares least (a region that fills the picture has
    nowhere to go). The same ``name`` (a probe's id) gives the same regions on every machine, step and rank.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [_random_region(np.asarray(boxes, np.float64), image_size_pixels, rng) for _ in range(count)]


def _random_region(
    boxes: Float[np.ndarray, "boxes 4"], size: tuple[int, int], rng: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    best: tuple[float, list[tuple[float, float, float, float]]] | None = None
    for _ in range(CANDIDATES):
        moved = boxes - np.tile(low, 2)
        for axis, extent in enumerate(high - low):
            if rng.random() < 0.5:
                moved[:, [axis, axis + 2]] = extent - moved[:, [axis + 2, axis]]
        room = np.maximum(np.asarray(size) - (high - low), 0)
        moved += np.tile([rng.integers(0, int(extent) + 1) for extent in room], 2)
        region = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in moved]
        shared = shared_area_pixels(region, boxes.tolist())
        if best is None or shared < best[0]:
            best = shared, region
        if shared == 0:
            break
    assert best is not None
    return best[1]


def _kl_nats(
    first: Float[np.ndarray, "*batch cells"], second: Float[np.ndarray, "*batch cells"]
) -> Float[np.ndarray, "*batch"]:
    ratio = np.divide(first, second, out=np.ones_like(second, dtype=np.float64), where=first > 0)
    return (first * np.log(ratio)).sum(-1)
