"""What a figure takes from a record: one layer, one head or the mean, rows by name, and their maps over the picture.

Errors name the arguments of ``AttentionVisualizer``, which calls these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from diagnostics.measures.geometry import cells_from_row, pixel_map
from diagnostics.records.record import AttentionRecord, Query
from finetune.families.base import ImageTokens

ANSWER = "answer"
"""The name of the row that predicts the answer."""
MAP_PIXELS = 512
"""Longest side of a map: far more than cells, far fewer than the pixels of a photograph."""


def layer_rows(
    record: AttentionRecord, layer: int | None, head: int | None
) -> Float[np.ndarray, "queries keys"]:
    """The kept rows of one layer, by its number in the model: of one head, or the mean over heads.

    Raises ValueError for a layer that the record does not keep, and for a head that is not there.
    """
    if layer not in record.layers:
        raise ValueError(
            f"layer_idx is {layer}; the record of {record.probe_id!r} keeps layers "
            f"{', '.join(map(str, record.layers))}: give one of these, or probe again with key_layers that have it"
        )
    rows = record.rows[record.layers.index(layer)]
    if head is None:
        return rows.mean(axis=0)
    if not 0 <= head < len(rows):
        raise ValueError(
            f"head_idx is {head}, the record has {len(rows)} heads; expected 0 to {len(rows) - 1}"
        )
    return rows[head]


def query_places(record: AttentionRecord, names: Sequence[str] | None) -> list[int]:
    """Places, among the kept rows, of queries named "answer" or by their phrase; None: all.

    Raises ValueError for a name that no kept row has.
    """
    if names is None:
        return list(range(len(record.queries)))
    return [_query_place(record, name) for name in names]


def query_words(query: Query) -> str:
    """A query for a person: "answer → 东" (the token that it predicts), or its phrase."""
    return f"answer → {query.text}" if query.label == ANSWER else query.text


def picture_density(
    record: AttentionRecord, row: Float[np.ndarray, " keys"], image: int
) -> Float[np.ndarray, "height width"]:
    """Where in one of its pictures does a row of the record look, in times the even share of the picture (mean 1)?

    Through ``geometry``: cells by their own boxes, composed with the connector where there is one, smooth between
    their centres, 0 where no cell covers the picture. The picture's proportions, ``MAP_PIXELS`` at most.

    Raises ValueError for a picture that the record does not have, and for a row without any attention on it.
    """
    count = len(record.image_tokens)
    if not 0 <= image < count:
        expected = f"0 to {count - 1}" if count else "a probe with a picture"
        raise ValueError(
            f"image is {image}, the record of {record.probe_id!r} has {count} pictures; expected {expected}"
        )
    layout = record.image_tokens[image]
    cells = cells_from_row(row, layout, record.connector[image] if record.connector else None)
    small = _shrunk(layout)
    covered = pixel_map(np.ones_like(cells), small) > 0
    shares = pixel_map(cells, small, smooth=True) * covered
    if shares.sum() <= 0:
        raise ValueError(
            f"a row of {record.probe_id!r} has no attention on picture {image}; expected some: choose another layer, "
            "head or token"
        )
    return shares * shares.size / shares.sum()


def with_pictures_as_one_key(
    record: AttentionRecord, rows: Float[np.ndarray, "queries keys"], tokens: Sequence[str]
) -> tuple[Float[np.ndarray, "queries shown"], list[str]]:
    """Rows in which each picture's tokens are one key, in the place of its first, with the sum of their attention:
    among a thousand of them no word could be read. And the text of each key that is left.

    Keys <s>, 4 of a picture, "塔" with [.1, .1, .2, .1, .2, .3] → [.1, .6, .3]: "<s>", "picture (4 tokens)", "塔".
    """
    rows, labels, kept = rows.copy(), list(tokens), np.ones(len(tokens), bool)
    for number, image in enumerate(record.image_tokens, start=1):
        places = image.all_positions
        first = int(places.min())
        rows[:, first] = rows[:, places].sum(axis=1)
        kept[places] = False
        kept[first] = True
        name = "picture" if len(record.image_tokens) == 1 else f"picture {number}"
        labels[first] = f"{name} ({len(places)} tokens)"
    return rows[:, kept], [label for label, keep in zip(labels, kept, strict=True) if keep]


def shown_keys(record: AttentionRecord) -> Int[np.ndarray, " shown"]:
    """The place in the sequence of each key that ``with_pictures_as_one_key`` leaves: of a picture, its first token."""
    kept = np.ones(len(record.tokens), bool)
    for image in record.image_tokens:
        kept[image.all_positions] = False
        kept[image.all_positions.min()] = True
    return np.flatnonzero(kept)


def _query_place(record: AttentionRecord, name: str) -> int:
    labels = [query.label for query in record.queries]
    found = next((labels.index(label) for label in (name, f"phrase:{name}") if label in labels), None)
    if found is not None:
        return found
    known = ", ".join(repr(label.removeprefix("phrase:")) for label in labels)
    raise ValueError(
        f"no kept row {name!r} in the record of {record.probe_id!r}; expected one of {known}: other tokens' rows are "
        "kept where the probe names them in its phrases"
    )


def _shrunk(image: ImageTokens) -> ImageTokens:
    """The same layout over a picture of ``MAP_PIXELS`` at most; never a larger one."""
    size = np.array(image.image_size_pixels)
    small = np.maximum(1, np.round(size * min(1.0, MAP_PIXELS / size.max()))).astype(int)
    return replace(
        image,
        cell_boxes_pixels=np.asarray(image.cell_boxes_pixels, np.float64) * np.tile(small / size, 2),
        image_size_pixels=(int(small[0]), int(small[1])),
    )
