"""Every plant, every sound model, and which stage is right for each; written down before it was diagnosed.

The first stage at which the answer is lost, and why it is the first:

not seen
    The tower is given grey where the answer is to be seen; or the states of its patches there are the means over other
    pictures, from one of its layers on. Nothing after it can tell what it does not hold. That the margin then hardly
    moves with the picture follows from it, so it is no language prior: the words have no say in it.
seen, not passed on
    The tower computes the same bits. What the connector gives of the field is the mean over other pictures; or is rid
    of the directions that tell the two answers apart; or the resampler reads means there.
passed on, not looked at
    Tower and connector compute the same bits. In every layer no row outside the field attends to it: in the sound
    model, and in one that answers by podium or rug, which then decides. Where the sound model's margin is the same for
    all pictures then (its deviation below a fifth of its size), the words decide, and it is "language prior": the plant
    measures it itself.
a cue that decides
    Tower and connector compute the same bits, and the language model was trained to answer by the colour of podium or
    rug. Whether it still looks at the region is another matter, so the plant measures it itself: below the region's
    share of the area in every layer it is "passed on, not looked at", otherwise "looked at, not used".
looked at, not used
    Tower and connector compute the same bits. Attention lies where it lay, but what it reads there is the mean over
    other pictures; or the answer's last state is the same bit for bit, and the head exchanges the two answers, has one
    row for both, or reads no direction that tells them apart.
known, said otherwise
    A constant in the head, for one answer and against the other; nothing else is touched.
language prior
    Tower and connector compute the same bits. No word attends to any image token, so the words decide, or (with a
    constant) a leaning that no picture can change.

Rules that came later, when part of the plants had been diagnosed: that masked models may be a language prior; that a
mask counts only where the plant's own reading of attention confirms it; and that what is cut off counts only where the
answer's own state shows that it does not arrive by another way (a tower spreads a picture's parts over its patches).
Later still, and for the same reasons: this last check is asked of masks in models that answer by a cue, and of cues in
models that do not look, too; and emptied values may be a language prior as masks may. Fresh plants, of other pictures
and strengths, were drawn after that and after the last change of the diagnosis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks import planted_edits as edits
from benchmarks.planted_edits import Lessons
from benchmarks.planted_models import (
    Course,
    Sound,
    margins_nats,
    save_weights,
    sound_model,
    train,
)
from benchmarks.planted_scenes import CAT, TOWER, Shown, Topic, draw_probes
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.diagnosis.stages import (
    NOT_LOOKED_AT,
    NOT_PASSED_ON,
    NOT_SEEN,
    NOT_USED,
    PRIOR,
    RIGHT,
    SAID_OTHERWISE,
)
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.probes import Probe
from finetune.demo.settings import BASE_MODEL
from finetune.families.parts.coverage import region_coverage
from finetune.model import checkpoint

PROBES = 20
"""Of each of two answers, in each half of the plants."""
TOPICS = {"qwen-vl": (TOWER, CAT), "llava": (TOWER, CAT), "qwen2-vl": (TOWER, CAT)}
FALLEN = 0.7
"""Share of right answers that the worse group of a plant may have at most."""
SHORTCUT = "shortcut"
CUT = (
    "tokens dropped",
    "connector scrubbed",
    "resampler starved",
    "attention masked",
    "cue, attention masked",
    "values emptied",
)
"""Plants behind which the answer's own state must not tell the two answers apart, by whatever way."""
RARELY_VALID = ("values emptied",)
"""Left out of the fresh plants: in five of six models what it cuts off arrives by another way."""
FRESH = "fresh"
FRESH_PLANTS = 70
"""As many, of a shuffled list: so many were decided on before any was diagnosed."""
TOLD = 0.7
"""Share of pictures that class means may tell where a plant has taken the difference away; chance is 0.5."""
FOLLOWED = 0.9
"""Share of answers that a shortcut's cue must tell."""
Make = Callable[[Lessons], nn.Module]


class Check(NamedTuple):
    """accuracy: by group; fault: why the plant does not do what it says, "" where it does; stage: the one that is
    right, where the plant itself measures which."""

    accuracy: dict[str, float]
    fault: str
    stage: str


