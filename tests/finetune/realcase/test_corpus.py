"""Questions and the files they become: read by the project's own readers, the same each time."""

import json
from collections import Counter
from random import Random

import pytest
from PIL import Image

from diagnostics.records.probes import read_probes
from finetune.realcase import corpus
from finetune.realcase.choices import read_questions
from finetune.realcase.tasks import BY_NAME, LANGUAGES, TASKS, ask
from finetune.samples import source
from tests.finetune.realcase.parts_in_small import drawn_pictures

PICTURES = drawn_pictures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("realcase")
    corpus.write_training(PICTURES, made / "train", corpus.training_plan(20, 0))
    corpus.write_probes(PICTURES, made / "held_out", corpus.held_out_plan(1))
    return made


def test_plans_by_hand():
    plan = corpus.training_plan(20, 0)
    assert Counter(one.task for one in plan) == {"what": 5, "side": 10, "on": 3, "landmark": 2}
    assert Counter(one.language for one in plan) == {"en": 10, "zh": 10}
    assert corpus.training_plan(20, 1)[0].identity != plan[0].identity
    held_out = corpus.held_out_plan(2)
    assert len(held_out) == 3 * 4 * 2 * 2 + 2 * 2 and len({one.identity for one in held_out}) == len(held_out)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_choices_hold_the_answer_its_foil_and_others(task, language):
    for seed in range(5):
        question = ask(PICTURES, task, language, Random(seed), held_out="both")
        assert question.choices[0] == question.answer
        assert len(set(question.choices)) == len(question.choices) == (2 if task == "on" else 8)
        assert all(letter.isascii() == (language == "en") for letter in question.answer[:1])
        assert question.phrase in question.answer


def test_left_and_right_are_asked_of_where_the_thing_is():
    sides = set()
    for seed in range(8):
        question = ask(PICTURES, "side", "en", Random(seed))
        (x0, _, x1, _), (other, *_) = question.regions["answer"][0], question.regions["other"][0]
        side = "left" if x0 < other else "right"
        sides.add(side)
        opening, name = question.choices[1].split(": ")
        assert (
            opening.lower() == side and name in BY_NAME and question.answer == f"{opening}: {question.phrase}"
        )
        assert side in question.text and (x1 <= 448) == (side == "left")
    assert sides == {"left", "right"}


def test_training_data_is_read_with_where_to_look(folder):
    records = json.loads((folder / "train" / "data.json").read_text())
    looks = [one["conversations"][1]["look_at"][0] for one in records]
    answers = [one["conversations"][1]["value"] for one in records]
    openings = [answer.removesuffix(look["phrase"]) for answer, look in zip(answers, looks, strict=True)]
    assert {*openings} == {"", "Left: ", "Right: ", "左:", "右:"} and openings.count("") == 10
    assert sum("ends" in one for one in looks) == 3 and sum("boxes" in one for one in looks) == 17
    with Image.open(folder / "train" / records[0]["image"]) as opened:
        # Wide where two things stand side by side.
        is_wide = "on the" in records[0]["conversations"][0]["value"] or "边" in str(records[0])
        assert opened.size == (896 if is_wide else 448, 448)
    read = source.read(folder / "train" / "data.json", workers=1, say=lambda _: None)
    assert len(read) == 20 and read[0].turns[-1].parts == (records[0]["conversations"][1]["value"],)


def test_probes_are_read_and_have_their_choices(folder):
    probes = read_probes(folder / "held_out" / "probes.json")
    questions = read_questions(folder / "held_out" / "probes.json")
    assert len(probes) == len(questions) == 3 * 4 * 2 + 2
    assert Counter(one.language for one in questions) == {"en": 13, "zh": 13}
    of_on = next(one for one in questions if one.group == "on-both")
    assert len(of_on.boxes) == 2 and len(of_on.choices) == 2
    of_side = next(one for one in questions if one.group == "side-cutouts")
    assert (
        len(of_side.boxes) == 1
        and of_side.image.is_file()
        and of_side.text.startswith(("What is on", "左边", "右边"))
    )


def test_the_same_plan_draws_the_same_and_only_once(folder, tmp_path):
    plan = corpus.held_out_plan(1)[:3]
    for one in plan:
        first, second = (corpus.draw(PICTURES, one) for _ in range(2))
        assert first.picture.tobytes() == second.picture.tobytes() and first.regions == second.regions
    written = (folder / "train" / "data.json").stat().st_mtime_ns
    assert corpus.write_training(PICTURES, folder / "train", corpus.training_plan(20, 0)).is_file()
    assert (folder / "train" / "data.json").stat().st_mtime_ns == written
    corpus.write_training(PICTURES, folder / "train", corpus.training_plan(21, 0))
    assert len(json.loads((folder / "train" / "data.json").read_text())) == 21
