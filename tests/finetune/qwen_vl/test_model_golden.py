"""Same weights, same inputs, same numbers as the original Qwen-VL code."""

import json

import pytest
import torch
from transformers import DynamicCache

from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration
from finetune.qwen_vl.modeling import ntk_alpha
from finetune.qwen_vl.visual import sincos_table

TOLERANCE = 2e-5
EVALUATION = ["text", "one_image", "two_images", "batch_right_pad", "batch_left_pad"]


def real_tokens(inputs):
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", EVALUATION)
def test_logits_hidden_states_and_eye(golden_model, golden_case, name, kernel):
    inputs, case = golden_case("A", name)
    model = golden_model("A", kernel)
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    kept = real_tokens(inputs)
    assert (out.logits - case["logits"])[kept].abs().max() < TOLERANCE
    if "lm_hidden.2" in case:
        assert (out.hidden_states[2] - case["lm_hidden.2"])[kept].abs().max() < TOLERANCE
    if "visual_out" in case:
        with torch.no_grad():
            seen = model.transformer.visual(inputs["pixel_values"])
        assert (seen - case["visual_out"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["len33", "len65"])
def test_past_the_trained_length(golden_model, golden_case, name):
    inputs, case = golden_case("C", name)
    with torch.no_grad():
        out = golden_model("C")(**inputs)
    assert (out.logits - case["logits"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["text", "one_image", "two_images", "batch_left_pad"])
def test_greedy_generation(golden_model, golden_case, name):
    inputs, case = golden_case("A", name)
    out = golden_model().generate(
        **inputs,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=600,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, case["gen_sequences"].long())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step_and_gradients(golden_model, golden_case, checkpointing):
    inputs, case = golden_case("A", "train_step")
    model = golden_model().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    out = model(**inputs)
    out.loss.backward()
    assert abs(out.loss - case["loss"]) < TOLERANCE
    gradients = {name: p.grad for name, p in model.named_parameters()}
    names = [key for key in case if key.startswith("grad")]
    assert len(names) > 80
    for key in names:
        kind, name = key.split(".", 1)
        found = gradients[name].norm() if kind == "grad_norm" else gradients[name]
        assert (found - case[key]).abs().max() < TOLERANCE, key


def test_text_only_training_touches_the_eye_with_zero(golden_model, golden_case):
    """Every rank must hold a gradient for every trained parameter, whatever its batch holds."""
    inputs, case = golden_case("A", "train_text_only")
    model = golden_model().train()
    out = model(**inputs)
    out.loss.backward()
    assert abs(out.loss - case["loss"]) < TOLERANCE
    for name, parameter in model.transformer.visual.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() == 0, name


def test_training_does_not_depend_on_an_earlier_evaluation(golden_model, golden_case):
    """In the original, evaluating a long text left its NTK factor behind (loss 7.075 instead of 6.989)."""
    inputs, case = golden_case("C", "train_len100_fresh")
    model = golden_model("C").eval()
    with torch.no_grad():
        model(input_ids=inputs["input_ids"])
    out = model.train()(**inputs)
    assert abs(out.loss - case["loss"]) < TOLERANCE


def test_decoding_keeps_the_factor_of_its_prefill(golden_model):
    """A prompt of 30 (factor 1) decoded past seq_length 32 stays at factor 1, as users of Qwen-VL have it."""
    model = golden_model("C")
    ids = torch.arange(300, 334)[None]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :30], use_cache=True).past_key_values
        step = model(input_ids=ids[:, 30:], past_key_values=cache).logits
        model.config.use_dynamic_ntk = False
        whole = model(input_ids=ids).logits[:, 30:]
    assert (step - whole).abs().max() < TOLERANCE


def test_a_cache_made_elsewhere_means_factor_one(golden_model):
    model = golden_model("C")
    with torch.no_grad():
        out = model(input_ids=torch.arange(300, 310)[None], past_key_values=DynamicCache(config=model.config))
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (32, 1), (33, 3), (64, 3), (65, 7), (128, 7), (129, 15)]
)
def test_ntk_factor_by_length(length, alpha):
    assert ntk_alpha(length, 32) == alpha


def test_the_853_names_and_shapes_of_the_published_model(golden):
    expected = json.loads((golden / "full_model_state_dict_keys.json").read_text())
    config = QwenVLConfig.from_pretrained(golden / "published_config.json")
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert len(expected) == 853
    assert sum(p.numel() for p in model.parameters()) == 9_656_935_168


def test_resampler_positions_are_the_fixed_table(golden_model):
    table = golden_model().transformer.visual.attn_pool.pos_embed
    assert not table.requires_grad
    assert (table - sincos_table(256, 4)).abs().max() < 1e-6


