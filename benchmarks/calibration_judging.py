"""Counts false findings: records of ``benchmarks/calibration_trainings.py``, judged by the current
``diagnostics.comparison``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from benchmarks.calibration_lessons import Lesson
from benchmarks.calibration_trainings import Workshop, archive_of
from diagnostics.comparison import group_report
from diagnostics.comparison.pairs import SIDES, ProbePair, pair_all, pairs_by_group
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import CORRECTED
from diagnostics.measures.statistics import SIGNIFICANT, clopper_pearson, relative_change
from diagnostics.records.probes import KEPT_SHARE
from diagnostics.records.record import AttentionRecord

Json = dict[str, Any]
LEGS = ("answers", "picture", "attention", "cause", "mediation", "guards")


class Again(NamedTuple):
    """Changes that a comparison claims, measured again on fresh pictures.

    claims      how many
    other_way   how many of them have the other sign there, or are none
    claimed     sum of their sizes as claimed, without signs
    fresh       sum of their sizes there; negative where they go the other way
    """

    claims: int
    other_way: int
    claimed: float
    fresh: float


class Told(NamedTuple):
    """A comparison's claims about one group.

    found   finding → was it made? None: not measured
    again   finding → whether fresh pictures bear it out
    """

    verdict: str
    found: Mapping[str, bool | None]
    again: Mapping[str, Again]


class Judged(NamedTuple):
    """One training's comparison with the untrained model: group → its claims."""

    lesson: Lesson
    groups: Mapping[str, Told]


# ---------------------------------------------------------------- one comparison


def judged(pairs: Sequence[ProbePair], fresh: Sequence[ProbePair], lesson: Lesson) -> Judged:
    """The comparison that ``diagnostics.compare`` makes of these pairs, checked on fresh ones."""
    with patch.object(
        group_report, "drift_of", lambda *_: {}
    ):  # no claim uses it, and it takes most of the time
        groups = group_report.comparison_of(pairs)["groups"]
    others = pairs_by_group(fresh)
    return Judged(
        lesson,
        {
            name: Told(group["verdict"], findings(group), looked_at_again(group, others.get(name, ())))
            for name, group in groups.items()
        },
    )


def findings(group: Json) -> dict[str, bool | None]:
    """A group's claims in comparison.json; None for what was not measured."""
    accuracy, heads, by_layer = group["accuracy"], group["heads"], group["enrichment_by_layer"]
    moved = None if group["enrichment"] is None else _moved(group["enrichment"])
    return {
        "verdict corrected": group["verdict"] == CORRECTED,
        "corrected in any wording": group["verdict"].startswith(
            CORRECTED
        ),  # also "corrected, not by looking"
        **{f"leg {name}": group["legs"][name]["holds"] for name in LEGS},
        "more right answers": None
        if accuracy is None
        else _is_changed(accuracy) and accuracy["difference"] > 0,
        "attention moved": None if moved is None else moved != 0,
        "attention rose": None if moved is None else moved > 0,
        "a key layer moved": any(_moved(one) for one in by_layer) if by_layer else None,
        "a head named": None if heads is None else heads["count"] > 0,
    }


def _moved(enrichment: Json) -> int:
    """1 where attention on the region rose, −1 where it fell, 0 where chance or too small a change explain it, or where
    mean and ranks point different ways: p is of the ranks."""
    change = enrichment["relative_change"]["mean"]
    certain = enrichment["p_adjusted"] < SIGNIFICANT and abs(change) >= Thresholds().move
    return int(enrichment["direction"]) if certain else 0


def _is_changed(accuracy: Json) -> bool:
    return bool(accuracy["p_mcnemar"] < SIGNIFICANT)


def looked_at_again(group: Json, fresh: Sequence[ProbePair]) -> dict[str, Again]:
    """The changes that a group's comparison claims, on fresh probes of the same kind.

    A training that teaches nothing true still changes a model. A claim about the model is false where it does not
    hold for other pictures; one that chance alone made goes the other way there in half of the cases.
    """
    found: dict[str, Again] = {}
    accuracy, enrichment, heads = group["accuracy"], group["enrichment"], group["heads"]
    if fresh and accuracy is not None and _is_changed(accuracy):
        margins = [[side.scores.margin_nats for side in (pair.before, pair.after)] for pair in fresh]
        change = np.diff((np.array(margins, float) > 0).mean(0))[0]
        name = f"{'more' if accuracy['difference'] > 0 else 'fewer'} right answers"
        found[name] = _again([(accuracy["difference"], change)])
    members = [pair for pair in fresh if pair.region is not None]
    if not members:
        return found
    if enrichment is not None and _moved(enrichment):
        change = _of_layers(members)[enrichment["layer"]]
        found["attention moved"] = _again([(enrichment["relative_change"]["mean"], change)])
    if heads is not None and heads["significant"]:
        leads = _leads_of_heads(members)
        named = [(one["relative_change"], leads[one["layer"], one["head"]]) for one in heads["significant"]]
        found["a head named"] = _again(named)
    return found


def _again(both: Sequence[tuple[float, float]]) -> Again:
    """From pairs of a claimed change and the same change on fresh probes."""
    along = [float(np.sign(claimed) * fresh) for claimed, fresh in both]
    return Again(
        len(both), sum(one <= 0 for one in along), sum(abs(claimed) for claimed, _ in both), sum(along)
    )


