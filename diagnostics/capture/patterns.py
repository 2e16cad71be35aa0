"""Puts one model's attention patterns into another: keeps its queries and keys, and calls the kernels with them.

A pattern is softmax(q·k + mask) of one kernel call. Not the pattern is kept but q and k as they enter the product
(after rotary embedding, norms and the cache): queries and keys instead of queries × keys, and exact for any kernel.
The other model's kernel is then called with them and with its own values, mask and options::

    out = softmax(q_before k_before) v_after

Source: causal mediation by patching, Vig et al., Investigating Gender Bias in Language Models Using Causal Mediation
Analysis (NeurIPS 2020); Meng et al., Locating and Editing Factual Associations in GPT (NeurIPS 2022). They patch
outputs of neurons and layers; here only where a layer looks is patched, not what it reads there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diagnostics.capture.rows import span
from finetune.attention.rows import SINK_LOGITS, SOFT_CAP, UNSUPPORTED_TERMS
from finetune.attention.watch import Call

TERMS = ("scaling", SOFT_CAP, SINK_LOGITS, *UNSUPPORTED_TERMS)
"""Options of a call that enter its softmax beside q, k and the mask. One kernel call has one of each, so that those of
two models cannot stand in one batch."""
SAME = "read the same tokens in the same forwards with a model of the same layers"


class KeptCall(NamedTuple):
    """Of one kernel call of a model, what its pattern is made of.

    name    of the module, as in ``attention_weights``
    query   Float[kept, heads, queries, dim]
    key     Float[kept, key heads, keys, dim]
    terms   the options that enter the softmax beside them
    """

    name: str
    query: Tensor
    key: Tensor
    terms: Mapping[str, Any]


class Patterns(Protocol):
    """What happens to the calls of a block, one after another, before their kernels run."""

    def through(self, name: str, call: Call) -> Call: ...


class Keeping:
    """Keeps every call as the model made it."""

    def __init__(self) -> None:
        self.calls: list[KeptCall] = []

    def through(self, name: str, call: Call) -> Call:
        query, key = call.query.detach(), call.key.detach()
        terms = {term: call.options.get(term) for term in TERMS}
        self.calls.append(KeptCall(name, query, key if call.keeps_keys else key.clone(), terms))
        return call


class PuttingBack:
    """Runs calls with the queries and keys of others, kept in the same order, in chosen sequences of chosen modules.

    chosen   module → Bool[sequences]: which get the kept ones. A call of a multiple of them (tails that continue each
             sequence, pictures of each) treats each group alike; kept sequences are repeated to the call's: one for
             all, or one for each tail or picture.

    Raises ValueError if a call differs from the kept one in its place, sizes, precision, or terms of its softmax.
    """

    def __init__(self, kept: Sequence[KeptCall], chosen: Mapping[str, Bool[Tensor, " sequences"]]) -> None:
        self._kept, self._chosen, self._used = kept, chosen, 0

    def through(self, name: str, call: Call) -> Call:
        if self._used == len(self._kept):
            raise ValueError(
                f"patterns: found a call of {name}, expected none after the {len(self._kept)} kept; {SAME}"
            )
        kept = self._kept[self._used]
        self._used += 1
        if kept.name != name:
            raise ValueError(
                f"patterns: call {self._used} is of {name}, expected {kept.name} as kept; {SAME}"
            )
        rows = self._chosen.get(name)
        if rows is None or not rows.any():
            _check_tokens(kept, call)
            return call
        _check(kept, call, rows)
        return call._replace(query=_put(kept.query, call.query, rows), key=_put(kept.key, call.key, rows))

    def finish(self) -> None:
        """Raises ValueError if fewer calls were made than kept."""
        if self._used < len(self._kept):
            raise ValueError(
                f"patterns: found {self._used} calls, expected {len(self._kept)} as kept, the next of "
                f"{self._kept[self._used].name}; {SAME}"
            )


def check_names(chosen: Collection[str], names: Collection[str]) -> None:
    """Raises ValueError for a module without patterns that could be put back."""
    known = [name for name in names if has_patterns(name)]
    for name in chosen:
        if name not in known:
            raise ValueError(f"no attention module {name!r} to patch; expected one of {span(known)}")


def has_patterns(name: str) -> bool:
    """Are calls of this module kept? The tower's are not: it is watched by pictures, tiles and windows."""
    return not name.startswith("vision_layer_")


def _put(
    kept: Float[Tensor, "kept heads tokens dim"],
    own: Float[Tensor, "sequences heads tokens dim"],
    chosen: Bool[Tensor, " groups"],
) -> Float[Tensor, "sequences heads tokens dim"]:
    batch = own.shape[0]
    rows = chosen.repeat_interleave(batch // len(chosen)).nonzero()[:, 0].to(own.device)
    put = own.clone()  # in own's strides, which decide how a kernel rounds
    put[rows] = kept.to(own.device)[rows % kept.shape[0]]
    return put


def _check_tokens(kept: KeptCall, call: Call) -> None:
    found, expected = call.lengths, (kept.query.shape[2], kept.key.shape[2])
    if found != expected:
        raise ValueError(
            f"patterns: {kept.name} has {found[0]} queries over {found[1]} keys, expected {expected[0]} over "
            f"{expected[1]} as kept: a pattern belongs to its own tokens; {SAME}"
        )


def _check(kept: KeptCall, call: Call, chosen: Bool[Tensor, " groups"]) -> None:
    _check_tokens(kept, call)
    batch, groups, own_batch = call.query.shape[0], len(chosen), kept.query.shape[0]
    if batch % groups or batch % own_batch:
        raise ValueError(
            f"patterns: {kept.name} has {batch} sequences or images, expected a multiple of the {groups} to choose "
            f"from and of the {own_batch} kept"
        )
    for what, one, own in (("queries", kept.query, call.query), ("keys", kept.key, call.key)):
        if one.shape[1::2] != own.shape[1::2] or one.dtype != own.dtype:
            raise ValueError(
                f"patterns: {kept.name} has {_words(own)} of {what}, expected {_words(one)} as kept; {SAME}, loaded in "
                "the same precision"
            )
    for term, value in kept.terms.items():
        if not _equal(value, call.options.get(term)):
            raise ValueError(
                f"patterns: {term} of {kept.name} differs from the kept call's and is a part of its pattern that "
                "queries and keys do not carry; attention of this model cannot be put back into the other"
            )


def _words(one: Tensor) -> str:
    return f"{one.shape[1]} heads × {one.shape[3]} in {str(one.dtype).removeprefix('torch.')}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.to(other.device), other)
    return type(one) is type(other) and bool(one == other)
