"""Qwen3.5 (2026): three of four language layers mix tokens by linear attention and have no map.

The tower is Qwen3-VL's without its deep stack.

    layers   0 linear   1 linear   2 linear   3 attends   4 linear …   → layer_3, layer_7, … have maps
    answers  <|im_start|>assistant\\n<think>\\n\\n</think>\\n\\nthe answer<|im_end|>

The empty thought is in every prompt and before the last answer of a conversation: answers are learned, probed and
generated without thinking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.families.base import ATTENTION_LAYERS, FEED_FORWARD_LAYERS, AttentionShape, Encoded, ModulePaths
from finetune.families.parts.parameter_counts import LINEAR_ATTENTION
from finetune.families.qwen3_vl import Qwen3VLFamily, tower_without_deep_stack

if TYPE_CHECKING:
    import torch

MIXERS = (*ATTENTION_LAYERS, "in_proj_qkv", "in_proj_z", "out_proj")


class Qwen35Family(Qwen3VLFamily):
    name = "qwen3.5"
    model_type = "qwen3_5"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
        vision_layers="model.visual.blocks",
        vision_attention="attn",
        connector=("model.visual.merger",),
        connector_attention=None,
    )
    lora_targets = MIXERS + FEED_FORWARD_LAYERS

    def chat_template(self, processor: Any) -> Any:
        return _WithoutThinking(processor)

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Never: a linear layer's state would carry over from one sample to the next."""
        raise ValueError(
            f"{self.name}: samples cannot share a row: the state of its linear-attention layers would be carried from "
            "one sample into the next; train without --packing"
        )

    def tower_parameters(self, vision: Any) -> dict[str, int]:
        return tower_without_deep_stack(vision)

    def attention_shape(self, config: Any, name: str) -> AttentionShape | None:
        """None for the layers with linear attention: what they keep of earlier tokens is a state, not a row."""
        kinds = config.text_config.layer_types
        if name.startswith("layer_") and kinds[int(name.removeprefix("layer_"))] == LINEAR_ATTENTION:
            return None
        return super().attention_shape(config, name)


class Qwen35MoeFamily(Qwen35Family):
    """Mixtures of experts: their weights are no linear layers of their own, so adapters go to what mixes tokens."""

    name = "qwen3.5-moe"
    model_type = "qwen3_5_moe"
    lora_targets = MIXERS


class _WithoutThinking:
    """The model's chat template, with prompts that end in an empty thought, whatever the checkpoint's default."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return self.processor.apply_chat_template(messages, enable_thinking=False, **options)
