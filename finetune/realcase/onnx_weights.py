"""The weights in an ONNX file, read without running anything of it: a few fields of a protocol buffer.

Nothing but numbers and names is taken out; no graph is built and no code is loaded. Field numbers are those of
``onnx.proto`` (ONNX, "Open Neural Network Exchange", IR version 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP = 1, 2, 3, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_NAME, TENSOR_RAW = 1, 2, 4, 8, 9
FLOAT = 1  # TensorProto.DataType.FLOAT
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


class Node(NamedTuple):
    """One operation of the graph, by name."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxFile(NamedTuple):
    """What was read."""

    weights: dict[str, np.ndarray]
    """float32 initialisers by name, in their own shapes; those of other types are left out."""
    nodes: tuple[Node, ...]


def read_onnx(path: Path) -> OnnxFile:
    """The float32 weights and the names of the operations of one file.

    Raises:
        ValueError: it is no ONNX file, or it is cut short.
    """
    content = memoryview(path.read_bytes())
    try:
        graph = next(value for number, value in fields(content) if number == MODEL_GRAPH)
        weights, nodes = {}, []
        for number, value in fields(graph):
            if number == GRAPH_INITIALIZER:
                name, array = _tensor(value)
                if array is not None:
                    weights[name] = array
            elif number == GRAPH_NODE:
                nodes.append(_node(value))
    except (IndexError, StopIteration, ValueError, TypeError) as fault:
        raise ValueError(
            f"{path}: found no whole ONNX file ({fault or 'it ends early'}); fetch it again"
        ) from fault
    return OnnxFile(weights, tuple(nodes))


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer's message: whole numbers as int, the rest as memoryview.

    Raises IndexError where it ends within a field, ValueError at a wire type that is none.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == VARINT:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > end:
            raise IndexError(f"a field of {length} bytes at byte {at} of {end}")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number in groups of 7 bits, the least first; and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def _tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    name, kind, dims, raw = "", 0, [], None
    for number, value in fields(message):
        if number == TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == TENSOR_TYPE:
            kind = value
        elif number == TENSOR_NAME:
            name = bytes(value).decode()
        elif number in (TENSOR_RAW, TENSOR_FLOATS):
            raw = value
    if kind != FLOAT or raw is None:
        return name, None
    return name, np.frombuffer(raw, dtype="<f4").reshape(dims).copy()


def _packed(message: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(message):
        number, at = _varint(message, at)
        numbers.append(number)
    return numbers


def _node(message: memoryview) -> Node:
    found: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_NAME: [""], NODE_OP: [""]}
    for number, value in fields(message):
        if number in found:
            found[number].append(bytes(value).decode())
    return Node(found[NODE_NAME][-1], found[NODE_OP][-1], tuple(found[NODE_INPUT]), tuple(found[NODE_OUTPUT]))
