"""Runs the kernel of one attention module and captures its rows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from diagnostics.capture.forwards import Forwards
from diagnostics.capture.masks import by_place, mask_without, with_mask
from diagnostics.capture.patterns import has_patterns
from diagnostics.capture.rows import indices, row_positions
from diagnostics.capture.tower_rows import Piece
from finetune.attention.rows import attention_logits, attention_rows, highest, sink_logits
from finetune.attention.watch import Call
from finetune.families import Family
from finetune.families.base import TowerSequence, flash_fault
from finetune.families.parts.modules import attending_layers

if TYPE_CHECKING:
    from diagnostics.capture.extractor import AttentionExtractor


class Proof(NamedTuple):
    """How far rows × values are from the kernel's output, relative to it; whether rows may sum to less than 1; and the
    precision that the kernel computes in."""

    wrong: float
    has_sink_logits: bool = False
    precision: torch.dtype = torch.float32


class Watcher:
    """Runs the real kernel of one attention module: knocks keys out before it, and captures rows after it."""

    def __init__(self, owner: AttentionExtractor, name: str) -> None:
        self._owner = weakref.ref(owner)
        self.name = name
        self.is_language = name.startswith("layer_")

    @property
    def owner(self) -> AttentionExtractor:
        owner = self._owner()
        assert owner is not None, "a watch ends with its owner"
        return owner

    def run(self, call: Call) -> tuple[Tensor, Any]:
        owner = self._owner()
        if owner is None or not owner._inside:
            return call.run()
        if self.is_language:
            call = placed(call, owner._forwards)
        elif owner._forwards.is_step and not owner._is_ahead:
            owner._see_pictures()
        if owner._patterns is not None and has_patterns(self.name):
            call = owner._patterns.through(self.name, call)
        sequences = owner._sequences_of(self.name, call)
        if (blocked := owner._blocked.get(self.name)) is not None:
            blocked = blocked if sequences is None else by_place(blocked, sequences)
            call = (
                call.of_tokens() if call.is_flash else call
            )  # its mask is over tokens, not over places in the cache
            call = with_mask(call, mask_without(call, blocked, start=call.past or 0))
        output = call.run()
        if self.name in owner._wanted:
            if sequences is None:
                self._observe(call.of_tokens(), output[0])
            else:
                self._observe_tower(call, output[0], sequences)
        if owner._tap is not None:
            output = (owner._tap(self.name, call, output[0]), *output[1:])
        return output

    @torch.no_grad()
    def _observe(self, call: Call, output: Tensor) -> None:
        owner, name = self.owner, self.name
        batch, heads, _, _ = call.query.shape
        device = call.query.device
        if self.is_language:
            sequences = indices(owner.sequences, batch, f"{name}: sequence", device)
        else:
            sequences = indices(owner.images, batch, f"{name}: image", device)
        kept_heads = indices(owner.heads if self.is_language else None, heads, f"{name}: head", device)
        positions = self._positions(call, len(sequences))
        logits = attention_logits(call, sequences, positions)
        rows = attention_rows(logits, sink_logits(call))
        if owner._proof is not None:
            wrong = disagreement(rows, call.value[sequences], output[sequences], positions)
            owner._proof[name] = Proof(wrong, sink_logits(call) is not None, computed_in(call, output))
        rows = call.by_token(rows[:, kept_heads])
        if self.is_language and owner._forwards.is_step:
            owner._store_step(name, owner._forwards.start, rows)
            return
        owner._store(name, rows)
        if self.is_language:
            owner._now.highest[name] = highest(call, logits)[:, kept_heads]

    def _positions(self, call: Call, kept: int) -> Int[Tensor, "kept rows"]:
        """Places among this call's queries of the rows to keep: all of a step's."""
        owner, name, device = self.owner, self.name, call.query.device
        queries, _ = call.lengths
        if not self.is_language:
            tokens = owner.vision_tokens if name.startswith("vision_layer_") else None
            return row_positions(tokens, kept, queries, name, device)
        past = call.past or 0
        if owner._forwards.is_step or owner.query_tokens is None:
            return row_positions(None, kept, queries, name, device)
        positions = row_positions(owner.query_tokens, kept, past + queries, name, device)
        if past and len(early := positions[positions < past]):
            raise ValueError(
                f"{name}: query token {int(early[0])} was read by an earlier forward and is in the cache; this one "
                f"has rows of tokens {past} to {past + queries - 1} alone: ask for those, or read all in one forward"
            )
        return positions - past

    @torch.no_grad()
    def _observe_tower(self, call: Call, output: Tensor, sequences: Sequence[TowerSequence]) -> None:
        owner, device = self.owner, call.query.device
        for at, sequence in enumerate(sequences):
            places = np.flatnonzero(owner._asks_for(self.name, sequence))
            if len(places):
                positions = torch.from_numpy(places).to(device)[None]
                logits = attention_logits(call, torch.tensor([at], device=device), positions)
                rows = attention_rows(logits, sink_logits(call))
                if owner._proof is not None:
                    wrong = disagreement(rows, call.value[[at]], output[[at]], positions)
                    before = owner._proof.get(self.name, Proof(0.0))
                    owner._proof[self.name] = Proof(
                        max(wrong, before.wrong), sink_logits(call) is not None, computed_in(call, output)
                    )
                owner._store_piece(self.name, Piece(sequence, places, rows[0]))


def check_masks(model: nn.Module, family: Family) -> None:
    """Raises ValueError if the kernel of the language model drops a part of the family's mask."""
    fault = flash_fault(family)
    for layer in attending_layers(model, family) if fault else ():
        attention = model.get_submodule(
            f"{family.paths.language_layers}.{layer}.{family.paths.language_attention}"
        )
        if "flash" in str(vars(attention)["config"]._attn_implementation):
            raise ValueError(f"{fault}; load the model with attn_implementation='sdpa' or 'eager'")


def placed(call: Call, forwards: Forwards) -> Call:
    return call._replace(past=forwards.start, keeps_keys=forwards.keeps_keys)


def computed_in(call: Call, output: Tensor) -> torch.dtype:
    """The coarsest precision among what a kernel takes and gives.

    Trap: not that of the model's logits, which Accelerate turns into fp32 around a forward in bf16; nor that of the
    queries, which a rotary embedding leaves in fp32 under autocast, where the kernel rounds them itself.
    """
    present = (call.query.dtype, call.key.dtype, call.value.dtype, output.dtype)
    return max(present, key=lambda dtype: torch.finfo(dtype).eps)


def disagreement(rows: Tensor, value: Tensor, output: Tensor, positions: Tensor) -> float:
    """Largest |rows × values − kernel output|, relative to the largest output, over rows that see
    anything."""
    rows = rows.float()
    value = value.float().repeat_interleave(rows.shape[1] // value.shape[1], dim=1)
    index = positions[:, None, :, None].expand(-1, rows.shape[1], -1, value.shape[-1])
    true = output.transpose(1, 2).float().gather(2, index)
    seen = rows.sum(-1, keepdim=True) > 0
    return float((((rows @ value) - true) * seen).abs().max() / true.abs().max().clamp(min=1e-12))
