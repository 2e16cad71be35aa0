"""Tiny models and processors of every family, from configurations: random weights, a vocabulary of bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from finetune.families import Family
from finetune.families.qwen2_5_vl import Qwen25VLFamily
from finetune.families.qwen2_vl import Qwen2VLFamily
from finetune.families.qwen3_vl import Qwen3VLFamily, Qwen3VLMoeFamily
from finetune.families.qwen_vl import QwenVLFamily
from finetune.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
    QwenVLTokenizer,
)

N_BYTES = 256
CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
IDS = {token: N_BYTES + i for i, token in enumerate(CONTROL)}
LINE_BREAKS = (
    "ĊĊ"  # two line breaks in one token: the only merge, and one that reaches across borders of turns
)
PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
LEAST_PIXELS, MOST_PIXELS = 2 * CELL * CELL, 24 * CELL * CELL

# The layout that the family's published template writes, in as few words as do it.
PICTURES_AND_WORDS = (
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
TEMPLATE = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message.role }}\n"
    + PICTURES_AND_WORDS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A family with a model of its own.

    default_system   what its template says first where a conversation has no system turn; "" for nothing
    unpackable       words of the error that packing is; "" if samples may share a row
    rows_first       boxes are written top, left, bottom, right
    lead             what an answer's tokens begin with beside its words: the space after ``Assistant:``
    tower_patches    of one call of the tower, where it sees more or less than the cells of one picture; 0: a multiple
                     of the cells
    """

    family: Family
    model: Callable[[], nn.Module]
    processor: Callable[[Path], Any]
    default_system: str = ""
    tower_patches: int = 0
    unpackable: str = ""
    lead: str = ""
    rows_first: bool = False

    def write(self, folder: Path) -> Path:
        """A checkpoint folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model().save_pretrained(folder)
        self.processor(folder).save_pretrained(folder)
        return folder


def byte_tokenizer() -> Qwen2Tokenizer:
    """Every byte a token, in the order of GPT-2's byte alphabet; then the control tokens; then ``LINE_BREAKS``."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab={**alphabet, **IDS, LINE_BREAKS: N_BYTES + len(CONTROL)},
        merges=[("Ċ", "Ċ")],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL]})
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL} == IDS
    return tokenizer


def grid_processor(family: Any, template: str) -> Any:
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
    )
    return family.processor_class()(image_processor, byte_tokenizer(), template)


def token_ids() -> dict[str, int]:
    return {
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
    }


TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 280, "bos_token_id": IDS["<|endoftext|>"],
    "eos_token_id": IDS["<|im_end|>"], "pad_token_id": IDS["<|endoftext|>"], "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
}  # fmt: skip
VISION = {
    "depth": 3, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
    "in_channels": 3, "in_chans": 3,
}  # fmt: skip


def built(model_class: Any, config: Any, *, seed: int = 0) -> nn.Module:
    """Weights large enough for attention to differ from place to place."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("attn_pool.pos_embed"):  # that is a table
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def qwen2_vl() -> nn.Module:
    vision = {**VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=TEXT, vision_config=vision, **token_ids())
    return built(Qwen2VLForConditionalGeneration, config)


def qwen2_5_vl() -> nn.Module:
    vision = {
        **VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24,
        "window_size": 2 * CELL, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **token_ids())
    return built(Qwen2_5_VLForConditionalGeneration, config)


QWEN3_TEXT = {**TEXT, "head_dim": 8}
QWEN3_VISION = {
    **VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def qwen3_vl() -> nn.Module:
    config = Qwen3VLConfig(text_config=QWEN3_TEXT, vision_config=QWEN3_VISION, **token_ids())
    return built(Qwen3VLForConditionalGeneration, config)


def qwen3_vl_moe() -> nn.Module:
    text = {**QWEN3_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=QWEN3_VISION, **token_ids())
    return built(Qwen3VLMoeForConditionalGeneration, config)


def qwen_vl() -> nn.Module:
    visual = {
        "heads": 2, "image_size": 12, "image_start_id": N_BYTES + 214, "layers": 1, "mlp_ratio": 2.0,
        "output_dim": 32, "patch_size": 4, "width": 16, "n_queries": 4,
    }  # fmt: skip
    config = QwenVLConfig(
        vocab_size=480, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, kv_channels=16,
        intermediate_size=64, seq_length=512, visual=visual,
    )  # fmt: skip
    return built(QwenVLForConditionalGeneration, config)


def qwen_vl_processor(folder: Path) -> Any:
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(N_BYTES)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=4)
    return QwenVLProcessor(QwenVLImageProcessor(image_size=12, patch_size=4), tokenizer)


def grid(family: Any, model: Callable[[], nn.Module], *, default_system: str = "") -> Tiny:
    template = TEMPLATE.replace("SYSTEM", DEFAULT_SYSTEM if default_system else "")
    return Tiny(family, model, lambda folder: grid_processor(family, template), default_system)


HELPFUL = "You are a helpful assistant."
GRIDS = {
    one.family.name: one
    for one in (
        grid(Qwen2VLFamily(), qwen2_vl, default_system=HELPFUL),
        grid(Qwen25VLFamily(), qwen2_5_vl, default_system=HELPFUL),
        grid(Qwen3VLFamily(), qwen3_vl),
        grid(Qwen3VLMoeFamily(), qwen3_vl_moe),
    )
}
ALL = {"qwen-vl": Tiny(QwenVLFamily(), qwen_vl, qwen_vl_processor, HELPFUL), **GRIDS}
