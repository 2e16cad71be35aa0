"""Which patch of which image each place of a vision tower's sequences is.

Towers read patches in orders of their own: in blocks that will be merged, in windows, tile by tile, frame by frame,
with a class token before them. A map over an image needs the order undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_PATCH = -1  # a class token, a register


@dataclass(frozen=True)
class TowerSequence:
    """One sequence within which a layer of the tower attends.

    image   Int[places]: which of the pass's images each place belongs to
    patch   Int[places]: which patch of that image, row-major in its grid (frame by frame in a video); −1: none
    """

    image: np.ndarray
    patch: np.ndarray

    def __len__(self) -> int:
        return len(self.patch)


def joined(sequences: Sequence[TowerSequence]) -> TowerSequence:
    """All sequences one after another, as flash kernels take them."""
    return TowerSequence(
        np.concatenate([one.image for one in sequences]), np.concatenate([one.patch for one in sequences])
    )


def whole_images(patches: Sequence[int], *, class_tokens: int = 0) -> list[TowerSequence]:
    """One sequence an image: class tokens, then its patches, row-major."""
    return [
        TowerSequence(
            np.full(class_tokens + count, image),
            np.concatenate([np.full(class_tokens, NO_PATCH), np.arange(count)]),
        )
        for image, count in enumerate(patches)
    ]


def frames(grids: Sequence[Sequence[int]], merge: int) -> list[TowerSequence]:
    """One sequence a frame, patches in blocks of merge × merge (Qwen2-VL, Qwen3-VL).

    grids   (frames, rows, columns) of each image, in patches
    """
    return [
        TowerSequence(
            np.full(rows * columns, image), frame * rows * columns + block_order(rows, columns, merge)
        )
        for image, (count, rows, columns) in enumerate(grids)
        for frame in range(count)
    ]


def block_order(rows: int, columns: int, merge: int) -> np.ndarray:
    """Patches of one frame in the order of blocks of merge × merge: Int[rows * columns].

    2 rows, 4 columns, merge 2: [0, 1, 4, 5, 2, 3, 6, 7].
    """
    patch = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return patch.transpose(0, 2, 1, 3).reshape(-1)


def windows(grids: Sequence[Sequence[int]], merge: int, side: int) -> list[TowerSequence]:
    """One sequence a window of side × side blocks, cut off at the right and lower border (Qwen2.5-VL).

    side   of a window, in blocks of merge × merge patches
    """
    found = []
    for image, (count, rows, columns) in enumerate(grids):
        blocks = block_order(rows, columns, merge).reshape(rows // merge, columns // merge, merge * merge)
        for frame in range(count):
            for top in range(0, blocks.shape[0], side):
                for left in range(0, blocks.shape[1], side):
                    patch = blocks[top : top + side, left : left + side].reshape(-1)
                    found.append(TowerSequence(np.full(len(patch), image), frame * rows * columns + patch))
    return found


def windows_by_frame(grids: Sequence[Sequence[int]], merge: int, side: int) -> list[TowerSequence]:
    """One sequence a frame, its patches in the order of windows: layers that attend to all, between windowed ones."""
    found = []
    for image, (count, rows, columns) in enumerate(grids):
        for frame in range(count):
            inside = joined(windows([(1, rows, columns)], merge, side))
            found.append(TowerSequence(inside.image + image, frame * rows * columns + inside.patch))
    return found
