"""Hides regions and their controls, in the picture or in attention, to test whether the model needs them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFilter, ImageStat
from torch import Tensor

from diagnostics.measures.salience import Place, salient_places
from diagnostics.probing.pictures import OpenPictures, written
from diagnostics.records.probes import Probe
from finetune.families import ImageTokens
from finetune.families.parts.coverage import Box, region_coverage

BORDER_SHARE = 0.15  # of a box's longer side: the ring whose mean colour fills it
BLUR_SHARE = 0.1  # of the longer side: radius of the blur for insertion and deletion


def occlude(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The RGB picture with a region hidden: each box takes the mean colour of the ring around it.

    Not black, since a black box draws attention itself. The region's other boxes are excluded from the ring; a box
    without a ring (it fills the picture) takes the mean of the picture.
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


def blank(picture: Image.Image) -> Image.Image:
    """A blank picture of the same size in the mean colour, so that brightness stays."""
    red, green, blue = ImageStat.Stat(picture.convert("RGB")).mean
    return Image.new("RGB", picture.size, (round(red), round(green), round(blue)))


def salient_coverages(
    probe: Probe, image: ImageTokens, pictures: OpenPictures
) -> dict[str, Float[np.ndarray, " cells"]]:
    """``place_coverage`` of each region's equally salient places (``salient_places``); without regions that have none.
    ``image``: the tokens of the first picture."""
    path = probe.images[0]
    picture = _Picture(path, written(path), pictures)
    places = _salient_places(picture, tuple(probe.regions.items()), probe.id)
    return {name: place_coverage(found, probe.regions[name], image) for name, found in places.items()}


def place_coverage(
    places: Sequence[Sequence[Box]], region: Sequence[Box], image: ImageTokens
) -> Float[np.ndarray, " cells"]:
    """The cells of places that a region is compared with: the mean of each place's own, with the region's sum.

    Places have the region's area in pixels. Where cells stand for areas of different size (cut at the border, tiles
    that overlap) they cover more or fewer cells than the region, and attention that is the same on every token would
    differ. A cell may so count more than once. Places that no cell is of are left out. Not to be written to.
    """
    layout = _Layout(np.asarray(image.cell_boxes_pixels).tobytes(), image)
    found, own = (tuple(tuple(tuple(box) for box in boxes) for boxes in one) for one in (places, (region,)))
    return _place_coverage(found, own[0], layout)


@dataclass(frozen=True)
class _Layout:
    """Cells of a picture, equal where their boxes are."""

    boxes: bytes
    image: ImageTokens = field(compare=False)


@lru_cache(maxsize=2048)  # probes and their controls recur at every checkpoint
def _place_coverage(
    places: tuple[tuple[tuple[float, ...], ...], ...], region: tuple[tuple[float, ...], ...], layout: _Layout
) -> Float[np.ndarray, " cells"]:
    own = region_coverage(region, layout.image)
    coverages = [one for boxes in places if (one := region_coverage(boxes, layout.image)).any()]
    return np.mean([one * (own.sum() / one.sum()) for one in coverages or [own]], axis=0)


@dataclass(frozen=True)
class _Picture:
    """A picture's file, equal where it has not changed."""

    path: Path
    written: tuple[int, int]
    pictures: OpenPictures = field(compare=False)


@lru_cache(maxsize=8192)  # probes recur at every checkpoint, and a picture takes 3 ms
def _salient_places(
    picture: _Picture, regions: tuple[tuple[str, tuple[Box, ...]], ...], name: str
) -> Mapping[str, list[Place]]:
    luminance = np.asarray(picture.pictures.open(picture.path).convert("L"), np.float64)
    return salient_places(luminance, dict(regions), name=name)


def region_cells(image: ImageTokens, boxes: Sequence[Box]) -> Bool[np.ndarray, " cells"]:
    """The cells of a region: those it covers most, in number equal to its area, at least one and at most all but one.

    Counted by area, so that a region and its area-matched controls lose the same number of cells. One is left where
    there are few: of 2 × 2, a box over .88 of the picture would else take all.

    Raises ValueError for a region that covers nothing, and for a picture of one cell.
    """
    coverage = region_coverage(boxes, image)
    if coverage.max() <= 0 or len(coverage) == 1:
        raise ValueError(
            f"knock-out: the region covers {coverage.sum():.3g} of {len(coverage)} cells, expected more than 0 of at "
            "least 2; give a box that covers a part of the picture"
        )
    return _most_covered(coverage, min(max(1, round(float(coverage.sum()))), len(coverage) - 1))


def _most_covered(coverage: Float[np.ndarray, " cells"], count: int) -> Bool[np.ndarray, " cells"]:
    cells = np.zeros(len(coverage), bool)
    cells[np.argsort(-coverage, kind="stable")[:count]] = True
    return cells


