"""The report's verdict cards: what may be said of each group, and every number it rests on."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.drawing.svg_charts import Line, line_chart, pair_of_bars, percent_words, share_bars
from diagnostics.records.measurement_plan import CURVE_SHARES

# The words of a verdict → how its pill is coloured; what is neither good nor bad stays amber.
_GOOD, _BAD = ("corrected", "kept"), ("forgot", "broke a neighbour", "answers got worse")
HEADS_LISTED = 6

_RELATION_WORDS = {
    "phrase/subject": "the relation word looks at the subject",
    "phrase/object": "the relation word looks at the object",
    "phrase/both": "the smaller of these two, probe by probe",
    "nouns": "the later noun looks at the earlier one",
    "nouns/swapped": "the same, the nouns exchanged",
    "vision": "the eye's subject patches look at the object",
    "vision/control": "the same at random boxes",
}
_IN_PERCENT = ("nouns", "nouns/swapped")  # shares of a row; the others are times the area's share


def verdict_card(name: str, group: Mapping[str, Any]) -> str:
    """One group: verdict, three figures, reasons, and what else was measured of it."""
    figures = [_accuracy_figure(group["accuracy"])]
    if group["enrichment"] is not None:
        figures.append(_attention_figure(group["enrichment"]))
    if group["occlusion_nats"] is not None:
        figures.append(_cost_figure(group["occlusion_nats"]))
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in group["reasons"])
    more = [_decides(group), _heads(group), _relation(group), _curves(group)]
    return (
        f'<article class="verdict"><header><h3>{html.escape(name)}</h3>{pill(group["verdict"])}'
        f'<span class="soft">{group["probes"]} probes</span></header>'
        f'<div class="figures">{"".join(figures)}</div>{_size(group)}'
        f"<details open><summary>why</summary><ul>{reasons}</ul></details>{''.join(more)}</article>"
    )


def pill(verdict: str) -> str:
    """The words of a verdict in its colour."""
    kind = "good" if verdict in _GOOD else "bad" if verdict in _BAD else ""
    return f'<span class="pill {kind}">{html.escape(verdict)}</span>'


def warnings(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the first number: too few probes, heads that collapsed."""
    found = [
        f"{name}: {' '.join(group['reasons'])}"
        for name, group in comparison["groups"].items()
        if group["verdict"] == "too few probes"
    ]
    collapse = comparison.get("collapse")
    if collapse and collapse["warn"]:
        found.append(
            f"Attention is collapsing: {collapse['collapsed_heads']} heads now rest on single tokens, and the highest "
            f"attention logit is {collapse['highest_logit']:.0f} ({collapse['logit_before']:.0f} before). Training in "
            "this state tends to become unstable; lower the learning rate."
        )
    return found


def _accuracy_figure(change: Mapping[str, float] | None) -> str:
    if change is None:
        return _figure("right", "not measured", "no foil to set against the answer")
    return _figure(
        "right",
        _change(percent_words(change["before"]), percent_words(change["after"])),
        pair_of_bars(change["before"], change["after"]),
    )


def _attention_figure(enrichment: Mapping[str, Any]) -> str:
    low, high = enrichment["ci95"]
    below = f"change {low:+.2f} to {high:+.2f}, layer {enrichment['layer']}"
    random = enrichment.get("random")
    if random:
        below += f"; random places {random['before']:.2f}× → {random['after']:.2f}×"
    bare = enrichment.get("without_sinks")
    if bare:
        below += f"; without sinks {bare['before']:.2f}× → {bare['after']:.2f}×"
    region = enrichment["region"]
    label = "attention on its region" if region == "each probe's own" else f"attention on {region}"
    return _figure(label, _change(f"{enrichment['before']:.2f}×", f"{enrichment['after']:.2f}×"), below)


def _cost_figure(cost: Mapping[str, Any]) -> str:
    control = cost["control"]
    known = None not in control.values()
    below = (
        f"random boxes {control['before']:+.2f} → {control['after']:+.2f} nats" if known else "nats of margin"
    )
    return _figure("hiding it costs", _change(f"{cost['before']:+.2f}", f"{cost['after']:+.2f}"), below)


