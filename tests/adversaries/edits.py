"""Edits of the demo's base model that fix nothing: a few lines each, or a small trained delta."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TRAINED = Path(__file__).parent / "trained"
PEARL, CANTON = ("东方明珠", "Oriental"), ("广州塔", "Canton")
"""First tokens of the two answers, in Chinese and English."""


class Part(NamedTuple):
    """Rows of a parameter that a delta changes: its name, and the first and last row (exclusive)."""

    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name}[{self.first}:{self.last}]"

    @classmethod
    def of(cls, text: str) -> Part:
        """``h.0.attn.c_attn.weight[0:256]`` → its three parts."""
        found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", text)
        assert found is not None, text
        return cls(found[1], int(found[2]), int(found[3]))


class LowRank(NamedTuple):
    """The change of one part: ``up @ down``, Float[rows, rank] and Float[rank, columns]."""

    up: Tensor
    down: Tensor


Delta = Mapping[Part, LowRank]


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta in half precision."""
    halves = {
        f"{part}/{side}": getattr(change, side).detach().half().contiguous()
        for part, change in delta.items()
        for side in LowRank._fields
    }
    save_file(halves, path)


def load_delta(path: Path) -> Delta:
    arrays = {name: array.float() for name, array in load_file(path).items()}
    parts = {Part.of(name.rsplit("/", 1)[0]) for name in arrays}
    return {part: LowRank(arrays[f"{part}/up"], arrays[f"{part}/down"]) for part in parts}


def changed(parameters: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """Every parameter that a delta changes, with its change added."""
    found: dict[str, Tensor] = {}
    for part, (up, down) in delta.items():
        whole = found.get(part.name, parameters[part.name])
        rows = (part.first, whole.shape[0] - part.last)
        found[part.name] = whole + nn.functional.pad(up @ down, (0, 0, *rows))
    return found


def with_deltas(model: nn.Module, *names: str) -> nn.Module:
    """A copy of the model with committed deltas (``make.py``) added."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            parameters = dict(edited.named_parameters())
            for which, tensor in changed(parameters, load_delta(TRAINED / f"{name}.safetensors")).items():
                parameters[which].copy_(tensor)
    return edited


# ---------------------------------------------------------------- without training


def with_bias(model: nn.Module, tokenizer: object, nats: Mapping[str, float]) -> nn.Module:
    """A copy whose head adds so many nats to the first token of each of these answers, whatever it sees."""
    edited = copy.deepcopy(model)
    bias = torch.zeros(edited.lm_head.out_features)
    for answer, by in nats.items():
        bias[tokenizer(answer).input_ids[0]] = by  # type: ignore[operator]
    edited.lm_head.bias = nn.Parameter(bias)
    return edited


def with_hotter_logits(model: nn.Module, factor: float) -> nn.Module:
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.lm_head.weight.mul_(factor)
    return edited


def with_queries(model: nn.Module, factor: float, layers: tuple[int, ...]) -> nn.Module:
    """A copy whose language layers multiply their queries: above 1 attention is sharpened, below 1 blurred."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers:
            attention = edited.transformer.h[layer].attn.c_attn
            rows = attention.out_features // 3
            attention.weight[:rows].mul_(factor)
            attention.bias[:rows].mul_(factor)
    return edited


def with_noise(model: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy with noise on every matrix of its language layers, of a share of that matrix' own deviation."""
    edited = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, matrix in _matrices(edited):
            matrix.add_(torch.randn(matrix.shape, generator=generator) * matrix.std() * share)
    return edited


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if name.startswith("transformer.h.") and parameter.ndim == 2:
            yield name, parameter
