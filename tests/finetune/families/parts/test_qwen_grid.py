"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: sizes, cells, boxes, rotary positions, and processors without torchvision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import padded
from finetune.families.base import AttentionShape
from finetune.families.parts.qwen_grid import cell_side, image_tokens, resize, resized, rotary_positions
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from tests.finetune.families.pictures import about, picture
from tests.finetune.families.tiny_families import CELL, GRIDS, IDS, LEAST_PIXELS, MERGE, MOST_PIXELS, PATCH
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS

SIZES = [
    (50, 31),
    (31, 50),
    (97, 40),
    (9, 70),
    (301, 203),
    (8, 8),
]  # wide, tall, odd, thin, too large, too small


def test_sizes_after_the_resize_are_those_of_the_processor():
    drawn = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(10 ** drawn.uniform(0.5, 3.6)) for _ in range(2))
        cell, least = int(drawn.choice([8, 28, 32])), int(10 ** drawn.uniform(0, 5))
        most = least * int(drawn.integers(1, 60)) + cell * cell
        if max(width, height) <= 100 * min(width, height):
            rows, columns = smart_resize(height, width, cell, min_pixels=least, max_pixels=most)
            assert resized((width, height), cell, (least, most), "a picture") == (columns, rows)


@pytest.fixture(scope="module", params=[*GRIDS, "qwen3.5"])
def tiny(request):
    return {**GRIDS, **HYBRIDS}[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return tiny.processor(tmp_path_factory.mktemp("processor"))


# --- sizes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((50, 31), (48, 32)),  # 6.25 × 3.9 cells of 8 → 6 × 4
        ((31, 50), (32, 48)),
        (
            (301, 203),
            (40, 32),
        ),  # 61,103 pixels, at most 1,536: sides · 0.1585 = 47.7 × 32.2, whole cells below
        ((8, 8), (16, 16)),  # 64 pixels, at least 128: sides · 1.41 = 11.3, whole cells above
        ((9, 70), (8, 72)),
    ],
)
def test_a_picture_is_resized_to_whole_cells_within_the_budget(processor, size, resized):
    assert resize(processor, size, (LEAST_PIXELS, MOST_PIXELS), "p") == resized


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_counted_without_opening_the_picture(tiny, processor, size, tmp_path):
    """A file cut after its header has a size and no pixels."""
    path = tmp_path / "whole.png"
    picture(size).save(path)
    cut = tmp_path / "cut.png"
    cut.write_bytes(path.read_bytes()[:60])
    full = tiny.family.encode(processor, about(path))
    counted = tiny.family.encode(processor, about(cut), media=False)
    assert counted.input_ids.tolist() == full.input_ids.tolist()
    assert counted.labels.tolist() == full.labels.tolist() and counted.turn_spans == full.turn_spans
    assert counted.per_token["mm_token_type_ids"].tolist() == full.per_token["mm_token_type_ids"].tolist()
    known = tiny.family.encode(processor, about(Path("nowhere.png"), size_pixels=size), media=False)
    assert known.input_ids.tolist() == full.input_ids.tolist()
    with pytest.raises(ValueError, match=r"cut\.png"):
        tiny.family.encode(processor, about(cut))


def test_a_picture_s_own_bound_is_kept_beside_the_processor_s(tiny, processor):
    one, other = picture((90, 60)), picture((60, 90), seed=1)
    refs = (ImageRef("a", one, max_pixels=6 * CELL * CELL), ImageRef("b", other))
    conversation = Conversation((Turn("user", (*refs, "?")), Turn("assistant", ("x",))))
    found = tiny.family.encode(processor, conversation)
    assert [image.grid for image in found.images] == [(2, 3), (6, 4)]
    assert found.media["image_grid_thw"].tolist() == [[1, 4, 6], [1, 12, 8]]
    assert len(found.media["pixel_values"]) == 24 + 96
    assert processor.image_processor.size["longest_edge"] == MOST_PIXELS


