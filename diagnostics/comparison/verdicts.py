"""The verdict on a group of probes, from its legs, and whether it meets ``--require``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diagnostics.comparison.legs.answers import FEWER, MORE, Answers, keeps
from diagnostics.comparison.legs.attention import AWAY, TO
from diagnostics.comparison.legs.leg import Leg, count, percent
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import probes_needed
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probes import KEPT_SHARE, NEIGHBOUR, RETENTION, Probe, groups_of

CORRECTED, KEPT = "corrected", "kept"
NOT_BY_LOOKING, UNGUARDED = "corrected, not by looking", "corrected, unguarded"
NOT_MEDIATED = "corrected, mediation not measured"
NOT_MOVED, TOO_FEW, WORSE = "it did not move", "too few probes", "answers got worse"
DISAGREE, TOO_FEW_RIGHT = "margin and answer disagree", "answers changed, too few right"
FROM_WORDS, GUARD_BROKE = "it answers from the words", "answers changed, a guard broke"
ANSWERS_ALONE, ATTENTION_ALONE = "answers changed, attention did not", "attention moved, answers did not"
LEFT = "answers changed, attention left the region"
NO_ATTENTION, NO_ANSWERS = "answers changed, attention not measured", "answers not measured"
NO_PICTURE = "answers changed, picture not measured"
NO_CAUSE = "answers and attention changed, cause not measured"
OTHER_CAUSE = "answers and attention changed, cause does not agree"
NOT_HELD_OUT = "not held out"
LOST = {RETENTION: "forgot", NEIGHBOUR: "broke a neighbour"}
VERDICTS = (
    *(CORRECTED, NOT_BY_LOOKING, UNGUARDED, NOT_MEDIATED, DISAGREE, TOO_FEW_RIGHT, FROM_WORDS, GUARD_BROKE),
    *(
        ANSWERS_ALONE,
        LEFT,
        ATTENTION_ALONE,
        NOT_MOVED,
        WORSE,
        NO_PICTURE,
        NO_ATTENTION,
        NO_CAUSE,
        OTHER_CAUSE,
    ),
    *(NO_ANSWERS, KEPT, *LOST.values(), TOO_FEW, NOT_HELD_OUT),
)
OF_KEPT_GROUPS = (KEPT, *LOST.values())  # verdicts only of retention and neighbour
OF_ANY_GROUP = (TOO_FEW, NOT_HELD_OUT)  # of these too; nobody would require them


class Legs(NamedTuple):
    """The six legs of "corrected", in the order of comparison.json."""

    answers: Leg
    picture: Leg
    attention: Leg
    cause: Leg
    mediation: Leg
    guards: Leg

    def json(self) -> dict[str, Any]:
        """ "legs" in comparison.json."""
        return {name: leg.json() for name, leg in self._asdict().items()}


@dataclass(frozen=True)
class Evidence:
    """The evidence for a verdict.

    probes       those with a foil: the others carry no evidence about answers
    images       their distinct pictures: probes with the same picture count once
    answers      None if no probe has a foil
    moved        the significant move of attention: ``TO``, ``AWAY``, ``ELSEWHERE`` or None
    effect_size  of the claimed change (attention's, else the margin's), standard deviations
    trained      which of its probes' pictures are in the training data, as ``trained_words`` says; "": none
    """

    group: str
    probes: int
    images: int
    answers: Answers | None
    moved: str | None
    legs: Legs
    effect_size: float | None = None
    trained: str = ""


class Verdict(NamedTuple):
    """A claim in a few words, and one sentence for each piece of evidence."""

    verdict: str
    reasons: tuple[str, ...]


def verdict(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Judge a group: "corrected" only if all six legs hold.

    The first leg that is missing or fails determines the verdict: answers, guards and picture before attention, cause
    and mediation. Groups named ``retention`` and ``neighbour`` are judged by whether they were kept: accuracy after of
    at least 97 % or 95 % of that before, of probes and with each picture counted once, and generated answers no less
    right than before beyond ``disagreement``.
    Fewer than 20 probes, or 20 pictures, are too few, and so are those of which none was right before, by margin or as
    generated. Where a picture
    is in the training data, only a loss is claimed: what was trained on shows nothing else.
    """
    if evidence.answers is None:
        return Verdict(NO_ANSWERS, (evidence.legs.answers.reason,))
    if min(evidence.probes, evidence.images) < thresholds.probes:
        return Verdict(TOO_FEW, (_too_few_reason(evidence, thresholds),))
    if evidence.group in KEPT_SHARE:
        found = _kept(evidence.group, evidence.answers)
    else:
        found = Verdict(_claim(evidence, evidence.answers), tuple(leg.reason for leg in evidence.legs))
    if evidence.trained and found.verdict not in (TOO_FEW, WORSE, *LOST.values()):
        return Verdict(NOT_HELD_OUT, (_not_held_out_reason(evidence.trained),))
    return found


