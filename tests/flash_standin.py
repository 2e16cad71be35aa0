"""FlashAttention 2 and 3 without a GPU: the packages' functions in torch, below transformers' own flash path.

    with standing_in(2), using(model, 2):
        model(**inputs)

Only the functions that transformers imports are replaced, so all that it does before and after them is real: unpadding,
``cu_seqlens``, samples told apart by their positions, windows, and what it asks of a package that lacks an option. The
packages want half precision and a GPU; these take anything.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import modeling_flash_attention_utils as flash_utils

PACKAGES = {2: "flash_attn", 3: "flash_attn_interface"}


def attend(q, k, v, scale, causal, window, softcap, sinks=None) -> Tensor:
    """Of tensors [batch, tokens, heads, width]: causal and windows are aligned at the last token."""
    queries, keys, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    ahead = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)  # of its query, a key
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    logits = logits.masked_fill(hidden, -torch.inf)
    if sinks is not None:  # one more key of each head, without a value
        logits = torch.cat([logits, sinks[:, None, None].expand(*logits.shape[:3], 1)], -1)
    rows = logits.softmax(-1).nan_to_num(0.0)[..., :keys]
    return torch.einsum("bhqk,bkhd->bqhd", rows.to(v.dtype), v)


def by_stretch(one: Callable[..., Tensor], q, k, v, cu_seqlens_q, cu_seqlens_k) -> Tensor:
    """Of tensors [tokens, heads, width]: each stretch of queries attends within its own stretch of keys."""
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    of_queries, of_keys = pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist())
    for (start, end), (first, last) in zip(of_queries, of_keys, strict=True):
        out[start:end] = one(q[start:end][None], k[first:last][None], v[first:last][None])[0]
    return out


def flash_2() -> ModuleType:
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        deterministic=False,
    ):  # fmt: skip
        return attend(q, k, v, softmax_scale, causal, window_size, softcap)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False,
    ):  # fmt: skip
        def one(q, k, v):
            return attend(q, k, v, softmax_scale, causal, window_size, softcap)

        return by_stretch(one, q, k, v, cu_seqlens_q, cu_seqlens_k)

    return package(PACKAGES[2], flash_attn_func, flash_attn_varlen_func)


def flash_3() -> ModuleType:
    """No dropout, and the sums beside the output, as some builds return them."""

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False
    ):
        return attend(q, k, v, softmax_scale, causal, window_size, softcap), None

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
        window_size=(-1, -1), softcap=0.0, deterministic=False,
    ):  # fmt: skip
        def one(q, k, v):
            return attend(q, k, v, softmax_scale, causal, window_size, softcap)

        return by_stretch(one, q, k, v, cu_seqlens_q, cu_seqlens_k), None

    return package(PACKAGES[3], flash_attn_func, flash_attn_varlen_func)


def package(name: str, plain: Callable[..., object], varlen: Callable[..., object]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.flash_attn_func, module.flash_attn_varlen_func = plain, varlen
    module.flash_attn_with_kvcache = None
    return module


@contextmanager
def standing_in(version: int, made: ModuleType | None = None) -> Iterator[None]:
    """transformers finds FlashAttention of this version installed; ``made``: another package than the usual one."""
    made = made or {2: flash_2, 3: flash_3}[version]()
    padding = ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    with (
        _imported({made.__name__: made, padding.__name__: padding}),
        mock.patch.object(flash_utils, f"is_flash_attn_{version}_available", lambda: True),
        mock.patch.object(flash_utils, "_loaded_implementation", None),
    ):
        yield


@contextmanager
def _imported(modules: dict[str, ModuleType]) -> Iterator[None]:
    """In ``sys.modules``, and out of it again: these alone. Trap: ``mock.patch.dict`` also takes out what was imported
    for the first time meanwhile, and transformers then finds no source of its own classes."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


@contextmanager
def using(model: nn.Module, version: int) -> Iterator[None]:
    """The model runs it, as ``attn_implementation=f"flash_attention_{version}"`` at loading has it do on a GPU."""
    found = (vars(module).get("config") for module in model.modules())
    configs = {id(one): one for one in found if isinstance(one, PreTrainedConfig)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = f"flash_attention_{version}"
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel
