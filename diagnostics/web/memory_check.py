"""Estimates from its configuration whether a model fits into memory, before weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.families import Family, attention_modules, family_of
from finetune.model.checkpoint import skeleton
from finetune.model.memory_estimate import NF4_CONSTANT_BITS, RESERVE_BYTES, gibibytes

CONTEXT_TOKENS = 2048
"""Length of the conversation whose keys and values are counted."""
CPU_RESERVE_BYTES = (
    2**28
)  # memory of a small process apart from weights; for a GPU see finetune.model.memory_estimate


class Need(NamedTuple):
    """Bytes needed to answer.

    weights   as stored: 4-bit language layers take 4.13 bits per weight
    cache     keys and values of a conversation of ``CONTEXT_TOKENS``
    traces    attention kept for the page; 0 in mode "text"
    reserve   the device's own use, and temporary buffers
    """

    weights: float
    cache: float
    traces: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(self)

    def __str__(self) -> str:
        """``needs 19.6 GiB: weights 18.0 GiB, keys and values 1.0 GiB, attention 0.1 GiB, reserve 0.5 GiB``"""
        parts = {
            "weights": self.weights,
            "keys and values": self.cache,
            "attention": self.traces,
            "reserve": self.reserve,
        }
        listed = ", ".join(f"{name} {gibibytes(size)}" for name, size in parts.items() if size)
        return f"needs {gibibytes(self.total)}: {listed}"


def need(
    config: Any, *, four_bit: bool, traces_bytes: float, on_gpu: bool, adapter: Path | None = None
) -> Need:
    """The memory a model needs, from its configuration alone.

    four_bit      whether language layers are loaded in NF4
    traces_bytes  attention kept on the model's own device
    adapter       adapter folder, whose tensors are added
    """
    family = family_of(config)
    model = skeleton(config)
    width = torch.finfo(config.dtype).bits // 8 if config.dtype is not None else 4
    weights = weight_bytes(model, family, four_bit=four_bit)
    if adapter is not None:
        weights += sum(file.stat().st_size for file in adapter.glob("adapter_model.*"))
    shapes = [
        family.attention_shape(config, name)
        for name in attention_modules(model, family)
        if name.startswith("layer_")
    ]
    cache = sum(2 * one.key_heads * one.head_width * width * CONTEXT_TOKENS for one in shapes if one)
    return Need(weights, cache, traces_bytes, RESERVE_BYTES if on_gpu else CPU_RESERVE_BYTES)


def weight_bytes(model: nn.Module, family: Family, *, four_bit: bool) -> float:
    """Bytes of a model's weights once loaded, from the model on the meta device."""
    inside = f"{family.paths.language_layers}."
    quantised = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if four_bit and isinstance(module, nn.Linear) and name.startswith(inside)
    }
    return sum(
        parameter.numel() * ((4 + NF4_CONSTANT_BITS) / 8 if name in quantised else parameter.element_size())
        for name, parameter in model.named_parameters()
    )


def require(needed: Need, available: float, *, name: str, advice: Sequence[str]) -> None:
    """Raises ValueError with remedies, cheapest first, if the model does not fit."""
    if needed.total <= available:
        return
    helps = "; ".join(advice) or "a smaller checkpoint, or a machine with more memory"
    raise ValueError(f"{name} {needed}; found {gibibytes(available)} free. Try: {helps}")
