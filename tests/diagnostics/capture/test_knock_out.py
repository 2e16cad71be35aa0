"""Query → key knock-out in a window of layers: the named rows lose the named keys there, and nothing else does."""

import numpy as np
import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from tests.diagnostics.capture.test_qwen_vl import inputs_of
from tests.diagnostics.tiny_llama import FAMILY, IDS, tiny_llama
from tests.diagnostics.tiny_qwen_vl import tiny_model

ROWS, KEYS = [3, 5], [1, 2]
OTHERS = [0, 1, 2, 4, 6]


def blocked_pairs() -> torch.Tensor:
    """Queries 3 and 5 of the first sequence lose keys 1 and 2."""
    blocked = torch.zeros(2, 7, 7, dtype=torch.bool)
    blocked[0, torch.tensor(ROWS)[:, None], torch.tensor(KEYS)] = True
    return blocked


def runs(kernel: str, window: list[int], mask=None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of each layer, before and with the knock-out in the window."""
    model = tiny_llama(kernel)
    names = [f"layer_{layer}" for layer in range(3)]
    with torch.no_grad(), AttentionExtractor(model, family=FAMILY) as extractor:
        model(input_ids=IDS, attention_mask=mask)
        before = [extractor.attention_weights[name] for name in names]
        blocked = dict.fromkeys((names[layer] for layer in window), blocked_pairs())
        with extractor.knocked_out(blocked):
            model(input_ids=IDS, attention_mask=mask)
        return before, [extractor.attention_weights[name] for name in names]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [None, torch.tensor([[1] * 7, [1] * 5 + [0] * 2])], ids=["", "padded"])
def test_only_the_named_rows_change_in_the_windows_first_layer_and_none_below(kernel, padding):
    before, after = runs(kernel, [1], padding)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1][0][:, OTHERS], before[1][0][:, OTHERS], atol=1e-6)
    left = before[1][0][:, ROWS].copy()
    left[..., KEYS] = 0
    np.testing.assert_allclose(after[1][0][:, ROWS], left / left.sum(-1, keepdims=True), atol=1e-5)
    for layer in range(3):  # the other sequence
        np.testing.assert_allclose(after[layer][1], before[layer][1], atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_above_the_window_keys_are_read_again_and_what_was_lost_is_felt_from_the_first_row_on(kernel):
    before, after = runs(kernel, [1])
    np.testing.assert_allclose(after[2][0][:, :3], before[2][0][:, :3], atol=1e-6)
    assert np.abs(after[2][0][:, 3] - before[2][0][:, 3]).max() > 1e-3
    assert after[2][0][:, ROWS][..., KEYS].min() > 0


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [[0], [1, 2], [0, 1, 2]])
def test_keys_are_lost_in_each_layer_of_the_window_and_in_no_other(kernel, window):
    _, after = runs(kernel, window)
    lost = [not after[layer][0][:, ROWS][..., KEYS].any() for layer in range(3)]
    assert lost == [layer in window for layer in range(3)]
    assert all(after[layer][0][:, [2, 4, 6]][..., KEYS].min() > 0 for layer in range(3))


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("cuts", [(4,), (3, 4, 5, 6), (5,)])
def test_under_a_cache_the_same_rows_lose_the_same_keys_however_the_sequence_is_cut(kernel, cuts):
    model = tiny_llama(kernel)
    with AttentionExtractor(model, family=FAMILY) as extractor:
        with extractor.knocked_out({"layer_1": blocked_pairs(), "layer_2": blocked_pairs()}):
            whole = model(input_ids=IDS).logits
            rows = extractor.attention_weights
            out = model(input_ids=IDS[:, : cuts[0]], use_cache=True)
            logits = [out.logits]
            for start, end in zip(cuts, (*cuts[1:], 7), strict=True):
                out = model(input_ids=IDS[:, start:end], past_key_values=out.past_key_values, use_cache=True)
                logits.append(out.logits)
        steps = extractor.decode_weights
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-4, rtol=1e-5)
    for name in ("layer_0", "layer_1", "layer_2"):
        for start, end, step in zip(cuts, (*cuts[1:], 7), steps[name], strict=True):
            np.testing.assert_allclose(step, rows[name][:, :, start:end, :end], atol=1e-5)


@torch.no_grad()
def test_a_step_beyond_the_masks_queries_sees_all_keys():
    model = tiny_llama()
    with AttentionExtractor(model, family=FAMILY) as extractor:
        with extractor.knocked_out({"layer_1": blocked_pairs()}):
            cache = model(input_ids=IDS, use_cache=True).past_key_values
            model(input_ids=IDS[:, :1], past_key_values=cache)
        assert extractor.decode_weights["layer_1"][0].shape == (2, 4, 1, 8)
        assert extractor.decode_weights["layer_1"][0].min() > 0


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_query_to_image_tokens_in_a_window_of_qwen_vl(kernel):
    """The answer's query loses the picture in layers 1 and 2; what others see of it below stays."""
    model, inputs = tiny_model(kernel), inputs_of()
    image = slice(4, 13)  # 3 words, <img>, 9 slots
    blocked = torch.zeros(1, 18, 18, dtype=torch.bool)
    blocked[:, -1, image] = True
    with AttentionExtractor(model, query_tokens=[-2, -1]) as extractor:
        model(**inputs)
        before = extractor.attention_weights
        with extractor.knocked_out({"layer_1": blocked, "layer_2": blocked}):
            model(**inputs)
        after = extractor.attention_weights
    for name in ("visual_attn", "layer_0"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    for name in ("layer_1", "layer_2"):
        assert after[name][0, :, 1, image].max() == 0 and before[name][0, :, 1, image].min() > 0
        np.testing.assert_allclose(after[name][0, :, 0], before[name][0, :, 0], atol=1e-6)
