"""LLaVA-OneVision: tiles, margins, pooling and newlines against the model's own; several pictures; budgets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import LlavaOnevisionConfig

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import padded
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe
from finetune.families.base import AttentionShape
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.pictures import about, features, local_model, picture, slots
from tests.finetune.families.tiny_llava import IMAGE, LLAVAS, TILE, TILE_SIDE

TINY = LLAVAS["llava-onevision"]
FAMILY = TINY.family
OVERVIEW = TILE_SIDE**2
# Canvases of 3 × 2 and 2 × 3 tiles, pooled; of 2 × 1; of one tile; odd sides; margins of more than a tile's row.
SIZES = [(90, 61), (57, 90), (131, 77), (36, 17), (18, 18), (90, 33), (33, 90), (23, 71), (300, 41)]


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
    assert processor._get_number_of_features(size[1], size[0], TILE, TILE) == count
    rows, columns = encoded.images[0].grid
    assert count == OVERVIEW + rows * (columns + 1)


@pytest.mark.parametrize("size", SIZES)
def test_every_cell_is_the_token_of_the_pixels_that_it_names(processor, local, size):
    """A spot in a cell's middle changes its token most of all that are no overview; newlines stay as they are."""
    plain = Image.new("RGB", size, (90, 120, 150))
    encoded = FAMILY.encode(processor, about(plain))
    image = encoded.images[0]
    before, start = features(local, encoded), slots(local, encoded)[0]
    rows, columns = image.grid
    in_overview = False
    newlines = OVERVIEW + np.arange(1, rows + 1) * (columns + 1) - 1
    for cell in {
        0,
        columns - 1,
        min(columns + 2, rows * columns - 1),
        (rows - 1) * columns,
        rows * columns - 1,
    }:
        x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
        marked = plain.copy()
        inset = ((x1 - x0) / 3, (y1 - y0) / 3)
        spot = (x0 + inset[0], y0 + inset[1], x1 - inset[0], y1 - inset[1])
        ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
        moved = np.abs(features(local, FAMILY.encode(processor, about(marked))) - before).sum(1)
        assert OVERVIEW + np.argmax(moved[OVERVIEW:]) == image.positions[cell] - start
        assert (moved[newlines] == 0).all()
        in_overview |= moved[:OVERVIEW].max() > 0
    assert in_overview


def test_newlines_are_no_cells_and_an_overview_is_one_of_its_own(processor, model):
    encoded = FAMILY.encode(processor, about(picture((36, 17))))
    image, found = encoded.images[0], slots(model, encoded)
    assert image.tiles == (1, 2) and image.overview.grid == (TILE_SIDE, TILE_SIDE)
    assert image.overview.positions.tolist() == found[:OVERVIEW].tolist()
    assert (
        sorted({*found.tolist()} - {*image.all_positions.tolist()})
        == (found[OVERVIEW:].reshape(-1, image.grid[1] + 1)[:, -1]).tolist()
    )


def test_cells_by_hand(processor):
    """36 × 18 pixels: a canvas of 2 × 1 tiles of 18, 4 patches of 4 each, of which the last has 2 pixels more. The
    overview has all of it in one tile: patches of 8 × 4 pixels, the last of 12 × 6."""
    image = FAMILY.encode(processor, about(picture((36, 18)))).images[0]
    assert image.grid == (4, 8)
    assert image.cell_boxes_pixels[:8, 0].tolist() == [0, 4, 8, 12, 18, 22, 26, 30]
    assert image.cell_boxes_pixels[-1].tolist() == [30, 12, 36, 18]
    assert image.overview.cell_boxes_pixels[:4, 0].tolist() == pytest.approx([0, 8, 16, 24])
    assert image.overview.cell_boxes_pixels[-1].tolist() == pytest.approx([24, 12, 36, 18])


