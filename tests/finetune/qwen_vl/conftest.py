"""The golden model, in each kernel."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration, QwenVLImageProcessor

PICTURES = {
    "one_image": "a",
    "two_images": "ab",
    "batch_left_pad": "cde",
    "batch_right_pad": "cde",
    "train_step": "cde",
}


@pytest.fixture(scope="session")
def golden_model(golden: Path) -> Callable[..., QwenVLForConditionalGeneration]:
    def build(folder: str = "A", kernel: str = "sdpa", **changes: object) -> QwenVLForConditionalGeneration:
        settings = json.loads((golden / folder / "config.json").read_text())
        config = QwenVLConfig.from_dict(settings | changes)
        config._attn_implementation = kernel
        model = QwenVLForConditionalGeneration(config)
        model.load_state_dict(load_file(golden / "A" / "model.safetensors"), strict=True)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def golden_case(golden: Path) -> Callable[[str, str], tuple[dict, dict]]:
    """(inputs for the model, expected tensors) of one case."""

    def read(folder: str, name: str) -> tuple[dict, dict]:
        case = load_file(golden / folder / f"{name}.safetensors")
        inputs = {key: case[key] for key in ("input_ids", "attention_mask", "labels") if key in case}
        if name in PICTURES:
            files = [golden / "images" / f"{letter}.png" for letter in PICTURES[name]]
            inputs["pixel_values"] = QwenVLImageProcessor(112)(files)["pixel_values"]
        return inputs, case

    return read


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
