"""Attention rows of one kernel call, recomputed from its queries and keys: exact, and only for the wanted queries."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetune.attention import flash
from finetune.attention.watch import Call

UNSUPPORTED_TERMS = ("position_bias",)  # rows without it would be wrong

SINK_LOGITS, SOFT_CAP = "s_aux", "softcap"  # transformers' names, in the options of a call

LEFT_OUT_BY_SDPA = (SINK_LOGITS, SOFT_CAP)


def attention_logits(
    call: Call, sequences: Int[Tensor, " kept"], positions: Int[Tensor, "kept rows"]
) -> Float[Tensor, "kept heads rows key"]:
    """q·k·scale + mask of chosen rows of a call, in fp32 (fp64 of an fp64 call): what its kernel takes the softmax
    of, beside ``sink_logits``. −inf where a row may not see a key. It has a gradient where the call has one.

    ``sequences`` are places in the batch, ``positions`` places among this call's queries. Grouped keys are not
    repeated: each group's queries are multiplied with their one key head.

    Raises ValueError for terms that rows cannot show.
    """
    present = [term for term in UNSUPPORTED_TERMS if call.options.get(term) is not None]
    if present:
        module = type(call.module).__name__
        raise ValueError(f"{module} adds {', '.join(present)} to its attention; its rows cannot be shown")
    batch, heads, _, dim = call.query.shape
    kept, rows = positions.shape
    precision = flash.computed_in(call) if call.is_flash else call.query.dtype
    with torch.autocast(call.query.device.type, enabled=False):
        query = call.query[sequences[:, None], :, positions].transpose(1, 2).to(precision)
        query = wide(query)
        key = wide(call.key.expand(batch, -1, -1, -1)[sequences].to(precision))
        folded = query.reshape(kept, key.shape[1], heads // key.shape[1] * rows, dim)
        logits = (folded @ key.transpose(2, 3)).view(kept, heads, rows, key.shape[2])
        scale = call.options.get("scaling")
        logits *= dim**-0.5 if scale is None else scale
        if (cap := call.options.get(SOFT_CAP)) is not None:
            _require(call, "a soft cap of its logits", (SOFT_CAP,))
            logits = torch.tanh(logits / cap) * cap
        allowed, bias = rules(call, sequences, positions)
        if bias is not None:
            logits += wide(bias)
        return logits if allowed is None else logits.masked_fill_(~allowed, float("-inf"))


def sink_logits(call: Call) -> Float[Tensor, " heads"] | None:
    """One learnt logit a head, in fp32, that stands among a row's logits as if of one more key, which has no value.
    None if the module has none.

    Raises ValueError if the kernel drops them: the model would then differ from the trained one.

    Source: gpt-oss-120b & gpt-oss-20b Model Card (arXiv 2508.10925), section 2.2.
    """
    sinks = call.options.get(SINK_LOGITS)
    if sinks is None:
        return None
    _require(call, "sink logits", ("s_aux", "learnable_sink"))  # as packages call them
    return sinks.detach().to(call.query.dtype).float()  # as kernels take them


def attention_rows(
    logits: Float[Tensor, "*batch heads rows key"], sinks: Float[Tensor, " heads"] | None = None
) -> Float[Tensor, "*batch heads rows key"]:
    """Attention logits → probabilities, range [0, 1], each row's sum 1. A row that may see no key is all 0.

    With ``sinks`` (``sink_logits``) each row has one logit more, and what falls to it is left out of the row, whose sum
    is then below 1: logits [0, 0] beside a sink logit of log 2 give [1/4, 1/4].
    """
    if sinks is not None:
        beside = sinks[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat([logits, beside], dim=-1).softmax(-1)[..., :-1]
    blind = logits.amax(-1, keepdim=True).isneginf()
    if logits.requires_grad:  # the softmax of −inf alone is NaN, and NaN is its gradient
        return logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return logits.softmax(-1).masked_fill_(blind, 0.0)


def wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least fp32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def highest(call: Call, logits: Float[Tensor, "kept heads rows key"]) -> Float[Tensor, "kept heads rows"]:
    """The largest logit of each row. A mask that adds forbids by its type's lowest number: −inf here too."""
    highest = logits.amax(-1)
    if call.mask is None or not call.mask.is_floating_point():
        return highest
    return highest.masked_fill(highest <= torch.finfo(call.mask.dtype).min / 2, float("-inf"))


def rules(call: Call, sequences: Tensor, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Which keys the kernel lets chosen rows see: (Bool[kept, 1 or heads, rows, keys] or None, additive or None)."""
    queries, keys = call.lengths
    mask = call.mask
    if mask is not None and mask.ndim == 4:
        mask = mask[..., :keys].expand(call.query.shape[0], -1, -1, -1)
        if mask.shape[2] > 1:
            mask = mask[sequences[:, None], :, positions].transpose(1, 2)
        else:
            mask = mask[sequences]
        return (mask, None) if mask.dtype == torch.bool else (None, mask)
    if call.is_flash:
        return flash.seen(call, sequences, positions), None
    rules = []
    # Eager applies its mask and nothing else; sdpa without a mask is causal, aligned at the start.
    if call.kernel != "eager" and queries > 1 and mask is None and flash.is_causal(call):
        rules.append(torch.arange(keys, device=positions.device) <= positions[:, None, :, None])
    if mask is not None:
        rules.append(mask[sequences, -keys:].bool()[:, None, None, :])
    return (reduce(torch.logical_and, rules) if rules else None), None


def _require(call: Call, term: str, names: tuple[str, ...]) -> None:
    """Raises ValueError if the kernel drops a term of the attention: the model would then differ from the trained one.
    Some releases of transformers let SDPA do so in silence.

    names   of the term's option, as kernels of packages call it
    """
    if call.kernel == "sdpa" or (
        call.is_flash and not any(flash.supports(call.kernel, name) for name in names)
    ):
        raise ValueError(
            f"{type(call.module).__name__} has {term}, which the kernel {call.kernel!r} ignores; load the model with "
            "attn_implementation='eager'"
        )
