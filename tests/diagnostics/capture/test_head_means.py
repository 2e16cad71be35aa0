"""Head means of all layers, for rollout, and the tap on kernels' outputs that they use."""

import numpy as np
import pytest
import torch

from diagnostics.capture import head_means as head_means_module
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.head_means import head_means
from finetune.attention import rows
from tests.diagnostics.capture.test_qwen_vl import inputs_of
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.diagnostics.tiny_qwen_vl import tiny_model

PADDED = {"input_ids": IDS[:1], "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("rows_at_once", [1, 2, 7])
def test_head_means_are_the_means_of_all_rows_whatever_the_chunks(monkeypatch, kernel, rows_at_once):
    model, sizes = tiny_llama(kernel), []
    with AttentionExtractor(model, family=FAMILY) as extractor:
        model(**PADDED)
        expected = [extractor.attention_weights[f"layer_{layer}"][0].mean(0) for layer in range(3)]
    true = rows.attention_logits
    monkeypatch.setattr(
        head_means_module, "CHUNK_BYTES", rows_at_once * 4 * 4 * 7 + 3
    )  # fp32, 4 heads, 7 keys
    monkeypatch.setattr(
        head_means_module,
        "attention_logits",
        lambda *a: (sizes.append(a[2].shape), true(*a))[1],
    )
    means = head_means(model, PADDED, FAMILY)
    assert means.shape == (3, 7, 7) and means.dtype == np.float32
    np.testing.assert_allclose(means, expected, atol=1e-6)
    np.testing.assert_allclose(means[:, 2:].sum(-1), 1, atol=1e-5)
    assert max(rows for _, rows in sizes) == rows_at_once and len(sizes) == 3 * -(-7 // rows_at_once)
    assert model.config._attn_implementation == kernel


@torch.no_grad()
def test_head_means_of_qwen_vl_are_the_language_layers_alone():
    model, inputs = tiny_model(), inputs_of()
    with AttentionExtractor(model) as extractor:
        model(**inputs)
        expected = [extractor.attention_weights[name][0].mean(0) for name in extractor.language_names]
    np.testing.assert_allclose(head_means(model, inputs), expected, atol=1e-6)


def test_head_means_too_large_are_refused_before_the_model_runs():
    model = tiny_llama()
    assert head_means(model, PADDED, FAMILY, limit_bytes=3 * 7 * 7 * 4).shape == (3, 7, 7)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"3 layers × 7 × 7 tokens take 0\.0 MiB.*smaller picture, or raise"):
        head_means(model, PADDED, FAMILY, limit_bytes=3 * 7 * 7 * 4 - 1)
    long = {"input_ids": torch.zeros(1, 16_384, dtype=torch.long)}
    with pytest.raises(
        ValueError, match=r"16,384 × 16,384 tokens take 3,072\.0 MiB, expected at most 2,048\.0"
    ):
        head_means(model, long, FAMILY)
    with pytest.raises(ValueError, match="found a batch of 2, expected one sequence"):
        head_means(model, {"input_ids": IDS}, FAMILY)
    assert model.config._attn_implementation == "sdpa"


def test_head_means_of_a_layer_that_never_attends_are_an_error():
    model = tiny_llama()
    model.model.layers[1].forward = lambda x, **_: x
    with pytest.raises(ValueError, match="layer_1: its attention never ran through the interface"):
        head_means(model, PADDED, FAMILY)


@torch.no_grad()
def test_a_tap_sees_every_kernel_in_order_and_the_model_goes_on_with_what_it_returns():
    model, inputs, seen = tiny_model(), inputs_of(2), []

    def tap(name, call, output):
        seen.append((name, tuple(output.shape)))
        assert torch.equal(output, call.run()[0])
        return output * 0 if name == "layer_1" else output

    plain = model(**inputs).logits
    with AttentionExtractor(model, []) as extractor:
        with extractor.tapped(tap):
            changed = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, plain)
    assert seen == [
        ("vision_layer_0", (2, 36, 2, 8)),
        ("visual_attn", (2, 9, 1, 32)),
        *((f"layer_{index}", (2, 18, 2, 16)) for index in range(3)),
    ]
    model.transformer.h[1].attn.c_proj.weight.zero_()
    assert torch.equal(model(**inputs).logits, changed)
