"""The precision of a record is that of most weights, and of autocast."""

import pytest
import torch
from torch import nn

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
