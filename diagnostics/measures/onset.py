"""When during a training did something begin? The first of many looks beyond chance, paid for by how many there were;
pure functions of arrays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from diagnostics.measures.statistics import holm, mcnemar_p, signed_rank_direction, signed_rank_p

Key = TypeVar("Key", bound=Hashable)
ROSE, FELL, NEITHER = "rose", "fell", "not beyond chance"


class Look(NamedTuple):
    """One comparison of a checkpoint with the base.

    step        of training
    change      mean of the paired differences from the base, in the unit of what is looked at
    p           two-sided, that there is none
    least       the smallest change that counts, either way
    direction   1, −1 or 0: which way the test behind p points; None: that of the mean
    """

    step: int
    change: float
    p: float
    least: float = 0.0
    direction: int | None = None

    @property
    def sign(self) -> int:
        """1 where it rose, −1 where it fell, 0 where its mean and its test do not agree on that."""
        mean = int(np.sign(self.change))
        return mean if self.direction in (None, mean) else 0


class Onset(NamedTuple):
    """When something began.

    state       ``ROSE``, ``FELL`` or ``NEITHER``
    step        the first look beyond chance; None where there is none
    after       the look before it, or the base: it began after this step, and by ``step`` at the latest
    stays       is every later look beyond chance too, in the same direction?
    change      at that look; at the last one where nothing began
    p_adjusted  the same, for all looks of the family
    looks       how many there were
    """

    state: str
    step: int | None
    after: int | None
    stays: bool
    change: float
    p_adjusted: float
    looks: int


def onsets(series: Mapping[Key, Sequence[Look]], *, base: int = 0, alpha: float = 0.05) -> dict[Key, Onset]:
    """The onset of each series of looks, in order of their steps. All of them are one family.

    The p of every look is adjusted for all looks of all series (``holm``), so that where nothing changes, no onset at
    all is named in 95 of 100 trainings, however often one looked. Looks hang together, which costs power, not truth:
    Holm's bound holds under any dependence. A change that is sure and small is none: ``Look.least`` is asked as well.
    Nor is one whose mean and whose test point to different sides (``Look.sign``). Series without a look are left out.
    """
    flat = [look for looks in series.values() for look in looks]
    adjusted = iter(holm(np.array([look.p for look in flat])))
    found = {}
    for name, looks in series.items():
        if looks:
            found[name] = _onset(looks, [float(next(adjusted)) for _ in looks], base, alpha)
    return found


def _onset(looks: Sequence[Look], adjusted: Sequence[float], base: int, alpha: float) -> Onset:
    signs = [
        look.sign if p < alpha and abs(look.change) >= look.least else 0
        for look, p in zip(looks, adjusted, strict=True)
    ]
    first = next((at for at, sign in enumerate(signs) if sign), None)
    if first is None:
        return Onset(NEITHER, None, None, False, looks[-1].change, adjusted[-1], len(looks))
    return Onset(
        ROSE if signs[first] > 0 else FELL,
        looks[first].step,
        looks[first - 1].step if first else base,
        all(sign == signs[first] for sign in signs[first:]),
        looks[first].change,
        adjusted[first],
        len(looks),
    )


def look_at_shares(
    step: int, differences: Float[np.ndarray, " probes"], clusters: Sequence[Hashable]
) -> Look:
    """A look at answers: did more become right than wrong? Exact McNemar test over pictures.

    differences   of each probe, right now minus right before: -1, 0 or 1
    """
    sums: dict[Hashable, float] = {}
    for one, cluster in zip(differences, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(one)
    gained, lost = (sum(sign * value > 0 for value in sums.values()) for sign in (1, -1))
    direction = int(np.sign(gained - lost))
    return Look(step, float(np.mean(differences)), mcnemar_p(gained, lost), direction=direction)


def look_at_numbers(
    step: int, differences: Float[np.ndarray, " probes"], clusters: Sequence[Hashable], least: float
) -> Look:
    """A look at numbers: do they lie higher or lower than before? Exact signed ranks over pictures."""
    differences = np.asarray(differences, np.float64)
    p = float(signed_rank_p(differences[:, None], clusters)[0])
    return Look(step, float(differences.mean()), p, least, int(signed_rank_direction(differences, clusters)))
