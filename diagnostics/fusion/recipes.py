"""One map out of several: language layers, connector, vision tower, resolutions. Pure functions of arrays.

Every map is a distribution over cells: at least 0, sum 1. One that is all 0 (a row that looked at none of the picture)
has no say. Whether a fused map is better than a single one is not known here: ``diagnostics.fusion.judging``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from diagnostics.measures.geometry import resampled
from finetune.families.base import ImageTokens

PRODUCT_EPS = 0.01  # of a flat map's share; product_map says why

Map: TypeAlias = Float[np.ndarray, " cells"]


@dataclass(frozen=True)
class View:
    """What one reading of a picture showed. A picture read at several sizes has several, each with its own cells.

    name            "" for the reading that all is measured on; else what tells it apart: "at 0.5"
    image           its cells, in pixels of the original picture
    layers          language layer → Float[cells]: where the answer query looked, mean over heads
    connector       Float[cells]: what a resampler's queries read, on the whole; None if token i is cell i
    tower           layer of the vision tower → Float[cells]: what its patches look at, on the whole
    through_tower   language layer → Float[cells]: its map carried through the tower's layers; empty without ``tower``
    """

    name: str
    image: ImageTokens
    layers: Mapping[int, Map]
    connector: Map | None
    tower: Mapping[int, Map]
    through_tower: Mapping[int, Map]


class Lessons(NamedTuple):
    """What recipes take from the pictures that they are chosen on, never from those that they are judged on.

    layer     the language layer whose map enriches the region most
    weights   language layer → its weight, sum 1
    """

    layer: int
    weights: Mapping[int, float]


class Recipe(NamedTuple):
    """One way of making one map out of many.

    formula   for readers, in words and symbols
    source    the paper it follows, or "ours"
    needs     what a model must have for it, in words; "" for nothing
    fits      can it be made of these views?
    fuse      views, lessons → Float[cells of the first view]
    """

    formula: str
    source: str
    needs: str
    fits: Callable[[Sequence[View]], bool]
    fuse: Callable[[Sequence[View], Lessons], Map]


# ---------------------------------------------------------------- ways of joining maps


def mean_map(maps: Sequence[Map], weights: Sequence[float] | None = None) -> Map:
    """Σ w p / Σ w: a cell counts where any map looks. Sum 1, or all 0 where no map of any weight looks anywhere.

    [.8, .2] and [.4, .6] give [.6, .4]; with weights 3 and 1, [.7, .3].

    Source: linear opinion pool, Stone 1961, "The opinion pool".
    """
    stack = distributions(maps)
    given = np.ones(len(stack)) if weights is None else np.asarray(weights, np.float64)
    return distributions([given @ stack])[0]


def product_map(maps: Sequence[Map]) -> Map:
    """∏ (p + ε)^(1/n) − ε, then Σ = 1: a cell counts where all maps look.

    The geometric mean, so that one map fused with itself stays as it is and more maps are not sharper by their number
    alone. ε is a hundredth of a flat map's share: without it one layer's 0 (rows underflow) would veto a cell, and
    maps without a cell in common would have no product. [.8, .2] and [.2, .8] give [.5, .5]; [.9, .1] and [.5, .5]
    give, without ε, √.45 : √.05 = [.75, .25].

    Source: logarithmic opinion pool, Genest & Zidek 1986, "Combining probability distributions"; the ε is ours.
    """
    stack = distributions(maps)
    looking = stack[stack.any(1)]
    if not len(looking):
        return np.zeros(stack.shape[1])
    eps = PRODUCT_EPS / stack.shape[1]
    joined = np.exp(np.log(looking + eps).mean(0)) - eps
    return distributions([np.maximum(joined, 0.0)])[0]


def through_step(
    maps: Float[np.ndarray, "maps patches"], read: Float[np.ndarray, "maps patches"]
) -> np.ndarray:
    """One layer of the tower towards the pixels: (v + v A) / 2, ``read`` being v A. Rows sum to 1.

    A feature at a patch is made of what the patch had (the residual path) and of what its row of A read.

    Source: rollout, Abnar & Zuidema 2020, arXiv 2005.00928, section 3; from a map instead of one token.
    """
    return (distributions(maps) + distributions(read)) / 2


def distributions(maps: Sequence[Map] | Float[np.ndarray, "maps cells"]) -> Float[np.ndarray, "maps cells"]:
    """Each map over its sum, float64; all 0 stays.

    Raises ValueError for negative or non-finite numbers: a map holds shares.
    """
    stack = np.stack([np.asarray(one, np.float64) for one in maps])
    if not np.isfinite(stack).all() or (stack < 0).any():
        raise ValueError(
            "fusion: found negative or non-finite numbers in a map, expected shares of attention"
        )
    total = stack.sum(1, keepdims=True)
    return np.divide(stack, total, out=np.zeros_like(stack), where=total > 0)


# ---------------------------------------------------------------- several readings of one picture


def on_first(views: Sequence[View], cells: Map, view: View) -> Map:
    """A view's map over the cells of the first, by area, sum 1."""
    if view is views[0]:
        return distributions([cells])[0]
    moved = resampled(np.asarray(cells, np.float64), view.image.cell_boxes_pixels, views[0].image)
    return distributions([moved])[0]


