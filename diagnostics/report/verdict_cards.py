"""The report's verdict cards: the verdict on each group, and the numbers behind it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.comparison.legs.attention import LARGEST_FACTOR, OTHERS, SALIENT, Lead, weakest_lead
from diagnostics.comparison.legs.leg import count, listed, nats, percent
from diagnostics.comparison.legs.shown import FAILS, HOLDS, NOT_MEASURED, ShownLeg, shown_legs
from diagnostics.comparison.maps import TRAINED_ON
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import OF_ANY_GROUP
from diagnostics.drawing.svg_charts import Line, line_chart, pair_of_bars, share_bars
from diagnostics.measures.statistics import Interval
from diagnostics.records.measurement_plan import CONNECTOR, CURVE_SHARES, KEY_LAYERS, LANGUAGE, LAYER
from diagnostics.report.headline import kind_of
from diagnostics.report.languages import as_written
from finetune.percent import percent_words

HEADS_LISTED, LAYERS_LISTED = 6, 6
TOLD_TO = (
    f"“{TRAINED_ON.capitalize()}”: attention was trained on in this layer, so it looks where it was told to."
)
TOLD_IN_SOME = (
    f"“{TRAINED_ON.capitalize()}”: a mean over layers; in one or more of them attention was trained on, so it looks "
    "where it was told to."
)
_KINDS = {HOLDS: "good", FAILS: "bad", NOT_MEASURED: "unmeasured"}
_WAYS = {
    "occlusion_nats": "hiding it in the picture",
    "knockout_nats": "keeping question and answer from looking at it",
    "tower_knockout_nats": "cutting it inside vision tower and resampler",
}

_RELATION_WORDS = {
    "phrase/subject": "the relation word looks at the subject",
    "phrase/object": "the relation word looks at the object",
    "phrase/both": "the smaller of these two, by layer and head",
    "nouns": "the later noun looks at the earlier one",
    "nouns/swapped": "the same with the nouns swapped",
    "vision": "in the vision tower, the subject's patches look at the object",
    "vision/control": "the same for random boxes",
}
_IN_PERCENT = ("nouns", "nouns/swapped")  # shares of a row; the others are times the area's share


def verdict_card(name: str, group: Mapping[str, Any]) -> str:
    """One group: verdict, three figures, the legs it rests on, and its further measurements."""
    figures = [_accuracy_figure(group["accuracy"])]
    if group["enrichment"] is not None:
        figures.append(_attention_figure(group["enrichment"], _move_threshold(group)))
    if group["occlusion_nats"] is not None:
        figures.append(_cost_figure(group["occlusion_nats"]))
    more = [_boxes(group), _size(group), _decides(group), _mediation(group), _ways(group), _leads(group)]
    more += [_heads(group), _relation(group), _curves(group)]
    return (
        f'<article class="verdict"><header><h3 translate="no">{html.escape(name)}</h3>{pill(group["verdict"])}'
        f'<span class="soft">{count(group["probes"], "probe")}</span></header>'
        f'<div class="figures">{"".join(figures)}</div>'
        f"{_why(group)}{''.join(more)}</article>"
    )


def _boxes(group: Mapping[str, Any]) -> str:
    """Where right answers are boxes: what they were before and are after."""
    boxes = group.get("boxes")
    if not boxes:
        return ""
    lines = "".join(
        f"<li><span>{words}:</span> <span>{html.escape(boxes[side]['words'], quote=False)}</span></li>"
        for side, words in (("before", "before"), ("after", "now"))
    )
    return f"<details><summary>boxes</summary><ul>{lines}</ul></details>"


def _why(group: Mapping[str, Any]) -> str:
    """The legs, each with its numbers and its sentence; the plain reasons where the verdict rests on none."""
    legs = shown_legs(group)
    if legs:
        head = '<div class="head"><small>rests on</small><small>interval</small><small>at least</small></div>'
        return (
            f"<details open><summary>the six pieces of evidence</summary>"
            f'<div class="legs">{head}{"".join(map(leg_html, legs))}</div></details>'
        )
    reasons = "".join(f"<li>{html.escape(reason, quote=False)}</li>" for reason in group["reasons"])
    return f"<details open><summary>why</summary><ul>{reasons}</ul></details>"


def leg_html(leg: ShownLeg) -> str:
    """One leg; its sentence is folded away where it holds."""
    value = f"<b>{leg.value}</b> {html.escape(leg.unit, quote=False)}" if leg.value else leg.says
    least = leg.threshold if leg.value else ""
    rests = f" <span>{count(leg.probes, 'probe')}.</span>" if leg.value else ""
    return (
        f'<details class="leg {_KINDS[leg.mark]}"{"" if leg.mark == HOLDS else " open"}><summary>'
        f'<div><i role="img" aria-label="{leg.says}" translate="no">{leg.mark}</i></div>'
        f'<div class="name">{leg.name}</div>'
        f"<span>{value}</span><small>{leg.interval}</small><small>{least}</small></summary>"
        f"<p>{html.escape(leg.reason, quote=False)}{rests}</p></details>"
    )


def pill(verdict: str) -> str:
    """The words of a verdict in its colour."""
    return f'<span class="pill {kind_of(verdict)}">{html.escape(verdict)}</span>'


def warnings(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the first number: too few probes, pictures that were trained on, weak
    foils, collapsed heads. As HTML."""
    found = [
        f"{as_written(name)}: <span>{html.escape(line, quote=False)}</span>"
        for name, group in comparison["groups"].items()
        for line in (
            *((" ".join(group["reasons"]),) if group["verdict"] in OF_ANY_GROUP else ()),
            *group.get("warnings", ()),
        )
    ]
    collapse = comparison.get("collapse")
    if collapse and collapse["warn"]:
        one = collapse["collapsed_heads"] == 1
        heads = "1 head now rests" if one else f"{collapse['collapsed_heads']} heads now rest"
        found.append(
            f"Attention is collapsing: {heads} on single tokens, and the highest "
            f"attention logit is {collapse['highest_logit']:.0f} ({collapse['logit_before']:.0f} before). Training in "
            "this state tends to become unstable; lower the learning rate."
        )
    return found


