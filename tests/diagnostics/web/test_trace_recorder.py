"""Rows of a reply from calls made by hand, where no small model has the case."""

import numpy as np
import pytest
import torch
from torch import nn

from diagnostics.capture.extractor import Call
from diagnostics.web import trace_recorder as rows_module
from diagnostics.web.trace_recorder import TraceRecorder
from finetune.families.base import TowerSequence


def call(query: torch.Tensor, key: torch.Tensor, *, kernel: str = "sdpa", **options) -> Call:
    return Call(kernel, nn.Identity(), query, key, key, None, options)


def sequence(image, patch) -> TowerSequence:
    return TowerSequence(np.array(image), np.array(patch))


def softmax_rows(query: torch.Tensor, key: torch.Tensor) -> np.ndarray:
    """Float[heads, queries, keys] without any rule."""
    return (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)[0].numpy()


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("thinned_from_bytes", [0, 2**20])
def test_prompt_and_steps_under_a_window_of_two_with_shared_key_heads(drawn, thinned_from_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "THINNED_FROM_BYTES", thinned_from_bytes)
    query, key = drawn(1, 4, 5, 8), drawn(1, 2, 5, 8)  # three tokens of prompt, two steps
    taken = TraceRecorder(["layer_0"], lambda: [0, 2])
    taken("layer_0", call(query[:, :, :3], key[:, :, :3], sliding_window=2), query)
    taken("layer_1", call(query[:, :, :3], key[:, :, :3]), query)  # not asked for
    assert taken._queries["layer_0"][0].shape[2] == (2 if thinned_from_bytes == 0 else 3)
    for at in (3, 4):
        taken("layer_0", call(query[:, :, [at]], key[:, :, : at + 1], sliding_window=2), query)
    rows = taken.rows("layer_0", 99).numpy()
    assert taken.positions.tolist() == [0, 2, 3, 4] and rows.shape == (4, 4, 5)
    whole = key.repeat_interleave(2, dim=1)
    for place, position in enumerate([0, 2, 3, 4]):
        seen = slice(max(position - 1, 0), position + 1)
        expected = np.zeros((4, 5), np.float32)
        expected[:, seen] = softmax_rows(query[:, :, [position]], whole[:, :, seen])[:, 0]
        np.testing.assert_allclose(rows[:, place], expected, atol=1e-3)
    np.testing.assert_array_equal(taken.rows("layer_0", 2), rows[:, 2:])


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("most", [2, 99])
@pytest.mark.parametrize("thinned_from_bytes", [0, 2**20])
def test_a_prompt_that_is_not_causal(drawn, adds, most, thinned_from_bytes, monkeypatch):
    """A mask says what each token of the prompt may see: the first one the last, too."""
    monkeypatch.setattr(rows_module, "THINNED_FROM_BYTES", thinned_from_bytes)
    query, key = drawn(1, 2, 4, 8), drawn(1, 2, 4, 8)
    mask = torch.tensor([[True, False, True], [True, True, True], [False, True, True]])[None, None]
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if adds else mask
    taken = TraceRecorder(["layer_0"], lambda: [0, 2])
    taken("layer_0", call(query[:, :, :3], key[:, :, :3])._replace(mask=given), query)
    taken("layer_0", call(query[:, :, [3]], key), query)
    expected = np.zeros((2, 3, 4), np.float32)
    expected[:, 0, [0, 2]] = softmax_rows(query[:, :, [0]], key[:, :, [0, 2]])[:, 0]
    expected[:, 1, [1, 2]] = softmax_rows(query[:, :, [2]], key[:, :, [1, 2]])[:, 0]
    expected[:, 2] = softmax_rows(query[:, :, [3]], key)[:, 0]
    np.testing.assert_allclose(taken.rows("layer_0", most), expected[:, -most:], atol=1e-3)


@pytest.mark.parametrize("most", [1, 2, 3, 99])
def test_a_cache_that_forgets_keys(drawn, most):
    """A window of three: the cache hands out the last three keys once there are four."""
    query, key = drawn(1, 2, 6, 8), drawn(1, 2, 6, 8)
    taken = TraceRecorder(["layer_0"], lambda: [1])
    taken("layer_0", call(query[:, :, :2], key[:, :, :2], sliding_window=3), query)
    expected = np.zeros((2, 5, 6), np.float32)
    expected[:, 0, :2] = softmax_rows(query[:, :, [1]], key[:, :, :2])[:, 0]
    for at in range(2, 6):
        seen = slice(max(at - 2, 0), at + 1)
        taken("layer_0", call(query[:, :, [at]], key[:, :, seen], sliding_window=3), query)
        expected[:, at - 1, seen] = softmax_rows(query[:, :, [at]], key[:, :, seen])[:, 0]
    assert taken.positions.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(taken.rows("layer_0", most), expected[:, -most:], atol=1e-3)


def test_a_tower_s_windows_and_class_token_are_undone(drawn):
    """Image 0 has three patches in two windows, out of order; image 1 one patch behind a class token."""
    windows = [sequence([0, 0], [2, 0]), sequence([0], [1]), sequence([1, 1], [-1, 0])]
    taken, expected = TraceRecorder(["vision_layer_3"], list), np.zeros((2, 3, 3), np.float32)
    seen = []
    for one in windows:
        query, key = drawn(1, 2, len(one), 8), drawn(1, 2, len(one), 8)
        taken("vision_layer_3", call(query, key, is_causal=False), query)
        seen.append(softmax_rows(query, key))
    expected[:, [2, 2, 0, 0], [2, 0, 2, 0]] = seen[0].reshape(2, 4)
    expected[:, 1, 1] = seen[1][:, 0, 0]
    first, second = taken.tower("vision_layer_3", windows)
    np.testing.assert_allclose(first, expected, atol=1e-3)
    np.testing.assert_allclose(second, seen[2][:, 1:, 1:], atol=1e-3)


def test_a_flash_kernel_s_one_call_for_several_sequences(drawn):
    images = [sequence([0, 0], [1, 0]), sequence([1, 1, 1], [0, 2, 1])]
    query, key = drawn(1, 2, 5, 8), drawn(1, 2, 5, 8)
    bounds = torch.tensor([0, 2, 5])
    taken = TraceRecorder(["vision_layer_0"], list)
    one = call(query, key, kernel="flash_attention_2", is_causal=False, cu_seq_lens_q=bounds)
    taken("vision_layer_0", one, query)
    first, second = taken.tower("vision_layer_0", images)
    np.testing.assert_allclose(first, softmax_rows(query[:, :, [1, 0]], key[:, :, [1, 0]]), atol=1e-3)
    np.testing.assert_allclose(second, softmax_rows(query[:, :, [2, 4, 3]], key[:, :, [2, 4, 3]]), atol=1e-3)


def test_what_did_not_run_has_no_rows():
    taken = TraceRecorder(["vision_layer_0"], list)
    assert taken.connector() == [] and taken.tower("vision_layer_0", None) == []
    assert taken.tower("vision_layer_0", [sequence([0], [0])]) == []