class Workshop:
    """Sound models, probes and lessons, each made once."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._sound: dict[str, Sound] = {}
        self._lessons: dict[tuple[str, str], Lessons] = {}
        self._margins: dict[tuple[str, str], list[float]] = {}

    def sound(self, family: str) -> Sound:
        if family not in self._sound:
            self._sound[family] = sound_model(family, self.work)
        return self._sound[family]

    def lessons(self, family: str, topic: Topic) -> Lessons:
        key = (family, topic.name)
        if key not in self._lessons:
            fitting = draw_probes(self.work / "pictures" / "fitting", topic, edits.FITTED, split="fitting")
            self._lessons[key] = Lessons(self.sound(family), topic, fitting)
        return self._lessons[key]

    def margins(self, family: str, topic: Topic) -> np.ndarray:
        """Of the sound model on the pictures to learn from, toward the topic's first answer, nats."""
        key = (family, topic.name)
        lessons = self.lessons(family, topic)
        if key not in self._margins:
            self._margins[key] = margins_nats(lessons.sound.model, lessons.sound.processor, lessons.probes)
        return np.where(lessons.is_first.numpy(), self._margins[key], -np.array(self._margins[key]))

    def probes(self, plant: Plant) -> tuple[Probe, ...]:
        folder = self.work / "pictures" / plant.half
        split = f"{plant.half}-{plant.draw}"
        return draw_probes(folder, plant.topic, PROBES, split=split, cues=dict(plant.cues) or None)

    def shortcut(self, family: str, topic: Topic) -> nn.Module:
        """The sound model's language part trained on to answer by the cue's colour; kept in the work folder. The demo's
        own base for what it gets wrong by itself."""
        if family == "qwen-vl" and topic is TOWER:
            return checkpoint.load(str(BASE_MODEL))[0].eval()
        sound = self.sound(family)
        model = copy.deepcopy(sound.model)
        path = self.work / "shortcuts" / f"{family}-{topic.name}.pt"
        if path.is_file():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith((edits.PARTS[family].language, "lm_head")))
        course = Course(120, 1.5e-3, seed=3, answer=_by_cue, batch=24, samples=480)
        train(model, sound.processor, [topic], course, self.work / "pictures" / "training", path.stem)
        save_weights(model, path)
        return model


def _by_cue(one: Shown) -> str:
    return one.topic.answer(one.topic.values[0 if one.cue == "warm" else 1])


# ---------------------------------------------------------------- one plant


@dataclass(frozen=True)
class Plant:
    """One model to diagnose.

    make    lessons → the model; None: the sound model, or the shortcut's
    cues    value → colour of its cue in the probes; () for colours that alternate
    draw    which probes of its half: others show other pictures
    """

    name: str
    family: str
    topic: Topic
    kind: str
    stage: str
    half: str
    seed: int
    make: Callable[[Workshop, Plant], nn.Module] = field(compare=False)
    cues: tuple[tuple[str, str], ...] = ()
    decides: str | None = None
    draw: int = 0

    def made(self, workshop: Workshop) -> nn.Module:
        return self.make(workshop, self)

    def checked(self, model: nn.Module, workshop: Workshop, probes: Sequence[Probe]) -> Check:
        """Did answers fall (or hold, in a sound model), and is what lies before the fault untouched?"""
        sound = workshop.sound(self.family)
        margins = np.array(margins_nats(model, sound.processor, probes))
        groups = np.array([probe.group for probe in probes])
        accuracy = {
            name: round(float(np.mean(margins[groups == name] > 0)), 3) for name in dict.fromkeys(groups)
        }
        worst = min(accuracy.values())
        if self.stage == RIGHT:
            return Check(accuracy, "" if worst >= 0.9 else f"a sound model with {worst:.0%} right", RIGHT)
        if worst > FALLEN:
            return Check(accuracy, f"{worst:.0%} right in spite of the plant", self.stage)
        stage = self._measured_stage(model, sound, probes, margins)
        return Check(accuracy, self._fault(model, workshop, probes, margins, stage), stage)

    def _measured_stage(
        self, model: nn.Module, sound: Sound, probes: Sequence[Probe], margins: np.ndarray
    ) -> str:
        if self.kind == SHORTCUT:
            return NOT_LOOKED_AT if looks(model, sound, probes, self.topic.region) < 1 else NOT_USED
        if self.kind in ("attention masked", "values emptied"):
            toward = np.where([probe.answer == probes[0].answer for probe in probes], margins, -margins)
            return PRIOR if toward.std() < 0.2 * np.abs(toward).mean() else self.stage
        return self.stage

    def _fault(
        self, model: nn.Module, workshop: Workshop, probes: Sequence[Probe], margins: np.ndarray, stage: str
    ) -> str:
        """Why it does not do what it says, "" where it does."""
        lessons = workshop.lessons(self.family, self.topic)
        if "masked" in self.kind:
            times = looks(model, workshop.sound(self.family), probes, self.topic.region)
            if times >= 1:
                return f"it still looks at the region {times:.1f} times as much as its area's share"
        if self.kind in CUT or (self.kind == SHORTCUT and stage == NOT_LOOKED_AT):
            told = _told_at_the_end(model, lessons)
            if told > TOLD:
                return (
                    f"class means still tell {told:.0%} in the answer's last state: it arrives by another way"
                )
        if self.decides is not None:
            warm = np.array(["-warm-" in probe.id for probe in probes])
            first = np.array([probe.answer == self.topic.answer(self.topic.values[0]) for probe in probes])
            follows = float(np.mean((margins > 0) == (first == warm)))
            if follows < FOLLOWED:
                return f"the cue tells only {follows:.0%} of the answers"
            if self.family == "qwen-vl" and self.topic is TOWER:
                return ""  # the demo's base, whose tower is its own
        if self.stage == NOT_SEEN:
            told = _told_by_means(model, lessons, tokens=False)
            return "" if told <= TOLD else f"class means still tell {told:.0%} in the tower"
        untouched = [lessons.tower] if self.stage == NOT_PASSED_ON else [lessons.tower, lessons.connector]
        if self.kind in ("head exchanged", "head merged", "head scrubbed", "bias"):
            untouched.append(lessons.final)
        for site in untouched:
            if not torch.equal(
                lessons.states(lessons.sound.model, site, count=4), lessons.states(model, site, count=4)
            ):
                return f"{site.module} does not compute what it did"
        if self.stage == NOT_PASSED_ON:
            told = _told_by_means(model, lessons, tokens=True)
            return "" if told <= TOLD else f"class means still tell {told:.0%} in the tokens"
        if self.stage == PRIOR:
            asked = np.array([probe.question for probe in probes])
            toward = np.where([probe.answer == probes[0].answer for probe in probes], margins, -margins)
            spread = max(float(np.ptp(toward[asked == one])) for one in dict.fromkeys(asked))
            return "" if spread < 0.05 else f"margins still differ by {spread:.2f} nats between pictures"
        return ""


