"""The connector in closed form: which tokens would say what the tower sees, and where? One ridge regression.

    features of a cell (2 × 2 patches, normed)  →  embedding of the name of what is there
                                                   + embeddings of above or below

Names and places are words that the language model knows: a cell of a frog at the top becomes a token between "frog"
and "above". Training from there learns to read, not to see. Seconds, in place of the hours of a language loss. Left and
right are not said: the tower does not know whether it sees a picture's left tile or its right one.

The connector is no linear map but two linear layers with GELU between them; GELU(x) - GELU(-x) = x, so that half its
units carry x, the other half -x, and what comes out is the linear map, up to its rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from finetune.families.base import ImageTokens
from finetune.families.internvl import tiled_tokens
from finetune.families.parts.coverage import region_coverage
from finetune.realcase.catalogue import LANDMARKS, THINGS
from finetune.realcase.scenes import Pictures, Pixels, landmark_view, side_by_side

PENALTY = 300.0
"""Of the ridge, for standardised features. 30 to 3000 name held-out things alike."""
COVERED = 0.6
"""Least share of a cell that a box must cover for the cell to be of the thing in it."""
PLACE = 0.7
"""Strength of above and below beside that of a name."""
NOTHING = "."
"""The word for cells of the background."""
PLACES = ((" above", "上"), (" below", "下"))
BATCH = 16


class Example(NamedTuple):
    """A picture's cells, and what is in them."""

    features: torch.Tensor
    """Float[tokens, width]: what enters the connector, normed; tile after tile, and the overview."""
    boxes: dict[str, list[Pixels]]
    """English name → boxes in pixels."""
    size: tuple[int, int]
    """(width, height) of the picture in pixels."""
    tiles: tuple[int, int] = (1, 1)
    """(rows, columns) of tiles; several have an overview behind them."""


class Alignment(NamedTuple):
    """A fitted linear map, and what it is worth."""

    weight: torch.Tensor
    """Float[out, in], for normed features."""
    bias: torch.Tensor
    named: float
    """Share of held-out things whose best-covered cell is nearest to their own name among all."""
    chance: float
    above: float
    """Share of held-out cells that are told above from below."""


class Words(NamedTuple):
    """Targets in the space of the language model's embeddings."""

    names: dict[str, torch.Tensor]
    """English name → Float[width]."""
    nothing: torch.Tensor
    above: torch.Tensor
    """Float[width]: from below to above."""


def words_of(model: Any, tokenizer: Any, names: Mapping[str, Sequence[str]]) -> Words:
    """names   English name → its names in all languages"""
    table = model.get_input_embeddings().weight.detach().float()
    typical = table.norm(dim=1).mean()

    def mean(text: str) -> torch.Tensor:
        return table[tokenizer(text, add_special_tokens=False).input_ids].mean(0)

    def scaled(vector: torch.Tensor) -> torch.Tensor:
        return vector / vector.norm() * typical

    above, below = (sum(map(mean, spelled)) for spelled in PLACES)
    found = {name: scaled(sum(map(mean, spelled))) for name, spelled in names.items()}  # type: ignore[arg-type]
    return Words(found, scaled(mean(NOTHING)), PLACE * scaled(above - below))  # type: ignore[arg-type, operator]