def _accuracy_figure(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return _figure("right answers", "not measured", "no foil to compare with")
    below = [pair_of_bars(change["before"], change["after"])]
    if "after_ci95" in change:
        low, high = change["after_ci95"]
        p = f"(p = {change['p_mcnemar']:.2g})"
        if change.get("images") == change.get("probes"):
            below.append(f"interval {_ends(low, high)}")
            below.append(f"{change['gained']} became right, {change['lost']} wrong {p}")
        else:
            below.append(_of_pictures(change, low, high))
            below.append(f"on {count(change['gained'], 'picture')} more right, on {change['lost']} fewer {p}")
    return _figure(
        "right answers", _change(percent_words(change["before"]), percent_words(change["after"])), *below
    )


def _of_pictures(change: Mapping[str, Any], low: float, high: float) -> str:
    """The interval where probes share pictures: of the share with each picture counted once, which earlier versions did
    not keep."""
    if "pictures_right" not in change:
        return f"interval {_ends(low, high)}, each picture counted once"
    right = change["pictures_right"]["after"]
    return f"each picture counted once: {percent_words(right)}, interval {_ends(low, max(high, right))}"


def _move_threshold(group: Mapping[str, Any]) -> float:
    """The least relative change that the group's attention was judged by."""
    leg = (group.get("legs") or {}).get("attention")
    return Thresholds().move if leg is None else float(leg["threshold"])


def _attention_figure(enrichment: Mapping[str, Any], least_move: float) -> str:
    low, high = enrichment["ci95"]
    ends = f"{nats(low)} to {nats(high)}" if nats(low) != nats(high) else nats(low)
    layers = enrichment.get("layers") or [enrichment["layer"]]
    below = [
        f"change {ends}, {'layer' if len(layers) == 1 else 'layers'} {listed([str(one) for one in layers])}"
    ]
    if "median_factor" in enrichment:
        factor = enrichment["median_factor"]
        times = f"over {LARGEST_FACTOR}" if factor > LARGEST_FACTOR else f"{factor:.2f}"
        below.insert(0, f"median probe: {times} times")
    if enrichment.get("leads"):
        leads = [
            Lead(one["over"], one["probes"], Interval(one["mean"], *one["ci95"]))
            for one in enrichment["leads"]
        ]
        least = weakest_lead(leads, Thresholds(move=least_move))
        below.append(f"lead {percent(least.interval.mean, signed=True)} over {_place_words(least.place)}")
    random = enrichment.get("random")
    if random:
        below.append(f"random boxes {random['before']:.2f}× → {random['after']:.2f}×")
    bare = enrichment.get("without_sinks")
    if bare:
        below.append(f"without sinks {bare['before']:.2f}× → {bare['after']:.2f}×")
    region = enrichment["region"]
    label = (
        "attention on its region" if region == "each probe's own" else f"attention on {as_written(region)}"
    )
    return _figure(label, _change(f"{enrichment['before']:.2f}×", f"{enrichment['after']:.2f}×"), *below)


def _cost_figure(cost: Mapping[str, Any]) -> str:
    control = cost["control"]
    known = None not in control.values()
    below = (
        f"random boxes {nats(control['before'])} → {nats(control['after'])} nats"
        if known
        else "nats of margin"
    )
    return _figure("cost of hiding it", _change(nats(cost["before"]), nats(cost["after"])), below)


def _figure(label: str, number: str, *below: str) -> str:
    """``label`` and the lines ``below`` are HTML."""
    lines = "".join(f"<small>{line}</small>" for line in below)
    return f'<div class="figure"><small>{label}</small><div class="change">{number}</div>{lines}</div>'


def _change(before: str, after: str) -> str:
    return f"<i>{before} →</i> {after}"


def _size(group: Mapping[str, Any]) -> str:
    """Effect size, and the number of probes needed to detect an effect of this size."""
    effect, needed = group.get("effect_size"), group.get("probes_needed")
    if effect is None:
        return ""
    what = "margin" if group.get("enrichment") is None else "attention"  # as ``group_report`` takes it
    behind = (group.get("legs") or {}).get("attention") if what == "attention" else group["accuracy"]
    judged = (behind or group).get("probes", group["probes"])
    here = f"with {judged} probes"
    enough = here if needed is None else f"{here}; about {needed} would detect an effect of this size"
    return f'<p class="size">Change of {what}: effect size {nats(effect)} {enough}.</p>'


def _decides(group: Mapping[str, Any]) -> str:
    """Which regions decide, before and after; "" where that was not measured on both sides, or none does."""
    decides = group.get("decides")
    if not decides or None in decides.values() or not (decides["before"] or decides["after"]):
        return ""
    return _more(
        "which region decides the answer",
        "Share of the probes whose margin shifts most, up or down, when this region is hidden; in the rest none stands "
        "out.",
        share_bars(decides["before"], decides["after"]),
    )


def _mediation(group: Mapping[str, Any]) -> str:
    parts = group.get("mediation")
    if not parts:
        return ""
    alone = sorted((one for one in parts if one["part"] == LAYER), key=lambda one: -one["share"])
    listed_alone = sorted(alone[:LAYERS_LISTED], key=lambda one: one["layers"])
    rows = "".join(_carried(one) for one in [*(p for p in parts if p["part"] != LAYER), *listed_alone])
    left = len(alone) - len(listed_alone)
    rest = (
        f'<p class="size">… and {count(left, "layer")} that carry less, in comparison.json</p>'
        if left
        else ""
    )
    return _more(
        "what carries the change",
        "Share of the margin’s change that goes when attention is put back as it was before. Shares need not add up.",
        f'<div class="shares carried">{rows}</div>{rest}',
    )


def _carried(one: Mapping[str, Any]) -> str:
    """A part's share as a bar from 0 to 100 %; its number may lie outside."""
    low, high = one["ci95"]
    width = min(max(one["share"], 0.0), 1.0)
    return (
        f'<div><span>{_part_words(one)}</span><div class="bar"><span class="is" style="width:{width:.1%}"></span></div>'
        f'<span class="numbers"><b>{percent(one["share"])}</b> {_ends(low, high)}'
        "</span></div>"
    )


def _part_words(one: Mapping[str, Any]) -> str:
    layers = listed([str(layer) for layer in one["layers"]])
    return {
        LANGUAGE: "all language layers",
        KEY_LAYERS: f"key layers {layers}",
        LAYER: f"layer {layers} alone",
        CONNECTOR: "the connector",
    }[one["part"]]


def _ways(group: Mapping[str, Any]) -> str:
    """The ways of taking the region away, where more than hiding was measured."""
    measured = {name: group[name] for name in _WAYS if group.get(name)}
    if len(measured) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{_WAYS[name]}</td>"
        f'<td class="numbers">{nats(cost["before"])} → <b>{nats(cost["after"])}</b></td>'
        f'<td class="numbers">{_signed(cost["control"]["after"])}</td></tr>'
        for name, cost in measured.items()
    )
    return _more(
        "taking the region away",
        "Margin lost, nats, before → after; last, the same done to random places after.",
        f"<table>{rows}</table>",
    )


