"""Rows of attention over image tokens with their gradient, beside whatever kernel runs.

A watched module's kernel call is kept by reference while the forward runs, and rows are made of its queries and keys
afterwards: |rows| × keys numbers a head. Nothing is added inside a layer, so that activation checkpointing (without
reentrance) runs a layer the second time as it ran the first, and the gradient takes the way of every other one.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from finetune.attention.rows import attention_logits, attention_rows
from finetune.attention.watch import Call, Watch
from finetune.families.base import Family
from finetune.families.parts.modules import attention_copies, bare_model

CONNECTOR = "visual_attn"


class KeptCalls:
    """The kernel calls of chosen attention modules in one forward, by the names of ``attention_copies``.

    model   as it is trained: below wrappers, of which the bare model is watched
    names   ``layer_N``, ``visual_attn``

    It keeps the model alive no longer than its owner does.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], family: Family) -> None:
        bare = bare_model(model)
        copies = attention_copies(bare, family)
        self._bare = weakref.ref(bare)
        self._modules = [(name, weakref.ref(module)) for name in names for module in copies[name]]
        self.calls: dict[str, Call] = {}

    @contextmanager
    def keeping(self) -> Iterator[dict[str, Call]]:
        """While the block lasts, keep the first call of each module: name → call.

        Raises ValueError where another extractor is attached, or a kernel cannot be observed.
        """
        bare = self._bare()
        assert bare is not None, "a trained model lives as long as its training"
        self.calls = {}
        watch = Watch(self, bare)
        try:
            for name, reference in self._modules:
                module = reference()
                assert module is not None
                watch.kernel(module, _Keeper(name, self.calls))
            watch.check_kernels()
            yield self.calls
        finally:
            watch.close()


class _Keeper:
    """Keeps a module's call, and runs it."""

    def __init__(self, name: str, calls: dict[str, Call]) -> None:
        self.name, self.calls = name, calls

    def run(self, call: Call) -> tuple[Tensor, Any]:
        assert self.name not in self.calls, f"{self.name} ran twice in one forward"
        self.calls[self.name] = call
        return call.run()


def image_shares(
    call: Call,
    sequences: Int[Tensor, "sequences"],
    positions: Int[Tensor, "sequences most"],
    at: Int[Tensor, "rows 2"],
    tokens: Int[Tensor, "rows tokens"],
    is_token: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens"]:
    """Where in the picture do rows look? Shares over the row's image tokens, each head's made to sum to 1 before the
    mean over heads: otherwise heads that rest on a sink would decide. A row that may see none of them is all 0.

    sequences, positions   the rows of attention that are computed
    at                     of each row, which of ``positions`` it is
    tokens, is_token       places of its image tokens; what is no token gets 0
    """
    logits = attention_logits(call, sequences, positions)[at[:, 0], :, at[:, 1]]  # rows, heads, keys
    over_image = logits.gather(-1, tokens.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1))
    forbidden = ~is_token[:, None] | (over_image <= _lowest(call))
    over_image = over_image.masked_fill(forbidden, float("-inf"))
    return attention_rows(over_image).mean(1)


def _lowest(call: Call) -> float:
    """At or below it a logit is of a key that may not be seen: masks that add forbid by their type's lowest number."""
    adds = call.mask is not None and call.mask.is_floating_point()
    return torch.finfo(call.mask.dtype).min / 2 if call.mask is not None and adds else float("-inf")


def connector_rows(call: Call, images: Int[Tensor, "images"]) -> Float[Tensor, "images queries cells"]:
    """What each query of the resampler read in some images of the batch: its attention over cells, mean over heads."""
    queries, _ = call.lengths
    positions = torch.arange(queries, device=call.query.device).expand(len(images), -1)
    return attention_rows(attention_logits(call, images, positions)).mean(1)


def over_cells(
    shares: Float[Tensor, "rows tokens"],
    images: Int[Tensor, "rows images"],
    connector: Float[Tensor, "images queries cells"],
) -> Float[Tensor, "rows places"]:
    """Shares over a resampler's queries → over cells: each row composed with what the queries of its images read.
    Differentiable in both. ``images`` is negative where a row has fewer images, whose cells get 0."""
    queries = connector.shape[1]
    parts = []
    for column in range(images.shape[1]):
        own = shares[:, column * queries : (column + 1) * queries]
        read = connector[images[:, column].clamp(min=0)]
        parts.append((own[:, None] @ read)[:, 0])
    return torch.cat(parts, dim=-1)
