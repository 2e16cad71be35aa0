"""Tokens taken out of a model against the same tokens hidden by a mask, in every family; and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.token_orders import count_kept
from diagnostics.probing.prompts import padded
from diagnostics.pruning import keep_image_tokens
from finetune.families.parts.modules import language_layers
from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.tiny_families import ALL, QWEN3_TEXT, QWEN3_VISION, built, token_ids
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **LLAVAS, **SIGLIPS}
SLIDING = ("gemma3", "paligemma2")
DEEP = ("qwen3-vl", "qwen3-vl-moe")
CAN = [name for name in FAMILIES if name not in SLIDING]
GREEDY = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0, "max_new_tokens": 4}


def four_layers():
    """A deep stack that ends before the last layers do, as in published models."""
    text = {**QWEN3_TEXT, "num_hidden_layers": 4}
    return built(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(text_config=text, vision_config=QWEN3_VISION, **token_ids()),
    )


FOUR_LAYERS = replace(ALL["qwen3-vl"], model=four_layers)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


class Asked:
    """A tiny model, a prompt with pictures of unlike shapes, and its inputs."""

    def __init__(self, tiny, folder):
        self.model, self.family = tiny.model(), tiny.family
        parts = (ImageRef("a", picture(50, 31)), "one ", ImageRef("b", picture(31, 70, 1)), "and two?")
        processor = tiny.processor(folder)
        conversation = Conversation((Turn("user", parts),))
        self.encoded = self.family.encode(processor, conversation, add_generation_prompt=True)
        self.inputs = padded([self.encoded], torch.device("cpu"), left=True)
        self.image = np.concatenate([one.all_positions for one in self.encoded.images])
        self.margins = np.concatenate([one.margin_positions for one in self.encoded.images])

    def keeping(self, **how):
        return keep_image_tokens(self.model, self.encoded, family=self.family, **how)

    def hidden(self, kept, first_layer):
        """The same tokens hidden from all others from a layer on."""
        length = len(self.encoded.input_ids) + 4
        dropped = torch.tensor([at for at in (*self.image, *self.margins) if at not in kept])
        mask = torch.zeros(1, length, length, dtype=torch.bool)
        mask[0, :, dropped] = True
        mask[0, dropped, dropped] = False
        layers = range(first_layer, len(language_layers(self.model, self.family)))
        return {f"layer_{layer}": mask for layer in layers}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            made[name] = Asked(
                {**FAMILIES, **HYBRIDS, "four layers": FOUR_LAYERS}[name], tmp_path_factory.mktemp(name)
            )
        return made[name]

    return of


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "by", "layer"),
    [(name, "divprune", 2) for name in CAN]
    + [(name, "fastv", 1) for name in CAN if name not in DEEP]
    + [("four layers", "fastv", 2), ("four layers", "fastv", 3)],
)
def test_removed_is_hidden_in_the_prompt_and_in_every_step(name, by, layer, asked):
    one = asked(name)
    first = 0 if by == "divprune" else layer
    with one.keeping(share=0.3, by=by, layer=layer) as removal:
        whole = one.model(**one.inputs).logits
        said = one.model.generate(**one.inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    kept = removal.kept
    assert removal.first_layer == first
    assert (
        len(one.image)
        > len(set(one.image) & set(kept))
        == sum(count_kept(len(part), 0.3) for image in one.encoded.images for part in views(image))
    )
    left_out = {*range(len(one.encoded.input_ids))} - set(kept)
    assert set(one.margins.tolist()) <= left_out <= {*one.image.tolist(), *one.margins.tolist()}
    with (
        AttentionExtractor(one.model, [], connector=False, family=one.family) as extractor,
        extractor.knocked_out(one.hidden(kept, first)),
    ):
        hidden = one.model(**one.inputs).logits
        masked = one.model.generate(**one.inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    torch.testing.assert_close(whole[:, kept], hidden[:, kept], atol=1e-5, rtol=1e-5)
    for here, there in zip(said.logits, masked.logits, strict=True):
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
    lengths = [layer.keys.shape[-2] for layer in said.past_key_values.layers]
    every = len(one.encoded.input_ids) + 3
    dropped = every - 3 - len(kept)
    assert lengths == [every if at < first else every - dropped for at in range(len(lengths))]
    plain = one.model(**one.inputs).logits
    assert (plain[:, -1] - whole[:, -1]).abs().max() > 1e-3  # and it matters


@torch.no_grad()
@pytest.mark.parametrize("by", ["divprune", "fastv"])
def test_of_a_padded_picture_no_token_is_left_but_those_kept(by, asked):
    """The tower mixes the picture into tokens of the margins: kept, they would tell the answer."""
    one = asked("llava-1.5")
    slot = one.encoded.input_ids[one.image[0]]
    assert len(one.margins) and (one.encoded.input_ids == slot).sum() == len(one.image) + len(one.margins)
    with one.keeping(share=0.3, by=by, layer=1) as removal:
        one.model(**one.inputs)
    left = removal.kept[one.encoded.input_ids[removal.kept] == slot]
    assert len(left) == sum(count_kept(len(part.positions), 0.3) for part in one.encoded.images)
    assert not set(left) & set(one.margins)


def views(image):
    return [image.positions] if image.overview is None else [image.positions, image.overview.positions]


@torch.no_grad()
@pytest.mark.parametrize("name", CAN)
def test_keeping_all_is_the_plain_model_bit_for_bit(name, asked):
    one = asked(name)
    plain = one.model(**one.inputs).logits
    with one.keeping(share=1):
        assert torch.equal(one.model(**one.inputs).logits, plain)
    assert torch.equal(one.model(**one.inputs).logits, plain)  # and so it is afterwards


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen-vl", "qwen2.5-vl", "llava-next"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_beams_and_answers_and_kernels(name, kernel, asked):
    one = asked(name)
    before = one.model.config._attn_implementation
    one.model.set_attn_implementation(kernel)
    try:
        with one.keeping(share=0.3):
            first = one.model.generate(**one.inputs, **GREEDY)
            beams = one.model.generate(**one.inputs, **GREEDY, num_beams=2, num_return_sequences=2)
        assert beams.shape[0] == 2 and first.shape[1] == beams.shape[1]
    finally:
        one.model.set_attn_implementation(before)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("gemma3", {}, "look back over a fixed number of tokens"),
        ("paligemma2", {}, "look back over a fixed number of tokens"),
        ("qwen3.5", {}, "2 of 4 language layers mix tokens by linear attention"),
        (
            "qwen3-vl",
            {"by": "fastv", "layer": 1},
            r"first 2 language layers get features .*deep stack.*at least 2",
        ),
        ("qwen2-vl", {"by": "fastv", "layer": 2}, "layer: found 2, expected 1 to 1"),
        ("qwen2-vl", {"by": "random"}, "keep_by: found 'random', expected divprune or fastv"),
        ("qwen2-vl", {"share": 0}, "found share 0, expected one above 0"),
        ("qwen2-vl", {"share": 1.01}, "found share 1.01"),
    ],
)
def test_what_cannot_be_is_refused(name, how, message, asked):
    with pytest.raises(ValueError, match=message), asked(name).keeping(**{"share": 0.5, **how}):
        pass


def test_other_sequences_caches_and_watchers_are_refused(asked, tmp_path):
    one = asked("qwen2-vl")
    processor = ALL["qwen2-vl"].processor(tmp_path)
    words = one.family.encode(processor, Conversation((Turn("user", ("?",)),)), add_generation_prompt=True)
    with pytest.raises(ValueError, match="no image"), keep_image_tokens(one.model, words, share=0.5):
        pass
    with one.keeping(share=0.5):
        with pytest.raises(ValueError, match="found a pass over 1 tokens"):
            one.model(input_ids=torch.tensor([[5]]))
        with pytest.raises(ValueError, match="expected a DynamicCache"):
            one.model.generate(**one.inputs, **GREEDY, cache_implementation="static")
        with pytest.raises(ValueError, match="another"):
            AttentionExtractor(one.model)
    one.model(**one.inputs)  # free again
