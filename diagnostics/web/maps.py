"""A ``Look`` as maps and numbers: pure functions of kept rows, fast enough for a slider; no model is asked.

``layer`` is a language layer of ``look.layers`` (of the tower, where the part is "vision"), ``head`` a head of it or
``MEAN``, ``tokens`` indexes of ``look.tokens``: of several, the mean of their rows is read. What a token looked at is
told by the row that wrote it (``Look.row_of``). ``with_sinks=False`` takes attention sinks out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from diagnostics.geometry import Box
from diagnostics.web.look import Look

MEAN = -1
Part: TypeAlias = Literal["language", "connector", "vision"]


class TextMap(NamedTuple):
    """Which tokens look at which, within a window.

    rows      Float32[queries, keys]: shares of attention; rows sum to at most 1, the rest lies outside the window
    queries   Int[queries]: the tokens that look (those with a row)
    keys      Int[keys]: the tokens of the window
    """

    rows: Float[np.ndarray, "queries keys"]
    queries: Int[np.ndarray, " queries"]
    keys: Int[np.ndarray, " keys"]


class ImageMap(NamedTuple):
    """Where in a picture.

    cells      Float64[rows, columns]: shares of the attention to this picture, sum 1 (all 0 where there is none);
               cells have one size and fill the picture
    mass       share of the whole row that lies on this picture, 0 to 1 (1 for connector and vision)
    image      which picture
    token      the token that looks; None: several, or a part without tokens
    """

    cells: Float[np.ndarray, "rows columns"]
    mass: float
    image: int
    token: int | None


class Overview(NamedTuple):
    """Which layers and heads look there?

    values   Float64[layers, heads], in the order of ``look.layers``
    unit     "share": of the whole row, on the picture, 0 to 1; "times": enrichment of the box, 1 is even
    """

    values: Float[np.ndarray, "layers heads"]
    unit: Literal["share", "times"]


class BoxNumbers(NamedTuple):
    """A box by layer and head, in the order of ``look.layers``.

    mass         Float64[layers, heads]: share of the attention to the picture that lies in the box, 0 to 1
    enrichment   Float64[layers, heads]: that, over the box's share of the picture; 1 is even
    """

    mass: Float[np.ndarray, "layers heads"]
    enrichment: Float[np.ndarray, "layers heads"]


def text_map(
    look: Look, layer: int, head: int, window: tuple[int, int], *, with_sinks: bool = True
) -> TextMap:
    """Which tokens of the window (start, end) look at which of them? Each by its own row, as the model has it."""
    raise NotImplementedError


def image_map(
    look: Look,
    layer: int,
    head: int,
    tokens: Sequence[int],
    image: int = 0,
    part: Part = "language",
    with_sinks: bool = True,
) -> ImageMap:
    """Where in the picture?

    language    did the tokens look; through a resampler, composed with what its queries read
    connector   do the resampler's queries look, on the whole (layer and tokens are not read)
    vision      do the patches of the tower look, on the whole, in layer ``layer`` (tokens are not read)
    """
    raise NotImplementedError


def cross_maps(
    look: Look, layer: int, head: int, tokens: Sequence[int], *, with_sinks: bool = True
) -> list[ImageMap]:
    """One map for each token and picture, token by token: ``image_map`` of each."""
    raise NotImplementedError


def overview(
    look: Look, tokens: Sequence[int], image: int = 0, box: Box | None = None, *, with_sinks: bool = True
) -> Overview:
    """Which layers and heads look at the picture; with a box (pixels of the original), at the box?"""
    raise NotImplementedError


def who_looks(
    look: Look, layer: int, head: int, patch: int, image: int = 0, *, with_sinks: bool = True
) -> Float[np.ndarray, " tokens"]:
    """How much does each token look at one cell of the picture (row-major)? Share of its whole row, as ``row_of``
    reads it; NaN where a token has no row."""
    raise NotImplementedError


def box_numbers(
    look: Look, box: Box, tokens: Sequence[int] | None = None, image: int = 0, *, with_sinks: bool = True
) -> BoxNumbers:
    """Mass and enrichment of a box (pixels of the original picture) by layer and head.

    tokens   whose rows; None: the answer's
    """
    raise NotImplementedError
