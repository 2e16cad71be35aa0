"""Which order of image tokens keeps the right answers? Paired with random ones and with DivPrune, on the same probes.

A map is only worth pruning by where it beats both: random tokens cost nothing, and DivPrune needs no map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.legs.answers import difference_interval
from diagnostics.keep.asking import ProbeAnswers
from diagnostics.keep.rankings import BY_ATTENTION, DIVPRUNE, FIRST_TOKEN, ORDERS, RANDOM
from diagnostics.measures.statistics import (
    SIGNIFICANT,
    Interval,
    bootstrap_mean,
    clopper_pearson,
    holm,
    sign_flip_p,
)
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import ENOUGH_PROBES

ALL = "all probes"
RIVALS = (RANDOM, DIVPRUNE)


class Gain(NamedTuple):
    """Right answers of an order minus those of a rival on the same probes, and the p that there is no difference,
    adjusted (Holm) for every order by attention and every share of the scope."""

    difference: Interval
    p: float


class Cell(NamedTuple):
    """One order at one share.

    probes        on which it was measured, and ``pictures`` that they have
    right         share of right answers, with its interval; random: mean over draws
    still_right   of the probes that are right with all tokens, the share that stay right; None without any
    margin_nats   mean margin
    region_kept   share of the main region that the kept tokens stand for, mean; None where no probe names one
    minus         rival → gain over it; orders that are not judged have none
    first_token   share of right answers with the first image token kept in any case, and dropped in any case
    """

    probes: int
    pictures: int
    right: Interval
    still_right: float | None
    margin_nats: float
    region_kept: float | None
    minus: Mapping[str, Gain]
    first_token: tuple[float, float] | None

    @property
    def wins(self) -> bool:
        """Does it beat random tokens and DivPrune, beyond chance and on enough pictures?"""
        if self.pictures < ENOUGH_PROBES or len(self.minus) < len(RIVALS):
            return False
        return all(gain.difference.is_above_zero and gain.p < SIGNIFICANT for gain in self.minus.values())


class Judgement(NamedTuple):
    """One group, or all probes.

    right       share of right answers with all tokens
    cells       order → share → cell; None where it was not measured
    measured    are there enough pictures for a recommendation?
    """

    scope: str
    probes: int
    pictures: int
    right: Interval
    cells: Mapping[str, Mapping[float, Cell] | None]
    measured: bool

    def recommended(self) -> list[tuple[str, float]]:
        """Orders and shares that beat both rivals; none with too few pictures."""
        return [
            (name, share)
            for name in BY_ATTENTION
            for share, cell in (self.cells[name] or {}).items()
            if cell.wins
        ]


def judge(answers: Sequence[ProbeAnswers], shares: Sequence[float]) -> list[Judgement]:
    """All probes first, then each group in the order of the probe file, where there are several."""
    groups = {one.probe.group: None for one in answers}
    scopes = [(ALL, list(answers))]
    if len(groups) > 1:
        scopes += [(name, [one for one in answers if one.probe.group == name]) for name in groups]
    return [_judged(name, members, shares) for name, members in scopes]


def _judged(scope: str, answers: Sequence[ProbeAnswers], shares: Sequence[float]) -> Judgement:
    marks = [picture_mark(one.probe.images[0]) for one in answers]
    whole = np.array([one.whole > 0 for one in answers], float)
    chance = _chance(answers, marks, shares)
    return Judgement(
        scope,
        len(answers),
        len(set(marks)),
        _interval(whole, marks),
        {name: _line(name, answers, marks, shares, chance) for name in ORDERS},
        len(set(marks)) >= ENOUGH_PROBES,
    )


def _right(answers: Sequence[ProbeAnswers], name: str, share: float) -> Float[np.ndarray, " probes"]:
    """Share of right answers of each probe, over draws; NaN where it was not measured."""
    return np.array(
        [
            np.mean([margin > 0 for margin in one.margins[name, share]])
            if (name, share) in one.margins
            else np.nan
            for one in answers
        ]
    )


def _difference(
    answers: Sequence[ProbeAnswers], marks: Sequence[str], name: str, rival: str, share: float
) -> tuple[np.ndarray, list[str]]:
    """Of the probes on which both were measured, with the marks of their pictures."""
    found = _right(answers, name, share) - _right(answers, rival, share)
    there = np.isfinite(found)
    return found[there], [mark for mark, is_there in zip(marks, there, strict=True) if is_there]


def _chance(
    answers: Sequence[ProbeAnswers], marks: Sequence[str], shares: Sequence[float]
) -> dict[tuple[str, float, str], float]:
    """p of each order by attention, share and rival, adjusted over orders and shares.

    Not over rivals: an order must beat both, which is harder than either.
    """
    measured = [
        (name, share)
        for name in BY_ATTENTION
        for share in shares
        if any((name, share) in one.margins for one in answers)
    ]
    found: dict[tuple[str, float, str], float] = {}
    for rival in RIVALS:
        raw = [sign_flip_p(*_difference(answers, marks, name, rival, share)) for name, share in measured]
        adjusted = holm(np.array(raw))
        found |= {(*point, rival): float(p) for point, p in zip(measured, adjusted, strict=True)}
    return found


def _line(
    name: str,
    answers: Sequence[ProbeAnswers],
    marks: Sequence[str],
    shares: Sequence[float],
    chance: Mapping[tuple[str, float, str], float],
) -> dict[float, Cell] | None:
    if not any((name, share) in one.margins for one in answers for share in shares):
        return None
    return {share: _cell(name, share, answers, marks, chance) for share in shares}


def _cell(
    name: str,
    share: float,
    answers: Sequence[ProbeAnswers],
    marks: Sequence[str],
    chance: Mapping[tuple[str, float, str], float],
) -> Cell:
    right = _right(answers, name, share)
    there = np.isfinite(right)
    own = [one for one, is_there in zip(answers, there, strict=True) if is_there]
    own_marks = [one for one, is_there in zip(marks, there, strict=True) if is_there]
    were_right = there & np.array([one.whole > 0 for one in answers])
    regions = [one.region_kept[name, share] for one in own if (name, share) in one.region_kept]
    return Cell(
        probes=len(own),
        pictures=len(set(own_marks)),
        right=_interval(right[there], own_marks),
        still_right=float(right[were_right].mean()) if were_right.any() else None,
        margin_nats=math.fsum(float(np.mean(one.margins[name, share])) for one in own) / len(own),
        region_kept=float(np.mean(regions)) if regions else None,
        minus={
            rival: Gain(
                _gain_interval(*_difference(answers, marks, name, rival, share)), chance[name, share, rival]
            )
            for rival in RIVALS
            if name in BY_ATTENTION
        },
        first_token=_by_first_token(own, name, share) if name in FIRST_TOKEN else None,
    )


def _interval(right: Float[np.ndarray, " probes"], marks: Sequence[str]) -> Interval:
    """Mean share of right answers and its interval; where no picture differs from another, which leaves a bootstrap
    without width, the exact one of as many pictures (12 of 12: 74 % to 100 %)."""
    found = bootstrap_mean(right, marks)
    if found.low < found.high:
        return found
    pictures = len(set(marks))
    low, high = clopper_pearson(int(found.mean * pictures + 1e-9), pictures)
    return Interval(found.mean, min(low, found.mean), max(high, found.mean))


def _gain_interval(gain: Float[np.ndarray, " probes"], marks: Sequence[str]) -> Interval:
    """Mean difference of right answers and its interval; where no picture differs from another, the exact one of
    pictures that gained and lost, in parts of what each did."""
    found = bootstrap_mean(gain, marks)
    if found.low < found.high:
        return found
    pictures, size = len(set(marks)), abs(found.mean)
    gained, lost = pictures * (found.mean > 0), pictures * (found.mean < 0)
    low, high = (end * (size or 1) for end in difference_interval(gained, lost, pictures, 0.95))
    return Interval(found.mean, min(low, found.mean), max(high, found.mean))


def _by_first_token(answers: Sequence[ProbeAnswers], name: str, share: float) -> tuple[float, float]:
    with_it, without = zip(*(one.first_token[name, share] for one in answers), strict=True)
    return float(np.mean([one > 0 for one in with_it])), float(np.mean([one > 0 for one in without]))