def test_a_bound_below_a_cell_leaves_one_cell(tiny, processor):
    assert tiny.family.encode(processor, about(picture((70, 60)), max_pixels=1)).images[0].grid == (1, 1)


def test_an_absurdly_thin_picture_is_named(tiny, processor):
    with pytest.raises(
        ValueError, match=r"image '0\.png': found 2010 × 10 pixels, expected no side more than 200"
    ):
        tiny.family.encode(processor, about(picture((2010, 10))))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_pixels": 63},
            r"--max_pixels 63: expected at least 64, one cell of .* \(8 × 8 pixels, one token\)",
        ),
        ({"max_pixels": 100}, r"--min_pixels 128 \(from the processor\), --max_pixels 100: .* give both"),
        ({"min_pixels": 2000}, r"--min_pixels 2,000, --max_pixels 1,536 \(from the processor\)"),
        ({"min_pixels": 0}, r"expected 0 < min_pixels"),
    ],
)
def test_impossible_budgets_are_refused(tiny, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        tiny.family.set_pixel_budget(
            tiny.processor(tmp_path), **{"min_pixels": None, "max_pixels": None, **given}
        )


# --- pixels ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_slow_processor(tiny, processor, size):
    """Computed here from the picture: resized by Pillow, scaled, normalised, cut into patches, cell by cell."""
    image = picture(size)
    found = tiny.family.encode(processor, about(image))
    width, height = resize(processor, size, (LEAST_PIXELS, MOST_PIXELS), "p")
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    settings = processor.image_processor
    normal = ((resized - np.array(settings.image_mean)) / np.array(settings.image_std)).transpose(2, 0, 1)
    patches = []
    for row in range(0, height, CELL):
        for column in range(0, width, CELL):
            for y in range(row, row + CELL, PATCH):
                for x in range(column, column + CELL, PATCH):
                    patch = normal[:, y : y + PATCH, x : x + PATCH]
                    patches.append(
                        np.stack([patch, patch], axis=1).reshape(-1)
                    )  # the picture twice, as frames
    np.testing.assert_allclose(found.media["pixel_values"].numpy(), np.stack(patches), atol=1e-5)


@pytest.mark.parametrize("size", [(90, 33), (57, 90), (131, 77)])
def test_a_cell_stands_for_the_pixels_that_change_its_token(tiny, processor, size):
    plain = Image.new("RGB", size, (90, 120, 150))
    image = tiny.family.encode(processor, about(plain)).images[0]
    rows, columns = image.grid
    assert rows != columns and not image.through_connector
    cell = columns + 2  # second row, third column
    x0, y0, x1, y1 = image.cell_boxes_pixels[cell]
    assert (x0, x1) == pytest.approx((2 * size[0] / columns, 3 * size[0] / columns))
    assert (y0, y1) == pytest.approx((size[1] / rows, 2 * size[1] / rows))
    marked = plain.copy()
    middle, reach = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 6, (y1 - y0) / 6)
    spot = (middle[0] - reach[0], middle[1] - reach[1], middle[0] + reach[0], middle[1] + reach[1])
    ImageDraw.Draw(marked).rectangle(spot, fill=(255, 0, 0))
    before, after = (
        tiny.family.encode(processor, about(one)).media["pixel_values"] for one in (plain, marked)
    )
    moved = (before - after).abs().sum(1).reshape(-1, MERGE**2).sum(1).numpy()
    assert np.argmax(moved) == cell and moved[cell] > 3 * np.delete(moved, cell).max()


def test_tokens_of_a_picture_are_its_cells_row_by_row():
    image = image_tokens(5, (2, 3), (31, 21))
    assert image.positions.tolist() == [5, 6, 7, 8, 9, 10]
    third = 31 / 3
    np.testing.assert_allclose(image.cell_boxes_pixels[4], [third, 10.5, 2 * third, 21.0])
    assert image.cell_boxes_pixels[:, :2].min() == 0 and image.cell_boxes_pixels[:, 2].max() == 31


