"""The precision of a record is that of most weights, and of autocast."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig

from diagnostics.probing.precision import precision_words


def test_the_precision_is_that_of_most_weights():
    small, large = nn.Linear(3, 2), nn.Linear(30, 20).to(torch.bfloat16)
    assert precision_words(nn.Sequential(small, small, large)) == "bfloat16"
    assert precision_words(small, torch.float16) == "float32 (autocast: float16)"


def test_shards_count_with_their_whole_size():
    large, small = nn.Linear(30, 20).to(torch.bfloat16), nn.Linear(3, 2)
    for one in large.parameters():
        one.ds_numel, one.data = one.numel(), torch.empty(0, dtype=torch.bfloat16)  # type: ignore[attr-defined]
    assert precision_words(nn.Sequential(large, small)) == "bfloat16"


def test_four_bits_are_named_with_what_computes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(4, 3, compute_dtype=torch.bfloat16)
    model = nn.Sequential(layer, nn.Linear(3, 2))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    assert precision_words(model) == "4 bit (bfloat16)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (BitsAndBytesConfig(load_in_8bit=True), "8 bit (bitsandbytes, float16)"),
        (BitsAndBytesConfig(load_in_8bit=True).to_dict(), "8 bit (bitsandbytes, float16)"),
        (GPTQConfig(bits=4), "4 bit (gptq, float16)"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "4 bit (awq, float16)"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "quantised (fp8, float16)"),
        (None, "float16"),
    ],
)
def test_weights_that_a_library_quantised_are_not_taken_for_those_that_are_left(settings: Any, words: str):
    """Norms and embeddings stay in half precision; packed weights are no floating point."""
    model = nn.Sequential(nn.LayerNorm(30).to(torch.float16))
    model.config = SimpleNamespace(quantization_config=settings)  # type: ignore[assignment]
    assert precision_words(model) == words
    assert precision_words(model, torch.bfloat16) == f"{words} (autocast: bfloat16)"
