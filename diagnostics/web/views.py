"""Traces as plain numbers that the browser draws: nothing is rendered here, so sliders stay fast.

Every request is checked first; an invalid one raises ValueError.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image

from diagnostics.comparison.maps import CellMap
from diagnostics.drawing.colours import common_top, series_scale
from diagnostics.measures.sinks import without_sinks
from diagnostics.web import maps
from diagnostics.web.named_pictures import about
from diagnostics.web.texts import Words
from diagnostics.web.trace import SeenImage, Trace, TraceCache

Json: TypeAlias = dict[str, Any]

MATRIX_MAX = 64
"""Tokens per side of the text map; more cannot be distinguished on a screen."""
CROSS_MAX = 12
"""Maps of single tokens shown at once."""
SHARE_DIGITS = 5
PICTURE_MAX_PIXELS = 640  # the longer side, on the page
PICTURE_MIN_PIXELS = 40  # the shorter one: a narrow strip is widened so that it can be clicked


@dataclass(frozen=True)
class ViewRequest:
    """A request from the browser, checked against the trace.

    layer, head   as in ``maps``: the layer's number, and -1 for the mean over heads
    tokens        indices of tokens that have a row
    box           x0 y0 x1 y1 in pixels of the original picture, or None
    window        (start, end) of the text map
    """

    part: maps.Part
    layer: int
    head: int
    tokens: tuple[int, ...]
    image: int
    sinks: bool
    box: tuple[float, float, float, float] | None
    patch: int | None
    window: tuple[int, int]
    shows: str
    wanted: frozenset[str]

    @classmethod
    def of(cls, trace: Trace, asked: Mapping[str, Any]) -> ViewRequest:
        """Raises ValueError for anything the trace does not have."""
        part: maps.Part = _one_of("part", asked.get("part"), ("language", "connector", "vision"))
        layers = part_layers(trace)[part]
        tokens = asked.get("tokens")
        if not isinstance(tokens, list) or not tokens or len(tokens) > len(trace.answer):
            raise ValueError(f"tokens: found {_quoted(tokens)}, expected one or more tokens of the answer")
        window, wanted = asked.get("window", [0, 1]), asked.get("wanted", [])
        if not isinstance(window, list) or len(window) != 2:
            raise ValueError(f"window: found {_quoted(window)}, expected a start and an end")
        if not isinstance(wanted, list):
            raise ValueError(f"wanted: found {_quoted(wanted)}, expected a list of names")
        start, end = (_whole("window", value, 0, len(trace.tokens)) for value in window)
        image = _whole("image", asked.get("image"), 0, max(len(trace.images) - 1, 0))
        patch = asked.get("patch")
        return cls(
            part,
            layers[_whole("layer", asked.get("layer"), 0, len(layers) - 1)],
            _whole("head", asked.get("head"), -1, part_heads(trace)[part] - 1),
            tuple(_whole("token", token, 0, len(trace.tokens) - 1) for token in tokens),
            image,
            asked.get("sinks") is not False,
            None if asked.get("box") is None else box_pixels(trace, asked["box"], image),
            None if patch is None else _whole("patch", patch, 0, 10**6),
            (start, min(end, start + MATRIX_MAX)),
            _one_of("shows", asked.get("shows", "mass"), ("mass", "box_mass", "box_enrichment")),
            frozenset(map(str, wanted)),
        )


def box_pixels(trace: Trace, box: Any, image: int) -> tuple[float, float, float, float]:
    """A box drawn in the browser: fractions of the picture → pixels of the original."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(
            f"box: found {_quoted(box)}, expected x0 y0 x1 y1 as fractions of the picture, x0 < x1, y0 < y1"
        )
    width, height = trace.images[image].tokens.image_size_pixels
    x0, y0, x1, y1 = box
    return (x0 * width, y0 * height, x1 * width, y1 * height)


def part_layers(trace: Trace) -> dict[str, tuple[int, ...]]:
    """Layers to select from in each part; () if the model has no such part, or nothing of it was kept."""
    connector = (0,) if trace.connector else ()
    return {"language": trace.layers, "connector": connector, "vision": tuple(sorted(trace.vision))}


def part_heads(trace: Trace) -> dict[str, int]:
    """Number of heads in each part; 0 if the part is missing."""
    vision = next((images for images in trace.vision.values() if images), ())
    return {
        "language": trace.heads,
        "connector": trace.connector[0].shape[0] if trace.connector else 0,
        "vision": vision[0].shape[0] if vision else 0,
    }


