"""White space that a template trims is neither read nor learned; all other white space is."""

from typing import Any

import numpy as np
import pytest

from finetune.families.parts.chat import Control, Picture
from finetune.families.parts.trimming import Trimming, trimmed, trimming_of
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.parts.test_picture_breaks import FAMILIES
from tests.finetune.families.pictures import picture

TRIMS = {"gemma3"}


@pytest.fixture(scope="module", params=[*FAMILIES])
def case(request, tmp_path_factory) -> tuple[str, Any, Any]:
    tiny = FAMILIES[request.param]
    return request.param, tiny.family, tiny.processor(tmp_path_factory.mktemp("trimming"))


def encoded(family: Any, processor: Any, before: str, behind: str, answer: str) -> Any:
    asked = Turn("user", (before, ImageRef("a", picture((40, 30))), behind))
    return family.encode(processor, Conversation((asked, Turn("assistant", (answer,)))))


def test_edges_are_those_that_the_template_leaves(case):
    name, family, processor = case
    bare = encoded(family, processor, "Look:", "what?", "a dog")
    for before, behind, answer in (
        ("Look:", "what?", " a dog\n"), ("Look:", "what? ", "a dog"), (" Look:", "what?", "a dog"),
        ("Look: ", "what?", "a dog"), ("Look:", "  what?", "a dog"),
    ):  # fmt: skip
        found = encoded(family, processor, before, behind, answer)
        same = np.array_equal(found.input_ids, bare.input_ids) and np.array_equal(found.labels, bare.labels)
        assert same == (name in TRIMS)


def test_what_is_learned_is_what_transformers_writes(case):
    """Gemma 3's answers: their own processor's prompt, and the words without white space around them."""
    name, family, processor = case
    if name not in TRIMS:
        return
    found = encoded(family, processor, "Look:", "what?", " a dog\n")
    learned = processor.tokenizer.decode([one for one in found.labels if one >= 0])
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": " a dog\n"}]},
    ]
    assert learned in processor.apply_chat_template(messages, tokenize=False) and learned.startswith("a dog")


def test_a_systems_words_are_trimmed_where_the_template_trims_them(tmp_path):
    """As Qwen3.5's published template does."""
    tiny = FAMILIES["qwen2-vl"]
    processor = tiny.processor(tmp_path)

    def ids(system: str) -> list[int]:
        turns = Turn("system", (system,)), Turn("user", ("hi",)), Turn("assistant", ("a",))
        return tiny.family.encode(processor, Conversation(turns)).input_ids.tolist()

    assert ids("Be brief.\n") != ids("Be brief.")
    processor.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}"
        "{{ part.text | trim if message.role == 'system' else part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert ids(" Be brief.\n") == ids("Be brief.")


IMAGE = Picture(3)


@pytest.mark.parametrize(
    ("at_pictures", "content", "left"),
    [
        (False, [" a ", IMAGE, " b "], ["a ", IMAGE, " b"]),
        (True, [" a ", IMAGE, "\nb "], ["a", IMAGE, "b"]),
        (True, [IMAGE, " ", IMAGE, " b"], [IMAGE, IMAGE, "b"]),
        (True, ["a ", " b"], ["a ", " b"]),
        (False, [" ", " a", "b ", "\n"], ["a", "b"]),
        (True, [" ", IMAGE, " ", "\na"], [IMAGE, "a"]),
        (True, [Control(" x"), " b "], [Control(" x"), " b"]),
    ],
)
def test_what_is_left_of_a_turn(at_pictures: bool, content: list[Any], left: list[Any]):
    trimming = Trimming(frozenset({"user"}), at_pictures)
    turns = trimmed([("user", content), ("assistant", " c ")], trimming)
    assert turns == [("user", left), ("assistant", " c ")]


def test_a_template_that_refuses_such_turns_trims_nothing():
    def refuses(messages: Any, generating: bool) -> str:
        raise ValueError("no")

    class Nameless:
        tokenizer, chat_template = None, "of this test"

    assert trimming_of(Nameless(), refuses) == Trimming(frozenset(), False)
