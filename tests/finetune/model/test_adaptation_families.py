"""Every family: its paths reach each component, and whatever trains gets a gradient in a step with a picture."""

import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from finetune.families.base import not_read
from finetune.families.parts.modules import bare_model
from finetune.model.adaptation import (
    COMPONENTS,
    TABLES,
    Plan,
    adapt,
    component_of,
    left_frozen,
    left_unread,
    not_trained_further,
    target_pattern,
)
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training.guards import GradientCheck
from tests.finetune.families.test_contract import FAMILIES
from tests.finetune.families.tiny_families import QWEN3_TEXT, QWEN3_VISION, Tiny, built, token_ids

PLANS = [
    Plan(vision="lora", connector="lora", rank=4, dora=True),
    Plan(vision="lora", connector="full", rank=4),
    Plan(vision="full", connector="lora", rank=4, bias="all"),
    Plan(vision="full", connector="full", language="full"),
]


def tall(one: Tiny) -> nn.Module:
    """The family's tiny model; Qwen3-VL with a language layer more than there are mergers.

    What a merger adds below the last layer reaches no later token: a model of as many layers as mergers has one that
    can learn nothing.
    """
    if one.family.name != "qwen3-vl":
        return one.model()
    text = {**QWEN3_TEXT, "num_hidden_layers": len(QWEN3_VISION["deepstack_visual_indexes"]) + 1}
    config = Qwen3VLConfig(text_config=text, vision_config=QWEN3_VISION, **token_ids())
    return built(Qwen3VLForConditionalGeneration, config)


def encoded(one: Tiny, folder: Path) -> Any:
    Image.new("RGB", (40, 24), (9, 80, 200)).save(folder / "picture.png")
    picture = ImageRef("picture.png", folder / "picture.png")
    turns = (Turn("user", (picture, "what?")), Turn("assistant", ("yes",)))
    return one.family.encode(one.processor(folder), Conversation(turns))


def fitting(plan: Plan, one: Tiny) -> Plan:
    """Gemma 3's connector has no linear layer, so it cannot have adapters."""
    no_linear = one.family.name == "gemma3" and plan.connector == "lora"
    return replace(plan, connector="full") if no_linear else plan


def learn(one: Tiny, model: nn.Module, folder: Path) -> None:
    """A backward pass of one sample with a picture."""
    sample = encoded(one, folder)
    per_token = {key: torch.tensor(value)[None] for key, value in sample.per_token.items()}
    ids, labels = torch.tensor(sample.input_ids)[None], torch.tensor(sample.labels)[None]
    logits = model(input_ids=ids, **per_token, **sample.media).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()


# Of a mixture of experts, those that a step's tokens do not choose get none.
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(plan.modes.values()))
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.endswith("-moe")])
def test_whatever_trains_gets_a_gradient(name: str, plan: Plan, tmp_path: Path):
    one = FAMILIES[name]
    model = adapt(tall(one), one.family, fitting(plan, one), master_weights=True).train()
    trained = {n for n, p in bare_model(model).named_parameters() if p.requires_grad}
    assert {component_of(name, one.family.paths) for name in trained} == {*COMPONENTS}
    check = GradientCheck(one.family)
    check.on_train_begin(types.SimpleNamespace(device=torch.device("cpu")), None, None, model=model)
    learn(one, model, tmp_path)
    check.saw_batch(pictures=True)
    check.on_step_end(None, None, None)
    assert not check.watching


# ---------------------------------------------------------------------------------------------------------------------
# What a model does not read
# ---------------------------------------------------------------------------------------------------------------------

TOWER = "model.vision_tower"


def reading(layer: int | list[int]) -> Callable[[Any], None]:
    """A change of a configuration: the tower's states that the model reads."""

    def change(config: Any) -> None:
        config.vision_feature_layer = layer

    return change


def pooling(config: Any) -> None:
    config.vision_config.vision_use_head = True


def hiding(config: Any) -> None:
    config.vision_config.use_mask_token = True


def norming(config: Any) -> None:
    config.vision_feature_layer, config.vision_config.use_mean_pooling = -2, False


def as_it_is(config: Any) -> None:
    pass


