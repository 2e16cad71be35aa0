"""Questions as files: training data with ``look_at`` boxes, and probe files, each with its pictures.

    DIR/train/data.json          LLaVA's format, each answer with where it has to look     DIR/train/images/
    DIR/held_out/probes.json     probes, version 1; their groups are what was held out     DIR/held_out/images/

Each part is drawn into a temporary folder and moved into place whole, with the recipe that made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from finetune.files import folder_in_place_of
from finetune.realcase.scenes import Pictures
from finetune.realcase.tasks import HELD_OUT, LANGUAGES, SHARES, TASKS, HeldOut, Language, Question, Task, ask

RECIPE = 2
"""Raised where the code draws other pictures from the same seed."""
RECIPE_FILE = "recipe.json"
JPEG_QUALITY = 92


class Planned(NamedTuple):
    """A question to be drawn."""

    identity: str
    task: Task
    language: Language
    held_out: HeldOut = "trained"


def training_plan(count: int, seed: int, asked: Sequence[Task] = TASKS) -> list[Planned]:
    """``count`` questions in random order: the asked tasks by their shares, languages in turn. 20 of all: 5 what, 10
    side, 3 on, 2 landmark."""
    whole = sum(SHARES[task] for task in asked)
    tasks: list[Task] = []
    for task in asked:
        tasks += [task] * round(SHARES[task] / whole * count)
    tasks = (tasks + [max(asked, key=SHARES.__getitem__)] * count)[:count]
    Random(f"order/{seed}").shuffle(tasks)
    return [
        Planned(f"train-{seed}-{number:05d}", task, LANGUAGES[number % 2])
        for number, task in enumerate(tasks)
    ]


def held_out_plan(each: int, asked: Sequence[Task] = TASKS) -> list[Planned]:
    """``each`` questions of every task, language and kind of what is held out. Of landmarks only the view is new."""
    return [
        Planned(f"{task}-{held_out}-{language}-{number:03d}", task, language, held_out)
        for task in asked
        for held_out in (HELD_OUT if task != "landmark" else HELD_OUT[:1])
        for language in LANGUAGES
        for number in range(each)
    ]


def draw(pictures: Pictures, planned: Planned) -> Question:
    """The same question from the same plan, wherever it stands in it."""
    rng = Random(f"realcase/{RECIPE}/{planned.identity}")
    return ask(pictures, planned.task, planned.language, rng, held_out=planned.held_out)


def prompt(question: str) -> str:
    """One form for training data and probes."""
    return f"<image>\n{question}"


def sample(question: Question, identity: str, image: str) -> dict[str, Any]:
    """A training sample; ``image`` is relative to the data file."""
    look: dict[str, Any]
    if question.task == "on":
        look = {"phrase": question.phrase, "ends": [question.regions["rider"], question.regions["carrier"]]}
    else:
        look = {"phrase": question.phrase, "boxes": question.regions["answer"]}
    return {
        "id": identity,
        "image": image,
        "conversations": [
            {"from": "human", "value": prompt(question.text)},
            {"from": "gpt", "value": question.answer, "look_at": [look]},
        ],
    }


def probe(question: Question, planned: Planned, image: str) -> dict[str, Any]:
    """An element of a probe file. ``choices`` is our own: the answers that it is chosen from."""
    phrases = {question.phrase: "answer"} if "answer" in question.regions else {}
    relation = None
    if question.task == "on":
        phrase = "on" if question.language == "en" else "上面"
        relation = {"phrase": phrase, "subject": "rider", "object": "carrier"}
    return {
        "id": planned.identity,
        "group": f"{planned.task}-{planned.held_out}",
        "images": [image],
        "question": prompt(question.text),
        "answer": question.answer,
        "foil": question.choices[1],
        "regions": {name: [list(box) for box in boxes] for name, boxes in question.regions.items()},
        "phrases": phrases,
        "relation": relation,
    }


def write_training(pictures: Pictures, folder: Path, plan: Sequence[Planned]) -> Path:
    """Draw what is missing; returns the data file."""
    return write_part(
        folder, [list(one) for one in plan], "data.json", lambda at: _samples(pictures, plan, at)
    )


def write_probes(pictures: Pictures, folder: Path, plan: Sequence[Planned]) -> Path:
    """Draw what is missing; returns the probe file. ``choices.json`` beside it: probe → the answers to choose from."""
    return write_part(
        folder, [list(one) for one in plan], "probes.json", lambda at: _probes(pictures, plan, at)
    )


def _samples(pictures: Pictures, plan: Sequence[Planned], at: Path) -> Any:
    made = []
    for planned, question, image in _drawn(pictures, plan, at):
        made.append(sample(question, planned.identity, image))
    return made


def _probes(pictures: Pictures, plan: Sequence[Planned], at: Path) -> Any:
    made, choices = [], {}
    for planned, question, image in _drawn(pictures, plan, at):
        made.append(probe(question, planned, image))
        choices[planned.identity] = list(question.choices)
    (at / "choices.json").write_text(json.dumps(choices, ensure_ascii=False, indent=1), encoding="utf-8")
    return {"version": 1, "probes": made}


def _drawn(pictures: Pictures, plan: Sequence[Planned], at: Path) -> Iterable[tuple[Planned, Question, str]]:
    for planned in tqdm(plan, desc="composing scenes", unit="scene", delay=2):
        question = draw(pictures, planned)
        yield planned, question, save_picture(question.picture, at, planned.identity)


def save_picture(picture: Image.Image, folder: Path, identity: str) -> str:
    """The picture's path relative to the folder."""
    image = f"images/{identity}.jpg"
    picture.save(folder / image, quality=JPEG_QUALITY, subsampling=0)
    return image


def write_part(folder: Path, recipe: Any, name: str, make: Callable[[Path], Any]) -> Path:
    """Draw a folder of pictures and their file ``name``, unless it was drawn from the same recipe; returns the file.

    make   draws into a folder, and returns the file's content
    """
    whole = {"version": RECIPE, "recipe": recipe}
    written = folder / RECIPE_FILE
    if written.is_file() and json.loads(written.read_text(encoding="utf-8")) == whole:
        return folder / name
    with folder_in_place_of(folder) as temporary:
        (temporary / "images").mkdir()
        content = make(temporary)
        (temporary / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        (temporary / RECIPE_FILE).write_text(json.dumps(whole), encoding="utf-8")
    return folder / name
