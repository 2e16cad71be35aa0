"""The study in words: a sentence, what to use, a table for the terminal, and JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diagnostics.comparison.legs.leg import whole_percent as percent
from diagnostics.keep.asking import ProbeAnswers
from diagnostics.keep.judging import Cell, Gain, Judgement
from diagnostics.keep.rankings import (
    BY_ATTENTION,
    DIVPRUNE,
    FASTV,
    LEAST,
    MAP,
    ORDERS,
    RANDOM,
    REGION,
    TOWER,
)
from diagnostics.measures.statistics import Interval
from diagnostics.records.probes import ENOUGH_PROBES

VERSION = 1
Json = dict[str, Any]


class Study(NamedTuple):
    """What was asked and what came of it.

    why_layer      why this key layer
    left_out       probes without a foil or a picture
    drops          what is dropped, in words
    why_no_tower   why the tower's order was not measured; "" if it was
    judgements     all probes, then the groups
    """

    model: str
    probes_file: str
    key_layer: int
    why_layer: str
    fastv_layer: int
    draws: int
    shares: tuple[float, ...]
    left_out: int
    drops: str
    why_no_tower: str
    judgements: tuple[Judgement, ...]

    def label(self, name: str) -> str:
        """An order's name for people."""
        return {
            MAP: f"layer {self.key_layer}'s map",
            FASTV: f"FastV, after layer {self.fastv_layer}",
            TOWER: "received in the tower",
            DIVPRUNE: "DivPrune",
            RANDOM: f"random, {self.draws} draws",
            REGION: "the region first",
            LEAST: "least looked at first",
        }[name]

    def short_label(self, name: str) -> str:
        """The same beside a curve."""
        short = {
            FASTV: "FastV",
            TOWER: "tower",
            RANDOM: "random",
            REGION: "region first",
            LEAST: "least first",
        }
        return short.get(name, self.label(name))

    def why_not_measured(self, name: str) -> str:
        """Why an order has no numbers in a scope."""
        if name == REGION:
            return "no probe names a region"
        return self.why_no_tower


def sentence(study: Study) -> str:
    """The smallest share in one line: "11 % of the tokens, chosen by layer 16, keep 93 % of right answers; random ones
    61 %, DivPrune's 70 %."""
    judged, share = study.judgements[0], study.shares[-1]
    own, random, divprune = (_still_right(judged, name, share) for name in (MAP, RANDOM, DIVPRUNE))
    if own is None:
        return f"No probe is answered right with all image tokens, so {percent(share)} of them have nothing to keep."
    return (
        f"{percent(share)} of the image tokens, chosen by layer {study.key_layer}, keep {own} of right answers; random "
        f"ones {random}, DivPrune's {divprune}."
    )


def _still_right(judged: Judgement, name: str, share: float) -> str | None:
    line = judged.cells[name]
    found = None if line is None else line[share].still_right
    return None if found is None else percent(found)


def advice(study: Study) -> str:
    """What to prune by, over all probes: only what beats random tokens and DivPrune."""
    judged = study.judgements[0]
    if not judged.measured:
        return f"Nothing is recommended: {judged.pictures} pictures are too few, at least {ENOUGH_PROBES} are needed."
    won = judged.recommended()
    if won:
        lines = [
            f"{study.label(name)} at {percent(share)} ({_gains(judged, name, share)})" for name, share in won
        ]
        return f"Better than random tokens and than DivPrune: {'; '.join(lines)}."
    name, share = _closest(judged)
    return (
        "Nothing is recommended: no order by attention beats both random tokens and DivPrune. "
        f"{capital(study.label(name))} comes closest, at {percent(share)} ({_gains(judged, name, share)})."
    )


def _closest(judged: Judgement) -> tuple[str, float]:
    """The order by attention and share whose smaller lead is largest."""
    cells = {
        (name, share): cell for name in BY_ATTENTION for share, cell in (judged.cells[name] or {}).items()
    }
    return max(cells, key=lambda at: min(gain.difference.mean for gain in cells[at].minus.values()))


def _gains(judged: Judgement, name: str, share: float) -> str:
    cells = judged.cells[name]
    assert cells is not None
    return ", ".join(
        f"minus {rival_words(rival)} {points(gain.difference)}" for rival, gain in cells[share].minus.items()
    )


