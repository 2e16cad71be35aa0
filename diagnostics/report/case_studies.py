"""The report's case studies: one wrong answer of each group, from the question to the verdict.

A fixed rule picks the probe, so that no case is cherry-picked and none contradicts the verdict beside it: of those that
were corrected, the one nearest to their medians in margin, attention and cost (``typical``).
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.legs.shown import FAILS, HOLDS, NOT_MEASURED, shown_legs
from diagnostics.comparison.maps import CellMap, Outcome, layer_words
from diagnostics.comparison.pairs import SIDES, LayerPair, ProbePair, cost, pairs_by_group, related
from diagnostics.comparison.trajectory import evenly_chosen
from diagnostics.comparison.typical import typical_before, typical_change
from diagnostics.drawing.archive_pictures import open_picture, picture_of
from diagnostics.drawing.cards import says_right
from diagnostics.drawing.colours import common_top, end_words
from diagnostics.drawing.probe_picture import fitted, map_panel, outline_boxes, outline_said
from diagnostics.drawing.svg_charts import inline_picture, pair_of_bars, tick_words
from diagnostics.records.measurement_plan import OCCLUSION
from diagnostics.records.probes import as_asked
from diagnostics.report.headline import MARKS
from diagnostics.report.languages import Language, as_written
from diagnostics.report.style import heat_gradient
from diagnostics.report.verdict_cards import TOLD_TO
from finetune.percent import percent_words

GUARDS = ("retention", "neighbour")
"""Groups that should stay as they are: they have no wrong answer to show."""
CASES_MAX, SAMPLES_MAX = 3, 3
WIDTH = 480
"""Width of a case's pictures, pixels."""
SAMPLE_WIDTH = 240
ORANGE = (255, 159, 67)


class TrainingSample(NamedTuple):
    """One question and answer that the model was trained on."""

    image: Path
    question: str
    answer: str


@dataclass(frozen=True)
class CaseStudy:
    """The worked example of one group.

    pair        the wrong answer: a probe that went wrong → right, or one still wrong where none did
    layer       the key layer whose maps are shown
    misleading  the region that the answers depended on before, if it is another place than the judged one
    beside      a probe of the same answer that was right before training; None if there is none
    samples     training samples with this answer, and one with the wrong answer
    """

    group: str
    pair: ProbePair
    layer: int
    misleading: str | None
    beside: ProbePair | None
    samples: tuple[TrainingSample, ...]

    @property
    def went_right(self) -> bool:
        """Does the right answer lead after training?"""
        return _margin(self.pair, "after") > 0


def choose_cases(
    comparison: Mapping[str, Any],
    pairs: Sequence[ProbePair],
    samples: Sequence[TrainingSample] = (),
    language: Language = "en",
) -> list[CaseStudy]:
    """One case for each group that should change, at most three, in file order.

    The probe is the most typical (``typical_change``) of those that went wrong → right; where none did, of those still
    wrong. Among the nearest to the medians one in the script of ``language`` is preferred. A group without a wrong
    answer before training has no case.
    """
    cases = (
        _case_of(members, comparison["groups"][name], pairs, samples, language)
        for name, members in pairs_by_group(pairs).items()
        if name not in GUARDS
    )
    return list(islice((case for case in cases if case is not None), CASES_MAX))


def _case_of(
    members: Sequence[ProbePair],
    group: Mapping[str, Any],
    pairs: Sequence[ProbePair],
    samples: Sequence[TrainingSample],
    language: Language,
) -> CaseStudy | None:
    """The case of one group, None if no answer was wrong. ``group``: its entry in comparison.json."""
    judged = group["enrichment"]
    layer = judged["layer"] if judged is not None else _last_layer(members[0])
    pair = _representative(members, layer, language)
    if pair is None:
        return None
    return CaseStudy(
        group=pair.probe.group,
        pair=pair,
        layer=layer,
        misleading=_misleading(pair, group),
        beside=_beside(pair, pairs, layer),
        samples=_matching(pair, samples),
    )


