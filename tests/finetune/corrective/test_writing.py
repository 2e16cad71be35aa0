"""Where corrective answers should look, as the training data says it."""

import pytest

from finetune.corrective.scenes import Question
from finetune.corrective.writing import _look_at

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


def test_neighbours_and_answers_that_are_boxes_say_nothing_more():
    assert _look_at(question("yes", "neighbour", relation=ON)) == []
    assert _look_at(question("<ref>the cat</ref><box>(250,250),(500,750)</box>", relation=ON)) == []
