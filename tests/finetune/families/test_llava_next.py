"""LLaVA-NeXT: tiles, margins and newlines against the model's and the processor's own; chats of four kinds; budgets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import LlavaNextConfig

from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe
from finetune.families.base import AttentionShape, ignored_elsewhere
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.pictures import about, features, local_model, picture, slots
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import (
    IMAGE,
    LLAVA_SIDE,
    LLAVAS,
    NEXT_SIDE,
    next_processor,
    qwen_tokenizer,
)

TINY = LLAVAS["llava-next"]
FAMILY = TINY.family
OVERVIEW = NEXT_SIDE**2
# Canvases of 2 × 2, 1 × 2, 2 × 1, 1 × 3 and 3 × 1 tiles, with margins and without, odd sides, smaller than a tile.
SIZES = [(90, 61), (57, 90), (131, 77), (36, 17), (20, 20), (90, 33), (33, 90), (23, 71), (300, 41), (7, 11)]

MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return TINY.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model():
    return TINY.model()


@pytest.fixture(scope="module")
def local():
    return local_model(TINY)


# --- tiles -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_as_many_as_the_model_makes(processor, model, size):
    encoded = FAMILY.encode(processor, about(picture(size)))
    count = len(features(model, encoded))
    assert len(slots(model, encoded)) == count
    # Transformers' processor counts the class token too, and takes it off again.
    assert processor._get_number_of_features(size[1], size[0], LLAVA_SIDE, LLAVA_SIDE) - 1 == count
    rows, columns = encoded.images[0].grid
    assert count == OVERVIEW + rows * (columns + 1)


@pytest.mark.parametrize("sizes", [[(90, 61)], [(36, 17), (57, 90)]])
def test_pictures_are_read_as_transformers_own_processor_reads_them(processor, model, sizes):
    shown = [picture(size, i) for i, size in enumerate(sizes)]
    encoded = FAMILY.encode(processor, about(*shown))
    own = processor(images=shown, text=IMAGE * len(sizes), return_tensors="pt")
    assert (own["input_ids"] == model.config.image_token_id).sum() == len(slots(model, encoded))
    views = [1 + int(np.prod(one.tiles)) for one in encoded.images]
    expected = torch.cat([one[:count] for one, count in zip(own["pixel_values"], views, strict=True)])
    assert torch.equal(encoded.media["pixel_values"], expected)
    assert torch.equal(encoded.media["image_sizes"], own["image_sizes"])
    with torch.no_grad():
        theirs = model.model.get_image_features(own["pixel_values"], own["image_sizes"], return_dict=True)
    assert np.array_equal(features(model, encoded), torch.cat(list(theirs.pooler_output)).numpy())


@pytest.mark.parametrize("size", SIZES)
def test_every_cell_is_the_token_of_the_pixels_that_it_names(processor, local, size):
    """A spot in a cell's middle changes its token most of all that are no overview; newlines stay as they are."""
    plain = Image.new("RGB", size, (90, 120, 150))
    encoded = FAMILY.encode(processor, about(plain))
    image = encoded.images[0]
    before, start = features(local, encoded), slots(local, encoded)[0]
    rows, columns = image.grid
    newlines = OVERVIEW + np.arange(1, rows + 1) * (columns + 1) - 1
    cells = {0, columns - 1, min(columns + 2, rows * columns - 1), (rows - 1) * columns, rows * columns - 1}
    for cell in cells:
        x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
        if min(x1 - x0, y1 - y0) < 3:  # no pixel lies in its middle
            continue
        marked = plain.copy()
        inset = ((x1 - x0) / 3, (y1 - y0) / 3)
        spot = (x0 + inset[0], y0 + inset[1], x1 - inset[0], y1 - inset[1])
        ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
        moved = np.abs(features(local, FAMILY.encode(processor, about(marked))) - before).sum(1)
        assert OVERVIEW + np.argmax(moved[OVERVIEW:]) == image.positions[cell] - start
        assert (moved[newlines] == 0).all()


def test_cells_by_hand(processor):
    """40 × 30 pixels in the middle of 2 × 2 tiles of 20: margins of 5 pixels, of which one row of patches of 4 is left
    out on either side; the rows that remain begin a pixel above the picture. The overview is 5 × 5 tokens of 8 × 6."""
    image = FAMILY.encode(processor, about(picture((40, 30)))).images[0]
    assert image.grid == (8, 10) and image.tiles == (2, 2)
    assert image.cell_boxes_pixels[:10, 0].tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert image.cell_boxes_pixels[::10, 1].tolist() == [0, 3, 7, 11, 15, 19, 23, 27]
    assert image.cell_boxes_pixels[-1].tolist() == [36, 27, 40, 30]
    first = image.overview.positions[0]
    assert image.overview.positions.tolist() == [*range(first, first + 25)]
    assert image.positions[[0, 9, 10]].tolist() == [
        first + 25,
        first + 34,
        first + 36,
    ]  # a newline is between
    assert image.overview.cell_boxes_pixels[7].tolist() == pytest.approx([16, 6, 24, 12])


def test_several_pictures_are_tiled_too(processor, model):
    encoded = FAMILY.encode(processor, about(picture((36, 17)), picture((20, 50), 1)))
    first, second = encoded.images
    assert (first.tiles, second.tiles) == ((1, 2), (3, 1))
    assert len(slots(model, encoded)) == len(features(model, encoded))
    assert second.overview.positions[0] > first.positions.max() + 1  # a newline, and what is between pictures
    assert encoded.media["pixel_values"].shape == (3 + 4, 3, LLAVA_SIDE, LLAVA_SIDE)


def test_a_picture_too_thin_for_a_token_is_told_by_name(processor):
    with pytest.raises(ValueError, match=r"image '0\.png': found 3 × 900 pixels, too thin"):
        FAMILY.encode(processor, about(picture((3, 900))))


# --- chats -----------------------------------------------------------------------------------------------
def words(processor, ids):
    """Token by token, a picture's in one word."""
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    kept = [one for at, one in enumerate(tokens) if one != IMAGE or tokens[at - 1] != IMAGE]
    return "|".join(kept).replace(IMAGE, "PICTURE")


def test_vicuna_token_by_token(processor):
    found = FAMILY.encode(processor, about(picture((50, 31)), words="hi"))
    expected = "<s>|▁U|S|E|R|:|▁|PICTURE|<0x0A>|h|i|▁A|S|S|I|S|T|A|N|T|:|▁y|e|s|</s>"
    assert words(processor, found.input_ids.tolist()) == expected
    assert words(processor, [i for i in found.labels.tolist() if i >= 0]) == "▁y|e|s|</s>"


def test_mistral_token_by_token(tmp_path):
    """No header before an answer: its first token's space is the template's. The end is the template's too."""
    processor = next_processor(tmp_path, template=MISTRAL)
    turns = (Turn("user", (ImageRef("x", picture((50, 31))), "hi")), Turn("assistant", ("yes",)),
             Turn("user", ("so",)), Turn("assistant", ("no",)))  # fmt: skip
    found = FAMILY.encode(processor, Conversation(turns))
    first = "<s>|▁[|I|N|S|T|]|▁|PICTURE|<0x0A>|h|i|▁[|/|I|N|S|T|]|▁y|e|s|</s>"
    second = "▁[|I|N|S|T|]|▁s|o|▁[|/|I|N|S|T|]|▁n|o|</s>|▁"
    assert words(processor, found.input_ids.tolist()) == f"{first}|{second}"
    assert words(processor, [i for i in found.labels.tolist() if i >= 0]) == "▁y|e|s|</s>|▁n|o|</s>"
    assert FAMILY.stop_token_ids(processor) == (processor.tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("template", "marks", "start", "header", "end"),
    [
        (QWEN, ("<|im_start|>",), "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
        (
            LLAMA3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
    ],
    ids=["qwen", "llama3"],
)
def test_answers_end_as_the_template_ends_them(tmp_path, template, marks, start, header, end):
    processor = next_processor(tmp_path, qwen_tokenizer(IMAGE, *marks), template)
    found = FAMILY.encode(processor, about(picture((20, 20)), words="a<|eot_id|>"))
    text = processor.tokenizer.decode(found.input_ids.tolist()).replace(IMAGE * (OVERVIEW + 35), "PICTURE")
    assert text == f"{start}PICTURE\na<|eot_id|>{end}{header}yes{end}"
    learned = [i for i in found.labels.tolist() if i >= 0]
    assert processor.tokenizer.decode(learned) == f"yes{end.strip()}"
    stops = FAMILY.stop_token_ids(processor)
    assert learned[-1] == stops[0] and set(stops) == {learned[-1], processor.tokenizer.eos_token_id}
    assert found.input_ids.tolist().count(learned[-1]) == 2  # that in the question is words


def test_boxes_are_fractions_of_the_square_as_in_llava_1_5(processor):
    ref = BoxRef("x", ((0.25, 0.0, 0.5, 1.0),), "dog")
    found = FAMILY.encode(processor, about(picture((50, 30)), answer=(ref,)))
    answer = processor.tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
    assert answer == "dog [0.25, 0.20, 0.50, 0.80]"


# --- sizes -----------------------------------------------------------------------------------------------
def test_a_bound_scales_the_picture_down_and_cells_stay_in_its_own_pixels(tmp_path, model):
    processor = TINY.processor(tmp_path)
    whole = FAMILY.encode(processor, about(picture((90, 61))))
    bounded = FAMILY.encode(processor, about(picture((90, 61)), max_pixels=20 * 14))
    assert len(slots(model, bounded)) < len(slots(model, whole))
    assert bounded.media["image_sizes"].tolist() == [[13, 20]]
    for one in (whole, bounded):
        image = one.images[0]
        assert image.image_size_pixels == (90, 61) and image.cell_boxes_pixels[-1, 2:].tolist() == [90, 61]
        assert len(slots(model, one)) == OVERVIEW + image.grid[0] * (image.grid[1] + 1)
    FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=20 * 14)
    processor.save_pretrained(tmp_path)
    loaded = FAMILY.load_processor(str(tmp_path))
    for one in (processor, loaded):
        found = FAMILY.encode(one, about(picture((90, 61))))
        assert found.input_ids.tolist() == bounded.input_ids.tolist()
        assert torch.equal(found.media["pixel_values"], bounded.media["pixel_values"])
    counted = FAMILY.encode(processor, about(picture((90, 61)), size_pixels=(90, 61)), media=False)
    assert counted.input_ids.tolist() == bounded.input_ids.tolist()


@pytest.mark.parametrize("tiny", [TINY, LLAVAS["llava-onevision"]], ids=lambda tiny: tiny.family.name)
def test_that_other_libraries_ignore_the_bound_is_told(tiny, tmp_path):
    """transformers loads it with the rest and never reads it; a run that goes on has it from the folder."""
    family, processor, whole = tiny.family, tiny.processor(tmp_path), picture((90, 61))
    assert ignored_elsewhere(family, processor) == ""
    family.set_pixel_budget(processor, min_pixels=None, max_pixels=20 * 14)
    processor.save_pretrained(tmp_path)
    loaded = family.load_processor(str(tmp_path))
    ours = family.encode(loaded, about(whole)).media["pixel_values"]
    theirs = loaded.image_processor([[whole]], return_tensors="pt")["pixel_values"]
    assert len(ours) < len(torch.cat([*theirs]))
    for one in (processor, loaded):
        told = ignored_elsewhere(family, one)
        assert told.startswith(f"--max_pixels 280 of {family.name} holds in this project alone: transformers")
    assert ignored_elsewhere(ALL["qwen3-vl"].family, ALL["qwen3-vl"].processor(tmp_path)) == ""


def test_impossible_budgets_are_refused(tmp_path):
    processor = TINY.processor(tmp_path)
    with pytest.raises(ValueError, match="--min_pixels: llava-next fits every picture"):
        FAMILY.set_pixel_budget(processor, min_pixels=9, max_pixels=None)
    with pytest.raises(ValueError, match="--max_pixels 0: expected at least 1"):
        FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=0)


def test_folders_as_they_are_published_are_read(tmp_path):
    """Settings of pictures in a file of their own, for a class that needs torchvision; a template in JSON."""
    processor = TINY.processor(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert (saved["processor_class"], saved["patch_size"]) == ("LlavaNextProcessor", 4)
    pictures = {**saved.pop("image_processor"), "image_processor_type": "LlavaNextImageProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    loaded = FAMILY.load_processor(str(tmp_path))
    conversation = about(picture((90, 61)), words="a</s>")
    one, other = (FAMILY.encode(either, conversation) for either in (processor, loaded))
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert torch.equal(one.media["pixel_values"], other.media["pixel_values"])


def test_a_processor_that_does_not_say_how_tokens_are_counted_is_told(tmp_path):
    TINY.processor(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    del saved["patch_size"]
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"processor_config\.json has no patch_size"):
        FAMILY.load_processor(str(tmp_path))


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_alone_tells_the_tokens(processor, model, size):
    said = FAMILY.image_arithmetic(model.config, size)
    encoded = FAMILY.encode(processor, about(picture(size)))
    assert said.tokens == len(slots(model, encoded))
    rows, columns = encoded.images[0].tiles
    assert said.patches == (rows * NEXT_SIDE, columns * NEXT_SIDE)
    assert said.resized_pixels == (columns * LLAVA_SIDE, rows * LLAVA_SIDE)
    assert f"= {said.tokens} tokens" in said.words


def test_the_published_shape():
    """1000 × 700 pixels by the published configuration, as this family's file says."""
    said = FAMILY.image_arithmetic(LlavaNextConfig(), (1000, 700))
    assert (said.tokens, said.resized_pixels, said.patches) == (2242, (672, 672), (48, 48))
    assert "48 × 34 without margins and 34 newlines, after 576" in said.words
    assert FAMILY.matches(LlavaNextConfig())
    for text in ("mistral", "qwen2"):
        assert FAMILY.matches(LlavaNextConfig(text_config={"model_type": text}))
    assert not FAMILY.matches(LlavaNextConfig(text_config={"model_type": "gemma"}))
    assert not FAMILY.matches(LlavaNextConfig(vision_feature_select_strategy="full"))


def test_shapes_of_attention(model):
    assert FAMILY.attention_shape(model.config, "layer_1") == AttentionShape(
        4, 2, 8, "tokens at tokens before them"
    )
    assert FAMILY.attention_shape(model.config, "vision_layer_0").head_width == 8


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
        tokens = record.image_tokens[0].all_positions
        assert record.visual_share[:2] == pytest.approx(record.rows[:, :, 0, tokens].sum(-1), abs=1e-6)
        assert record.region_mass["r"].min() > 0 and record.region_mass["r"].max() < 1
        assert {one.kind for one in record.interventions} == {"occlusion", "knockout"}
        assert np.isfinite([one.margin_nats for one in record.interventions]).all()