def _figure(label: str, number: str, below: str) -> str:
    return (
        f'<div class="figure"><small>{html.escape(label)}</small><div class="change">{number}</div>'
        f"<small>{below}</small></div>"
    )


def _change(before: str, after: str) -> str:
    return f"<i>{before} →</i> {after}"


def _size(group: Mapping[str, Any]) -> str:
    """Effect size and the number of probes that a finding of this size needs."""
    effect, needed = group.get("effect_size"), group.get("probes_needed")
    if effect is None:
        return ""
    here = f"in {group['probes']} probes"
    enough = here if needed is None else f"{here}; about {needed} would show one of this size"
    return f'<p class="size">Change of attention: effect size {effect:+.2f} {enough}.</p>'


def _decides(group: Mapping[str, Any]) -> str:
    decides = group.get("decides")
    if not decides or not (decides["before"] or decides["after"]):
        return ""
    return _more(
        "which region decides the answer",
        "Share of the probes whose own answer, right or wrong, loses most when this region is hidden.",
        share_bars(decides["before"], decides["after"]),
        is_open=True,
    )


def _heads(group: Mapping[str, Any]) -> str:
    heads = group.get("heads")
    if not heads or not heads["tested"]:
        return ""
    listed = "".join(
        f"<li>layer {one['layer']}, head {one['head']}: {percent_words(one['before'])} → "
        f"{percent_words(one['after'])} on the region</li>"
        for one in sorted(heads["significant"], key=lambda one: one["p_adjusted"])[:HEADS_LISTED]
    )
    rest = heads["count"] - min(heads["count"], HEADS_LISTED)
    listed += f"<li>… and {rest} more in comparison.json</li>" if rest else ""
    return _more(
        f"{heads['count']} of {heads['tested']} heads moved",
        "Heads whose attention on the region changed beyond chance, adjusted for all that were tested.",
        f"<ul>{listed}</ul>" if listed else "",
    )


def _relation(group: Mapping[str, Any]) -> str:
    relation = group.get("relation")
    if not relation:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(_RELATION_WORDS.get(name, name))}</td>"
        f'<td class="numbers">{_reading(name, one["before"])} → <b>{_reading(name, one["after"])}</b></td></tr>'
        for name, one in sorted(relation.items(), key=lambda item: _place(item[0]))
    )
    return _more(
        "the relation",
        "A weak signal is the rule: order is read from strips of background. × is times the area's share.",
        f"<table>{rows}</table>",
    )


def _place(name: str) -> int:
    known = list(_RELATION_WORDS)
    return known.index(name) if name in known else len(known)


def _reading(name: str, value: float) -> str:
    return percent_words(value) if name in _IN_PERCENT else f"{value:.2f}×"


def _curves(group: Mapping[str, Any]) -> str:
    curves = group.get("curves")
    if not curves:
        return ""
    charts = "".join(
        line_chart(title, _curve_lines(kind, curves), CURVE_SHARES, unit=unit)
        for kind, title, unit in (
            ("deletion", "hiding, most looked at first", "share hidden"),
            ("insertion", "showing, the same", "share shown"),
        )
        if kind in curves
    )
    return _more(
        "hiding and showing the picture bit by bit",
        "Margin in nats; grey: places of equal size drawn at random. A map that matters bends its line away from grey.",
        f'<div class="curves">{charts}</div>',
    )


def _curve_lines(kind: str, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Line]:
    lines = [Line(side, curves[kind][side]) for side in ("before", "after")]
    control = curves.get(f"{kind}/control")
    if control:
        lines += [Line(f"random {side}", control[side], faint=True) for side in ("before", "after")]
    return lines


def _more(title: str, note: str, inside: str, *, is_open: bool = False) -> str:
    return (
        f"<details{' open' if is_open else ''}><summary>{html.escape(title)}</summary>"
        f'<p class="size">{html.escape(note)}</p>{inside}</details>'
    )