def _last_layer(pair: ProbePair) -> int:
    """The last key layer in which attention was not trained on, where there is one."""
    layers = [one.layer for one in pair.layers]
    return ([layer for layer in layers if not pair.is_trained_on(layer)] or layers)[-1]


def _misleading(pair: ProbePair, group: Mapping[str, Any]) -> str | None:
    """The region on which the group's answers depended most often before, where the probe has it and it is another
    place than the judged one."""
    most = _deciding((group.get("decides") or {}).get("before") or {})
    if most is None or pair.region is None or most.region not in pair.probe.regions:
        return None
    return None if related(pair.probe, most.region, pair.region) else most.region


def case_html(case: CaseStudy, group: Mapping[str, Any]) -> str:
    """The case as one card: before and now side by side, why to believe it, and the rest folded away.

    ``group``: its entry in comparison.json.
    """
    pair, beside = case.pair, case.beside
    layer = _layer(pair, case.layer)
    maps = [_map(pair, layer, "before"), _map(pair, layer, "after")]
    if beside is not None:
        maps.append(_map(beside, _layer(beside, case.layer), "before"))
    top = common_top(maps)
    sides = "".join(_side(case, layer, side, cells, top) for side, cells in zip(SIDES, maps, strict=False))
    more = [
        f'<section class="step"><h4>The picture as asked</h4>{_picture(_with_said(pair), "the picture")}</section>'
    ]
    if beside is not None:
        more.append(_beside_step(beside, _layer(beside, case.layer), maps[2], top, case.misleading))
    if case.samples:
        samples = "".join(map(_sample, case.samples))
        more.append(f'<section class="step"><h4>What it was trained on</h4>{samples}</section>')
    return (
        f'<article class="case"><h3>{_title(pair)}</h3>'
        f'<div class="story">{sides}<section class="why"><h4>Why believe it?</h4>{_costs(case)}'
        f"{_depends(group)}{_gist(group, pair.region)}</section></div>"
        f"{_legend(case, top)}"
        f"<details><summary>More of this case</summary>"
        f'<p class="size">{_chosen_words(case)} {as_written(case.group)} · {as_written(pair.probe.id)}</p>'
        f'<div class="steps">{"".join(more)}</div></details></article>'
    )


def _side(case: CaseStudy, layer: LayerPair, side: str, cells: CellMap, top: float) -> str:
    """Before or now: what it said, where it looked, and how much."""
    pair = case.pair
    said_right = _says_right(pair, side)
    right = _margin(pair, side) > 0 if said_right is None else said_right
    when = "Before" if side == "before" else "Now"
    words = {"before": "attention before", "after": "attention now"}[side]
    return (
        f'<section class="side"><h4><span class="sign {"good" if right else "bad"}" role="img" '
        f'aria-label="{"right" if right else "wrong"}">{MARKS["good" if right else "bad"]}</span>'
        f"<span>{when}: {_said(pair, side)}</span></h4>"
        f"{_map_picture(pair, cells, top, side, case.misleading, words)}"
        f"<p>{_attention_words(pair, layer, side, case.misleading)}</p></section>"
    )


def _said(pair: ProbePair, side: str) -> str:
    """What it said; what it rated likelier too, where it said nothing, or one of the two is right and the other not."""
    said, margin = getattr(pair, side).scores.generated, _margin(pair, side)
    right, foil = pair.probe.answer, pair.probe.foil or ""
    likelier, other = (right, foil) if margin > 0 else (foil, right)
    rated = f"{_quoted(likelier, 'right' if margin > 0 else 'wrong')} likelier than {_quoted(other)}"
    is_said = _says_right(pair, side)
    if is_said is None:
        return rated if margin else f"{_quoted(right)} and {_quoted(foil)} equally likely"
    quoted = _quoted(said, "right" if is_said else "wrong")
    is_told_otherwise = margin < 0 if is_said else margin > 0  # at 0 neither is likelier
    return f"{quoted}, though it rates {rated}" if is_told_otherwise else quoted


def _outcome(pair: ProbePair, side: str) -> Outcome:
    return outcome_with_box(pair.probe, pair.region, getattr(pair, side))


