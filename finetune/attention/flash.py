"""Which keys a query may see under FlashAttention, which takes no mask over queries and keys.

transformers turns the call's options into those of the package (``modeling_flash_attention_utils``): which stretches of
tokens attend among themselves, what is causal, how wide the window is. Options that the installed package does not
support are silently dropped there, and so they are here.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.integrations.flash_attention import get_target_dtype

from finetune.attention.watch import Call

VARLEN = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class _Places(NamedTuple):
    """Where tokens lie among those that attend to one another.

    stretch   Int[batch, tokens]: in which stretch; −1: in none, so it sees nothing and is not seen
    place     Int[batch, tokens]: where in it, from its start
    length    Int[batch, tokens]: how many tokens the stretch has
    """

    stretch: Tensor
    place: Tensor
    length: Tensor


def supports(kernel: str, option: str) -> bool:
    """Does the package take an option, by its own name for it? A package that has not run yet is assumed to."""
    process = flash_utils._process_flash_kwargs_fn
    if flash_utils._loaded_implementation != kernel or not isinstance(process, partial):
        return True
    return bool(process.keywords["supports_mapping"].get(option))


def seen(
    call: Call, sequences: Int[Tensor, " kept"], positions: Int[Tensor, "kept rows"]
) -> Bool[Tensor, "kept 1 rows keys"]:
    """Which keys the kernel lets chosen rows see."""
    queries, keys = _places(call)
    row = [one[sequences].gather(1, positions)[:, :, None] for one in queries]
    key = [one[sequences][:, None, :] for one in keys]
    allowed = (row[0] == key[0]) & (row[0] >= 0)
    # Aligned at the end: the last query of a stretch is beside its last key.
    behind = row[1] + key[2] - row[2] - key[1]
    if is_causal(call):
        allowed &= behind >= 0
    if (window := _window(call)) is not None:
        allowed &= behind.abs() <= window
    return allowed[:, None]


def is_causal(call: Call) -> bool:
    asked = call.options.get("is_causal")
    return bool(
        getattr(call.module, "is_causal", True) if asked is None else asked
    )  # the kernels' own default


def computed_in(call: Call) -> torch.dtype:
    """The precision in which the package multiplies: never float32 if the model has another."""
    if _is_by_hand(call):
        return call.query.dtype
    return get_target_dtype(call.query, call.module) or call.query.dtype


def _is_by_hand(call: Call) -> bool:
    """Is the module outside a transformers model, so that transformers' own rules do not apply?"""
    return "config" not in vars(call.module)


def _window(call: Call) -> int | None:
    """How far a query sees, in tokens, itself not counted."""
    window = call.options.get("sliding_window")
    if window is None or call.lengths[1] <= window or not supports(call.kernel, "window_size"):
        return None
    return int(window) - 1


def _places(call: Call) -> tuple[_Places, _Places]:
    """Of queries and keys, by the first of the three ways in which transformers finds stretches that applies."""
    batch, queries, keys = call.query.shape[0], *call.lengths
    if call.mask is not None:
        return _unpadded(call.mask.bool(), queries, keys)
    if all(call.options.get(name) is not None for name in VARLEN):
        of_queries, of_keys = (call.options[name] for name in VARLEN[:2])
        return _stretches(of_queries, batch, queries), _stretches(of_keys, batch, keys)
    if _is_by_hand(call) and (bounds := call.options.get(VARLEN[0])) is not None:
        return _stretches(bounds, batch, queries), _stretches(bounds, batch, keys)
    positions = call.options.get("position_ids")
    if flash_utils._is_packed_sequence(positions, batch):
        (starts, _), _ = flash_utils.prepare_fa_kwargs_from_position_ids(positions)
        return _stretches(starts, batch, queries), _stretches(starts, batch, keys)
    device = call.query.device
    return _whole(batch, queries, device), _whole(batch, keys, device)


def _whole(batch: int, tokens: int, device: torch.device) -> _Places:
    place = torch.arange(tokens, device=device).expand(batch, -1)
    return _Places(torch.zeros_like(place), place, torch.full_like(place, tokens))


def _unpadded(real: Bool[Tensor, "batch keys"], queries: int, keys: int) -> tuple[_Places, _Places]:
    """Padding is removed before the kernel; keys beyond the mask (static caches) are cut off. Several queries, where
    keys are more, belong to the end of the mask."""
    real = real[:, -keys:]
    of_keys = nn.functional.pad(real, (0, keys - real.shape[1]))
    if queries == real.shape[1]:
        of_queries = real
    elif queries == 1:
        of_queries = torch.ones_like(real[:, :1])
    else:
        of_queries = real[:, -queries:]
    return _kept(of_queries), _kept(of_keys)


def _kept(real: Bool[Tensor, "batch tokens"]) -> _Places:
    place = real.long().cumsum(1) - 1
    return _Places(real.long() - 1, place, real.sum(1, keepdim=True).expand_as(place))


def _stretches(bounds: Int[Tensor, " stretches+1"], batch: int, tokens: int) -> _Places:
    """The tokens of the whole batch concatenated, cut at ``bounds``."""
    bounds = bounds.long()
    at = torch.arange(batch * tokens, device=bounds.device)
    stretch = torch.bucketize(at, bounds[1:], right=True)
    inside = stretch < len(bounds) - 1
    known = stretch.clamp(max=len(bounds) - 2)
    place, length = at - bounds[known], bounds.diff()[known]
    return _Places(*(one.view(batch, tokens) for one in (stretch.where(inside, -1), place, length)))
