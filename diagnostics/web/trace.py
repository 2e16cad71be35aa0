"""The attention trace of one answer: attention rows in half precision, and the data to draw them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from uuid import uuid4

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from finetune.families.base import ImageTokens

QUESTION, ANSWER, OTHER = "question", "answer", "other"


@dataclass(frozen=True)
class SeenImage:
    """A picture of the conversation: where it lies among the tokens, and itself, small, for the screen.

    Boxes and cells count in pixels of the original picture, ``tokens.image_size_pixels``, not of ``picture``.
    """

    tokens: ImageTokens
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Trace:
    """One answer's attention. Every share is float16: 1e-3 of a share is kept, below 6e-8 it is 0.

    tokens      text of each token, prompt and answer; an image's reads ``<image>``
    kinds       of each token: "image 0", "image 1", …, "question" (the last turn of the user), "answer", "other"
    layers      language layers whose rows are kept
    positions   Int[queries], ascending: the tokens whose rows are kept. Text alone, images have none; where not all
                fit the budget, the oldest are left out. The last token has none: no token follows it
    rows        layer → Float16[heads, queries, keys]: how much the token at ``positions[q]`` looked at each token.
                A token is written by the row before it: see ``row_of``
    connector   for each image Float16[heads, queries, patches]: what each of a resampler's queries looked at; none
                for a model without one
    vision      layer of the vision tower → for each image Float16[heads, patches, patches], row-major
    sinks       Bool[layers, tokens], in the order of ``layers``: tokens of the prompt that attract attention and mean
                nothing (``diagnostics.measures.sinks``); tokens of the answer are never counted as such
    images      the pictures, in the order of the conversation
    key         a name of its own, for caches
    """

    tokens: tuple[str, ...]
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    positions: Int[np.ndarray, " queries"]
    rows: Mapping[int, Float[np.ndarray, "heads queries keys"]]
    connector: tuple[Float[np.ndarray, "heads queries patches"], ...]
    vision: Mapping[int, tuple[Float[np.ndarray, "heads patches patches"], ...]]
    sinks: Bool[np.ndarray, "layers tokens"]
    images: tuple[SeenImage, ...]
    key: str = field(default_factory=lambda: uuid4().hex)

    @property
    def heads(self) -> int:
        """Heads of a language layer."""
        return self.rows[self.layers[0]].shape[0]

    @cached_property
    def answer(self) -> tuple[int, ...]:
        """Indexes of the answer's tokens."""
        return tuple(at for at, kind in enumerate(self.kinds) if kind == ANSWER)

    @cached_property
    def bytes(self) -> int:
        """Memory that it takes."""
        arrays = [self.positions, self.sinks, *self.rows.values(), *self.connector]
        arrays += [rows for layer in self.vision.values() for rows in layer]
        pictures = sum(3 * one.picture.width * one.picture.height for one in self.images)
        views = [
            view for one in self.images for view in (one.tokens, one.tokens.overview) if view is not None
        ]
        boxes = sum(one.cell_boxes_pixels.nbytes + one.positions.nbytes for one in views)
        return sum(array.nbytes for array in arrays) + pictures + boxes

    @cached_property
    def connector_means(self) -> tuple[Float[np.ndarray, "queries patches"], ...]:
        """For each image what the resampler's queries read, the mean of its heads; float32."""
        return tuple(rows.mean(0, dtype=np.float32) for rows in self.connector)

    @cached_property
    def vision_means(self) -> dict[int, tuple[Float[np.ndarray, "heads patches"], ...]]:
        """Layer of the tower → for each image what its patches look at, on the whole; float32."""
        return {
            layer: tuple(rows.mean(1, dtype=np.float32) for rows in images)
            for layer, images in self.vision.items()
        }

    def row_of(self, token: int) -> int:
        """Index along ``queries`` of the row that shows where this token looked.

        A token of the answer is written by the row of the token before it; any other token has its own row.

        Raises ValueError for a token without one, which ``has_row`` tells beforehand.
        """
        found = self._places.get(self._position(token))
        if found is None:
            raise ValueError(
                f"token {token} ({self.tokens[token]!r}) has no row of attention; expected a token of text among the "
                f"last {len(self.positions)}"
            )
        return found

    def has_row(self, token: int) -> bool:
        """Does this token have an attention row?"""
        return self._position(token) in self._places

    def _position(self, token: int) -> int:
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token {token} does not exist; expected 0 to {len(self.tokens) - 1}")
        return token - 1 if self.kinds[token] == ANSWER else token

    @cached_property
    def _places(self) -> dict[int, int]:
        return {int(position): place for place, position in enumerate(self.positions)}


class TraceCache:
    """The last traces of one session within a limit of bytes; the least recently used is dropped first.

    One that is larger than the whole cache is kept alone, until the next comes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory that its traces take."""
        return sum(trace.bytes for trace in self._traces.values())

    def __len__(self) -> int:
        return len(self._traces)

    def __contains__(self, key: str) -> bool:
        return key in self._traces

    def put(self, trace: Trace) -> str:
        """Keep a trace, and drop others until all fit. Returns its key."""
        self._traces[trace.key] = trace
        self._traces.move_to_end(trace.key)
        while self.bytes > self.limit_bytes and len(self._traces) > 1:
            self._traces.popitem(last=False)
        return trace.key

    def get(self, key: str) -> Trace | None:
        """The trace of that key; None where it was dropped."""
        if key in self._traces:
            self._traces.move_to_end(key)
        return self._traces.get(key)

    def clear(self) -> None:
        """Drop every trace."""
        self._traces.clear()