def _says_right(pair: ProbePair, side: str) -> bool | None:
    return says_right(_outcome(pair, side), pair.probe.spellings, pair.probe.foil)


def _quoted(text: str, kind: str = "") -> str:
    return as_written(f"“{text}”", kind=kind)


def _title(pair: ProbePair) -> str:
    said, probe = pair.before.scores.generated, pair.probe
    asked, right = _quoted(as_asked(probe.question)), _quoted(probe.answer)
    if not said and not _margin(pair, "before"):
        return f"Asked {asked}, it found {right} and {_quoted(probe.foil or '')} equally likely. Right is {right}."
    if not said:
        return f"Asked {asked}, it found {_quoted(probe.foil or '')} likelier. Right is {right}."
    if _says_right(pair, "before") and _margin(pair, "before") < 0:
        foil = _quoted(probe.foil or "")
        return f"Asked {asked}, it said {_quoted(said)}, which is right, though it found {foil} likelier."
    return f"Asked {asked}, it said {_quoted(said)}. Right is {right}."


def _attention_words(pair: ProbePair, layer: LayerPair, side: str, misleading: str | None = None) -> str:
    reading = pair.reading(layer)
    if reading is None:
        return "Brighter means more attention."
    share = percent_words(getattr(reading, f"mass_{side}"))
    words = f"{share} of its attention to the picture on the {as_written(reading.region)}"
    if misleading is None:
        return f"{words}."
    other = percent_words(getattr(layer.readings[misleading], f"mass_{side}"))
    return f"{words}, {other} on the {as_written(misleading)}."


def _legend(case: CaseStudy, top: float) -> str:
    """What the maps' colours and boxes mean, at the maps."""
    region = case.pair.region
    boxes = "" if region is None else f'<span><i class="box judged"></i>{as_written(region)}</span>'
    if case.misleading is not None:
        boxes += f'<span><i class="box other"></i>{as_written(case.misleading)}</span>'
    if case.pair.is_trained_on(case.layer):
        boxes += f"<span>{TOLD_TO}</span>"
    layer = layer_words(case.layer, case.pair.is_trained_on(case.layer))
    return (
        f'<div class="legend"><span>attention, {layer}: 0</span><span class="ramp" '
        f'style="background:{heat_gradient()}"></span><span>{end_words(top)} times the even share</span>{boxes}</div>'
    )


def _costs(case: CaseStudy) -> str:
    """How far hiding the misleading region, the judged one and random places moves this probe's answer, before and now;
    "" where it was not measured."""
    pair = case.pair
    names = [name for name in (case.misleading, pair.region) if name is not None]
    found = {name: [cost(getattr(pair, side), OCCLUSION, name) for side in SIDES] for name in names}
    if not names or any(one is None for both in found.values() for one in both):
        return ""
    values = {as_written(name): [one.region for one in both if one] for name, both in found.items()}
    control = [one.control for one in found[names[-1]] if one]
    if not any(map(math.isnan, control)):
        values["random places"] = control
    longest = max(max(abs(value) for both in values.values() for value in both), 1e-9)
    rows = "".join(
        f"<div><span>{name}</span>{pair_of_bars(abs(was) / longest, abs(now) / longest)}"
        f'<span class="numbers">{tick_words(was)} → <b>{tick_words(now)}</b></span></div>'
        for name, (was, now) in values.items()
    )
    note = "Below 0 it grows. " if any(value < 0 for both in values.values() for value in both) else ""
    return (
        f'<p class="size">Hide a place: how much of the right answer’s lead goes, nats. {note}'
        "Upper bar: before; lower: now.</p>"
        f'<div class="shares">{rows}</div>'
    )


def _depends(group: Mapping[str, Any]) -> str:
    """Which region's hiding moves the answers of the group most, before and now; "" where that was not measured on both
    sides, or none does."""
    decides = group.get("decides")
    if not decides or None in decides.values() or not (decides["before"] or decides["after"]):
        return ""
    return f"<p>{_decides_words(_deciding(decides['before']), _deciding(decides['after']))}</p>"


