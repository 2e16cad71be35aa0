"""In which order image tokens are kept when a model is to see only a share of them: pure functions of arrays."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from finetune.families.base import ImageTokens

CHUNK_ROWS = 1024


class Part(NamedTuple):
    """Tokens that are ranked among themselves: a picture's, or its overview's. ``start``: the place of its first token
    in the picture's ``all_positions``."""

    picture: int
    positions: np.ndarray
    start: int


Ranking = tuple[np.ndarray, ...]
"""For each part its places in the sequence, best first."""


def parts_of(images: Sequence[ImageTokens]) -> Iterator[Part]:
    """Pictures in tiles have two parts, the tiles' tokens and the overview's: each keeps its share, so that both views
    of a picture lose alike."""
    for at, image in enumerate(images):
        yield Part(at, image.positions, 0)
        if image.overview is not None:
            yield Part(at, image.overview.positions, len(image.positions))


def ranked(part: Part, order: Int[np.ndarray, " tokens"]) -> np.ndarray:
    """A part's places in the sequence in an order."""
    return np.asarray(part.positions)[order]


def kept(ranking: Ranking, share: float) -> Int[np.ndarray, " tokens"]:
    """The places in the sequence that a share of each part is, in order."""
    return np.sort(np.concatenate([part[: count_kept(len(part), share)] for part in ranking]))


def count_kept(tokens: int, share: float) -> int:
    """How many of so many tokens are a share: rounded half up, at least one.

    11 % of 49 tokens are 5, 50 % of 5 are 3, 10 % of 3 are 1.

    Raises ValueError for a share outside (0, 1], and for no tokens.
    """
    if not 0 < share <= 1:
        raise ValueError(f"found share {share:g}, expected one above 0 and at most 1, such as 0.33")
    if tokens < 1:
        raise ValueError("found no image tokens, expected at least one")
    return min(max(math.floor(share * tokens + 0.5), 1), tokens)


def best_first(scores: Float[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """Indices by falling score; among equals the first comes first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def random_order(tokens: int, *, name: str, draw: int) -> Int[np.ndarray, " tokens"]:
    """A random order of so many tokens; the same name and draw give the same one everywhere."""
    return np.random.default_rng([zlib.crc32(name.encode()), draw]).permutation(tokens)


def divprune_order(features: Float[np.ndarray, "tokens width"]) -> Int[np.ndarray, " tokens"]:
    """Indices so that the first n are as unlike each other as a greedy choice makes them, for every n.

    The first is the token whose nearest neighbour is farthest away; each next one is farthest from the nearest of those
    chosen; among equals the first comes first. Distance is 1 − cosine, in fp64. Of the directions 0°, 12°, 90°, 100°,
    180° the order is 180° (its nearest neighbour is 80° away, those of the others 10° or 12°), 0°, 90°, 12°, 100°.

    Differs from the paper in nothing but the order: it keeps the set, here every prefix is the set of its size.

    Raises ValueError for features that are not finite, and for none.
    Source: DivPrune, Alvar et al., CVPR 2025 (arXiv 2503.02175), algorithm 1.
    """
    features = np.asarray(features, np.float64)
    if not len(features) or not np.isfinite(features).all():
        raise ValueError(f"DivPrune: found {len(features)} tokens, expected at least one, all finite")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    chosen = [int(np.argmax(_nearest_neighbours(unit)))]
    nearest = 1 - unit @ unit[chosen[0]]
    for _ in range(len(unit) - 1):
        nearest[chosen[-1]] = -np.inf  # distances are −1e-16 at the least
        following = int(np.argmax(nearest))
        chosen.append(following)
        nearest = np.minimum(nearest, 1 - unit @ unit[following])
    return np.array(chosen)


def _nearest_neighbours(unit: Float[np.ndarray, "tokens width"]) -> Float[np.ndarray, " tokens"]:
    """Each token's distance to the nearest other one; a stretch of rows at a time."""
    found = np.empty(len(unit))
    for start in range(0, len(unit), CHUNK_ROWS):
        distances = 1 - unit[start : start + CHUNK_ROWS] @ unit.T
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        found[start : start + CHUNK_ROWS] = distances.min(axis=1)
    return found
