"""Pictures that become one square: stretched over it, or padded to it. The place of each cell."""

from __future__ import annotations

import math

import numpy as np

from finetune.families.base import ImageTokens, Size


def cell_boxes(grid: tuple[int, int], size: Size) -> np.ndarray:
    """Float[rows * columns, 4]: x0 y0 x1 y1 of each cell, row-major, where (rows, columns) of equal cells cover a
    picture of (width, height) pixels. 1 × 2 cells of 8 × 6 pixels: [[0, 0, 4, 6], [4, 0, 8, 6]]."""
    rows, columns = grid
    x, y = np.linspace(0, size[0], columns + 1), np.linspace(0, size[1], rows + 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)


def stretched_tokens(start: int, count: int, size: Size) -> ImageTokens:
    """A picture of (width, height) pixels stretched to a square of ``count`` tokens from ``start`` on: as many rows of
    cells as columns, row by row."""
    side = math.isqrt(count)
    return ImageTokens(
        positions=start + np.arange(count),
        grid=(side, side),
        cell_boxes_pixels=cell_boxes((side, side), size),
        image_size_pixels=size,
        through_connector=False,
    )


def square_tokens(start: int, side: int, size: Size, *, edges: np.ndarray | None = None) -> ImageTokens:
    """A picture of (width, height) pixels in the middle of a square of side × side tokens from ``start`` on.

    edges   side + 1 fractions of the square, where tokens begin and end; None: all are of one size

    Cells are the tokens that show any of the picture, cut to it; those of margins alone are none. 100 × 75 pixels
    in 4 × 4 tokens of 25 pixels, 12 above and 13 below: all four rows, the first and the last of 13 and 12 pixels.
    """
    longest = max(size)
    left, top = ((longest - length) // 2 for length in size)
    edges = longest * (np.linspace(0, 1, side + 1) if edges is None else edges)
    x, y = np.clip(edges - left, 0, size[0]), np.clip(edges - top, 0, size[1])
    rows, columns = np.flatnonzero(np.diff(y) > 0), np.flatnonzero(np.diff(x) > 0)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(rows, columns, indexing="ij"))
    places = row * side + column
    return ImageTokens(
        positions=start + places,
        grid=(len(rows), len(columns)),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
        margin_positions=start + np.setdiff1d(np.arange(side**2), places),
    )
