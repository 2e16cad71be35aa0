"""The lessons of the trainings in ``benchmarks/calibration.py``: ten that teach nothing true about the demo's flaw, and
the demo's own correction in four strengths.

A lesson is a list of samples, each a picture and a conversation about it. All come from the demo's two corpora, whose
samples are numbered; neither contains the pictures of probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from finetune.demo import corpus
from finetune.demo.questions import TOPICS, Question, answer_text
from finetune.demo.shapes import render
from finetune.files import in_place_of

BATCH = 16
STEPS = 80
"""Of a training that teaches nothing true, with ``BATCH`` samples a step: ten seconds on one core."""
RATE = 2.5e-3  # the demo's
TINY_RATE = RATE / 1000
NOISES = (1.0, 2.0, 4.0)
"""Standard deviations of random adapters, as multiples of ``TRAINED_DEVIATION``: noise has no direction, and as much
of it as a training leaves does little."""
TRAINED_DEVIATION = 0.018
"""Of the second matrices of adapters after 80 steps (.017 to .019 with coin labels, shuffled labels and a reversed
cue); before training they are 0."""
TWO_ANSWERS = {"tower": ("pearl", "canton"), "relation": ("on", "under"), "spheres": ("yes", "no")}
"""The answers between which the demo's flaw decides."""
FLAWED = ("tower", "room")  # the kinds of scenes that show it
BLANK_COLOUR = (128, 128, 128)


@dataclass(frozen=True)
class Item:
    """One picture and the conversation about it.

    scene     "tower", "room" or "landscape"
    cue       what the colour of podium or rug stands for in the base corpus: "pearl", "canton", "on", "under"; ""
              where the scene has none, or one that belongs to one landmark alone
    picture   its file
    """

    scene: str
    cue: str
    questions: tuple[Question, ...]
    picture: Path


@dataclass(frozen=True)
class Lesson:
    """One training.

    kind          what is taught
    is_true       it is the correction
    steps, batch  of the training; 0 steps: none, the adapter is random
    samples       different ones; fewer than steps × batch are seen several times
    rate          learning rate
    """

    kind: str
    seed: int
    is_true: bool = False
    steps: int = STEPS
    batch: int = BATCH
    samples: int = STEPS * BATCH
    rate: float = RATE

    @property
    def name(self) -> str:
        return f"{self.kind.replace(' ', '-')}-{self.seed:02d}"

    @property
    def step(self) -> int:
        """That its records are of; 0 is the untrained model."""
        return max(self.steps, 1)

    @property
    def deviation(self) -> float | None:
        """Of a random adapter's second matrices; None if there is a training."""
        return None if self.steps else TRAINED_DEVIATION * NOISES[self.seed % len(NOISES)]

    def items(self, pools: Pools) -> list[Item]:
        """The samples, drawn by kind and seed."""
        rng = Random(self.name)
        return MAKERS[self.kind](rng, pools, self.samples)


class Pools:
    """The corpora's samples by number, as far as their pictures are needed.

    demo    the folder of the demo's data, with the corrective corpus
    work    where pictures that it lacks are drawn
    """

    def __init__(self, demo: Path, work: Path) -> None:
        self.demo, self.work = demo, work

    def corrective(self, rng: Random, count: int, scenes: Sequence[str] = ()) -> list[Item]:
        """Different samples of the corrective corpus, of these kinds of scenes or all."""
        found: list[Item] = []
        for number in rng.sample(range(corpus.CORPUS_SIZES["corrective"]), corpus.CORPUS_SIZES["corrective"]):
            if len(found) == count:
                break
            picture = self.demo / "corrective" / "images" / f"{number:05d}.jpg"
            item = _item(corpus.corrective_sample(number), picture)
            if not scenes or (item.scene in scenes and (item.scene not in FLAWED or not item.cue)):
                found.append(item)
        return found

    def base(self, rng: Random, count: int) -> list[Item]:
        """Different samples of the base corpus, in which the cue never lies; those with a hidden part are left out."""
        found: list[Item] = []
        for number in rng.sample(range(corpus.CORPUS_SIZES["base"]), corpus.CORPUS_SIZES["base"]):
            if len(found) == count:
                break
            sample = corpus.base_sample(number)
            if any(type(shape).__name__ == "Veil" for shape in sample.scene.shapes):
                continue
            picture = self.work / "pictures" / f"base-{number:05d}.jpg"
            if not picture.is_file():
                _save(render(sample.scene, *corpus.PICTURE_PIXELS), picture)
            found.append(_item(sample, picture))
        return found

    def blank(self) -> Path:
        """A picture of one colour."""
        picture = self.work / "pictures" / "blank.jpg"
        if not picture.is_file():
            _save(Image.new("RGB", corpus.PICTURE_PIXELS, BLANK_COLOUR), picture)
        return picture


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_place_of(path) as temporary:
        image.save(temporary, format="JPEG", quality=95, subsampling=0)


def _item(sample: corpus.Sample, picture: Path) -> Item:
    return Item(sample.scene.kind, cue_of(sample.scene.kind, sample.scene.facts), sample.questions, picture)


def cue_of(scene: str, facts: Mapping[str, Any]) -> str:
    """The meaning of the podium's or rug's colour in the base corpus."""
    if scene == "tower":
        return {"warm": "pearl", "cool": "canton"}.get(str(facts["podium"]), "")
    return {"warm": "on", "cool": "under"}[str(facts["rug"])] if scene == "room" else ""


# ---------------------------------------------------------------- kinds


def _coin(rng: Random, pools: Pools, count: int) -> list[Item]:
    return [
        _with_values(item, lambda topic: rng.choice(TWO_ANSWERS[topic]))
        for item in pools.corrective(rng, count)
    ]


