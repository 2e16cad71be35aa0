"""LLaVA-1.5: squares with margins, chats as it was trained on, boxes as fractions of the square, CLIP's rows."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import Metaspace
from transformers import LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import padded
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe
from finetune.families.base import AttentionShape
from finetune.families.parts.phrases import find_span, token_texts
from finetune.families.parts.squares import square_tokens
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.pictures import about, picture
from tests.finetune.families.tiny_llava import IMAGE, LLAVA_PATCH, LLAVA_SIDE, LLAVAS

TINY = LLAVAS["llava-1.5"]
FAMILY = TINY.family
CELLS = LLAVA_SIDE // LLAVA_PATCH
SIZES = [(90, 33), (57, 90), (131, 77), (31, 30)]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return TINY.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model():
    return TINY.model()


def text(processor, ids):
    """Token by token, pictures in one word."""
    return "|".join(processor.tokenizer.convert_ids_to_tokens(ids)).replace(
        "|".join([IMAGE] * CELLS**2), "PICTURE"
    )


# --- chats -----------------------------------------------------------------------------------------------
def test_a_chat_with_a_picture_token_by_token(processor):
    """The space before the answer is its first token's; ``</s>`` ends it, though the published template has none."""
    found = FAMILY.encode(processor, about(picture((50, 31)), words="hi"))
    expected = "<s>|▁U|S|E|R|:|▁|PICTURE|<0x0A>|h|i|▁A|S|S|I|S|T|A|N|T|:|▁y|e|s|</s>"
    assert text(processor, found.input_ids.tolist()) == expected
    assert text(processor, [i for i in found.labels.tolist() if i >= 0]) == "▁y|e|s|</s>"


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_prompt_is_what_the_tokenizer_makes_of_the_rendered_text(scheme, tmp_path):
    """Whether it puts a space behind control tokens or, as Llama's does today, only at the beginning."""
    processor = TINY.processor(tmp_path)
    processor.tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme=scheme, split=False)
    conversation = Conversation((
        Turn("user", (ImageRef("x", picture((50, 31))), "hi")), Turn("assistant", ("yes",)), Turn("user", ("so",)),
    ))  # fmt: skip
    found = FAMILY.encode(processor, conversation, add_generation_prompt=True)
    rendered = f"USER: {IMAGE * CELLS**2}\nhi ASSISTANT: yes</s>USER: so ASSISTANT:"
    assert found.input_ids.tolist() == processor.tokenizer(rendered)["input_ids"]
    assert ("PICTURE|▁|<0x0A>" in text(processor, found.input_ids.tolist())) is (scheme == "always")


def test_a_word_is_found_as_a_word_though_the_tokenizer_drops_spaces(processor):
    ids = processor.tokenizer("Canton is on it", add_special_tokens=False)["input_ids"]
    texts = token_texts(processor.tokenizer, ids)
    assert "".join(texts) == " Canton is on it" and texts[0] == " C"
    assert find_span("on", texts, 0, len(texts)) == range(8, 10)
    assert find_span("is on", texts, 0, len(texts)) == range(6, 10)


def test_every_answer_ends_and_turns_follow_each_other(processor):
    turns = (Turn("system", ("S",)), Turn("user", ("a",)), Turn("assistant", ("b",)),
             Turn("user", ("c",)), Turn("assistant", ("d",)))  # fmt: skip
    found = FAMILY.encode(processor, Conversation(turns)).input_ids.tolist()
    header = "|▁A|S|S|I|S|T|A|N|T|:"
    assert text(processor, found) == (f"<s>|▁S|▁U|S|E|R|:|▁a{header}|▁b|</s>|U|S|E|R|:|▁c{header}|▁d|</s>")


def test_pictures_come_before_the_words_of_their_turn(processor):
    one, two = (ImageRef(name, picture((50, 31))) for name in "ab")
    found = FAMILY.encode(
        processor, Conversation((Turn("user", ("x ", one, "y", two)), Turn("assistant", ("z",))))
    )
    assert "PICTURE|<0x0A>|PICTURE|<0x0A>|x|▁y|▁A|S" in text(processor, found.input_ids.tolist())


