"""Qwen-VL as a family: boxes in its markup, a blank picture, several samples in one row, one size of pictures."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.families import family_of
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return tiny_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def sample(*parts, answer="y"):
    return Conversation((Turn("user", parts), Turn("assistant", (answer,))))


def pictures(count):
    return [Image.new("RGB", (30 + 9 * i, 17), (40 * i, 90, 200 - 30 * i)) for i in range(count)]


def row(model, processor, encoded):
    """Samples in one row, as a model takes them."""
    ids = torch.from_numpy(np.concatenate([one.input_ids for one in encoded]))[None]
    media = torch.cat([one.media["pixel_values"] for one in encoded if one.media])
    return {
        "input_ids": ids,
        "pixel_values": media,
        **family_of(model.config).packed(model.config, encoded),
        "use_cache": False,
    }


@pytest.fixture(scope="module")
def encoded(model, processor):
    one, two, three = pictures(3)
    family = family_of(model.config)
    conversations = [
        sample(ImageRef("a.png", one), "what is it?"),
        sample("no picture at all", answer="right"),
        sample(ImageRef("b.png", two), "and", ImageRef("c.png", three), "?", answer="much longer answer"),
    ]
    return [family.encode(processor, one) for one in conversations]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_samples_in_one_row_do_not_see_each_other(model, processor, encoded, kernel):
    model.set_attn_implementation(kernel)
    blank = family_of(model.config).blank(processor)
    with torch.no_grad():
        together = model(**row(model, processor, [*encoded, blank])).logits[0]
        alone = [
            model(
                input_ids=torch.from_numpy(one.input_ids)[None], pixel_values=one.media.get("pixel_values")
            ).logits[0]
            for one in encoded
        ]
    model.set_attn_implementation("sdpa")
    alone = torch.cat(alone)
    assert (together[: len(alone)] - alone).abs().max() <= 1e-6 * alone.abs().max()


def test_another_first_sample_leaves_the_second_as_it_is_bit_for_bit(model, processor, encoded):
    before, first = row(model, processor, encoded), len(encoded[0].input_ids)
    after = {**before, "input_ids": before["input_ids"].clone()}
    after["input_ids"][0, first - 5 : first] = 7
    with torch.no_grad():
        one, other = model(**before).logits[0], model(**after).logits[0]
    assert not torch.equal(one[:first], other[:first])
    assert torch.equal(one[first:], other[first:])


def test_in_a_long_row_each_sample_is_rotated_by_its_own_length(model, encoded):
    """Qwen-VL stretches its angles beyond seq_length: by a sample's length, not by the row's."""
    assert sum(len(one.input_ids) for one in encoded) > model.config.seq_length
    assert max(len(one.input_ids) for one in encoded) < model.config.seq_length
    inputs = row(model, None, encoded)
    stretched = {name: value for name, value in inputs.items() if name != "position_ids"}
    with torch.no_grad():
        own, other = model(**inputs).logits[0], model(**stretched).logits[0]
    start = len(encoded[0].input_ids) - 1  # of the first sample, to which only its own tokens are visible
    assert (own[start] - other[start]).abs().max() > 0.1


def test_a_packed_row_has_the_gradients_of_its_samples_under_checkpointing(model, processor, encoded):
    """In double precision: what differs in single is the order of summing, another on each kind of CPU."""
    model = copy.deepcopy(model).double().train()

    def gradients(inputs_of_each):
        model.zero_grad()
        for inputs in inputs_of_each:
            pixels = inputs["pixel_values"].double()
            model(**{**inputs, "pixel_values": pixels}).logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients([row(model, processor, [one]) for one in encoded if one.media])
    model.gradient_checkpointing_enable()
    found = gradients([row(model, processor, [one for one in encoded if one.media])])
    assert found.keys() == expected.keys() and any("visual" in name for name in found)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name


def test_positions_start_again_with_each_sample(model, encoded):
    positions = family_of(model.config).packed(model.config, encoded)["position_ids"]
    lengths = [len(one.input_ids) for one in encoded]
    assert positions.tolist() == [[place for length in lengths for place in range(length)]]


def test_a_blank_is_one_picture_and_nothing_to_learn(model, processor):
    blank = family_of(model.config).blank(processor)
    tokenizer, queries = processor.tokenizer, model.config.visual["n_queries"]
    expected = [tokenizer.img_start_id, *[tokenizer.img_pad_id] * queries, tokenizer.img_end_id]
    assert blank.input_ids.tolist() == expected
    assert (blank.labels == -100).all()
    assert blank.images[0].positions.tolist() == [*range(1, queries + 1)]
    side = model.config.visual["image_size"]
    assert blank.media["pixel_values"].shape == (1, 3, side, side)


BOX = ((0.25, 0.0, 0.5, 1.0), (0.57, 0.1234, 0.5999, 0.2))


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        (BoxRef("<ref>cat</ref><box>(1,2), (3,4)</box>", ((0.001, 0.002, 0.003, 0.004),), "cat"),
         "<ref>cat</ref><box>(1,2), (3,4)</box>"),
        (BoxRef('{"bbox_2d": [1, 2]}', BOX, "the cat", style="json"),
         "<ref>the cat</ref><box>(250,0),(500,999)</box><box>(570,123),(600,200)</box>"),
        (BoxRef("<bbox>", BOX[:1], style="placeholder"), "<box>(250,0),(500,999)</box>"),
    ],
    ids=["its own, as written", "from JSON", "without a phrase"],
)  # fmt: skip
def test_boxes_are_written_in_its_markup(model, processor, ref, text):
    family = family_of(model.config)
    conversation = Conversation((Turn("user", ("where?",)), Turn("assistant", ("here: ", ref))))
    encoded = family.encode(processor, conversation)
    answer = encoded.input_ids[slice(*encoded.turn_spans[-1])].tolist()
    box_id = processor.tokenizer.special_tokens["<box>"]
    assert processor.tokenizer.decode(answer) == f"here: {text}"
    assert answer.count(box_id) == text.count("<box>")
    assert encoded.labels[slice(*encoded.turn_spans[-1])].tolist() == answer


def test_box_marks_in_a_text_are_tokens_as_in_its_training(model, processor):
    """The data's ``\\<box>`` arrives as the word ``<box>``; words of the frame stay words."""
    conversation = Conversation((Turn("user", ("<box> <|im_end|>",)), Turn("assistant", ("yes",))))
    encoded = family_of(model.config).encode(processor, conversation)
    asked = encoded.input_ids[slice(*encoded.turn_spans[0])].tolist()
    assert asked[0] == processor.tokenizer.special_tokens["<box>"]
    assert processor.tokenizer.im_end_id not in asked


def test_its_pictures_have_one_size(model, processor):
    family = family_of(model.config)
    family.set_pixel_budget(processor, min_pixels=None, max_pixels=None)
    with pytest.raises(ValueError, match=r"--max_pixels: qwen-vl squeezes every picture to \d+ × \d+ pixels"):
        family.set_pixel_budget(processor, min_pixels=None, max_pixels=1000)


def test_a_picture_inside_the_data_is_opened(model, tmp_path):
    path = tmp_path / "p.png"
    Image.new("RGB", (23, 11), (1, 2, 3)).save(path)
    ref = ImageRef("inside", Path("nowhere.png"), data=path.read_bytes())
    opened = family_of(model.config).load_image(ref)
    assert opened.size == (23, 11) and opened.getpixel((0, 0)) == (1, 2, 3)
