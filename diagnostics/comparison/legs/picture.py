"""How much of the margin comes from the picture? The same question with a blank picture, another one, or none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagnostics.comparison.legs.leg import Leg, listed, not_measured, percent, percent_interval, too_few
from diagnostics.comparison.pairs import ProbePair, images_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import Interval, ratio_of_means
from diagnostics.records.measurement_plan import BLANK, NO_PICTURE, OTHER

_WORDS = {
    BLANK: "with a blank picture",
    OTHER: "with a picture of another answer",
    NO_PICTURE: "without a picture",
}


def picture_leg(pairs: Sequence[ProbePair], thresholds: Thresholds, level: float) -> Leg:
    """The share of the margin after that is lost without the true picture, where it is lost most.

    A model that answers from the words keeps its margin whatever is shown. One that looks loses it with some other
    picture, but not with each: what it says of a blank one is free.
    """
    measured = {kind: _margins(pairs, kind) for kind in _WORDS}
    enough = {kind: one for kind, one in measured.items() if len(set(one[2])) >= thresholds.probes}
    most = max((len(set(one[2])) for one in measured.values()), default=0)
    if not most:
        return not_measured(
            thresholds.picture, "No other picture was shown, so words alone may have sufficed."
        )
    if not enough:
        return too_few(
            thresholds.picture, "The margin without the picture was", most, most, thresholds.probes
        )
    shares: dict[str, Interval] = {}
    for kind, (true, other, images) in enough.items():
        share = ratio_of_means(true - other, true, images, level=level)
        if share is not None:
            shares[kind] = share
    if not shares:
        return not_measured(
            thresholds.picture,
            "The margin is not above 0, so no share of it can come from the picture.",
            most,
        )
    best = max(shares, key=lambda kind: shares[kind].mean)
    value = shares[best]
    lost = listed([f"{percent(max(one.mean, 0))} {_WORDS[kind]}" for kind, one in shares.items()])
    return Leg(
        value.mean >= thresholds.picture and value.is_above_zero,
        len(enough[best][2]),
        value.mean,
        (value.low, value.high),
        thresholds.picture,
        f"Of the margin, {lost} is lost ({percent_interval(value, level)} of the largest; at least "
        f"{percent(thresholds.picture)} must come from the picture).",
    )


def _margins(pairs: Sequence[ProbePair], kind: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Margins after with the true picture and with the other, of the probes that have both, and their pictures."""
    found = [
        (pair, control.margin_nats)
        for pair in pairs
        for control in pair.after.picture_controls
        if control.kind == kind and pair.after.scores.margin_nats is not None
    ]
    true = np.array([pair.after.scores.margin_nats for pair, _ in found], float)
    return true, np.array([margin for _, margin in found], float), images_of([pair for pair, _ in found])
