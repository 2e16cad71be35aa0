"""InternVL: tiles and their overview, cells through the pixel shuffle, frames, boxes, norms of queries and keys."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import InternVLConfig

from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.relations import read_relation
from diagnostics.records.measurement_plan import QUICK
from diagnostics.records.probes import Probe, Relation
from finetune.families.base import AttentionShape
from finetune.families.internvl import tiled_tokens
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.pictures import about, features, local_model, picture, slots
from tests.finetune.families.tiny_llava import INTERN_SIDE, INTERN_TILE, LLAVAS

TINY = LLAVAS["internvl"]
FAMILY = TINY.family
EACH = INTERN_SIDE**2
# (width, height) → (rows, columns) of tiles
TILES = {(90, 61): (2, 3), (57, 90): (3, 2), (131, 77): (2, 3), (36, 17): (1, 2), (16, 16): (1, 1), (90, 33): (1, 3),
         (33, 90): (3, 1), (300, 41): (1, 6), (20, 19): (1, 1)}  # fmt: skip


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
def test_cells_by_hand():
    image = tiled_tokens(0, (1, 2), 2, (8, 6))
    assert image.grid == (2, 4) and image.positions.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert image.cell_boxes_pixels[5].tolist() == [2, 3, 4, 6]
    assert image.overview.positions.tolist() == [8, 9, 10, 11] and image.tiles == (1, 2)
    assert image.overview.cell_boxes_pixels[1].tolist() == [4, 0, 8, 3]


@pytest.mark.parametrize("size", [*TILES])
def test_every_cell_is_the_token_of_the_pixels_that_it_names(processor, local, size):
    """A spot in a cell's middle changes its token most of all that are no overview."""
    plain = Image.new("RGB", size, (90, 120, 150))
    encoded = FAMILY.encode(processor, about(plain))
    image = encoded.images[0]
    rows, columns = image.grid
    assert (rows, columns) == tuple(INTERN_SIDE * count for count in TILES[size])
    before, found = features(local, encoded), slots(local, encoded)
    assert len(before) == len(found) == rows * columns + (EACH if rows * columns > EACH else 0)
    for cell in {0, columns - 1, columns + 1, (rows - 1) * columns, rows * columns - 1}:
        x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
        marked = plain.copy()
        inset = ((x1 - x0) / 3, (y1 - y0) / 3)
        spot = (x0 + inset[0], y0 + inset[1], x1 - inset[0], y1 - inset[1])
        ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
        moved = np.abs(features(local, FAMILY.encode(processor, about(marked))) - before).sum(1)
        assert np.argmax(moved[: rows * columns]) == image.positions[cell] - found[0]
        assert len(found) == rows * columns or moved[rows * columns :].max() > 0


def test_an_overview_has_cells_of_its_own(processor, model):
    encoded = FAMILY.encode(processor, about(picture((36, 17)), picture((16, 16), 1)))
    first, second = encoded.images
    found = slots(model, encoded)
    assert sorted(first.positions) == found[: 2 * EACH].tolist()
    assert (
        first.overview.positions.tolist() == found[2 * EACH : 3 * EACH].tolist() and second.overview is None
    )
    assert second.positions.tolist() == found[3 * EACH :].tolist()
    assert len(encoded.media["pixel_values"]) == 4


# --- chats -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framed", [False, True])
def test_pictures_are_framed_once(tmp_path, framed):
    processor = TINY.processor(tmp_path)
    if framed:
        processor.chat_template = processor.chat_template.replace("<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>")
    turns = (Turn("system", ("s",)), Turn("user", ("a ", ImageRef("x", picture((36, 17))), "b<img>")),
             Turn("assistant", ("c",)))  # fmt: skip
    encoded = FAMILY.encode(processor, Conversation(turns))
    text = processor.tokenizer.decode(encoded.input_ids.tolist())
    assert text == (
        f"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na <img>{'<IMG_CONTEXT>' * 12}</img>\nb<img><|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n"
    )
    assert encoded.input_ids.tolist().count(processor.tokenizer.convert_tokens_to_ids("<img>")) == 1


def test_boxes_are_thousandths_between_markers(processor):
    ref = BoxRef("x", ((0.25, 0.0, 0.5, 1.0), (0.0, 0.1, 0.2, 0.3)), "dog</ref>")
    found = FAMILY.encode(processor, about(picture((50, 31)), answer=(ref,)))
    answer = found.input_ids[slice(*found.turn_spans[-1])].tolist()
    said = "<ref>dog</ref></ref><box>[[250, 0, 500, 1000], [0, 100, 200, 300]]</box>"
    assert processor.tokenizer.decode(answer) == said
    counts = [
        answer.count(processor.tokenizer.convert_tokens_to_ids(one)) for one in ("<ref>", "</ref>", "<box>")
    ]
    assert counts == [1, 1, 1]


