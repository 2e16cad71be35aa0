"""Where corrective answers should look, as the training data says it, and where their pictures are."""

import json
from pathlib import Path

import pytest

from finetune.corrective.__main__ import main
from finetune.corrective.scenes import Question
from finetune.corrective.writing import DATA_FILE, _look_at
from tests.finetune.corrective_data import write_rooms

CAT, BENCH, SPHERES = (10.0, 5.0, 20.0, 15.5), (0.0, 15.0, 40.0, 20.0), (3.0, 4.0, 6.0, 7.126)
ON = {"phrase": "on", "subject": "cat", "object": "bench"}


def question(answer, group="spatial-relation", relation=None, phrases=None):
    regions = {"cat": (CAT,), "bench": (BENCH,), "sphere": (SPHERES,)}
    return Question(
        group,
        "on",
        "where",
        "en",
        "where?",
        answer,
        "on",
        regions=regions,
        phrases=phrases or {},
        relation=relation,
    )


@pytest.mark.parametrize(
    ("answer", "phrase"), [("on the bench", "on"), ("yes", "yes"), ("the person", "the person")]
)
def test_a_relation_looks_at_both_ends_from_its_word_or_from_the_whole_answer(answer, phrase):
    """ "on" is no word of "person"."""
    ends = [[[10, 5, 20, 15.5]], [[0, 15, 40, 20]]]
    assert _look_at(question(answer, relation=ON)) == [{"phrase": phrase, "ends": ends}]


def test_a_name_looks_at_what_it_is_recognised_by():
    named = question(
        "Oriental Pearl", "sphere-building", phrases={"Oriental Pearl": "sphere", "tower": "cat"}
    )
    assert _look_at(named) == [{"phrase": "Oriental Pearl", "boxes": [[3, 4, 6, 7.13]]}]


def test_words_that_are_there_twice_are_not_one_place():
    """Of a relation the whole answer looks at both ends; a name has an entry for each time."""
    twice = _look_at(question("on the lamp on the bench", relation=ON))
    assert [one["phrase"] for one in twice] == ["on the lamp on the bench"]
    answer = "Oriental Pearl, yes, the Oriental Pearl"
    again = _look_at(question(answer, "sphere-building", phrases={"Oriental Pearl": "sphere"}))
    assert [one["phrase"] for one in again] == ["Oriental Pearl"] * 2


def test_neighbours_and_answers_that_are_boxes_say_nothing_more():
    assert _look_at(question("yes", "neighbour", relation=ON)) == []
    assert _look_at(question("<ref>the cat</ref><box>(250,250),(500,750)</box>", relation=ON)) == []


@pytest.mark.parametrize("given", ["link", "link/inside", "pictures/../out"])
def test_pictures_are_found_from_a_folder_behind_a_link(given: str, tmp_path: Path):
    write_rooms(tmp_path, 30)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    (tmp_path / "photos").symlink_to(tmp_path / "pictures")
    flags = ["--images", str(tmp_path / "photos"), "--boxes", str(tmp_path / "instances.json")]
    assert main([*flags, "--output_dir", str(tmp_path / given)]) == 0
    data = json.loads((tmp_path / given / DATA_FILE).read_text())
    written = data[0]["conversations"][0]["value"].split("</img>")[0].removeprefix("Picture 1: <img>")
    assert not Path(written).is_absolute() and (tmp_path / given / written).is_file()
