"""Selects the attention rows to keep: validated indices of sequences, heads and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def indices(
    chosen: Sequence[int] | None, size: int, what: str, device: torch.device
) -> Int[Tensor, " chosen"]:
    if chosen is None:
        return torch.arange(size, device=device)
    for index in chosen:
        if not 0 <= index < size:
            raise ValueError(f"{what} {index} does not exist; expected 0 to {size - 1}")
    return torch.tensor(list(chosen), device=device, dtype=torch.long)


def row_positions(
    tokens: Sequence[int] | Tensor | None, kept: int, length: int, name: str, device: torch.device
) -> Int[Tensor, "kept rows"]:
    """Places of the rows to keep, from the start; ``tokens`` as in ``AttentionExtractor``'s ``query_tokens``.

    Raises ValueError naming the module, for a token or a number of sequences that it does not have.
    """
    if tokens is None:
        return torch.arange(length, device=device).expand(kept, -1)
    token, whole = ("vision token", "image") if name.startswith("vision") else ("query token", "sequence")
    positions = torch.as_tensor(tokens, device=device, dtype=torch.long)
    positions = positions.expand(kept, -1) if positions.ndim == 1 else positions
    if positions.shape[0] != kept:
        raise ValueError(f"{name}: {token}s for {positions.shape[0]} {whole}s, expected {kept}")
    wrong = positions[(positions >= length) | (positions < -length)]
    if len(wrong):
        raise ValueError(f"{name}: {token} {int(wrong[0])} does not exist; the {whole} has {length} tokens")
    return positions % length


def to_numpy(rows: Tensor) -> np.ndarray:
    return rows.float().cpu().numpy()


def span(names: Iterable[str]) -> str:
    return ", ".join(names)
