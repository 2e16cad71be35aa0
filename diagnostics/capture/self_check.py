"""Verifies on one input that the captured rows are those that the model uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.forwards import check_is_whole
from diagnostics.capture.watcher import Proof
from finetune.families import Family

ROW_SUM_TOLERANCE = 1e-4
DISAGREEMENT, DISAGREEMENT_OF_HALVES = 1e-3, 3e-2
"""Most that rows × values may differ from the kernel's output, of its size: where it computes in fp32, and in fewer
bits (bf16 rounds to 0.4%, which adds up: to 0.7% in tiny models of every family, to 0.1% with fp16)."""


def self_check(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    key_layers: Sequence[int] | None = None,
    family: Family | None = None,
) -> None:
    """Prove, on one input, that the captured attention is what the model uses. Silent if it is.

    In turn: the logits with capture are those without, bit for bit; every row has its shape and sums to 1 (with sink
    logits to 1 at most); rows × values give the very output of the kernel; and taking keys away through the same path
    changes the logits, in each key layer and in the connector. Run it in eval mode, under no_grad, with at least two
    tokens.

    Raises ValueError naming the first layer that fails, with found and expected.
    """
    check_is_whole(inputs, "self-check")
    plain = model(**inputs).logits
    with AttentionExtractor(model, key_layers, family=family) as extractor:
        extractor._proof = {}
        observed = model(**inputs).logits
        if not torch.equal(plain, observed):
            worst = (plain - observed).abs().max().item()
            raise ValueError(
                f"logits with attention captured differ by {worst:.3g}, expected 0: capture is wired wrongly"
            )
        batch, length = inputs["input_ids"].shape
        _check_rows(extractor, batch, length, inputs.get("attention_mask"))
        for name, rows in extractor.attention_weights.items():
            blocked = _all_but_own(name, rows.shape)
            with extractor.knocked_out({name: blocked}):
                changed = model(**inputs).logits
            if torch.equal(changed, plain):
                raise ValueError(
                    f"{name}: taking keys away left the logits as they were, expected a change: "
                    "this is not the attention that the model uses"
                )


def _check_rows(extractor: AttentionExtractor, batch: int, length: int, padding: Tensor | None) -> None:
    real = np.ones((batch, length), bool) if padding is None else padding.bool().cpu().numpy()
    missing = [
        name for name in extractor._wanted if name.startswith("layer_") and name not in extractor._kept.rows
    ]
    if missing:
        raise ValueError(
            f"{missing[0]}: its attention never ran through the interface; expected one call in a forward"
        )
    for name, rows in extractor.attention_weights.items():
        if name.startswith("layer_") and (rows.shape[0], *rows.shape[2:]) != (batch, length, length):
            raise ValueError(
                f"{name}: rows of shape {rows.shape}, expected ({batch}, heads, {length}, {length})"
            )
        sums = rows.sum(-1)
        if name.startswith("layer_"):
            sums = sums.transpose(0, 2, 1)[real]
        proof = Proof(0.0) if extractor._proof is None else extractor._proof[name]
        off = sums - 1
        worst = float(off.max() if proof.has_sink_logits else np.abs(off).max())
        if worst > ROW_SUM_TOLERANCE:
            most = " at most" if proof.has_sink_logits else ""
            raise ValueError(
                f"{name}: a row's sum is off by {worst:.3g}, expected 1{most} within {ROW_SUM_TOLERANCE}"
            )
        is_half = torch.finfo(proof.precision).bits < 32
        tolerance = DISAGREEMENT_OF_HALVES if is_half else DISAGREEMENT
        if proof.wrong > tolerance:
            raise ValueError(
                f"{name}: rows × values differ from the kernel's output by {proof.wrong:.3g} of its size, "
                f"expected at most {tolerance}: the rows are not what the kernel used"
            )


def _all_but_own(name: str, shape: tuple[int, ...]) -> Tensor:
    """Blocks all other tokens for each token; for the connector, every second patch."""
    queries, keys = shape[2:]
    if name.startswith("layer_"):
        return ~torch.eye(queries, keys, dtype=torch.bool)[None]
    return (torch.arange(keys) % 2 == 0)[None, None]
