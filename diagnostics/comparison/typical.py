"""Typical probes of a group: nearest to its medians in margin, in attention on the judged region, and in what hiding it
costs.

A probe chosen by its margin alone may look away while its group looks, and contradict the verdict beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.pairs import SIDES, ProbePair, cost
from diagnostics.records.measurement_plan import OCCLUSION

NEAREST_SHARE, NEAREST_LEAST = 0.1, 3
"""How many of the nearest count as typical, so that one in the reader's script may be taken among them."""


class Story(NamedTuple):
    """What a probe tells of itself on one side; NaN where it was not measured.

    margin_nats   log p(answer) - log p(foil)
    attention     log of the enrichment of the judged region in the layer shown
    cost_nats     what hiding the judged region costs
    """

    margin_nats: float
    attention: float
    cost_nats: float


def story(pair: ProbePair, side: str, layer: int) -> Story:
    """``side``: "before" or "after"; ``layer``: a key layer."""
    record = getattr(pair, side)
    shown = next(one for one in pair.layers if one.layer == layer)
    reading, hidden = pair.reading(shown), cost(record, OCCLUSION, pair.region)
    times = None if reading is None else getattr(reading, f"enrichment_{side}")
    return Story(
        np.nan if record.scores.margin_nats is None else record.scores.margin_nats,
        np.nan if times is None else float(np.log(max(times, 1e-3))),
        np.nan if hidden is None else hidden.region,
    )


def typical_change(
    members: Sequence[ProbePair],
    layer: int,
    of: Sequence[ProbePair],
    prefer: Callable[[ProbePair], bool] = lambda pair: True,
) -> ProbePair | None:
    """Of the pairs ``of``, the one nearest to their medians in margin, attention and cost, before and after.

    Distances count in median absolute deviations.

    members   the whole group. Where there are such pairs, only those count whose margin, attention and cost changed as
              the group's did in the median: up where they rose, down where they fell
    prefer    which to take among the nearest tenth (three at least)

    None where ``of`` is empty.
    """
    if not of:
        return None
    group = _changes(members, layer)
    agreeing = [pair for pair in of if _agrees(_changes([pair], layer)[0], group)]
    return _nearest(agreeing or of, lambda pair: _both_sides(pair, layer), prefer)


def typical_before(
    of: Sequence[ProbePair], layer: int, prefer: Callable[[ProbePair], bool] = lambda pair: True
) -> ProbePair | None:
    """As ``typical_change``, by the side before alone."""
    return _nearest(of, lambda pair: story(pair, "before", layer), prefer) if of else None


def _both_sides(pair: ProbePair, layer: int) -> tuple[float, ...]:
    return tuple(value for side in SIDES for value in story(pair, side, layer))


def _changes(pairs: Sequence[ProbePair], layer: int) -> Float[np.ndarray, "pairs 3"]:
    before, after = (np.array([story(pair, side, layer) for pair in pairs]) for side in SIDES)
    return after - before


def _agrees(one: Float[np.ndarray, " three"], group: Float[np.ndarray, "pairs three"]) -> bool:
    return all(
        np.sign(value) == np.sign(np.median(column[~np.isnan(column)]))
        for value, column in zip(one, group.T, strict=True)
        if not np.isnan(value)
    )


def _nearest(
    of: Sequence[ProbePair],
    numbers: Callable[[ProbePair], Sequence[float]],
    prefer: Callable[[ProbePair], bool],
) -> ProbePair:
    every = np.array([numbers(pair) for pair in of])
    known = every[:, ~np.isnan(every).any(axis=0)]
    off = np.abs(known - np.median(known, axis=0))
    spread = np.median(off, axis=0)
    spread[spread == 0] = 1.0
    ranked = [of[index] for index in np.argsort(((off / spread) ** 2).sum(axis=1), kind="stable")]
    nearest = ranked[: max(NEAREST_LEAST, int(NEAREST_SHARE * len(ranked)))]
    return next((pair for pair in nearest if prefer(pair)), ranked[0])
