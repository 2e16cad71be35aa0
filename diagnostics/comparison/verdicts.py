"""The verdict on a group of probes, with reasons that a newcomer understands, and whether it meets ``--require``.
The statistics are in ``diagnostics.measures.statistics``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diagnostics.measures.statistics import SIGNIFICANT, Change, Interval, probes_needed
from diagnostics.records.probes import ENOUGH_PROBES, KEPT_SHARE, NEIGHBOUR, RETENTION

LEAST_MOVE = 0.05
"""Share of its attention that a region must gain or lose. The same question about the same picture gives the same
number, so paired probes tell any change from chance: one step of training moves attention by thousandths, which
corrects nothing."""

CORRECTED, KEPT = "corrected", "kept"
NOT_MOVED, TOO_FEW, WORSE = "it did not move", "too few probes", "answers got worse"
ANSWERS_ALONE, ATTENTION_ALONE = "answers changed, attention did not", "attention moved, answers did not"
NO_ATTENTION, NO_ANSWERS = "answers changed, attention not measured", "answers not measured"
NO_CAUSE = "answers and attention changed, cause not measured"
OTHER_CAUSE = "answers and attention changed, cause does not agree"
LOST = {RETENTION: "forgot", NEIGHBOUR: "broke a neighbour"}
VERDICTS = (
    *(CORRECTED, ANSWERS_ALONE, ATTENTION_ALONE, NOT_MOVED, WORSE, NO_ATTENTION, NO_CAUSE, OTHER_CAUSE),
    *(NO_ANSWERS, KEPT, *LOST.values(), TOO_FEW),
)
OF_KEPT_GROUPS = (KEPT, *LOST.values())  # verdicts of retention and neighbour, and of no other group

BEYOND_CHANCE, COULD_BE_CHANCE = "chance does not explain the change", "the change could be due to chance"
MARGIN_IN_WORDS = (
    " (how much likelier the right answer is than the wrong one; each nat is a factor of 2.7)"  # on first use
)


@dataclass(frozen=True)
class GroupNumbers:
    """The evidence for the verdict on one group. None: not measured.

    probes, images           how many; probes that share an image count once as evidence (None: none share)
    accuracy                 share of probes with a positive margin
    enrichment               of the region, in the key layer that ``judged_layer`` names, times
    enrichment_relative      mean ``relative_change`` of the same: what a typical probe's attention changed by
    enrichment_chance        p of it (``significant_heads``), adjusted for every group and key layer tested
    occlusion_cost_nats      margin lost by hiding the region in the picture
    control_cost_nats        margin lost by hiding area-matched random boxes, (before, after)
    occlusion_over_control   cost of the region − cost of the random boxes, after, paired by probe
    knockout_…               the same for cutting the answer's attention to the region
    effect_size              of the change that would be claimed (attention's, else the margin's), standard deviations
    """

    group: str
    probes: int
    accuracy: Change
    enrichment: Change | None = None
    occlusion_cost_nats: Change | None = None
    control_cost_nats: tuple[float, float] | None = None
    occlusion_over_control: Interval | None = None
    knockout_cost_nats: Change | None = None
    knockout_control_nats: tuple[float, float] | None = None
    knockout_over_control: Interval | None = None
    images: int | None = None
    enrichment_relative: Interval | None = None
    enrichment_chance: float | None = None
    effect_size: float | None = None


class Verdict(NamedTuple):
    """A claim in a few words, and one plain sentence for each piece of evidence."""

    verdict: str
    reasons: tuple[str, ...]


class _Cause(NamedTuple):
    """One intervention on the region: what it costs, and what the same intervention on random regions costs."""

    what: str
    cost: Change
    control: tuple[float, float]
    over_control: Interval | None

    @property
    def agrees(self) -> bool:
        """Does it cost more after than before, and after training more than on random regions?"""
        beyond = self.over_control is None or self.over_control.is_above_zero
        return self.cost.difference.is_above_zero and self.cost.after > self.control[1] and beyond


def verdict(numbers: GroupNumbers, *, level: float = 0.95) -> Verdict:
    """Judge a group: "corrected" only where answers, attention and cause all agree.

    - answers: the interval of accuracy's change lies above 0
    - attention: enrichment rose, with a chance below 1 − level after adjustment (or an interval above 0 where no
      chance is given), and by 5 % at least
    - cause: hiding the region in the picture costs more margin after than before, and more than hiding random
      regions of its size; where knock-out was measured too, both must agree

    Groups named ``retention`` and ``neighbour`` are judged by whether they were kept: their accuracy after is at least
    97 % or 95 % of that before. Fewer than 20 probes, or 20 images, are too few for a verdict. ``level`` is the
    confidence level of the intervals given.
    """
    if min(numbers.probes, _images(numbers)) < ENOUGH_PROBES:
        return Verdict(TOO_FEW, (_too_few_reason(numbers),))
    if numbers.group in KEPT_SHARE:
        return _kept(numbers)
    causes = _causes(numbers)
    reasons = (
        _accuracy_reason(numbers.accuracy, level),
        _attention_reason(numbers, level),
        *_cause_reasons(causes, level),
    )
    return Verdict(_claim(numbers, causes, level), reasons)


def judged_layer(
    relative: Sequence[Interval], chances: Sequence[float], *, alpha: float = SIGNIFICANT
) -> int:
    """Index of the key layer by which attention is judged.

    relative    mean ``relative_change`` of each key layer, with its interval
    chances     p of ``significant_heads`` for each

    Several layers were fixed beforehand, so picking the best is a multiple comparison: of the layers whose rise stays
    significant after adjusting for all that were tested, the one with the smallest p; where none does, the one with
    the lowest lower bound. Three layers with +.2, +.4 and −.1 and p of .04, .001 and .001: the second.

    Raises ValueError for no layers, and where the two differ in number.
    """
    if not relative or len(relative) != len(chances):
        raise ValueError(
            f"key layers: found {len(relative)} changes and {len(chances)} chances, expected one each"
        )
    risen = [at for at, chance in enumerate(chances) if chance < alpha and relative[at].mean > 0]
    if risen:
        return min(risen, key=chances.__getitem__)
    return min(range(len(relative)), key=lambda at: relative[at].low)


def _claim(numbers: GroupNumbers, causes: Sequence[_Cause], level: float) -> str:
    answers, attention = numbers.accuracy.difference, numbers.enrichment
    if answers.is_below_zero:
        return WORSE
    if not answers.is_above_zero:
        return ATTENTION_ALONE if _moved(numbers, level) else NOT_MOVED
    if attention is None:
        return NO_ATTENTION
    if _moved(numbers, level) != "to the region":
        return ANSWERS_ALONE
    if not causes:
        return NO_CAUSE
    return CORRECTED if all(cause.agrees for cause in causes) else OTHER_CAUSE


def _kept(numbers: GroupNumbers) -> Verdict:
    """Kept or lost, by the share of the accuracy before; and whether a single probe would flip it."""
    before, after, share = numbers.accuracy.before, numbers.accuracy.after, KEPT_SHARE[numbers.group]
    line = share * before - 1e-9
    kept, one = after >= line, 1 / numbers.probes
    one_probe = ""
    if kept and after - one < line:
        one_probe = f"; with {numbers.probes} probes, one more wrong answer would fall below that line"
    elif not kept and after + one >= line:
        one_probe = f"; with {numbers.probes} probes, one more right answer would reach that line"
    reason = (
        f"{_percent(after)} of the probes are answered correctly, {_percent(before)} before: "
        f"{'at least' if kept else 'less than'} {_percent(share)} of the accuracy before{one_probe}."
    )
    return Verdict(KEPT if kept else LOST[numbers.group], (reason,))


def _images(numbers: GroupNumbers) -> int:
    return numbers.probes if numbers.images is None else numbers.images


def _moved(numbers: GroupNumbers, level: float) -> str | None:
    """Where attention moved, if it moved enough to count. The p value decides where one is given: it accounts for
    multiple comparisons, and detects a shared change even where the probes differ by orders of magnitude and the
    interval is wide."""
    size = _size(numbers)
    if not _is_beyond_chance(numbers, level) or abs(size) < LEAST_MOVE:
        return None
    return "to the region" if size > 0 else "away from the region"


def _is_beyond_chance(numbers: GroupNumbers, level: float) -> bool:
    interval, chance = _attention(numbers), numbers.enrichment_chance
    if interval is None:
        return False
    return _is_clear(interval) if chance is None else chance < 1 - level


def _size(numbers: GroupNumbers) -> float:
    """What attention changed by, as a share of the mean of before and after; 0 where it was not measured."""
    if numbers.enrichment is None:
        return 0.0
    if numbers.enrichment_relative is not None:
        return numbers.enrichment_relative.mean
    change = numbers.enrichment
    return 2 * change.difference.mean / max(change.before + change.after, 1e-12)


def _attention(numbers: GroupNumbers) -> Interval | None:
    """The interval that shows which way attention changed: of the typical probe where that is given."""
    if numbers.enrichment is None:
        return None
    return numbers.enrichment_relative or numbers.enrichment.difference


def _is_clear(interval: Interval) -> bool:
    return interval.is_above_zero or interval.is_below_zero


def _causes(numbers: GroupNumbers) -> list[_Cause]:
    """The interventions on the region that were measured together with their control."""
    ways = (
        (
            "Hiding the region in the picture",
            numbers.occlusion_cost_nats,
            numbers.control_cost_nats,
            numbers.occlusion_over_control,
        ),
        (
            "Blocking the answer's attention to the region",
            numbers.knockout_cost_nats,
            numbers.knockout_control_nats,
            numbers.knockout_over_control,
        ),
    )
    return [
        _Cause(what, cost, control, over)
        for what, cost, control, over in ways
        if cost is not None and control is not None
    ]


# ---------------------------------------------------------------- reasons, one sentence each


def _too_few_reason(numbers: GroupNumbers) -> str:
    images, needed = _images(numbers), probes_needed(numbers.effect_size)
    shared = "" if images == numbers.probes else f" on {_count(images, 'image')}"
    enough = f"at least {ENOUGH_PROBES} probes on as many different images are needed"
    if needed is not None:
        enough += (
            f", and about {max(needed, ENOUGH_PROBES)} for a change as large and as consistent as this one"
        )
    return f"{_count(numbers.probes, 'probe')}{shared} cannot tell a change from chance; {enough}."


def _accuracy_reason(change: Change, level: float) -> str:
    return (
        f"The right answer is likelier than the wrong one in {_percent(change.after)} of the probes, "
        f"{_percent(change.before)} before; {_chance(change.difference)} "
        f"({_interval(change.difference, level, percent=True)})."
    )


def _attention_reason(numbers: GroupNumbers, level: float) -> str:
    change, interval = numbers.enrichment, _attention(numbers)
    if change is None or interval is None:
        return "These probes name no region, so attention is not judged."
    words = COULD_BE_CHANCE
    if _moved(numbers, level):
        words = BEYOND_CHANCE
        if not _is_clear(interval):
            words = f"most probes agree, so {BEYOND_CHANCE}"
    elif _is_beyond_chance(numbers, level):
        words = (
            f"{BEYOND_CHANCE}, but {100 * abs(_size(numbers)):.3g} % is too small to count: a move is at least "
            f"{_percent(LEAST_MOVE)}"
        )
    elif _is_clear(interval):
        words += ", adjusted for every group and layer tested"
    means = (
        f"The region gets {change.after:.2f} times the attention that its area alone would get, {change.before:.2f} "
        "before"
    )
    if numbers.enrichment_relative is None:
        return f"{means}; {words} ({_interval(interval, level)})."
    mean, low, high = map(_factor, interval)
    return (
        f"{means}, and in a typical probe {mean:.2f} times as much as before; {words} ({_percent(level)} interval "
        f"{low:.2f} to {high:.2f} times)."
    )


def _factor(relative: float) -> float:
    """after / before of a relative change 2 (after − before) / (after + before): 1 is three times."""
    return (2 + relative) / max(2 - relative, 1e-6)


def _cause_reasons(causes: Sequence[_Cause], level: float) -> list[str]:
    if not causes:
        return ["The cost of hiding the region was not measured against random regions."]
    sentences: list[str] = []
    for what, cost, control, over in causes:
        explained = "" if sentences else MARGIN_IN_WORDS
        beside = "less" if over is None else "clearly less"
        is_less = cost.after > control[1] if over is None else over.is_above_zero
        sentences.append(
            f"{what} costs {cost.after:+.2f} nats of margin{explained}, {cost.before:+.2f} before; "
            f"{_chance(cost.difference)} ({_interval(cost.difference, level)}); doing the same to random regions of "
            f"its size costs {control[1]:+.2f} ({beside if is_less else f'not {beside}'}), {control[0]:+.2f} before."
        )
    return sentences


def _chance(interval: Interval) -> str:
    return BEYOND_CHANCE if _is_clear(interval) else COULD_BE_CHANCE


def _interval(interval: Interval, level: float, *, percent: bool = False) -> str:
    low, high = (_percent(value, signed=True) if percent else f"{value:+.2f}" for value in interval[1:])
    return f"{_percent(level)} interval {low} to {high}"


def _percent(share: float, *, signed: bool = False) -> str:
    text = f"{100 * share:{'+' if signed else ''}.1f}".removesuffix(".0")
    return f"{text} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- what was required


def requirement(text: str, groups: Iterable[str]) -> dict[str, str]:
    """Read ``--require``: group → the verdict that it must have.

    "corrected" alone requires it of every group, but "kept" of retention and neighbour; "NAME=VERDICT" of one group.
    Several are joined by commas, and a named group overrides "corrected". For the groups pearl, retention:
    "corrected" is {"pearl": "corrected", "retention": "kept"}, "pearl=corrected" is {"pearl": "corrected"}.

    Raises ValueError for an empty text, an unknown group or verdict, and a verdict that this group can never have.
    """
    names = list(groups)
    overall, named = {}, {}
    for part in _parts(text):
        if part == CORRECTED:
            overall = {name: KEPT if name in KEPT_SHARE else CORRECTED for name in names}
            continue
        name, equals, claim = (piece.strip() for piece in part.rpartition("="))
        possible = [
            one for one in VERDICTS if one == TOO_FEW or (one in OF_KEPT_GROUPS) == (name in KEPT_SHARE)
        ]
        if not equals or name not in names or claim not in possible:
            raise ValueError(_not_required(text, part, name if equals else None, names, possible))
        named[name] = claim
    return overall | named


def _parts(text: str) -> list[str]:
    """The parts between commas; some verdicts contain a comma: "attention moved, answers did not"."""
    parts: list[str] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if parts and piece and "=" in parts[-1] and f"{parts[-1].rpartition('=')[2]}, {piece}" in VERDICTS:
            parts[-1] += f", {piece}"
        else:
            parts.append(piece)
    return parts


def _not_required(
    text: str, part: str, name: str | None, names: Sequence[str], possible: Sequence[str]
) -> str:
    forms = 'expected "corrected", or GROUP=VERDICT, several with commas'
    if name is None:
        fault = f"found {part!r}" if part else "found an empty part"
    elif name not in names:
        fault = f"found no group {name!r}"
    else:
        listed = ", ".join(f'"{one}"' for one in possible if one != TOO_FEW)
        return f"--require {text!r}: found {part!r}; expected for the group {name!r} one of {listed}"
    return f"--require {text!r}: {fault}; {forms}; the groups are {', '.join(names)}"


def shortfalls(required: Mapping[str, str], comparison_groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each group whose verdict is not the required one; none where all requirements are met.

    ``required`` is from ``requirement``, ``comparison_groups`` is "groups" of comparison.json.
    """
    sentences = []
    for name, claim in required.items():
        group = comparison_groups.get(name)
        if group is None:
            sentences.append(f'{name}: must be "{claim}", and is not in the comparison.')
        elif group["verdict"] != claim:
            reason = next(iter(group.get("reasons", ())), "")
            sentences.append(f'{name}: must be "{claim}", is "{group["verdict"]}". {reason}'.rstrip())
    return sentences