@pytest.mark.parametrize("end", ["</s>", "<pad>"])
def test_a_template_that_ends_answers_is_kept(end, tmp_path):
    processor = TINY.processor(tmp_path)
    processor.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}END{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ).replace("END", end)
    conversation = Conversation((Turn("user", ("a",)), Turn("assistant", ("b",))))
    if end == "</s>":
        ids = FAMILY.encode(processor, conversation).input_ids.tolist()
        assert text(processor, ids).endswith("|▁b|</s>") and ids.count(processor.tokenizer.eos_token_id) == 2
    else:
        with pytest.raises(ValueError, match=r"writes '<pad>' after turn 1 \(assistant\), expected '</s>'"):
            FAMILY.encode(processor, conversation)


def test_a_template_that_rewrites_earlier_turns_is_told(tmp_path):
    processor = TINY.processor(tmp_path)
    processor.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"writes the turns before turn 1 \(assistant\) otherwise"):
        FAMILY.encode(processor, Conversation((Turn("user", ("a",)), Turn("assistant", ("b",)))))


def test_control_tokens_in_words_are_words(processor):
    found = FAMILY.encode(processor, about(picture((50, 31)), words=f"a</s>{IMAGE}<s>"))
    ids = found.input_ids.tolist()
    assert ids.count(processor.tokenizer.eos_token_id) == 1
    assert ids.count(processor.tokenizer.convert_tokens_to_ids(IMAGE)) == CELLS**2


# --- pictures --------------------------------------------------------------------------------------------
def test_cells_of_a_padded_picture_by_hand():
    """8 × 4 pixels in a square of 8 with margins of 2, 4 × 4 tokens of 2 pixels: the two rows in the middle."""
    image = square_tokens(10, 4, (8, 4))
    assert image.grid == (2, 4) and image.positions.tolist() == [*range(14, 22)]
    assert image.cell_boxes_pixels[5].tolist() == [2, 2, 4, 4]
    tall = square_tokens(0, 4, (6, 8))  # margins of 1: the outer columns show one pixel of the picture
    assert tall.grid == (4, 4)
    assert tall.cell_boxes_pixels[:4].tolist() == [[0, 0, 1, 2], [1, 0, 3, 2], [3, 0, 5, 2], [5, 0, 6, 2]]


@pytest.mark.parametrize("size", SIZES)
def test_a_cell_is_the_token_of_the_pixels_that_it_names(processor, model, size):
    """One spot of colour changes what the projector gets at one token: features without the tower's layers."""
    plain = Image.new("RGB", size, (90, 120, 150))
    encoded = FAMILY.encode(processor, about(plain))
    image = encoded.images[0]
    rows, columns = image.grid
    cell = columns + 2
    x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
    marked = plain.copy()
    spot = (x0 + (x1 - x0) / 3, y0 + (y1 - y0) / 3, x1 - (x1 - x0) / 3, y1 - (y1 - y0) / 3)
    ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
    embed = model.model.vision_tower.embeddings
    with torch.no_grad():
        before, after = (
            embed(FAMILY.encode(processor, about(one)).media["pixel_values"])[0, 1:]
            for one in (plain, marked)
        )
    moved = (before - after).abs().sum(1).numpy()
    first = int(np.flatnonzero(encoded.input_ids == processor.tokenizer.convert_tokens_to_ids(IMAGE))[0])
    assert first + np.argmax(moved) == image.positions[cell]
    assert moved.max() > 2 * np.sort(moved)[-2]


def test_features_of_one_patch_reach_one_token(processor, model):
    """The projector's output for a patch replaces the embedding at that cell's position and no other."""
    encoded = FAMILY.encode(processor, about(picture((90, 33))))
    image = encoded.images[0]
    cell = image.grid[1] + 1
    patch = int(image.positions[cell] - np.flatnonzero(encoded.input_ids == model.config.image_token_id)[0])
    seen = []

    def louder(module, arguments, output):
        return output.index_add(1, torch.tensor([patch]), torch.ones(1, 1, output.shape[-1]))

    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, arguments, options: seen.append(
            arguments[0] if arguments else options["hidden_states"]
        ),
        with_kwargs=True,
    )
    inputs = padded([encoded], torch.device("cpu"), left=False)
    with torch.no_grad():
        model(**inputs)
        other = model.model.multi_modal_projector.register_forward_hook(louder)
        model(**inputs)
    hook.remove()
    other.remove()
    changed = (seen[0] - seen[1]).abs().sum(-1)[0]
    assert changed.nonzero()[:, 0].tolist() == [image.positions[cell]]


