"""Tiny Qwen3.5: four language layers, of which the second and the last attend."""

import torch
from torch import nn
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from finetune.families.qwen3_5 import Qwen35Family, Qwen35MoeFamily
from tests.finetune.families.tiny_families import (
    PICTURES_AND_WORDS,
    QWEN3_TEXT,
    QWEN3_VISION,
    Tiny,
    built,
    grid_processor,
    token_ids,
)

TEMPLATE = (
    "{% set last = namespace(question=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.index0 > last.question %}<think>\n\n</think>\n\n{% endif %}"
    + PICTURES_AND_WORDS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TEXT = {
    **QWEN3_TEXT, "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "rope_parameters": {**QWEN3_TEXT["rope_parameters"], "partial_rotary_factor": 1.0, "mrope_interleaved": True},
}  # fmt: skip
VISION = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}


def qwen3_5() -> nn.Module:
    config = Qwen3_5Config(text_config=TEXT, vision_config=VISION, **token_ids())
    return calmer(built(Qwen3_5ForConditionalGeneration, config))


def qwen3_5_moe() -> nn.Module:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text = {**TEXT, **experts, "shared_expert_intermediate_size": 16}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=VISION, **token_ids())
    return calmer(built(Qwen3_5MoeForConditionalGeneration, config))


def calmer(model: nn.Module) -> nn.Module:
    """Linear layers of the size of weights elsewhere would make 1e-6 of the tower's rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "linear_attn" in name and parameter.ndim > 1:
                parameter.mul_(0.5)
    return model


def _tiny(family, model) -> Tiny:
    return Tiny(
        family,
        model,
        lambda folder: grid_processor(family, TEMPLATE),
        unpackable="samples cannot share a row",
    )


HYBRIDS = {
    one.family.name: one for one in (_tiny(Qwen35Family(), qwen3_5), _tiny(Qwen35MoeFamily(), qwen3_5_moe))
}
