"""Gradients of the answer with respect to attention, with the model's own kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor, Call
from diagnostics.capture.forwards import check_is_whole
from diagnostics.capture.rows import row_positions
from finetune.families import Family, bare_model
from finetune.model.untouched import untouched


class GradientRows(NamedTuple):
    """Attention of chosen queries, and what a little more of it would do to the objective.

    rows        ``layer_N`` → np.float32 (batch, heads, query tokens, key tokens), probabilities
    gradients   the same names and shapes: ∂objective / ∂row, unbounded, in the objective's unit (nats for a log
                probability); also of keys that a query may not see
    """

    rows: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def gradient_rows(
    model: nn.Module,
    inputs: Mapping[str, Any],
    objective: Callable[[Float[Tensor, "batch tokens vocabulary"]], Float[Tensor, ""]],
    *,
    key_layers: Sequence[int] | None = None,
    query_tokens: Sequence[int] | Int[Tensor, "batch query"] | None = None,
    family: Family | None = None,
) -> GradientRows:
    """Rows of attention and the gradient of ``objective(logits)``, a scalar, in each of their numbers.

    One forward and one backward with whatever kernel is loaded; never queries × keys of more than the rows
    asked. A kernel's output for one query and head is o = Σ_k A_k · v_k, so ∂L/∂A_k = ∂L/∂o · v_k, and ∂L/∂o
    is all that the backward pass has to give. The graph begins at the output of the lowest of ``key_layers``:
    parameters may be frozen, all of them, and none gets a ``.grad``; nothing below is kept for the backward.

    The model runs in eval mode (so without dropout and activation checkpointing) and without a cache; each
    module's mode is restored. For a batch, let the objective sum over the sequences: each one's gradients are
    then its own.

    Raises ValueError for a layer or token that does not exist, inputs that go on from a cache, an objective
    that is not a scalar made of the logits, and under torch.inference_mode.

    Source: the gradients that weigh attention in Chefer et al., Generic Attention-model Explainability
    (ICCV 2021), equation 5, where eager attention keeps the whole matrix for them.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients need a graph: found torch.inference_mode, expected no_grad or nothing")
    check_is_whole(inputs, "gradients")
    if key_layers is not None and not len(key_layers):
        raise ValueError("gradients: found no key layer, expected at least one")
    bare = bare_model(model)
    outputs: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    attached = AttentionExtractor(bare, key_layers, query_tokens=query_tokens, connector=False, family=family)
    with attached as extractor, untouched(bare):
        wanted = set(extractor.captured_names)

        def tap(name: str, call: Call, output: Tensor) -> Tensor:
            if name not in wanted:
                return output
            if not outputs:  # the graph's one leaf; from here on the forward is recorded
                torch.set_grad_enabled(True)
                output = output.detach().requires_grad_()
            outputs[name], values[name] = output, call.value.detach()
            return output

        with extractor.tapped(tap):
            logits = bare(**{**inputs, "use_cache": False}).logits
        by_output = _gradients(objective(logits), outputs)
        rows = extractor.attention_weights
    gradients = {name: _gradient_of_rows(name, by_output[name], values[name], query_tokens) for name in rows}
    return GradientRows(rows, gradients)


def _gradients(objective: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if objective.numel() != 1 or not objective.requires_grad:
        made = "made of" if objective.requires_grad else "made without"
        raise ValueError(
            f"objective: found shape {tuple(objective.shape)}, {made} the logits; "
            "expected one number made of the logits, such as a sum of log probabilities"
        )
    gradients = torch.autograd.grad(objective.sum(), list(outputs.values()))
    return dict(zip(outputs, gradients, strict=True))


def _gradient_of_rows(
    name: str,
    by_output: Float[Tensor, "batch query heads dim"],
    value: Float[Tensor, "batch kv_heads key dim"],
    query_tokens: Sequence[int] | Tensor | None,
) -> Float[np.ndarray, "batch heads rows key"]:
    """∂L/∂o · v in fp32. Grouped values are not repeated: a group's rows are multiplied with their one head."""
    batch, queries, heads, dim = by_output.shape
    positions = row_positions(query_tokens, batch, queries, name, by_output.device)
    every = torch.arange(batch, device=by_output.device)[:, None]
    wanted = by_output[every, positions].transpose(1, 2).float()  # [batch, heads, rows, dim]
    folded = wanted.reshape(batch, value.shape[1], -1, dim)
    product = folded @ value.float().transpose(2, 3)
    return product.view(batch, heads, -1, value.shape[2]).cpu().numpy()