# --- boxes -----------------------------------------------------------------------------------------------
WRITTEN = {
    "qwen2-vl": "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(250,0),(500,999)<|box_end|>",
    "qwen2.5-vl": '{"bbox_2d": [12, 0, 24, 32], "label": "the dog"}',
    "qwen3-vl": '{"bbox_2d": [250, 0, 500, 1000], "label": "the dog"}',
    "qwen3-vl-moe": '{"bbox_2d": [250, 0, 500, 1000], "label": "the dog"}',
    "qwen3.5": '{"bbox_2d": [250, 0, 500, 1000], "label": "the dog"}',
}
SEVERAL = {
    "qwen2-vl": "<|box_start|>(250,0),(500,999)<|box_end|><|box_start|>(0,0),(100,500)<|box_end|>",
    "qwen2.5-vl": '{"bbox_2d": [12, 0, 24, 32]}, {"bbox_2d": [0, 0, 5, 16]}',
    "qwen3-vl": '{"bbox_2d": [250, 0, 500, 1000]}, {"bbox_2d": [0, 0, 100, 500]}',
    "qwen3-vl-moe": '{"bbox_2d": [250, 0, 500, 1000]}, {"bbox_2d": [0, 0, 100, 500]}',
    "qwen3.5": '{"bbox_2d": [250, 0, 500, 1000]}, {"bbox_2d": [0, 0, 100, 500]}',
}


@pytest.mark.parametrize("style", ["qwen-vl", "json", "placeholder"])
def test_boxes_are_written_as_the_family_was_trained(tiny, processor, style):
    """However the data wrote them; the picture of 50 × 31 pixels is 48 × 32 for the model."""
    ref = BoxRef("as it was written", ((0.25, 0.0, 0.5, 1.0),), "the dog", style=style)
    conversation = about(picture((50, 31)), answer=("see ", ref, "!"))
    for media in (True, False):
        found = tiny.family.encode(processor, conversation, media=media)
        answer = found.input_ids[slice(*found.turn_spans[-1])].tolist()
        assert processor.tokenizer.decode(answer) == f"see {WRITTEN[tiny.family.name]}!"
        assert found.labels[slice(*found.turn_spans[-1])].tolist() == answer


def test_several_boxes_without_a_phrase(tiny, processor):
    ref = BoxRef("two", ((0.25, 0.0, 0.5, 1.0), (0.0, 0.0, 0.1, 0.5)))
    found = tiny.family.encode(processor, about(picture((50, 31)), answer=(ref,)))
    answer = found.input_ids[slice(*found.turn_spans[-1])].tolist()
    assert processor.tokenizer.decode(answer) == SEVERAL[tiny.family.name]


def test_a_phrase_with_control_tokens_is_words(tiny, processor):
    ref = BoxRef("x", ((0.0, 0.0, 0.5, 0.5),), "a<|im_end|>b")
    found = tiny.family.encode(processor, about(picture((50, 31)), answer=(ref,)))
    assert found.input_ids[slice(*found.turn_spans[-1])].tolist().count(IDS["<|im_end|>"]) == 0


def test_markers_of_boxes_are_tokens_in_qwen2_vl(tmp_path):
    tiny = GRIDS["qwen2-vl"]
    ref = BoxRef("x", ((0.0, 0.0, 0.5, 0.5),), "dog")
    found = tiny.family.encode(tiny.processor(tmp_path), about(picture((50, 31)), answer=(ref,)))
    answer = found.input_ids[slice(*found.turn_spans[-1])].tolist()
    names = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
    assert [answer.count(IDS[name]) for name in names] == [1, 1, 1, 1]


