"""Pictures fitted into a canvas of whole tiles, with an overview before them (LLaVA-NeXT, LLaVA-OneVision).

A picture is fitted into the best of some canvases, black around it. The tokens of the tiles, joined to one grid, lose
the rows or columns of the margins, and get a newline token at each row's end; the picture squeezed into one tile comes
before them. All of it is transformers' own arithmetic, roundings included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.families.base import ImageArithmetic, ImageTokens, Tiles
from finetune.families.parts.tower import tiles_of_images
from finetune.samples.conversation import ImageRef

POOLED_ABOVE = 1.1  # times as many a side as are allowed: transformers' and the authors' own bound

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Tiling:
    """What decides a picture's tokens.

    pixels      a side of a tile
    side        tokens a side of a tile
    canvases    (height, width) in pixels of those that a picture may be fitted into
    most_tiles  as many tiles' tokens as are not pooled; None: none ever are

    Raises ValueError for a canvas that is not made of whole tiles.
    """

    pixels: int
    side: int
    canvases: Sequence[tuple[int, int]]
    most_tiles: int | None = None

    def __post_init__(self) -> None:
        for height, width in self.canvases:
            if not height or not width or height % self.pixels or width % self.pixels:
                raise ValueError(
                    f"image_grid_pinpoints: found a canvas of {height} × {width} pixels, expected whole tiles of "
                    f"{self.pixels} × {self.pixels} (the processor's size, the tower's image_size)"
                )


@dataclass(frozen=True)
class Layout:
    """A picture's place among the tokens of its tiles.

    canvas          (height, width) in pixels
    tiles           (rows, columns) of the canvas
    rows, columns   of cells, margins cut off, pooled
    y, x            the edges of rows and of columns in pixels of the picture: rows + 1 and columns + 1 numbers
    tokens          the overview's and newlines included
    """

    canvas: tuple[int, int]
    tiles: tuple[int, int]
    y: np.ndarray
    x: np.ndarray
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.y) - 1

    @property
    def columns(self) -> int:
        return len(self.x) - 1


def tiles_of(tiling: Tiling, size: Size) -> tuple[int, int]:
    """(rows, columns) of tiles for a picture of (width, height) pixels."""
    rows, columns = (length // tiling.pixels for length in _canvas(tiling, size))
    return rows, columns


def _canvas(tiling: Tiling, size: Size) -> tuple[int, int]:
    """(height, width) of the canvas on which most of the picture's pixels are kept, and of those the one with the least
    margins; the first of equals. As in LLaVA-NeXT, and in transformers (whose code imports torch)."""
    width, height = size

    def loss(canvas: Sequence[int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, canvas[0] * canvas[1] - kept

    rows, columns = min(tiling.canvases, key=loss)
    return rows, columns


def layout(tiling: Tiling, size: Size) -> Layout:
    """Of a picture of (width, height) pixels."""
    width, height = size
    canvas, tiles = _canvas(tiling, size), tiles_of(tiling, size)
    rows, columns = (count * tiling.side for count in tiles)
    # The model finds the margins in whole tokens, by a rule of its own that need not agree with the pixels'.
    if width / height > columns / rows:
        above, left = (rows - int(round(height * (columns / width), 7))) // 2, 0
    else:
        above, left = 0, (columns - int(round(width * (rows / height), 7))) // 2
    scale = min(canvas[0] / height, canvas[1] / width)
    fitted = [
        min(math.ceil(length * scale), most) for length, most in zip((height, width), canvas, strict=True)
    ]
    ratio = 1.0
    if tiling.most_tiles is not None:
        ratio = math.sqrt((rows - 2 * above) * (columns - 2 * left) / (tiling.most_tiles * tiling.side**2))
    edges = []
    for axis, (length, margin) in enumerate(((height, above), (width, left))):
        kept = tile_edges(tiling, tiles[axis])[margin : tiles[axis] * tiling.side - margin + 1]
        if ratio > POOLED_ABOVE:
            pooled = int((len(kept) - 1) // ratio)
            kept = np.interp(np.linspace(0, len(kept) - 1, pooled + 1), np.arange(len(kept)), kept)
        paste = (canvas[axis] - fitted[axis]) // 2
        edge = np.clip((kept - paste) * length / fitted[axis], 0, length)
        if len(edge) > 1:  # less than one token of the picture may be cut off with the margins
            edge[0], edge[-1] = 0, length
        edges.append(edge)
    y, x = edges
    return Layout(canvas, tiles, y, x, tiling.side**2 + (len(y) - 1) * len(x))


def tile_edges(tiling: Tiling, tiles: int) -> np.ndarray:
    """Where tokens begin along one axis of a canvas, in pixels. 27 patches of 14 reach over 378 of a tile's 384 pixels:
    the last of a tile is given the 6 that no patch sees."""
    patch = tiling.pixels // tiling.side
    begin = np.arange(tiles)[:, None] * tiling.pixels + np.arange(tiling.side) * patch
    return np.append(begin.reshape(-1), tiles * tiling.pixels).astype(float)


def picture_tokens(tiling: Tiling, start: int, bounded: Size, size: Size) -> ImageTokens:
    """A picture of (width, height) pixels, which the model gets scaled down to ``bounded``, from ``start`` on: its
    overview, then a row of cells and a newline, and the next row."""
    found = layout(tiling, bounded)
    x, y = found.x * size[0] / bounded[0], found.y * size[1] / bounded[1]
    row, column = np.divmod(np.arange(found.rows * found.columns), found.columns)
    edges = tile_edges(tiling, 1) / tiling.pixels
    return ImageTokens(
        positions=start + tiling.side**2 + row * (found.columns + 1) + column,
        grid=(found.rows, found.columns),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
        overview=squeezed_tokens(start, tiling.side, size, edges=edges),
        tiles=found.tiles,
    )


def squeezed_tokens(start: int, side: int, size: Size, *, edges: np.ndarray | None = None) -> ImageTokens:
    """A picture of (width, height) pixels squeezed into one tile of side × side tokens from ``start`` on.

    edges   side + 1 fractions of the tile, where tokens begin and end; None: all are of one size
    """
    edges = np.linspace(0, 1, side + 1) if edges is None else edges
    x, y = edges * size[0], edges * size[1]
    row, column = np.divmod(np.arange(side**2), side)
    return ImageTokens(
        positions=start + np.arange(side**2),
        grid=(side, side),
        cell_boxes_pixels=np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1),
        image_size_pixels=size,
        through_connector=False,
    )


def count(tiling: Tiling, size: Size, ref: ImageRef) -> int:
    """Tokens of one picture, of (width, height) pixels as the model gets it. Raises ValueError if none are left of
    its tiles."""
    found = layout(tiling, size)
    if found.rows < 1 or found.columns < 1:
        name = ref.written or str(ref.path)
        raise ValueError(
            f"image {name!r}: found {size[0]} × {size[1]} pixels, too thin for a row of tokens; cut it, or leave it out"
        )
    return found.tokens


def of_config(config: Any) -> Tiling:
    """By a model's configuration, without pooling."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return Tiling(vision.image_size, side, config.image_grid_pinpoints)


