"""The report's case studies: one wrong answer of each group, from the question to the verdict.

A fixed rule picks the probe, so that no case is cherry-picked and none contradicts the verdict beside it: of those that
were corrected, the one nearest to their medians in margin, attention and cost (``typical``).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.legs.shown import shown_legs
from diagnostics.comparison.maps import CellMap
from diagnostics.comparison.pairs import SIDES, LayerPair, ProbePair, cost, pairs_by_group, related
from diagnostics.comparison.trajectory import evenly_chosen
from diagnostics.comparison.typical import typical_before, typical_change
from diagnostics.drawing.archive_pictures import open_picture, picture_of
from diagnostics.drawing.colours import common_top
from diagnostics.drawing.probe_picture import fitted, map_panel, outline_boxes, outline_said
from diagnostics.drawing.svg_charts import inline_picture, pair_of_bars, percent_words, tick_words
from diagnostics.measures.answers import says
from diagnostics.records.measurement_plan import OCCLUSION

GUARDS = ("retention", "neighbour")
"""Groups that should stay as they are: they have no wrong answer to show."""
CASES_MAX, SAMPLES_MAX = 3, 3
WIDTH = 480
"""Width of a case's pictures, pixels."""
SAMPLE_WIDTH = 240
ORANGE = (255, 159, 67)
COSTS_NOTE = "Grey: before; green: after. Below 0, the right answer gains when the region is hidden."


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
    comparison: Mapping[str, Any], pairs: Sequence[ProbePair], samples: Sequence[TrainingSample] = ()
) -> list[CaseStudy]:
    """One case for each group that should change, at most three, in file order.

    The probe is the most typical (``typical_change``) of those that went wrong → right; where none did, of those still
    wrong. Among the nearest to the medians one in Latin script is preferred, since the page is in English. A group
    without a wrong answer before training has no case.
    """
    cases = (
        _case_of(members, comparison["groups"][name], pairs, samples)
        for name, members in pairs_by_group(pairs).items()
        if name not in GUARDS
    )
    return list(islice((case for case in cases if case is not None), CASES_MAX))


def _case_of(
    members: Sequence[ProbePair],
    group: Mapping[str, Any],
    pairs: Sequence[ProbePair],
    samples: Sequence[TrainingSample],
) -> CaseStudy | None:
    """The case of one group, None if no answer was wrong. ``group``: its entry in comparison.json."""
    judged = group["enrichment"]
    layer = judged["layer"] if judged is not None else members[0].layers[-1].layer
    pair = _representative(members, layer)
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


def _misleading(pair: ProbePair, group: Mapping[str, Any]) -> str | None:
    """The region on which the group's answers depended most often before, where the probe has it and it is another
    place than the judged one."""
    most = _deciding((group.get("decides") or {}).get("before") or {})
    if most is None or pair.region is None or most.region not in pair.probe.regions:
        return None
    return None if related(pair.probe, most.region, pair.region) else most.region


def case_html(case: CaseStudy, group: Mapping[str, Any], pill: str) -> str:
    """The case as one card: picture, map, a probe that was right, samples, map after, verdict (``pill``: as HTML)."""
    pair, beside = case.pair, case.beside
    layer = _layer(pair, case.layer)
    maps = [_map(pair, layer, "before"), _map(pair, layer, "after")]
    if beside is not None:
        maps.append(_map(beside, _layer(beside, case.layer), "before"))
    top = common_top(maps)
    picture = picture_of(pair)
    cells = [
        _step("The wrong answer", _picture(_with_said(pair, picture), "the picture"), _wrong_words(pair)),
        _step(
            f"Where it looked, layer {case.layer}",
            _map_picture(pair, picture, maps[0], top, "before", case.misleading),
            _attention_words(pair, layer, "before", case.misleading),
        ),
    ]
    if beside is not None:
        cells.append(_beside_step(beside, _layer(beside, case.layer), maps[2], top, case.misleading))
    if case.samples:
        cells.append(_step("What it was trained on", "".join(map(_sample, case.samples)), ""))
    cells.append(
        _step(
            "After training: " + ("right" if case.went_right else "still wrong"),
            _map_picture(pair, picture, maps[1], top, "after", case.misleading),
            f"{_answer_words(pair, 'after')} {_attention_words(pair, layer, 'after', case.misleading)}",
        )
    )
    if costs := _costs(case):
        cells.append(_step("What hiding each costs, in nats of margin", costs, COSTS_NOTE))
    cells.append(
        f'<section class="step verdict-step"><h4>The verdict</h4><p>{pill}</p>{_reasons(group)}</section>'
    )
    return (
        f'<article class="case"><header><small>{html.escape(case.group)} · {html.escape(pair.probe.id)}</small>'
        f"<h3>{_title(pair)}</h3><p>{summary(case, group)}</p></header>"
        f'<div class="steps">{"".join(cells)}</div></article>'
    )


