"""Tiny models and processors of the LLaVA family, from configurations: random weights, small vocabularies.

Templates are those that the checkpoints for transformers are published with, their video parts left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from finetune.families.llava import LlavaFamily
from tests.families.tiny_families import Tiny, built

IMAGE, PAD = "<image>", "<pad>"
LLAVA_SIDE, LLAVA_PATCH = 20, 4
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llama_tokenizer() -> LlamaTokenizer:
    """Letters with and without the space before them, bytes for the rest: a sentence-piece vocabulary in small."""
    letters = [chr(code) for code in range(33, 127)]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    names += [f"▁{letter}" for letter in letters]
    tokenizer = LlamaTokenizer(
        vocab={name: at for at, name in enumerate(names)},
        merges=[("▁", letter) for letter in letters],
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE], "pad_token": PAD})
    return tokenizer


def llava() -> nn.Module:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=LLAVA_SIDE,
        patch_size=LLAVA_PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(llama_tokenizer()), max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    image_token_id = llama_tokenizer().convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_token_id, image_seq_length=25
    )
    return built(LlavaForConditionalGeneration, config)


def llava_processor(folder: Path) -> Any:
    size = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": LLAVA_SIDE}, crop_size=size, do_pad=True, do_center_crop=False
    )
    return LlavaProcessor(
        pictures, llama_tokenizer(), patch_size=LLAVA_PATCH, vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip


LLAVAS = {"llava-1.5": Tiny(LlavaFamily(), llava, llava_processor, tower_patches=25)}
