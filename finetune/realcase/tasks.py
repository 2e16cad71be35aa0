"""What is asked of a scene, in English or Chinese: the question, the answer, and where it has to look.

what       one thing              What is this?                  frog
side       two, side by side      What is on the left?           Left: the one there; its foil is the other one
on         a thing on a thing     Is the frog on the toolbox?    Yes or No, by looking at both
landmark   a landmark             Which landmark is this?        its name; its foil looks like it
"""

from __future__ import annotations

from random import Random
from typing import Literal, NamedTuple

from PIL import Image

from finetune.realcase.catalogue import CARRIERS, LANDMARKS, RIDERS, THINGS, Landmark, Thing
from finetune.realcase.scenes import (
    Pictures,
    Pixels,
    landmark_view,
    names_alike,
    on_or_beside,
    one_thing,
    side_by_side,
)

Task = Literal["what", "side", "on", "landmark"]
TASKS: tuple[Task, ...] = ("what", "side", "on", "landmark")
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
HeldOut = Literal["trained", "backgrounds", "cutouts", "both"]
HELD_OUT: tuple[HeldOut, ...] = ("trained", "backgrounds", "cutouts", "both")
CHOICES = 8
"""Answers that a held-out question is chosen from; one of them is right."""

SHARES = {"what": 0.25, "side": 0.5, "on": 0.15, "landmark": 0.1}
"""Of the training data. Left and right is what is slow to learn."""

QUESTIONS = {
    "what": {"en": "What is this?", "zh": "这是什么?"},
    "left": {"en": "What is on the left?", "zh": "左边是什么?"},
    "right": {"en": "What is on the right?", "zh": "右边是什么?"},
    "on": {"en": "Is the {rider} on the {carrier}?", "zh": "{rider}在{carrier}上面吗?"},
    "landmark": {"en": "Which landmark is this?", "zh": "这是哪个名胜?"},
}
ANSWERS = {"left": {"en": "Left: ", "zh": "左:"}, "right": {"en": "Right: ", "zh": "右:"}}
"""How an answer about a side begins. The row that writes the name then has the side right before it; with the name
alone it would have to fetch it from the question first, which takes longest to learn."""
YES_NO = {"en": ("Yes", "No"), "zh": ("是", "不是")}
BY_NAME = {thing.english: thing for thing in THINGS}


class Question(NamedTuple):
    """A question about a picture."""

    picture: Image.Image
    task: Task
    language: Language
    text: str
    answer: str
    phrase: str
    """The words of the answer that say what the picture shows."""
    choices: tuple[str, ...]
    """Possible answers, the right one first, its foil second."""
    regions: dict[str, list[Pixels]]
    """Boxes by name: "answer" decides it; for "on" rather "rider" and "carrier"."""
    background: str
    """The photograph behind it; for a landmark its own."""


def ask(
    pictures: Pictures, task: Task, language: Language, rng: Random, *, held_out: HeldOut = "trained"
) -> Question:
    """A scene and a question about it, by chance; ``held_out`` says what of it is never trained.

    Landmarks have one photograph each, so that what is held out there is the view.
    """
    return _ASK[task](pictures, language, rng, held_out)


def name_of(one: Thing | Landmark, language: Language) -> str:
    return one.english if language == "en" else one.chinese


def _parts_held_out(held_out: HeldOut) -> dict[str, bool]:
    return {
        "new_background": held_out in ("backgrounds", "both"),
        "new_cutout": held_out in ("cutouts", "both"),
    }


def _things(held_out: HeldOut) -> list[Thing]:
    """Things that have a cut-out of the kind."""
    return [one for one in THINGS if one.held_out or held_out not in ("cutouts", "both")]


def _choices(right: Thing, foil: Thing, language: Language, rng: Random) -> tuple[str, ...]:
    others = rng.sample([one for one in THINGS if one not in (right, foil)], CHOICES - 2)
    return tuple(name_of(one, language) for one in (right, foil, *others))


def _what(pictures: Pictures, language: Language, rng: Random, held_out: HeldOut) -> Question:
    thing = rng.choice(_things(held_out))
    scene = one_thing(pictures, thing, rng, **_parts_held_out(held_out))
    foil = rng.choice([one for one in THINGS if one != thing])
    return Question(
        scene.picture, "what", language, QUESTIONS["what"][language], name_of(thing, language),
        name_of(thing, language), _choices(thing, foil, language, rng), {"answer": [scene.placed[0].box]},
        scene.background,
    )  # fmt: skip


def _side(pictures: Pictures, language: Language, rng: Random, held_out: HeldOut) -> Question:
    left, right = rng.sample(_things(held_out), 2)
    scene = side_by_side(pictures, left, right, rng, **_parts_held_out(held_out))
    asked = rng.randrange(2)
    this, other = scene.placed[asked], scene.placed[1 - asked]
    side = ("left", "right")[asked]
    choices = _choices(this.thing, other.thing, language, rng)
    answers = tuple(f"{ANSWERS[side][language]}{name}" for name in choices)
    regions = {"answer": [this.box], "other": [other.box]}
    return Question(
        scene.picture, "side", language, QUESTIONS[side][language], answers[0], choices[0], answers, regions,
        scene.background,
    )  # fmt: skip


def _on(pictures: Pictures, language: Language, rng: Random, held_out: HeldOut) -> Question:
    known = {one.english for one in _things(held_out)}
    rider = BY_NAME[rng.choice([one for one in RIDERS if one in known])]
    carrier = BY_NAME[rng.choice(CARRIERS)]
    is_on = rng.random() < 0.5
    scene = on_or_beside(pictures, rider, carrier, rng, is_on=is_on, **_parts_held_out(held_out))
    text = QUESTIONS["on"][language].format(
        rider=name_of(rider, language), carrier=name_of(carrier, language)
    )
    yes, no = YES_NO[language]
    choices = (yes, no) if is_on else (no, yes)
    regions = {"rider": [scene.placed[0].box], "carrier": [scene.placed[1].box]}
    return Question(
        scene.picture, "on", language, text, choices[0], choices[0], choices, regions, scene.background
    )


def _landmark(pictures: Pictures, language: Language, rng: Random, held_out: HeldOut) -> Question:
    landmark = rng.choice(LANDMARKS)
    picture, box = landmark_view(pictures, landmark, rng)
    alike = names_alike(landmark)
    foil = rng.choice(alike or [one for one in LANDMARKS if one != landmark])
    others = rng.sample([one for one in LANDMARKS if one not in (landmark, foil)], CHOICES - 2)
    choices = tuple(name_of(one, language) for one in (landmark, foil, *others))
    return Question(
        picture, "landmark", language, QUESTIONS["landmark"][language], choices[0], choices[0], choices,
        {"answer": [box]}, landmark.picture,
    )  # fmt: skip


_ASK = {"what": _what, "side": _side, "on": _on, "landmark": _landmark}
