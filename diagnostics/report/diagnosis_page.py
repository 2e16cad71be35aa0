"""A diagnosis as one self-contained page: what is wrong, where it is lost, what may mend it, and the proof."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diagnostics.comparison.legs.leg import count, percent
from diagnostics.comparison.legs.shown import FAILS, HOLDS, NOT_MEASURED, ShownLeg
from diagnostics.comparison.maps import CellMap
from diagnostics.comparison.pairs import LayerPair, ProbePair, pair_records
from diagnostics.comparison.typical import typical_before
from diagnostics.diagnosis.diagnosing import Diagnosis, GroupDiagnosis
from diagnostics.diagnosis.evidence import (
    ANSWERS,
    HIDING,
    LOOKS,
    PICTURE,
    SHIFTED,
    STATE,
    TOKENS,
    TOWER,
)
from diagnostics.diagnosis.stages import (
    NOT_LOOKED_AT,
    NOT_PASSED_ON,
    NOT_SEEN,
    NOT_USED,
    PRIOR,
    RIGHT,
    SAID_OTHERWISE,
    TOO_FEW,
    UNDETERMINED,
)
from diagnostics.drawing.archive_pictures import picture_of
from diagnostics.drawing.colours import common_top
from diagnostics.drawing.probe_picture import fitted, map_panel, outline_boxes
from diagnostics.drawing.svg_charts import inline_picture
from diagnostics.records.probes import Probe, as_asked
from diagnostics.report.languages import Language, as_written, filled, in_both_languages
from diagnostics.report.page import TEMPLATE
from diagnostics.report.verdict_cards import leg_html

PAGE = Path(__file__).with_name("diagnosis_template.html")
WIDTH = 480
ORANGE = (255, 159, 67)
CASES_MAX = 3
TOLD_TO = "Attention was trained on in this layer: it looks where it was told to."


class _Words(NamedTuple):
    """Of a stage: what is wrong and where it is lost, with {right}, {foil}, {region}, {decides}."""

    wrong: str
    where: str


_STAGES = {
    RIGHT: _Words("The answers are right.", "Nothing is lost on the way."),
    TOO_FEW: _Words("There are too few probes to say anything.", "Nothing can be said of the way."),
    PRIOR: _Words(
        "It says {foil} whatever the picture shows.",
        "The answer is never asked of the picture: the words of the question decide.",
    ),
    NOT_SEEN: _Words(
        "It says {foil} where {right} is right.",
        "It is lost in the vision tower: what it makes of {region} is the same for both answers.",
    ),
    NOT_PASSED_ON: _Words(
        "It says {foil} where {right} is right.",
        "The tower sees it, and it is lost in the connector: the image tokens no longer tell the answers apart.",
    ),
    NOT_LOOKED_AT: _Words(
        "It says {foil} where {right} is right.",
        "The image tokens hold the right answer, and the answer does not look at {region}{decides}.",
    ),
    NOT_USED: _Words(
        "It says {foil} where {right} is right.",
        "It looks at {region}, and what it sees there does not reach its words{decides}.",
    ),
    SAID_OTHERWISE: _Words(
        "It says {foil} too readily.",
        "It knows: one number added to every margin would make its answers right. The last step leans to one side.",
    ),
    None: _Words("It says {foil} where {right} is right.", "Where it is lost could not be determined."),
}
_ARRIVED = "What it sees of {region} has reached the answer's state, and does not reach its words{decides}."
"""Of ``NOT_USED`` where attention on the region is not above its area's share: it came by another way."""
_TESTS = {
    ANSWERS: ("回答", "of the answers right"),
    SHIFTED: ("常数偏移", "right with the margin shifted"),
    PICTURE: ("图像", "of the margin moves with the picture"),
    TOWER: ("视觉塔", "told apart in the tower"),
    TOKENS: ("图像词元", "told apart in the image tokens"),
    LOOKS: ("注意力", "the area’s share, in attention"),
    STATE: ("回答状态", "told apart where words are read from"),
    HIDING: ("遮挡", "of the margin moves when it is hidden"),
}
_CHAIN = ("picture", "vision tower", "connector", "attention", "answer state", "words")
_PLACES = {PRIOR: 0, NOT_SEEN: 1, NOT_PASSED_ON: 2, NOT_LOOKED_AT: 3, NOT_USED: 4, SAID_OTHERWISE: 5}
"""Stage → the link of the chain where the answer is lost."""


