"""The report's verdict cards: the verdict on each group, and the numbers behind it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.drawing.svg_charts import Line, line_chart, pair_of_bars, percent_words, share_bars
from diagnostics.records.measurement_plan import CURVE_SHARES

# Verdicts by the colour of their pill; those that are neither good nor bad stay amber.
_GOOD = ("corrected", "corrected, not by looking", "kept")
_BAD = ("forgot", "broke a neighbour", "answers got worse", "answers changed, a guard broke")
HEADS_LISTED = 6

_RELATION_WORDS = {
    "phrase/subject": "the relation word looks at the subject",
    "phrase/object": "the relation word looks at the object",
    "phrase/both": "the smaller of these two, per probe",
    "nouns": "the later noun looks at the earlier one",
    "nouns/swapped": "the same with the nouns swapped",
    "vision": "in the vision tower, the subject's patches look at the object",
    "vision/control": "the same for random boxes",
}
_IN_PERCENT = ("nouns", "nouns/swapped")  # shares of a row; the others are times the area's share


def verdict_card(name: str, group: Mapping[str, Any]) -> str:
    """One group: verdict, three figures, reasons, and its further measurements."""
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
    """What a reader must know before the first number: too few probes, collapsed heads."""
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
        return _figure("right answers", "not measured", "no foil to compare with")
    return _figure(
        "right answers",
        _change(percent_words(change["before"]), percent_words(change["after"])),
        pair_of_bars(change["before"], change["after"]),
    )


def _attention_figure(enrichment: Mapping[str, Any]) -> str:
    low, high = enrichment["ci95"]
    below = f"change {low:+.2f} to {high:+.2f}, layer {enrichment['layer']}"
    random = enrichment.get("random")
    if random:
        below += f"; random boxes {random['before']:.2f}× → {random['after']:.2f}×"
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
    return _figure("cost of hiding it", _change(f"{cost['before']:+.2f}", f"{cost['after']:+.2f}"), below)


def _figure(label: str, number: str, below: str) -> str:
    return (
        f'<div class="figure"><small>{html.escape(label)}</small><div class="change">{number}</div>'
        f"<small>{below}</small></div>"
    )


def _change(before: str, after: str) -> str:
    return f"<i>{before} →</i> {after}"


def _size(group: Mapping[str, Any]) -> str:
    """Effect size, and the number of probes needed to detect an effect of this size."""
    effect, needed = group.get("effect_size"), group.get("probes_needed")
    if effect is None:
        return ""
    what = "margin" if group.get("enrichment") is None else "attention"  # as ``group_report`` takes it
    here = f"with {group['probes']} probes"
    enough = here if needed is None else f"{here}; about {needed} would detect an effect of this size"
    return f'<p class="size">Change of {what}: effect size {effect:+.2f} {enough}.</p>'


def _decides(group: Mapping[str, Any]) -> str:
    decides = group.get("decides")
    if not decides or not (decides["before"] or decides["after"]):
        return ""
    return _more(
        "which region decides the answer",
        "Share of the probes whose own answer, right or wrong, loses the most margin when this region is hidden.",
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
        "Heads whose attention on the region changed beyond chance, adjusted for all heads tested.",
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
        "Expect weak signals: spatial order is often read from the background. × is a multiple of the area's share.",
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
            ("deletion", "hiding, most attended first", "share hidden"),
            ("insertion", "showing, same order", "share shown"),
        )
        if kind in curves
    )
    return _more(
        "hiding and showing the picture bit by bit",
        "Margin in nats; grey: random places of equal size. If a map matters, its line departs from the grey one.",
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
