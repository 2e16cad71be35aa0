"""Numbers of attention: pure functions of arrays, each with unit, range and source.

a is one query's attention row (one layer, head), I the image keys, w the share of each cell that a region
covers, p the shares over cells, Σ p = 1 (``geometry.cells_from_row``). Any number of leading axes (layers,
heads, …) is kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diagnostics.measures.geometry import Numbers
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import Box, disjoint_boxes, region_coverage

CANDIDATES = 64  # places tried for one random region before the least overlapping is taken
FLAT = 1e-9  # spread, as a share of the mean, below which a map is flat up to rounding
RELATIVE_EPS = 0.1  # of a flat map's share; relative_attention says why
COLLAPSED_ENTROPY = 0.01  # at 1,000 keys: 99.5 % of the row on one of them
COLLAPSED_SHARE = (
    0.01  # of the heads: of hundreds one sharpens in sound trainings (1 of 270 in the real case)
)
EXPLODED_LOGIT = 100.0  # where Kimi K2 (2025, arXiv 2507.20534) clips


class LowestEntropy(NamedTuple):
    """The head that looks at the fewest tokens.

    entropy      share of the largest entropy, [0, 1]
    layer, head  where; layer counts the rows of what was given
    """

    entropy: float
    layer: int
    head: int


class Collapse(NamedTuple):
    """Are heads freezing on single tokens? Every entropy a share of the largest, [0, 1]; logits as they are.

    lowest_entropy   the head with the lowest entropy after
    entropy_before   the lowest of any head before
    highest_logit    the highest of any head after
    logit_before     the highest of any head before
    collapsed_heads  how many heads collapsed since
    warn             True where heads collapsed or logits exploded: training is likely to become unstable
    """

    lowest_entropy: LowestEntropy
    entropy_before: float
    highest_logit: float
    logit_before: float
    collapsed_heads: int
    warn: bool


def visual_share(
    rows: Float[np.ndarray, "*batch keys"], positions: Int[np.ndarray, " tokens"]
) -> Float[Numbers, "*batch"]:
    """How much of a row lies on the image? V = Σ_I a. Unit: share of attention, range [0, 1].

    It falls with the image's share of all tokens: compare it at the same prompt only.
    """
    return rows[..., positions].sum(-1)


def region_mass(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[Numbers, "*batch"]:
    """How much of the attention to the image lies on the region? M = Σ w·p. Unit: share, range [0, 1].

    Grows with the region's area; ``enrichment`` does not. p = [.5, .25, .25], w = [1, .5, 0] give .625.
    """
    return cells @ coverage


def enrichment(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[Numbers, "*batch"]:
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


def entropy(cells: Float[np.ndarray, "*batch cells"]) -> Float[Numbers, "*batch"]:
    """How spread is the attention? −Σ p log p / log(cells). Unit: share of the largest entropy, range [0, 1].

    Its shape only: it says nothing of where, and does not predict correctness ("VLM reliability probe",
    2026).
    """
    logs = np.log(cells, out=np.zeros_like(cells, dtype=np.float64), where=cells > 0)
    return -(cells * logs).sum(-1) / np.log(cells.shape[-1])


def pointing_game(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Bool[Numbers, "*batch"]:
    """Does the strongest cell touch the region? (Zhang et al. 2016, arXiv 1608.00507, section 4.1; a cell
    stands for their tolerance of 15 pixels.) Sinks win the argmax: read it together with the mass."""
    return coverage[cells.argmax(-1)] > 0


def iou(
    cells: Float[np.ndarray, "*batch cells"],
    coverage: Float[np.ndarray, " cells"],
    grid: tuple[int, int],
) -> Float[Numbers, "*batch"]:
    """Would a box drawn around the attention match the region's? Intersection over union, range [0, 1].

    The map is smoothed (3×3 mean, at borders of the cells that exist), cut at its mean, and the box around all
    that lies above is set against the box around the region: the cells covered at least half as much as its
    most covered one. A flat map has nothing above its mean: 0. One far sink stretches the box over the
    picture, and both boxes are whole cells, so small regions score low on coarse grids.

    Grid (2, 4), p = [[.5, .5, 0, 0], [0, 0, 0, 0]]: smoothed rows are [.25, 1/6, 1/12, 0], mean 1/8, the box is
    both rows of the two left columns; a region in the upper two left cells gives 2 / 4.

    Source: Kang et al., "Your large vision-language model only needs a few attention heads for visual
    grounding", CVPR 2025, arXiv 2503.06287; they smooth with a Gaussian over pixels and sum chosen heads.

    Raises ValueError if the grid has another number of cells, or the region covers none.
    """
    if cells.shape[-1] != grid[0] * grid[1]:
        raise ValueError(
            f"iou: found {cells.shape[-1]} cells, expected {grid[0] * grid[1]} for a grid of {grid}"
        )
    if coverage.max() <= 0:
        raise ValueError("iou: the region covers no cell of the image, expected an area above 0")
    maps = _smoothing(grid[0]) @ cells.reshape(*cells.shape[:-1], *grid) @ _smoothing(grid[1]).T
    mean = maps.mean((-2, -1), keepdims=True)
    looked_at = _hull(maps > mean * (1 + FLAT))
    region = _hull((coverage >= coverage.max() / 2).reshape(grid))
    sides = np.minimum(looked_at[..., 2:], region[2:]) - np.maximum(looked_at[..., :2], region[:2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (looked_at, region)]
    return shared / (areas[0] + areas[1] - shared)


def auc(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[Numbers, "*batch"]:
    """Does the region get more than the rest, cell by cell? P(p_in > p_out) + ½ P(p_in = p_out), range [0, 1].

    .5 is chance. Only ranks count: one bright cell inside a dark region does not help, and how much attention
    there is stays out. A cell covered by w is w inside and 1 − w outside. Calibrate against random regions
    (``random_coverages``): the middle of pictures scores above .5 for any question.

    p = [.5, .25, .25], w = [1, .5, 0]: outside are ½ of the second cell and the third, both .25; the first cell
    beats them, the half of the second ties: (1 · 1 + .5 · ½) / 1.5 = .8333.

    Source: Judd et al. 2009, "Learning to predict where humans look", exact (Mann–Whitney) in place of a sweep
    of thresholds, and with weights.

    Raises ValueError for a region that covers no cell, or all of them.
    """
    inside, outside = float(coverage.sum()), float((1 - coverage).sum())
    if min(inside, outside) <= FLAT:
        raise ValueError(
            f"auc: the region covers {inside:.3g} of {len(coverage)} cells, expected more than 0 and not all"
        )
    order = np.argsort(cells, -1)
    ranked = np.take_along_axis(cells, order, -1)
    lost = np.cumsum((1 - coverage)[order], -1)  # outside weight at or below each rank
    fresh = np.diff(ranked, axis=-1, prepend=-np.inf) > 0
    places = np.arange(cells.shape[-1])
    first = np.maximum.accumulate(np.where(fresh, places, 0), -1)
    ends = np.where(np.roll(fresh, -1, -1), places, places[-1])
    last = np.minimum.accumulate(ends[..., ::-1], -1)[..., ::-1]
    through = np.take_along_axis(lost, last, -1)
    below = np.where(first > 0, np.take_along_axis(lost, np.maximum(first - 1, 0), -1), 0.0)
    return (coverage[order] * (below + through) / 2).sum(-1) / (inside * outside)


def nss(
    cells: Float[np.ndarray, "*batch cells"], coverage: Float[np.ndarray, " cells"]
) -> Float[Numbers, "*batch"]:
    """How far above the picture's mean is the region? Σ w (p − μ) / σ / Σ w. Unit: standard deviations of the
    map's cells, range [−√(cells − 1), √(cells − 1)].

    0 is chance, and what a flat map gives. Unlike ``auc`` it rewards peaks, and unlike the mass it punishes
    bright spots elsewhere, which raise σ: read both. p = [.5, .25, .25], w = [1, .5, 0]: μ = 1/3, σ = .11785,
    (1 · .16667 − .5 · .08333) / .11785 / 1.5 = .7071.

    Source: Peters et al. 2005 (normalised scanpath saliency); Bylinskii et al. 2019, "What do different
    evaluation metrics tell us about saliency models?"; the region stands for the fixations.

    Raises ValueError for a region that covers no cell.
    """
    if coverage.sum() <= 0:
        raise ValueError("nss: the region covers no cell of the image, expected an area above 0")
    mean, spread = cells.mean(-1, keepdims=True), cells.std(-1, keepdims=True)
    scores = np.divide(cells - mean, spread, out=np.zeros_like(cells), where=spread > FLAT * mean)
    return scores @ coverage / coverage.sum()


def relative_attention(
    cells: Float[np.ndarray, "*batch cells"],
    generic_cells: Float[np.ndarray, "*batch cells"],
    *,
    eps: float = RELATIVE_EPS,
) -> Float[np.ndarray, "*batch cells"]:
    """Where does this question look that any question would not? log (n·p + ε) / (n·p₀ + ε), n cells, a map.

    Unit: nats for each cell, range ± log(1 + n / ε); 0 is what the generic prompt ("Write a general description
    of the image.") gets. What both look at, sinks above all, cancels.

    Both maps are shares over cells (``cells_from_row``), not raw image attention: raw rows would add the log
    of the two visual shares to every cell, and how much would pass for where. ε counts in a flat map's share
    (1 / n), so the map is the same on every resolution; where both got less than it nothing is claimed.
    Without one a cell that nobody looks at, 1e-9 against 1e-12, would win the map, and underflow gives 0 / 0.
    p = [.75, .25], p₀ = [.25, .75], ε = .5: log(2 / 1) and log(1 / 2).

    Source: Zhang et al., "MLLMs know where to look", ICLR 2025, arXiv 2502.17422, relative attention: the
    plain ratio of raw rows, without ε or log.

    Raises ValueError for an ε that is not above 0.
    """
    if eps <= 0:
        raise ValueError(f"relative attention: found eps {eps}, expected a number above 0")
    count = cells.shape[-1]
    return np.log(cells * count + eps) - np.log(generic_cells * count + eps)


def row_entropy(
    rows: Float[np.ndarray, "*batch keys"], keys_seen: int | Int[np.ndarray, "*#batch"]
) -> Float[Numbers, "*batch"]:
    """How spread is a whole row, text and image? −Σ a log a / log(keys it may see). Range [0, 1].

    ``keys_seen`` is position + 1 under a causal mask: divided by the log of all keys, early queries would seem
    sharp. A query that sees one key has no choice: 0. [.5, .25, .25, 0] with 3 keys to see gives 1.5 log 2 /
    log 3 = .9464. As with ``entropy``, shape only: of a row that sums to less, beside a sink logit, what is left is
    taken as a whole, or a head at rest would seem frozen on one token. Source: Zhai et al. 2023, arXiv 2303.06296,
    who do not normalise.

    Raises ValueError if a row looks at more keys than it may see.
    """
    seen = np.asarray(keys_seen)
    looked_at = (rows > 0).sum(-1)
    if (looked_at > seen).any():
        raise ValueError(
            f"row entropy: found a row on {looked_at.max()} keys, expected at most {seen.min()}; keys_seen counts "
            "the query itself (position + 1)"
        )
    wide = rows.astype(np.float64)
    total = wide.sum(-1, keepdims=True)
    wide = np.divide(wide, total, out=np.zeros_like(wide), where=total > 0)
    logs = np.log(wide, out=np.zeros_like(wide), where=wide > 0)
    return np.clip(-(wide * logs).sum(-1) / np.log(np.maximum(seen, 2)), 0.0, 1.0)


def lowest_head_entropy(entropies: Float[np.ndarray, "layers heads"]) -> LowestEntropy:
    """Which head looks at the fewest tokens? Of ``row_entropy``, best as a mean over probes: one row of one
    probe may well be sharp. The first in order where several are as low."""
    layer, head = np.unravel_index(int(entropies.argmin()), entropies.shape)
    return LowestEntropy(float(entropies[layer, head]), int(layer), int(head))


def collapse(
    before_entropy: Float[np.ndarray, "layers heads"],
    after_entropy: Float[np.ndarray, "layers heads"],
    before_logit: Float[np.ndarray, "layers heads"],
    after_logit: Float[np.ndarray, "layers heads"],
) -> Collapse:
    """Are heads freezing on single tokens? An alarm, from ``row_entropy`` and the highest logit of each head.

    It warns where a hundredth of the heads collapsed (entropy fell to less than half and is below .01) or the logits
    exploded (the highest more than doubled and is above 100). Against the same head before, because a trained
    model always has heads that rest on one token. Entropies [[.4, .008]] → [[.005, .007]]: the first collapsed,
    the second already was.

    Low entropy goes with unstable training and its bound falls exponentially with the logits' norm (Zhai et
    al., "Stabilizing transformer training by preventing attention entropy collapse", ICML 2023, arXiv
    2303.06296). A correlation: the thresholds are ours, and neither proves harm.

    Raises ValueError if the four are not of one shape.
    """
    shapes = [one.shape for one in (before_entropy, after_entropy, before_logit, after_logit)]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"collapse: found shapes {shapes}, expected four of one shape: the same layers and heads"
        )
    frozen = (after_entropy < COLLAPSED_ENTROPY) & (after_entropy < before_entropy / 2)
    highest, highest_before = float(after_logit.max()), float(before_logit.max())
    exploded = highest > EXPLODED_LOGIT and highest > 2 * highest_before
    return Collapse(
        lowest_head_entropy(after_entropy),
        float(before_entropy.min()),
        highest,
        highest_before,
        int(frozen.sum()),
        bool(frozen.mean() >= COLLAPSED_SHARE or exploded),
    )


def rollout(
    head_means: Float[np.ndarray, "layers tokens tokens"], query: int
) -> Float[np.ndarray, " tokens"]:
    """Which tokens can have reached the query through all layers? e_q Π (A + I) / 2, last layer first.

    Unit: share, sums to 1 where rows do. ``head_means`` are whole attention matrices, mean over heads, in the
    model's order; the identity stands for the residual path. One row vector goes through, so a layer costs
    tokens² rather than tokens³. In causal models it drains to early tokens whatever the question, and it knows
    no signs: a further map, not evidence.

    Two layers, A₁ = [[1, 0], [1, 0]], A₂ = [[1, 0], [.5, .5]], query 1: [0, 1] → [.25, .75] → [.625, .375].

    Source: Abnar & Zuidema 2020, "Quantifying attention flow in transformers", arXiv 2005.00928, section 3.

    Raises ValueError for matrices that are not square, and for a query that is none of their rows.
    """
    if head_means.ndim != 3 or head_means.shape[1] != head_means.shape[2]:
        raise ValueError(f"rollout: found shape {head_means.shape}, expected [layers, tokens, tokens]")
    if not 0 <= query < head_means.shape[1]:
        raise ValueError(f"rollout: found query {query}, expected 0 to {head_means.shape[1] - 1}")
    row = np.zeros(head_means.shape[1])
    row[query] = 1.0
    for attention in head_means[::-1]:
        row = (row @ attention + row) / 2
    return row


def gradient_weighted(
    rows: Float[np.ndarray, "*batch heads keys"], gradients: Float[np.ndarray, "*batch heads keys"]
) -> Float[np.ndarray, "*batch keys"]:
    """Which attention would raise the answer? Mean over heads of relu(∂ log p / ∂a) · a. Unit: nats, at least 0.

    Heads whose attention speaks against the answer, or does nothing, drop out. Not normalised, and first order
    only: the answer's log p at this point, no knock-out. Needs a backward pass through that layer's weights.
    a = [[.8, .2], [.5, .5]], gradients [[1, −1], [0, 2]] give [.4, .5].

    Source: Chefer et al. 2021, "Generic attention-model explainability", arXiv 2103.15679, section 3; one layer
    here, without their product over layers.
    """
    return (np.maximum(gradients, 0) * rows).mean(-2)


def jensen_shannon_nats(
    first: Float[np.ndarray, "*batch cells"], second: Float[np.ndarray, "*#batch cells"]
) -> Float[Numbers, "*batch"]:
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
    region = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes)
    return [list(one) for one in _random_regions(region, tuple(image_size_pixels), count, name)]


def random_coverages(
    boxes: Sequence[Box], image: ImageTokens, *, count: int, name: str
) -> Float[np.ndarray, "count cells"]:
    """What share of each cell does each of ``random_regions`` cover? Range [0, 1].

    ``region_mass(cells, coverages.mean(0))`` is the mean mass of all of them. The area in pixels is the region's
    own; the sum over cells differs where cells stand for areas of different size.
    """
    regions = random_regions(boxes, image.image_size_pixels, count=count, name=name)
    return np.stack([region_coverage(region, image) for region in regions])


def _smoothing(length: int) -> Float[np.ndarray, "length length"]:
    """Mean over a cell and its neighbours along one axis, of those that exist."""
    places = np.arange(length)
    near = (np.abs(places[:, None] - places) <= 1).astype(np.float64)
    return near / near.sum(1, keepdims=True)


def _hull(chosen: Bool[np.ndarray, "*batch rows columns"]) -> Int[np.ndarray, "*batch 4"]:
    """top left bottom right (exclusive) of the box around the chosen cells; empty (0 0 0 0) where there are
    none."""
    starts, ends = [], []
    for axis in (-1, -2):
        any_chosen = np.asarray(chosen.any(axis))
        starts.append(any_chosen.argmax(-1))
        ends.append(np.where(any_chosen.any(-1), any_chosen.shape[-1] - any_chosen[..., ::-1].argmax(-1), 0))
    return np.stack([*starts, *ends], -1)


@lru_cache(
    maxsize=8192
)  # probes come again at every checkpoint, and a region with nowhere to go takes 100 ms
def _random_regions(
    region: tuple[tuple[float, float, float, float], ...], size: tuple[int, int], count: int, name: str
) -> tuple[tuple[tuple[float, float, float, float], ...], ...]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return tuple(tuple(_random_region(np.array(region), size, rng)) for _ in range(count))


def _random_region(
    boxes: Float[np.ndarray, "boxes 4"], size: tuple[int, int], rng: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    pieces = np.array(disjoint_boxes(boxes.tolist()))  # moved along: found once, not at each place tried
    best: tuple[float, list[tuple[float, float, float, float]]] | None = None
    for _ in range(CANDIDATES):
        moved = np.concatenate([boxes, pieces]) - np.tile(low, 2)
        for axis, extent in enumerate(high - low):
            if rng.random() < 0.5:
                moved[:, [axis, axis + 2]] = extent - moved[:, [axis + 2, axis]]
        room = np.maximum(np.asarray(size) - (high - low), 0)
        moved += np.tile([rng.integers(0, int(extent) + 1) for extent in room], 2)
        region = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in moved[: len(boxes)]]
        shared = _shared_area(moved[len(boxes) :], pieces)
        if best is None or shared < best[0]:
            best = shared, region
        if shared == 0:
            break
    assert best is not None
    return best[1]


def _shared_area(first: Float[np.ndarray, "some 4"], second: Float[np.ndarray, "others 4"]) -> float:
    """Area that two sets of boxes have in common; within a set none overlap."""
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    return float(np.clip(sides, 0, None).prod(-1).sum())


def _kl_nats(
    first: Float[np.ndarray, "*#batch cells"], second: Float[np.ndarray, "*batch cells"]
) -> Float[Numbers, "*batch"]:
    ratio = np.divide(first, second, out=np.ones_like(second, dtype=np.float64), where=first > 0)
    return (first * np.log(ratio)).sum(-1)