class _Deciding(NamedTuple):
    """The region that most often decides a group's answers, and the share of probes whose answer it decides."""

    region: str
    share: float


def _deciding(shares: Mapping[str, float]) -> _Deciding | None:
    return _Deciding(*max(shares.items(), key=lambda item: item[1])) if shares else None


def _decides_words(before: _Deciding | None, after: _Deciding | None) -> str:
    """The region whose hiding most often moves the answers most, before and now, as HTML."""
    if before is not None and after is not None and before.region == after.region:
        return (
            f"What moves the answers most when hidden: the {as_written(after.region)}, before "
            f"({percent_words(before.share)} of the questions) and now ({percent_words(after.share)})."
        )
    was = "no place stood out" if before is None else _region_words(before)
    now = "no place stands out" if after is None else _region_words(after)
    return f"What moves the answers most when hidden: before, {was}; now, {now}."


def _region_words(one: _Deciding) -> str:
    return f"the {as_written(one.region)} ({percent_words(one.share)} of the questions)"


_GIST = {
    "answers": {
        True: "{value} right, enough and more than before",
        False: "{value} right: too few, no more than before, or not what it says",
        None: "right answers: not measured",
    },
    "picture": {
        True: "it needs the picture: with another, the answer goes",
        False: "it hardly needs the picture",
        None: "whether it needs the picture: not measured",
    },
    "attention": {
        True: "it looks more at {region}, and only there",
        False: "its attention did not move to {region} alone",
        None: "where it looks: not judged",
    },
    "cause": {
        True: "it needs {region}: hidden, the answer suffers",
        False: "its answers do not depend enough on {region} alone",
        None: "what it needs: not measured",
    },
    "mediation": {
        True: "old attention put back, {value} of the gain goes",
        False: "old attention put back, too little of the gain goes",
        None: "whether looking carries the gain: not measured",
    },
    "guards": {
        True: "questions with the opposite answer stay right: {value}",
        False: "answers that had to stay right broke",
        None: "no questions with the opposite answer guard it",
    },
}
"""Leg → what it says in a few words where it holds, where it does not, and where it was not measured."""


def _gist(group: Mapping[str, Any], region: str | None) -> str:
    """The legs, each in a few words behind its mark; the plain reasons where the verdict rests on none."""
    legs = shown_legs(group)
    if not legs:
        return f"<ul>{''.join(f'<li>{html.escape(reason, quote=False)}</li>' for reason in group['reasons'])}</ul>"
    where = "the right place" if region is None else f"the {as_written(region)}"
    holds = {HOLDS: True, FAILS: False, NOT_MEASURED: None}
    kinds = {HOLDS: "good", FAILS: "bad", NOT_MEASURED: ""}
    items = (
        f'<li><span class="sign {kinds[leg.mark]}" role="img" aria-label="{leg.says}">{leg.mark}</span>'
        f"<span>{_GIST[leg.name][holds[leg.mark]].format(value=leg.value, region=where)}</span></li>"
        for leg in legs
    )
    return f'<ul class="gist">{"".join(items)}</ul>'


def _chosen_words(case: CaseStudy) -> str:
    nearest = "nearest to their medians in margin, attention and cost"
    if case.went_right:
        return f"Of the answers that went from wrong to right, this is one of those {nearest}."
    return f"No answer went from wrong to right. Of those still wrong, this is one of those {nearest}."


def _representative(members: Sequence[ProbePair], layer: int, language: Language) -> ProbePair | None:
    scored = [pair for pair in members if pair.after.scores.margin_nats is not None]
    wrong = [pair for pair in scored if _margin(pair, "before") <= 0]
    corrected = [pair for pair in wrong if _margin(pair, "after") > 0]
    return typical_change(
        members, layer, corrected or wrong, prefer=lambda pair: _is_latin(pair) == (language == "en")
    )


def _is_latin(pair: ProbePair) -> bool:
    return (pair.probe.question + pair.probe.answer).isascii()


