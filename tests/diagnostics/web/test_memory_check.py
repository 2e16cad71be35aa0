"""Memory of a model, counted without loading it, and the message where it does not fit."""

import pytest
import torch

from diagnostics.web.memory_check import Need, need, require, weight_bytes
from finetune.families import family_of
from finetune.qwen_vl import QwenVLConfig
from tests.diagnostics.tiny_qwen_vl import N_HEADS, N_LAYERS, tiny_model

GIB = 2**30


def test_weights_are_counted_as_they_rest():
    model = tiny_model()
    found = need(model.config, four_bit=False, traces_bytes=100, on_gpu=False)
    assert found.weights == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert found.cache == 2 * N_LAYERS * N_HEADS * 16 * 2048 * 4
    assert (found.traces, found.reserve) == (100, 2**28)
    assert found.total == found.weights + found.cache + 100 + 2**28


def test_the_published_model_in_bf16_and_in_four_bits():
    """9,656,935,168 parameters of two bytes; in 4 bits the linear weights of 32 layers take 4.127 bits each."""
    config = QwenVLConfig(dtype="bfloat16")
    whole = need(config, four_bit=False, traces_bytes=0, on_gpu=True)
    assert whole.weights == 2 * 9_656_935_168
    assert whole.cache == 2 * 32 * 32 * 128 * 2048 * 2
    linear = 32 * (4096 * 3 * 4096 + 4096 * 4096 + 3 * 4096 * 11008)
    quarter = need(config, four_bit=True, traces_bytes=0, on_gpu=True)
    assert quarter.weights == pytest.approx(whole.weights - linear * (2 - 4.127 / 8))
    assert quarter.reserve == 1.5 * GIB


def test_four_bits_touch_language_layers_alone():
    model = tiny_model()
    family = family_of(model.config)
    inside = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer.h.")
    )
    saved = weight_bytes(model, family, four_bit=False) - weight_bytes(model, family, four_bit=True)
    assert saved == pytest.approx(inside * (4 - 4.127 / 8))


def test_an_adapter_comes_on_top(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1234))
    (tmp_path / "adapter_config.json").write_bytes(bytes(99))
    plain, adapted = (
        need(tiny_model().config, four_bit=False, traces_bytes=0, on_gpu=False, adapter=folder)
        for folder in (None, tmp_path)
    )
    assert adapted.weights - plain.weights == 1234


def test_what_does_not_fit_is_refused_with_what_would_help():
    needed = Need(18 * GIB, 1 * GIB, 0, 1.5 * GIB)
    require(needed, 20.5 * GIB, name="towers", advice=["--low-memory"])
    with pytest.raises(ValueError) as told:
        require(needed, 8 * GIB, name="towers", advice=["--low-memory", "--cpu-only"])
    assert str(told.value) == (
        "towers needs 20.5 GiB: weights 18.0 GiB, keys and values 1.0 GiB, reserve 1.5 GiB; found 8.0 GiB free. "
        "Try: --low-memory; --cpu-only"
    )