def diagnosis_html(diagnosis: Diagnosis, probes: Sequence[Probe], *, language: Language = "en") -> str:
    """The page in English and Chinese, which needs no network and no other file.

    probes     those that were diagnosed: pictures and maps of typical wrong ones are in the page
    language   shown first; the page has a switch

    Raises:
        ValueError: a picture cannot be read.
    """
    faulty = [name for name, one in diagnosis.groups.items() if one.stage.name not in (RIGHT, TOO_FEW)]
    cases = [_case(name, diagnosis, probes) for name in faulty[:CASES_MAX]]
    cards = [_card(name, one, is_open=name in faulty) for name, one in diagnosis.groups.items()]
    parts = {
        "STYLE": _report_style(),
        "HEADLINE": _headline(diagnosis),
        "LEAD": f"{as_written(diagnosis.model)}, {as_written(diagnosis.family)}; "
        f"<span>{count(len(probes), 'probe')}.</span>"
        + (f" <span>{html.escape(diagnosis.trained, quote=False)}</span>" if diagnosis.trained else ""),
        "CASES": "\n".join(cases),
        "CARDS": "\n".join(cards),
    }
    return in_both_languages(filled(PAGE.read_text(encoding="utf-8"), parts), language)


def _report_style() -> str:
    """The look of the comparison report."""
    return TEMPLATE.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]


def _headline(diagnosis: Diagnosis) -> str:
    by_stage: dict[str, list[str]] = {}
    for name, one in diagnosis.groups.items():
        by_stage.setdefault(one.stage.name or UNDETERMINED, []).append(name)
    return " · ".join(
        f"<span>{as_written(', '.join(names))}: <span>{html.escape(stage)}</span></span>"
        for stage, names in by_stage.items()
    )


def _pill(stage: str | None) -> str:
    kind = "good" if stage == RIGHT else "" if stage in (None, TOO_FEW) else "bad"
    return f'<span class="pill {kind}">{html.escape(stage or UNDETERMINED)}</span>'


def _case(name: str, diagnosis: Diagnosis, probes: Sequence[Probe]) -> str:
    """One group at fault: a typical wrong answer, three sentences, the chain, and what may mend it."""
    group = diagnosis.groups[name]
    pair = _typical(name, diagnosis, probes)
    sentences = "".join(f'<p class="plain">{one}</p>' for one in _sentences(group, pair.probe))
    return (
        f'<article class="case"><header><small translate="no">{html.escape(f"{name} · {pair.probe.id}")}</small>'
        f"<h3>{_pill(group.stage.name)}</h3>{sentences}</header>{_pictures(pair, group)}{chain_svg(group.stage.name)}"
        f"{_mend(group)}</article>"
    )


def _typical(name: str, diagnosis: Diagnosis, probes: Sequence[Probe]) -> ProbePair:
    """Of the wrong answers, the one nearest to their medians; one in Latin script before others, as the page is."""
    pairs = [
        pair_records(probe, diagnosis.records[probe.id], diagnosis.records[probe.id])
        for probe in probes
        if probe.group == name
        and (diagnosis.records[probe.id].scores.margin_nats or 0.0) <= 0
        and probe.foil is not None
    ]
    layer = _shown_layer(pairs[0], diagnosis.groups[name].evidence.layer).layer
    found = typical_before(pairs, layer, prefer=lambda one: one.probe.question.isascii())
    assert found is not None
    return found


def _sentences(group: GroupDiagnosis, probe: Probe) -> tuple[str, str, str]:
    """What is wrong, where it is lost, what to do; as HTML."""
    words = _STAGES[group.stage.name]
    decides = group.evidence.decides
    filled = {
        "right": as_written(f"“{probe.answer}”"),
        "foil": as_written(f"“{probe.foil or ''}”"),
        "region": f"the {as_written(probe.main_region)}" if probe.main_region else "the region",
        "decides": "" if decides is None else f"; {as_written(decides)} decides",
    }
    share = _right_words(group)
    do = (
        f"Train {_listed(group.remedy.trains)}. {group.remedy.samples}"
        if group.remedy.trains
        else group.remedy.samples
    )
    looks = group.evidence.tests.get(LOOKS)
    elsewhere = group.stage.name == NOT_USED and (looks is None or looks.holds is not True)
    where = _ARRIVED if elsewhere else words.where
    return words.wrong.format(**filled) + share, where.format(**filled), html.escape(do)


def _right_words(group: GroupDiagnosis) -> str:
    """The share of right answers; where probes share pictures also of pictures: the smaller of both is judged."""
    right, of_pictures = group.evidence.accuracy, group.evidence.pictures_right
    if right is None:
        return ""
    if of_pictures is None:
        return f" {percent(right)} are right."
    return f" {percent(right)} are right, {percent(of_pictures)} with each picture counted once."


def _listed(parts: Sequence[str]) -> str:
    named = {"language": "the language layers", "connector": "the connector", "vision": "the vision tower"}
    return " and ".join(named[part] for part in parts)