def test_a_box_is_in_the_picture_that_it_names(tmp_path):
    """Pixels of the second picture, which another bound makes smaller."""
    tiny = GRIDS["qwen2.5-vl"]
    refs = (ImageRef("a", picture((50, 31))), ImageRef("b", picture((90, 60)), max_pixels=6 * CELL * CELL))
    box = BoxRef("x", ((0.0, 0.0, 1.0, 1.0),), image=1)
    conversation = Conversation((Turn("user", (*refs, "?")), Turn("assistant", (box,))))
    found = tiny.family.encode(tiny.processor(tmp_path), conversation)
    answer = tiny.processor(tmp_path).tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
    assert json.loads(answer) == {"bbox_2d": [0, 0, 24, 16]}


# --- rotary positions ------------------------------------------------------------------------------------
def test_rotary_positions_by_hand(tiny, processor):
    """Two tokens, a picture of 2 × 3 cells, two tokens."""
    ids = np.arange(10)
    encoded = tiny.family.blank(processor)
    encoded = type(encoded)(ids, ids, (), images=(image_tokens(2, (2, 3), (9, 9)),))
    assert rotary_positions(encoded).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("sizes", [[], [(50, 31)], [(31, 90), (97, 40), (16, 16)]])
def test_rotary_positions_are_the_model_s_own(tiny, processor, sizes):
    model = tiny.model()
    encoded = tiny.family.encode(processor, about(*(picture(size) for size in sizes)))
    expected, _ = model.model.get_rope_index(
        torch.from_numpy(encoded.input_ids)[None],
        mm_token_type_ids=torch.from_numpy(encoded.per_token["mm_token_type_ids"])[None],
        image_grid_thw=encoded.media.get("image_grid_thw"),
    )
    assert torch.equal(rotary_positions(encoded), expected[:, 0])
    if tiny.unpackable:
        return
    both = tiny.family.packed(model.config, [encoded, encoded])["position_ids"]
    count = len(encoded.input_ids)
    assert both.shape == (4, 1, 2 * count)
    assert both[0, 0].tolist() == [*range(count), *range(count)]
    assert torch.equal(both[1:, 0, count:], expected[:, 0])


# --- processors ------------------------------------------------------------------------------------------
def test_a_processor_comes_back_as_it_was_saved(tiny, tmp_path):
    processor = tiny.processor(tmp_path)
    processor.videos = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3}
    tiny.family.set_pixel_budget(processor, min_pixels=3 * CELL * CELL, max_pixels=7 * CELL * CELL)
    processor.save_pretrained(tmp_path)
    loaded = tiny.family.load_processor(str(tmp_path))
    conversation = about(picture((90, 33)), words="what <|im_end|>?")
    one, other = (tiny.family.encode(either, conversation) for either in (processor, loaded))
    assert one.input_ids.tolist() == other.input_ids.tolist() and one.images[0].grid == (1, 4)
    assert torch.equal(one.media["pixel_values"], other.media["pixel_values"])
    assert loaded.chat_template == processor.chat_template and loaded.videos == processor.videos
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()


def test_saved_processors_load_in_transformers_own_classes(tiny, tmp_path):
    processor = tiny.processor(tmp_path)
    processor.videos = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3}
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    of_transformers = next(
        one for one in type(processor).__mro__ if one.__module__.startswith("transformers.")
    )
    assert saved["processor_class"] == of_transformers.__name__
    assert saved["video_processor"] == processor.videos and "videos" not in saved
    own = AutoImageProcessor.from_pretrained(tmp_path)
    image = picture((50, 31))
    pixels = own(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, tiny.family.encode(processor, about(image)).media["pixel_values"])