def _reasons(group: Mapping[str, Any]) -> str:
    """A list of the legs, each with its mark and its sentence; of the plain reasons where there are none."""
    legs = shown_legs(group)
    if not legs:
        return f"<ul>{''.join(f'<li>{html.escape(reason)}</li>' for reason in group['reasons'])}</ul>"
    items = (f"<li><b>{leg.mark} {leg.name}:</b> {html.escape(leg.reason)}</li>" for leg in legs)
    return f'<ul class="marked">{"".join(items)}</ul>'


def summary(case: CaseStudy, group: Mapping[str, Any]) -> str:
    """What happened to the whole group, in plain sentences, as HTML."""
    sentences = [_chosen_words(case)]
    accuracy = group["accuracy"]
    if accuracy is not None:
        before, after = (_right_words(accuracy[side], group) for side in ("before", "after"))
        sentences.append(
            f"Of {group['probes']} such questions, the model got {before} right before training and {after} after."
        )
    decides = group.get("decides")
    if decides and (decides["before"] or decides["after"]):
        sentences.append(_decides_words(_deciding(decides["before"]), _deciding(decides["after"])))
    return " ".join(sentences)


def _right_words(share: float, group: Mapping[str, Any]) -> str:
    """A count where each probe has a picture of its own; else a share, since pictures count and not probes."""
    count = share * group["probes"]
    whole = group.get("images", group["probes"]) == group["probes"] and abs(count - round(count)) < 1e-6
    return str(round(count)) if whole else percent_words(share)


def _chosen_words(case: CaseStudy) -> str:
    nearest = "nearest to their medians in margin, attention and cost"
    if case.went_right:
        return f"Shown: of the probes that were corrected, one of those {nearest}."
    return f"No probe of this group went from wrong to right. Shown: of those still wrong, one of those {nearest}."


class _Deciding(NamedTuple):
    """The region that most often decides a group's answers, and the share of probes whose answer it decides."""

    region: str
    share: float


def _deciding(shares: Mapping[str, float]) -> _Deciding | None:
    return _Deciding(*max(shares.items(), key=lambda item: item[1])) if shares else None


def _decides_words(before: _Deciding | None, after: _Deciding | None) -> str:
    """The region whose hiding most often shifts the margin most, before and after, as HTML."""
    if before is not None and after is not None and before.region == after.region:
        return (
            f"Hiding <b>{html.escape(after.region)}</b> shifted the margin most before "
            f"({percent_words(before.share)} of the probes), and does after ({percent_words(after.share)})."
        )
    was = "no region stood out" if before is None else f"it was {_region_words(before)}"
    now = "no region stands out" if after is None else f"it is {_region_words(after)}"
    return f"The region whose hiding shifts the margin most: before, {was}; now {now}."


def _region_words(one: _Deciding) -> str:
    return f"<b>{html.escape(one.region)}</b> (in {percent_words(one.share)} of the probes)"


def _representative(members: Sequence[ProbePair], layer: int) -> ProbePair | None:
    scored = [pair for pair in members if pair.after.scores.margin_nats is not None]
    wrong = [pair for pair in scored if _margin(pair, "before") <= 0]
    corrected = [pair for pair in wrong if _margin(pair, "after") > 0]
    return typical_change(members, layer, corrected or wrong, prefer=_is_readable)


def _is_readable(pair: ProbePair) -> bool:
    """Is it in Latin script, as the page is?"""
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
    scores, probe = pair.before.scores, pair.probe
    said = not scores.generated or says(scores.generated, probe.spellings, probe.foil)
    return scores.margin_nats is not None and scores.margin_nats > 0 and said


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


def _title(pair: ProbePair) -> str:
    said = pair.before.scores.generated
    words = (
        f"It said “{html.escape(said)}”." if said else f"“{html.escape(pair.probe.foil or '')}” was likelier."
    )
    return f"{words} The right answer is “{html.escape(pair.probe.answer)}”."


def _wrong_words(pair: ProbePair) -> str:
    return f"Asked “{html.escape(pair.probe.question)}”. {_answer_words(pair, 'before')}"