def _pictures(pair: ProbePair, group: GroupDiagnosis) -> str:
    """The picture, and the map of the key layer that looks at the region most over it."""
    picture = picture_of(pair)
    layer = _shown_layer(pair, group.evidence.layer)
    image = pair.before.image_tokens[0]
    cells = CellMap(layer.before * layer.before.size, image.grid, image.cell_boxes_pixels)
    boxes = () if pair.region is None else pair.probe.regions[pair.region]
    panel = map_panel(picture, boxes, cells, common_top([cells]), WIDTH)
    decides = group.evidence.decides
    words = f"Layer {layer.layer}: brighter is more attention."
    if pair.region is not None:
        words += f" White: {as_written(pair.region)}."
    if pair.is_trained_on(layer.layer):
        words += f" {TOLD_TO}"
    if decides is not None and decides in pair.probe.regions:
        outline_boxes(panel, pair.probe.regions[decides], picture.size, ORANGE, 2)
        words += f" Orange: {as_written(decides)}, which decides."
    small = picture.resize(fitted(picture.size, WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    asked, foil, right = (
        as_written(f"“{text}”", kind=kind)
        for text, kind in (
            (as_asked(pair.probe.question), ""),
            (pair.probe.foil or "", "wrong"),
            (pair.probe.answer, ""),
        )
    )
    margin = abs(pair.before.scores.margin_nats or 0)
    rated = (
        f"Asked {asked}. It rated {foil} likelier than {right}, by {margin:.1f} nats."
        if margin
        else f"Asked {asked}. It rated {foil} and {right} equally likely."
    )
    return (
        f'<div class="pair"><div><img src="{inline_picture(panel)}" alt="attention over the picture">'
        f"<p>{words}</p></div>"
        f'<div><img src="{inline_picture(small)}" alt="the picture">'
        f"<p>{rated}</p></div></div>"
    )


def _shown_layer(pair: ProbePair, layer: int | None) -> LayerPair:
    """The key layer that the test of attention cites; else the last, if possible of those in which attention was not
    trained on."""
    untrained = [one for one in pair.layers if not pair.is_trained_on(one.layer)]
    return next((one for one in pair.layers if one.layer == layer), (untrained or pair.layers)[-1])


def chain_svg(stage: str | None) -> str:
    """From the picture to the words: what passed in green, where the answer is lost in red."""
    lost = _PLACES.get(stage or "")
    width, gap, height = 124, 22, 46
    parts = []
    for at, name in enumerate(_CHAIN):
        x = at * (width + gap) + 2
        kind = "" if lost is None else "passed" if at < lost else "lost" if at == lost else ""
        if at:
            parts.append(f'<path d="M{x - gap + 3} {height / 2 + 2}H{x - 4}m-5 -4l5 4l-5 4"/>')
        parts.append(
            f'<g class="{kind}"><rect x="{x}" y="2" width="{width}" height="{height}" rx="10"/>'
            f'<text x="{x + width / 2}" y="{height / 2 + 7}" text-anchor="middle">{name}</text></g>'
        )
    where = "the place of loss is not determined" if lost is None else f"lost at: {_CHAIN[lost]}"
    total = len(_CHAIN) * (width + gap)
    return (
        f'<div class="chain"><svg viewBox="0 0 {total} {height + 6}" role="img" '
        f'aria-label="picture to words; {where}">{"".join(parts)}</svg></div>'
    )


def _mend(group: GroupDiagnosis) -> str:
    remedy = group.remedy
    lines = f'<p class="mend"><b>Samples:</b> <span>{html.escape(remedy.samples)}</span></p>'
    if remedy.guards:
        lines += f'<p class="mend"><b>Guards:</b> <span>{html.escape(remedy.guards)}</span></p>'
    command = (
        f'<pre translate="no"><code>{html.escape(remedy.command)}</code></pre>' if remedy.command else ""
    )
    return command + lines


def _card(name: str, group: GroupDiagnosis, *, is_open: bool) -> str:
    """One group's tests as rows, each with its sentence folded away."""
    rows = "".join(leg_html(_shown(test, leg.json())) for test, leg in group.evidence.tests.items())
    head = '<div class="head"><small>tested</small><small>interval</small><small>at least</small></div>'
    return (
        f'<article class="verdict"><header><h3 translate="no">{html.escape(name)}</h3>{_pill(group.stage.name)}'
        f'<span class="soft"><span>{count(group.evidence.probes, "probe")}</span>, '
        f"<span>{count(group.evidence.pictures, 'picture')}</span></span></header>"
        f'<details{" open" if is_open else ""}><summary>tests</summary><div class="legs">{head}{rows}</div>'
        f'</details><p class="size">{html.escape(group.stage.reason)}</p></article>'
    )


def _shown(name: str, leg: Mapping[str, Any]) -> ShownLeg:
    chinese, unit = _TESTS[name]
    shown = _times if name == LOOKS else percent
    value = "" if leg["value"] is None else shown(leg["value"])
    interval = ""
    if leg["ci95"] is not None:
        low, high = map(shown, leg["ci95"])
        interval = f"{low.removesuffix(' %').removesuffix('×')} to {high}"
    mark = NOT_MEASURED if leg["holds"] is None else HOLDS if leg["holds"] else FAILS
    return ShownLeg(
        name, chinese, mark, value, unit, interval, shown(leg["threshold"]), leg["probes"], leg["reason"]
    )


def _times(value: float) -> str:
    return f"{value:.2f}×"