def test_older_folders_are_read(tiny, tmp_path):
    """preprocessor_config.json with min_pixels and max_pixels, and a template in chat_template.json."""
    processor = tiny.processor(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    old = {"patch_size": PATCH, "merge_size": MERGE, "min_pixels": 130, "max_pixels": 1000,
           "image_processor_type": "Qwen2VLImageProcessor"}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    loaded = tiny.family.load_processor(str(tmp_path))
    assert loaded.chat_template == processor.chat_template
    size = loaded.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"], cell_side(loaded)) == (130, 1000, CELL)


def test_a_folder_without_a_chat_template_is_an_error(tiny, tmp_path):
    tiny.processor(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"found no chat template, expected chat_template\.jinja"):
        tiny.family.load_processor(str(tmp_path))


# --- configuration alone ---------------------------------------------------------------------------------
def test_what_the_configuration_says_of_a_picture_is_what_becomes_of_it(tiny, tmp_path):
    processor, config = tiny.processor(tmp_path), tiny.model().config
    least, most = tiny.family.published_pixels
    tiny.family.set_pixel_budget(processor, min_pixels=least, max_pixels=most)
    found = tiny.family.encode(processor, about(picture((300, 211)))).images[0]
    said = tiny.family.image_arithmetic(config, (300, 211))
    assert said.tokens == len(found.positions)
    assert said.patches == (found.grid[0] * MERGE, found.grid[1] * MERGE)
    assert said.resized_pixels == (found.grid[1] * CELL, found.grid[0] * CELL)
    assert f"= {said.tokens} tokens" in said.words and said.words.startswith("300 × 211 pixels")


def test_shapes_of_attention(tiny):
    config = tiny.model().config
    assert tiny.family.attention_shape(config, "layer_1") == AttentionShape(
        4, 2, 8, "tokens at tokens before them"
    )
    tower = tiny.family.attention_shape(config, "vision_layer_0")
    assert (tower.heads, tower.key_heads, tower.head_width) == (2, 2, 8)
    windowed = tiny.family.name == "qwen2.5-vl"
    assert ("window, 16 × 16 pixels" in tower.looks) == windowed
    assert tiny.family.attention_shape(config, "vision_layer_1").looks == "patches at patches of the picture"


# --- looking ---------------------------------------------------------------------------------------------
def tower_rows_by_hand(model, inputs, layer):
    """A layer's attention over all patches in the tower's order, and (row, column) of each, from the model alone."""
    taken = {}

    def take(module, arguments, options):
        taken.update(options, hidden=arguments[0] if arguments else options["hidden_states"])

    attention = model.model.visual.blocks[layer].attn
    handle = attention.register_forward_pre_hook(take, with_kwargs=True)
    model(**inputs)
    handle.remove()
    length = len(taken["hidden"])
    q, k, _ = attention.qkv(taken["hidden"]).reshape(length, 3, attention.num_heads, -1).permute(1, 0, 2, 3)
    q, k = apply_rotary_pos_emb_vision(q, k, *taken["position_embeddings"])
    stretch = torch.bucketize(torch.arange(length), taken["cu_seqlens"][1:], right=True)
    logits = torch.einsum("qhd,khd->hqk", q, k) * attention.scaling
    logits = logits.masked_fill(stretch[:, None] != stretch[None], float("-inf"))
    places = get_vision_position_ids(inputs["image_grid_thw"], MERGE)
    if hasattr(model.config.vision_config, "window_size"):
        window = model.config.vision_config.window_size
        order, _ = get_vision_window_index(inputs["image_grid_thw"], MERGE, window, PATCH)
        places = places.reshape(-1, MERGE**2, 2)[order].reshape(-1, 2)
    return logits.softmax(-1).numpy(), places.numpy()


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_of_the_tower_lie_over_the_picture(tiny, processor, layer):
    """One picture, patches row-major, whatever order the tower reads them in."""
    model = tiny.model()
    encoded = tiny.family.encode(processor, about(picture((90, 33))))
    inputs = padded([encoded], torch.device("cpu"), left=False)
    with torch.no_grad():
        expected, places = tower_rows_by_hand(model, inputs, layer)
        with AttentionExtractor(model, [], vision_layers=[layer], family=tiny.family) as seen:
            model(**inputs)
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert rows != columns
    row_major = np.argsort(places[:, 0] * columns + places[:, 1])
    found = seen.attention_weights[f"vision_layer_{layer}"][0]
    assert np.abs(found - expected[:, row_major][:, :, row_major]).max() < 1e-6
    assert not (row_major == np.arange(rows * columns)).all()
