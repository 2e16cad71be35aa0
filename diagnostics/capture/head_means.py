"""Whole matrices of attention, averaged over heads, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.forwards import check_is_whole
from diagnostics.capture.rows import to_numpy
from finetune.attention.rows import attention_logits, attention_rows, sink_logits
from finetune.attention.watch import Call
from finetune.families import Family, bare_model
from finetune.families.parts.modules import attending_layers, language_layers

HEAD_MEANS_LIMIT_BYTES = 2 * 2**30

CHUNK_BYTES = 32 * 2**20  # of one buffer of rows, where all are computed but none is kept


@torch.no_grad()
def head_means(
    model: nn.Module,
    inputs: Mapping[str, Any],
    family: Family | None = None,
    *,
    limit_bytes: int = HEAD_MEANS_LIMIT_BYTES,
) -> Float[np.ndarray, "layers query key"]:
    """Every row of every language layer that attends, averaged over heads, of one sequence: np.float32, range [0, 1],
    each row's sum 1 (with sink logits below 1). What rollout multiplies.

    The one thing here that is tokens × tokens: 4 · layers · tokens² bytes on the host, 128 MiB for 32 layers and
    1,024 tokens, 2 GiB for 4,096. Beyond it, on the device: a few buffers of ``CHUNK_BYTES`` (32 MiB), or of one
    row of all heads where that is more, since rows are taken one layer and one stretch of queries at a time.
    Run it in eval mode.

    Raises ValueError for a batch of more than one, where the result would be larger than ``limit_bytes``, and
    where a layer's attention cannot be observed.
    """
    check_is_whole(inputs, "head means")
    batch, tokens = inputs["input_ids"].shape
    if batch != 1:
        raise ValueError(f"head means: found a batch of {batch}, expected one sequence; call once for each")
    with AttentionExtractor(model, [], connector=False, family=family) as extractor:
        names = extractor.language_names
        size = 4 * len(names) * tokens**2
        if size > limit_bytes:
            raise ValueError(
                f"head means of {len(names)} layers × {tokens:,} × {tokens:,} tokens take {size / 2**20:,.1f} MiB, "
                f"expected at most {limit_bytes / 2**20:,.1f}; ask a shorter question, use a smaller picture, or raise "
                "limit_bytes"
            )
        means = np.empty((len(names), tokens, tokens), np.float32)
        missing = set(names)

        def tap(name: str, call: Call, output: Tensor) -> Tensor:
            if name in missing:
                _write_head_means(call, means[names.index(name)])
                missing.discard(name)
            return output

        with extractor.tapped(tap):
            bare_model(model)(**{**inputs, "use_cache": False})
    if missing:
        raise ValueError(f"{min(missing)}: its attention never ran through the interface; expected one call")
    return means


def _write_head_means(call: Call, out: Float[np.ndarray, "query key"]) -> None:
    device = call.query.device
    queries, keys = call.lengths
    chunk = max(CHUNK_BYTES // (4 * call.query.shape[1] * keys), 1)
    for start in range(0, queries, chunk):
        positions = torch.arange(start, min(start + chunk, queries), device=device)[None]
        logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=device), positions)
        out[start : start + chunk] = to_numpy(attention_rows(logits, sink_logits(call))[0].mean(0))


def in_all_layers(
    model: nn.Module, family: Family, values: Float[np.ndarray, "attending ..."]
) -> Float[np.ndarray, "layers ..."]:
    """Numbers of the layers that attend → of all language layers, so that a layer's number is its place: np.float32,
    NaN where a layer has no attention map."""
    found = np.full((len(language_layers(model, family)), *values.shape[1:]), np.nan, np.float32)
    found[list(attending_layers(model, family))] = values
    return found
