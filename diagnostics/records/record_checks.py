"""Validates the file of a record: each field of its header, each array's type and shape.

Files may be truncated, mixed up or written by other programs; drawing and measuring rely on these checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diagnostics.records.json_files import shown

Arrays = Mapping[str, np.ndarray]
NAMED = (
    "region_mass",
    "random_mass",
    "salient_mass",
    "region_mass_without_sinks",
    "maps",
    "relation",
    "curves",
)
OPTIONAL = ("sinks", "head_entropy", "highest_logit")
SHARE_MAX = 1.01
"""A share of attention is at most 1; the rest is what half precision adds."""
_PER_HEAD = ("region_mass", "random_mass", "salient_mass", "region_mass_without_sinks")
_IN_PLACE_OF = ("random_mass", "salient_mass")
"""Of places that stand in for a region, for its share of cells: above 1 where they cover fewer cells than it does, and
never more than there are cells."""


class FieldError(ValueError):
    """A field that is missing or wrong."""


@dataclass(frozen=True)
class _Number:
    """A kind of number that a field may hold."""

    words: str
    least: float = -math.inf
    whole: bool = False

    def __call__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return -(2**63) < value < 2**63 and value >= self.least


_COUNT, _SIZE = _Number("a number from 0", 0, whole=True), _Number("a number from 1", 1, whole=True)
_NATS = _Number("a finite number")


def check_header(header: Any) -> None:
    """Raises FieldError for the first field that is missing or wrong."""
    for name in ("probe_id", "group", "model"):
        _text(header, name)
    _need(header, "step", _COUNT, _COUNT.words)
    _list_of(header, "tokens", lambda one: isinstance(one, str), "a list of strings")
    _list_of(header, "layers", _COUNT, "a list of layer numbers, each once")
    if not header["layers"] or len(set(header["layers"])) < len(header["layers"]):
        raise _wrong("layers", header["layers"], "at least one layer number, each once")
    if not header["tokens"]:
        raise _wrong("tokens", header["tokens"], "at least one string")
    _check_queries(header)
    _check_names(header)
    for at, image in enumerate(_objects(header, "images")):
        _check_image(image, f"images[{at}].")
    _need(header, "connectors", _COUNT, _COUNT.words)
    if header["connectors"] not in (0, len(header["images"])):
        raise _wrong(
            "connectors", header["connectors"], f"0, or one for each of {len(header['images'])} images"
        )
    _check_scores(header)
    for at, one in enumerate(_objects(header, "interventions")):
        _check_intervention(one, f"interventions[{at}].")
    for at, one in enumerate(_objects(header, "picture_controls")):
        _check_picture_control(one, f"picture_controls[{at}].")
    for at, one in enumerate(_objects(header, "patches")):
        _check_patch(one, f"patches[{at}].")
    _check_patch_source(header)
    if "supervised_layers" in header:
        _list_of(header, "supervised_layers", _COUNT, "a list of layer numbers")
        _need(header, "supervised_picture", lambda one: isinstance(one, bool), "true or false")
    for name in ("supervised_unknown", "supervised_connector", "trained_picture"):
        if name in header:
            _need(header, name, lambda one: isinstance(one, bool), "true or false")
    for name in ("precision", "probe_mark"):
        if name in header:
            _need(header, name, lambda one: isinstance(one, str), "text")


def check_arrays(header: Mapping[str, Any], arrays: Arrays) -> None:
    """Raises FieldError for the first array that is missing, has another type or shape, or no attention. ``header``
    must have been checked."""
    layers, keys = len(header["layers"]), len(header["tokens"])
    heads = _array(arrays, "rows", "f", (layers, "heads", len(header["queries"]), keys)).shape[1]
    _shares(arrays, "rows")
    every = _array(arrays, "visual_share", "f", ("all layers", heads)).shape[0]
    if max(header["layers"]) >= every:
        raise _wrong("layers", header["layers"], f"layers of the {every} that visual_share has")
    mapped = np.asarray(np.isfinite(arrays["visual_share"]).any(axis=1))
    if not mapped[header["layers"]].all():
        raise _mismatch("visual_share", "NaN or infinity in a key layer", "attention, from 0 to 1")
    _layer_shares(arrays, "visual_share", mapped)
    for kind in _PER_HEAD:
        for name in header["names"].get(kind, ()):
            _array(arrays, f"{kind}/{name}", "f", (every, heads))
            most = SHARE_MAX
            if kind in _IN_PLACE_OF and header["images"]:
                most = max(most, math.prod(header["images"][0]["grid"]))
            _layer_shares(arrays, f"{kind}/{name}", mapped, most)
    if "sinks" in arrays:
        _array(arrays, "sinks", "b", (layers, keys))
    for name in ("head_entropy", "highest_logit"):
        if name in arrays:
            _array(arrays, name, "f", (every, heads))
    if "head_entropy" in arrays:
        _layer_shares(arrays, "head_entropy", mapped)
    for name in header["names"].get("relation", ()):
        _array(arrays, f"relation/{name}", "f", ("layers", "heads"))
    for name in header["names"].get("curves", ()):
        _finite(arrays, f"curves/{name}", ("points",))
    for at, image in enumerate(header["images"]):
        cells = _check_image_arrays(image, arrays, f"image/{at}/", keys)
        if header["connectors"]:
            tokens = len(arrays[f"image/{at}/positions"])
            _array(arrays, f"connector/{at}", "f", (tokens, cells))
            _shares(arrays, f"connector/{at}", most=math.inf)
        for name in header["names"].get("maps", ()) if at == 0 else ():
            found = _finite(arrays, f"maps/{name}", ("layers", cells))
            if len(found) not in (1, layers):
                raise _wrong(
                    f"maps/{name}", found.shape, f"a row of cells, or one for each of {layers} layers"
                )


# ---------------------------------------------------------------- fields of the header


def _check_queries(header: Mapping[str, Any]) -> None:
    for at, query in enumerate(_objects(header, "queries")):
        where = f"queries[{at}]."
        _only(query, ("position", "label", "text"), where)
        _need(query, "position", _COUNT, _COUNT.words, where)
        if query["position"] >= len(header["tokens"]):
            raise _wrong(f"{where}position", query["position"], f"one of {len(header['tokens'])} tokens")
        for name in ("label", "text"):
            _text(query, name, where)
    if not header["queries"]:
        raise _wrong("queries", header["queries"], "at least the answer query")


def _check_names(header: Mapping[str, Any]) -> None:
    _need(header, "names", lambda one: isinstance(one, dict), "an object: kind → names")
    _need(header["names"], "region_mass", lambda one: True, "", "names.")
    for kind in header["names"]:
        if kind not in NAMED:
            raise _wrong("names", kind, "kinds among " + ", ".join(NAMED))
        _list_of(header["names"], kind, lambda one: isinstance(one, str), "a list of names", "names.")


def _check_image(image: Mapping[str, Any], where: str) -> None:
    _grid(image, "grid", where)
    _grid(image, "image_size_pixels", where)
    _need(image, "through_connector", lambda one: isinstance(one, bool), "true or false", where)
    if "seconds" in image:
        _list_of(image, "seconds", _NATS, "a list of numbers", where)
        if image["seconds"] and image["grid"][0] % len(image["seconds"]):
            raise _wrong(f"{where}seconds", image["seconds"], f"a part of {image['grid'][0]} rows each")
    if image.get("overview") is not None:
        _grid(image, "overview", where)
    if image.get("tiles") is not None:
        _list_of(image, "tiles", _SIZE, "null or a list of numbers", where)


def _check_scores(header: Mapping[str, Any]) -> None:
    _need(header, "scores", lambda one: isinstance(one, dict), "an object")
    scores = header["scores"]
    _only(scores, ("answer_nats", "foil_nats", "generated"), "scores.")
    _need(scores, "answer_nats", _NATS, _NATS.words, "scores.")
    _need(scores, "foil_nats", lambda one: one is None or _NATS(one), "a finite number or null", "scores.")
    _text(scores, "generated", "scores.")


def _check_intervention(one: Mapping[str, Any], where: str) -> None:
    _only(one, ("kind", "region", "margin_nats", "control_margins_nats", "layers"), where)
    for name in ("kind", "region"):
        _text(one, name, where)
    _need(one, "margin_nats", _NATS, _NATS.words, where)
    _list_of(one, "control_margins_nats", _NATS, "a list of finite numbers", where)
    _need(one, "layers", lambda given: given is None or _is_pair(given, _COUNT), "two layers or null", where)


def _check_picture_control(one: Mapping[str, Any], where: str) -> None:
    _only(one, ("kind", "margin_nats", "lender"), where)
    for name in ("kind", "lender"):
        _text(one, name, where)
    _need(one, "margin_nats", _NATS, _NATS.words, where)


def _check_patch(one: Mapping[str, Any], where: str) -> None:
    _only(one, ("part", "margin_nats", "layers"), where)
    _text(one, "part", where)
    _need(one, "margin_nats", _NATS, _NATS.words, where)
    _list_of(one, "layers", _COUNT, "a list of layer numbers", where)


def _check_patch_source(header: Mapping[str, Any]) -> None:
    _need(header, "patched_from", lambda one: one is None or isinstance(one, dict), "an object or null")
    if (source := header["patched_from"]) is not None:
        _only(source, ("model", "margin_nats"), "patched_from.")
        _text(source, "model", "patched_from.")
        _need(source, "margin_nats", _NATS, _NATS.words, "patched_from.")


def _objects(header: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    _list_of(header, name, lambda one: isinstance(one, dict), "a list of objects")
    return header[name]  # type: ignore[no-any-return]


def _grid(image: Mapping[str, Any], name: str, where: str) -> None:
    _need(image, name, lambda one: _is_pair(one, _SIZE), "two numbers from 1", where)


def _is_pair(value: Any, kind: _Number) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(kind, value))


def _text(fields: Mapping[str, Any], name: str, where: str = "") -> None:
    _need(fields, name, lambda one: isinstance(one, str), "a string", where)


def _list_of(fields: Mapping[str, Any], name: str, is_one: Any, words: str, where: str = "") -> None:
    _need(fields, name, lambda given: isinstance(given, list) and all(map(is_one, given)), words, where)


def _need(fields: Any, name: str, is_right: Any, words: str, where: str = "") -> None:
    if not isinstance(fields, dict):
        raise _wrong(where or "header", fields, "an object")
    if name not in fields:
        raise FieldError(f"record without {where + name!r}")
    if not is_right(fields[name]):
        raise _wrong(where + name, fields[name], words)


def _only(fields: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in known:
            raise _mismatch(f"{where}{shown(name)}", "an unknown field", "one of " + ", ".join(known))


def _wrong(where: str, found: Any, expected: str) -> FieldError:
    return _mismatch(where, shown(found), expected)


def _mismatch(where: str, found: str, expected: str) -> FieldError:
    """``found`` is a description, not a value."""
    return FieldError(f"{where}: found {found}; expected {expected}")


# ---------------------------------------------------------------- arrays


def _check_image_arrays(image: Mapping[str, Any], arrays: Arrays, folder: str, keys: int) -> int:
    """Returns the number of cells."""
    for name, grid in _views(image):
        cells = grid[0] * grid[1]
        own = cells if name or not image["through_connector"] else "tokens"
        places = _array(arrays, f"{folder}{name}positions", "iu", (own,))
        if not len(places) or places.min() < 0 or places.max() >= keys:
            raise _mismatch(f"{folder}{name}positions", _ends(places), f"some of the {keys} tokens")
        if len(np.unique(places)) < len(places):
            raise _mismatch(f"{folder}{name}positions", "a token twice", "each token once")
        boxes = _finite(arrays, f"{folder}{name}cell_boxes_pixels", (cells, 4))
        if float(np.abs(boxes).max()) > 1e9:  # half precision cannot hold the limit
            raise _mismatch(f"{folder}{name}cell_boxes_pixels", _ends(boxes), "pixels of the picture")
        if (boxes[:, :2] > boxes[:, 2:]).any():  # cells of a padded picture's rim may have no area
            raise _mismatch(f"{folder}{name}cell_boxes_pixels", "swapped corners", "x0 ≤ x1 and y0 ≤ y1")
    return int(image["grid"][0] * image["grid"][1])


def _views(image: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[int]]]:
    yield "", image["grid"]
    if image.get("overview") is not None:
        yield "overview/", image["overview"]


def _array(arrays: Arrays, name: str, kinds: str, shape: Sequence[int | str]) -> np.ndarray:
    """The array of that name. A size that is a word may be any from 1.

    Raises FieldError if it is missing, of another type or shape.
    """
    if name not in arrays:
        raise FieldError(f"record without {name!r}")
    array = arrays[name]
    expected = f"{_KINDS[kinds]} of shape [{', '.join(map(str, shape))}]"
    fits = array.ndim == len(shape) and all(
        size == one or (isinstance(one, str) and size > 0)
        for size, one in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        raise _mismatch(name, f"{array.dtype} {list(array.shape)}", expected)
    return array


_KINDS = {"f": "floats", "b": "booleans", "iu": "integers"}


def _finite(arrays: Arrays, name: str, shape: Sequence[int | str]) -> np.ndarray:
    array = _array(arrays, name, "f", shape)
    if not np.isfinite(array).all():
        raise _mismatch(name, "NaN or infinity", "finite numbers")
    return array


def _shares(arrays: Arrays, name: str, most: float = SHARE_MAX) -> None:
    """Attention is from 0 to 1; other numbers come from a model that overflowed, or were not written by a model."""
    array = arrays[name]
    if not np.isfinite(array).all():
        raise _mismatch(
            name, f"{int((~np.isfinite(array)).sum())} of NaN or infinity",
            "attention: the probed model overflowed (try another precision)",
        )  # fmt: skip
    if array.size and (array.min() < 0 or array.max() > most):
        raise _mismatch(name, _ends(array), "attention, from 0 to 1")


def _layer_shares(arrays: Arrays, name: str, mapped: np.ndarray, most: float = SHARE_MAX) -> None:
    """Shares by layer and head: from 0 to ``most`` in layers with an attention map, and NaN in the others (linear
    attention).

    mapped   Bool[layers]
    """
    array = arrays[name]
    if not (np.isfinite(array) == mapped[:, None]).all():
        wrong = int((np.isfinite(array) != mapped[:, None]).any(axis=1).sum())
        raise _mismatch(
            name, f"NaN or infinity in {wrong} of {len(mapped)} layers", "numbers where visual_share has them"
        )
    if mapped.any() and (array[mapped].min() < 0 or array[mapped].max() > most):
        raise _mismatch(name, _ends(array[mapped]), f"shares of attention, from 0 to {int(most)}")


def _ends(array: np.ndarray) -> str:
    return f"{array.min()} to {array.max()}" if array.size else "nothing"
