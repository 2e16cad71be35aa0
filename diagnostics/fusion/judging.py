"""Tests fused maps against the best single one: chosen on one half of the pictures, judged on the other.

The best of many maps looks good on the pictures that made it the best. So the single maps, the recipe and what recipes
learn (``Lessons``) are chosen on pictures that take no part in the claim; and a recipe is recommended only where it
beats the single maps, on the others, beyond chance.

Two measures, because they can disagree. Enrichment is linear: a mean of maps enriches a region by the mean of theirs,
so it never beats the best of its parts on the same pictures. What it can do is hold its peak on the region more often,
which the pointing game sees.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diagnostics.fusion.recipes import Lessons, Map, View, fitting, fused, single_maps
from diagnostics.measures.attention import enrichment, pointing_game
from diagnostics.measures.statistics import (
    SIGNIFICANT,
    Interval,
    benjamini_hochberg,
    bootstrap_mean,
    effect_size,
    head_tests,
    relative_change,
    sign_flip_p,
    signed_rank_direction,
)
from diagnostics.probing.layer_choice import LEAST_PROBES
from diagnostics.records.pictures import names_by_picture, picture_mark
from diagnostics.records.probes import ENOUGH_PROBES, Probe
from finetune.families.parts.coverage import region_coverage

ALL = "all"  # the scope of every probe; groups of the probe file are the others
BETTER, NOT_BETTER, WORSE, TOO_FEW = "better", "not better", "worse", "too few probes"


@dataclass(frozen=True)
class FusionExample:
    """One probe with a region, and what was seen of its picture.

    views      the first is what is measured on
    coverage   Float[cells of the first view]: share of each that the probe's region covers, [0, 1]
    picture    what makes two probes the same picture
    """

    probe: Probe
    views: tuple[View, ...]
    coverage: Float[np.ndarray, " cells"]
    picture: str


class Score(NamedTuple):
    """How one map does on each probe.

    enrichment   Float[probes]: times its area's share that the region gets, 1 is chance
    pointed      Bool[probes]: is the strongest cell on the region? A map that is all 0 points nowhere
    """

    enrichment: Float[np.ndarray, " probes"]
    pointed: Bool[np.ndarray, " probes"]


@dataclass(frozen=True)
class Against:
    """A recipe against the best single map of each measure, on the same pictures, which chose neither.

    enrichment    recipe − best single map by enrichment, times; 95 % interval, pictures drawn whole
    pointing      recipe − best single map by pointing, share of probes; the same
    p             of enrichment: signed ranks of its relative change, two-sided
    p_pointing    of pointing: sign flips, two-sided; both adjusted for all recipes, scopes and both measures
    effect        Cohen's d of the difference in enrichment; None if it does not vary
    ranks         which way the signed ranks behind ``p`` lie: 1, −1 or 0
    """

    enrichment: Interval
    pointing: Interval
    p: float
    p_pointing: float
    effect: float | None
    ranks: int


@dataclass(frozen=True)
class Line:
    """One map in the table, on the judged pictures.

    enrichment   mean, times
    pointing     share of probes whose strongest cell is on the region, [0, 1]
    against      of a recipe; None for a single map
    verdict      of a recipe; "" for a single map
    """

    name: str
    enrichment: float
    pointing: float
    against: Against | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Judgement:
    """What was chosen for a scope (all probes, or a group), and whether fusion is better there.

    chosen_on, judged_on   how many pictures each
    probes                 how many are judged
    single, pointer        the best of all single maps by enrichment and by pointing, on the pictures that choose
    layer                  the best, by enrichment, of the single maps that read the question: those of language layers
    recipe                 the one recommended; where none is, the best by enrichment on the pictures that choose
    lessons                what recipes learned there
    singles, recipes       every map's line, in order
    recommended            ``recipe`` where it is better, else ``layer``
    why                    one sentence

    A recipe has to beat any single map, also the connector's and the tower's, which do not depend on the question:
    else what stands out in a picture would pass for where its answer was read.
    """

    scope: str
    chosen_on: int
    judged_on: int
    probes: int
    single: str
    pointer: str
    layer: str
    recipe: str
    lessons: Lessons
    singles: tuple[Line, ...]
    recipes: tuple[Line, ...]
    recommended: str
    why: str

    def line(self, name: str) -> Line:
        """The line of a map, by its name."""
        return next(line for line in (*self.singles, *self.recipes) if line.name == name)


# ---------------------------------------------------------------- cases and halves


def case_of(probe: Probe, views: Sequence[View]) -> FusionExample:
    """A probe and its views, ready to be scored. Raises ValueError, with its name, where it has no region."""
    if probe.main_region is None:
        raise ValueError(
            f"probe {probe.id}: has no region, expected one: fusion is judged by where maps look"
        )
    coverage = region_coverage(probe.regions[probe.main_region], views[0].image)
    return FusionExample(probe, tuple(views), coverage, picture_of(probe))


def picture_of(probe: Probe) -> str:
    """What makes two probes the same picture: what it shows."""
    return picture_mark(probe.images[0])


def choosing_half(probes: Sequence[Probe]) -> Bool[np.ndarray, " probes"]:
    """Which probes choose, one picture in two of each group: the same on every machine, by the files' names.

    Probes of one picture stay together. The others judge. A picture of several groups counts in its first.
    """
    group_of: dict[str, str] = {}
    for probe in probes:
        group_of.setdefault(picture_of(probe), probe.group)
    chosen: set[str] = set()
    for group in dict.fromkeys(group_of.values()):
        members = [probe for probe in probes if group_of[picture_of(probe)] == group]
        names = names_by_picture(members)
        ordered = sorted(names, key=lambda picture: (zlib.crc32(names[picture].encode()), names[picture]))
        chosen |= set(ordered[::2])
    return np.array([picture_of(probe) in chosen for probe in probes], bool)


# ---------------------------------------------------------------- scores


def score(maps: Sequence[Map], cases: Sequence[FusionExample]) -> Score:
    """One map of each case → how it does on each."""
    times = [float(enrichment(cells, case.coverage)) for cells, case in zip(maps, cases, strict=True)]
    hits = [
        bool(cells.any() and pointing_game(cells, case.coverage))
        for cells, case in zip(maps, cases, strict=True)
    ]
    return Score(np.array(times), np.array(hits, bool))


def score_singles(cases: Sequence[FusionExample]) -> dict[str, Score]:
    """Every single map that all cases have, by name."""
    found = [single_maps(case.views) for case in cases]
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: score([one[name] for one in found], cases) for name in names}


def lessons_of(cases: Sequence[FusionExample]) -> Lessons:
    """The best language layer of the first view by mean enrichment, and a weight for each layer: what it enriches the
    region by beyond 1. Equal weights where none does."""
    layers = [
        layer for layer in cases[0].views[0].layers if all(layer in case.views[0].layers for case in cases)
    ]
    means = {
        layer: float(score([case.views[0].layers[layer] for case in cases], cases).enrichment.mean())
        for layer in layers
    }
    gains = {layer: max(mean - 1, 0.0) for layer, mean in means.items()}
    total = sum(gains.values())
    weights = {layer: gain / total if total > 0 else 1 / len(layers) for layer, gain in gains.items()}
    return Lessons(max(means, key=lambda layer: means[layer]), weights)


# ---------------------------------------------------------------- judgement


@dataclass(frozen=True)
class _Contest:
    """A scope before chance is adjusted; ``before`` is each recipe's mean enrichment where it is chosen, ``chances``
    those of enrichment and pointing."""

    scope: str
    choosing: tuple[FusionExample, ...]
    judging: tuple[FusionExample, ...]
    single: str
    pointer: str
    layer: str
    lessons: Lessons
    before: Mapping[str, float]
    singles: Mapping[str, Score]
    recipes: Mapping[str, Score]
    chances: Float[np.ndarray, "recipes 2"]

    @property
    def is_enough(self) -> bool:
        return len(self.choosing) >= LEAST_PROBES and len(_pictures(self.judging)) >= ENOUGH_PROBES


def judge(
    cases: Sequence[FusionExample], chooses: Sequence[bool] | Bool[np.ndarray, " probes"]
) -> dict[str, Judgement]:
    """Every scope's judgement: "all", then each group that has probes on both sides, where there is more than one.

    A recipe is "better" where its enrichment or its pointing is above that of the best single map of that measure, on
    the judged pictures, with p < .05 after Benjamini-Hochberg over all recipes, scopes and both measures and an
    interval above 0 (of enrichment the ranks lie above it too: a mean may be that of a few probes), and where the other
    measure is not below (its interval is not); "worse" is the reverse. "too few probes": fewer than 20 judged pictures,
    or fewer than 12 probes to choose on. Of several that are better the one that was best where it was chosen is
    recommended.

    Raises ValueError if one side has no case, where cases lie on both sides with one picture, and where nothing can
    be fused.
    """
    sides = np.asarray(chooses, bool)
    choosing = [case for case, is_chosen in zip(cases, sides, strict=True) if is_chosen]
    judging = [case for case, is_chosen in zip(cases, sides, strict=True) if not is_chosen]
    if not choosing or not judging:
        raise ValueError(
            f"fusion: found {len(choosing)} probes to choose on and {len(judging)} to judge, expected at least one of "
            "each, of different pictures"
        )
    if both := _pictures(choosing) & _pictures(judging):
        raise ValueError(
            f"fusion: {min(both)} is among the pictures that choose and those that judge, expected other pictures"
        )
    names = fitting([case.views for case in cases])
    if not names:
        raise ValueError("fusion: found one map of each picture, expected several: there is nothing to fuse")
    contests = [_contest(ALL, choosing, judging, names)]
    groups = list(dict.fromkeys(case.probe.group for case in cases))
    for group in groups if len(groups) > 1 else ():
        one_side, other = (
            [case for case in side if case.probe.group == group] for side in (choosing, judging)
        )
        if one_side and other:
            contests.append(_contest(group, one_side, other, names))
    adjusted = benjamini_hochberg(np.stack([one.chances for one in contests]))
    return {one.scope: _judgement(one, p) for one, p in zip(contests, adjusted, strict=True)}


def _contest(
    scope: str, choosing: Sequence[FusionExample], judging: Sequence[FusionExample], names: Sequence[str]
) -> _Contest:
    """Choose on one side, score on the other."""
    before = score_singles(choosing)
    by_enrichment = {name: float(one.enrichment.mean()) for name, one in before.items()}
    by_pointing = {name: (float(one.pointed.mean()), by_enrichment[name]) for name, one in before.items()}
    single, pointer = max(before, key=by_enrichment.__getitem__), max(before, key=by_pointing.__getitem__)
    layer = max((name for name in before if name.startswith("layer_")), key=by_enrichment.__getitem__)
    lessons = lessons_of(choosing)
    singles = score_singles(judging)
    recipes = {name: _score_recipe(name, judging, lessons) for name in names}
    pictures = [case.picture for case in judging]
    ours = np.stack([one.enrichment for one in recipes.values()], 1)
    theirs = np.repeat(singles[single].enrichment[:, None], ours.shape[1], 1)
    ranks = head_tests(theirs[:, None], ours[:, None], pictures)[0]
    flips = [sign_flip_p(_hits(one, singles[pointer]), pictures) for one in recipes.values()]
    return _Contest(
        scope,
        tuple(choosing),
        tuple(judging),
        single,
        pointer,
        layer,
        lessons,
        {name: float(_score_recipe(name, choosing, lessons).enrichment.mean()) for name in names},
        singles,
        recipes,
        np.stack([ranks, np.array(flips)], 1),
    )


def _score_recipe(name: str, cases: Sequence[FusionExample], lessons: Lessons) -> Score:
    return score([fused(name, case.views, lessons) for case in cases], cases)


def _hits(own: Score, other: Score) -> Float[np.ndarray, " probes"]:
    """1 where one map points to the region and the other does not, −1 the other way round."""
    return own.pointed.astype(float) - other.pointed.astype(float)


def _judgement(contest: _Contest, adjusted: Float[np.ndarray, "recipes 2"]) -> Judgement:
    recipes = tuple(
        _recipe_line(contest, name, *chances)
        for name, chances in zip(contest.recipes, adjusted.tolist(), strict=True)
    )
    singles = tuple(
        Line(name, float(one.enrichment.mean()), float(one.pointed.mean()))
        for name, one in contest.singles.items()
    )
    better = [line for line in recipes if line.verdict == BETTER]
    chosen = max(better or recipes, key=lambda line: contest.before[line.name])
    return Judgement(
        scope=contest.scope,
        chosen_on=len(_pictures(contest.choosing)),
        judged_on=len(_pictures(contest.judging)),
        probes=len(contest.judging),
        single=contest.single,
        pointer=contest.pointer,
        layer=contest.layer,
        recipe=chosen.name,
        lessons=contest.lessons,
        singles=singles,
        recipes=recipes,
        recommended=chosen.name if better else contest.layer,
        why=_why(contest, chosen),
    )


def _recipe_line(contest: _Contest, name: str, p: float, p_pointing: float) -> Line:
    own, pictures = contest.recipes[name], [case.picture for case in contest.judging]
    single = contest.singles[contest.single].enrichment
    gain = own.enrichment - single
    against = Against(
        enrichment=bootstrap_mean(gain, pictures),
        pointing=bootstrap_mean(_hits(own, contest.singles[contest.pointer]), pictures),
        p=p,
        p_pointing=p_pointing,
        effect=effect_size(gain, pictures),
        ranks=int(signed_rank_direction(relative_change(single, own.enrichment), pictures)),
    )
    verdict = verdict_of(against) if contest.is_enough else TOO_FEW
    return Line(name, float(own.enrichment.mean()), float(own.pointed.mean()), against, verdict)


def verdict_of(against: Against) -> str:
    """ "better", "worse" or "not better", as ``judge`` says."""
    gain, hits = against.enrichment, against.pointing
    sure, pointed = (
        against.p < SIGNIFICANT,
        against.p_pointing < SIGNIFICANT,
    )  # its flips test the mean itself
    rises = (sure and gain.is_above_zero and against.ranks > 0) or (pointed and hits.is_above_zero)
    falls = (sure and gain.is_below_zero and against.ranks < 0) or (pointed and hits.is_below_zero)
    if rises and not (gain.is_below_zero or hits.is_below_zero):
        return BETTER
    return WORSE if falls and not (gain.is_above_zero or hits.is_above_zero) else NOT_BETTER


def _why(contest: _Contest, chosen: Line) -> str:
    judged = len(_pictures(contest.judging))
    numbers = f"{_compared(contest, chosen)}, on {judged} pictures that were not used to choose"
    if chosen.verdict == BETTER:
        return f"Fusion is better here: {numbers}."
    question_blind = (
        ""
        if contest.single == contest.layer
        else f" {contest.single} does not depend on the question; of the maps that do, {contest.layer} is best."
    )
    if chosen.verdict == TOO_FEW:
        return (
            f"Too few probes to tell (found {len(contest.choosing)} to choose on and {judged} pictures to judge, "
            f"expected {LEAST_PROBES} and {ENOUGH_PROBES}), so the single layer stands: {numbers}.{question_blind}"
        )
    worse = ", it is worse" if chosen.verdict == WORSE else ""
    return f"Fusion is not better here{worse}: {numbers}.{question_blind}"


def _compared(contest: _Contest, chosen: Line) -> str:
    """The numbers of a claim, both measures."""
    assert chosen.against is not None
    gain, hits = chosen.against.enrichment, chosen.against.pointing
    single = float(contest.singles[contest.single].enrichment.mean())
    pointer = float(contest.singles[contest.pointer].pointed.mean())
    return (
        f"{chosen.name} enriches {chosen.enrichment:.2f} times against {contest.single} {single:.2f} (difference "
        f"{gain.mean:+.2f}, 95 % {gain.low:+.2f} to {gain.high:+.2f}, {p_words(chosen.against.p)}) and points "
        f"{chosen.pointing:.0%} against {contest.pointer} {pointer:.0%} (difference {hits.mean * 100:+.0f} points, "
        f"95 % {hits.low * 100:+.0f} to {hits.high * 100:+.0f}, {p_words(chosen.against.p_pointing)})"
    )


def p_words(p: float) -> str:
    """p = .006 as "p = 0.006", what is below a thousandth as "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _pictures(cases: Sequence[FusionExample]) -> set[str]:
    return {case.picture for case in cases}