# --- sizes -----------------------------------------------------------------------------------------------
def test_bounds_are_whole_tiles(tmp_path, model):
    processor, tile = TINY.processor(tmp_path), INTERN_TILE**2
    refs = (ImageRef("a", picture((90, 61)), max_pixels=2 * tile + 5), ImageRef("b", picture((90, 61))))
    found = FAMILY.encode(processor, Conversation((Turn("user", refs), Turn("assistant", ("x",)))))
    assert [one.grid for one in found.images] == [(2, 2), (4, 6)]
    tiny = FAMILY.encode(processor, about(picture((90, 61)), max_pixels=1))
    assert tiny.images[0].grid == (2, 2) and len(tiny.media["pixel_values"]) == 1
    FAMILY.set_pixel_budget(processor, min_pixels=2 * tile - 1, max_pixels=3 * tile + 1)
    assert (processor.image_processor.min_patches, processor.image_processor.max_patches) == (2, 3)
    processor.save_pretrained(tmp_path)
    loaded = FAMILY.load_processor(str(tmp_path))
    for one in (processor, loaded):
        assert FAMILY.encode(one, about(picture((16, 16)))).images[0].grid == (4, 2)
        assert FAMILY.encode(one, about(picture((200, 20)))).images[0].grid == (2, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_pixels": 255}, "--max_pixels 255: expected at least 256, one tile of internvl"),
        ({"min_pixels": 7 * 256}, r"found at least 7 and at most 6 tiles of 256 pixels, .* give both"),
        ({"min_pixels": 0}, "found at least 0"),
    ],
)
def test_impossible_budgets_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        FAMILY.set_pixel_budget(TINY.processor(tmp_path), **{"min_pixels": None, "max_pixels": None, **given})


def test_what_is_saved_names_transformers_own_class(tmp_path):
    TINY.processor(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert (saved["processor_class"], saved["image_seq_length"]) == ("InternVLProcessor", EACH)


def test_folders_as_they_are_published_are_read(tmp_path):
    """Settings of pictures in a file of their own, for a class that needs torchvision; a template in JSON."""
    processor = TINY.processor(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    pictures = {**saved.pop("image_processor"), "image_processor_type": "GotOcr2ImageProcessorFast"}
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
@pytest.mark.parametrize("size", [*TILES])
def test_the_configuration_alone_tells_the_tokens(tmp_path, model, size):
    """By the published bounds of 1 to 12 tiles."""
    processor = TINY.processor(tmp_path)
    processor.image_processor.max_patches = 12
    said = FAMILY.image_arithmetic(model.config, size)
    encoded = FAMILY.encode(processor, about(picture(size)))
    rows, columns = encoded.images[0].grid
    assert said.tokens == len(slots(model, encoded)) and f"= {said.tokens} tokens" in said.words
    assert said.patches == (2 * rows, 2 * columns)
    assert said.resized_pixels == (columns * INTERN_TILE // INTERN_SIDE, rows * INTERN_TILE // INTERN_SIDE)


def test_the_published_shape():
    """1000 × 500 pixels by the published configuration, as this family's file says."""
    said = FAMILY.image_arithmetic(InternVLConfig(), (1000, 500))
    assert (said.resized_pixels, said.patches) == ((896, 448), (32, 64))
    assert said.tokens == 3 * 256
    assert FAMILY.matches(InternVLConfig())
    assert not FAMILY.matches(InternVLConfig(text_config={"model_type": "qwen3_moe"}))


def test_shapes_of_attention(model):
    assert FAMILY.attention_shape(model.config, "layer_1") == AttentionShape(
        4, 2, 16, "tokens at tokens before them"
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
        cells = record.image_tokens[0].all_positions
        assert record.visual_share[:2] == pytest.approx(record.rows[:, :, 0, cells].sum(-1), abs=1e-6)
        assert record.region_mass["r"].min() > 0 and record.region_mass["r"].max() < 1
        assert {one.kind for one in record.interventions} == {"occlusion", "knockout"}
        assert np.isfinite([one.margin_nats for one in record.interventions]).all()


@pytest.mark.parametrize("size", [(32, 32), (16, 16)])
def test_patches_of_a_tile_are_not_taken_for_cells(processor, model, tmp_path, size):
    """32 × 32 pixels are 2 × 2 tiles: 16 cells, and each tile has 16 patches."""
    picture(size).save(tmp_path / "a.png")
    regions = {"cat": ((0, 0, 8, 8),), "table": ((8, 8, 16, 16),)}
    phrases = {"cat": "cat", "table": "table"}
    asked = "is the cat on the table?"
    relation = Relation("on", "cat", "table")
    probe = Probe("p", "g", (tmp_path / "a.png",), asked, "yes", "no", regions, phrases, relation)
    with torch.no_grad():
        found = read_relation(model, ProbeEncoder(FAMILY, processor), probe)
    assert {"phrase/subject", "phrase/object", "nouns"} <= found.keys()
    assert "vision" not in found