def test_saving_and_loading_is_exact(golden_model, golden_case, tmp_path):
    inputs, _ = golden_case("A", "one_image")
    model = golden_model()
    model.save_pretrained(tmp_path)
    again = QwenVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    for (name, before), (_, after) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(before, after), name
    assert again.config.to_dict()["visual"] == model.config.to_dict()["visual"]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_bin_shards_of_a_published_checkpoint_load(golden_model, tmp_path):
    """Qwen-VL-Chat is published as .bin shards with an index; they are read with weights_only."""
    model = golden_model()
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    names = list(state)
    index = {"metadata": {"total_size": 0}, "weight_map": {}}
    for shard, part in enumerate((names[:20], names[20:]), start=1):
        file = f"pytorch_model-{shard:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, tmp_path / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    again = QwenVLForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


def test_bf16_runs_and_stays_close(golden_model, golden_case):
    inputs, case = golden_case("A", "one_image")
    model = golden_model().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - case["logits"]).abs().mean() < 0.02


def test_lora_trains_through_images(golden_model, golden_case):
    """The original wrote features into a leaf that requires grad, which LoRA makes of the embeddings."""
    from peft import LoraConfig, get_peft_model

    inputs, _ = golden_case("A", "train_step")
    model = golden_model()
    model.enable_input_require_grads()
    lora = get_peft_model(
        model, LoraConfig(r=4, target_modules=r"transformer\.h\.\d+\.(attn\.c_attn|mlp\.w1)")
    )
    lora.train()(**inputs).loss.backward()
    gradients = [p.grad for name, p in lora.named_parameters() if "lora_B" in name]
    assert len(gradients) == 8
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_text_only_qwen_is_refused(golden, tmp_path):
    settings = json.loads((golden / "published_config.json").read_text())
    del settings["visual"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="text-only Qwen"):
        QwenVLConfig.from_pretrained(tmp_path)


def test_a_cut_image_is_named(golden_model, golden_case):
    inputs, _ = golden_case("A", "one_image")
    start = int((inputs["input_ids"][0] == 609).nonzero()[0])
    with pytest.raises(ValueError, match=f"image at token {start} is cut"):
        golden_model()(input_ids=inputs["input_ids"][:, : start + 9], pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("case", ["one_image", "two_images"])
def test_a_prompt_goes_on_behind_its_last_slot(golden_model, golden_case, case):
    inputs, _ = golden_case("A", case)
    ids, model = inputs["input_ids"], golden_model()
    end = int((ids[0] == 610).nonzero()[-1])  # the last closing mark, read with what follows
    with torch.no_grad():
        first = model(input_ids=ids[:, :end], pixel_values=inputs["pixel_values"], use_cache=True)
        rest = model(input_ids=ids[:, end:], past_key_values=first.past_key_values).logits
        whole = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    assert torch.allclose(torch.cat([first.logits, rest], dim=1), whole, atol=1e-5)


def test_a_mark_that_a_model_wrote_is_no_picture_wherever_the_row_ends(golden_model):
    ids = torch.full((1, 40), 300)
    ids[0, 9] = 609
    model = golden_model()
    for length in range(9 + 15, 9 + 20):  # 16 slots behind the mark
        with torch.no_grad():
            model(input_ids=ids[:, :length])


def test_pictures_and_places_must_agree(golden_model, golden_case):
    inputs, _ = golden_case("A", "two_images")
    with pytest.raises(ValueError, match="hold 2 <img> tokens .* and pixel_values 1 images"):
        golden_model()(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])
    with pytest.raises(ValueError, match="pixel_values 0 images"):
        golden_model()(input_ids=inputs["input_ids"])


def test_what_stands_in_the_slots_does_not_matter(golden_model, golden_case):
    inputs, _ = golden_case("A", "one_image")
    ids = inputs["input_ids"].clone()
    start = int((ids[0] == 609).nonzero()[0])
    ids[0, start + 1 : start + 17] = 300
    model = golden_model()
    with torch.no_grad():
        assert torch.equal(
            model(**inputs).logits, model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
        )


def test_output_attentions_under_sdpa_says_what_to_do(golden_model, golden_case):
    inputs, case = golden_case("A", "text")
    with pytest.raises(ValueError, match="AttentionExtractor"):
        golden_model("A", "sdpa")(**inputs, output_attentions=True)


def test_attention_maps_under_eager(golden_model, golden_case):
    inputs, case = golden_case("A", "one_image")
    with torch.no_grad():
        out = golden_model("A", "eager")(**inputs, output_attentions=True)
    for layer in (1, 3):
        assert (out.attentions[layer] - case[f"lm_attn.{layer}"]).abs().max() < TOLERANCE


def test_the_kernel_can_be_changed_on_a_living_model(golden_model, golden_case):
    inputs, case = golden_case("A", "one_image")
    model = golden_model("A", "sdpa")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert model(**inputs, output_attentions=True).attentions[0] is not None
