"""Which rows of what the connector is given stand for which cell of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np
from jaxtyping import Int

from finetune.families import ImageTokens
from finetune.families.base import TowerSequence
from finetune.families.parts.tower import joined, laid_out


def rows_of_patches(
    sequences: Sequence[TowerSequence] | None, image: int, rows: int, views: int
) -> Int[np.ndarray, " patches"] | None:
    """Patch of an image → row of what the connector is given, of ``rows`` rows in ``views`` views.

    The tower's order with its class tokens left out; where the rows are patches merged in squares (InternVL), "patches"
    are those squares, row-major in the picture. None where the rows are neither.

        a class token and 2 × 2 patches, two tiles side by side: patches [0, 1, 4, 5] and [2, 3, 6, 7] in rows 0 … 7
        → [0, 1, 4, 5, 2, 3, 6, 7]
    """
    if sequences is None:
        each = rows // views
        return np.arange(each) + image * each
    kept = [_without_classes(one) for one in sequences]
    every = joined(kept)
    if len(every) != rows:
        merged, left = divmod(len(every), rows)
        side = isqrt(merged)
        if left or side * side != merged:
            return None
        every = joined([_merged(one, side, _columns(kept, one)) for one in kept])
        if len(every) != rows:
            return None
    own = np.flatnonzero(every.image == image)
    return None if len(own) == 0 else own[np.argsort(every.patch[own], kind="stable")]


def _without_classes(sequence: TowerSequence) -> TowerSequence:
    own = sequence.patch >= 0
    return TowerSequence(sequence.image[own], sequence.patch[own], sequence.is_overview)


def _columns(sequences: Sequence[TowerSequence], tile: TowerSequence) -> int:
    """Columns of the grid of patches that a square tile lies in: its second row begins so much further on."""
    side = isqrt(len(tile))
    return int(tile.patch[side] - tile.patch[0]) if side > 1 else len(tile)


def _merged(tile: TowerSequence, side: int, columns: int) -> TowerSequence:
    """A tile's patches in squares of side × side, each by its place in the picture's grid of squares."""
    row, column = np.divmod(tile.patch, columns)
    first = (row % side == 0) & (column % side == 0)
    patch = row[first] // side * (columns // side) + column[first] // side
    return TowerSequence(tile.image[first], patch, tile.is_overview)


def patches_of_cells(
    image: ImageTokens, patches: int, run: int | None = None
) -> Int[np.ndarray, "cells patches"] | None:
    """The patches that each cell of a picture stands for; None where they cannot be told.

    patches   of the picture, row-major in its canvas
    run       where the picture's tokens begin, if they are one unbroken run of as many as there are patches (margins
              are tokens too, though no cells)

    A cell is a square of patches; where it is one patch, a picture in tiles may lie in the middle of its canvas.
    """
    rows, columns = image.grid
    if run is not None:
        return (image.positions - run)[:, None]
    if image.tiles is None:
        merge = isqrt(patches // (rows * columns))
        return (
            _blocks(rows, columns, merge, columns * merge) if merge**2 * rows * columns == patches else None
        )
    down, across = laid_out(image.tiles)
    side = isqrt(patches // (down * across))
    height, width = side * down, side * across
    if height * width != patches:
        return None
    merge = width // columns
    if (rows * merge, columns * merge) == (height, width):
        return _blocks(rows, columns, merge, width)
    margins = height - rows, width - columns
    # Cells that were pooled are fewer along both axes, and no patch belongs to one of them alone.
    if min(margins) != 0 or max(margins) % 2:
        return None
    return _blocks(rows, columns, 1, width, (margins[0] // 2, margins[1] // 2))


def _blocks(
    rows: int, columns: int, merge: int, width: int, begin: tuple[int, int] = (0, 0)
) -> Int[np.ndarray, "cells patches"]:
    """Each cell's merge × merge patches in a canvas ``width`` patches wide, the first cell at row and column
    ``begin``."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    inside = np.arange(merge)
    down = (begin[0] + row[:, None] * merge + inside)[:, :, None]
    across = (begin[1] + column[:, None] * merge + inside)[:, None, :]
    return (down * width + across).reshape(rows * columns, merge * merge)
