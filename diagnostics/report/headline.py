"""The report's first words: what was wrong, is it mended, and why, in the words of the user's own questions.

"because it looks at" is said of the verdict "corrected" alone, whose six legs carry it.
"""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diagnostics.comparison.verdicts import (
    ANSWERS_ALONE,
    ATTENTION_ALONE,
    CORRECTED,
    DISAGREE,
    FROM_WORDS,
    GUARD_BROKE,
    KEPT,
    LEFT,
    LOST,
    NO_ANSWERS,
    NO_ATTENTION,
    NO_CAUSE,
    NO_PICTURE,
    NOT_BY_LOOKING,
    NOT_HELD_OUT,
    NOT_MEDIATED,
    NOT_MOVED,
    OTHER_CAUSE,
    TOO_FEW,
    TOO_FEW_RIGHT,
    UNGUARDED,
    WORSE,
)
from diagnostics.records.probes import KEPT_SHARE, as_asked
from diagnostics.report.languages import as_written
from finetune.percent import percent_words

SAME_MODEL = "Before and now are the same model: nothing can have changed."
SAME_NATS = 0.05
"""Margins of one model, measured twice, are nearer than this: kernels may add in another order."""
GOOD = (CORRECTED, NOT_BY_LOOKING, KEPT)
BAD = (*LOST.values(), WORSE, GUARD_BROKE, FROM_WORDS)
"""Verdicts by the colour and mark of their pill; those that are neither stay amber."""
MARKS = {"good": "✓", "bad": "✗", "": "–"}
MANY_QUESTIONS = 12
"""With more different questions than this, the one quoted is an example."""

CLAIMS = {
    CORRECTED: "It now answers {question} correctly {count}, because it looks at {region}.",
    NOT_BY_LOOKING: "It now answers {question} correctly {count}, but not by looking: its attention carries too little "
    "of the change.",
    NOT_MEDIATED: "It now answers {question} correctly {count}, looks at {region} and needs it; whether looking "
    "carries the change was not measured.",
    UNGUARDED: "It now answers {question} correctly {count}, looks at {region} and needs it; whether it now says so "
    "of everything was not tested.",
    DISAGREE: "It rates the right answer to {question} higher {count}, but what it says does not agree.",
    TOO_FEW_RIGHT: "It answers {question} correctly more often {count}, and still too seldom.",
    FROM_WORDS: "It now answers {question} correctly {count}, but from the words: the picture matters too little.",
    GUARD_BROKE: "It now answers {question} correctly {count}, at the price of answers that had to stay right.",
    ANSWERS_ALONE: "It now answers {question} correctly {count}, though its attention did not move to {region}.",
    LEFT: "It now answers {question} correctly {count}, though its attention left {region}.",
    ATTENTION_ALONE: "Its attention moved, but it answers {question} no better {count}.",
    NOT_MOVED: "Its answers to {question} did not change beyond chance {count}.",
    WORSE: "It answers {question} worse than before {count}.",
    NO_PICTURE: "It now answers {question} correctly {count}; whether it needs the picture was not measured.",
    NO_ATTENTION: "It now answers {question} correctly {count}; where it looks was not judged.",
    NO_CAUSE: "It now answers {question} correctly {count} and looks more at {region}; whether it needs that was not "
    "measured.",
    OTHER_CAUSE: "It now answers {question} correctly {count} and looks more at {region}, but its answers do not "
    "depend on that enough.",
    NO_ANSWERS: "Whether it answers {question} correctly was not measured: no wrong answer to compare with is named.",
    TOO_FEW: "There are too few pictures to judge {question} {count}.",
    NOT_HELD_OUT: "Pictures that judge {question} are in its training data {count}: this shows no correction.",
}
"""Verdict → what it says to someone who has read nothing else; those of groups that must be kept stand below."""
ALL_KEPT = "What had to stay right stayed right {count}."
ONE_LOST = "It lost answers that had to stay right, in {group} {count}."
EXCHANGED = "Of what had to stay right as much is right as before {count}, but not the same: {lost} answers were lost."
EXCHANGED_ON_PICTURES = (
    "Of what had to stay right as much is right as before {count}, but not the same: "
    "on {lost} pictures answers were lost."
)
MANY_LOST = 0.1
"""Share of the pictures right before that, once lost, is named, even where as many others became right."""