def test_several_pictures_are_squares_with_margins(processor, model):
    encoded = FAMILY.encode(processor, about(picture((36, 18)), picture((20, 50), 1)))
    assert encoded.media["pixel_values"].shape == (2, 3, TILE, TILE)
    assert encoded.media["image_sizes"].tolist() == [[18, 36], [50, 20]]
    assert encoded.media["batch_num_images"].tolist() == [2]
    assert len(slots(model, encoded)) == len(features(model, encoded)) == 2 * (OVERVIEW + 1)
    wide, tall = encoded.images
    # A square of 36 pixels with margins of 9, tokens from 0, 8, 16, 24 to 36: those from 8 to 27.
    assert wide.grid == (3, 4) and wide.cell_boxes_pixels[::4, 1].tolist() == [0, 7, 15]
    assert wide.cell_boxes_pixels[0].tolist() == [0, 0, 8, 7]
    assert wide.positions[0] == slots(model, encoded)[0] + 4
    assert wide.overview is None and wide.tiles is None
    assert tall.positions[0] > wide.positions[-1] + 1


# --- chats -----------------------------------------------------------------------------------------------
def test_a_chat_is_as_in_generation(processor):
    """The published template puts "assistant \\n" before answers, and "assistant\\n" as the prompt."""
    turns = (Turn("system", ("s",)), Turn("user", ("a ", ImageRef("x", picture((18, 18))), "b")),
             Turn("assistant", ("c",)), Turn("user", ("d",)), Turn("assistant", ("e",)))  # fmt: skip
    ids = FAMILY.encode(processor, Conversation(turns)).input_ids.tolist()
    text = processor.tokenizer.decode(ids).replace(IMAGE * (OVERVIEW + 20), "PICTURE")
    assert text == (
        "<|im_start|>system \ns<|im_end|><|im_start|>user PICTURE\na b<|im_end|><|im_start|>assistant\nc<|im_end|>"
        "<|im_start|>user \nd<|im_end|><|im_start|>assistant\ne<|im_end|>"
    )


def test_boxes_are_thousandths_of_the_picture(processor):
    ref = BoxRef("x", ((0.25, 0.0, 0.5, 1.0),), "dog")
    found = FAMILY.encode(processor, about(picture((50, 31)), answer=(ref,)))
    answer = processor.tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
    assert json.loads(answer) == {"bbox_2d": [250, 0, 500, 1000], "label": "dog"}


# --- sizes -----------------------------------------------------------------------------------------------
def test_a_bound_scales_the_picture_down_and_cells_stay_in_its_own_pixels(tmp_path, model):
    processor = TINY.processor(tmp_path)
    whole = FAMILY.encode(processor, about(picture((90, 61))))
    bounded = FAMILY.encode(processor, about(picture((90, 61)), max_pixels=18 * 18))
    assert len(slots(model, bounded)) < len(slots(model, whole))
    assert bounded.media["image_sizes"].tolist() == [[14, 21]]
    for one in (whole, bounded):
        image = one.images[0]
        assert image.image_size_pixels == (90, 61) and image.cell_boxes_pixels[-1, 2:].tolist() == [90, 61]
        assert len(slots(model, one)) == OVERVIEW + image.grid[0] * (image.grid[1] + 1)
    FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=18 * 18)
    processor.save_pretrained(tmp_path)
    loaded = FAMILY.load_processor(str(tmp_path))
    for one in (processor, loaded):
        found = FAMILY.encode(one, about(picture((90, 61))))
        assert found.input_ids.tolist() == bounded.input_ids.tolist()
        assert torch.equal(found.media["pixel_values"], bounded.media["pixel_values"])
    counted = FAMILY.encode(processor, about(picture((90, 61)), size_pixels=(90, 61)), media=False)
    assert counted.input_ids.tolist() == bounded.input_ids.tolist()


def test_impossible_budgets_are_refused(tmp_path):
    processor = TINY.processor(tmp_path)
    with pytest.raises(ValueError, match="--min_pixels: llava-onevision fits every picture"):
        FAMILY.set_pixel_budget(processor, min_pixels=9, max_pixels=None)
    with pytest.raises(ValueError, match="--max_pixels 0: expected at least 1"):
        FAMILY.set_pixel_budget(processor, min_pixels=None, max_pixels=0)


