"""``look_at`` of an answer, in each format; and every fault by its field."""

import json

import pytest
from PIL import Image

from finetune.samples.conversation import LookAt
from finetune.samples.formats.look_at import of_turn
from finetune.samples.source import read

BOX = [10, 5, 20, 15]  # of a picture of 40 × 20 pixels
LOOK = [{"phrase": "the cat", "boxes": [BOX]}]
FRACTIONS = (0.25, 0.25, 0.5, 0.75)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 20)).save(folder / "a.png")
    return folder


def answers(folder, record, **flags):
    path = folder / "data.json"
    path.write_text(json.dumps([record]))
    (one,) = read(path, say=lambda _: None, **flags)
    return [turn for turn in one.turns if turn.role == "assistant"]


def qwen_vl(look_at, answer="I see the cat", **more):
    turns = [
        {"from": "user", "value": "Picture 1: <img>a.png</img>\nwhat?"},
        {"from": "assistant", "value": answer},
    ]
    turns[1] |= {"look_at": look_at, **more}
    return {"conversations": turns}


RECORDS = {
    "qwen-vl": qwen_vl(LOOK),
    "llava": {"image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "I see the cat", "look_at": LOOK}]},
    "sharegpt": {"images": ["a.png"], "conversations": [
        {"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "I see the cat", "look_at": LOOK}]},
    "openai": {"images": ["a.png"], "messages": [
        {"role": "user", "content": "<image>what?"},
        {"role": "assistant", "content": "I see the cat", "look_at": LOOK}]},
    "alpaca": {"instruction": "<image>what?", "output": "I see the cat", "images": ["a.png"], "look_at": LOOK},
}  # fmt: skip


@pytest.mark.parametrize("name", [*RECORDS])
def test_every_format_keeps_it(folder, name):
    (answer,) = answers(folder, RECORDS[name], data_format=name)
    assert answer.look_at == (LookAt("the cat", (((FRACTIONS),),), 0),)
    assert of_turn(answer) == answer.look_at


def test_a_relation_has_two_ends(folder):
    (answer,) = answers(folder, qwen_vl([{"phrase": "cat", "ends": [[BOX], [[0, 0, 40, 20], BOX]]}]))
    assert answer.look_at[0].ends == ((FRACTIONS,), ((0.0, 0.0, 1.0, 1.0), FRACTIONS))


def test_markup_says_the_same_and_look_at_comes_before_it(folder):
    marked = "<ref>the cat</ref><box>(250,250),(500,750)</box>"
    (answer,) = answers(folder, qwen_vl(None, marked))
    assert answer.look_at == () and of_turn(answer) == (LookAt("the cat", ((FRACTIONS,),), 0),)
    (answer,) = answers(folder, qwen_vl([{"phrase": "cat", "boxes": [[0, 0, 40, 20]]}], marked))
    assert [one.phrase for one in of_turn(answer)] == ["cat"]


@pytest.mark.parametrize(
    ("look_at", "message"),
    [
        ({"phrase": "cat"}, "found an object, expected a list"),
        (["cat"], r"look_at\[0\]: found a string, expected"),
        ([{"phrase": "dog", "boxes": [BOX]}], "phrase: 'dog' is not in the answer 'I see the cat'"),
        ([{"phrase": " ", "boxes": [BOX]}], "phrase: found ' ', expected words"),
        ([{"phrase": "cat", "boxes": [[10, 5, 41, 15]]}], "expected it inside the picture, 40 × 20 pixels"),
        ([{"phrase": "cat", "boxes": [[20, 5, 10, 15]]}], "expected x0 < x1"),
        ([{"phrase": "cat", "boxes": []}], r"boxes: found \[\], expected a list"),
        ([{"phrase": "cat"}], "found neither of boxes and ends"),
        ([{"phrase": "cat", "boxes": [BOX], "ends": [[BOX], [BOX]]}], "found both of boxes and ends"),
        ([{"phrase": "cat", "ends": [[BOX]]}], "expected two lists of boxes"),
        ([{"phrase": "cat", "box": BOX}], "found 'box', expected phrase, boxes, ends, image alone"),
        ([{"phrase": "cat", "boxes": [BOX], "image": 1}], "image: found 1, expected 0 to 0"),
    ],
)
def test_faults_name_the_field(folder, look_at, message):
    with pytest.raises(ValueError, match=rf"conversations\[1\].look_at.*{message}|{message}"):
        answers(folder, qwen_vl(look_at))


def test_only_learned_answers_look(folder):
    with pytest.raises(ValueError, match="in an answer that is not learned"):
        record = qwen_vl(LOOK, weight=0)
        record["conversations"] += [{"from": "user", "value": "and?"}, {"from": "assistant", "value": "x"}]
        answers(folder, record)
    asked = qwen_vl(None)
    asked["conversations"][0]["look_at"] = LOOK
    with pytest.raises(ValueError, match="in a turn of the user"):
        answers(folder, asked)
