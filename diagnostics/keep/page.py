"""The study as one page, in the look of the comparison's report."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from diagnostics.comparison.legs.leg import whole_percent as percent
from diagnostics.drawing.svg_charts import Line, line_chart
from diagnostics.keep.judging import ALL, RIVALS, Cell, Gain, Judgement
from diagnostics.keep.rankings import LEAST, ORDERS
from diagnostics.keep.summary import (
    Study,
    advice,
    capital,
    interval,
    points,
    rival_words,
    rows_of,
    sentence,
)
from diagnostics.report.languages import SWITCH_PLACE, Language, as_written, in_both_languages
from diagnostics.report.style import style_sheet

STYLE = """
.answer { margin: 18px 0 0; font-size: 18px; max-width: 84ch; }
.wide { overflow-x: auto; }
.wide table { border-collapse: collapse; width: 100%; font-size: 14px; }
.wide th { text-align: left; font-weight: 560; color: var(--soft); white-space: nowrap; }
.wide th, .verdict .wide td { padding: 3px 10px 3px 0; white-space: nowrap; }
.wide tr.first td { border-top: 1px solid var(--line); padding-top: 6px; }
.wide tr.won td { color: var(--good); font-weight: 620; }
.verdicts.keep { grid-template-columns: minmax(0, 1fr); }
.keep .charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
"""
READING = """Each probe is asked again with a share of its image tokens; the others are out of every token's sight in
all language layers, with FastV in those after its layer. Positions stay as they were. Of a picture padded to a square
the tokens of its margins are dropped wherever anything is. Right: log p of the right answer, through the end of the
turn, is above that of the wrong one, by a margin in nats; no answer is generated. Intervals: 95 %, drawn by picture.
Differences are of the same probes, and their p is adjusted for every order by attention and every share (Holm). Still
right: of the answers that are right with all image tokens. Region: which part of the named region's cells is among
those kept. The first image token often gathers attention without showing anything (a sink), so orders by attention
are also judged with it kept in any case and dropped in any case."""


def keep_html(study: Study, *, opens: Language = "en") -> str:
    """The page as one HTML text, in both languages, that needs no network and no other file.

    opens   the language that it shows first
    """
    title = sentence(study)
    parts = [
        SWITCH_PLACE,
        f"<h1>{_e(title)}</h1>",
        f'<p class="lead">{as_written(study.model)}. Dropped are {_e(study.drops)}. '
        f"The key layer is {study.key_layer}: {_e(study.why_layer)}</p>",
        f'<p class="answer">{_e(advice(study))}</p>',
        *(f'<p class="warning" role="alert">{_e(one)}</p>' for one in _notes(study)),
        "<h2>Right answers against what is kept</h2>",
        '<p class="note">From all image tokens, at the right, to the fewest. '
        "Numbers and intervals stand below.</p>",
        f'<section class="keep"><div class="charts">{"".join(_chart(study, one) for one in study.judgements)}</div>',
        "</section><h2>Numbers</h2>",
        f'<p class="note">{_e(" ".join(READING.split()))}</p><section class="verdicts keep">',
        *(_card(study, one) for one in study.judgements),
        "</section>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{_e(title)}</title><style>{style_sheet()}{STYLE}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )
    return in_both_languages(page, opens)


def _notes(study: Study) -> Iterator[str]:
    """What was not measured."""
    if study.left_out:
        yield f"{study.left_out} probes have no foil or no picture and are left out."
    whole = study.judgements[0]
    for name in ORDERS:
        if whole.cells[name] is None:
            yield f"{capital(study.label(name))}: not measured, {study.why_not_measured(name)}."


def _scope(judged: Judgement) -> str:
    """As HTML: the name of a group stays as it is."""
    return judged.scope if judged.scope == ALL else as_written(judged.scope)


def _chart(study: Study, judged: Judgement) -> str:
    shares = sorted(share for share in study.shares if share < 1)
    lines = []
    for name in ORDERS:
        cells = judged.cells[name]
        if cells is not None:
            values = [*(cells[share].right.mean for share in shares), judged.right.mean]
            lines.append(Line(study.short_label(name), values, faint=name == LEAST))
    return line_chart(
        _scope(judged),
        lines,
        [*(share * 100 for share in shares), 100.0],
        unit="% kept",
        ends=(0.0, 1.0),
        as_percent=True,
    )


def _card(study: Study, judged: Judgement) -> str:
    heads = (
        "order",
        "tokens kept",
        "right",
        *(f"minus {rival_words(one)}" for one in RIVALS),
        "still right",
        "margin, nats",
    )
    heads += ("region", "first kept, dropped")
    rows, before = [], ""
    for name, share, cell in rows_of(study, judged):
        kind = "won" if cell.wins else "first" if name != before else ""
        rows.append(f'<tr class="{kind}">{_row(study, name if name != before else "", share, cell)}</tr>')
        before = name
    few = "" if judged.measured else '<span class="pill">too few pictures to recommend anything</span>'
    return (
        f'<article class="verdict"><header><h3>{_scope(judged)}</h3><span class="soft">{judged.probes} probes, '
        f"{interval(judged.right)} right with all tokens</span>{few}</header>"
        f'<div class="wide"><table><tr>{_cells(heads, "th")}</tr>{"".join(rows)}</table></div></article>'
    )


def _row(study: Study, name: str, share: float, cell: Cell) -> str:
    first = cell.first_token
    return _cells(
        (
            study.label(name) if name else "",
            percent(share),
            interval(cell.right),
            *(_gain(cell.minus.get(rival)) for rival in RIVALS),
            "–" if cell.still_right is None else percent(cell.still_right),
            f"{cell.margin_nats:+.2f}",
            "–" if cell.region_kept is None else percent(cell.region_kept),
            "–" if first is None else f"{percent(first[0])}, {percent(first[1])}",
        ),
        "td",
    )


def _gain(gain: Gain | None) -> str:
    return "–" if gain is None else f"{points(gain.difference)} p {gain.p:.3f}"


def _cells(texts: Sequence[str], kind: str) -> str:
    return "".join(f"<{kind}>{_e(one)}</{kind}>" for one in texts)


def _e(text: str) -> str:
    return html.escape(str(text))
