"""Tiny models of the families whose eyes are SigLIP: Gemma 3, Idefics3, PaliGemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, GemmaTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from finetune.families.gemma3 import Gemma3Family
from tests.families.tiny_families import Tiny, built

SIDE, PATCH, CELLS = 24, 4, 3  # 6 × 6 patches, 2 × 2 of which are a token
GEMMA3_WINDOW = 5  # shorter than a picture's block
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
           "<end_of_image>", "<image_soft_token>")  # fmt: skip
LETTERS = "".join(map(chr, range(33, 127))) + "▁\n"
# Of a system turn it reads the first piece alone, it names the assistant "model", and it starts with <bos>: as the
# published one does.
TEMPLATE = (
    "{{ bos_token }}{% set told = '' %}{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content[0].text + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ told if loop.first else '' }}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def sentencepiece_tokenizer(special: tuple[str, ...], **named: str) -> GemmaTokenizer:
    """ASCII letters, the 256 bytes that stand for all others, ``ow`` as one token, and the control tokens first."""
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, "ow", "\n\n"]
    tokenizer = GemmaTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("o", "w"), ("\n", "\n")],
        extra_special_tokens=named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*special]})
    assert tokenizer.convert_tokens_to_ids([*special]) == [*range(len(special))]
    return tokenizer


def gemma3_processor(folder: Path) -> Any:
    tokenizer = sentencepiece_tokenizer(
        SPECIAL, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(pictures, tokenizer, TEMPLATE, image_seq_length=CELLS**2)


def gemma3_config() -> Gemma3Config:
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "vocab_size": 400, "sliding_window": GEMMA3_WINDOW, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 512,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
    }  # fmt: skip
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=CELLS**2,
        boi_token_index=SPECIAL.index("<start_of_image>"), eoi_token_index=SPECIAL.index("<end_of_image>"),
        image_token_index=SPECIAL.index("<image_soft_token>"),
    )  # fmt: skip


def gemma3() -> nn.Module:
    return built(Gemma3ForConditionalGeneration, gemma3_config())


SIGLIPS = {"gemma3": Tiny(Gemma3Family(), gemma3, gemma3_processor, unpackable="cannot share a row")}