def _beside(case: ProbePair, pairs: Sequence[ProbePair], layer: int) -> ProbePair | None:
    """A typical probe of those that were right before training: with the same answer and question, else with the same
    answer, else with answer and foil swapped."""
    probe = case.probe
    others = [pair for pair in pairs if pair is not case and _was_right(pair)]
    same_two = [pair for pair in others if {pair.probe.answer, pair.probe.foil} == {probe.answer, probe.foil}]
    same_answer = [pair for pair in others if pair.probe.answer == probe.answer]
    same_question = [pair for pair in same_answer if pair.probe.question == probe.question]
    return typical_before(same_question or same_answer or same_two, layer)


def _was_right(pair: ProbePair) -> bool:
    """Was the right answer likelier before training, and did the generated answer, if there is one, say it?"""
    margin = pair.before.scores.margin_nats
    return margin is not None and margin > 0 and _says_right(pair, "before") is not False


def _matching(pair: ProbePair, samples: Sequence[TrainingSample]) -> tuple[TrainingSample, ...]:
    """Samples with the right answer, evenly spaced, and one with the wrong answer; those that ask the same question,
    where there are any."""
    probe = pair.probe
    right = _of_answer(samples, probe.answer, probe.question)
    other = [one for one in _of_answer(samples, probe.foil or "", probe.question) if one not in right]
    wanted = SAMPLES_MAX - bool(other)
    shown = [right[index] for index in evenly_chosen(len(right), wanted)]
    return (*shown, *other[:1]) if right else ()


def _of_answer(samples: Sequence[TrainingSample], answer: str, question: str) -> list[TrainingSample]:
    found = [sample for sample in samples if answer and answer.lower() in sample.answer.lower()]
    return [sample for sample in found if sample.question == question] or found


def _margin(pair: ProbePair, side: str) -> float:
    margin = getattr(pair, side).scores.margin_nats
    assert margin is not None
    return margin


def _layer(pair: ProbePair, layer: int) -> LayerPair:
    return next(one for one in pair.layers if one.layer == layer)


def _map(pair: ProbePair, layer: LayerPair, side: str) -> CellMap:
    cells, image = getattr(layer, side), pair.before.image_tokens[0]
    return CellMap(cells * cells.size, image.grid, image.cell_boxes_pixels)


def _beside_step(
    beside: ProbePair, layer: LayerPair, cells: CellMap, top: float, misleading: str | None
) -> str:
    other = misleading if misleading in beside.probe.regions else None
    said = beside.before.scores.generated
    told = f"It said {_quoted(said, 'right')}. " if said else ""
    return (
        '<section class="step"><h4>A similar one, right before too</h4>'
        f"{_map_picture(beside, cells, top, 'before', other, 'attention before')}"
        f"<p>{told}{_attention_words(beside, layer, 'before', other)}</p></section>"
    )


def _map_picture(
    pair: ProbePair, cells: CellMap, top: float, side: str, misleading: str | None, words: str
) -> str:
    picture = picture_of(pair)
    boxes = () if pair.region is None else pair.probe.regions[pair.region]
    panel = map_panel(picture, boxes, cells, top, WIDTH)
    if misleading is not None:
        outline_boxes(panel, pair.probe.regions[misleading], picture.size, ORANGE, 2)
    outline_said(panel, _outcome(pair, side).box, picture.size)
    return _picture(panel, words)


def _with_said(pair: ProbePair) -> Image.Image:
    """The picture, with the box that was said before training where the right answer is a box."""
    picture = picture_of(pair)
    drawn = _sized(picture, WIDTH)
    outline_said(drawn, _outcome(pair, "before").box, picture.size)
    return drawn


def _sample(sample: TrainingSample) -> str:
    return (
        f'<div class="sample">{_picture(_sized(open_picture(sample.image), SAMPLE_WIDTH), "a training picture")}'
        f'<p translate="no">{html.escape(sample.question)}<br><b>{html.escape(sample.answer)}</b></p></div>'
    )


def _picture(picture: Image.Image, words: str) -> str:
    return f'<img src="{inline_picture(picture)}" width="{picture.width}" height="{picture.height}" alt="{words}">'


def _sized(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize(fitted(picture.size, width, 2 * width), Image.Resampling.LANCZOS)
