"""Does the model need what it looks at? Take a region away, from the picture or from attention, and its
controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, ImageDraw
from torch import Tensor

from diagnostics.geometry import Box, region_coverage
from finetune.families import ImageTokens

BORDER_SHARE = 0.15  # of a box's longer side: the ring whose mean colour fills it
OCCLUSION, KNOCKOUT = "occlusion", "knockout"


def occlude(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The RGB picture with a region hidden: each box takes the mean colour of the ring around it.

    Not black: a black box is a thing to look at. The region's other boxes are left out of the ring; a box
    that leaves no ring (it fills the picture) takes the mean of the picture.
    """
    pixels = np.asarray(picture.convert("RGB"))
    hidden = np.zeros(pixels.shape[:2], bool)
    for box in boxes:
        hidden[_slices(box)] = True
    covered = picture.convert("RGB")
    draw = ImageDraw.Draw(covered)
    for box in boxes:
        margin = max(2, round(BORDER_SHARE * max(box[2] - box[0], box[3] - box[1])))
        around = (max(box[0] - margin, 0), max(box[1] - margin, 0), box[2] + margin, box[3] + margin)
        ring = pixels[_slices(around)][~hidden[_slices(around)]]
        colour = (ring if len(ring) else pixels.reshape(-1, 3)).mean(0).round().astype(int)
        rows, columns = _slices(box)
        last = (columns.stop - 1, rows.stop - 1)  # PIL fills the far edge too
        draw.rectangle(
            (columns.start, rows.start, *last), fill=(int(colour[0]), int(colour[1]), int(colour[2]))
        )
    return covered


def region_cells(image: ImageTokens, boxes: Sequence[Box]) -> Bool[np.ndarray, " cells"]:
    """The cells that stand for a region: as many as its area, at least one, those that it covers most.

    Counted by area, so that a region and its area-matched controls lose the same number of cells.

    Raises ValueError for a region that covers nothing, and for one that would leave no cell at all.
    """
    coverage = region_coverage(boxes, image)
    count = max(1, round(float(coverage.sum())))
    if coverage.max() <= 0 or count >= len(coverage):
        raise ValueError(
            f"knock-out: the region covers {coverage.sum():.3g} of {len(coverage)} cells, expected more than 0 and "
            "not all; give a box that is a part of the picture"
        )
    cells = np.zeros(len(coverage), bool)
    cells[np.argsort(-coverage, kind="stable")[:count]] = True
    return cells


def blocked_patches(cells: Sequence[Bool[np.ndarray, " cells"] | None]) -> Bool[Tensor, "images 1 cells"]:
    """For ``AttentionExtractor.knocked_out`` at a resampler: which patches no query of an image may read.

    None leaves an image whole; all images of a pass share one number of cells.
    """
    width = next(len(one) for one in cells if one is not None)
    rows = [np.zeros(width, bool) if one is None else one for one in cells]
    return torch.from_numpy(np.stack(rows))[:, None]


def blocked_tokens(
    cells: Sequence[tuple[ImageTokens, Bool[np.ndarray, " cells"]] | None], length: int
) -> Bool[Tensor, "batch queries keys"]:
    """The same without a resampler: in each sequence, tokens after the image may not look at the region's
    tokens."""
    blocked = torch.zeros(len(cells), length, length, dtype=torch.bool)
    for row, one in enumerate(cells):
        if one is not None:
            image, chosen = one
            blocked[row, int(image.positions.max()) + 1 :, torch.from_numpy(image.positions[chosen])] = True
    return blocked


def _slices(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a box touches."""
    x0, y0, x1, y1 = box
    return slice(int(np.floor(y0)), int(np.ceil(y1))), slice(int(np.floor(x0)), int(np.ceil(x1)))
