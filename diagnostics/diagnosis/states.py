"""Can a linear probe read the right answer off the tower, the image tokens, or the state that the answer comes from?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from diagnostics.comparison.legs.leg import Leg, count, not_measured, percent
from diagnostics.diagnosis.cases import LEVEL, SideCase, pictures_of, share_interval
from diagnostics.diagnosis.contrasts import Contrast, Pair
from diagnostics.diagnosis.features import Blocks, Place
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.linear_probes import SHUFFLES, LinearProbe, linear_probe

CHANCE = 1 - LEVEL


def words_differ(asked: Iterable[tuple[Pair, tuple[int, ...]]]) -> bool:
    """Do the words up to the answer differ between sides of one pair of answers? Only then may they tell it.

    asked   the pair and the words of each side, as ``Features.words``
    """
    found = set(asked)
    return len(found) > len({pair for pair, _ in found})


@dataclass(frozen=True)
class StateTests:
    """The linear probes of one group; ``seed`` decides folds and shuffles."""

    sides: Sequence[SideCase]
    contrast: Contrast
    thresholds: Thresholds
    seed: int = 0

    def tower(self) -> Leg:
        """Do the region's states in the vision tower tell the group's right answer from its foil?"""
        return self._of_region(
            "The vision tower's states of the region", [one.features.tower for one in self._placed]
        )

    def tokens(self) -> Leg:
        """Do the image tokens that stand for the region?"""
        return self._of_region(
            "The image tokens of the region", [one.features.tokens for one in self._placed]
        )

    def answer(self) -> Leg:
        """Does the state that the answer is read from, whatever is said? Where the words before it differ, only if they
        alone do not tell."""
        if self.contrast.lack:
            return self._not_measured(self.contrast.lack)
        found = self._probe(self.sides, [one.features.answer for one in self.sides])
        words = self._words_alone()
        if words is None:
            return self._leg("The answer's own state", found, len(self.sides), "")
        beside = f"; with grey pictures {percent(words)}"
        leg = self._leg("The answer's own state", found, len(self.sides), beside)
        least = self.thresholds.told
        if not leg.holds or words < least:
            return leg
        return self._not_measured(
            "the words up to the answer tell it, whatever the picture shows: with grey pictures a linear probe of the "
            f"answer's state gets {percent(words)} right (at {percent(least)} the words tell); ask for both answers in "
            "the same words"
        )

    def _words_alone(self) -> float | None:
        """Share that a linear probe gets right where all pictures are grey; None where both answers are asked for in
        the same words, which tell nothing."""
        if not words_differ((one.side.task, one.features.words) for one in self.sides):
            return None
        states = [one.features.blank for one in self.sides if one.features.blank is not None]
        assert len(states) == len(self.sides)  # read wherever words differ
        return self._probe(self.sides, states, shuffles=0).accuracy

    @property
    def _placed(self) -> list[SideCase]:
        return [one for one in self.sides if one.side.boxes is not None]

    def _of_region(self, what: str, places: Sequence[Place | None]) -> Leg:
        if lack := self.contrast.lack or self.contrast.place_lack:
            return self._not_measured(lack)
        found = [place for place in places if place is not None]
        if missing := len(places) - len(found):
            return self._not_measured(
                f"on {count(missing, 'picture')} it cannot be told which of these states stand for the region"
            )
        around = [place.background for place in found if place.background is not None]
        beside = ""
        if len(around) == len(found):
            background = self._probe(self._placed, around, shuffles=0)
            beside = f"; the background of the same pictures {percent(background.accuracy)}"
        return self._leg(
            what, self._probe(self._placed, [place.region for place in found]), len(found), beside
        )

    def _probe(
        self, sides: Sequence[SideCase], states: Sequence[Blocks], *, shuffles: int = SHUFFLES
    ) -> LinearProbe:
        common = min(map(len, states))  # pictures without an overview have fewer blocks
        return linear_probe(
            [np.stack([one[at] for one in states]) for at in range(common)],
            np.array([one.side.label for one in sides]),
            pictures_of([one.case for one in sides]),
            tasks=[one.side.task for one in sides],
            aligned=self.contrast.aligned,
            shuffles=shuffles,
            seed=self.seed,
        )

    def _leg(self, what: str, found: LinearProbe, probes: int, beside: str) -> Leg:
        least = self.thresholds.told
        holds = found.accuracy >= least - 1e-9 and found.p <= CHANCE
        reason = (
            f"{what} {'can' if holds else 'cannot'} tell the right answer from the wrong one: a linear probe gets "
            f"{percent(found.accuracy)} right on other pictures ({share_interval(found.low, found.high)}; at least "
            f"{percent(least)} must be; {found.pictures[1]} pictures of one answer, {found.pictures[0]} of the other), "
            f"shuffled labels up to {percent(found.shuffled)}{beside}."
        )
        return Leg(holds, probes, found.accuracy, (found.low, found.high), least, reason)

    def _not_measured(self, lack: str) -> Leg:
        return not_measured(self.thresholds.told, f"Not measured: {lack}.")
