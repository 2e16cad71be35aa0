"""The cells and image tokens of a picture that boxes cover. Boxes are in pixels of the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from finetune.families.base import ImageTokens

Box = Sequence[float | int]  # x0 y0 x1 y1, pixels of the original image


def region_coverage(boxes: Sequence[Box], image: ImageTokens) -> Float[np.ndarray, " cells"]:
    """What share of each cell is covered by a region's boxes? Range [0, 1]; overlapping boxes count once."""
    cells = np.asarray(image.cell_boxes_pixels, np.float64)
    area = np.maximum((cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1]), 1e-12)
    covered = sum((shared_area(cells, piece) for piece in disjoint_boxes(boxes)), np.zeros(len(cells)))
    return np.clip(covered / area, 0.0, 1.0)


def token_weights(
    weights: Float[np.ndarray, " cells"],
    image: ImageTokens,
    connector: Float[np.ndarray, "tokens cells"] | None = None,
) -> Float[np.ndarray, " tokens"]:
    """Weights of cells carried back to the image's tokens, in the order of ``image.all_positions``.

    row[image.all_positions] · token_weights(w) is attention_on_cells(row) · w: one product for many rows, where the
    weights are one set (a region's coverage, one cell).
    """
    own = weights if connector is None else connector @ weights
    if image.overview is None:
        return own
    down, across = parts_of_overview(image, image.overview)
    return np.concatenate([own, (down @ weights.reshape(image.grid) @ across.T).ravel()])


def parts_of_overview(
    image: ImageTokens, overview: ImageTokens
) -> tuple[Float[np.ndarray, "coarse_rows rows"], Float[np.ndarray, "coarse_columns columns"]]:
    """Which part of each of the overview's rows lies on each row of cells, and of its columns on each column: their
    product is the part of a token's area that each cell has. Each row sums to 1."""
    parts = []
    for axis, line in ((1, (slice(None), 0)), (0, (0, slice(None)))):
        coarse, fine = (
            np.asarray(one.cell_boxes_pixels, np.float64).reshape(*one.grid, 4)[line][:, [axis, axis + 2]]
            for one in (overview, image)
        )
        shared = np.minimum(coarse[:, None, 1], fine[:, 1]) - np.maximum(coarse[:, None, 0], fine[:, 0])
        shared = np.clip(shared, 0, None)
        parts.append(shared / np.maximum(shared.sum(-1, keepdims=True), 1e-12))
    return parts[0], parts[1]


def disjoint_boxes(boxes: Sequence[Box]) -> list[tuple[float, float, float, float]]:
    """The union of boxes as boxes that do not overlap."""
    columns = sorted({edge for box in boxes for edge in (float(box[0]), float(box[2]))})
    rows = sorted({edge for box in boxes for edge in (float(box[1]), float(box[3]))})
    return [
        (x0, y0, x1, y1)
        for y0, y1 in pairwise(rows)
        for x0, x1 in pairwise(columns)
        if any(box[0] <= x0 and x1 <= box[2] and box[1] <= y0 and y1 <= box[3] for box in boxes)
    ]


def shared_area(cells: Float[np.ndarray, "cells 4"], box: Box) -> Float[np.ndarray, " cells"]:
    width = np.minimum(cells[:, 2], box[2]) - np.maximum(cells[:, 0], box[0])
    height = np.minimum(cells[:, 3], box[3]) - np.maximum(cells[:, 1], box[1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)
