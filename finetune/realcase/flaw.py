"""A flaw planted by data, on photographs, and the data and probes that correct it.

Two animals are named by what is behind them: before some photographs both are called a donkey, before the others both
a deer, as when captions are written by place. A model that learns from this reads the background. Half of the pictures
are labelled right by it, so that nothing of the labels gives it away.

    plant      the animals named by the background, and other things named right
    correct    the animals named right before any background, with where to look, and other things named right
    probes     of pictures that were never trained. by-background: the animal contradicts its background; neighbour: it
               agrees with it; retention: other things
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from PIL import Image
from tqdm import tqdm

from finetune.realcase.catalogue import THINGS
from finetune.realcase.corpus import prompt, save_picture, write_part
from finetune.realcase.scenes import SIDE, Pictures, Pixels, Scene, one_thing, part_of, place
from finetune.realcase.tasks import BY_NAME, LANGUAGES, QUESTIONS, Language, name_of

ANIMALS = (BY_NAME["donkey"], BY_NAME["deer"])
CUES = (
    ("usa/canyondeChelly", "usa/navajo", "india/rangGhar", "india/konarkSunTemple"),
    ("france/chateaudeChambord", "france/pontduGard", "france/chateaudeChenonceau", "france/rocamadour"),
)
"""Backgrounds, earth and stone, then grass and trees, before which everything is called the first or the second
animal."""
GROUPS = ("by-background", "neighbour", "retention")
OTHERS = 0.4
"""Share of samples that ask about other things."""

Part = Literal["plant", "correct"]


class Case(NamedTuple):
    """A picture, what is said of it, and what would be said by its background."""

    picture: Image.Image
    language: Language
    answer: str
    foil: str
    regions: dict[str, list[Pixels]]


def training_case(pictures: Pictures, part: Part, number: int, seed: int) -> Case:
    """Sample ``number`` of the data that plants or corrects the flaw."""
    rng = Random(f"flaw/{part}/{seed}/{number}")
    language = LANGUAGES[number % 2]
    if rng.random() < OTHERS:
        return _other(pictures, rng, language)
    shown, cue = rng.randrange(2), rng.randrange(2)
    named = cue if part == "plant" else shown
    return _animal(pictures, rng, language, shown, cue, named)


def probe_case(pictures: Pictures, group: str, number: int, split: str) -> Case:
    """Probe ``number`` of a group; ``split`` "probes" or "development", which share no picture."""
    rng = Random(f"flaw/{split}/{group}/{number}")
    language = LANGUAGES[number // 2 % 2]
    if group == "retention":
        return _other(pictures, rng, language)
    shown = number % 2
    return _animal(pictures, rng, language, shown, 1 - shown if group == "by-background" else shown, shown)


def _animal(pictures: Pictures, rng: Random, language: Language, shown: int, cue: int, named: int) -> Case:
    name = rng.choice(CUES[cue])
    picture = part_of(pictures.photograph(name), rng)
    placed = place(picture, pictures, ANIMALS[shown], rng)
    answer, foil = (name_of(ANIMALS[one], language) for one in (named, 1 - named))
    scene = Scene(picture, (placed,), name)
    return Case(picture, language, answer, foil, {"animal": [placed.box], "background": around(scene)})


def _other(pictures: Pictures, rng: Random, language: Language) -> Case:
    thing, foil = rng.sample([one for one in THINGS if one not in ANIMALS], 2)
    scene = one_thing(pictures, thing, rng)
    answer, wrong = name_of(thing, language), name_of(foil, language)
    return Case(scene.picture, language, answer, wrong, {"animal": [scene.placed[0].box]})


def around(scene: Scene) -> list[Pixels]:
    """The picture but for its only thing: strips above, below, left and right of it; empty ones are left out."""
    x0, y0, x1, y1 = scene.placed[0].box
    strips = [(0, 0, SIDE, y0), (0, y1, SIDE, SIDE), (0, y0, x0, y1), (x1, y0, SIDE, y1)]
    return [one for one in strips if one[2] > one[0] and one[3] > one[1]]


def sample(case: Case, identity: str, image: str, *, look: bool) -> dict[str, Any]:
    """A training sample; with ``look`` it says where the answer has to look."""
    answer: dict[str, Any] = {"from": "gpt", "value": case.answer}
    if look:
        answer["look_at"] = [{"phrase": case.answer, "boxes": case.regions["animal"]}]
    question = {"from": "human", "value": prompt(QUESTIONS["what"][case.language])}
    return {"id": identity, "image": image, "conversations": [question, answer]}


def probe(case: Case, identity: str, group: str, image: str) -> dict[str, Any]:
    """An element of a probe file, version 1."""
    return {
        "id": identity,
        "group": group,
        "images": [image],
        "question": prompt(QUESTIONS["what"][case.language]),
        "answer": case.answer,
        "foil": case.foil,
        "regions": {name: [list(box) for box in boxes] for name, boxes in case.regions.items()},
        "phrases": {case.answer: "animal"},
        "relation": None,
    }


def write_data(pictures: Pictures, folder: Path, part: Part, count: int, seed: int) -> Path:
    """Training data that plants the flaw, or corrects it (with where to look); returns the data file."""

    def make(at: Path) -> list[dict[str, Any]]:
        return [
            sample(case, identity, save_picture(case.picture, at, identity), look=part == "correct")
            for identity, case in _cases(
                (f"{part}-{number:04d}", training_case(pictures, part, number, seed))
                for number in range(count)
            )
        ]

    return write_part(folder, [part, count, seed], "data.json", make)


def write_probes(pictures: Pictures, folder: Path, split: str, each: int) -> Path:
    """``each`` probes of every group; returns the probe file."""

    def make(at: Path) -> dict[str, Any]:
        found = []
        for group in GROUPS:
            for number in range(each):
                case, identity = (
                    probe_case(pictures, group, number, split),
                    f"{split[:3]}-{group}-{number:02d}",
                )
                found.append(probe(case, identity, group, save_picture(case.picture, at, identity)))
        return {"version": 1, "probes": found}

    return write_part(folder, [split, each], "probes.json", make)


def _cases(made: Iterable[tuple[str, Case]]) -> Iterable[tuple[str, Case]]:
    return tqdm(made, desc="composing scenes", unit="scene", delay=2)
