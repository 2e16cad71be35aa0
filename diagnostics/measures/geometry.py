"""Attention over tokens → over cells of the picture → over pixels of the original.

Aspect ratio and resizing need no undoing here: cells carry their boxes in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import Box, disjoint_boxes, parts_of_overview, shared_area

if TYPE_CHECKING:
    Numbers = np.ndarray
else:  # NumPy returns a scalar in place of an array without axes; it has the same methods
    Numbers = np.ndarray | np.generic


def cells_from_row(
    row: Float[np.ndarray, "*batch keys"],
    image: ImageTokens,
    connector: Float[np.ndarray, "tokens cells"] | None = None,
) -> Float[np.ndarray, "*batch cells"]:
    """Where in the image did a language-model row look? Shares over cells; each row sums to 1.

    ``attention_on_cells`` over its sum, so that how *much* the row looked at the image (the visual share) stays out
    of *where*. A row without any attention on the image gives zeros.

    Raises ValueError if the connector's attention is missing, or of another shape than the image's.
    """
    cells = attention_on_cells(row, image, connector)
    total = cells.sum(-1, keepdims=True)
    return np.divide(cells, total, out=np.zeros_like(cells), where=total > 0)


def attention_on_cells(
    row: Float[np.ndarray, "*batch keys"],
    image: ImageTokens,
    connector: Float[np.ndarray, "tokens cells"] | None = None,
) -> Float[np.ndarray, "*batch cells"]:
    """How much of a row lies on each cell of the image? Range [0, 1]; not normalised.

    Token i is cell i: p = a_I. With a resampler a token is a query that has read the whole picture, so the row is
    composed with what each query read: p = a_I @ R. Queries are never taken for a grid.

    Two queries [.3, .1] and R = [[1, 0, 0], [.5, 0, .5]] give [.35, 0, .05].

    An overview's tokens are of the same places, only coarser: what lies on one is shared out among the cells under it,
    by area, so that the map has all the attention that lies on the picture, and each cell what its own token and its
    part of the overview got. A row of four cells [.1, .2, 0, .1] in two columns and two rows, and an overview of one
    token with .4 over all of it, give [.2, .3, .1, .2].

    Raises ValueError as ``cells_from_row``.
    """
    tokens = row[..., image.positions].astype(np.float64)
    cells = image.grid[0] * image.grid[1]
    if image.through_connector:
        expected = (len(image.positions), cells)
        if connector is None or connector.shape != expected:
            found = "none" if connector is None else connector.shape
            raise ValueError(
                f"connector attention: found {found}, expected {expected} for an image through a connector"
            )
        tokens = tokens @ connector.astype(np.float64)
    elif tokens.shape[-1] != cells:
        raise ValueError(
            f"image tokens: found {tokens.shape[-1]}, expected {cells} for a grid of {image.grid}"
        )
    if image.overview is None:
        return tokens
    down, across = parts_of_overview(image, image.overview)
    coarse = row[..., image.overview.positions].astype(np.float64)
    coarse = coarse.reshape(*coarse.shape[:-1], *image.overview.grid)
    return tokens + (down.T @ coarse @ across).reshape(tokens.shape)


def pixel_map(
    cells: Float[np.ndarray, " cells"], image: ImageTokens, *, smooth: bool = False
) -> Float[np.ndarray, "height width"]:
    """Shares over cells as a map over the original image: the share of attention on each pixel.

    Each cell fills its own box, also where its border cuts a pixel, so the map sums to what lies inside the
    image. ``smooth`` interpolates between the cells' centres instead (for looking at, not for measuring),
    same sum.
    """
    if smooth and image.frames > 1:  # not from one frame into the next
        shares = np.asarray(cells).reshape(image.frames, -1)
        return np.concatenate([pixel_map(one, image.frame(at), smooth=True) for at, one in enumerate(shares)])
    width, height = image.image_size_pixels
    boxes = np.asarray(image.cell_boxes_pixels, np.float64)
    if smooth:
        return _interpolated(cells, boxes.reshape(*image.grid, 4), width, height)
    x0, y0, x1, y1 = boxes.T
    density = cells / np.maximum((x1 - x0) * (y1 - y0), 1e-12)
    return (_overlap(y0, y1, height) * density[:, None]).T @ _overlap(x0, x1, width)


def resampled(
    cells: Float[np.ndarray, "*batch cells"],
    boxes_pixels: Float[np.ndarray, "cells 4"],
    image: ImageTokens,
) -> Float[np.ndarray, "*batch targets"]:
    """A map over other cells of the same picture → over the cells of ``image``, by area.

    A cell's share is spread evenly over its box, and each of the image's cells gets what lies inside it. Exact on
    grids of any kind: nothing is interpolated, and shares are kept but for what lies outside all of the image's
    cells. Boxes are x0 y0 x1 y1 in pixels of the original picture.

    Three cells of 10 pixels with [.6, .3, .1] over two of 15: [.6 + .15, .15 + .1].
    """
    rows, columns = image.grid
    onto = np.asarray(image.cell_boxes_pixels, np.float64).reshape(rows, columns, 4)
    x0, y0, x1, y1 = np.asarray(boxes_pixels, np.float64).T
    density = np.asarray(cells, np.float64) / np.maximum((x1 - x0) * (y1 - y0), 1e-12)
    down = _shared_length(y0, y1, onto[:, 0, 1], onto[:, 0, 3])
    across = _shared_length(x0, x1, onto[0, :, 0], onto[0, :, 2])
    found = (density[..., None, :] * down.T) @ across
    return found.reshape(*density.shape[:-1], rows * columns)


def patch_boxes_pixels(image: ImageTokens, finer: int) -> Float[np.ndarray, "patches 4"]:
    """The boxes of the tower's patches, where each cell is ``finer`` × ``finer`` of them: x0 y0 x1 y1 in pixels of
    the original picture, row-major in the grid of patches (rows · finer, columns · finer)."""
    rows, columns = image.grid
    boxes = np.asarray(image.cell_boxes_pixels, np.float64).reshape(rows, columns, 4)
    row, column = np.divmod(np.arange(rows * columns * finer**2), columns * finer)
    x0, y0, x1, y1 = boxes[row // finer, column // finer].T
    width, height = (x1 - x0) / finer, (y1 - y0) / finer
    left, top = x0 + column % finer * width, y0 + row % finer * height
    return np.stack([left, top, left + width, top + height], axis=1)


def union_area_pixels(boxes: Sequence[Box]) -> float:
    """Area that boxes cover together, pixels²."""
    return float(sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in disjoint_boxes(boxes)))


def shared_area_pixels(first: Sequence[Box], second: Sequence[Box]) -> float:
    """Area that two regions have in common, pixels²."""
    pieces = np.asarray(disjoint_boxes(first), np.float64).reshape(-1, 4)
    return float(sum(shared_area(pieces, piece).sum() for piece in disjoint_boxes(second)))


def _shared_length(
    start: Float[np.ndarray, " cells"],
    end: Float[np.ndarray, " cells"],
    from_: Float[np.ndarray, " targets"],
    to: Float[np.ndarray, " targets"],
) -> Float[np.ndarray, "cells targets"]:
    """How much of each target, along one axis, lies between a cell's start and end."""
    return np.clip(np.minimum(end[:, None], to) - np.maximum(start[:, None], from_), 0, None)


def _overlap(
    start: Float[np.ndarray, " cells"], end: Float[np.ndarray, " cells"], pixels: int
) -> Float[np.ndarray, "cells pixels"]:
    """How much of each pixel, along one axis, lies between start and end."""
    edge = np.arange(pixels, dtype=np.float64)
    return _shared_length(start, end, edge, edge + 1)


def _interpolated(
    cells: Float[np.ndarray, " cells"], boxes: Float[np.ndarray, "rows columns 4"], width: int, height: int
) -> Float[np.ndarray, "height width"]:
    centre_x = (boxes[0, :, 0] + boxes[0, :, 2]) / 2
    centre_y = (boxes[:, 0, 1] + boxes[:, 0, 3]) / 2
    values = cells.reshape(boxes.shape[:2])
    across = np.stack([np.interp(np.arange(width) + 0.5, centre_x, row) for row in values])
    down = np.stack([np.interp(np.arange(height) + 0.5, centre_y, column) for column in across.T], axis=1)
    return down * (cells.sum() / max(down.sum(), 1e-12))
