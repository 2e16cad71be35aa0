"""Pictures that are resized to one square: the place of each cell."""

from __future__ import annotations

import numpy as np

from finetune.families.base import (
    ImageTokens,
    Size,
)


def square_tokens(start: int, side: int, size: Size, *, edges: np.ndarray | None = None) -> ImageTokens:
    """A picture of (width, height) pixels in the middle of a square of side × side tokens from ``start`` on.

    edges   side + 1 fractions of the square, where tokens begin and end; None: all are of one size

    Cells are the tokens that show any of the picture, cut to it; those of margins alone are left out. 100 × 75 pixels
    in 4 × 4 tokens of 25 pixels, 12 above and 13 below: all four rows, the first and the last of 13 and 12 pixels.
    """
    longest = max(size)
    left, top = ((longest - length) // 2 for length in size)
    edges = longest * (np.linspace(0, 1, side + 1) if edges is None else edges)
    x, y = np.clip(edges - left, 0, size[0]), np.clip(edges - top, 0, size[1])
    rows, columns = np.flatnonzero(np.diff(y) > 0), np.flatnonzero(np.diff(x) > 0)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(rows, columns, indexing="ij"))
    return ImageTokens(
        positions=start + row * side + column,
        grid=(len(rows), len(columns)),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
    )