UNREAD = [
    ("llava-1.5", as_it_is, ["encoder.layers.2", "post_layernorm"]),
    ("llava-1.5", reading(-1), ["post_layernorm"]),
    ("llava-1.5", reading(-3), ["encoder.layers.1", "encoder.layers.2", "post_layernorm"]),
    ("llava-1.5", reading(2), ["encoder.layers.2", "post_layernorm"]),
    ("llava-next", as_it_is, ["encoder.layers.2", "post_layernorm"]),
    ("invented", as_it_is, ["encoder.layers.2", "post_layernorm"]),
    ("llava-onevision", as_it_is, ["post_layernorm"]),
    ("llava-onevision", pooling, ["post_layernorm", "head"]),
    ("llava-onevision", reading(-2), ["encoder.layers.1", "post_layernorm"]),
    ("internvl", as_it_is, []),
    ("internvl", hiding, ["embeddings.mask_token"]),
    ("internvl", reading(-2), ["encoder.layer.1"]),
    ("internvl", norming, ["encoder.layer.1", "layernorm"]),
    ("gemma3", as_it_is, []),
    ("gemma3", pooling, ["head"]),
    ("paligemma", as_it_is, []),
    ("paligemma", pooling, ["head"]),
    ("idefics3", as_it_is, []),
    ("qwen-vl", as_it_is, []),
    ("qwen2-vl", as_it_is, []),
    ("qwen2.5-vl", as_it_is, []),
    ("qwen3-vl", as_it_is, []),
    ("qwen3.5", as_it_is, []),
]


def changed(one: Tiny, change: Callable[[Any], None]) -> nn.Module:
    config = tall(one).config
    change(config)
    return built(type(tall(one)), config)


@pytest.mark.parametrize(
    ("name", "change", "expected"), UNREAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_model_does_not_read_is_all_that_no_gradient_reaches(
    name: str, change: Callable[[Any], None], expected: list[str], tmp_path: Path
):
    one = FAMILIES[name]
    whole = changed(one, change).train()
    learn(one, whole, tmp_path)
    without = {
        name
        for name, parameter in whole.named_parameters()
        if parameter.grad is None and component_of(name, one.family.paths) != TABLES
    }
    unread = not_read(one.family, whole.config)
    assert without == {name for name, _ in whole.named_parameters() if name.startswith(unread)}
    for plan in PLANS:
        adapted = adapt(changed(one, change), one.family, fitting(plan, one), master_weights=True)
        assert left_unread(adapted, one.family) == [f"{TOWER}.{path}" for path in expected]
        assert not {*left_frozen(adapted, one.family, plan)} & {re.sub(r"\d+", "N", path) for path in without}


@pytest.mark.parametrize("name", ["llava-1.5", "llava-next", "llava-onevision"])
def test_what_is_not_read_runs_in_the_precision_of_what_trains_before_it(name: str, tmp_path: Path):
    """In bf16, layers that train are in fp32, and so is what they hand on."""
    one = FAMILIES[name]
    plan = Plan(vision="full", connector="full", language="lora", rank=4)
    model = adapt(one.model().to(torch.bfloat16), one.family, plan, master_weights=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        learn(one, model, tmp_path)
    used = [one for one in bare_model(model).named_parameters() if ".original_module." not in one[0]]
    assert {p.dtype for name, p in used if ".vision_tower." in name} == {torch.float32}


def test_several_states_are_read_as_far_as_the_last(tmp_path: Path):
    family = FAMILIES["llava-1.5"].family
    config = FAMILIES["llava-1.5"].model().config
    config.vision_feature_layer = [-3, 1, 2]
    assert not_read(family, config) == (f"{TOWER}.encoder.layers.2", f"{TOWER}.post_layernorm")


def test_a_tower_that_does_not_train_is_not_said_to_be_unread():
    one = FAMILIES["llava-1.5"]
    assert left_unread(adapt(one.model(), one.family, Plan(rank=4), master_weights=True), one.family) == []


def test_layers_that_are_not_read_get_no_adapter():
    one = FAMILIES["llava-next"]
    plan = Plan(vision="lora", language="frozen", rank=4)
    pattern = re.compile(target_pattern(one.model(), one.family, plan))
    layers = f"{TOWER}.encoder.layers"
    assert pattern.fullmatch(f"{layers}.1.mlp.fc1")
    assert not pattern.fullmatch(f"{layers}.2.mlp.fc1")
    assert pattern.fullmatch(f"{layers}.20.mlp.fc1")  # its name only begins like that of layer 2


def test_an_adapter_on_layers_that_are_not_read_can_be_continued(tmp_path: Path):
    """As other libraries make them."""
    one = FAMILIES["llava-1.5"]
    everywhere = r"model\.(vision_tower\.encoder|language_model)\.layers\.\d+\.self_attn\.q_proj"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=everywhere)
    made = get_peft_model(one.model(), config)
    learned = {name for name, _ in made.named_parameters() if ".lora_B." in name}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in learned:
                parameter.fill_(0.1)
    made.save_pretrained(tmp_path / "adapter")
    plan = Plan(vision="lora", rank=4, alpha=8, adapter=str(tmp_path / "adapter"))
    model = adapt(one.model(), one.family, plan, master_weights=True)
    named = dict(model.named_parameters())
    assert all((named[name] == 0.1).all() for name in learned)
    frozen = {name for name in learned if not named[name].requires_grad}
    assert len(frozen) == 1 and ".vision_tower.encoder.layers.2." in frozen.pop()
    assert not_trained_further(model, one.family) == []
    learn(one, model, tmp_path)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
