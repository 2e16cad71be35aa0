"""Cards: what is logged as words and tables, whichever tracker shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.legs.shown import FAILS, HOLDS, LEGEND, shown_legs
from diagnostics.comparison.maps import Outcome
from diagnostics.comparison.pairs import ProbePair
from diagnostics.measures.answers import says
from diagnostics.records.probes import as_asked
from diagnostics.records.record import AttentionRecord


class Card(NamedTuple):
    """Paragraphs around a table.

    above, below   Markdown, a paragraph each
    columns, rows  plain text; no table without rows
    """

    above: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    below: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The whole card as Markdown."""
        table = []
        if self.rows:
            head = "".join(f" {column} |" if column else " |" for column in self.columns)
            table = [f"|{head}", "|" + "---|" * len(self.columns)]
            table += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return "\n\n".join([*self.above, *(["\n".join(table)] if table else []), *self.below])


def says_right(outcome: Outcome, spellings: Sequence[str], foil: str | None) -> bool | None:
    """Is the generated answer right: its box where that is asked for, else its words? None if none was generated.

    The margin may tell another story: a model may rate the right answer higher, and say something else.
    """
    if not outcome.said:
        return None
    return says(outcome.said, spellings, foil) if outcome.box is None else outcome.box.is_right


def probe_card(pair: ProbePair) -> Card:
    """The question, the right answer, and the model's answers at the start and now, marked by what they say."""
    probe = pair.probe
    sides = (("base", pair.before), ("now", pair.after))
    words = [f"**{escaped(as_asked(probe.question))}**", f"right: {escaped(probe.answer)}"]
    words += [f"wrong: {escaped(probe.foil)}"] if probe.foil is not None else []
    return Card(
        above=tuple(words),
        columns=("", "answer", "margin, nats"),
        rows=tuple(
            (
                f"{name} (step {record.step})",
                _answer_words(pair, record),
                "no foil" if record.scores.margin_nats is None else f"{record.scores.margin_nats:+.2f}",
            )
            for name, record in sides
        ),
        below=() if pair.region is None else (f"judged on the region *{escaped(pair.region)}*",),
    )


def verdict_card(group: Mapping[str, Any]) -> Card:
    """The verdict and the legs it rests on, one row each; its reasons where it rests on none.

    group   one of "groups" of comparison.json
    """
    claim, legs = f"**{escaped(group['verdict'])}**", shown_legs(group)
    if not legs:
        return Card((claim, "\n".join(f"- {escaped(reason)}" for reason in group["reasons"])))
    return Card(
        above=(claim,),
        columns=("leg", "value", "interval", "at least", ""),
        rows=tuple(
            (
                f"{leg.mark} {leg.name} {leg.chinese}",
                f"{leg.value} {leg.unit}" if leg.value else "",
                leg.interval,
                leg.threshold if leg.value else "",
                leg.reason,
            )
            for leg in legs
        ),
        below=(LEGEND,),
    )


def escaped(text: str) -> str:
    """Text as Markdown shows it unchanged wherever it stands: one line, with Markdown's characters escaped."""
    return _escaped(text, r"\`*_{}[]()#+-!|<>")


def _cell(text: str) -> str:
    """Text within a table, where no line begins."""
    return _escaped(text, r"\`*_[]|<>")


def _escaped(text: str, marks: str) -> str:
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in marks else c for c in flat)


def _answer_words(pair: ProbePair, record: AttentionRecord) -> str:
    outcome = outcome_with_box(pair.probe, pair.region, record)
    right = says_right(outcome, pair.probe.spellings, pair.probe.foil)
    return "(not generated)" if right is None else f"{HOLDS if right else FAILS} {outcome.said}"