def _told_by_means(model: nn.Module, lessons: Lessons, *, tokens: bool) -> float:
    """Share of pictures whose mean state of the region, in the tower or in the tokens, is nearer to its own class's
    mean: means of one half of the pictures, judged on the other."""
    states = lessons.states(model, lessons.connector if tokens else lessons.tower)
    patches = states.shape[1]
    places = [lessons.region(at, tokens=tokens) for at in range(len(states))]
    found = torch.stack(
        [one[patches - len(here) :][here].mean(0) for one, here in zip(states, places, strict=True)]
    )
    return _nearest(found, lessons.is_first)


def _told_at_the_end(model: nn.Module, lessons: Lessons) -> float:
    """The same of the state that the answer is read from."""
    return _nearest(edits.answer_states(model, lessons), lessons.is_first)


def _nearest(found: torch.Tensor, first: torch.Tensor) -> float:
    half = torch.arange(len(found)) % 4 < 2
    means = [found[half & (first == side)].mean(0) for side in (True, False)]
    spread = found[half].std(0).clamp(min=1e-6)
    near = [((found[~half] - one) / spread).norm(dim=-1) for one in means]
    return float(((near[0] < near[1]) == first[~half]).float().mean())


def looks(model: nn.Module, sound: Sound, probes: Sequence[Probe], region: str) -> float:
    """The answer row's attention to the region over the region's share of the area, in the layer where that is most;
    mean over probes and heads."""
    reader = ProbeEncoder(sound.family, sound.processor)
    found = []
    with AttentionExtractor(model, None) as extractor, torch.no_grad():
        for probe in probes:
            read = reader.read(probe)
            extractor.query_tokens = [read.parted - 1]
            model(**padded([read.answer], torch.device("cpu"), left=False), use_cache=False)
            image, maps = read.answer.images[0], extractor.attention_weights
            covered = region_coverage(probe.regions[region], image)
            rows = []
            for name in (one for one in maps if one.startswith("layer_")):
                row = maps[name][0].mean(0)[0][image.positions]
                row = row @ maps["visual_attn"][0].mean(0) if image.through_connector else row
                rows.append(float(row @ covered / covered.mean()))
            found.append(rows)
    return float(np.mean(found, axis=0).max())


# ---------------------------------------------------------------- all plants


def plants() -> list[Plant]:
    """By family and topic, so that lessons are learned once; halves alternate, and fresh ones come last."""
    where = [(family, topic) for family, topics in TOPICS.items() for topic in topics]
    return [*(one for place in where for one in _of(*place, "")), *_fresh(where)]


def _fresh(where: Sequence[tuple[str, Topic]]) -> list[Plant]:
    """Other strengths and other pictures, in an order that says nothing."""
    found = [
        replace(one, name=f"{one.name}-fresh", half=FRESH, seed=one.seed + 100)
        for place in where
        for one in _of(*place, "/fresh")
        if one.kind not in RARELY_VALID
    ]
    Random(FRESH).shuffle(found)
    return found[:FRESH_PLANTS]


