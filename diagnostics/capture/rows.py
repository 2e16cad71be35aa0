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

    Raises ValueError naming the module, for a token or a number of sequences that it does not have, and for what is no
    list of tokens.
    """
    if tokens is None:
        return torch.arange(length, device=device).expand(kept, -1)
    positions = named_positions(tokens, name).to(device)
    positions = positions.expand(kept, -1) if positions.ndim == 1 else positions
    check_count(positions, kept, name)
    return from_start(positions, length, name)


def named_positions(tokens: Sequence[int] | Tensor, name: str) -> Int[Tensor, "*kept rows"]:
    """As they were given. Raises ValueError for a mask, a single number, fractions, and more than two axes."""
    token, whole = _words(name)
    given = torch.as_tensor(tokens)
    found = {
        "a Bool mask": given.dtype == torch.bool,
        f"the single number {tokens}": given.ndim == 0,
        "fractions": given.is_floating_point() and bool((given % 1 != 0).any()),
        f"{given.ndim} axes": given.ndim > 2,
    }
    if any(found.values()):
        what = next(words for words, is_so in found.items() if is_so)
        raise ValueError(
            f"{name}: {token}s: found {what}, expected positions: a list for all {whole}s, or Int[{whole}s, rows]; of "
            "a mask of one axis they are mask.nonzero().flatten()"
        )
    return given.long()


def check_count(positions: Int[Tensor, "lists rows"], kept: int, name: str) -> None:
    """Raises ValueError unless each kept sequence or image has its list."""
    token, whole = _words(name)
    if positions.shape[0] != kept:
        raise ValueError(f"{name}: {token}s for {positions.shape[0]} {whole}s, expected {kept}")


def from_start(positions: Int[Tensor, "*kept rows"], length: int, name: str) -> Int[Tensor, "*kept rows"]:
    """Positions counted from either end → from the start. Raises ValueError for one that does not exist."""
    token, whole = _words(name)
    wrong = positions[(positions >= length) | (positions < -length)]
    if len(wrong):
        raise ValueError(f"{name}: {token} {int(wrong[0])} does not exist; the {whole} has {length} tokens")
    return positions % length


def _words(name: str) -> tuple[str, str]:
    return ("vision token", "image") if name.startswith("vision") else ("query token", "sequence")


def to_numpy(rows: Tensor) -> np.ndarray:
    return rows.float().cpu().numpy()


def span(names: Iterable[str]) -> str:
    return ", ".join(names)