def seen_things(
    pictures: Pictures, count: int, seed: str, *, held_out: bool = False
) -> Iterator[tuple[Image.Image, dict[str, list[Pixels]]]]:
    """Pictures, and English name → boxes of what is in them: two things side by side, every eighth a landmark.

    held_out   backgrounds that are never trained
    """
    rng = Random(f"align/{seed}")
    for number in range(count):
        if number % 8 == 7:
            landmark = LANDMARKS[number // 8 % len(LANDMARKS)]
            view, box = landmark_view(pictures, landmark, rng)
            yield view, {landmark.english: [box]}
            continue
        left, right = rng.sample(THINGS, 2)
        scene = side_by_side(pictures, left, right, rng, new_background=held_out)
        yield scene.picture, {one.thing.english: [one.box] for one in scene.placed}


@torch.no_grad()
def examples(
    model: Any,
    processor: Any,
    seen: Sequence[tuple[Image.Image, Mapping[str, list[Pixels]]]],
    *,
    bf16: bool = False,
) -> list[Example]:
    """What the tower makes of pictures, normed as the connector norms it.

    bf16   the tower multiplies in bfloat16, as in training
    """
    found: list[Example] = []
    caught: list[torch.Tensor] = []
    norm = model.model.multi_modal_projector.layer_norm
    hook = norm.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        for at in tqdm(range(0, len(seen), BATCH), desc="seeing", unit="batch", delay=2):
            now = seen[at : at + BATCH]
            seen_by = processor.image_processor([one for one, _ in now], return_tensors="pt")
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                model.model.get_image_features(pixel_values=seen_by["pixel_values"])
            views = seen_by["num_patches"].tolist()
            found += [
                # Scenes are never higher than wide, so that tiles stand side by side.
                Example(features.flatten(0, 1).float(), dict(boxes), one.size, (1, max(len(features) - 1, 1)))
                for features, (one, boxes) in zip(caught.pop().split(views), now, strict=True)
            ]
    finally:
        hook.remove()
    return found


def fit(train: Sequence[Example], held_out: Sequence[Example], words: Words, *, seed: int = 0) -> Alignment:
    """The ridge map, and its two scores on pictures it was not fitted to."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = [], []
    for one in train:
        target, is_thing = token_targets(one, words)
        # Of the background's cells a quarter: they are most, and much alike.
        kept = is_thing | (torch.rand(len(target), generator=generator) < 0.25)
        inputs.append(one.features[kept])
        targets.append(target[kept])
    weight, bias = ridge(torch.cat(inputs), torch.cat(targets), PENALTY)
    named, above = _scores(held_out, words, weight, bias)
    return Alignment(weight, bias, named, 1 / len(words.names), above)


def ridge(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight Float[out, in], bias Float[out]) that minimise the squared error, and ``penalty`` times the squared
    weights of standardised inputs."""
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-5
    scaled, centre = (inputs - mean) / deviation, targets.mean(0)
    gram = scaled.T @ scaled + penalty * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(gram, scaled.T @ (targets - centre)).T / deviation
    return weight, centre - weight @ mean


def token_targets(one: Example, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """Float[tokens, width], what each token should become; Bool[tokens], whether it is of a thing."""
    target = words.nothing.repeat(len(one.features), 1)
    is_thing = torch.zeros(len(target), dtype=torch.bool)
    for view in _views(one):
        for name, boxes in one.boxes.items():
            covered = view.positions[region_coverage(boxes, view) > COVERED]
            target[covered], is_thing[covered] = words.names[name], True
        target[view.positions] += _along(view)[:, None] * words.above
    return target, is_thing


def write_linear(projector: Any, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """Make a connector compute ``weight @ norm(x) + bias``; returns the share of the map's squared norm that its rank,
    half its units, can hold."""
    half = projector.linear_1.out_features // 2
    left, strengths, right = torch.linalg.svd(weight, full_matrices=False)
    kept = min(half, len(strengths))
    root = strengths[:kept].sqrt()
    down, up = torch.zeros(half, weight.shape[1]), torch.zeros(weight.shape[0], half)
    down[:kept], up[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
    with torch.no_grad():
        for one in (projector.linear_1, projector.linear_2):
            nn.init.zeros_(one.weight)
            nn.init.zeros_(one.bias)
        projector.linear_1.weight[:half], projector.linear_1.weight[half : 2 * half] = down, -down
        projector.linear_2.weight[:, :half], projector.linear_2.weight[:, half : 2 * half] = up, -up
        projector.linear_2.bias.copy_(bias)
    return float(strengths[:kept].square().sum() / strengths.square().sum())


def _scores(
    held_out: Sequence[Example], words: Words, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[float, float]:
    """Of cells: the overview's tokens are left out."""
    names = list(words.names)
    table = torch.stack([words.names[name] for name in names])
    right, above = [], []
    for one in held_out:
        cells = _views(one)[0]
        said, along = (one.features @ weight.T + bias)[cells.positions], _along(cells)
        found = (said - said.mean(0)) @ words.above
        above += ((found > 0) == (along > 0))[along != 0].tolist()
        for name, boxes in one.boxes.items():
            best = int(region_coverage(boxes, cells).argmax())
            right.append(names[int(nn.functional.cosine_similarity(said[best], table).argmax())] == name)
    return float(np.mean(right)), float(np.mean(above))


def _views(one: Example) -> list[ImageTokens]:
    """The cells of the tiles, and the overview where there is one."""
    views = math.prod(one.tiles) + (one.tiles != (1, 1))
    cells = tiled_tokens(0, one.tiles, math.isqrt(len(one.features) // views), one.size)
    return [cells] if cells.overview is None else [cells, cells.overview]


def _along(view: ImageTokens) -> torch.Tensor:
    """Float[tokens]: 1 at the upper edge of the picture, -1 at the lower one."""
    middles = view.cell_boxes_pixels[:, [1, 3]].mean(1) / view.image_size_pixels[1]
    return torch.from_numpy(1 - 2 * middles).float()
