"""Maps and numbers from a ``Trace``: pure functions of its rows, without the model, fast enough for a slider.

``layer`` is a language layer of ``trace.layers`` (a tower layer for the part "vision"), ``head`` one of its heads or
``MEAN``, ``tokens`` indices into ``trace.tokens``; for several tokens their rows are averaged. A token's attention is
the row that predicted it (``Trace.row_of``). ``with_sinks=False`` removes attention sinks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from diagnostics.measures.attention import visual_share
from diagnostics.measures.geometry import cells_from_row
from diagnostics.measures.sinks import without_sinks
from diagnostics.web.trace import Trace
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import Box, region_coverage, token_weights

MEAN = -1
Part: TypeAlias = Literal["language", "connector", "vision"]


class TextMap(NamedTuple):
    """Attention between the tokens of a window.

    rows      Float32[queries, keys]: shares of attention; rows sum to at most 1, the rest is outside the window
    queries   Int[queries]: the tokens that attend (those with a row)
    keys      Int[keys]: the tokens of the window
    """

    rows: Float[np.ndarray, "queries keys"]
    queries: Int[np.ndarray, " queries"]
    keys: Int[np.ndarray, " keys"]


class ImageMap(NamedTuple):
    """Attention over a picture.

    cells      Float64[rows, columns]: shares of the attention to this picture, sum 1 (all 0 if there is none), on the
               grid of ``ImageTokens``; for the part "vision" on the tower's patches, which may be finer
    mass       share of the whole row that lies on this picture, 0 to 1 (1 for connector and vision)
    image      index of the picture
    token      the token that attends; None: several, or a part without tokens
    """

    cells: Float[np.ndarray, "rows columns"]
    mass: float
    image: int
    token: int | None


class Overview(NamedTuple):
    """Attention to a picture or box by layer and head.

    values   Float64[layers, heads], in the order of ``trace.layers``
    unit     "share": of the whole row, on the picture, 0 to 1; "times": enrichment of the box, 1 is uniform
    """

    values: Float[np.ndarray, "layers heads"]
    unit: Literal["share", "times"]


class BoxNumbers(NamedTuple):
    """Attention to a box by layer and head, in the order of ``trace.layers``.

    mass         Float64[layers, heads]: share of the attention to the picture that lies in the box, 0 to 1
    enrichment   Float64[layers, heads]: ``mass`` over the box's share of the picture; 1 is uniform
    mean_mass, mean_enrichment   Float64[layers]: of the mean row over heads, which is the map that is drawn: a head
                 counts by how much it looks at the picture
    """

    mass: Float[np.ndarray, "layers heads"]
    enrichment: Float[np.ndarray, "layers heads"]
    mean_mass: Float[np.ndarray, " layers"]
    mean_enrichment: Float[np.ndarray, " layers"]


def text_map(
    trace: Trace, layer: int, head: int, window: tuple[int, int], *, with_sinks: bool = True
) -> TextMap:
    """Attention among the tokens of the window (start, end): each token's own row, not the row that predicted it."""
    start, end = window
    if not 0 <= start < end <= len(trace.tokens):
        raise ValueError(
            f"window {start} to {end}: expected a range within the {len(trace.tokens)} tokens, start before end"
        )
    places = np.flatnonzero((trace.positions >= start) & (trace.positions < end))
    rows = _rows(trace, layer, head, places, with_sinks=with_sinks)[:, start:end]
    return TextMap(rows, trace.positions[places], np.arange(start, end))


