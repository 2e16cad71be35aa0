"""Drift of attention between two checkpoints: how far it moved, to the picture or within it.

For the same probe and the same row: p and q are shares over cells, Σ p = 1 (``geometry.cells_from_row``), V the
visual share. Drift describes; it does not say why, nor whether it matters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diagnostics.measures.attention import jensen_shannon_nats
from diagnostics.measures.geometry import Numbers

SAME_TOTAL = 1e-4  # rows come from fp32 attention; a larger difference means that the two are not both shares
MOST_KEPT = 4096  # distances that were computed: 32 MB of maps of 32 × 32
NO_AXIS = 1e-9  # of the first axis' length: a second one below it is rounding


class Drift(NamedTuple):
    """How one row's attention to the image changed; each Float[*batch].

    Where either map is without any attention, what compares places is NaN: not measured. ``more_at_image`` says it all.

    more_at_image          ΔV, share of the row, [−1, 1]: above 0 it looks at the image more
    elsewhere_in_image     share of the row that moved from cell to cell within the image, [0, 1]
    jensen_shannon_nats    of the shares over cells, [0, ln 2]: how different, wherever
    wasserstein_cells      of the same, cells walked: how far
    cosine                 of the same, [0, 1]: 1 is the same map
    """

    more_at_image: np.ndarray
    elsewhere_in_image: np.ndarray
    jensen_shannon_nats: np.ndarray
    wasserstein_cells: np.ndarray
    cosine: np.ndarray


class Plane(NamedTuple):
    """A path of maps, drawn in the plane in which it moves most.

    points            Float[steps, 2]: unit: share of attention (distances of maps), mean 0
    explained_share   how much of the path's variance the plane shows, [0, 1]
    """

    points: np.ndarray
    explained_share: float


def drift(
    before_cells: Float[np.ndarray, "*batch cells"],
    after_cells: Float[np.ndarray, "*batch cells"],
    before_visual_share: Float[Numbers, "*batch"],
    after_visual_share: Float[Numbers, "*batch"],
    grid: tuple[int, int],
) -> Drift:
    """Did the row look *more* at the image, or *elsewhere* in it?

    Attention on a cell is V·p, and its change splits exactly in two: ΔV · mean(p, q) is more or less of the same
    places, mean V · (q − p) is the same amount elsewhere. Both are given in shares of the row, so they compare:
    ΔV, and mean V · TV(p, q).

    V .2 → .4 with p = [.5, .5, 0] → [.5, 0, .5]: ΔV = .2 at the image, .3 · .5 = .15 elsewhere in it.

    Give means over heads: the Wasserstein distance of each row is a small linear program.

    Raises ValueError as ``wasserstein_cells`` does, but for a map without any attention.
    """
    before_visual_share, after_visual_share = np.asarray(before_visual_share), np.asarray(after_visual_share)
    looks = look_at_both(before_cells, after_cells)
    # One that looks nowhere in the image (fp16 rounds what is small to 0) would be another map than any.
    first, second = (np.where(looks[..., None], cells, 0.0) for cells in (before_cells, after_cells))

    def measured(numbers: Float[Numbers, "*batch"]) -> np.ndarray:
        return np.asarray(np.where(looks, numbers, np.nan))

    return Drift(
        after_visual_share - before_visual_share,
        measured((before_visual_share + after_visual_share) / 2 * total_variation(first, second)),
        measured(jensen_shannon_nats(first, second)),
        measured(wasserstein_cells(first, second, grid)),
        measured(cosine(first, second)),
    )


def look_at_both(
    first: Float[np.ndarray, "*#batch cells"], second: Float[np.ndarray, "*#batch cells"]
) -> Bool[np.ndarray, " ..."]:
    """Has each of two maps any attention? One that has none is no map, and at no distance from another."""
    return np.asarray(first.any(-1) & second.any(-1))


def total_variation(
    first: Float[np.ndarray, "*batch cells"], second: Float[np.ndarray, "*batch cells"]
) -> Float[Numbers, "*batch"]:
    """How much of the attention to the image lies elsewhere? ½ Σ|p − q|. Unit: share, range [0, 1].

    Blind to how far: the next cell counts as the far corner. [.5, .5, 0] and [.5, 0, .5] give .5. Source: Levin,
    Peres & Wilmer 2009, "Markov chains and mixing times", section 4.1.
    """
    return np.abs(first - second).sum(-1) / 2


def cosine(
    first: Float[np.ndarray, "*batch cells"], second: Float[np.ndarray, "*batch cells"]
) -> Float[Numbers, "*batch"]:
    """Do two maps point the same way? p·q / (|p| |q|). Range [0, 1]; 1 is the same map.

    Peaks decide: a map that keeps its sink and moves all else stays near 1. [.75, .25, 0] and [.25, .75, 0] give
    .6. A map without any attention has nothing in common with any: 0. Source: Salton & McGill 1983.
    """
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    products = (first * second).sum(-1)
    shares = np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.clip(shares, 0.0, 1.0)


def wasserstein_cells(
    first: Float[np.ndarray, "*batch cells"],
    second: Float[np.ndarray, "*batch cells"],
    grid: tuple[int, int],
) -> Float[Numbers, "*batch"]:
    """How far must attention be carried to turn one map into the other? Exact earth mover's distance.

    Unit: cells, walked along rows and columns (Manhattan), times the share carried; range [0, rows + columns
    − 2]. Where Jensen–Shannon and cosine only see that cells differ, a neighbour costs 1 here and the far corner
    the picture's sides. Cells of two grids are not the same length: compare within one model.

    On a grid, carrying is a flow along the edges between neighbours. Solved as that flow's dual, one height for
    each cell, neighbours at most 1 apart, the largest Σ (p − q) · height: 12 ms on 14 × 14, 95 ms on 32 × 32, a
    matrix of all pairs would have a million entries there. On a grid (2, 3), [1, 0, 0, 0, 0, 0] to [.5, 0, 0,
    0, 0, .5] gives .5 · (1 + 2) = 1.5.

    Source: Rubner et al. 2000, "The earth mover's distance"; on grids Ling & Okada 2007, "An efficient earth
    mover's distance algorithm".

    Raises ValueError if the grid has another number of cells, and where totals differ.
    """
    if first.shape != second.shape or first.shape[-1] != grid[0] * grid[1]:
        raise ValueError(
            f"wasserstein: found shapes {first.shape} and {second.shape}, expected the same, with "
            f"{grid[0] * grid[1]} cells for a grid of {grid}"
        )
    differences = (first.astype(np.float64) - second).reshape(-1, first.shape[-1])
    apart = float(np.abs(differences.sum(-1)).max(initial=0.0))
    if apart > SAME_TOTAL:
        raise ValueError(
            f"wasserstein: found totals {apart:.3g} apart, expected two maps of shares that each sum to 1; a map "
            "without any attention can't be carried"
        )
    distances = [_carried(difference.tobytes(), grid) for difference in differences]
    return np.array(distances, np.float64).reshape(first.shape[:-1])


def principal_plane(series: Float[np.ndarray, "steps cells"]) -> Plane:
    """Which way did a map go over the checkpoints? The two directions in which it varies most (PCA).

    Signs are fixed, so the same path is drawn the same way again: the cell that weighs most in a direction does
    so upwards. An axis in which nothing moves, one and two checkpoints above all, is 0. A path that stands still
    is shown in full: share 1. Smooth random walks too give arcs and spirals: read the path's length and ends.

    Maps [1, 0], [.5, .5], [0, 1]: all on one line, points ±.7071 and 0, second axis 0, share 1.

    Source: Pearson 1901; for training trajectories Lorch 2016, "Visualizing deep network training
    trajectories with PCA"; the pitfall Antognini & Sohl-Dickstein 2018, arXiv 1806.08805.
    """
    centred = series.astype(np.float64) - series.mean(0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(series), 2))
    rounding = NO_AXIS * float(np.linalg.norm(series))
    for axis in range(min(2, len(lengths))):
        if lengths[axis] > max(rounding, NO_AXIS * lengths[0]):
            points[:, axis] = centred @ _upwards(directions[axis])
    variance = float((centred**2).sum())
    return Plane(points, float((points**2).sum()) / variance if lengths.max(initial=0.0) > rounding else 1.0)


def _upwards(direction: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    """The direction or its opposite. Of cells that weigh as much up to rounding, the first one decides."""
    sizes = np.abs(direction)
    heaviest = int(np.flatnonzero(sizes >= sizes.max() * (1 - NO_AXIS))[0])
    return direction * np.sign(direction[heaviest])


@lru_cache(maxsize=64)
def _edges(grid: tuple[int, int]) -> Int[np.ndarray, "edges 2"]:
    """Pairs of cells that lie side by side or one above the other, each pair both ways round."""
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    across = np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], -1)
    down = np.stack([cells[:-1].ravel(), cells[1:].ravel()], -1)
    once = np.concatenate([across, down])
    return np.concatenate([once, once[:, ::-1]])


@lru_cache(maxsize=MOST_KEPT)
def _carried(values: bytes, grid: tuple[int, int]) -> float:
    """Cells walked to level one difference of maps out, given as its float64 values: a checkpoint's curves, the
    comparison and its page ask for the same ones."""
    difference, furthest = np.frombuffer(values), sum(grid) - 2
    moved = float(np.abs(difference).sum()) / 2
    if moved == 0 or furthest == 0:
        return 0.0
    edges = _edges(grid)
    from scipy.optimize import linprog  # half a second, and drawing never needs it
    from scipy.sparse import csr_array

    count = len(edges)
    steps = csr_array(
        (np.tile([1.0, -1.0], count), edges.ravel(), np.arange(0, 2 * count + 1, 2)),
        shape=(count, len(difference)),
    )
    # The solver's tolerances are absolute: the share moved is scaled to 1. Bounds, because totals that differ by
    # rounding would let all heights rise together without end.
    result = linprog(
        -difference / moved, A_ub=steps, b_ub=np.ones(count), bounds=(0, furthest), method="highs"
    )
    assert result.status == 0, result.message  # feasible (all heights 0) and bounded: always solvable
    return max(0.0, -float(result.fun) * moved)