class Claim(NamedTuple):
    """One sentence of the headline, as HTML, and its kind: "good", "bad" or ""."""

    kind: str
    words: str


def headline(comparison: Mapping[str, Any]) -> list[Claim]:
    """A sentence for each group that should change, in file order, then one for what had to stay right.

    Raises KeyError for a verdict that has no words here.
    """
    if same_model(comparison):
        return [Claim("", SAME_MODEL)]
    groups = comparison["groups"]
    changed = [name for name in groups if name not in KEPT_SHARE]
    return [*(_claim(name, comparison) for name in changed), *_kept(groups)]


def headline_html(claims: Sequence[Claim]) -> str:
    """The sentences, each behind its mark."""
    return "".join(
        f'<span class="claim"><span class="sign {one.kind}" aria-hidden="true">{MARKS[one.kind]}</span>'
        f"<span>{one.words}</span></span>"
        for one in claims
    )


def same_model(comparison: Mapping[str, Any]) -> bool:
    """Are both sides one model: one name, and no probe answered differently?

    Steps are not asked: models of ``compare`` have their places there. And a name alone does not tell: "base" is any
    run's, and a folder may have got other weights between two measurements.
    """
    before, after = (_place(str(comparison[side]["model"])) for side in ("before", "after"))
    return before == after and not any(map(_differs, comparison["probes"]))


def _place(model: str) -> str:
    return os.path.abspath(os.path.expanduser(model))


def _differs(probe: Mapping[str, Any]) -> bool:
    said, margins = (probe.get(name, {}).values() for name in ("said", "margin_nats"))
    apart = [margin for margin in margins if margin is not None]
    return len({*said}) > 1 or (len(apart) > 1 and abs(apart[0] - apart[1]) > SAME_NATS)


def kind_of(verdict: str) -> str:
    """ "good", "bad" or ""."""
    return "good" if verdict in GOOD else "bad" if verdict in BAD else ""


def count_words(groups: Sequence[Mapping[str, Any]]) -> str:
    """Right answers before and after of these groups together: "(0 → 40 of 40)"; "" where none has a foil.

    In per cent where probes share pictures, "(0 % → 92.7 %, by picture 0 % → 64 %)": both are judged. Of a group that
    got worse by what it says, "(98 % → 60 % of what it says, by picture)".
    """
    if len(groups) == 1 and (spoken := _speech_words(groups[0])):
        return spoken
    scored = [group for group in groups if group["accuracy"] is not None]
    if not scored:
        return ""
    total = sum(_scored(group) for group in scored)
    sums = [sum(_right(group)[side] * _scored(group) for group in scored) for side in ("before", "after")]
    whole = not any(map(_shares_pictures, scored))
    if whole and all(abs(one - round(one)) < 1e-6 for one in sums):
        return f"({round(sums[0])} → {round(sums[1])} of {total})"
    words, of_pictures = _change_words(sums, total), _by_picture_words(scored)
    return f"({words}, by picture {of_pictures})" if of_pictures not in ("", words) else f"({words})"


def _speech_words(group: Mapping[str, Any]) -> str:
    """Of a group that got worse by its generated answers more than by margin, how far these fell; else ""."""
    lost = group.get("speech_lost")
    worse = (*LOST.values(), WORSE)
    if group["verdict"] not in worse or lost is None or _change(lost) >= _change_by_margin(group):
        return ""
    which = ", by picture" if lost["by_picture"] else ""
    return f"({percent_words(lost['before'])} → {percent_words(lost['after'])} of what it says{which})"


def _by_picture_words(scored: Sequence[Mapping[str, Any]]) -> str:
    """The same with each picture counted once; "" in files of earlier versions, and of generated answers."""
    if any(
        _right(group) is not group["accuracy"] or "pictures_right" not in group["accuracy"]
        for group in scored
    ):
        return ""
    sums = [
        sum(group["accuracy"]["pictures_right"][side] * _pictures(group) for group in scored)
        for side in ("before", "after")
    ]
    return _change_words(sums, sum(map(_pictures, scored)))


def _change_words(sums: Sequence[float], of: int) -> str:
    before, after = (percent_words(one / of) for one in sums)
    return f"{before} → {after}"


def _scored(group: Mapping[str, Any]) -> int:
    """Probes with a foil; files of earlier versions do not say how many."""
    return int(group["accuracy"].get("probes", group["probes"]))