def image_map(
    trace: Trace,
    layer: int,
    head: int,
    tokens: Sequence[int],
    image: int = 0,
    part: Part = "language",
    with_sinks: bool = True,
    *,
    patch: int | None = None,
) -> ImageMap:
    """Attention over a picture, in one part of the model.

    language    of the tokens; through a resampler, composed with its queries' attention
    connector   of the resampler's queries, averaged (``layer`` and ``tokens`` are ignored)
    vision      of the tower's patches in layer ``layer``: averaged, or of one patch, ``patch`` (``tokens`` are ignored)
    """
    if part == "connector":
        return _connector_map(trace, head, image)
    if part == "vision":
        return _vision_map(trace, layer, head, image, patch)
    seen = _image(trace, image)
    row = _rows(trace, layer, head, _places(trace, tokens), with_sinks=with_sinks).mean(0)
    cells = cells_from_row(row, seen, _connector(trace, image)).reshape(seen.grid)
    one = tokens[0] if len(tokens) == 1 else None
    return ImageMap(cells, float(visual_share(row, seen.all_positions)), image, one)


def overview(
    trace: Trace, tokens: Sequence[int], image: int = 0, box: Box | None = None, *, with_sinks: bool = True
) -> Overview:
    """Attention to the picture by layer and head; with a box (pixels of the original), its enrichment."""
    if box is not None:
        return Overview(box_numbers(trace, box, tokens, image, with_sinks=with_sinks).enrichment, "times")
    rows = _rows_by_layer(trace, tokens, with_sinks=with_sinks)
    return Overview(visual_share(rows, _image(trace, image).all_positions), "share")


def who_looks(
    trace: Trace, layer: int, head: int, patch: int, image: int = 0, *, with_sinks: bool = True
) -> Float[np.ndarray, " tokens"]:
    """Each token's attention to one cell of the picture (row-major): share of its whole row (``row_of``), NaN for
    tokens without a row."""
    seen = _image(trace, image)
    cells = seen.grid[0] * seen.grid[1]
    if not 0 <= patch < cells:
        raise ValueError(f"patch {patch} does not exist; picture {image} has {cells}, counted from 0")
    places = np.arange(len(trace.positions))
    rows = _rows(trace, layer, head, places, with_sinks=with_sinks)[:, seen.all_positions]
    one = (np.arange(cells) == patch).astype(np.float32)
    shares = rows @ token_weights(one, seen, _connector(trace, image))
    has_row = [trace.has_row(token) for token in range(len(trace.tokens))]
    found = np.full(len(trace.tokens), np.nan)
    found[has_row] = shares[[trace.row_of(int(token)) for token in np.flatnonzero(has_row)]]
    return found


def box_numbers(
    trace: Trace, box: Box, tokens: Sequence[int] | None = None, image: int = 0, *, with_sinks: bool = True
) -> BoxNumbers:
    """Mass and enrichment of a box (pixels of the original picture) by layer and head.

    Equal to ``region_mass`` and ``enrichment`` of ``diagnostics.measures.attention`` applied to ``cells_from_row``, but
    the box is mapped back through connector and overview once, instead of mapping every row: a · (R w) for (a R) · w.

    tokens   whose rows to average; None: the answer's

    Raises ValueError for a box outside the picture, or without area.
    """
    seen = _image(trace, image)
    coverage = region_coverage([box], seen)
    if not coverage.any():
        width, height = seen.image_size_pixels
        raise ValueError(
            f"box {[round(float(edge)) for edge in box]}: does not overlap the picture, expected x0 < x1 and y0 < y1 "
            f"within {width} × {height} pixels"
        )
    rows = _rows_by_layer(trace, trace.answer if tokens is None else tokens, with_sinks=with_sinks)
    on_image = rows[..., seen.all_positions].astype(np.float64)
    inside, total = (
        on_image @ token_weights(weights, seen, _connector(trace, image))
        for weights in (coverage, np.ones_like(coverage))
    )
    mass, mean_mass = (
        np.divide(of_box, of_all, out=np.zeros_like(of_box), where=of_all > 0)
        for of_box, of_all in ((inside, total), (inside.sum(-1), total.sum(-1)))
    )
    share = coverage.mean()
    return BoxNumbers(mass, mass / share, mean_mass, mean_mass / share)


