"""The leg "guards": probes whose right answer is this group's foil stay right. Without them a constant bias passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.legs.answers import (
    answers_of,
    by_picture,
    interval_over_pictures,
    is_right,
    keeps,
)
from diagnostics.comparison.legs.leg import Leg, count, not_measured, percent, percent_interval
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of, trained_words
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.answers import normalised, says
from diagnostics.records.probes import KEPT_SHARE, NEIGHBOUR
from diagnostics.records.record import AttentionRecord

LEAST_OF_ONE_ANSWER = 5
"""Guards needed to judge one foil separately: losing one answer among many kept ones is a bias too."""
FREQUENT, COVERED = 0.2, 0.8
"""A foil of this share of a group's probes needs guards of its own on as many pictures; foils that have guards must be
those of this share of the probes."""


def guards_leg(
    name: str, groups: Mapping[str, Sequence[ProbePair]], thresholds: Thresholds, level: float
) -> Leg:
    """The share of guards that are right after, of guards or of pictures, for the foil with the lowest share of those
    that fell, or of all where none did.

    A group's guards are the probes, of any group, whose right answer is the foil of one of its probes; its own probes
    count if both answers occur as right ones ("on" and "under"). A guard is right if its margin is above 0 and what it
    generated is no right answer of this group. They hold if those of each foil that has at least 5, under whatever
    spelling, reach the share required of answers, all together keep 95 % of what was right before, and no group named
    ``neighbour`` is broken.
    Where guards share pictures, all of this is asked with each picture counted once too: the smaller share is judged.
    Guards that were wrong before and after prove nothing, and neither do those of a group whose pictures were trained
    on, unless they broke: None.
    """
    members = [pair for pair in groups[name] if pair.probe.foil]
    if not members:
        return not_measured(thresholds.right, "No guards: no probe of this group has a foil.")
    guards = _guards(members, groups)
    images = len(set(images_of([guard.pair for guard in guards])))
    if images < thresholds.probes:
        wrong = ", ".join(sorted({str(pair.probe.foil) for pair in members})[:2])
        found = f"{count(images, 'picture')} of it" if images else "none"
        return not_measured(
            thresholds.right,
            f"No guards: the right answer of at least {thresholds.probes} probes on as many pictures must be the wrong "
            f"answer here ({wrong}), and there is {found}.",
            len(guards),
        )
    if unguarded := _unguarded(members, guards):
        return not_measured(thresholds.right, unguarded, len(guards))
    together, *by_answer = _rights(members, guards)
    worst = _lowest([together, *by_answer])
    right = worst.judged[1] >= thresholds.right - 1e-9
    # Each answer for itself: one that was wrong before and rose does not outweigh one that broke.
    fallen = [one for one in (together, *by_answer) if one.fell_below(thresholds.right)]
    fell = bool(fallen) or not together.is_kept
    cited = _lowest(fallen) if fallen else worst if together.is_kept else together
    value = cited.judged[1]
    broken = [one for one in _broken(groups, thresholds, level) if one != name]
    words = _reason(len(guards), cited, thresholds, level)
    if broken:
        words += f"; {broken[0]} is broken"
    elif not (right or fell):
        words += "; they were wrong before too, so they say nothing about this group"
    holds = False if broken or fell else True if right else None
    if holds is not False and (trained := _not_held_out(groups, guards)):
        return not_measured(thresholds.right, trained, len(guards))
    low, high = interval_over_pictures(cited.by_picture, level)
    return Leg(holds, len(guards), value, (min(low, value), max(high, value)), thresholds.right, f"{words}.")


def _reason(guards: int, cited: _Right, thresholds: Thresholds, level: float) -> str:
    """The sentence of the leg, without what is to be said of a broken neighbour or of guards that were wrong before."""
    before, after = map(percent, cited.guards)
    words = f"Of the {guards} guards, whose right answer is the wrong one here, {after} are right after"
    words += f" where the answer is {cited.answer!r}" if cited.answer else ""
    words += f" and {before} before"
    low, high = interval_over_pictures(cited.by_picture, level)
    of_which, of_both = "", ""
    if cited.shares_pictures:
        before, after = map(percent, cited.pictures)
        words += f", {after} and {before} with each picture counted once"
        of_which, of_both = " of these", " of both"
    interval = percent_interval((low, max(high, cited.pictures[1])), level).replace("+", "")
    return (
        f"{words} ({interval}{of_which} after; at least {percent(thresholds.right)}{of_both} must be, and "
        f"{percent(KEPT_SHARE[NEIGHBOUR])} of those before)"
    )


def _not_held_out(groups: Mapping[str, Sequence[ProbePair]], guards: Sequence[_Guard]) -> str:
    """A sentence where a group of guards, or ``neighbour``, has pictures that were trained on; else ""."""
    for name in dict.fromkeys([*(guard.pair.probe.group for guard in guards), NEIGHBOUR]):
        if words := trained_words(groups.get(name, ()), of=f" of {name!r}"):
            return f"No guards held out: {words}."
    return ""


class _Guard(NamedTuple):
    """A guard, and whether it is right on each side of the comparison."""

    pair: ProbePair
    before: bool
    after: bool


def _guards(members: Sequence[ProbePair], groups: Mapping[str, Sequence[ProbePair]]) -> list[_Guard]:
    """The guards of these probes that can tell: whose foil is a right answer of theirs, or that generated an answer."""
    foils = {normalised(str(pair.probe.foil)) for pair in members}
    answers = {normalised(one): one for pair in members for one in pair.probe.spellings}
    found = []
    for pair in (pair for pairs in groups.values() for pair in pairs):
        own = {normalised(one) for one in pair.probe.spellings}
        if pair.after.scores.margin_nats is None or not foils & own:
            continue
        if normalised(str(pair.probe.foil)) in answers or pair.after.scores.generated:
            others = [words for one, words in answers.items() if one not in own]
            found.append(_Guard(pair, *(_is_kept(pair, getattr(pair, side), others) for side in SIDES)))
    return found


def _is_kept(guard: ProbePair, record: AttentionRecord, others: Sequence[str]) -> bool:
    """Is a guard right by its margin, and does it not say one of the ``others``, its group's right answers?"""
    said = record.scores.generated
    return is_right(record) and not all(says(said, others, own) for own in guard.probe.spellings)