def test_a_picture_too_thin_for_a_token_is_told_by_name(processor):
    with pytest.raises(ValueError, match=r"image '0\.png': found 3 × 900 pixels, too thin"):
        FAMILY.encode(processor, about(picture((3, 900))))


def test_what_is_saved_names_transformers_own_class(tmp_path):
    TINY.processor(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "LlavaOnevisionProcessor"
    assert (saved["num_image_tokens"], saved["vision_aspect_ratio"]) == (OVERVIEW, "anyres_max_3")


def test_folders_as_they_are_published_are_read(tmp_path):
    """Settings of pictures in a file of their own, for a class that needs torchvision; a template in JSON."""
    processor = TINY.processor(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    pictures = {**saved.pop("image_processor"), "image_processor_type": "LlavaOnevisionImageProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    loaded = FAMILY.load_processor(str(tmp_path))
    conversation = about(picture((90, 61)), words="a<|im_end|>")
    one, other = (FAMILY.encode(either, conversation) for either in (processor, loaded))
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert torch.equal(one.media["pixel_values"], other.media["pixel_values"])


# --- what attends ----------------------------------------------------------------------------------------
def test_the_tower_s_rows_of_several_pictures_are_told_apart_by_what_the_model_is_given(processor, model):
    """Two squares in one conversation, a picture in tiles in another: the overview of the last of three is image 5."""
    squares = FAMILY.encode(processor, about(picture((36, 17)), picture((20, 50), 1)))
    tiled = FAMILY.encode(processor, about(picture((36, 18), 2)))
    inputs = padded([squares, tiled], torch.device("cpu"), left=False)
    assert inputs["batch_num_images"].tolist() == [2, 1]
    for tiles in (None, [None, None, (1, 2)]):
        for image, patches in ((1, OVERVIEW), (2, 2 * OVERVIEW), (5, OVERVIEW)):
            with (
                torch.no_grad(),
                AttentionExtractor(
                    model, [0], images=[image], vision_layers=[0], tiles=tiles, family=FAMILY
                ) as seen,
            ):
                model(**inputs)
            rows = seen.attention_weights["vision_layer_0"]
            assert rows.shape == (1, 2, patches, patches)
            np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
        with (
            torch.no_grad(),
            AttentionExtractor(model, [0], images=[3], vision_layers=[0], tiles=tiles, family=FAMILY),
            pytest.raises(ValueError, match=r"image 3 does not exist; expected one of \[0, 1, 2, 5\]"),
        ):
            model(**inputs)


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_alone_tells_the_tokens(processor, model, size):
    said = FAMILY.image_arithmetic(model.config, size)
    encoded = FAMILY.encode(processor, about(picture(size)))
    assert said.tokens == len(slots(model, encoded))
    tiles = len(encoded.media["pixel_values"]) - 1
    assert said.patches[0] * said.patches[1] == tiles * OVERVIEW
    assert said.resized_pixels[0] * said.resized_pixels[1] == tiles * TILE**2
    assert f"= {said.tokens} tokens" in said.words


def test_the_published_shape():
    """768 × 500 pixels by the published configuration, as this family's file says."""
    said = FAMILY.image_arithmetic(LlavaOnevisionConfig(), (768, 500))
    assert (said.tokens, said.resized_pixels, said.patches) == (2709, (768, 768), (54, 54))
    assert FAMILY.matches(LlavaOnevisionConfig())
    assert not FAMILY.matches(LlavaOnevisionConfig(text_config={"model_type": "llama"}))


def test_shapes_of_attention(model):
    assert FAMILY.attention_shape(model.config, "layer_1") == AttentionShape(
        4, 2, 8, "tokens at tokens before them"
    )
    assert FAMILY.attention_shape(model.config, "vision_layer_0").looks == "patches at patches of their tile"


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
        cells = record.image_tokens[0].all_positions
        assert record.visual_share[:2] == pytest.approx(record.rows[:, :, 0, cells].sum(-1), abs=1e-6)
        assert record.region_mass["r"].min() > 0 and record.region_mass["r"].max() < 1
        assert {one.kind for one in record.interventions} == {"occlusion", "knockout"}
        assert np.isfinite([one.margin_nats for one in record.interventions]).all()