def facts(trace: Trace, question: str, reply: str, *, cut: bool = False) -> Json:
    """The parts of a trace that sliders do not change: tokens, pictures, layers and heads.

    cut       whether the answer was ended before its end
    left_out  number of tokens of the answer without a row, its first ones
    """
    return {
        "question": question,
        "reply": reply,
        "cut": cut,
        "left_out": first_with_row(trace),
        "tokens": [
            {"text": text, "kind": kind} for text, kind in zip(trace.tokens, trace.kinds, strict=True)
        ],
        "runs": _runs(trace),
        "answer": [token for token in trace.answer if trace.has_row(token)],
        "layers": {part: list(layers) for part, layers in part_layers(trace).items()},
        "heads": part_heads(trace),
        "sinks": trace.sinks.any(1).tolist(),
        "images": [_image_facts(image) for image in trace.images],
        "about": about(question, len(trace.images)),
    }


def first_with_row(trace: Trace) -> int:
    """Number of the first token of the answer whose row is kept: 0, unless not all rows of a long answer fit."""
    return next(
        (number for number, token in enumerate(trace.answer) if trace.has_row(token)), len(trace.answer)
    )


def view(trace: Trace, asked: Mapping[str, Any], cache: TraceCache) -> Json:
    """Everything that a slider, a token or a box changes; overview and box numbers only on request."""
    request = ViewRequest.of(trace, asked)
    seen: Json = {"image": None, "text": None, "cross": [], "matrix": None, "who": None}
    if trace.images:
        found = _image_of(trace, request)
        seen["image"] = _shown(found, with_mass=request.part == "language")
        seen["scale"] = _scale(trace, request, found)
    if request.part == "language":
        seen |= _language(trace, request)
    if "overview" in request.wanted:
        seen["overview"] = _overview(trace, request)
    if request.box and request.wanted & {"box", "overview"}:
        seen["box"] = _box(trace, request)
    seen["cache"] = {
        "looks": len(cache),
        "used": f"{cache.bytes / 2**20:.1f}",
        "limit": f"{cache.limit_bytes / 2**20:.0f}",
    }
    return seen


def _language(trace: Trace, request: ViewRequest) -> Json:
    row = text_shares(trace, request.layer, request.head, request.tokens, with_sinks=request.sinks)
    on_image = np.array([kind.startswith("image") for kind in trace.kinds])
    whole = float(row.sum()) if request.sinks else 1.0  # half precision: all of it may sum to 0.9998
    seen: Json = {
        "text": _numbers(row),
        "text_mass": float(row[~on_image].sum()) / whole,
        "image_mass": float(row[on_image].sum()) / whole,
        "matrix": _matrix(trace, request),
    }
    if trace.images:
        chosen = _single_maps(trace, request)
        seen["cross"] = [{"token": token, **_shown(found, with_mass=True)} for token, found in chosen]
        if request.patch is not None:
            who = maps.who_looks(
                trace, request.layer, request.head, request.patch, request.image, with_sinks=request.sinks
            )
            seen["who"] = _numbers(who)
    return seen


def text_shares(
    trace: Trace, layer: int, head: int, tokens: Sequence[int], *, with_sinks: bool
) -> Float[np.ndarray, " keys"]:
    """The mean row of these tokens over all tokens of the conversation; sums to 1 if sinks are included."""
    places = [trace.row_of(token) for token in tokens]
    rows = trace.rows[layer][:, places].mean(1, dtype=np.float32)
    row = rows.mean(0) if head == maps.MEAN else rows[head]
    return row if with_sinks else without_sinks(row, trace.sinks[trace.layers.index(layer)])


def _image_of(trace: Trace, request: ViewRequest) -> maps.ImageMap:
    if request.part == "language":
        return _language_map(trace, request, request.tokens)
    patch = request.patch if request.part == "vision" else None
    return maps.image_map(
        trace, request.layer, request.head, request.tokens, request.image, request.part, patch=patch
    )


def _language_map(trace: Trace, request: ViewRequest, tokens: Sequence[int]) -> maps.ImageMap:
    return maps.image_map(
        trace, request.layer, request.head, tokens, request.image, "language", request.sinks
    )