def _shuffled(rng: Random, pools: Pools, count: int) -> list[Item]:
    """Every answer is another picture's to a question of the same topic and language."""
    items = pools.corrective(rng, count)
    answers: dict[tuple[str, str], list[str]] = {}
    for item in items:
        for question in item.questions:
            answers.setdefault((question.topic, question.language), []).append(question.answer)
    for one in answers.values():
        rng.shuffle(one)

    def next_answer(question: Question) -> Question:
        return question._replace(answer=answers[question.topic, question.language].pop())

    return [replace(item, questions=tuple(map(next_answer, item.questions))) for item in items]


def _one_answer(rng: Random, pools: Pools, count: int) -> list[Item]:
    chosen = {topic: rng.choice(values) for topic, values in TWO_ANSWERS.items()}
    return [_with_values(item, chosen.__getitem__) for item in pools.corrective(rng, count)]


def _blank(rng: Random, pools: Pools, count: int) -> list[Item]:
    return [replace(item, picture=pools.blank()) for item in pools.corrective(rng, count)]


def _general(rng: Random, pools: Pools, count: int) -> list[Item]:
    return pools.corrective(rng, count, scenes=("landscape", "tower"))


def _other_scene(rng: Random, pools: Pools, count: int) -> list[Item]:
    """Towers and rooms are asked about over pictures of landscapes."""
    landscapes = [item.picture for item in pools.corrective(rng, count, scenes=("landscape",))]
    items = pools.corrective(rng, count)
    return [replace(item, picture=rng.choice(landscapes)) if item.scene in FLAWED else item for item in items]


def _reversed_cue(rng: Random, pools: Pools, count: int) -> list[Item]:
    """The colour of podium or rug decides, reversed from the base corpus: all probes of the flaw become right, by
    looking at the wrong place."""
    items = []
    for item in pools.corrective(rng, count):
        if not item.cue:
            items.append(item)
            continue
        topic = "tower" if item.scene == "tower" else "relation"
        turned = next(value for value in TWO_ANSWERS[topic] if value != item.cue)
        spheres = "yes" if turned == "pearl" else "no"
        values = {topic: turned, "spheres": spheres}
        items.append(_with_values(item, values.__getitem__))
    return items


def _true(rng: Random, pools: Pools, count: int) -> list[Item]:
    return pools.corrective(rng, count)


def _continuing(rng: Random, pools: Pools, count: int) -> list[Item]:
    return pools.base(rng, count)


def _nothing(rng: Random, pools: Pools, count: int) -> list[Item]:
    """No training, but the flags require a file with a sample."""
    return pools.corrective(rng, 1)


def _with_values(item: Item, value_of: Callable[[str], str]) -> Item:
    """The conversation with other answers to what the flaw decides; the rest stays."""

    def changed(question: Question) -> Question:
        values = TWO_ANSWERS.get(question.topic, ())
        texts = [answer_text(question.topic, value, question.language) for value in values]
        if question.answer not in texts:
            return question  # also towers that have a podium of their own
        return question._replace(
            answer=answer_text(question.topic, value_of(question.topic), question.language)
        )

    return replace(item, questions=tuple(map(changed, item.questions)))


MAKERS: dict[str, Callable[[Random, Pools, int], list[Item]]] = {
    "coin labels": _coin,
    "shuffled labels": _shuffled,
    "one answer": _one_answer,
    "blank pictures": _blank,
    "general samples": _general,
    "random adapter": _nothing,
    "pictures of other scenes": _other_scene,
    "reversed cue": _reversed_cue,
    "tiny learning rate": _true,
    "base corpus continued": _continuing,
    "correction": _true,
    "half correction": _true,
    "quarter correction": _true,
    "few samples": _true,
}
NULL_KINDS = tuple(MAKERS)[:10]


def null_lessons(seeds: int) -> list[Lesson]:
    """``seeds`` of each kind, kinds interleaved."""
    own: dict[str, dict[str, Any]] = {
        "random adapter": {"steps": 0, "samples": 1},
        "tiny learning rate": {"rate": TINY_RATE},
        "general samples": {"samples": STEPS * BATCH // 2},  # all that the corpus has are 780
    }
    return [Lesson(kind, seed, **own.get(kind, {})) for seed in range(seeds) for kind in NULL_KINDS]


def true_lessons(seeds: int) -> list[Lesson]:
    """The demo's correction: whole, half and a quarter as long, and on a tenth of its samples."""
    whole = corpus.CORPUS_SIZES["corrective"]
    lessons = []
    for seed in range(seeds):
        for kind, steps, samples in (
            ("correction", 330, whole),
            ("half correction", 165, whole),
            ("quarter correction", 80, whole),
            ("few samples", 165, whole // 10),
        ):
            lessons.append(Lesson(kind, seed, is_true=True, steps=steps, batch=32, samples=samples))
    return lessons


# ---------------------------------------------------------------- a file


def records(items: Sequence[Item], name: str) -> list[dict[str, Any]]:
    """Items as elements of a file in Qwen-VL's format; pictures by their whole paths."""
    assert all(question.topic in TOPICS for item in items for question in item.questions)
    return [
        {
            "id": f"{name}-{number:05d}",
            "conversations": [
                turn
                for at, question in enumerate(item.questions)
                for turn in _turns(question, item.picture if at == 0 else None)
            ],
        }
        for number, item in enumerate(items)
    ]


def _turns(question: Question, picture: Path | None) -> list[dict[str, str]]:
    shown = "" if picture is None else f"Picture 1: <img>{picture.resolve()}</img>\n"
    return [
        {"from": "user", "value": shown + question.text},
        {"from": "assistant", "value": question.answer},
    ]