def _claim(evidence: Evidence, answers: Answers) -> str:
    legs = evidence.legs
    if answers.change == FEWER:
        return WORSE
    if answers.change != MORE:
        return ATTENTION_ALONE if evidence.moved else NOT_MOVED
    first = (
        (answers.disagrees, DISAGREE),
        (not answers.enough, TOO_FEW_RIGHT),
        (legs.guards.holds is False, GUARD_BROKE),
        (legs.picture.holds is False, FROM_WORDS),
        (evidence.moved == AWAY, LEFT),
        (legs.attention.holds is None, NO_ATTENTION),
        (evidence.moved != TO, ANSWERS_ALONE),
        (legs.cause.holds is None, NO_CAUSE),
        (legs.cause.holds is False, OTHER_CAUSE),
        (legs.picture.holds is None, NO_PICTURE),
        (legs.mediation.holds is False, NOT_BY_LOOKING),
        (legs.mediation.holds is None, NOT_MEDIATED),
        (legs.guards.holds is None, UNGUARDED),
    )
    return next((claim for applies, claim in first if applies), CORRECTED)


def _kept(group: str, answers: Answers) -> Verdict:
    """Kept or lost, by the share of the accuracy before, and whether a single probe would change that."""
    if not answers.before and answers.speech_lost is None:
        return Verdict(TOO_FEW, ("No probe was answered correctly before, so there is nothing to keep.",))
    right = f"{percent(answers.after)} of the probes are answered correctly, {percent(answers.before)} before"
    fell = [] if keeps(group, answers.before, answers.after) else ["by answers"]
    more, which = "", ""
    if answers.images == answers.probes:
        more = _one_more(group, answers)
    else:
        right += (
            f", with each picture counted once {percent(answers.pictures_after)}, {percent(answers.pictures_before)} "
            "before"
        )
        fell += [] if keeps(group, answers.pictures_before, answers.pictures_after) else ["by picture"]
        which = f" {fell[0] if len(fell) == 1 else 'by both'}"
    if not fell and answers.speech_lost is not None:
        more = f"; but {answers.speech_lost.words}"
    reason = (
        f"{right}: {'less than' if fell else 'at least'} {percent(KEPT_SHARE[group])} of the accuracy before{which}"
        f"{more}."
    )
    return Verdict(KEPT if answers.keeps(group) else LOST[group], (reason,))


def _one_more(group: str, answers: Answers) -> str:
    """Whether a single probe would change that a group was kept, where no probes share a picture; else ""."""
    before, after, probes = answers.before, answers.after, answers.probes
    kept = keeps(group, before, after)
    if kept and not keeps(group, before, after - 1 / probes):
        return f"; with {probes} probes, one more wrong answer would fall below that line"
    if not kept and keeps(group, before, after + 1 / probes):
        return f"; with {probes} probes, one more right answer would reach that line"
    return ""


def lost(group: str, answers: Answers | None) -> Verdict | None:
    """The verdict on a group that should have been kept but was lost, even with few probes; else None."""
    if answers is None or group not in KEPT_SHARE or answers.keeps(group):
        return None
    if not answers.before and answers.speech_lost is None:
        return None
    return _kept(group, answers)


