"""A tiny Qwen-VL with a vocabulary of bytes, pictures that are not square, and data to train it on."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from finetune.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
    QwenVLTokenizer,
)

N_BYTES = 256
IMAGE_START_ID = N_BYTES + 214  # after 3 control tokens, 205 extras, <ref> </ref> <box> </box> <quad> </quad>
N_QUERIES = 4


def tiny_config(**changes: Any) -> QwenVLConfig:
    visual = {
        "heads": 2, "image_size": 12, "image_start_id": IMAGE_START_ID, "layers": 1, "mlp_ratio": 2.0,
        "output_dim": 32, "patch_size": 4, "width": 16, "n_queries": N_QUERIES,
    }  # fmt: skip
    settings = {
        "vocab_size": 480, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 16,
        "intermediate_size": 64, "seq_length": 256, "visual": visual,
    }  # fmt: skip
    return QwenVLConfig(**{**settings, **changes})


def write_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Weights, configuration and processor of a tiny random model; ``changes`` to its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(N_BYTES)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    torch.manual_seed(seed)
    QwenVLForConditionalGeneration(tiny_config(**changes)).save_pretrained(folder)
    tokenizer = QwenVLTokenizer(str(folder / "qwen.tiktoken"), image_tokens=N_QUERIES)
    QwenVLProcessor(QwenVLImageProcessor(image_size=12, patch_size=4), tokenizer).save_pretrained(folder)
    return folder


def write_data(folder: Path, count: int = 12) -> Path:
    """``count`` samples of unequal length: two of three with a picture, the third with text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        Image.new("RGB", (20 + i, 14), (i * 20 % 256, 90, 200)).save(folder / f"{i}.png")
        words = f"Picture 1: <img>{i}.png</img>\nwhat?" if i % 3 else "say it"
        turns = [{"from": "user", "value": words}, {"from": "assistant", "value": "yes " * (1 + i % 4)}]
        records.append({"id": f"sample-{i}", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def with_boxes(path: Path) -> Path:
    """The data, with a box to look at at each "yes" in answers about pictures; read where attention is supervised."""
    records = json.loads(path.read_text(encoding="utf-8"))
    for asked, answered in (one["conversations"] for one in records):
        if "<img>" in asked["value"]:
            times = answered["value"].split().count("yes")
            answered["look_at"] = [{"phrase": "yes", "boxes": [[0, 0, 8, 14]]}] * times
    path.write_text(json.dumps(records), encoding="utf-8")
    return path