def _single_maps(trace: Trace, request: ViewRequest) -> list[tuple[int, maps.ImageMap]]:
    """The selected tokens' own maps, as many as are shown."""
    return [(token, _language_map(trace, request, [token])) for token in request.tokens[:CROSS_MAX]]


def _scale(trace: Trace, request: ViewRequest, found: maps.ImageMap) -> Json:
    """Where the colours of every map on the page end, and the highest cell, which may lie beyond; as in the report."""
    single = [one for _, one in _single_maps(trace, request)] if request.part == "language" else []
    shown = [_cell_map(one, trace, request.image) for one in (found, *single)]
    return {"top": common_top(shown), "peak": float(max(one.density.max() for one in shown))}


def _cell_map(found: maps.ImageMap, trace: Trace, image: int) -> CellMap:
    boxes = trace.images[image].tokens.cell_boxes_pixels
    return CellMap(found.cells.ravel() * found.cells.size, found.cells.shape, boxes)


def _shown(found: maps.ImageMap, *, with_mass: bool) -> Json:
    """A map in multiples of the even share, so that maps of all grids share one scale: 1 is uniform attention. Four
    cells with shares [.5, .5, 0, 0] give [2, 2, 0, 0]."""
    return {
        "cells": _numbers(found.cells.ravel() * found.cells.size, digits=3),
        "grid": list(found.cells.shape),
        "mass": found.mass if with_mass else None,
    }


def _matrix(trace: Trace, request: ViewRequest) -> Json | None:
    if request.window[0] >= request.window[1]:
        return None
    found = maps.text_map(trace, request.layer, request.head, request.window, with_sinks=request.sinks)
    if not len(found.queries):
        return None
    # Most rows see nothing behind their token; PaliGemma's question sees all of its prompt.
    seen = np.where(found.rows > 0, found.keys[None], -1).max(1)
    ahead = found.keys[None] > np.maximum(found.queries, seen)[:, None]
    values = [
        [None if hidden else value for hidden, value in zip(line, numbers, strict=True)]
        for line, numbers in zip(ahead, (_numbers(row) for row in found.rows), strict=True)
    ]
    return {"rows": found.queries.tolist(), "columns": found.keys.tolist(), "values": values}


def _overview(trace: Trace, request: ViewRequest) -> list[list[float | None]] | None:
    if not trace.images:
        return None
    if request.box and request.shows != "mass":
        numbers = maps.box_numbers(
            trace, request.box, request.tokens, request.image, with_sinks=request.sinks
        )
        values = numbers.mass if request.shows == "box_mass" else numbers.enrichment
    else:
        values = maps.overview(trace, request.tokens, request.image, with_sinks=request.sinks).values
    return [_numbers(line) for line in values]


def _box(trace: Trace, request: ViewRequest) -> Json:
    assert request.box is not None
    numbers = maps.box_numbers(trace, request.box, request.tokens, request.image, with_sinks=request.sinks)
    width, height = trace.images[request.image].tokens.image_size_pixels
    x0, y0, x1, y1 = request.box
    return {
        "mass": [_numbers(line) for line in numbers.mass],
        "enrichment": [_numbers(line, digits=3) for line in numbers.enrichment],
        "mean_mass": _numbers(numbers.mean_mass),
        "mean_enrichment": _numbers(numbers.mean_enrichment, digits=3),
        "area": (x1 - x0) * (y1 - y0) / (width * height),
    }


def _runs(trace: Trace) -> list[Json]:
    """Runs of tokens shown as one: all tokens of a picture together, every other token by itself."""
    runs: list[Json] = []
    for kind, group in groupby(range(len(trace.tokens)), key=lambda token: trace.kinds[token]):
        tokens = list(group)
        if kind.startswith("image"):
            runs.append({"start": tokens[0], "end": tokens[-1] + 1, "image": int(kind.split()[1])})
        else:
            runs += [{"start": token, "end": token + 1, "image": None} for token in tokens]
    return runs


def _image_facts(image: SeenImage) -> Json:
    return {"src": data_address(image.picture), "boxes": _cell_boxes(image)}


def _cell_boxes(image: SeenImage) -> list[list[float | None]]:
    """x0 y0 x1 y1 of each cell, as fractions of the picture."""
    width, height = image.tokens.image_size_pixels
    boxes = np.asarray(image.tokens.cell_boxes_pixels, np.float64) / (width, height, width, height)
    return [_numbers(np.clip(box, 0, 1)) for box in boxes]


