"""One attention matrix to draw, from a record or an array: one head or the mean over heads, its words, its future."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.drawing.figure_inputs import as_array, as_tokens, check_weights
from diagnostics.drawing.record_rows import layer_rows, query_words, shown_keys, with_pictures_as_one_key
from diagnostics.records.record import AttentionRecord


class AttentionMatrix(NamedTuple):
    """Float[query key] of one head or of the mean over ``heads``, NaN where nothing is known; the words of keys and
    queries; and Bool[query key]: keys that come after the query, and get nothing."""

    values: np.ndarray
    heads: int
    keys: list[str]
    queries: list[str]
    is_future: np.ndarray


def matrix_of_record(
    record: AttentionRecord, tokens: Sequence[str] | None, layer: int | None, head: int | None
) -> AttentionMatrix:
    """Of a record's kept rows."""
    if tokens is not None and len(tokens) != len(record.tokens):
        raise ValueError(
            f"tokens has {len(tokens)}, the record of {record.probe_id!r} has {len(record.tokens)} keys; expected one "
            "text for each, or none: a record has its own"
        )
    rows = layer_rows(record, layer, head)
    check_weights(rows, "the record's rows")
    words = record.tokens if tokens is None else as_tokens(tokens, "tokens")
    matrix, keys = with_pictures_as_one_key(record, rows, words)
    positions = np.array([query.position for query in record.queries])
    later = shown_keys(record)[None] > positions[:, None]
    # Each row by itself: some models let the prompt's tokens see all of the prompt.
    is_causal = ~((matrix > 0) & later).any(axis=1, keepdims=True)
    queries = [query_words(query) for query in record.queries]
    return AttentionMatrix(matrix, record.rows.shape[1], keys, queries, later & is_causal)


def matrix_of_array(
    attention: np.ndarray, tokens: Sequence[str] | None, layer: int | None, head: int | None
) -> AttentionMatrix:
    """Of the extractor's rows, the last of the sequence where they are fewer than its tokens."""
    if layer is None:
        raise ValueError(
            "attn_matrix is an array, which tells neither its tokens nor its layer; expected both: "
            "visualize_text_attention(attn_matrix, tokens, layer_idx)"
        )
    matrix, heads = _one_matrix(as_array(attention, "attn_matrix"), head)
    words = as_tokens(range(matrix.shape[1]) if tokens is None else tokens, "tokens")
    if matrix.shape[1] != len(words) or matrix.shape[0] > len(words):
        raise ValueError(
            f"attn_matrix has {matrix.shape[0]} queries and {matrix.shape[1]} keys, tokens has {len(words)}; "
            "expected one token for each key and no more queries than keys"
        )
    is_future = _future(matrix)
    matrix = np.where(is_future, 0.0, matrix)
    check_weights(matrix, "attn_matrix")
    return AttentionMatrix(matrix, heads, words, words[len(words) - matrix.shape[0] :], is_future)


def _future(matrix: Float[np.ndarray, "queries keys"]) -> np.ndarray:
    """Bool[queries keys]: above the diagonal of a causal map, where nothing is seen. The queries are the last tokens.

    No attention is 0, or NaN or -inf from some masks: NaN and -inf mark their row, 0 only if the whole row is 0.
    """
    later = np.triu(np.ones(matrix.shape, dtype=bool), k=1 + matrix.shape[1] - matrix.shape[0])
    is_marked = np.isnan(matrix) | np.isneginf(matrix)
    sees_later = ((matrix != 0) & later & ~is_marked).any(axis=1, keepdims=True)
    is_masked = (is_marked & later).any(axis=1, keepdims=True) & ~sees_later
    return later & (is_masked | (not sees_later.any()))


def scale_top(matrix: np.ma.MaskedArray) -> float:
    """The 98th percentile of what rows with a choice look at (that of seaborn's ``heatmap(robust=True)``): the highest
    is a sink's, or the second row's, which has at least .5 somewhere, whatever the model."""
    chosen = matrix[matrix.count(axis=1) > 1].compressed()
    top = float(np.quantile(chosen, 0.98, method="higher")) if len(chosen) else 1.0
    return top if top > 0 else 1.0  # all of it looks at nothing


def _one_matrix(attention: np.ndarray, head: int | None) -> tuple[np.ndarray, int]:
    """[query key] of one head or of the mean, and how many heads there were."""
    if attention.ndim == 4:
        if attention.shape[0] != 1:
            raise ValueError(
                f"attn_matrix holds a batch of {attention.shape[0]}; expected one sample, e.g. attn_matrix[0]"
            )
        attention = attention[0]
    if attention.ndim == 2:
        attention = attention[None]
    if attention.ndim != 3:
        raise ValueError(
            f"attn_matrix has shape {attention.shape}; expected [query key] or [heads query key]"
        )
    heads = attention.shape[0]
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head_idx is {head}, attn_matrix has {heads} heads; expected 0 to {heads - 1}")
    return (attention.mean(axis=0) if head is None else attention[head]), heads