def _signed(value: float | None) -> str:
    return "not measured" if value is None else nats(value)


def _ends(low: float, high: float, *, signed: bool = False) -> str:
    """An interval's ends, "91.2 to 99.9 %"; one number where they do not differ."""
    first, last = percent(low, signed=signed), percent(high, signed=signed)
    return last if first == last else f"{first.removesuffix(' %')} to {last}"


def _leads(group: Mapping[str, Any]) -> str:
    leads = (group["enrichment"] or {}).get("leads")
    if not leads:
        return ""
    rows = "".join(
        f"<tr><td>{_place_words(one['over'])}</td>"
        f'<td class="numbers"><b>{percent(one["mean"], signed=True)}</b></td>'
        f'<td class="numbers">{_ends(*one["ci95"], signed=True)}</td></tr>'
        for one in leads
    )
    return _more(
        "the region against other places",
        "How much more its attention grew than that of another place, over half of what both get before and after.",
        f"<table>{rows}</table>",
    )


def _place_words(place: str) -> str:
    """Names of regions stand in quotes in comparison.json."""
    return place if place in (SALIENT, OTHERS) else as_written(place.strip("'\""))


def _heads(group: Mapping[str, Any]) -> str:
    heads = group.get("heads")
    if not heads or not heads["tested"]:
        return ""
    listed = "".join(
        f"<li>layer {one['layer']}, head {one['head']}{_trained_mark(one)}: {percent_words(one['before'])} → "
        f"{percent_words(one['after'])} on the region{_on_random(one)}</li>"
        for one in sorted(heads["significant"], key=lambda one: one["p_adjusted"])[:HEADS_LISTED]
    )
    told = (
        f'<p class="size">{TOLD_TO}</p>' if any(one.get("trained_on") for one in heads["significant"]) else ""
    )
    rest = heads["count"] - min(heads["count"], HEADS_LISTED)
    listed += f"<li>… and {rest} more in comparison.json</li>" if rest else ""
    return _more(
        f"{heads['count']} of {heads['tested']} heads moved",
        "Heads whose attention on the region changed more or less than on random places, beyond chance, adjusted for "
        "all heads tested."
        if heads.get("over_random_places")
        else "Heads whose attention on the region changed beyond chance, adjusted for all heads tested.",
        (f"<ul>{listed}</ul>" if listed else "") + told,
    )


