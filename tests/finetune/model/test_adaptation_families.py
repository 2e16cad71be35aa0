"""Every family: its paths reach each component, and whatever trains gets a gradient in a step with a picture."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from finetune.families.parts.modules import bare_model
from finetune.model.adaptation import COMPONENTS, Plan, adapt, component_of
from finetune.samples.conversation import Conversation, ImageRef, Turn
from finetune.training.guards import GradientCheck
from tests.finetune.families.tiny_families import ALL, QWEN3_TEXT, QWEN3_VISION, Tiny, built, token_ids

PLANS = [
    Plan(vision="lora", connector="lora", rank=4, dora=True),
    Plan(vision="lora", connector="full", rank=4),
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


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(plan.modes.values()))
@pytest.mark.parametrize("name", [name for name in ALL if name != "qwen3-vl-moe"])
def test_whatever_trains_gets_a_gradient(name: str, plan: Plan, tmp_path: Path):
    one = ALL[name]
    model = adapt(tall(one), one.family, plan, master_weights=True).train()
    trained = {n for n, p in bare_model(model).named_parameters() if p.requires_grad}
    assert {component_of(name, one.family.paths) for name in trained} == {*COMPONENTS}
    check = GradientCheck(one.family)
    check.on_train_begin(types.SimpleNamespace(device=torch.device("cpu")), None, None, model=model)
    sample = encoded(one, tmp_path)
    per_token = {key: torch.tensor(value)[None] for key, value in sample.per_token.items()}
    ids, labels = torch.tensor(sample.input_ids)[None], torch.tensor(sample.labels)[None]
    logits = model(input_ids=ids, **per_token, **sample.media).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    check.saw_batch(pictures=True)
    check.on_step_end(None, None, None)
    assert not check.watching