def _rows(
    trace: Trace, layer: int, head: int, places: Int[np.ndarray, " chosen"], *, with_sinks: bool
) -> Float[np.ndarray, "chosen keys"]:
    """Kept rows of a language layer: of one head, or the mean over heads."""
    if layer not in trace.rows:
        raise ValueError(f"layer {layer} was not captured; expected one of {list(trace.layers)}")
    rows = _one_head(trace.rows[layer][:, places], head, f"layer {layer}")
    return rows if with_sinks else without_sinks(rows, trace.sinks[trace.layers.index(layer)])


def _rows_by_layer(
    trace: Trace, tokens: Sequence[int], *, with_sinks: bool
) -> Float[np.ndarray, "layers heads keys"]:
    """The mean of the tokens' rows in every captured layer and head."""
    places = _places(trace, tokens)
    rows = np.stack([trace.rows[layer][:, places].mean(1, dtype=np.float32) for layer in trace.layers])
    return rows if with_sinks else without_sinks(rows, trace.sinks[:, None])


def _places(trace: Trace, tokens: Sequence[int]) -> Int[np.ndarray, " tokens"]:
    if not tokens:
        raise ValueError("found no tokens, expected at least one: select a token of the answer")
    return np.array([trace.row_of(token) for token in tokens])


def _one_head(
    rows: Float[np.ndarray, "heads *queries keys"], head: int, what: str
) -> Float[np.ndarray, "*queries keys"]:
    if head == MEAN:
        return rows.mean(0, dtype=np.float32)
    if not 0 <= head < len(rows):
        raise ValueError(f"{what} has no head {head}; expected 0 to {len(rows) - 1}, or {MEAN} for the mean")
    return rows[head].astype(np.float32)


def _image(trace: Trace, image: int) -> ImageTokens:
    if not 0 <= image < len(trace.images):
        raise ValueError(
            f"picture {image} does not exist; the conversation has {len(trace.images)}, counted from 0"
        )
    return trace.images[image].tokens


def _connector(trace: Trace, image: int) -> Float[np.ndarray, "tokens cells"] | None:
    """The connector's attention for each of the picture's tokens, mean over heads; None if token i is cell i."""
    return trace.connector_means[image] if trace.images[image].tokens.through_connector else None


def _connector_map(trace: Trace, head: int, image: int) -> ImageMap:
    grid = _image(trace, image).grid
    if not trace.connector:
        raise ValueError(
            "this model's connector has no attention: its image tokens are cells of the picture; select language or "
            "vision"
        )
    return ImageMap(
        _shares(_one_head(trace.connector[image], head, "the connector").mean(0), grid), 1.0, image, None
    )


def _vision_map(trace: Trace, layer: int, head: int, image: int, patch: int | None) -> ImageMap:
    grid = _image(trace, image).grid
    if layer not in trace.vision:
        kept = (
            f"expected one of {sorted(trace.vision)}"
            if trace.vision
            else "none was: not in this mode, too many patches, or no whole number of patches per cell"
        )
        raise ValueError(f"layer {layer} of the vision tower was not captured; {kept}")
    rows = trace.vision[layer][image]
    if patch is None:
        rows = trace.vision_means[layer][image][:, None]
    elif not 0 <= patch < rows.shape[1]:
        raise ValueError(f"patch {patch} does not exist; picture {image} has {rows.shape[1]}, counted from 0")
    else:
        rows = rows[:, [patch]]
    found = _one_head(rows, head, f"layer {layer} of the vision tower")[0]
    finer = round((len(found) / (grid[0] * grid[1])) ** 0.5)  # patches per side of a cell
    return ImageMap(_shares(found, (grid[0] * finer, grid[1] * finer)), 1.0, image, None)


def _shares(cells: Float[np.ndarray, " cells"], grid: tuple[int, int]) -> Float[np.ndarray, "rows columns"]:
    return (cells.astype(np.float64) / max(float(cells.sum()), 1e-12)).reshape(grid)