def _pictures(group: Mapping[str, Any]) -> int:
    """Pictures of the probes with a foil."""
    return int(group["accuracy"].get("images", group.get("images", group["probes"])))


def _shares_pictures(group: Mapping[str, Any]) -> bool:
    """Do several of the probes with a foil show one picture?"""
    return _pictures(group) != _scored(group)


def _pictures_right_before(group: Mapping[str, Any]) -> float:
    """Pictures right before, each by the share of its answers that were: what "lost", which counts pictures, is part
    of. Files of earlier versions have the share of answers alone."""
    accuracy = group["accuracy"]
    return float(accuracy.get("pictures_right", accuracy)["before"]) * _pictures(group)


def _right(group: Mapping[str, Any]) -> Mapping[str, float]:
    """Shares of right answers, by margin; by what was generated where a group was lost by that alone, in files that do
    not say more of it."""
    accuracy, said = group["accuracy"], group.get("said_the_answer")
    if group["verdict"] not in LOST.values() or said is None or "speech_lost" in group:
        return accuracy
    return said if _change(said) < _change_by_margin(group) else accuracy


def _change_by_margin(group: Mapping[str, Any]) -> float:
    """The lower of that of probes and that of pictures."""
    accuracy = group["accuracy"]
    return min(map(_change, (accuracy, accuracy.get("pictures_right", accuracy))))


def _change(right: Mapping[str, Any]) -> float:
    return float(right["after"]) - float(right["before"])


def _claim(name: str, comparison: Mapping[str, Any]) -> Claim:
    group = comparison["groups"][name]
    members = [probe for probe in comparison["probes"] if probe["group"] == name]
    words = CLAIMS[group["verdict"]].format(
        question=_question(members), count=count_words([group]), region=_region(members)
    )
    if group["verdict"] in (NOT_MOVED, ATTENTION_ALONE):
        words += _otherwise(group, comparison.get("thresholds", {}).get("disagreement", 1.0))
    return Claim(kind_of(group["verdict"]), words.replace(" .", ".").replace(" ,", ",").replace(" ;", ";"))


def _otherwise(group: Mapping[str, Any], most: float) -> str:
    """A sentence on what it says, of a group whose margins show no change, where that changed by more than this."""
    said = group.get("said_the_answer")
    if said is None or abs(_change(said)) <= most + 1e-9:
        return ""
    before, after = (percent_words(said[side]) for side in ("before", "after"))
    return f" Of what it says {after} is right, {before} before."


def _kept(groups: Mapping[str, Mapping[str, Any]]) -> Iterator[Claim]:
    judged = {name: group for name, group in groups.items() if name in KEPT_SHARE}
    kept = [group for group in judged.values() if group["verdict"] == KEPT]
    for name, group in judged.items():
        if group["verdict"] in LOST.values():
            yield Claim("bad", ONE_LOST.format(group=as_written(name), count=count_words([group])))
    if kept and len(kept) == len(judged):
        lost = sum(group["accuracy"].get("lost", 0) for group in kept)
        before = sum(_pictures_right_before(group) for group in kept)
        if lost > MANY_LOST * before:
            words = EXCHANGED_ON_PICTURES if any(map(_shares_pictures, kept)) else EXCHANGED
            yield Claim("", words.format(count=count_words(kept), lost=lost))
        else:
            yield Claim("good", ALL_KEPT.format(count=count_words(kept)))


def _question(members: Sequence[Mapping[str, Any]]) -> str:
    """The question asked most often, for each reader in a script of theirs where there is one."""
    asked = Counter(as_asked(probe["question"]) for probe in members)
    most = [question for question, _ in asked.most_common()]
    latin = next((one for one in most if one.isascii()), most[0])
    chinese = next((one for one in most if any("一" <= sign <= "鿿" for sign in one)), most[0])
    like = "questions like " if len(asked) > MANY_QUESTIONS else ""
    quoted = (
        f'<i lang="en">“{html.escape(latin)}”</i><i lang="zh-CN">“{html.escape(chinese)}”</i>'
        if latin != chinese
        else f"“{html.escape(latin)}”"
    )
    return f'{like}<b class="asked" translate="no">{quoted}</b>'


def _region(members: Sequence[Mapping[str, Any]]) -> str:
    named = Counter(probe["region"] for probe in members if probe["region"] is not None)
    if len(named) == 1:
        return f"the {as_written(next(iter(named)))}"
    return "the right place"
