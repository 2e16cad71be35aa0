"""When during a training did answers, attention and cause begin to change, and which came first?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diagnostics.comparison.legs.attention import cross_fitted_rows, unseen
from diagnostics.comparison.legs.mediation import mediated_nats
from diagnostics.comparison.pairs import ProbePair, images_of, pairs_by_group, trained_words
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.trajectory import ProbeSeries
from diagnostics.measures.onset import (
    FELL,
    NEITHER,
    ROSE,
    Look,
    Onset,
    look_at_numbers,
    look_at_shares,
    onsets,
)
from diagnostics.measures.statistics import relative_change

Json = dict[str, Any]
ANSWERS, ATTENTION, CAUSE = "answers", "attention", "cause"
WHAT = (ANSWERS, ATTENTION, CAUSE)
NOT_MEASURED = "not measured"
CHECKPOINT = "checkpoint"
SHOWS_NO_CORRECTION = "Pictures of this group are in the training data: what rose shows no correction."


def onset_of(
    pairs: Sequence[ProbePair],
    steps: Sequence[int],
    read: Mapping[str, ProbeSeries],
    thresholds: Thresholds | None = None,
    level: float = 0.95,
) -> Json:
    """ "onset" of comparison.json.

    ::

        unit      "step", or "checkpoint" where checkpoints are numbered by their place
        tests     looks of all groups and quantities; their p are adjusted for this number
        groups    {group: {"answers", "attention", "cause": {"state": "rose", "fell", "not beyond chance" or "not
                  measured", "step", "after", "stays", "change", "p_adjusted", "looks"}, "words"}}

    Something began after step ``after`` and by ``step``. Changes are from the first step: of the share of right
    answers; of the region's enrichment, relative (``relative_change``), each probe in the layer that the other half of
    the pictures chose at the last step, where no loss asked for it (``unseen``); of what hiding the region costs beyond
    random places, nats. What counts is asked of the same thresholds as for a verdict: attention must move by ``move``,
    cost by ``cause`` of the margin's change at the last step.

    pairs   the first and the last step
    read    of ``read_series``, over the same steps
    """
    asked = thresholds or Thresholds()
    groups = {
        name: _Group(members, steps, read, asked, level) for name, members in pairs_by_group(pairs).items()
    }
    series = {(name, what): group.looks(what) for name, group in groups.items() for what in WHAT}
    found = onsets(series, base=steps[0], alpha=1 - level)
    unit = CHECKPOINT if tuple(steps) == tuple(range(len(steps))) else "step"
    return {
        "unit": unit,
        "tests": sum(map(len, series.values())),
        "groups": {
            name: {
                **{what: _json(found.get((name, what))) for what in WHAT},
                "words": _group_words(group.pairs, {what: found.get((name, what)) for what in WHAT}, unit),
            }
            for name, group in groups.items()
        },
    }


@dataclass(frozen=True)
class _Group:
    """A group of probes at every step."""

    pairs: Sequence[ProbePair]
    steps: Sequence[int]
    read: Mapping[str, ProbeSeries]
    thresholds: Thresholds
    level: float

    def looks(self, what: str) -> list[Look]:
        """One for each step after the first at which enough pictures were measured."""
        of = {ANSWERS: self._answers, ATTENTION: self._attention, CAUSE: self._cause}[what]
        return of()

    def _answers(self) -> list[Look]:
        members = [pair for pair in self.pairs if self.read[pair.probe.id].margins_nats is not None]
        images = images_of(members)
        if len(set(images)) < self.thresholds.probes:
            return []
        right = np.array([self.read[pair.probe.id].margins_nats for pair in members]) > 0
        change = right.astype(float) - right[:, :1]
        return [look_at_shares(step, change[:, at], images) for at, step in self._later()]

    def _attention(self) -> list[Look]:
        members = unseen(self.pairs).pairs  # where a loss asked for it, attention is no evidence
        images = images_of(members)
        if len(set(images)) < self.thresholds.probes:
            return []
        rows, _ = cross_fitted_rows(members, images, mediated_nats, self.level)
        looks = np.array([self._enrichment(pair, row) for pair, row in zip(members, rows, strict=True)])
        change = relative_change(np.broadcast_to(looks[:, :1], looks.shape), looks)
        return [
            look_at_numbers(step, change[:, at], images, self.thresholds.move) for at, step in self._later()
        ]

    def _enrichment(self, pair: ProbePair, row: int) -> np.ndarray:
        """At every step, in the layer of this row of the pair's layers, which may be fewer than those of the series."""
        series = self.read[pair.probe.id]
        assert series.enrichment is not None
        return series.enrichment[:, series.layers.index(pair.layers[row].layer)]

    def _cause(self) -> list[Look]:
        scored = [pair for pair in self.pairs if self.read[pair.probe.id].margins_nats is not None]
        costs = np.array([self.read[pair.probe.id].costs_nats for pair in scored])
        margins = np.array([self.read[pair.probe.id].margins_nats for pair in scored])
        images = images_of(scored)
        found = []
        for at, step in self._later() if scored else ():
            change = costs[:, at] - costs[:, 0]
            measured = np.isfinite(change)
            pictures = [image for image, is_there in zip(images, measured, strict=True) if is_there]
            if len(set(pictures)) >= self.thresholds.probes:
                least = self.thresholds.cause * abs(
                    float((margins[measured, -1] - margins[measured, 0]).mean())
                )
                found.append(look_at_numbers(step, change[measured], pictures, least))
        return found

    def _later(self) -> list[tuple[int, int]]:
        return [*enumerate(self.steps)][1:]


def _json(found: Onset | None) -> Json:
    if found is None:
        return {"state": NOT_MEASURED, "step": None, "after": None, "stays": None, "change": None,
                "p_adjusted": None, "looks": 0}  # fmt: skip
    return {**found._asdict(), "stays": found.stays if found.step is not None else None}


# ---------------------------------------------------------------- words


def _group_words(pairs: Sequence[ProbePair], found: Mapping[str, Onset | None], unit: str) -> str:
    """``words``, and that they show no correction where something rose on pictures that were trained on."""
    rose = any(one is not None and one.state == ROSE for one in found.values())
    said = words(found, unit)
    return f"{said} {SHOWS_NO_CORRECTION}" if rose and trained_words(pairs) else said


def words(found: Mapping[str, Onset | None], unit: str = "step") -> str:
    """The onsets of a group in plain words, and their order as far as the checkpoints show it.

    Attention beyond chance at step 110 and answers at 220, checkpoints 110 apart → "Attention led the answers by 110
    steps (steps 110 and 220; checkpoints lie 110 steps apart)."
    """
    if not any(found.values()):
        return "Not judged: too few pictures."
    rose = {what: one for what, one in found.items() if one is not None and one.state == ROSE}
    sentences = [_order(ATTENTION, ANSWERS, rose, unit), _order(CAUSE, ANSWERS, rose, unit)]
    if ANSWERS not in rose:
        sentences.append(_order(ATTENTION, CAUSE, rose, unit))
    told = {what for one in sentences if one is not None for what in one[1]}
    text = [one[0] for one in sentences if one is not None]
    text += [_alone(what, found.get(what), unit) for what in WHAT if what not in told]
    text += [
        f"{_subject(what)} {_was(what)} not beyond chance at every later {CHECKPOINT}."
        for what in _gone(rose)
    ]
    return " ".join(text)


def _order(one: str, other: str, rose: Mapping[str, Onset], unit: str) -> tuple[str, tuple[str, str]] | None:
    """Which of two came first; None unless both rose."""
    if one not in rose or other not in rose:
        return None
    a, b = rose[one], rose[other]
    assert None not in (a.step, a.after, b.step, b.after)
    if a.step <= b.after:  # type: ignore[operator]
        return _led(one, other, a, b, unit), (one, other)
    if b.step <= a.after:  # type: ignore[operator]
        return _led(other, one, b, a, unit), (one, other)
    if (a.after, a.step) == (b.after, b.step):
        width = _steps(a.step - a.after, unit)  # type: ignore[operator]
        text = f"{_subject(one)} and {other} came together, within the {width} between {unit}s {a.after} and {a.step}."
    else:
        text = (
            f"Whether {one} or {other} came first is not known: {one} came between {unit}s {a.after} and {a.step}, "
            f"{other} between {b.after} and {b.step}."
        )
    return text, (one, other)


def _led(first: str, second: str, a: Onset, b: Onset, unit: str) -> str:
    assert a.step is not None and a.after is not None and b.step is not None and b.after is not None
    apart = _steps(max(a.step - a.after, b.step - b.after), unit)
    led = "the answers" if second == ANSWERS else second
    lead = _steps(b.step - a.step, unit)
    return f"{_subject(first)} led {led} by {lead} ({unit}s {a.step} and {b.step}; checkpoints lie {apart} apart)."


def _alone(what: str, one: Onset | None, unit: str) -> str:
    name = _subject(what)
    if one is None:
        return f"{name}: not measured on enough pictures at any checkpoint."
    if one.state == NEITHER:
        return f"{name} did not {'move' if what == ATTENTION else 'change'} beyond chance."
    direction = {ROSE: "rose", FELL: "fell"}[one.state]
    recovered = "" if one.stays or one.state == ROSE else f", and not at every later {CHECKPOINT}"
    return f"{name} {direction} beyond chance by {unit} {one.step}{recovered}."


def _gone(rose: Mapping[str, Onset]) -> list[str]:
    return [what for what, one in rose.items() if not one.stays]


def _subject(what: str) -> str:
    return {ANSWERS: "Answers", ATTENTION: "Attention", CAUSE: "Cause"}[what]


def _was(what: str) -> str:
    return "were" if what == ANSWERS else "was"


def _steps(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"
