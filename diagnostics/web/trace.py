"""The attention trace of one answer: attention rows in half precision, and what is needed to draw them."""

from __future__ import annotations

import threading
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
    """A picture of the conversation: its position among the tokens, and a thumbnail.

    Boxes and cells are in pixels of the original picture, ``tokens.image_size_pixels``, not of ``picture``.
    """

    tokens: ImageTokens
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Trace:
    """One answer's attention. Shares are float16: relative precision 1e-3, 0 below 6e-8.

    tokens      text of each token, prompt and answer; ``<image>`` for image tokens
    kinds       of each token: "image 0", "image 1", …, "question" (the user's last turn), "answer", "other"
    layers      language layers whose rows are kept
    positions   Int[queries], ascending: the tokens whose rows are kept. Text only, no image tokens; if not all fit the
                budget, the earliest are omitted. The last token has none: it predicts nothing
    rows        layer → Float16[heads, queries, keys]: attention of the token at ``positions[q]`` to each token. The
                row that predicted a token belongs to the token before it: see ``row_of``
    connector   Float16[heads, queries, patches] for each picture: attention of a resampler's queries; empty for a
                model without a resampler
    vision      vision tower layer → Float16[heads, patches, patches] for each picture, row-major
    sinks       Bool[layers, tokens], in the order of ``layers``: prompt tokens that attract attention without carrying
                content (``diagnostics.measures.sinks``); tokens of the answer are never sinks
    images      the pictures, in the order of the conversation
    key         a unique name, for caches
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
        """Indices of the answer's tokens."""
        return tuple(at for at, kind in enumerate(self.kinds) if kind == ANSWER)

    @cached_property
    def bytes(self) -> int:
        """Memory of all its arrays."""
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
        """The attention of the resampler's queries for each picture, mean over heads; float32."""
        return tuple(rows.mean(0, dtype=np.float32) for rows in self.connector)

    @cached_property
    def vision_means(self) -> dict[int, tuple[Float[np.ndarray, "heads patches"], ...]]:
        """Tower layer → the mean attention of the patches for each picture; float32."""
        return {
            layer: tuple(rows.mean(1, dtype=np.float32) for rows in images)
            for layer, images in self.vision.items()
        }

    def row_of(self, token: int) -> int:
        """Index along ``queries`` of this token's attention row.

        For a token of the answer, the row that predicted it (of the token before it); for any other token, its own.

        Raises ValueError for a token without a row; check with ``has_row``.
        """
        found = self._places.get(self._position(token))
        if found is None:
            raise ValueError(
                f"token {token} ({self.tokens[token]!r}) has no attention row; expected a text token among the last "
                f"{len(self.positions)}"
            )
        return found

    def has_row(self, token: int) -> bool:
        """Whether this token has an attention row."""
        return self._position(token) in self._places

    def _position(self, token: int) -> int:
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token {token} does not exist; expected 0 to {len(self.tokens) - 1}")
        return token - 1 if self.kinds[token] == ANSWER else token

    @cached_property
    def _places(self) -> dict[int, int]:
        return {int(position): place for place, position in enumerate(self.positions)}


class TraceCache:
    """The traces of one session within a byte limit; evicts the least recently used first.

    A trace larger than the limit is kept on its own until the next one. Other sessions' threads may ask for its size
    and evict from it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def bytes(self) -> int:
        """Memory of its traces."""
        with self._lock:
            return sum(trace.bytes for trace in self._traces.values())

    def __len__(self) -> int:
        return len(self._traces)

    def __contains__(self, key: str) -> bool:
        return key in self._traces

    def put(self, trace: Trace) -> str:
        """Store a trace and evict others until all fit. Returns its key."""
        with self._lock:
            self._traces[trace.key] = trace
            self._traces.move_to_end(trace.key)
            while self.bytes > self.limit_bytes and len(self._traces) > 1:
                self._traces.popitem(last=False)
        return trace.key

    def get(self, key: str) -> Trace | None:
        """The trace with this key; None if it was evicted."""
        with self._lock:
            if key in self._traces:
                self._traces.move_to_end(key)
            return self._traces.get(key)

    def drop_oldest(self) -> bool:
        """Evict the least recently used trace; False if there is none."""
        with self._lock:
            if self._traces:
                self._traces.popitem(last=False)
                return True
            return False

    def clear(self) -> None:
        """Drop every trace."""
        with self._lock:
            self._traces.clear()
