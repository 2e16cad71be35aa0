"""Sinks in hidden states made by hand."""

import numpy as np
import pytest

from diagnostics.measures.sinks import sink_dimensions, sink_share, sink_tokens, without_sinks

WIDTH = 900  # at most √900 = 30


def states(massive=(), tokens=7, width=WIDTH, scale=1.0):
    """Tokens of ±1 in every dimension, so |RMSNorm| is 1, with a few values massive."""
    hidden = np.where(np.arange(tokens)[:, None] + np.arange(width) & 1, 1.0, -1.0)
    for token, dimension, value in massive:
        hidden[token, dimension] = value
    return hidden * scale


def test_dimensions_are_those_massive_at_some_tokens():
    # 50 among 899 ones: 50 / √((2500 + 899) / 900) = 25.73; 25 gives 19.23.
    hidden = states([(0, 11, 50), (4, 800, -50), (2, 5, 25)])
    assert sink_dimensions(hidden).tolist() == [11, 800]
    assert sink_dimensions(hidden.astype(np.float16) * 8).tolist() == [11, 800]
    assert sink_dimensions(hidden, threshold=19).tolist() == [5, 11, 800]
    assert sink_dimensions(hidden, threshold=19.3).tolist() == [11, 800]


def test_a_dimension_large_at_every_token_is_an_offset():
    hidden = states([(token, 11, 50) for token in range(7)] + [(3, 30, 60)])
    assert 11 not in sink_dimensions(hidden) and 30 in sink_dimensions(hidden)
    # Its median over tokens decides: just below and just above a tenth of the largest.
    largest = 50 / np.sqrt((2500 + 899) / 900)
    for usual, is_sink in ((0.099 * largest, True), (0.102 * largest, False)):
        hidden = states([(0, 11, 50)] + [(token, 11, usual) for token in range(1, 7)])
        assert (11 in sink_dimensions(hidden)) == is_sink


def test_a_narrow_model_can_have_none():
    # √399 < 20: even a token that is nothing but one dimension stays below.
    hidden = np.zeros((5, 399))
    hidden[:, 0] = 1
    hidden[2] = 0
    hidden[2, 7] = 1e6
    assert sink_dimensions(hidden).tolist() == []
    assert sink_tokens(hidden, np.array([7])).tolist() == [False] * 5
    assert sink_dimensions(hidden, threshold=19.9).tolist() == [7]


def test_tokens_are_those_massive_in_the_dimensions():
    hidden = states([(0, 11, 50), (4, 800, -50), (5, 3, 50)])
    dimensions = np.array([11, 800])
    assert np.flatnonzero(sink_tokens(hidden, dimensions)).tolist() == [0, 4]
    batch = np.stack([hidden, states([(6, 11, -50)])])
    assert np.argwhere(sink_tokens(batch, dimensions)).tolist() == [[0, 0], [0, 4], [1, 6]]
    assert sink_tokens(hidden, dimensions, threshold=26).tolist() == [False] * 7
    assert sink_tokens(hidden, np.array([], int)).tolist() == [False] * 7
    assert sink_tokens(states([(0, 11, 50)], scale=1e4), np.array([11]))[0]  # the scale is normalised away


def test_fp16_does_not_overflow():
    hidden = states([(0, 11, 3000)]).astype(np.float16)  # 3000² > 65504
    assert sink_dimensions(hidden).tolist() == [11] and sink_tokens(hidden, np.array([11])).sum() == 1


def test_a_row_with_and_without_its_sinks():
    rows = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.0, 0.8]]], np.float32)
    sinks = np.array([True, False, True])
    np.testing.assert_allclose(sink_share(rows, sinks), [[0.7], [1.0]], rtol=1e-6)
    np.testing.assert_allclose(without_sinks(rows, sinks), [[[0, 0.3, 0]], [[0, 0, 0]]], rtol=1e-6)
    assert without_sinks(rows, sinks).dtype == np.float32 and rows[0, 0, 0] > 0
    by_layer = np.array([[[False] * 3], [[True, False, False]]])
    np.testing.assert_allclose(sink_share(rows, by_layer), [[0], [0.2]], rtol=1e-6)
    np.testing.assert_allclose(without_sinks(rows, by_layer)[1], [[0, 0, 0.8]], rtol=1e-6)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="found 2 tokens, expected at least 3; give the whole prompt"):
        sink_dimensions(states(tokens=2))
    with pytest.raises(ValueError, match="not finite"):
        sink_dimensions(states([(0, 0, np.inf)]))
    with pytest.raises(ValueError, match="not finite"):
        sink_tokens(states([(0, 0, np.nan)]), np.array([3]))