def _unguarded(members: Sequence[ProbePair], guards: Sequence[_Guard]) -> str:
    """A sentence where most of a group's foils, or a frequent one, have too few guards; else ""."""
    images = images_of([guard.pair for guard in guards])
    on = {
        (normalised(one), image)
        for guard, image in zip(guards, images, strict=True)
        for one in guard.pair.probe.spellings
    }
    own = Counter(one for one, _ in on)  # pictures: many guards of one are as good as one
    asked = Counter(normalised(str(pair.probe.foil)) for pair in members)
    often = FREQUENT * len(members)
    lacking = {
        foil: times
        for foil, times in asked.items()
        if own[foil] < (LEAST_OF_ONE_ANSWER if times >= often else 1)
    }
    few = sum(lacking.values()) <= (1 - COVERED) * len(members) + 1e-9
    if few and max(lacking.values(), default=0) < often:
        return ""
    worst = max(lacking, key=lacking.__getitem__)
    named = next(pair.probe.foil for pair in members if normalised(str(pair.probe.foil)) == worst)
    return (
        f"No guards: {named!r} is the wrong answer of {lacking[worst]} of the {len(members)} probes here, and the "
        f"right answer of guards on {count(own[worst], 'picture')}."
    )


class _Right(NamedTuple):
    """Shares of guards that are right, each (before, after).

    guards       of guards
    pictures     of pictures, each by the share of its guards that are right
    by_picture   that share of each picture, after
    shares_pictures   whether several of the guards show one picture
    answer       their right answer; "" for guards of every answer
    """

    guards: tuple[float, float]
    pictures: tuple[float, float]
    by_picture: Float[np.ndarray, " pictures"]
    shares_pictures: bool
    answer: str

    @property
    def judged(self) -> tuple[float, float]:
        """That of the two which is smaller after."""
        return min(self.guards, self.pictures, key=lambda one: (one[1], -one[0]))

    def fell_below(self, least: float) -> bool:
        """Is one of the two below this after, and lower than before?"""
        return any(after < least - 1e-9 and after < before for before, after in (self.guards, self.pictures))

    @property
    def is_kept(self) -> bool:
        """Is of both what must be kept of the share before still right?"""
        return all(keeps(NEIGHBOUR, before, after) for before, after in (self.guards, self.pictures))


def _right_of(guards: Sequence[_Guard], answer: str = "") -> _Right:
    images = images_of([guard.pair for guard in guards])
    right = [np.array([getattr(guard, side) for guard in guards], float) for side in SIDES]
    before, after = (by_picture(one, images) for one in right)
    return _Right(
        (float(right[0].mean()), float(right[1].mean())),
        (float(before.mean()), float(after.mean())),
        after,
        len(after) < len(guards),
        answer,
    )


def _rights(members: Sequence[ProbePair], guards: Sequence[_Guard]) -> list[_Right]:
    """All guards together, and those of each foil that has at least 5, under whatever spelling."""
    foils = {normalised(str(pair.probe.foil)): str(pair.probe.foil) for pair in members}
    spelled = [{normalised(one) for one in guard.pair.probe.spellings} for guard in guards]
    found = [_right_of(guards)]
    for foil, words in foils.items():
        own = [guard for guard, spellings in zip(guards, spelled, strict=True) if foil in spellings]
        if len(own) >= LEAST_OF_ONE_ANSWER:
            found.append(_right_of(own, words))
    return found


def _lowest(rights: Sequence[_Right]) -> _Right:
    """That whose share after is lowest."""
    return min(rights, key=lambda one: one.judged[1])


def _broken(groups: Mapping[str, Sequence[ProbePair]], thresholds: Thresholds, level: float) -> list[str]:
    """``neighbour``, if it lost more accuracy than allowed."""
    found = answers_of(groups.get(NEIGHBOUR, ()), thresholds, level)
    return [] if found is None or found.keeps(NEIGHBOUR) else [NEIGHBOUR]
