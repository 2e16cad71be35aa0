"""A tiny Qwen-VL with a vocabulary of bytes, pictures that are not square, and probes on them."""

import base64
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from diagnostics.records.probes import Probe
from finetune.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
    QwenVLTokenizer,
)

N_BYTES, N_QUERIES, N_PATCHES, N_LAYERS, N_HEADS = 256, 9, 36, 3, 2
IMAGE_START_ID = N_BYTES + 214


def tiny_model(kernel: str = "sdpa", *, seed: int = 0, **changes) -> QwenVLForConditionalGeneration:
    """Weights large enough for attention to differ from place to place."""
    visual = {
        "heads": 2, "image_size": 24, "image_start_id": IMAGE_START_ID, "layers": 1, "mlp_ratio": 2.0,
        "output_dim": 32, "patch_size": 4, "width": 16, "n_queries": N_QUERIES,
    }  # fmt: skip
    settings = {
        "vocab_size": 480, "hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
        "kv_channels": 16, "intermediate_size": 64, "seq_length": 256, "visual": visual,
    }  # fmt: skip
    config = QwenVLConfig(**{**settings, **changes})
    config._attn_implementation = kernel
    torch.manual_seed(seed)
    model = QwenVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("pos_embed"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def tiny_processor(folder: Path) -> QwenVLProcessor:
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(N_BYTES)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=N_QUERIES)
    return QwenVLProcessor(QwenVLImageProcessor(image_size=24, patch_size=4), tokenizer)


def write_picture(path: Path, *, seed: int = 0) -> Path:
    """60 × 40 pixels: a red disc on a ground that shades from left to right."""
    picture = Image.linear_gradient("L").rotate(90).resize((60, 40)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((30 + seed, 8, 48 + seed, 26), fill=(200, 20 * seed, 30))
    picture.save(path)
    return path


def tiny_probes(folder: Path, count: int = 3) -> tuple[Probe, ...]:
    return tuple(
        Probe(
            id=f"disc-{index}",
            group="sphere-building" if index % 2 == 0 else "colours",
            images=(write_picture(folder / f"{index}.png", seed=index),),
            question="球在哪里? the disc",
            answer="东方" if index % 2 == 0 else "red",
            foil="东京" if index % 2 == 0 else "blue",
            regions={"disc": ((30.0 + index, 8.0, 48.0 + index, 26.0),), "corner": ((0.0, 0.0, 10.0, 10.0),)},
            phrases={"球": "disc"},
        )
        for index in range(count)
    )
