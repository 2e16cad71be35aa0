"""Capture on Qwen-VL: against the original's own attention, in all three parts, under PEFT and in generation."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.self_check import self_check
from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration, QwenVLImageProcessor
from tests.diagnostics.tiny_qwen_vl import IMAGE_START_ID, N_PATCHES, N_QUERIES, tiny_model

TOLERANCE = 2e-5


def golden_model(golden, kernel: str) -> QwenVLForConditionalGeneration:
    config = QwenVLConfig.from_dict(json.loads((golden / "A" / "config.json").read_text()))
    config._attn_implementation = kernel
    model = QwenVLForConditionalGeneration(config)
    model.load_state_dict(load_file(golden / "A" / "model.safetensors"))
    return model.eval()


def inputs_of(batch: int = 1) -> dict[str, torch.Tensor]:
    """text, an image, text: 3 + 1 + 9 + 1 + 4 tokens."""
    generator = torch.Generator().manual_seed(5)
    slots = [IMAGE_START_ID, *[IMAGE_START_ID + 2] * N_QUERIES, IMAGE_START_ID + 1]
    rows = [[*torch.randint(0, 256, (7,), generator=generator).tolist()] for _ in range(batch)]
    ids = torch.tensor([[*row[:3], *slots, *row[3:]] for row in rows])
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, 24, 24, generator=generator)}


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_are_those_of_the_original_model(golden, kernel):
    case = load_file(golden / "A" / "one_image.safetensors")
    pixels = QwenVLImageProcessor(112)([golden / "images" / "a.png"])["pixel_values"]
    model = golden_model(golden, kernel)
    inputs = {"input_ids": case["input_ids"], "pixel_values": pixels}
    plain = model(**inputs).logits
    with AttentionExtractor(model, [1, 3], vision_layers=[1]) as extractor:
        assert torch.equal(model(**inputs).logits, plain)
        weights = extractor.attention_weights
    assert set(weights) == {"layer_1", "layer_3", "visual_attn", "vision_layer_1"}
    for ours, theirs in (
        ("layer_1", "lm_attn.1"),
        ("layer_3", "lm_attn.3"),
        ("visual_attn", "resampler_attn"),
        ("vision_layer_1", "vit_attn.1"),
    ):
        np.testing.assert_allclose(weights[ours], case[theirs].numpy(), atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_self_check_passes_and_gives_the_model_back(kernel):
    model = tiny_model(kernel)
    self_check(model, inputs_of(2))
    assert model.config._attn_implementation == kernel


@torch.no_grad()
def test_images_are_chosen_and_a_text_forgets_them():
    model, inputs = tiny_model(), inputs_of(2)
    with AttentionExtractor(model, [2]) as extractor:
        model(**inputs)
        both = extractor.attention_weights["visual_attn"]
        extractor.images = [1]
        model(**inputs)
        second = extractor.attention_weights["visual_attn"]
        model(input_ids=inputs["input_ids"][:, :3])
        assert set(extractor.attention_weights) == {"layer_2"}
    assert both.shape == (2, 1, N_QUERIES, N_PATCHES) and second.shape[0] == 1
    np.testing.assert_allclose(second[0], both[1], atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("images", [None, [1], [1, 0]])
def test_rows_of_chosen_patches_are_those_of_all(images):
    model, inputs = tiny_model(), inputs_of(2)
    with AttentionExtractor(model, [0], vision_layers=[0], images=images) as extractor:
        model(**inputs)
        every = extractor.attention_weights
        extractor.vision_tokens = [7, -1, 0]
        model(**inputs)
        listed = extractor.attention_weights
        each = torch.tensor([[3, 35], [8, 1]])[: len(images or (0, 1))]
        extractor.vision_tokens = each
        model(**inputs)
        own = extractor.attention_weights
        assert set(extractor.highest_logits) == {"layer_0"}
    vision = every["vision_layer_0"]
    assert vision.shape == (len(each), 2, N_PATCHES, N_PATCHES)
    np.testing.assert_allclose(listed["vision_layer_0"], vision[:, :, [7, 35, 0]], atol=1e-6)
    expected = np.stack([of_image[:, chosen] for of_image, chosen in zip(vision, each.numpy(), strict=True)])
    np.testing.assert_allclose(own["vision_layer_0"], expected, atol=1e-6)
    for name in ("visual_attn", "layer_0"):  # patches are chosen in the tower alone
        assert np.array_equal(listed[name], every[name])


@torch.no_grad()
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([36], "vision_layer_0: vision token 36 does not exist; the image has 36 tokens"),
        (torch.zeros(3, 1), "vision_layer_0: vision tokens for 3 images, expected 2"),
    ],
)
def test_a_missing_patch_or_image_is_an_error(tokens, message):
    model = tiny_model()
    with (
        AttentionExtractor(model, [], vision_layers=[0], vision_tokens=tokens),
        pytest.raises(ValueError, match=message),
    ):
        model(**inputs_of(2))


@torch.no_grad()
def test_generation_keeps_the_connectors_rows_of_its_prompt():
    model, inputs = tiny_model(), inputs_of()
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with AttentionExtractor(model, [1], query_tokens=[-1]) as extractor:
        seen = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(seen, plain)
        assert extractor.attention_weights["visual_attn"].shape == (1, 1, N_QUERIES, N_PATCHES)
        assert [step.shape[-1] for step in extractor.decode_weights["layer_1"]] == [19, 20, 21]


@torch.no_grad()
def test_patches_knocked_out_are_not_read_and_change_what_follows():
    model, inputs = tiny_model(), inputs_of(2)
    blocked = torch.zeros(2, 1, N_PATCHES, dtype=torch.bool)
    blocked[1, :, 10:20] = True
    with AttentionExtractor(model) as extractor:
        plain = model(**inputs).logits
        with extractor.knocked_out({"visual_attn": blocked}):
            changed = model(**inputs).logits
            weights = extractor.attention_weights["visual_attn"]
    assert weights[1, ..., 10:20].max() == 0 and weights[0, ..., 10:20].max() > 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-5)
    assert (changed[1] - plain[1])[-1].abs().max() > 1e-3


def test_under_peft_in_training_gradients_are_those_without_capture():
    def gradients(*, watch: bool) -> list[torch.Tensor]:
        config = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(), config).train()
        extractor = AttentionExtractor(model, [0, 2], query_tokens=[-1, 4]) if watch else None
        inputs = inputs_of(2)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        if extractor is not None:
            assert extractor.attention_weights["layer_2"].shape == (2, 2, 2, 18)
            extractor.remove()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for watched, plain in zip(gradients(watch=True), gradients(watch=False), strict=True):
        assert torch.equal(watched, plain)


@torch.no_grad()
def test_paused_keeps_nothing_and_goes_on_afterwards():
    model, inputs = tiny_model(), inputs_of()
    with AttentionExtractor(model, [1]) as extractor:
        model(**inputs)
        assert extractor.captured_names == ("layer_1", "visual_attn")
        with extractor.paused():
            model(**inputs)
            assert extractor.captured_names == ()
        assert extractor.attention_weights == extractor.highest_logits == {}
        model(**inputs)
        assert set(extractor.attention_weights) == {"layer_1", "visual_attn"}
        assert set(extractor.highest_logits) == {"layer_1"}


@torch.no_grad()
def test_one_extractor_sees_the_copy_that_runs_whether_the_adapter_is_on_or_off():
    """PEFT keeps what trains in full beside an adapter twice, and runs the original while the adapter is off."""
    whole = ["transformer.visual.attn_pool", "transformer.visual.transformer"]
    config = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=whole)
    base, inputs = tiny_model(), inputs_of(2)
    model = get_peft_model(tiny_model(), config).eval()
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with AttentionExtractor(base, [1], vision_layers=[0]) as extractor:
        base(**inputs)
        expected = extractor.attention_weights
    with AttentionExtractor(model, [1], vision_layers=[0]) as extractor:
        model(**inputs)
        on = extractor.attention_weights
        with model.disable_adapter():
            model(**inputs)
        off = extractor.attention_weights
    assert set(on) == set(off) == {"layer_1", "visual_attn", "vision_layer_0"}
    for name, rows in expected.items():
        np.testing.assert_array_equal(off[name], rows)
        assert np.abs(on[name] - rows).max() > 1e-3
