"""PEFT's adapters on Qwen-VL and on a newer family: born silent, trained, merged, switched, mixed, saved and loaded."""

import copy

import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from PIL import Image

from finetune.samples.conversation import Conversation, ImageRef, Turn
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.qwen_vl.citizens import prompts, small_model

NEWER = GRIDS["qwen2.5-vl"]
LANGUAGE = {
    "qwen-vl": r".*transformer\.h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(w1|w2|c_proj))",
    "qwen2.5-vl": r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
}
EYE = {
    "qwen-vl": r".*visual\.transformer\.resblocks\.\d+\.(attn\.(in|out)_proj|mlp\.c_(fc|proj))",
    "qwen2.5-vl": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
}
FEED_FORWARD = {
    "qwen-vl": r".*transformer\.h\.\d+\.mlp\.c_proj",
    "qwen2.5-vl": r".*layers\.\d+\.mlp\.down_proj",
}
TUNERS = {
    "LoRA": lambda name: LoraConfig(r=4, target_modules=both(name)),
    "DoRA": lambda name: LoraConfig(r=4, target_modules=both(name), use_dora=True),
    "rsLoRA": lambda name: LoraConfig(r=4, target_modules=both(name), use_rslora=True),
    "PiSSA": lambda name: LoraConfig(r=4, target_modules=both(name), init_lora_weights="pissa"),
    "OLoRA": lambda name: LoraConfig(r=4, target_modules=both(name), init_lora_weights="olora"),
    "embeddings": lambda name: LoraConfig(r=4, target_modules=both(name), modules_to_save=["lm_head"]),
    "LoHa": lambda name: LoHaConfig(r=4, target_modules=both(name)),
    "LoKr": lambda name: LoKrConfig(r=4, target_modules=both(name)),
    "IA3": lambda name: IA3Config(target_modules=LANGUAGE[name], feedforward_modules=FEED_FORWARD[name]),
}
PROMPTS = {
    "prompt tuning": PromptTuningConfig,
    "p-tuning": lambda **settings: PromptEncoderConfig(encoder_hidden_size=8, **settings),
    "prefix": PrefixTuningConfig,
}
CHANGED_AT_BIRTH = ("PiSSA", "OLoRA")  # they take their part out of the weights: equal up to rounding


def both(name):
    return f"{LANGUAGE[name]}|{EYE[name]}"


def newer_inputs(folder):
    processor = NEWER.processor(folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 41, 3), np.uint8))
    turns = (Turn("user", (ImageRef("a.png", picture), "what?")), Turn("assistant", ("yes",)))
    encoded = NEWER.family.encode(processor, Conversation(turns))
    ids = torch.from_numpy(encoded.input_ids)[None]
    tokens = {key: torch.as_tensor(value)[None] for key, value in encoded.per_token.items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **encoded.media, **tokens}


@pytest.fixture(scope="module", params=["qwen-vl", "qwen2.5-vl"])
def subject(request, tmp_path_factory):
    """(name, model, inputs)"""
    if request.param == "qwen-vl":
        return request.param, small_model(), prompts((1, 5), (2, 9))
    return request.param, NEWER.model().eval(), newer_inputs(tmp_path_factory.mktemp("newer"))


def logits(model, inputs, **options):
    with torch.no_grad():
        return model.eval()(**inputs, **options).logits[inputs["attention_mask"].bool()]


def close(found, expected):
    return bool((found - expected).abs().max() < 2e-4)


def step(model, inputs):
    """One step of training, so large that it shows. Returns the names of what got no gradient."""
    model.train().zero_grad()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad / (parameter.grad.norm() + 1e-9)
    return [name for name, parameter in trained.items() if parameter.grad is None]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # blocks without an adapter
@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate")
@pytest.mark.parametrize("tuner", TUNERS)
def test_an_adapter_lives_through_everything(subject, tmp_path, tuner):
    name, base, inputs = subject
    before = logits(base, inputs)
    model = get_peft_model(copy.deepcopy(base), TUNERS[tuner](name))
    assert close(logits(model, inputs), before)
    model.gradient_checkpointing_enable({"use_reentrant": name == "qwen-vl"})
    model.enable_input_require_grads()
    assert step(model, inputs) == [] and step(model, inputs) == []  # LoRA's A learns from the second step on
    model.gradient_checkpointing_disable()
    after = logits(model, inputs)
    assert not close(after, before)

    with model.disable_adapter():
        assert close(logits(model, inputs), before) or tuner in CHANGED_AT_BIRTH
    model.save_pretrained(tmp_path)
    if tuner not in CHANGED_AT_BIRTH:  # these belong to the base without their part
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
        assert torch.equal(logits(again, inputs), after)
    model.merge_adapter()
    assert close(logits(model, inputs), after)
    model.unmerge_adapter()
    assert close(logits(model, inputs), after)
    merged = model.merge_and_unload()
    assert close(logits(merged, inputs), after) and not any(
        "lora" in name for name, _ in merged.named_parameters()
    )


def test_several_adapters_are_switched_weighed_and_mixed_in_a_batch(subject):
    name, base, inputs = subject
    if name == "qwen-vl":
        inputs = prompts((1, 6), (1, 6))
    else:
        inputs = {key: torch.cat([value, value]) for key, value in inputs.items()}
    before = logits(base, inputs)
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=LANGUAGE[name]), adapter_name="one"
    )
    model.add_adapter("two", LoraConfig(r=4, target_modules=LANGUAGE[name]))
    found = {}
    for adapter in ("one", "two"):
        model.set_adapter(adapter)
        step(model, inputs)
        step(model, inputs)
        found[adapter] = logits(model, inputs)
    model.set_adapter("one")
    assert torch.equal(logits(model, inputs), found["one"])
    assert not close(found["one"], found["two"]) and not close(found["one"], before)
    half = len(before) // 2
    mixed = logits(model, inputs, adapter_names=["two", "__base__"])
    assert close(mixed[:half], found["two"][:half]) and close(mixed[half:], before[half:])
    model.add_weighted_adapter(["one", "two"], [1.0, 0.0], "both", combination_type="cat")
    model.set_adapter("both")
    assert close(logits(model, inputs), found["one"])
    model.delete_adapter("two")
    model.set_adapter("one")
    assert torch.equal(logits(model, inputs), found["one"])


def test_all_linear_layers_are_found(subject):
    name, base, inputs = subject
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear"))
    assert step(model, inputs) == []
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert any("visual" in key for key in trained) and not any("lm_head" in key for key in trained)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # the angles are relative
@pytest.mark.parametrize("tuner", PROMPTS)
def test_learned_prompts_beside_pictures(tmp_path, tuner):
    base, inputs = small_model(), prompts((1, 5), (1, 5))
    settings = PROMPTS[tuner](task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(copy.deepcopy(base), settings)
    with torch.no_grad():
        before = model.eval()(**inputs).logits
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.train()(**inputs, labels=labels).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter -= parameter.grad
        after = model.eval()(**inputs).logits
    assert not torch.allclose(after, before)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()(**inputs).logits
    assert torch.equal(again, after)
    length = inputs["input_ids"].shape[1]
    written = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, length:]
    assert torch.equal(written[:, 0], after[:, -1].argmax(-1)) and written.shape == (2, 3)