def single_maps(views: Sequence[View]) -> dict[str, Map]:
    """Every map that is there without any fusion, over the cells of the first view, by the extractor's names:
    ``layer_N``, ``visual_attn``, ``vision_layer_N``; of further views with the view's name behind it."""
    return {
        " ".join(filter(None, (name, view.name))): on_first(views, cells, view)
        for view in views
        for name, cells in _parts(view)
    }


def _parts(view: View) -> Iterator[tuple[str, Map]]:
    yield from ((f"layer_{layer}", cells) for layer, cells in view.layers.items())
    if view.connector is not None:
        yield "visual_attn", view.connector
    yield from ((f"vision_layer_{layer}", cells) for layer, cells in view.tower.items())


# ---------------------------------------------------------------- recipes


def _layers_mean(views: Sequence[View], _: Lessons) -> Map:
    return mean_map([*views[0].layers.values()])


def _layers_product(views: Sequence[View], _: Lessons) -> Map:
    return product_map([*views[0].layers.values()])


def _layers_weighted(views: Sequence[View], lessons: Lessons) -> Map:
    layers = views[0].layers
    return mean_map([*layers.values()], [lessons.weights[layer] for layer in layers])


def _scales(views: Sequence[View], lessons: Lessons) -> list[Map]:
    """The chosen language layer, the connector, and the tower: one map of each that is there."""
    first = views[0]
    tower = [mean_map([*first.tower.values()])] if first.tower else []
    return [first.layers[lessons.layer], *([] if first.connector is None else [first.connector]), *tower]


def _scales_mean(views: Sequence[View], lessons: Lessons) -> Map:
    return mean_map(_scales(views, lessons))


def _scales_product(views: Sequence[View], lessons: Lessons) -> Map:
    return product_map(_scales(views, lessons))


def _layer_through_tower(views: Sequence[View], lessons: Lessons) -> Map:
    return on_first(views, views[0].through_tower[lessons.layer], views[0])


def _layers_through_tower(views: Sequence[View], _: Lessons) -> Map:
    return mean_map([*views[0].through_tower.values()])


def _resolutions_layer(views: Sequence[View], lessons: Lessons) -> Map:
    return mean_map([on_first(views, view.layers[lessons.layer], view) for view in views])


def _resolutions_mean(views: Sequence[View], _: Lessons) -> Map:
    return mean_map([on_first(views, mean_map([*view.layers.values()]), view) for view in views])