def rival_words(name: str) -> str:
    return {RANDOM: "random", DIVPRUNE: "DivPrune"}[name]


def table(study: Study) -> str:
    """For a terminal: for each scope a row an order and a column a share, right answers with their intervals."""
    lines = [
        f"{study.model}: dropped are {study.drops}; layer {study.key_layer}'s map ({study.why_layer})",
        *_left_out(study),
    ]
    for judged in study.judgements:
        lines += ["", *_scope_lines(study, judged)]
    return "\n".join([*lines, "", sentence(study), advice(study)])


def _left_out(study: Study) -> list[str]:
    return [f"{study.left_out} probes have no foil or no picture and are left out"] if study.left_out else []


def _scope_lines(study: Study, judged: Judgement) -> Iterator[str]:
    yield f"{judged.scope}: {judged.probes} probes, {interval(judged.right)} right with all tokens"
    rows = [("kept", *(percent(share) for share in study.shares))]
    for name in ORDERS:
        line = judged.cells[name]
        cells = (
            ["not measured"] * len(study.shares)
            if line is None
            else [_shown(line[one]) for one in study.shares]
        )
        rows.append((study.label(name), *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    shown.insert(1, "  ".join("─" * width for width in widths))
    yield from (line.rstrip() for line in shown)


def _shown(cell: Cell) -> str:
    return f"{interval(cell.right)}{' ✓' if cell.wins else ''}"


def interval(one: Interval) -> str:
    """ "93 % [88, 97]" """
    low, high = (percent(end).removesuffix(" %") for end in one[1:])
    return f"{percent(one.mean)} [{low}, {high}]"


def points(one: Interval) -> str:
    """A difference of shares: "+32 points [+25, +39]"."""
    return f"{one.mean * 100:+.0f} points [{one.low * 100:+.0f}, {one.high * 100:+.0f}]"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def json_of(study: Study, answers: Sequence[ProbeAnswers]) -> Json:
    """keep.json."""
    about = {name: getattr(study, name) for name in Study._fields if name != "judgements"}
    return {
        "version": VERSION,
        **about,
        "sentence": sentence(study),
        "advice": advice(study),
        "recommended": [{"order": name, "share": share} for name, share in study.judgements[0].recommended()],
        "scopes": {one.scope: _scope_json(one) for one in study.judgements},
        "probes": [_probe_json(one) for one in answers],
    }


def _scope_json(judged: Judgement) -> Json:
    return {
        "probes": judged.probes,
        "pictures": judged.pictures,
        "right": _interval_json(judged.right),
        "orders": {
            name: None if line is None else {f"{share:g}": _cell_json(cell) for share, cell in line.items()}
            for name, line in judged.cells.items()
        },
    }


def _cell_json(cell: Cell) -> Json:
    first = cell.first_token
    return {
        "probes": cell.probes,
        "right": _interval_json(cell.right),
        "still_right": cell.still_right,
        "margin_nats": cell.margin_nats,
        "region_kept": cell.region_kept,
        "minus": {rival: _gain_json(gain) for rival, gain in cell.minus.items()},
        "right_by_first_token": None if first is None else {"kept": first[0], "dropped": first[1]},
        "wins": cell.wins,
    }


def _gain_json(gain: Gain) -> Json:
    return {**_interval_json(gain.difference), "p_holm": gain.p}


def _interval_json(one: Interval) -> Json:
    return {"mean": one.mean, "ci95": [one.low, one.high]}


def _probe_json(one: ProbeAnswers) -> Json:
    margins: dict[str, dict[str, Any]] = {}
    for (name, share), values in one.margins.items():
        margins.setdefault(name, {})[f"{share:g}"] = list(values) if name == RANDOM else values[0]
    return {
        "id": one.probe.id,
        "group": one.probe.group,
        "image_tokens": one.image_tokens,
        "margin_tokens": one.margin_tokens,
        "margin_nats": {"all": one.whole, **margins},
    }


def rows_of(study: Study, judged: Judgement) -> Iterator[tuple[str, float, Cell]]:
    """Every order that was measured at every share."""
    for name in ORDERS:
        cells: Mapping[float, Cell] = judged.cells[name] or {}
        for share in study.shares:
            if share in cells:
                yield name, share, cells[share]
