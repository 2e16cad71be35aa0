"""Packs several short samples into one row, up to its length, without truncating any."""

import numpy as np
from jaxtyping import Int

OPEN_ROWS = 64
"""A sample goes into one of this many rows, those begun last. More fill rows slightly better but move samples further
from their place in the shuffled order."""


def pack(
    tokens: Int[np.ndarray, "samples"], capacity: int, *, open_rows: int = OPEN_ROWS
) -> Int[np.ndarray, "samples"]:
    """The row of each sample, samples taken in order: the first open row that it fits into, else a new one.

    First fit (Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms") over
    the ``open_rows`` rows begun last. Tokens 5 4 3 3 and a capacity of 8 → rows 0 1 0 1.

    tokens     of each sample, at most ``capacity``
    capacity   most tokens of a row
    """
    assert len(tokens) == 0 or int(tokens.max()) <= capacity, "longer samples are refused before"
    free = np.empty(len(tokens), np.int64)
    rows = np.empty(len(tokens), np.int64)
    begun = 0
    for place, length in enumerate(tokens.tolist()):
        first = max(0, begun - open_rows)
        fits = free[first:begun] >= length
        row = first + int(fits.argmax()) if fits.any() else begun
        if row == begun:
            free[begun] = capacity
            begun += 1
        free[row] -= length
        rows[place] = row
    return rows


def needs_one_row(attention: str) -> bool:
    """Must the packed rows of a batch be joined into one, for this attention kernel to keep their samples apart?

    Flash kernels take no mask. transformers tells them where samples begin by positions that restart, but of a batch of
    one row alone: of more rows, each would be one long sample, without a word (``_is_packed_sequence`` in
    ``modeling_flash_attention_utils``). Masks of the other kernels are made of the positions of every row.
    """
    return "flash" in attention


def kernel_note(attention: str, capacity: int) -> str:
    """A line about how the attention kernel separates the samples of a row."""
    if needs_one_row(attention):
        return (
            f"--packing: {attention} keeps the samples of a row apart without a mask; the rows of a batch are joined "
            "into one"
        )
    return (
        f"--packing: {attention} keeps the samples of a row apart by a mask of {capacity:,} × {capacity:,} "
        f"({capacity * capacity / 2**20:,.0f} MiB), and computes over all of it; --attn_implementation "
        "flash_attention_2, where it is installed, computes each sample alone"
    )
