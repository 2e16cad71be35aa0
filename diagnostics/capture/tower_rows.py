"""Rows of a vision tower that cuts pictures into windows, tiles or frames, reassembled by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diagnostics.capture.rows import to_numpy
from finetune.attention.watch import Call
from finetune.families.base import TowerSequence
from finetune.families.parts.tower import joined


class Piece(NamedTuple):
    """Rows of one sequence of a tower: their places, Int[rows], and values, Float[heads, rows, places]."""

    sequence: TowerSequence
    places: np.ndarray
    rows: Tensor


class TowerRows:
    """The sequences of one vision layer in a pass, consumed as its kernel is called."""

    def __init__(self, name: str, sequences: Sequence[TowerSequence] | None, *, first: int = 0) -> None:
        """first   how many images earlier calls of the tower had"""
        self.name, self.sequences, self.taken = name, sequences, 0
        if sequences is not None and first:
            self.sequences = [replace(one, image=one.image + first) for one in sequences]

    @property
    def patches(self) -> dict[int, int]:
        """How many patches each image has."""
        if not self.sequences:
            return {}
        every = joined(list(self.sequences))
        return {int(i): int(every.patch[every.image == i].max()) + 1 for i in np.unique(every.image)}

    @property
    def pictures(self) -> list[int]:
        """The images that are no overview."""
        found = [one.image for one in self.sequences or () if not one.is_overview]
        return np.unique(np.concatenate(found)).tolist() if found else []

    def next(self, call: Call) -> list[TowerSequence] | None:
        """Those of this call; None if sequences are images and places are patches."""
        if self.sequences is None:
            return None
        if call.is_flash and call.options.get("cu_seq_lens_q") is not None:
            found = [joined(self.sequences)]  # one call; the kernel keeps the stretches apart
        else:
            found = list(self.sequences[self.taken : self.taken + call.query.shape[0]])
            self.taken += len(found)
        lengths = [len(one) for one in found]
        if len(found) != call.query.shape[0] or set(lengths) != {call.lengths[0]}:
            raise ValueError(
                f"{self.name}: its kernel was called with {call.query.shape[0]} sequences of {call.lengths[0]} places, "
                f"expected {lengths} as the family says: these are not the tower's patches"
            )
        return found

    def finish(self) -> None:
        """Raises ValueError if a pass ended that had fewer sequences than expected."""
        left = len(self.sequences or ()) - self.taken
        if self.taken and left:
            raise ValueError(
                f"{self.name}: its kernel was called with {self.taken} sequences, expected {self.taken + left}, as "
                "the family or tiles=… says; give the tiles of this pass's pictures"
            )


def joined_calls(name: str, calls: Sequence[Tensor]) -> np.ndarray:
    """One array of a module's calls in one pass. Windows of unequal size have no common array."""
    if len({call.shape[1:] for call in calls}) > 1:
        raise ValueError(
            f"{name} attends in windows of unequal size, {[tuple(c.shape) for c in calls]}: no single array"
        )
    return to_numpy(torch.cat(list(calls)) if len(calls) > 1 else calls[0])


def image_rows(
    pieces: Sequence[Piece], image: int, rows: Int[np.ndarray, " rows"], patches: int
) -> Float[np.ndarray, "heads rows patches"]:
    """An image's rows, assembled from the sequences of its patches; patches of another sequence get 0."""
    out = np.zeros((pieces[0].rows.shape[0], len(rows), patches), np.float32)
    for piece in pieces:
        own = (piece.sequence.image == image) & (piece.sequence.patch >= 0)
        keys = np.flatnonzero(own)
        values = to_numpy(piece.rows)[:, :, keys]
        of = np.where(own[piece.places], piece.sequence.patch[piece.places], -1)
        at, taken = np.nonzero(rows[:, None] == of[None, :])
        out[:, at[:, None], piece.sequence.patch[keys][None, :]] = values[:, taken]
    return out