def test_pixels_are_padded_with_the_mean_and_resized(processor):
    found = FAMILY.encode(processor, about(Image.new("RGB", (90, 30), (255, 0, 0)))).media["pixel_values"][0]
    assert found.shape == (3, LLAVA_SIDE, LLAVA_SIDE)
    assert found[:, 0].abs().max() < 0.02 and found[:, -1].abs().max() < 0.02  # margins: the mean colour
    assert (found[0, LLAVA_SIDE // 2] > 1.5).all()


def test_a_processor_that_cuts_is_made_to_pad(tmp_path, caplog):
    """preprocessor_config.json as it is published, for CLIP."""
    TINY.processor(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    del saved["image_processor"]
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    old = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "size": {"shortest_edge": LLAVA_SIDE},
           "crop_size": {"height": LLAVA_SIDE, "width": LLAVA_SIDE}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    with caplog.at_level(logging.WARNING):
        processor = FAMILY.load_processor(str(tmp_path))
    assert "cuts pictures to squares; they are padded instead" in caplog.text
    conversation = about(picture((90, 33)))
    expected = FAMILY.encode(TINY.processor(tmp_path), conversation).media["pixel_values"]
    assert torch.equal(FAMILY.encode(processor, conversation).media["pixel_values"], expected)
    caplog.clear()
    processor.save_pretrained(tmp_path / "again")
    again = FAMILY.load_processor(str(tmp_path / "again"))
    assert torch.equal(FAMILY.encode(again, conversation).media["pixel_values"], expected)
    assert not caplog.text


def test_a_processor_that_cuts_pictures_is_refused(tmp_path):
    """CLIP's, as AutoProcessor loads LLaVA-1.5: a spot near the border would be seen nowhere, and shown everywhere."""
    processor = TINY.processor(tmp_path)
    side = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    cuts = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": LLAVA_SIDE}, crop_size=side),
        processor.tokenizer,
        patch_size=LLAVA_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    )
    words = r"^CLIPImageProcessorPil: this processor cuts pictures to squares .*checkpoint\.load_processor$"
    for media in (True, False):  # lengths are counted as pictures are read
        with pytest.raises(ValueError, match=words):
            FAMILY.encode(cuts, about(picture((90, 33))), media=media)


def test_settings_decide_whether_a_processor_cuts_pictures(tmp_path):
    processor = TINY.processor(tmp_path)
    pictures = processor.image_processor
    pictures.do_center_crop, pictures.crop_size = True, {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    expected = FAMILY.encode(TINY.processor(tmp_path), about(picture((90, 33)))).media["pixel_values"]
    assert torch.equal(FAMILY.encode(processor, about(picture((90, 33)))).media["pixel_values"], expected)
    pictures.crop_size = {"height": LLAVA_SIDE, "width": LLAVA_SIDE - LLAVA_PATCH}
    with pytest.raises(ValueError, match="cuts pictures to squares"):
        FAMILY.encode(processor, about(picture((90, 33))))
    pictures.do_center_crop, pictures.do_pad = False, False
    with pytest.raises(ValueError, match="cuts pictures to squares"):
        FAMILY.encode(processor, about(picture((90, 33))))


def test_a_processor_without_a_required_setting_is_refused(tmp_path):
    TINY.processor(tmp_path).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "patch_size"}))
    with pytest.raises(ValueError, match=r"processor_config\.json has no patch_size"):
        FAMILY.load_processor(str(tmp_path))


def test_a_budget_of_pixels_is_refused(processor):
    FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=None)
    with pytest.raises(ValueError, match="all have 20 × 20 pixels; leave them out"):
        FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=9)