def _resolutions_product(views: Sequence[View], lessons: Lessons) -> Map:
    return product_map([on_first(views, view.layers[lessons.layer], view) for view in views])


def _has_layers(views: Sequence[View]) -> bool:
    return len(views[0].layers) > 1


def _has_scales(views: Sequence[View]) -> bool:
    return views[0].connector is not None or bool(views[0].tower)


def _has_tower(views: Sequence[View]) -> bool:
    return bool(views[0].through_tower)


def _has_resolutions(views: Sequence[View]) -> bool:
    return len(views) > 1


_POOL, _LOG_POOL = "Stone 1961, linear opinion pool", "Genest & Zidek 1986, logarithmic opinion pool"
_ROLLOUT = "as rollout, Abnar & Zuidema 2020, arXiv 2005.00928, section 3"
_SCALES = "as multi-scale inputs in Chen et al. 2017, arXiv 1606.00915, who take the maximum"
_TWO_LAYERS = "more than one language layer with attention"
_CONNECTOR_OR_TOWER = "a connector or tower whose attention is over the picture's patches"
_TOWER = "a tower whose attention is over the picture's patches"
_SIZES = "the picture read at more than one resolution (--resolutions)"

RECIPES: dict[str, Recipe] = {
    "layers_mean": Recipe("Σ p_l / n over language layers", _POOL, _TWO_LAYERS, _has_layers, _layers_mean),
    "layers_product": Recipe(
        "∏ (p_l + ε)^(1/n) − ε over language layers", _LOG_POOL, _TWO_LAYERS, _has_layers, _layers_product
    ),
    "layers_weighted": Recipe(
        "Σ w_l p_l, w_l ∝ max(enrichment of layer l − 1, 0) on the choosing pictures",
        f"{_POOL}; the weights are ours",
        _TWO_LAYERS,
        _has_layers,
        _layers_weighted,
    ),
    "scales_mean": Recipe(
        "mean of the best language layer, the connector's map and the tower's",
        _POOL,
        _CONNECTOR_OR_TOWER,
        _has_scales,
        _scales_mean,
    ),
    "scales_product": Recipe(
        "product of the best language layer, the connector's map and the tower's",
        _LOG_POOL,
        _CONNECTOR_OR_TOWER,
        _has_scales,
        _scales_product,
    ),
    "layer_through_tower": Recipe(
        "v ← (v + v A) / 2 through the tower's layers, last first, from the best language layer",
        _ROLLOUT,
        _TOWER,
        _has_tower,
        _layer_through_tower,
    ),
    "layers_through_tower": Recipe(
        "the same from the mean of all language layers", _ROLLOUT, _TOWER, _has_tower, _layers_through_tower
    ),
    "resolutions_layer": Recipe(
        "mean over resolutions of the best language layer",
        _SCALES,
        _SIZES,
        _has_resolutions,
        _resolutions_layer,
    ),
    "resolutions_layers": Recipe(
        "mean over resolutions of the mean of all language layers",
        _SCALES,
        _SIZES,
        _has_resolutions,
        _resolutions_mean,
    ),
    "resolutions_product": Recipe(
        "product over resolutions of the best language layer",
        _LOG_POOL,
        _SIZES,
        _has_resolutions,
        _resolutions_product,
    ),
}


def fused(name: str, views: Sequence[View], lessons: Lessons) -> Map:
    """The recipe's map of one picture, over the cells of the first view; sum 1.

    Raises ValueError for a recipe that does not exist, or that these views cannot be put through.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if not recipe.fits(views):
        raise ValueError(f"recipe {name}: needs {recipe.needs}; these views have none")
    return recipe.fuse(views, lessons)


def fitting(views_of_probes: Sequence[Sequence[View]]) -> tuple[str, ...]:
    """The recipes that every picture can be put through, in the order of ``RECIPES``."""
    return tuple(name for name, one in RECIPES.items() if all(one.fits(views) for views in views_of_probes))
