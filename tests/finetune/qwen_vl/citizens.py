"""A small Qwen-VL for tests of what transformers, PEFT and TRL expect: bytes and four merges, grids that differ."""

import base64
from pathlib import Path
from typing import Any

import torch

from finetune.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
    QwenVLTokenizer,
)

MERGES = (b"\n\n", b"<|", b"im", b" a")
N_QUERIES, SIDE, PATCH = 4, 12, 4
IMAGE_ID = 256 + len(MERGES) + 214  # <img>; </img> and <imgpad> follow


def small_processor(folder: Path) -> QwenVLProcessor:
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*(bytes([byte]) for byte in range(256)), *MERGES]
    lines = [b"%s %d" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=N_QUERIES)
    return QwenVLProcessor(QwenVLImageProcessor(image_size=SIDE, patch_size=PATCH), tokenizer)


def small_model(kernel: str = "sdpa", **changes: Any) -> QwenVLForConditionalGeneration:
    """Two language layers, two of the vision tower, 4 slots per image; weights large enough for tokens to differ."""
    visual = {
        "heads": 2, "image_size": SIDE, "image_start_id": IMAGE_ID, "layers": 2, "mlp_ratio": 2.0, "output_dim": 32,
        "patch_size": PATCH, "width": 16, "n_queries": N_QUERIES,
    }  # fmt: skip
    settings = {
        "vocab_size": 480, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 16,
        "intermediate_size": 48, "seq_length": 512, "visual": visual,
    }  # fmt: skip
    torch.manual_seed(0)
    config = QwenVLConfig(**{**settings, **changes})
    config._attn_implementation = kernel
    model = QwenVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("pos_embed"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def image_run() -> list[int]:
    return [IMAGE_ID, *[IMAGE_ID + 2] * N_QUERIES, IMAGE_ID + 1]


def prompts(*shapes: tuple[int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded prompts, each of (images, words), and their pictures."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for images, words in shapes:
        drawn = torch.randint(1, 250, (words,), generator=generator).tolist()
        rows.append([*drawn[:2], *image_run() * images, *drawn[2:]])
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    n_images = sum(images for images, _ in shapes)
    if n_images:
        inputs["pixel_values"] = torch.randn(n_images, 3, SIDE, SIDE, generator=generator)
    return inputs
