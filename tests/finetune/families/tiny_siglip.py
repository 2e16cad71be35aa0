"""Tiny models of the families with a SigLIP vision tower: Gemma 3, Idefics3, PaliGemma."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GemmaTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2Tokenizer,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from finetune.families.gemma3 import Gemma3Family
from finetune.families.idefics3 import Idefics3Family, SmolVLMFamily
from finetune.families.paligemma import PaliGemmaFamily
from tests.finetune.families.tiny_families import Tiny, built

# --- Gemma 3 ---------------------------------------------------------------------------------------------
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


# --- Idefics3 and SmolVLM --------------------------------------------------------------------------------
TILE, TILE_PATCH, FACTOR = 16, 4, 2  # 4 × 4 patches a tile, 2 × 2 tokens
LONGEST = 3 * TILE
TILE_TOKENS = (TILE // TILE_PATCH // FACTOR) ** 2
MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>",
    "<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)  # fmt: skip
# Whether a space follows the colon depends on what a turn begins with, and a prompt ends without one: as published.
CHAT = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{{ ':' if message.content[0].type == 'image' else ': ' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def byte_level_tokenizer() -> Qwen2Tokenizer:
    """Every byte a token, line breaks and `` r`` merged in twos, then the marks."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges = [("Ċ", "Ċ"), ("Ġ", "r")]
    words = [*MARKS, *map("".join, merges)]
    vocab = {**letters, **{word: len(letters) + i for i, word in enumerate(words)}}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<end_of_utterance>", pad_token="<|im_end|>", unk_token=None
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    assert len(tokenizer) == len(vocab)
    return tokenizer


def tiles_processor(family: Idefics3Family) -> Any:
    pictures = family.image_processor_class()(
        size={"longest_edge": LONGEST}, max_image_size={"longest_edge": TILE}
    )
    return family.processor(pictures, byte_level_tokenizer(), TILE_TOKENS, CHAT)


def tiles(model_class: Any, config_class: Any) -> nn.Module:
    ids = dict(zip(MARKS, byte_level_tokenizer().convert_tokens_to_ids([*MARKS]), strict=True))
    text = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 300, "max_position_embeddings": 1024,
        "pad_token_id": ids["<|im_end|>"], "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<end_of_utterance>"],
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": TILE, "patch_size": TILE_PATCH,
    }  # fmt: skip
    config = config_class(
        text_config=text, vision_config=vision, scale_factor=FACTOR, image_token_id=ids["<image>"]
    )
    return built(model_class, config)


def of_tiles(family: Idefics3Family, model_class: Any, config_class: Any) -> Tiny:
    return Tiny(
        family, lambda: tiles(model_class, config_class), lambda folder: tiles_processor(family),
        tower_patches=(TILE // TILE_PATCH) ** 2, lead=" ",
    )  # fmt: skip


# --- PaliGemma -------------------------------------------------------------------------------------------
PALIGEMMA_SIDE, PALIGEMMA_PATCH = 20, 4
PALIGEMMA_TOKENS = (PALIGEMMA_SIDE // PALIGEMMA_PATCH) ** 2
PALIGEMMA_WINDOW = 7


def paligemma_processor(folder: Path) -> Any:
    size = {"height": PALIGEMMA_SIDE, "width": PALIGEMMA_SIDE}
    pictures = SiglipImageProcessorPil(size=size, image_seq_length=PALIGEMMA_TOKENS)
    return PaliGemmaProcessor(
        pictures, sentencepiece_tokenizer(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    )


def paligemma(**text: Any) -> nn.Module:
    tokenizer = paligemma_processor(Path()).tokenizer
    text = {
        "model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48, "vocab_size": len(tokenizer),
        "max_position_embeddings": 512, **text,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": PALIGEMMA_SIDE, "patch_size": PALIGEMMA_PATCH, "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=32, hidden_size=32,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return built(PaliGemmaForConditionalGeneration, config)


def paligemma2() -> nn.Module:
    """On Gemma 2: windows in every other layer, attention logits soft-capped."""
    return paligemma(
        model_type="gemma2", num_key_value_heads=2, sliding_window=PALIGEMMA_WINDOW, query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0, final_logit_softcapping=5.0,
    )  # fmt: skip


def of_prefixes(model: Callable[[], nn.Module]) -> Tiny:
    return Tiny(
        PaliGemmaFamily(), model, paligemma_processor, unpackable="cannot share a row", rows_first=True
    )


SIGLIPS = {
    "gemma3": Tiny(Gemma3Family(), gemma3, gemma3_processor, unpackable="cannot share a row"),
    "idefics3": of_tiles(Idefics3Family(), Idefics3ForConditionalGeneration, Idefics3Config),
    "smolvlm": of_tiles(SmolVLMFamily(), SmolVLMForConditionalGeneration, SmolVLMConfig),
    "paligemma": of_prefixes(paligemma),
    "paligemma2": of_prefixes(paligemma2),
}
