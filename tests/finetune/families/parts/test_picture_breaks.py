"""One line break between a picture and its words, where the template writes one: the prompt is the served one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.families.parts.chat import Control, Picture
from finetune.families.parts.picture_breaks import Breaks, as_read, breaks_of
from finetune.samples.conversation import Conversation, ImageRef, Turn, VideoRef
from tests.finetune.families.pictures import picture
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}
MOVED = {"llava-1.5", "llava-next", "llava-onevision", "paligemma", "paligemma2"}
WRITTEN = MOVED | {"internvl", "gemma3"}
"""Families whose template, or layout, parts a picture from its words itself."""


@pytest.fixture(scope="module", params=[*FAMILIES])
def case(request, tmp_path_factory) -> tuple[str, Any, Any]:
    tiny = FAMILIES[request.param]
    return request.param, tiny.family, tiny.processor(tmp_path_factory.mktemp("breaks"))


def ids(family: Any, processor: Any, *turns: Sequence[Any], answer: str = "a dog") -> list[int]:
    """Of questions made of words and pictures ("i"), each with the answer."""
    said = []
    for parts in turns:
        refs = [ImageRef("a", picture((40, 30))) if part == "i" else part for part in parts]
        said += [Turn("user", tuple(refs)), Turn("assistant", (answer,))]
    return family.encode(processor, Conversation(tuple(said))).input_ids.tolist()


@pytest.mark.parametrize(
    ("written", "served"),
    [
        ([["i", "\nWhat is this?"]], [["i", "What is this?"]]),
        ([["i", "\r\nWhat is this?"]], [["i", "What is this?"]]),
        ([["i", "\n", "i", "\nWhat is this?"]], [["i", "i", "What is this?"]]),
        ([["i", "\nWhat is this?"], ["And\nnow?"]], [["i", "What is this?"], ["And\nnow?"]]),
        ([["What?"], ["i", "\nWhat is this?"]], [["What?"], ["i", "What is this?"]]),
    ],
)
def test_the_break_behind_a_picture_is_the_templates_or_the_records(case, written, served):
    name, family, processor = case
    assert (ids(family, processor, *written) == ids(family, processor, *served)) == (name in WRITTEN)


@pytest.mark.parametrize(
    ("labelled", "bare"),
    [
        (["Picture 1: ", "i", "\nWhat is this?"], ["i", "\nWhat is this?"]),
        (["Picture 1: ", "i", "\nPicture 2: ", "i", "\nWhich?"], ["i", "\n", "i", "\nWhich?"]),
        (["Look.\nPicture 1: ", "i", "Well?"], ["Look.", "i", "Well?"]),
    ],
)
def test_a_picture_that_is_moved_leaves_no_label_behind(case, labelled, bare):
    name, family, processor = case
    assert (ids(family, processor, labelled) == ids(family, processor, bare)) == (name in MOVED)


def test_a_break_before_a_picture_that_is_moved_or_parted_is_none_of_the_words(case):
    name, family, processor = case
    same = ids(family, processor, ["What is this?\n", "i"]) == ids(family, processor, ["What is this?", "i"])
    assert same == (name in MOVED | {"gemma3"})


def test_only_one_break_is_the_pictures_and_answers_keep_theirs(case):
    name, family, processor = case
    one, two = (ids(family, processor, ["i", f"{breaks}What is this?"]) for breaks in ("\n", "\n\n"))
    assert one != two or name == "gemma3"  # whose published template trims
    if name != "gemma3":
        begun = ids(family, processor, ["i", "What?"], answer="\na dog")
        assert begun != ids(family, processor, ["i", "What?"], answer="a dog")


def test_words_around_a_picture_that_is_moved_stay_apart(case):
    name, family, processor = case
    if name in MOVED:
        apart = ids(family, processor, ["Look:\n", "i", "\nWhat is this?"])
        assert apart == ids(family, processor, ["i", "Look:\n\nWhat is this?"])


def test_spans_are_of_what_is_written(case):
    _, family, processor = case
    turns = (
        Turn("user", (ImageRef("a", picture((40, 30))), "\nWhat is this?")),
        Turn("assistant", ("a dog",)),
    )
    found = family.encode(processor, Conversation(turns))
    start, end = found.turn_spans[-1]
    assert processor.tokenizer.decode(found.input_ids[start:end]).strip() == "a dog"
    learned = found.labels[start:end]
    assert np.array_equal(learned, found.input_ids[start:end])


IMAGE, VIDEO = Picture(3), Picture(3, "video")


@pytest.mark.parametrize(
    ("breaks", "content", "kept"),
    [
        (Breaks(False, "", "\n"), ["a\n", IMAGE, "\n\nb"], ["a\n", IMAGE, "\nb"]),
        (Breaks(False, "\n", ""), ["a\n\n", IMAGE, "\nb"], ["a\n", IMAGE, "\nb"]),
        (Breaks(False, "", "<end>"), [IMAGE, "\nb"], [IMAGE, "\nb"]),
        (Breaks(False, "", "\n"), [IMAGE, Control("\n"), "b"], [IMAGE, Control("\n"), "b"]),
        (Breaks(True, "", "\n"), ["a\n", IMAGE, "\nb"], ["a\n", IMAGE, "\nb"]),
        (Breaks(True, "", ""), [IMAGE, "\nb"], [IMAGE, "\nb"]),
        (Breaks(True, "", "\n"), [IMAGE, "\n", IMAGE, "\n", "b"], [IMAGE, IMAGE, "b"]),
        (Breaks(True, "", "\n"), ["\nb\n", IMAGE], ["\nb", IMAGE]),
        (Breaks(True, "", "\n"), ["\nb\n"], ["\nb\n"]),
        (Breaks(True, "", "\n"), ["Picture 1: ", IMAGE, "\nPicture 2: ", IMAGE, "\nb"], [IMAGE, IMAGE, "b"]),
        (Breaks(True, "", ""), ["Picture 1: ", IMAGE, "\nb"], [IMAGE, "\nb"]),
        (Breaks(True, "", "\n"), ["a\r\nPicture 1: ", IMAGE, "\nb"], ["a", IMAGE, "\nb"]),
        (Breaks(True, "", "\n"), ["as in Picture 1: ", IMAGE, "b"], ["as in Picture 1: ", IMAGE, "b"]),
        (Breaks(True, "", "\n"), [Control("Picture 1: "), IMAGE, "b"], [Control("Picture 1: "), IMAGE, "b"]),
        (Breaks(True, "", "\n"), ["Picture 1: ", "b", IMAGE], ["Picture 1: ", "b", IMAGE]),
        (Breaks(True, "", "\n"), ["Picture 1: ", VIDEO, "b"], ["Picture 1: ", VIDEO, "b"]),
        (Breaks(False, "", "\n"), ["Picture 1: ", IMAGE, "\nb"], ["Picture 1: ", IMAGE, "b"]),
    ],
)
def test_what_is_left_of_a_turn(breaks: Breaks, content: list[Any], kept: list[Any]):
    [(_, found)] = as_read([("user", content)], breaks)
    assert list(found) == kept
    [(_, answer)] = as_read([("assistant", content)], breaks)
    assert answer == content


def test_a_template_that_does_not_write_pictures_between_words_says_nothing():
    def refuses(messages: Any, generating: bool) -> str:
        raise ValueError("no")

    class Nameless:
        tokenizer = None

    for write in (refuses, lambda messages, generating: "words"):

        class One(Nameless):
            chat_template = repr(write)

        assert breaks_of(One(), write, "<image>") is None


@pytest.mark.parametrize("name", ["internvl", "smolvlm", "qwen2.5-vl"])
def test_the_break_behind_a_video_is_the_familys_where_it_writes_one(name: str, tmp_path: Path):
    """InternVL ends each frame with one, and SmolVLM the frames with two."""
    tiny = FAMILIES[name]
    processor, frames = tiny.processor(tmp_path), []
    for at in range(2):
        frames.append(ImageRef(str(at), tmp_path / f"{at}.png"))
        picture((40, 30)).save(tmp_path / f"{at}.png")
    film = VideoRef("film", (0.0, 0.5), tuple(frames), size_pixels=(40, 30))
    found = [
        tiny.family.encode(processor, Conversation((Turn("user", (film, words)), Turn("assistant", ("a",)))))
        for words in ("What?", "\nWhat?", "\n\nWhat?")
    ]
    none, one, two = (each.input_ids.tolist() for each in found)
    assert (none == one) == (name != "qwen2.5-vl") and one != two
