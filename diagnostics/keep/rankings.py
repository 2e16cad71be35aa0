"""The orders in which a probe's image tokens are kept, and which tokens a share of them is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.measures.token_orders import (
    Part,
    Ranking,
    best_first,
    count_kept,
    divprune_order,
    parts_of,
    random_order,
    ranked,
)
from diagnostics.records.probes import Probe
from finetune.families import ImageTokens
from finetune.families.parts.coverage import region_coverage, token_weights

MAP, FASTV, DIVPRUNE, TOWER = "map", "fastv", "divprune", "tower"
RANDOM, REGION, LEAST = "random", "region", "least"
ORDERS = (MAP, FASTV, TOWER, DIVPRUNE, RANDOM, REGION, LEAST)
BY_ATTENTION = (MAP, FASTV, TOWER)
"""Orders that are judged: what the model looks at. The others are what they have to beat, and two ends."""
FIRST_TOKEN = (MAP, FASTV)
"""Orders by attention of the language model, where the first image token may be a sink."""


class Seen(NamedTuple):
    """What one reading of a probe shows of its image tokens.

    answer_row    Float[keys]: attention of the answer query in the key layer, mean over heads
    prompt_row    Float[keys]: of the prompt's last token in FastV's layer
    features      Float[keys, width]: what enters the first language layer; at image tokens, the connector's outputs
    connector     for each picture Float[tokens, cells], what a resampler's queries read; () without one
    tower         for each picture Float[tokens]: attention that its places receive in the tower, for each token of
                  ``all_positions``; None where it was not measured
    """

    answer_row: np.ndarray
    prompt_row: np.ndarray
    features: np.ndarray
    connector: tuple[np.ndarray, ...]
    tower: tuple[np.ndarray, ...] | None


def rankings(
    probe: Probe, images: Sequence[ImageTokens], seen: Seen, *, draws: int
) -> dict[str, list[Ranking]]:
    """Order → its rankings: one, or as many random ones as ``draws``. Left out is what was not measured: the region's
    order of a probe without regions, the tower's where its patches are not those of the cells."""
    parts = list(parts_of(images))
    found = {
        MAP: [tuple(ranked(part, best_first(seen.answer_row[part.positions])) for part in parts)],
        FASTV: [tuple(ranked(part, best_first(seen.prompt_row[part.positions])) for part in parts)],
        DIVPRUNE: [tuple(ranked(part, divprune_order(seen.features[part.positions])) for part in parts)],
        LEAST: [tuple(ranked(part, best_first(-seen.answer_row[part.positions])) for part in parts)],
        RANDOM: [_random(probe, parts, draw) for draw in range(draws)],
    }
    if seen.tower is not None:
        found[TOWER] = [tuple(ranked(part, best_first(_of(part, seen.tower))) for part in parts)]
    weights = region_weights(probe, images, seen.connector)
    if weights is not None:
        found[REGION] = [tuple(_region_first(part, weights, seen.answer_row) for part in parts)]
    return {name: found[name] for name in ORDERS if name in found}


def region_weights(
    probe: Probe, images: Sequence[ImageTokens], connector: Sequence[np.ndarray]
) -> Float[np.ndarray, " tokens"] | None:
    """How much of the main region each of the first picture's tokens stands for, in the order of ``all_positions``: the
    share of its cell that is covered, or the share of a resampler's query that reads it. None without a region."""
    if probe.main_region is None or not images:
        return None
    coverage = region_coverage(probe.regions[probe.main_region], images[0])
    return token_weights(coverage, images[0], connector[0] if connector else None)


def with_first_token(ranking: Ranking, share: float, first: int, *, keep: bool) -> np.ndarray:
    """``kept``, with the first image token kept whatever its rank, or dropped; as many tokens either way.

    Where a part is one token, or all are kept, it cannot be dropped and stays.
    """
    chosen = []
    for part in ranking:
        count = count_kept(len(part), share)
        others = part[part != first]
        if first in part and keep:
            chosen.append(np.concatenate([[first], others[: count - 1]]))
        else:
            chosen.append((others if count <= len(others) else part)[:count])
    return np.sort(np.concatenate(chosen))


def _random(probe: Probe, parts: Sequence[Part], draw: int) -> Ranking:
    return tuple(
        ranked(part, random_order(len(part.positions), name=f"{probe.id}/{at}", draw=draw))
        for at, part in enumerate(parts)
    )


def _of(part: Part, by_picture: Sequence[np.ndarray]) -> np.ndarray:
    return by_picture[part.picture][part.start : part.start + len(part.positions)]


def _region_first(part: Part, weights: np.ndarray, row: np.ndarray) -> np.ndarray:
    """By what lies in the region; the rest, and pictures without regions, as the key layer's map has them."""
    looked_at = row[part.positions]
    if part.picture > 0:
        return ranked(part, best_first(looked_at))
    own = weights[part.start : part.start + len(part.positions)]
    return ranked(part, np.lexsort((-looked_at, -own)))