def _not_held_out_reason(trained: str) -> str:
    return f"{trained[0].upper()}{trained[1:]}: what was trained on says nothing of other pictures."


def _too_few_reason(evidence: Evidence, thresholds: Thresholds) -> str:
    images, needed = evidence.images, probes_needed(evidence.effect_size)
    shared = "" if images == evidence.probes else f" on {count(images, 'picture')}"
    enough = f"at least {thresholds.probes} probes on as many different pictures are needed"
    if needed is not None:
        enough += f", and about {max(needed, thresholds.probes)} for a change as large and as consistent as this one"
    return f"{count(evidence.probes, 'probe')}{shared} cannot distinguish a change from chance; {enough}."


# ---------------------------------------------------------------- what was required


def never_met(probes: Sequence[Probe], thresholds: Thresholds | None = None) -> list[str]:
    """One sentence for each group that no training can make "corrected" or "kept": its probes do not allow it."""
    found = []
    for name, members in groups_of(probes).items():
        asked = [probe for probe in members if probe.foil is not None]
        placed = asked if name in KEPT_SHARE else [probe for probe in asked if probe.regions]
        pictures = len({picture_mark(probe.images[0]) for probe in placed})
        needs = "a foil" if name in KEPT_SHARE else "a foil and a region"
        least = (thresholds or Thresholds()).probes
        if pictures < least:
            found.append(
                f"{name}: {count(len(placed), 'probe')} with {needs}, on {count(pictures, 'picture')}; at least "
                f"{least} on as many different pictures are needed."
            )
    return found


def requirement(text: str, groups: Iterable[str]) -> dict[str, str]:
    """Parse ``--require``: group → the verdict it must have.

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
            one for one in VERDICTS if one in OF_ANY_GROUP or (one in OF_KEPT_GROUPS) == (name in KEPT_SHARE)
        ]
        if not equals or name not in names or claim not in possible:
            raise ValueError(_not_required(text, part, name if equals else None, names, possible))
        named[name] = claim
    return overall | named


def _parts(text: str) -> list[str]:
    """The parts between commas; verdicts may contain a comma: "attention moved, answers did not"."""
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
        listed = ", ".join(f'"{one}"' for one in possible if one not in OF_ANY_GROUP)
        return f"--require {text!r}: found {part!r}; expected for the group {name!r} one of {listed}"
    return f"--require {text!r}: {fault}; {forms}; the groups are {', '.join(names)}"


def shortfalls(
    required: Mapping[str, str],
    comparison_groups: Mapping[str, Mapping[str, Any]],
    *,
    as_good: Collection[str] = (),
) -> list[str]:
    """One sentence for each group whose verdict is not the required one; none if all requirements are met.

    required          from ``requirement``
    comparison_groups "groups" of comparison.json
    as_good           verdicts accepted instead of "corrected"
    """
    sentences = []
    for name, claim in required.items():
        group = comparison_groups.get(name)
        if group is None:
            sentences.append(f'{name}: must be "{claim}", and is not in the comparison.')
        elif group["verdict"] != claim and not (claim == CORRECTED and group["verdict"] in as_good):
            reason = _deciding_reason(group)
            sentences.append(f'{name}: must be "{claim}", is "{group["verdict"]}". {reason}'.rstrip())
    return sentences


def _deciding_reason(group: Mapping[str, Any]) -> str:
    """The reason of the first leg that does not hold, else the first reason; also where no leg decided."""
    legs = {} if group["verdict"] in OF_ANY_GROUP else group.get("legs") or {}
    failing = [leg["reason"] for leg in legs.values() if leg["holds"] is not True]
    return next(iter([*failing, *group.get("reasons", ())]), "")


def verdict_words(groups: Mapping[str, Any]) -> str:
    """The verdicts in one line for the terminal: {"spheres": corrected, "retention": kept} → "spheres: corrected.
    retention: kept."."""
    by_verdict: dict[str, list[str]] = {}
    for name, group in groups.items():
        by_verdict.setdefault(group["verdict"], []).append(name)
    return " ".join(f"{' and '.join(names)}: {claim}." for claim, names in by_verdict.items())
