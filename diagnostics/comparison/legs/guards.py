"""The leg "guards": probes whose right answer is this group's foil stay right. Without them a constant bias passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diagnostics.comparison.legs.answers import is_right
from diagnostics.comparison.legs.leg import Leg, count, not_measured, percent, percent_interval
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.answers import normalised
from diagnostics.measures.statistics import clopper_pearson
from diagnostics.records.probes import KEPT_SHARE, NEIGHBOUR

LEAST_OF_ONE_ANSWER = 5
"""Guards needed to judge one right answer separately: losing one answer among many kept ones is a bias too."""


def guards_leg(
    name: str, groups: Mapping[str, Sequence[ProbePair]], thresholds: Thresholds, level: float
) -> Leg:
    """The share of guards that are right after, for the right answer with the lowest share.

    A group's guards are the probes, of any group, whose right answer is the foil of one of its probes; its own probes
    count if both answers occur as right ones ("on" and "under"). They hold if each right answer with at least 5 guards
    reaches the share required of answers, all together keep 95 % of what was right before, and no group named
    ``neighbour`` is broken. Guards that were wrong before and after prove nothing: None.
    """
    foils = {normalised(pair.probe.foil) for pair in groups[name] if pair.probe.foil}
    guards = [
        pair
        for members in groups.values()
        for pair in members
        if pair.after.scores.margin_nats is not None
        and foils & {normalised(one) for one in pair.probe.spellings}
    ]
    images = len(set(images_of(guards)))
    if not foils:
        return not_measured(thresholds.right, "No guards: no probe of this group has a foil.")
    if images < thresholds.probes:
        wrong = ", ".join(sorted({pair.probe.foil for pair in groups[name] if pair.probe.foil})[:2])
        found = f"{count(images, 'picture')} of it" if images else "none"
        return not_measured(
            thresholds.right,
            f"No guards: the right answer of at least {thresholds.probes} probes on as many pictures must be the wrong "
            f"answer here ({wrong}), and there is {found}.",
            len(guards),
        )
    value, interval, answer, before = _worst(guards, level)
    all_before, all_after = (_share(guards, side) for side in SIDES)
    broken = [one for one in _broken(groups) if one != name]
    right = value >= thresholds.right - 1e-9
    fell = all_after < KEPT_SHARE[NEIGHBOUR] * all_before - 1e-9 or (not right and value < before)
    words = f"Of the {len(guards)} guards, whose right answer is the wrong one here, {percent(value)} are right after"
    words += f" where the answer is {answer!r}" if answer else ""
    words += (
        f" and {percent(before)} before ({percent_interval(interval, level).replace('+', '')} after; at least "
        f"{percent(thresholds.right)} must be, and {percent(KEPT_SHARE[NEIGHBOUR])} of those before)"
    )
    if broken:
        words += f"; {broken[0]} is broken"
    elif not (right or fell):
        words += "; they were wrong before too, so they say nothing about this group"
    holds = False if broken or fell else True if right else None
    return Leg(holds, len(guards), value, interval, thresholds.right, f"{words}.")


def _worst(guards: Sequence[ProbePair], level: float) -> tuple[float, tuple[float, float], str, float]:
    """Share right after, its interval over pictures, the right answer concerned ("" for all guards together), and the
    share right before."""
    by_answer: dict[str, list[ProbePair]] = {}
    for pair in guards:
        by_answer.setdefault(pair.probe.answer, []).append(pair)
    judged = {name: pairs for name, pairs in by_answer.items() if len(pairs) >= LEAST_OF_ONE_ANSWER}
    named: list[tuple[str, Sequence[ProbePair]]] = [("", guards), *judged.items()]
    name, pairs = min(named, key=lambda one: _share(one[1], "after"))
    share, images = _share(pairs, "after"), len(set(images_of(pairs)))
    interval = clopper_pearson(int(share * images + 1e-9), images, level=level)
    return share, (min(interval[0], share), max(interval[1], share)), name, _share(pairs, "before")


def _share(pairs: Sequence[ProbePair], side: str) -> float:
    return float(np.mean([is_right(getattr(pair, side)) for pair in pairs]))


def _broken(groups: Mapping[str, Sequence[ProbePair]]) -> list[str]:
    """``neighbour``, if it lost more accuracy than allowed."""
    pairs = [pair for pair in groups.get(NEIGHBOUR, ()) if pair.after.scores.margin_nats is not None]
    if not pairs:
        return []
    before, after = (
        np.mean([is_right(getattr(pair, side)) for pair in pairs]) for side in ("before", "after")
    )
    return [NEIGHBOUR] if after < KEPT_SHARE[NEIGHBOUR] * before - 1e-9 else []