def region_tokens(
    image: ImageTokens, boxes: Sequence[Box], connector: Float[np.ndarray, "tokens cells"] | None
) -> Int[np.ndarray, " tokens"]:
    """Positions in the sequence of a region's image tokens.

    Without a resampler they are the region's cells, and of an overview those that are coarser cells of it: as many as
    its area there too, at least one. A resampler's tokens each read the whole picture: those that read the region
    most are taken, as many as its share of the picture, at least one.
    """
    if not image.through_connector:
        own = image.positions[region_cells(image, boxes)]
        if image.overview is None:
            return own
        coverage = region_coverage(boxes, image.overview)
        coarse = _most_covered(coverage, max(1, round(float(coverage.sum()))))
        return np.concatenate([own, image.overview.positions[coarse]])
    assert connector is not None
    coverage = region_coverage(boxes, image)
    count = min(max(1, round(float(coverage.mean()) * len(connector))), len(connector) - 1)
    return np.sort(image.positions[np.argsort(-(connector @ coverage), kind="stable")[:count]])


def window_of(layer: int, layers: int) -> tuple[int, int]:
    """First and last layer of the knock-out window around a key layer: ± a sixteenth of the model, 2 of 32 layers.

    One layer alone has little effect, since the others carry the same facts (Geva et al. 2023, "Dissecting recall of
    factual associations in auto-regressive language models", cut windows for that reason).
    """
    reach = layers // 16
    return max(layer - reach, 0), min(layer + reach, layers - 1)


def veil(picture: Image.Image, image: ImageTokens, hidden: Bool[np.ndarray, " cells"]) -> Image.Image:
    """The RGB picture with the hidden cells replaced by a strongly blurred copy.

    Blurred and not black, so that no artificial edges appear (Petsiuk et al. 2018, "RISE", who start
    insertion there). Cells that hang over the picture's edge are cut off there.
    """
    shown = picture.convert("RGB")
    blurred = shown.filter(ImageFilter.GaussianBlur(BLUR_SHARE * max(shown.size)))
    mask = Image.new("L", shown.size, 0)
    draw = ImageDraw.Draw(mask)
    for box in image.cell_boxes_pixels[hidden]:
        rows, columns = _slices(box.round())
        if columns.start < columns.stop and rows.start < rows.stop:
            draw.rectangle((columns.start, rows.start, columns.stop - 1, rows.stop - 1), fill=255)
    return Image.composite(blurred, shown, mask)


def most_looked_at(cells: Float[np.ndarray, " cells"], share: float) -> Bool[np.ndarray, " cells"]:
    """The cells with the most attention, as many as ``share`` of all of them."""
    chosen = np.zeros(len(cells), bool)
    chosen[np.argsort(-cells, kind="stable")[: round(share * len(cells))]] = True
    return chosen


def shifted_elsewhere(
    cells: Float[np.ndarray, " cells"], grid: tuple[int, int], *, name: str
) -> Float[np.ndarray, " cells"]:
    """The same map shifted on the grid, wrapping around: the control of insertion and deletion.

    Every share of it hides as many cells, in the same pattern. The same ``name`` gives the same place everywhere. By a
    quarter of an axis at least, and by one cell at least where it has more than one.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    by = tuple(_shift(rng, cells_along) for cells_along in grid)
    return np.roll(cells.reshape(grid), by, axis=(0, 1)).ravel()


def _shift(rng: np.random.Generator, cells: int) -> int:
    least = max(cells // 4, 1)
    return int(rng.integers(least, max(cells - least, least) + 1))


def blocked_patches(cells: Sequence[Bool[np.ndarray, " cells"] | None]) -> Bool[Tensor, "images 1 cells"]:
    """For ``AttentionExtractor.knocked_out`` at a resampler: which patches no query of an image may read.

    None blocks nothing in a picture; all pictures of a pass have the same number of cells.
    """
    width = next(len(one) for one in cells if one is not None)
    rows = [np.zeros(width, bool) if one is None else one for one in cells]
    return torch.from_numpy(np.stack(rows))[:, None]


def blocked_in_tower(blocked: Bool[Tensor, "images 1 cells"]) -> Bool[Tensor, "images cells cells"]:
    """The same inside the vision tower, whose patches are the cells: a region's patches are visible only to each other.

    Blocking the region after the tower is not enough: by then other patches have read it.
    """
    return blocked & ~blocked.transpose(1, 2)


def blocked_tokens(
    chosen: Sequence[tuple[ImageTokens, Int[np.ndarray, " tokens"]] | None], length: int
) -> Bool[Tensor, "batch queries keys"]:
    """For ``AttentionExtractor.knocked_out`` in language layers: in each sequence, tokens after the image (its overview
    too) may not attend to the region's tokens (``region_tokens``)."""
    blocked = torch.zeros(len(chosen), length, length, dtype=torch.bool)
    for row, one in enumerate(chosen):
        if one is not None:
            image, tokens = one
            blocked[row, int(image.all_positions.max()) + 1 :, torch.from_numpy(tokens)] = True
    return blocked


def _slices(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a box touches."""
    x0, y0, x1, y1 = box
    return slice(int(np.floor(y0)), int(np.ceil(y1))), slice(int(np.floor(x0)), int(np.ceil(x1)))
