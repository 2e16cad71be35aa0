"""Encoded samples that stay in memory from one epoch to the next, up to a limit."""

from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

from finetune.families.base import Encoded

SHARE_OF_FREE = 0.25
"""Of the memory that is free, the most that kept samples take."""
RECORD_BYTES = 4096
"""For Python's objects around a sample's arrays: an estimate."""

Kept = TypeVar("Kept")


class KeptSamples(Generic[Kept]):
    """Samples by their number, the first that fit: nothing is thrown out to make room.

    Every epoch reads every sample once. Of those that do not fit, none would still be there when it comes again if the
    oldest went first; the first that fit are there every time.

    room_bytes   for samples in all; 0: none is kept
    """

    def __init__(self, room_bytes: float) -> None:
        self.room_bytes = room_bytes
        self._kept: dict[int, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: int) -> Kept | None:
        """The sample, if it was kept."""
        return self._kept.get(number)

    def offer(self, number: int, sample: Kept, encoded: Encoded, beside: Iterable[np.ndarray] = ()) -> None:
        """Keep a sample that was read, if there is room. ``encoded`` and ``beside``: what takes its memory."""
        size = size_bytes(encoded, beside)
        if size <= self.room_bytes:
            self.room_bytes -= size
            self._kept[number] = sample


def size_bytes(encoded: Encoded, beside: Iterable[np.ndarray] = ()) -> int:
    """Memory of an encoded conversation: its tensors and arrays, and what Python keeps around them.

    beside   further arrays of the sample; one that comes several times takes memory once
    """
    media = sum(tensor.numel() * tensor.element_size() for tensor in encoded.media.values())
    arrays = [encoded.input_ids, encoded.labels, *encoded.per_token.values()]
    for image in encoded.images:
        whole = (image,) if image.overview is None else (image, image.overview)
        arrays += [array for one in whole for array in (one.positions, one.cell_boxes_pixels)]
        arrays.append(image.margin_positions)
    arrays += {id(array): array for array in beside}.values()
    return media + sum(array.nbytes for array in arrays) + RECORD_BYTES


def room_bytes(limit_gib: float, free_bytes: float, processes: int) -> float:
    """For the samples of one of so many processes on this machine: the limit, or a share of what is free for all."""
    return min(limit_gib * 2**30, SHARE_OF_FREE * free_bytes / processes)