def _of_layers(pairs: Sequence[ProbePair]) -> Float[np.ndarray, " layers"]:
    """Mean relative change of attention on the judged region, mean over heads, in all layers."""
    before, after = (_masses(pairs, side, "region_mass").mean(-1) for side in SIDES)
    return relative_change(before, after).mean(0)


def _leads_of_heads(pairs: Sequence[ProbePair]) -> Float[np.ndarray, "layers heads"]:
    """How much more the region gained than random places, as comparisons have it for heads."""
    before, after = (_masses(pairs, side, "region_mass") for side in SIDES)
    random_before, random_after = (_masses(pairs, side, "random_mass") for side in SIDES)
    return relative_change(before + random_after, after + random_before).mean(0)


def _masses(pairs: Sequence[ProbePair], side: str, kind: str) -> Float[np.ndarray, "probes layers heads"]:
    return np.stack([getattr(getattr(pair, side), kind)[pair.region] for pair in pairs])


# ---------------------------------------------------------------- counting


def rate(hits: int, of: int) -> Json:
    """A count as a share with its Clopper–Pearson interval."""
    if not of:
        return {"count": 0, "of": 0, "share": None, "ci95": None}
    low, high = clopper_pearson(hits, of)
    return {"count": hits, "of": of, "share": round(hits / of, 4), "ci95": [round(low, 4), round(high, 4)]}


def tabulate(rows: Sequence[Judged]) -> Json:
    """Every finding over comparisons: in any group of one, by group, and by kind of training; and every verdict.

    A comparison counts where the finding was measured in at least one of its groups.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.groups))
    kinds = list(dict.fromkeys(row.lesson.kind for row in rows))
    claims = list(dict.fromkeys(claim for row in rows for one in row.groups.values() for claim in one.found))
    return {
        "comparisons": len(rows),
        "in_any_group": {claim: _rate(rows, claim, names) for claim in claims},
        "in_any_group_of_the_flaw": {
            claim: _rate(rows, claim, [name for name in names if name not in KEPT_SHARE]) for claim in claims
        },
        "by_group": {name: {claim: _rate(rows, claim, [name]) for claim in claims} for name in names},
        "by_kind": {
            kind: {
                "comparisons": sum(row.lesson.kind == kind for row in rows),
                **{
                    claim: _rate([row for row in rows if row.lesson.kind == kind], claim, names)["count"]
                    for claim in claims
                },
            }
            for kind in kinds
        },
        "verdicts": {
            name: dict(Counter(row.groups[name].verdict for row in rows if name in row.groups).most_common())
            for name in names
        },
        "verdicts_by_kind": {
            kind: {
                name: dict(
                    Counter(row.groups[name].verdict for row in rows if row.lesson.kind == kind).most_common()
                )
                for name in names
            }
            for kind in kinds
        },
        "on_fresh_probes": _on_fresh_probes(rows),
    }


def _rate(rows: Sequence[Judged], claim: str, names: Sequence[str]) -> Json:
    measured = [
        [
            row.groups[name].found[claim]
            for name in names
            if name in row.groups and row.groups[name].found[claim] is not None
        ]
        for row in rows
    ]
    return rate(sum(any(one) for one in measured), sum(bool(one) for one in measured))


def _on_fresh_probes(rows: Sequence[Judged]) -> Json:
    """Claim → how many have the opposite sign on fresh probes, and mean sizes as claimed and there."""
    all_of: dict[str, list[Again]] = {}
    for row in rows:
        for one in row.groups.values():
            for claim, again in one.again.items():
                all_of.setdefault(claim, []).append(again)
    totals = {claim: Again(*map(sum, zip(*one, strict=True))) for claim, one in all_of.items()}
    return {
        claim: {
            "the_other_way": rate(total.other_way, total.claims),
            "mean_change_claimed": round(total.claimed / total.claims, 3),
            "mean_change": round(total.fresh / total.claims, 3),
        }
        for claim, total in totals.items()
    }


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class RecordsOfWork:
    """Reads the pairs of trainings from their folders.

    layers   the key layers
    """

    workshop: Workshop
    layers: tuple[int, ...]

    def pairs(self, lesson: Lesson, *parts: str) -> list[ProbePair]:
        """The untrained model beside this training, on the probes of some parts of ``Workshop.parts``."""
        probes, before, after = [], {}, {}
        for part in parts:
            probes += self.workshop.parts[part][0]
            before |= self._base(part)
            after |= archive_of(lesson, self.workshop, self.layers, part).load(lesson.step)
        return pair_all(probes, before, after)

    def _base(self, part: str) -> Mapping[str, AttentionRecord]:
        if part not in _BASE:
            _BASE[part] = archive_of(None, self.workshop, self.layers, part).load(0)
        return _BASE[part]

    def judged(self, lesson: Lesson) -> Judged:
        """The lesson's comparison."""
        return judged(self.pairs(lesson, "flaw", "guards"), self.pairs(lesson, "fresh"), lesson)


_BASE: dict[str, Mapping[str, AttentionRecord]] = {}  # of this process: every comparison reads the same ones


def judge_all(lessons: Sequence[Lesson], work: RecordsOfWork, processes: int) -> list[Judged]:
    """Every training's comparison."""
    with ProcessPoolExecutor(processes) as pool:
        found = pool.map(work.judged, lessons)
        return list(tqdm(found, total=len(lessons), desc="judging", unit="training"))
