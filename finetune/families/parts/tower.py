"""Maps the places of a vision tower's sequences to patches of images.

Towers read patches in orders of their own: in blocks that will be merged, in windows, tile by tile, frame by frame,
with a class token before them. A map over an image needs the order undone.

Tiles of one picture are joined here to one grid of patches, which is the picture's; between patches of two tiles there
is no attention. An overview is a second, coarser view of its picture, so it is an image of its own: of picture i of n
it is image n + i. A video whose frames are read as pictures is joined to a film strip in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import TowerSequence

if TYPE_CHECKING:
    from finetune.families.base import Family, ImageTokens, ModulePaths, Tiles

NO_PATCH = -1  # a class token, a register


def patches_a_side(
    family: Family, config: Any, image: ImageTokens, settings: Mapping[str, Any] | None = None
) -> int | None:
    """How many patches, a side, are merged into one cell? 1 through a resampler, whose cells are the patches; None
    where they do not form a square.

    settings   of the checkpoint's image processor, as ``Family.image_arithmetic`` takes them

    By the family's own arithmetic, not by dividing the tower's patches by the cells: a picture padded to a square has
    patches in its margins, which no cell stands for.
    """
    if image.through_connector:
        return 1
    arithmetic = family.image_arithmetic(config, image.image_size_pixels, settings)
    merged, left = divmod(arithmetic.patches[0] * arithmetic.patches[1], arithmetic.tokens)
    side = isqrt(merged)
    return side if left == 0 and side * side == merged and side > 0 else None


def not_read(paths: ModulePaths, config: Any, *behind: str) -> tuple[str, ...]:
    """Paths of a tower's layers behind the last whose states the model reads (``vision_feature_layer``), and of what
    comes behind its layers: ``behind``, names within the tower.

    transformers' hidden states 0 are the embeddings and i those of layer i − 1. Of three layers, −2 reads state 2: the
    last layer, ``….layers.2``, is not read. Of several numbers, the last state counts.
    """
    layers, asked = config.vision_config.num_hidden_layers, config.vision_feature_layer
    states = [asked] if isinstance(asked, int) else asked
    last = max(state if state >= 0 else layers + 1 + state for state in states)
    within = [f"{paths.vision[0]}.{name}" for name in behind]
    return (*(f"{paths.vision_layers}.{layer}" for layer in range(last, layers)), *within)


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


def tiled(
    tiles: Sequence[Tiles | None],
    side: tuple[int, int],
    *,
    overview_first: bool,
    class_tokens: int = 0,
    images: int | None = None,
) -> list[TowerSequence]:
    """One sequence a tile, a picture's tiles row by row, and its overview before or after them (LLaVA-NeXT, InternVL).

    tiles    (rows, columns) of each picture's tiles; None: it is read as one, without an overview. (frames,) of a
             video: its frames one below another, without an overview
    side     (rows, columns) of a tile's patches
    images   how many the whole pass has, from which overviews are numbered; None: those of this call

    1 × 2 tiles of 2 × 2 patches and their overview: image 0 with patches [0, 1, 4, 5] and [2, 3, 6, 7], image 1 with
    [0, 1, 2, 3].
    """
    places = np.arange(side[0] * side[1])
    count = len(tiles) if images is None else images
    found = []
    for picture, grid in enumerate(tiles):
        rows, columns = laid_out(grid)
        row, column = np.divmod(places, side[1])
        own = [
            _view(
                picture, (row + down * side[0]) * columns * side[1] + column + across * side[1], class_tokens
            )
            for down in range(rows)
            for across in range(columns)
        ]
        has_overview = grid is not None and len(grid) == 2
        overview = [_view(count + picture, places, class_tokens, is_overview=True)] if has_overview else []
        found += [*overview, *own] if overview_first else [*own, *overview]
    return found


def laid_out(tiles: Tiles | None) -> tuple[int, int]:
    """(rows, columns) of what the tower reads; a video's frames are below one another."""
    if tiles is None:
        return 1, 1
    return tiles if len(tiles) == 2 else (tiles[0], 1)


def _view(image: int, patch: np.ndarray, class_tokens: int, *, is_overview: bool = False) -> TowerSequence:
    patch = np.concatenate([np.full(class_tokens, NO_PATCH), patch])
    return TowerSequence(np.full(len(patch), image), patch, is_overview)


def tiles_of_images(inputs: Mapping[str, Any], views: int) -> Sequence[Tiles | None]:
    """The tiles of each image, for towers whose model does not know which views belong to one image.

    inputs   as ``Family.tower_sequences`` gets them
    views    tiles, overviews and frames that the tower reads

    Raises ValueError for several views without ``tiles`` in the inputs.
    """
    if "tiles" in inputs:
        return inputs["tiles"]
    if views == 1:
        return [None]
    raise ValueError(
        f"rows of the vision tower: found {views} tiles and overviews, and no tiles that group them by "
        "picture; give tiles=[image.tiles for image in encoded.images], or [(rows, columns), …] of each "
        "picture's tiles, None if it is read as one, (frames,) of a video"
    )


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