# --- boxes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("media", [True, False])
def test_boxes_are_fractions_of_the_padded_square(processor, media):
    """100 × 60 pixels in a square of 100 with margins of 20: a quarter down the picture is 20 + 15 pixels."""
    boxes = ((0.25, 0.25, 0.5, 1.0), (0.0, 0.0, 0.1, 0.5))
    for size, said in (
        ((100, 60), "[0.25, 0.35, 0.50, 0.80], [0.00, 0.20, 0.10, 0.50]"),
        ((60, 100), "[0.35, 0.25, 0.50, 1.00], [0.20, 0.00, 0.26, 0.50]"),
    ):
        answer = ("see ", BoxRef("x", boxes, "dog</s>"))
        found = FAMILY.encode(processor, about(picture(size), answer=answer), media=media)
        learned = processor.tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
        assert learned == f"see dog</s> {said}"


# --- what attends ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_of_clip_are_those_computed_again(processor, model, kernel):
    """From what enters the layer: q·k of every place, the class token's column left out of the map."""
    inputs = padded([FAMILY.encode(processor, about(picture((90, 33))))], torch.device("cpu"), left=False)
    attention = model.model.vision_tower.encoder.layers[1].self_attn
    taken = []
    handle = attention.register_forward_pre_hook(
        lambda module, arguments, options: taken.append(
            arguments[0] if arguments else options["hidden_states"]
        ),
        with_kwargs=True,
    )
    model.set_attn_implementation(kernel)
    with torch.no_grad(), AttentionExtractor(model, [0], vision_layers=[1]) as seen:
        model(**inputs)
    handle.remove()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        q, k = (
            part(taken[0])[0].view(-1, 2, 8).transpose(0, 1) for part in (attention.q_proj, attention.k_proj)
        )
        expected = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)[:, 1:, 1:].numpy()
    assert seen.attention_weights["vision_layer_1"].shape == (1, 2, 25, 25)
    assert np.abs(seen.attention_weights["vision_layer_1"][0] - expected).max() < 1e-6


def test_shapes_and_arithmetic(model, processor):
    assert FAMILY.attention_shape(model.config, "layer_1") == AttentionShape(
        4, 2, 8, "tokens at tokens before them"
    )
    assert FAMILY.attention_shape(model.config, "vision_layer_0").head_width == 8
    said = FAMILY.image_arithmetic(model.config, (90, 33))
    found = FAMILY.encode(processor, about(picture((90, 33))))
    assert said.tokens == int((found.input_ids == model.config.image_token_id).sum()) == 25
    assert (said.resized_pixels, said.patches) == ((20, 20), (5, 5))
    rows, columns = found.images[0].grid
    assert f"25 tokens, {columns} × {rows} of them of the picture" in said.words and (rows, columns) == (3, 5)


@pytest.mark.parametrize(
    "other",
    [{"vision_config": {"model_type": "siglip_vision_model"}}, {"text_config": {"model_type": "qwen2"}},
     {"vision_feature_select_strategy": "full"}],
)  # fmt: skip
def test_other_models_of_the_same_type_are_not_it(other):
    assert FAMILY.matches(LlavaConfig()) and not FAMILY.matches(LlavaConfig(**other))


# --- probes ----------------------------------------------------------------------------------------------
def test_probes_are_run(processor, model, tmp_path):
    probes = []
    for i, size in enumerate([(90, 33), (31, 70)]):
        path = tmp_path / f"{i}.png"
        picture(size, i).save(path)
        probes.append(
            Probe(f"p{i}", "g", (path,), "what?", "ab", "cd", {"r": ((2, 3, 20, 30),)}, {"what": "r"})
        )
    prober = Prober(model, processor, key_layers=[0, 1], probes=probes, depth=QUICK)
    prober.self_check()
    for record in prober.run_all(0, "tiny"):
        assert record.rows.sum(-1) == pytest.approx(np.ones(record.rows.shape[:3]), abs=1e-5)
        cells = record.image_tokens[0].positions
        assert record.visual_share[:2] == pytest.approx(record.rows[:, :, 0, cells].sum(-1), abs=1e-6)
        assert record.region_mass["r"].min() > 0 and record.region_mass["r"].max() < 1
        assert {one.kind for one in record.interventions} == {"occlusion", "knockout"}
        assert np.isfinite([one.margin_nats for one in record.interventions]).all()