def tiles_of_pass(config: Any, inputs: Mapping[str, Any], views: int) -> Sequence[Tiles | None]:
    """(rows, columns) of the tiles of each picture that a tower reads, from ``tiles`` or the model's ``image_sizes``.
    None: the picture is not tiled, since its conversation has several (``batch_num_images``).

    inputs, views   as ``tower.tiles_of_images`` takes them, which raises where the inputs say neither
    """
    sizes, counts = inputs.get("image_sizes"), inputs.get("batch_num_images")
    if "tiles" in inputs or sizes is None:
        return tiles_of_images(inputs, views)
    alone = [True] * len(sizes) if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]
    tiling = of_config(config)
    return [
        tiles_of(tiling, (int(width), int(height))) if is_alone else None
        for (height, width), is_alone in zip(sizes, alone, strict=True)
    ]


def arithmetic(tiling: Tiling, size: Size, settings: Mapping[str, Any] | None) -> ImageArithmetic:
    """Of a picture of (width, height) pixels that is tiled; ``settings``: of the processor, which may bound its pixels
    (published ones do not)."""
    most = None if settings is None else settings.get("max_pixels")
    fed = _scaled_down(size, most)
    found = layout(tiling, fed)
    height, width = found.canvas
    rows, columns = (count * tiling.side for count in found.tiles)
    smaller = "" if fed == size else f"scaled down to {fed[0]} × {fed[1]}, "
    pooled = "" if tiling.most_tiles is None else ", pooled where too many →"
    words = (
        f"{size[0]} × {size[1]} pixels, {smaller}fitted into {width} × {height}, tiles of {tiling.pixels} → "
        f"{columns} × {rows} patches → {found.columns} × {found.rows} without margins{pooled} "
        f"and {found.rows} newlines, after {tiling.side**2} of an overview = {found.tokens} tokens"
    )
    return ImageArithmetic((width, height), (rows, columns), found.tokens, words)


def bounded(processor: Any, ref: ImageRef, size: Size) -> Size:
    """(width, height) with no more pixels than the processor and the picture itself allow, to the pixel below."""
    bounds = [getattr(processor.image_processor, "max_pixels", None), ref.max_pixels]
    return _scaled_down(size, min((one for one in bounds if one is not None), default=None))


def _scaled_down(size: Size, most: int | None) -> Size:
    """(width, height) with at most so many pixels, to the pixel below."""
    most = math.prod(size) if most is None else most
    scale = min(1.0, math.sqrt(most / math.prod(size)))
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def resized(processor: Any, opened: Sequence[Any], sizes: Sequence[Size]) -> list[Any]:
    """Opened pictures at (width, height) as ``bounded`` says."""
    resample = processor.image_processor.resample
    return [
        one if one.size == size else one.resize(size, resample=resample)
        for one, size in zip(opened, sizes, strict=True)
    ]


def set_most_pixels(processor: Any, name: str, *, min_pixels: int | None, max_pixels: int | None) -> None:
    """``image_processor.max_pixels``: larger pictures are scaled down before a canvas is chosen for them.

    The canvases themselves are in the model's configuration too, and must stay what they are there. Trap: transformers
    keeps the attribute in what it saves and loads, and never reads it (``ignored_elsewhere``).
    """
    if min_pixels is not None:
        raise ValueError(f"--min_pixels: {name} fits every picture into at least one tile; leave it out")
    if max_pixels is not None:
        if max_pixels < 1:
            raise ValueError(f"--max_pixels {max_pixels:,}: expected at least 1")
        processor.image_processor.max_pixels = max_pixels


def ignored_elsewhere(processor: Any, name: str) -> str:
    """Of the bound that ``set_most_pixels`` wrote, now or in the run that saved the processor; "" without one."""
    most = getattr(processor.image_processor, "max_pixels", None)
    if most is None:
        return ""
    return (
        f"--max_pixels {most:,} of {name} holds in this project alone: transformers, vLLM and other libraries ignore "
        f"it and read larger pictures in more tiles than were trained; there, scale pictures down to {most:,} pixels "
        "first"
    )