def data_address(picture: Image.Image) -> str:
    """The picture as a data: URL, so that no file is served."""
    small = picture.convert("RGB")
    factor = PICTURE_MAX_PIXELS / max(small.size)
    # Small pictures are enlarged: a box and cell borders are drawn on them.
    width, height = (max(PICTURE_MIN_PIXELS, round(side * factor)) for side in small.size)
    small = small.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


# --- before / after -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One checkpoint's answer to the common question."""

    name: Words
    reply: str
    trace: Trace
    cut: bool = False


def compare_facts(frames: Sequence[Frame]) -> Json:
    """The parts that sliders do not change. Layers are those that all checkpoints have.

    first_token   number of the first token of the answers whose rows all checkpoints have
    agreement     of a frame's answer with the first: a key of ``TEXTS``
    """
    first = frames[0].trace
    return {
        "layers": [layer for layer in first.layers if all(layer in one.trace.layers for one in frames)],
        "heads": min(one.trace.heads for one in frames),
        "first_token": max(first_with_row(one.trace) for one in frames),
        "answer_tokens": max(len(one.trace.answer) for one in frames),
        "image": _image_facts(first.images[0]) if first.images else None,
        "frames": [
            {
                "name": one.name.both(),
                "answer": one.reply,
                "cut": one.cut,
                "agreement": _agreement(frames[0], one),
                "boxes": _cell_boxes(one.trace.images[0]) if one.trace.images else [],
            }
            for one in frames
        ],
    }


def _agreement(one: Frame, two: Frame) -> str:
    """Whether two answers are the same; of answers that were cut off, only that they begin so."""
    if one.reply != two.reply:
        return "other_answer"
    return "same_beginning" if one.cut or two.cut else "same_answer"


def compare(frames: Sequence[Frame], asked: Mapping[str, Any]) -> Json:
    """The same layer, head and answer token for each checkpoint, on one scale; a shorter answer shows its last token.

    scale   where the colours end (``top``), and those of the difference from the first (± ``swing``), and the highest
            cell (``peak``), in multiples of the even share; None without a picture. ``swing`` is None where the models
            see different grids, whose maps have no difference
    """
    known = compare_facts(frames)
    layer = known["layers"][_whole("layer", asked.get("layer"), 0, len(known["layers"]) - 1)]
    head = _whole("head", asked.get("head"), -1, known["heads"] - 1)
    number = _whole("token", asked.get("token"), known["first_token"], max(known["answer_tokens"] - 1, 0))
    tokens = [one.trace.answer[min(number, len(one.trace.answer) - 1)] for one in frames]
    words = [
        {"token": one.trace.tokens[token], "cells": None, "mass": 0.0}
        for one, token in zip(frames, tokens, strict=True)
    ]
    if not frames[0].trace.images:
        return {"frames": words, "scale": None}
    found = [
        maps.image_map(one.trace, layer, head, [token]) for one, token in zip(frames, tokens, strict=True)
    ]
    shown = [one | _shown(seen, with_mass=True) for one, seen in zip(words, found, strict=True)]
    cells = [_cell_map(seen, one.trace, 0) for one, seen in zip(frames, found, strict=True)]
    if len({one.grid for one in cells}) > 1:
        peak = float(max(one.density.max() for one in cells))
        return {"frames": shown, "scale": {"top": common_top(cells), "peak": peak, "swing": None}}
    return {"frames": shown, "scale": series_scale(cells)._asdict()}


def _numbers(values: Float[np.ndarray, " any"], digits: int = SHARE_DIGITS) -> list[float | None]:
    """Rounded to so many digits, or to three of its own where that would make none of something: the page adds
    thousands of them up. None for NaN, which JSON has no value for."""
    exact = values.astype(np.float64)
    rounded = np.round(exact, digits)
    return [
        None if value != value else value if value or not own else float(f"{own:.3g}")
        for value, own in zip(rounded.tolist(), exact.tolist(), strict=True)
    ]


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: found {_quoted(value)}, expected a whole number from {least} to {most}")
    return value


def _one_of(name: str, value: Any, known: Sequence[str]) -> Any:
    if value not in known:
        raise ValueError(f"{name}: found {_quoted(value)}, expected one of {', '.join(known)}")
    return value


def _quoted(value: Any) -> str:
    """A wrong value quoted for an error, cut to 60 characters."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:60]}…"
