"""Captures attention during generation: language layers, connector, vision tower, sinks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from torch import nn

from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.measures.sinks import sink_dimensions, sink_tokens
from diagnostics.web.trace_recorder import TraceRecorder
from finetune.attention.watch import Watch
from finetune.families import Encoded, ImageTokens, bare_model
from finetune.families.base import TowerSequence
from finetune.families.parts.processors import picture_settings
from finetune.families.parts.tower import joined, laid_out

if TYPE_CHECKING:
    from diagnostics.web.engine import Engine


class ReplyCapture:
    """Captures the generation of one reply; the model has hooks only inside the ``with`` block."""

    def __init__(self, engine: Engine, encoded: Encoded) -> None:
        self._engine = engine
        self._encoded = encoded
        self._rows = TraceRecorder(engine.watched, partial(_text_positions, engine, encoded))
        self._tower_called: tuple[nn.Module, Any, dict[str, Any]] | None = None
        self._states: HiddenStates | None = None
        self._stack = ExitStack()

    def __enter__(self) -> ReplyCapture:
        engine, enter = self._engine, self._stack.enter_context
        enter(engine.kernels.tapped(self._rows))
        if engine.sink_layers:  # each hooked layer slows every forward
            self._states = enter(HiddenStates(engine.model, engine.sink_layers, family=engine.family))
        if engine.vision_layers:
            watch = Watch(self, bare_model(engine.model))
            self._stack.callback(watch.close)
            for tower in engine.towers:
                watch.forward(tower, before=self._keep_tower_inputs)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep_tower_inputs(self, tower: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        self._tower_called = tower, arguments, options  # used after the reply

    def rows(self, tokens: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Int[queries] and layer → Float16[heads, queries, tokens]: the last rows that fit the budget."""
        most = self._engine.rows_that_fit(tokens)
        found = {}
        for layer in self._engine.layers:
            rows = self._rows.rows(f"layer_{layer}", most).numpy()
            if (
                unread := tokens - rows.shape[2]
            ):  # the last token of a reply that was cut off: no later token attends to it
                rows = np.pad(rows, ((0, 0), (0, 0), (0, unread)))
            found[layer] = rows
        return self._rows.positions[-most:], found

    def connector(self) -> tuple[np.ndarray, ...]:
        """Float16[heads, queries, patches] for each picture; empty if the connector has no attention."""
        return tuple(rows.numpy() for rows in self._rows.connector())

    def vision(self) -> dict[int, tuple[np.ndarray, ...]]:
        """Tower layer → Float16[heads, patches, patches] for each picture.

        Omits layers that did not run, whose patches do not divide the cells evenly, or whose rows take more than half
        of the cache.
        """
        if self._tower_called is None:
            return {}
        tower, arguments, options = self._tower_called
        engine, images = self._engine, self._encoded.images
        config = bare_model(engine.model).config
        inputs = dict(inspect.signature(tower.forward).bind_partial(*arguments, **options).arguments)
        inputs["tiles"] = [image.tiles for image in images]
        settings = picture_settings(engine.processor)
        usual = [
            engine.family.image_arithmetic(config, one.image_size_pixels, settings).patches for one in images
        ]
        found = {}
        for layer in engine.vision_layers:
            name = f"vision_layer_{layer}"
            sequences = engine.family.tower_sequences(config, layer, inputs)
            if sequences is not None and self._bytes(name, sequences) > engine.cache_bytes / 2:
                continue
            rows = self._rows.tower(name, sequences)
            if len(rows) == len(images) and all(
                map(has_square_cells, images, (one.shape[1] for one in rows), usual)
            ):
                found[layer] = tuple(one.numpy() for one in rows)
        return found

    def _bytes(self, name: str, sequences: Sequence[TowerSequence]) -> int:
        """Memory of a layer's rows over all patches of each picture (mostly zeros for a tiled picture)."""
        engine = self._engine
        shape = engine.family.attention_shape(bare_model(engine.model).config, name)
        assert shape is not None, "a layer without attention has no rows"
        every = joined([one for one in sequences if not one.is_overview])
        patches = np.bincount(every.image[every.patch >= 0])
        return 2 * shape.heads * int((patches**2).sum())

    def sinks(self, tokens: int) -> Bool[np.ndarray, "layers tokens"]:
        """Sinks are detected in key layers; other layers use those of the nearest key layer below, since a sink
        persists in the layers above it."""
        found = np.zeros((len(self._engine.layers), tokens), bool)
        if self._states is None:
            return found
        states = [one[0] for one in self._states.hidden_states.values()]
        marked = np.stack([sink_tokens(one, sink_dimensions(one)) for one in states])
        nearest = np.searchsorted(self._engine.sink_layers, self._engine.layers, side="right") - 1
        found[:, : marked.shape[1]] = marked[np.maximum(nearest, 0)]
        return found


def has_square_cells(image: ImageTokens, patches: int, usual: tuple[int, int]) -> bool:
    """Whether every cell has a square of 1, 4, 9, … patches. Not if padding has patches but no cells: 24 × 24 patches
    of a picture padded to a square, over 6 × 24 cells, would look like 2 × 2 per cell.

    usual   (rows, columns) of patches by the family's arithmetic; used if the tower has that many
    """
    cells = image.grid[0] * image.grid[1]
    rows, columns = usual
    if image.tiles is not None:
        down, across = laid_out(image.tiles)
        side = isqrt(patches // (down * across))  # side of a tile, in patches
        rows, columns = down * side, across * side
    if rows * columns == patches and rows * image.grid[1] != columns * image.grid[0]:
        return False
    return patches % cells == 0 and isqrt(patches // cells) ** 2 == patches // cells


def image_slots(encoded: Encoded) -> set[int]:
    return {int(position) for image in encoded.images for position in image.all_positions}


def _text_positions(engine: Engine, encoded: Encoded) -> list[int]:
    """Positions of the prompt's text: the last that fit."""
    slots, tokens = image_slots(encoded), len(encoded.input_ids)
    return [at for at in range(tokens) if at not in slots][-engine.rows_that_fit(tokens) :]
