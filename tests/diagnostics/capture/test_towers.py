"""Rows of vision towers that reorder and window their patches, put back in the order of the picture."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from diagnostics.capture.extractor import AttentionExtractor
from finetune.families import ModulePaths
from finetune.families.base import AttentionShape
from finetune.families.parts import tower

MERGE, SIDE = 2, 2  # a window holds 2 × 2 blocks of 2 × 2 patches
GRIDS = [[1, 6, 10], [1, 8, 4]]  # (frames, rows, columns): windows are cut off at both borders
IMAGE, START, END = 90, 91, 92


class Windowed:
    """A family in as much as the extractor asks for it."""

    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.visual",),
        vision_layers="model.visual.blocks",
        vision_attention="attn",
        connector=("model.visual.merger",),
        connector_attention=None,
    )

    def attention_shape(self, config, name):
        return AttentionShape(4, 2, 6, "")

    def tower_sequences(self, config, layer, inputs):
        grids = inputs["grid_thw"].tolist()
        whole = layer in config.vision_config.fullatt_block_indexes
        return (tower.windows_by_frame if whole else tower.windows)(grids, MERGE, SIDE)


def tiny() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4, "out_hidden_size": 24,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": SIDE * MERGE * 4,
        "fullatt_block_indexes": [1], "in_channels": 3,
    }  # fmt: skip
    text = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 32, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 10000.0},
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=START,
        vision_end_token_id=END, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def inputs(grids=GRIDS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = [5]
    for frames, rows, columns in grids:
        ids += [START, *[IMAGE] * (frames * rows * columns // MERGE**2), END]
    ids += [7, 8, 9]
    input_ids = torch.tensor([ids])
    patches = sum(t * h * w for t, h, w in grids)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE).long(),
        "pixel_values": torch.randn(patches, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor(grids),
    }


def direct(model, given, layer: int, image: int) -> np.ndarray:
    """The layer's attention over one picture, computed again from what enters it: all pairs, then the windows."""
    taken = {}

    def take(module, arguments, options):
        taken.update(options, hidden=arguments[0] if arguments else options["hidden_states"])

    attention = model.model.visual.blocks[layer].attn
    handle = attention.register_forward_pre_hook(take, with_kwargs=True)
    with torch.no_grad():
        model(**given)
        handle.remove()
        length = taken["hidden"].shape[0]
        q, k, _ = attention.qkv(taken["hidden"]).reshape(length, 3, 2, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = apply_rotary_pos_emb_vision(q, k, *taken["position_embeddings"])
        logits = torch.einsum("qhd,khd->hqk", q, k) * attention.scaling
        stretch = torch.bucketize(torch.arange(length), taken["cu_seqlens"][1:], right=True)
        logits = logits.masked_fill(stretch[:, None] != stretch[None, :], float("-inf"))
        rows = logits.softmax(-1).numpy()
    # Where each place's patch lies, from the rotation that it was given: found by its coordinates alone.
    place = _coordinates(model, given)
    start = sum(t * h * w for t, h, w in given["image_grid_thw"].tolist()[:image])
    _, height, width = given["image_grid_thw"].tolist()[image]
    order = place[start : start + height * width]
    row_major = np.argsort(order[:, 0] * width + order[:, 1])
    own = start + row_major
    return rows[:, own][:, :, own]


def _coordinates(model, given) -> np.ndarray:
    """(row, column) of each place of the tower, through the model's own permutation."""
    from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

    grids = given["image_grid_thw"]
    position = get_vision_position_ids(grids, MERGE)
    index, _ = get_vision_window_index(grids, MERGE, model.config.vision_config.window_size, 4)
    return position.reshape(-1, MERGE**2, 2)[index].reshape(-1, 2).numpy()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_windows_are_put_back_in_place(layer: int, image: int, kernel: str):
    model, given = tiny(), inputs()
    model.set_attn_implementation(kernel)
    with torch.no_grad():
        plain = model(**given).logits
        with AttentionExtractor(model, [0], images=[image], vision_layers=[layer], family=Windowed()) as seen:
            assert torch.equal(model(**given).logits, plain)
    found = seen.attention_weights[f"vision_layer_{layer}"]
    expected = direct(model, given, layer, image)
    assert found.shape == (1, 2, *expected.shape[1:])
    assert np.abs(found[0] - expected).max() < 1e-6
    assert np.allclose(found.sum(-1), 1, atol=1e-6)
    _, rows, columns = GRIDS[image]
    seen_by_first = (found[0, 0, 0] > 0).reshape(rows, columns)
    windowed = np.zeros((rows, columns), bool)
    windowed[: SIDE * MERGE, : SIDE * MERGE] = True
    assert (seen_by_first == (windowed if layer == 0 else True)).all()


def test_chosen_patches_of_each_image_and_a_decoding_step_after():
    model, given = tiny(), inputs()
    whole = {}
    for image in (0, 1):
        with (
            torch.no_grad(),
            AttentionExtractor(model, [0], images=[image], vision_layers=[0], family=Windowed()) as seen,
        ):
            model(**given)
        whole[image] = seen.attention_weights["vision_layer_0"][0]
    with (
        torch.no_grad(),
        AttentionExtractor(
            model, [0], images=[1], vision_layers=[0], vision_tokens=[30, 5, 30, -1], family=Windowed()
        ) as seen,
    ):
        model.generate(**given, max_new_tokens=2, do_sample=False)
        found = seen.attention_weights["vision_layer_0"]
    assert np.array_equal(found[0], whole[1][:, [30, 5, 30, 31]])
    with (
        torch.no_grad(),
        AttentionExtractor(
            model, [0], vision_layers=[0], vision_tokens=torch.tensor([[59, 0], [3, 8]]), family=Windowed()
        ) as seen,
    ):
        model(**given)
    with pytest.raises(ValueError, match=r"images of 60, 32 patches, expected one size .* images=\[0\]"):
        _ = seen.attention_weights


def test_knocked_out_patches_are_seen_by_none():
    model, given = tiny(), inputs()
    blocked = torch.zeros(2, 1, 60, dtype=torch.bool)
    blocked[0, 0, [0, 13]] = True
    blocked[1, 0, 5] = True
    for layer in (0, 1):
        for image, hidden in ((0, [0, 13]), (1, [5])):
            with (
                torch.no_grad(),
                AttentionExtractor(
                    model, [0], images=[image], vision_layers=[layer], family=Windowed()
                ) as seen,
                seen.knocked_out({f"vision_layer_{layer}": blocked}),
            ):
                model(**given)
            found = seen.attention_weights[f"vision_layer_{layer}"][0]
            assert (found[:, :, hidden] == 0).all()
            assert np.allclose(found.sum(-1), 1, atol=1e-6)
            others = np.delete(found, hidden, axis=2)
            assert (others.max((0, 1)) > 0).all()


@pytest.mark.parametrize("queries", [1, 60])
def test_a_mask_shorter_than_an_image_leaves_the_rest_alone(queries):
    model, given = tiny(), inputs()
    blocked = torch.zeros(1, queries, 60, dtype=torch.bool)
    blocked[..., [0, 2]] = True
    found = {}
    for length in (60, 3):
        with (
            torch.no_grad(),
            AttentionExtractor(model, [], images=[0], vision_layers=[1], family=Windowed()) as seen,
            seen.knocked_out({"vision_layer_1": blocked[:, :, :length]}),
        ):
            model(**given)
        found[length] = seen.attention_weights["vision_layer_1"]
    assert np.array_equal(found[3], found[60])
    assert np.flatnonzero((found[3][0] == 0).all((0, 1))).tolist() == [0, 2]


def test_queries_beyond_a_mask_see_all_keys():
    model, given = tiny(), inputs()
    blocked = torch.zeros(1, 2, 3, dtype=torch.bool)
    blocked[0, 1, 0] = True
    with (
        torch.no_grad(),
        AttentionExtractor(model, [], images=[0], vision_layers=[1], family=Windowed()) as seen,
        seen.knocked_out({"vision_layer_1": blocked}),
    ):
        model(**given)
    rows = seen.attention_weights["vision_layer_1"][0]
    assert np.argwhere((rows == 0).all(0)).tolist() == [[1, 0]]


@pytest.mark.parametrize("masks", [2, 4])
def test_a_mask_for_another_number_of_pictures_is_refused(masks):
    """It would hide patches of pictures that it says nothing of."""
    model, given = tiny(), inputs([*GRIDS, [1, 4, 4]])
    blocked = torch.zeros(masks, 1, 16, dtype=torch.bool)
    words = rf"found {masks} masks for .*the pass has 3 pictures; expected one for all, or one for each"
    with (
        torch.no_grad(),
        AttentionExtractor(model, [], family=Windowed()) as seen,
        seen.knocked_out({"vision_layer_1": blocked}),
        pytest.raises(ValueError, match=words),
    ):
        model(**given)


@pytest.mark.parametrize(
    ("images", "tokens", "words"),
    [
        ([0], [60], "vision token 60 does not exist; the image has 60 tokens"),
        ([0], [-61], "vision token -61 does not exist"),
        ([1], [32], "vision token 32 does not exist; the image has 32 tokens"),
        (None, torch.tensor([[1]]), "vision tokens for 1 images, expected 2"),
        ([0], torch.tensor([[1], [2]]), "vision tokens for 2 images, expected 1"),
        ([0], torch.ones(60, dtype=torch.bool), "vision tokens: found a Bool mask"),
    ],
)
def test_patches_that_do_not_exist_are_refused(images, tokens, words):
    """Counted around the end they would be rows of others."""
    model, given = tiny(), inputs()
    with (
        torch.no_grad(),
        AttentionExtractor(
            model, [], images=images, vision_layers=[1], vision_tokens=tokens, family=Windowed()
        ),
        pytest.raises(ValueError, match=f"vision_layer_1: {words}"),
    ):
        model(**given)


def test_a_tower_that_is_not_what_the_family_says_is_named():
    class Wrong(Windowed):
        def tower_sequences(self, config, layer, inputs):
            return tower.frames(inputs["grid_thw"].tolist(), MERGE)

    model, given = tiny(), inputs()
    with (
        torch.no_grad(),
        AttentionExtractor(model, [0], images=[0], vision_layers=[0], family=Wrong()),
        pytest.raises(
            ValueError,
            match=r"vision_layer_0: its kernel was called with 1 sequences of 16 places, expected \[60\]",
        ),
    ):
        model(**given)


def test_block_order_by_hand():
    assert tower.block_order(2, 4, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    [first, second] = tower.frames([[2, 2, 4]], 2)
    assert first.patch.tolist() == [0, 1, 4, 5, 2, 3, 6, 7] and second.patch.tolist() == [
        8,
        9,
        12,
        13,
        10,
        11,
        14,
        15,
    ]
    [one] = tower.whole_images([3], class_tokens=1)
    assert one.patch.tolist() == [-1, 0, 1, 2] and one.image.tolist() == [0] * 4
    found = tower.windows([[1, 4, 6]], 2, 2)  # 2 × 3 blocks: one window of 2 × 2, one of 2 × 1
    assert [len(window) for window in found] == [16, 8]
    assert found[1].patch.tolist() == [4, 5, 10, 11, 16, 17, 22, 23]
