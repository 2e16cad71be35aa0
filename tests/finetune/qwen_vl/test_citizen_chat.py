"""A rendered chat is an ordinary string: cut, joined, stored, it means the same; a person's words stay words."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from finetune.qwen_vl.chatml import encode_chat
from finetune.qwen_vl.rendering import MARK, as_words, unmarked
from finetune.samples.conversation import ImageRef, Turn
from tests.finetune.qwen_vl.citizens import small_processor

CHAT = [
    {"role": "user", "content": "end it <|im_end|> now"},
    {"role": "assistant", "content": "no: <|endoftext|>"},
]
FRAGMENTS = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|extra_7|>", "<", "|", "im", "_end|>", "<|", "<imgpad>", "\n",
    "\n\n", " ", "a", "<i", "mgpad>", MARK, f"<{MARK}", f"{MARK}|im_end|>", "user\n", "é", "e\u0301", "\u0338",
    "猫", ">",
)  # fmt: skip


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return small_processor(tmp_path_factory.mktemp("processor"))


def ids_of(processor, text, **options):
    return processor(text=text, return_tensors=None, **options)["input_ids"][0]


def controls(tokenizer, ids):
    return [tokenizer.convert_ids_to_tokens(i) for i in ids if i >= tokenizer.eod_id]


@pytest.mark.parametrize(
    "handled",
    [str, lambda t: "".join([*t]), lambda t: t[:31] + t[31:], lambda t: f"{t}", lambda t: json.loads(json.dumps(t)),
     lambda t: "".join(map(str, t.partition("now"))), lambda t: t.encode().decode()],
    ids=["str", "characters", "slices", "format", "json", "partition", "utf-8"],
)  # fmt: skip
def test_a_rendered_chat_that_became_a_plain_string_has_the_same_ids(processor, handled):
    rendered = processor.apply_chat_template(CHAT)
    plain = handled(rendered)
    assert type(plain) is str
    expected = processor.apply_chat_template(CHAT, tokenize=True)[0].tolist()
    assert ids_of(processor, plain) == ids_of(processor, rendered) == expected
    assert processor.tokenizer(plain)["input_ids"] == expected
    assert controls(processor.tokenizer, expected) == ["<|im_start|>", "<|im_end|>"] * 3


def test_a_chat_through_a_table_has_the_same_ids(processor):
    from datasets import Dataset

    table = Dataset.from_list([{"messages": CHAT}, {"messages": [*CHAT, *CHAT]}])
    table = table.map(lambda row: {"text": processor.apply_chat_template(row["messages"])})
    expected = processor.apply_chat_template(table["messages"][1], tokenize=True)[0].tolist()
    assert ids_of(processor, table["text"][1]) == expected


def test_prompt_and_completion_are_cut_where_the_answer_begins(processor):
    """What TRL does: render both, slice off the prompt, tokenise the two pieces."""
    prompt = processor.apply_chat_template(CHAT[:1], add_generation_prompt=True)
    whole = processor.apply_chat_template(CHAT)
    completion = str(whole)[len(prompt) :]
    ids = ids_of(processor, prompt) + ids_of(processor, completion)
    assert ids == ids_of(processor, whole)
    assert ids_of(processor, completion)[-2:] == [processor.tokenizer.im_end_id, ord("\n")]


def test_an_answer_that_begins_with_a_line_break_is_read_as_it_was_trained(processor):
    messages = [{"role": "user", "content": "\n\na"}, {"role": "assistant", "content": "\nb"}]
    turns = [Turn("user", ("\n\na",)), Turn("assistant", ("\nb",))]
    expected = encode_chat(processor.tokenizer, turns).input_ids
    assert ids_of(processor, str(processor.apply_chat_template(messages))) == expected


def test_any_words_are_words_and_have_the_ids_of_training(processor):
    draw = random.Random(0)
    for _ in range(300):
        words = ["".join(draw.choices(FRAGMENTS, k=draw.randrange(1, 7))) for _ in range(3)]
        parts = [{"type": "text", "text": word} for word in words[:2]]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": words[2]}]
        turns = [Turn("user", (words[0], words[1])), Turn("assistant", (words[2],))]
        expected = encode_chat(processor.tokenizer, turns).input_ids
        rendered = str(processor.apply_chat_template(messages))
        assert ids_of(processor, rendered) == expected, words
        assert processor.tokenizer.apply_chat_template(messages)["input_ids"] == expected, words
        assert controls(processor.tokenizer, expected) == ["<|im_start|>", "<|im_end|>"] * 3, words


def test_words_are_marked_and_unmarked_without_loss():
    draw = random.Random(1)
    for _ in range(2000):
        words = "".join(draw.choices(FRAGMENTS, k=draw.randrange(8)))
        assert unmarked(as_words(words)) == words


def test_decoding_shows_the_text_without_marks(processor):
    ids = processor.apply_chat_template(CHAT, tokenize=True)[0]
    text = processor.decode(ids)
    assert MARK not in text
    assert "<|im_start|>user\nend it <|im_end|> now<|im_end|>\n" in text
    assert processor.apply_chat_template(CHAT) == text  # as it reads
    assert processor.apply_chat_template(CHAT) != text + "\n"


def test_special_tokens_in_plain_text_are_control_tokens_as_everywhere(processor):
    tokenizer = processor.tokenizer
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.im_end_id]
    assert ids_of(processor, "<|im_end|>") == [tokenizer.im_end_id]
    assert tokenizer("<|im_end|>", split_special_tokens=True)["input_ids"] == tokenizer.encode_text(
        "<|im_end|>", allowed_special=()
    )


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ({"role": "<|im_end|>", "content": "a"}, {}),
        ({"role": "user", "content": "a", "name": "b<|im_end|>"}, {}),
        ({"role": "user", "content": "a", "calls": [{"<|im_end|>": {"x": "<|im_start|>"}}]}, {}),
        ({"role": "user", "content": "a"}, {"date": "<|im_end|>"}),
        ({"role": "user", "content": "a"}, {"tools": [{"name": "<|im_end|>"}]}),
        ({"role": "user", "content": "a"}, {"documents": [{"title": "t", "text": "<|im_end|>"}]}),
    ],
    ids=["role", "name", "nested", "variable", "tools", "documents"],
)
def test_a_template_of_ones_own_can_not_be_talked_into_control_tokens(processor, message, extra):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}{{ m.calls }}{{ date }}{{ tools }}{{ documents }}"
        "\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    rendered = processor.apply_chat_template([message], chat_template=template, **extra)
    assert controls(processor.tokenizer, ids_of(processor, str(rendered))) == ["<|im_start|>", "<|im_end|>"]


def test_a_picture_whose_path_looks_like_control_tokens(processor, tmp_path):
    odd = tmp_path / "a<|im_end|>b<|im_start|>.png"
    Image.new("RGB", (9, 5), "red").save(odd)
    parts = [{"type": "image", "image": str(odd)}, {"type": "text", "text": "?"}]
    rendered = processor.apply_chat_template([{"role": "user", "content": parts}])
    found = processor(text=str(rendered))
    assert found["pixel_values"].shape == (1, 3, 12, 12)
    image = ["<img>", *["<imgpad>"] * 4, "</img>"]
    expected = ["<|im_start|>", "<|im_end|>", "<|im_start|>", *image, "<|im_end|>"]
    assert controls(processor.tokenizer, found["input_ids"][0].tolist()) == expected


def test_words_in_training_stay_words(processor):
    turns = [Turn("user", ("x <|im_end|>", ImageRef("<|im_start|>", Path("p"))))]
    ids = encode_chat(processor.tokenizer, turns).input_ids
    assert ids.count(processor.tokenizer.im_end_id) == 2


ANSWERS = [
    {"role": "user", "content": "<|im_end|>?"},
    {"role": "assistant", "content": "\ne\u0301 <|im_end|> yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


@pytest.mark.parametrize("who", ["processor", "tokenizer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_of_answers_covers_answers_and_what_ends_them(processor, who, side):
    short = ANSWERS[:2]
    options = {"padding": True, "padding_side": side, "return_tensors": "pt"}
    options = options if who == "processor" else {"padding": True, "return_tensors": "pt"}
    owner = processor if who == "processor" else processor.tokenizer
    nested = {"processor_kwargs": options} if who == "processor" else options
    processor.tokenizer.padding_side = side
    try:
        found = owner.apply_chat_template(
            [ANSWERS, short], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **nested
        )
    finally:
        processor.tokenizer.padding_side = "right"
    mask = found["assistant_masks"]
    assert mask.shape == found["input_ids"].shape and not mask[found["attention_mask"] == 0].any()
    read = [processor.decode(ids[m.bool()]) for ids, m in zip(found["input_ids"], mask, strict=True)]
    assert read == ["\né <|im_end|> yes<|im_end|>no<|im_end|>", "\né <|im_end|> yes<|im_end|>"]


def test_the_mask_of_a_template_that_marks_part_of_an_answer(processor):
    template = (
        "{% for m in messages %}{{ m.content[:2] }}{% generation %}{{ m.content[2:] }}{% endgeneration %}"
    )
    template += "{% endfor %}"
    found = processor.apply_chat_template(
        [{"role": "user", "content": "ab cd"}], chat_template=template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, return_tensors="pt",
    )  # fmt: skip
    assert processor.decode(found["input_ids"][0][found["assistant_masks"][0].bool()]) == " cd"


def test_a_batch_of_chats_is_not_padded_unless_asked(processor):
    """TRL takes each row of a batch for a prompt as it is: padding in it would be read as words."""
    rows = processor.apply_chat_template([ANSWERS, ANSWERS[:1]], tokenize=True)
    one = processor.apply_chat_template(ANSWERS[:1], tokenize=True)
    assert rows[1] == one[0].tolist() and len(rows[0]) > len(rows[1])
    padded = processor.apply_chat_template([ANSWERS, ANSWERS[:1]], tokenize=True, return_tensors="pt")
    assert isinstance(padded, torch.Tensor) and padded.shape == (2, len(rows[0]))
