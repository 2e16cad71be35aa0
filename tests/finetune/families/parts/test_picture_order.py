"""Pictures between words: which families read them first, and which conversations that changes."""

from pathlib import Path

import pytest

from finetune.families.parts.picture_order import moves_pictures, puts_pictures_first
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, Turn, VideoRef
from tests.finetune.families.test_contract import FAMILIES

FIRST = {"llava-1.5", "llava-next", "llava-onevision", "paligemma", "paligemma2"}
PICTURE, VIDEO = ImageRef("a", Path("a")), VideoRef("v", (), (0.0,))
BOX = BoxRef("as written", ((0.25, 0.0, 0.5, 0.75),), "the dog", style="json")


@pytest.mark.parametrize("name", FAMILIES)
def test_which_families_read_pictures_before_words(name: str, tmp_path: Path):
    one = FAMILIES[name]
    assert puts_pictures_first(one.family, one.processor(tmp_path)) == (name in FIRST)


def test_a_checkpoints_own_template_may_read_them_first(tmp_path: Path):
    one = FAMILIES["qwen2-vl"]
    processor = one.processor(tmp_path)
    before = processor.chat_template
    assert "{% for part in message.content %}" in before
    processor.chat_template = before.replace(
        "{% for part in message.content %}",
        "{% for part in (message.content | selectattr('type', 'equalto', 'image') | list)"
        " + (message.content | rejectattr('type', 'equalto', 'image') | list) %}",
    )
    assert puts_pictures_first(one.family, processor)


@pytest.mark.parametrize(
    ("parts", "moves"),
    [
        (("Before: ", PICTURE, " After: ", PICTURE, " What changed?"), True),
        (("what is it? ", PICTURE), True),
        ((PICTURE, "and", PICTURE, "?"), True),
        ((BOX, PICTURE), True),
        ((VIDEO, PICTURE, "?"), True),
        ((PICTURE, VIDEO, "?"), False),
        ((PICTURE, "\n", PICTURE, "\nwhat changed?"), False),
        (("Picture 1: ", PICTURE, "\nPicture 2: ", PICTURE, "\nwhat changed?"), False),
        (("Before.\nPicture 1: ", PICTURE, "what?"), True),
        (("As in Picture 1: ", PICTURE, "what?"), True),
        (("Picture 1: ", VIDEO, "what?"), True),
        ((" \n", PICTURE, "what?"), False),
        ((PICTURE, "what?", BOX), False),
        (("what?",), False),
    ],
)
def test_what_moves(parts: tuple[Part, ...], moves: bool):
    asked = Turn("user", parts)
    assert moves_pictures(Conversation((Turn("system", ("be brief",)), asked))) == moves
    assert moves_pictures(Conversation((Turn("user", ("hi",)), asked, Turn("assistant", ("a",))))) == moves
