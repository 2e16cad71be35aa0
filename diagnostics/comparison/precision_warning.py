"""Warns of two models that were measured in different precisions, which is part of every difference between them."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostics.comparison.pairs import ProbePair


def precision_warnings(pairs: Sequence[ProbePair]) -> list[str]:
    """One line if a probe was measured in another precision before than after. Records from before it was kept say
    nothing."""
    for pair in pairs:
        before, after = pair.before.precision, pair.after.precision
        if before and after and before != after:
            return [
                f"The model before was measured in {before}, the model after in {after}: some of what differs is "
                "rounding; measure both in one precision."
            ]
    return []