def _of(family: str, topic: Topic, draw: str) -> list[Plant]:
    rng = Random(f"{family}/{topic.name}{draw}")
    made: list[tuple[str, str, Make]] = [
        ("tower grey", NOT_SEEN, edits.blind_tower),
        ("patches dead", NOT_SEEN, partial(edits.dead_patches, first=rng.choice((0, 1)))),
        ("tokens dropped", NOT_PASSED_ON, edits.drop_tokens),
        ("connector scrubbed", NOT_PASSED_ON, partial(edits.scrub_connector, rank=rng.choice((4, 6)))),
        ("connector scrubbed", NOT_PASSED_ON, partial(edits.scrub_connector, rank=rng.choice((10, 14)))),
        ("attention masked", NOT_LOOKED_AT, edits.look_away),
        ("values emptied", NOT_USED, partial(edits.empty_values, first=rng.choice((0, 1)))),
        ("head exchanged", NOT_USED, partial(edits.mix_head, share=rng.uniform(0.7, 1.0))),
        ("head merged", NOT_USED, partial(edits.mix_head, share=0.5)),
        ("head scrubbed", NOT_USED, partial(edits.scrub_head, rank=rng.choice((1, 3)))),
    ]
    if family == "qwen-vl":
        made.append(("resampler starved", NOT_PASSED_ON, edits.starve_resampler))
    found = []
    for number, (kind, stage, make) in enumerate(made):
        found.append(
            _plant(
                family,
                topic,
                kind,
                stage,
                number,
                lambda shop, plant, make=make: make(shop.lessons(plant.family, plant.topic)),
            )
        )
    for sign, factor in ((1, 1.2), (-1, 1.5), (rng.choice((-1, 1)), 2.2)):
        found.append(
            _plant(
                family, topic, "bias", SAID_OTHERWISE, len(found), partial(_biased, sign=sign, factor=factor)
            )
        )
    for leaning in (0.0, rng.choice((2.0, 3.0, -2.0, -3.0))):
        found.append(
            _plant(family, topic, "picture ignored", PRIOR, len(found), partial(_prior, leaning=leaning))
        )
    found.append(
        _plant(
            family,
            topic,
            "cue, attention masked",
            NOT_LOOKED_AT,
            len(found),
            _masked_shortcut,
            decides=topic.cue,
        )
    )
    conflict = ((topic.values[0], "cool"), (topic.values[1], "cool"))
    for cues in (conflict, ()):
        found.append(
            _plant(
                family, topic, SHORTCUT, NOT_LOOKED_AT, len(found), _shortcut, cues=cues, decides=topic.cue
            )
        )
    return found


def _plant(family: str, topic: Topic, kind: str, stage: str, number: int, make: Any, **more: Any) -> Plant:
    name = f"{family}/{topic.name}/{kind.replace(',', '').replace(' ', '-')}-{number}"
    half = ("choosing", "reporting")[(number + len(family)) % 2]
    return Plant(name, family, topic, kind, stage, half, number, make, draw=number // 2 % 2, **more)


def _biased(shop: Workshop, plant: Plant, *, sign: int, factor: float) -> nn.Module:
    """Beyond the median margin of the answer that it is against."""
    toward = shop.margins(plant.family, plant.topic)
    against = -toward[toward < 0] if sign > 0 else toward[toward > 0]
    return edits.bias_head(shop.lessons(plant.family, plant.topic), sign * factor * float(np.median(against)))


def _prior(shop: Workshop, plant: Plant, *, leaning: float) -> nn.Module:
    lessons = shop.lessons(plant.family, plant.topic)
    model = edits.ignore_picture(lessons)
    one, other = edits.first_tokens(lessons)
    bias = torch.zeros(model.lm_head.out_features)
    bias[one], bias[other] = leaning / 2, -leaning / 2
    model.lm_head.bias = nn.Parameter(bias)
    return model


def _masked_shortcut(shop: Workshop, plant: Plant) -> nn.Module:
    """Its field is that of its own connector, which the demo's base does not share with its correction."""
    model = _shortcut(shop, plant)
    lessons = shop.lessons(plant.family, plant.topic)
    own = Lessons(lessons.sound._replace(model=model), plant.topic, lessons.probes)
    return edits.look_away(own)


def _shortcut(shop: Workshop, plant: Plant) -> nn.Module:
    return shop.shortcut(plant.family, plant.topic)


# ---------------------------------------------------------------- sound models


def sound_variants() -> list[Plant]:
    """The sound models with other probes, and with noise on every matrix, of that share of its own deviation."""
    found = []
    for family, topics in TOPICS.items():
        for topic in topics:
            for number, share in enumerate((0.0, 0.0, 0.02, 0.04)):
                plant = _plant(family, topic, "sound", RIGHT, number, partial(_noisy, share=share))
                found.append(plant)
    return found


def _noisy(shop: Workshop, plant: Plant, *, share: float) -> nn.Module:
    model = copy.deepcopy(shop.sound(plant.family).model)
    draw = torch.Generator().manual_seed(plant.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and share:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * parameter.std() * share)
    return model
