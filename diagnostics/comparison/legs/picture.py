"""The leg "picture": how much of the margin comes from the picture, by asking with another, a blank, or no picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagnostics.comparison.legs.leg import Leg, listed, not_measured, percent, percent_interval, too_few
from diagnostics.comparison.pairs import ProbePair, images_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import ratio_of_means
from diagnostics.records.measurement_plan import BLANK, NO_PICTURE, OTHER

_WORDS = {
    OTHER: "with a picture of another answer",
    BLANK: "with a blank picture",
    NO_PICTURE: "without a picture",
}


def picture_leg(pairs: Sequence[ProbePair], thresholds: Thresholds, level: float) -> Leg:
    """The share of the margin after that is lost without the true picture.

    Judged with a picture of another answer if enough probes have one, since only that proves that the content decides;
    else with a blank one. The question without any picture is shown but never judged: it may confuse even a model that
    answers from the words, because the prompt is unlike its training data.
    """
    measured = {kind: _margins(pairs, kind) for kind in _WORDS}
    enough = {kind: one for kind, one in measured.items() if len(set(one[2])) >= thresholds.probes}
    most = max((len(one[2]) for one in measured.values()), default=0)
    if not most:
        return not_measured(
            thresholds.picture, "No other picture was tried, so the words alone may have sufficed."
        )
    judged = next((kind for kind in (OTHER, BLANK) if kind in enough), None)
    if judged is None:
        what, images = (
            "The margin with another picture was",
            max(len(set(measured[kind][2])) for kind in (OTHER, BLANK)),
        )
        return too_few(thresholds.picture, what, images, most, thresholds.probes)
    shares = {
        kind: ratio_of_means(true - other, true, images, level=level)
        for kind, (true, other, images) in enough.items()
    }
    value = shares[judged]
    if value is None:
        return not_measured(
            thresholds.picture,
            "The margin is not significantly above 0, so no share of it can come from the picture.",
            len(enough[judged][2]),
        )
    lost = listed([f"{percent(one.mean)} {_WORDS[kind]}" for kind, one in shares.items() if one is not None])
    return Leg(
        value.mean >= thresholds.picture and value.is_above_zero,
        len(enough[judged][2]),
        value.mean,
        (value.low, value.high),
        thresholds.picture,
        f"Of the margin, {lost} is lost ({percent_interval(value, level)} {_WORDS[judged]}; at least "
        f"{percent(thresholds.picture)} must be).",
    )


def _margins(pairs: Sequence[ProbePair], kind: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Margins after with the true picture and with the other one, for probes that have both, and their pictures."""
    found = [
        (pair, control.margin_nats)
        for pair in pairs
        for control in pair.after.picture_controls
        if control.kind == kind and pair.after.scores.margin_nats is not None
    ]
    true = np.array([pair.after.scores.margin_nats for pair, _ in found], float)
    return true, np.array([margin for _, margin in found], float), images_of([pair for pair, _ in found])
