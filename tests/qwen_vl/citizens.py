"""A small Qwen-VL for tests of what transformers, PEFT and TRL expect: bytes and four merges, grids that differ."""

import base64
from pathlib import Path

from finetune.qwen_vl import QwenVLImageProcessor, QwenVLProcessor, QwenVLTokenizer

MERGES = (b"\n\n", b"<|", b"im", b" a")
N_QUERIES, SIDE, PATCH = 4, 12, 4


def small_processor(folder: Path) -> QwenVLProcessor:
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*(bytes([byte]) for byte in range(256)), *MERGES]
    lines = [b"%s %d" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=N_QUERIES)
    return QwenVLProcessor(QwenVLImageProcessor(image_size=SIDE, patch_size=PATCH), tokenizer)