def _answer_words(pair: ProbePair, side: str) -> str:
    said, margin = getattr(pair, side).scores.generated, _margin(pair, side)
    right, foil = html.escape(pair.probe.answer), html.escape(pair.probe.foil or "")
    likelier, other = (right, foil) if margin > 0 else (foil, right)
    kind = "right" if margin > 0 else "wrong"
    rated = f'It rated <b class="{kind}">“{likelier}”</b> likelier than “{other}”.'
    if not said:
        return rated
    quoted = html.escape(said)
    if likelier.lower() in quoted.lower() or not margin > 0:
        return f'It answered <b class="{kind}">“{quoted}”</b>.'
    return f"It answered “{quoted}”. {rated}"


def _attention_words(pair: ProbePair, layer: LayerPair, side: str, misleading: str | None = None) -> str:
    reading = pair.reading(layer)
    if reading is None:
        return "Brighter means more attention."
    words = (
        f"{getattr(reading, f'mass_{side}'):.0%} of its attention to the picture is on "
        f"<b>{html.escape(reading.region)}</b> (white box), {getattr(reading, f'enrichment_{side}'):.1f} times what "
        "uniform attention would give"
    )
    if misleading is None:
        return f"{words}."
    other = layer.readings[misleading]
    return f"{words}; {getattr(other, f'mass_{side}'):.0%} on <b>{html.escape(misleading)}</b> (orange box)."


def _costs(case: CaseStudy) -> str:
    """What hiding the misleading and the judged region costs this probe, before and after, as bars; "" where there is
    no misleading region or it was not measured."""
    pair, rows = case.pair, []
    names = [] if case.misleading is None else [case.misleading, pair.region]
    hidden = {name: [cost(getattr(pair, side), OCCLUSION, name) for side in SIDES] for name in names}
    values = {name: [one.region for one in both if one is not None] for name, both in hidden.items()}
    longest = max((abs(value) for both in values.values() for value in both), default=0.0)
    if not longest or any(len(both) < len(SIDES) for both in values.values()):
        return ""
    for name, (was, now) in values.items():
        rows.append(
            f"<div><span>{html.escape(str(name))}</span>{pair_of_bars(abs(was) / longest, abs(now) / longest)}"
            f'<span class="numbers">{tick_words(was)} → <b>{tick_words(now)}</b></span></div>'
        )
    return f'<div class="shares">{"".join(rows)}</div>'


def _beside_step(
    beside: ProbePair, layer: LayerPair, cells: CellMap, top: float, misleading: str | None
) -> str:
    picture = picture_of(beside)
    other = misleading if misleading in beside.probe.regions else None
    said = beside.before.scores.generated or beside.probe.answer
    words = (
        f'On this picture the model was right even before training: <b class="right">“{html.escape(said)}”</b>. '
        f"{_attention_words(beside, layer, 'before', other)}"
    )
    inside = _map_picture(beside, picture, cells, top, "before", other)
    return _step("A similar one it got right", inside, words)


def _step(title: str, inside: str, words: str) -> str:
    below = f"<p>{words}</p>" if words else ""
    return f'<section class="step"><h4>{html.escape(title)}</h4>{inside}{below}</section>'


def _map_picture(
    pair: ProbePair,
    picture: Image.Image,
    cells: CellMap,
    top: float,
    side: str,
    misleading: str | None = None,
) -> str:
    boxes = () if pair.region is None else pair.probe.regions[pair.region]
    panel = map_panel(picture, boxes, cells, top, WIDTH)
    if misleading is not None:
        outline_boxes(panel, pair.probe.regions[misleading], picture.size, ORANGE, 2)
    outline_said(panel, outcome_with_box(pair.probe, pair.region, getattr(pair, side)).box, picture.size)
    return _picture(panel, "attention over the picture")


def _with_said(pair: ProbePair, picture: Image.Image) -> Image.Image:
    """The picture, with the box that was said before training where the right answer is a box."""
    drawn = _sized(picture, WIDTH)
    outline_said(drawn, outcome_with_box(pair.probe, pair.region, pair.before).box, picture.size)
    return drawn


def _sample(sample: TrainingSample) -> str:
    return (
        f'<div class="sample">{_picture(_sized(open_picture(sample.image), SAMPLE_WIDTH), "a training picture")}'
        f"<p>{html.escape(sample.question)}<br><b>{html.escape(sample.answer)}</b></p></div>"
    )


def _picture(picture: Image.Image, words: str) -> str:
    return f'<img src="{inline_picture(picture)}" width="{picture.width}" height="{picture.height}" alt="{words}">'


def _sized(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize(fitted(picture.size, width, 2 * width), Image.Resampling.LANCZOS)