def _trained_mark(one: Mapping[str, Any]) -> str:
    return f" ({TRAINED_ON})" if one.get("trained_on") else ""


def _on_random(head: Mapping[str, Any]) -> str:
    """What random places of the region's size got: a head is named for the region's lead over them."""
    random = head.get("random")
    if not random:
        return ""
    return f", {percent_words(random['before'])} → {percent_words(random['after'])} on random places"


def _relation(group: Mapping[str, Any]) -> str:
    relation = group.get("relation")
    if not relation:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(_RELATION_WORDS.get(name, name) + _trained_mark(one))}</td>"
        f'<td class="numbers">{_reading(name, one["before"])} → <b>{_reading(name, one["after"])}</b></td></tr>'
        for name, one in sorted(relation.items(), key=lambda item: _place(item[0]))
    )
    told = f'<p class="size">{TOLD_IN_SOME}</p>' if any(map(_trained_mark, relation.values())) else ""
    return _more(
        "the relation",
        "Expect weak signals: spatial order is often read from the background. × is a multiple of the area's share.",
        f"<table>{rows}</table>{told}",
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


def _more(title: str, note: str, inside: str) -> str:
    return (
        f"<details><summary>{html.escape(title)}</summary>"
        f'<p class="size">{html.escape(note)}</p>{inside}</details>'
    )
