"""``look_at`` of an answer, in each format; and every fault by its field."""

import json

import pytest
from PIL import Image

from finetune.samples.conversation import LookAt
from finetune.samples.formats.look_at import occurrences, of_turn, places, words_of
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


def test_phrases_that_begin_together_would_teach_one_row_two_places(folder):
    looks = [
        {"phrase": "the tower", "boxes": [BOX]},
        {"phrase": "the tower's spheres", "boxes": [[0, 0, 5, 5]]},
    ]
    with pytest.raises(
        ValueError, match=r"look_at: found the phrases 'the tower' and .*, which begin at one place"
    ):
        answers(folder, qwen_vl(looks, "It has the tower's spheres."))
    apart = [looks[0], looks[1] | {"phrase": "spheres"}]
    (answer,) = answers(folder, qwen_vl(apart, "It has the tower's spheres."))
    assert [one.phrase for one in answer.look_at] == ["the tower", "spheres"]


def test_a_relation_has_two_ends(folder):
    (answer,) = answers(folder, qwen_vl([{"phrase": "cat", "ends": [[BOX], [[0, 0, 40, 20], BOX]]}]))
    assert answer.look_at[0].ends == ((FRACTIONS,), ((0.0, 0.0, 1.0, 1.0), FRACTIONS))


def test_markup_says_the_same_and_look_at_comes_before_it(folder):
    marked = "<ref>the cat</ref><box>(250,250),(500,750)</box>"
    (answer,) = answers(folder, qwen_vl(None, marked))
    assert answer.look_at == () and of_turn(answer) == (LookAt("the cat", ((FRACTIONS,),), 0),)
    (answer,) = answers(folder, qwen_vl([{"phrase": "cat", "boxes": [[0, 0, 40, 20]]}], marked))
    assert [one.phrase for one in of_turn(answer)] == ["cat"]


def places_of(answer):
    return [
        (one.look.ends[0][0][0], one.start, words_of(answer.parts)[one.start : one.end])
        for one in places(answer)
    ]


def test_markup_looks_at_its_own_words(folder):
    marked = "The cat and <ref>cat</ref><box>(250,250),(500,750)</box>, <ref>cat</ref><box>(500,500),(900,900)</box>"
    (answer,) = answers(folder, qwen_vl(None, marked))
    assert words_of(answer.parts) == "The cat and cat, cat"
    assert places_of(answer) == [(0.25, 12, "cat"), (0.5, 17, "cat")]


def entries(phrase, *lefts):
    return [{"phrase": phrase, "boxes": [[left, 5, 39, 15]]} for left in lefts]


@pytest.mark.parametrize(
    ("phrase", "words", "found"),
    [
        ("cat", "two cats and a cat", [15]),
        ("cat", "two cats", [4]),
        ("box", "boxes, boxer", [0]),
        ("cat", "a category of wildcats", []),
        ("on", "one person", []),
        ("塔", "两座塔上", [2]),
    ],
)
def test_a_phrase_is_a_whole_word_or_its_plural(phrase, words, found):
    assert [one.start() for one in occurrences(phrase, words)] == found


def test_entries_of_one_phrase_are_about_its_occurrences_in_order(folder):
    said = entries("cat", 10) + entries("on", 4) + entries("cat", 20)
    (answer,) = answers(folder, qwen_vl(said, "a cat on a cat, not a person"))
    assert places_of(answer) == [(0.25, 2, "cat"), (0.1, 6, "on"), (0.5, 11, "cat")]


def test_two_entries_of_a_phrase_that_is_there_once_are_refused(folder):
    """Both would be about the one row. "Cat" is not "cat": the box of the first would be taught to the second."""
    message = (
        "found 2 with the phrase 'cat', which the answer .* has 1 time, expected one for each.*into one entry"
    )
    for answer in ("I see the cat", "Cat left, and a cat right"):
        with pytest.raises(ValueError, match=message):
            answers(folder, qwen_vl(entries("cat", 10, 20), answer))
    (answer,) = answers(folder, qwen_vl(entries("Cat", 10) + entries("cat", 20), "Cat left, and a cat right"))
    assert places_of(answer) == [(0.25, 0, "Cat"), (0.5, 16, "cat")]


@pytest.mark.parametrize(
    ("count", "answer"), [(1, "a cat, a cat"), (2, "cat, cat and cat"), (3, "a cat, a cat")]
)
def test_entries_that_leave_open_which_are_refused(folder, count, answer):
    times, remedy = answer.count("cat"), "put boxes" if count == 3 else "add the others"
    with pytest.raises(ValueError, match=rf"\[1\].look_at: found {count} with the phrase 'cat', .*has {times} times.*"
                       f"expected one for each, in order; {remedy}"):  # fmt: skip
        answers(folder, qwen_vl(entries("cat", *[10] * count), answer))
    assert answers(folder, qwen_vl(entries("cat,", 10), answer))


@pytest.mark.parametrize(
    ("look_at", "message"),
    [
        ({"phrase": "cat"}, "found an object, expected a list"),
        (["cat"], r"look_at\[0\]: found a string, expected"),
        ([{"phrase": "dog", "boxes": [BOX]}], "phrase: 'dog' is not in the answer 'I see the cat'"),
        (
            [{"phrase": "ca", "boxes": [BOX]}],
            "phrase: 'ca' is only inside a longer word of the answer 'I see",
        ),
        ([{"phrase": " ", "boxes": [BOX]}], "phrase: found ' ', expected words"),
        ([{"phrase": "cat", "boxes": [[10, 5, 41, 15]]}], "expected it inside the picture, 40 × 20 pixels"),
        ([{"phrase": "cat", "boxes": [[20, 5, 10, 15]]}], "expected x0 < x1"),
        (
            [{"phrase": "cat", "boxes": [[0.25, 0.25, 0.5, 0.75]]}],
            "which looks like fractions.*multiply x by 40",
        ),
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


FRAMES = {"frames": ["a.png"] * 2, "fps": 2}


def beside_videos(question, **image):
    """A record whose question has pictures and videos in this order."""
    look = {"phrase": "cat", "boxes": [BOX], **image}
    answer = {"role": "assistant", "content": "a cat", "look_at": [look]}
    return {
        "messages": [{"role": "user", "content": f"{question} where?"}, answer],
        "images": ["a.png"] * question.count("<image>"),
        "videos": [FRAMES] * question.count("<video>"),
    }


@pytest.mark.parametrize(
    ("question", "image", "place"),
    [
        ("<video> <image> <image>", {"image": 1}, 2),
        ("<video> <image> <image>", {"image": 0}, 1),
        ("<image> <video> <image>", {"image": 1}, 2),
        ("<image> <image> <video>", {"image": 1}, 1),
        ("<video> <image>", {"image": 0}, 1),
        ("<video> <image> <video>", {}, 1),
    ],
)
def test_pictures_alone_are_counted(folder, question, image, place):
    (answer,) = answers(folder, beside_videos(question, **image))
    assert [one.image for one in answer.look_at] == [place]


@pytest.mark.parametrize(
    ("question", "image", "message"),
    [
        ("<video> <image> <image>", {"image": 2}, "found 2, expected 0 to 1, counted from 0, without videos"),
        ("<image> <video> <image>", {}, "found none, expected 0 to 1, counted from 0, without videos"),
        ("<video>", {}, "no picture before the answer, only videos"),
    ],
)
def test_a_picture_that_is_not_there_is_refused(folder, question, image, message):
    with pytest.raises(ValueError, match=message):
        answers(folder, beside_videos(question, **image))
