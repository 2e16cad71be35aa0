"""Rows of attention of a reply, taken while it is generated, at the price of a few references a token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diagnostics.capture.extractor import Call
from finetune.attention.rows import attention_logits, attention_rows, sink_logits
from finetune.families.base import TowerSequence
from finetune.families.parts.tower import joined

CONNECTOR = "visual_attn"
THINNED_FROM_BYTES = 2**20
"""Of the prompt's queries in one layer: more are thinned out to the wanted rows while the model runs, fewer later."""


class TraceRecorder:
    """Records the attention of the prompt, each token of the reply, the connector and the tower. A tap for
    ``AttentionExtractor.tapped``.

    While the model generates only queries are kept. A cache never changes a key, so the last step's keys are those
    that every token before it saw, and the rows of a layer are one product once the reply is complete. Computing
    them token by token would slow the reply; that happens only where the cache drops keys: with a sliding window that
    is full, and with static, quantised and offloaded caches.

    names       language layers, ``layer_N``, causal where no mask of four axes says otherwise, and layers of the tower,
                ``vision_layer_N``
    positions   ascending: which rows of the prompt to keep. Asked for when first needed, which for a short prompt is
                after the reply

    One sequence, without padding, read from its first token on and then token by token.
    """

    def __init__(self, names: Collection[str], positions: Callable[[], Sequence[int] | np.ndarray]) -> None:
        self._names = frozenset(names)
        self._layers = frozenset(name for name in names if name.startswith("layer_"))
        self._wanted = positions
        self._prompt = 0
        self._queries: dict[str, list[Tensor]] = {}
        self._last: dict[str, Call] = {}
        self._masks: dict[str, Tensor] = {}  # the prompt's attention mask, where it has four axes
        self._late: dict[
            str, list[Tensor]
        ] = {}  # rows of steps whose cache no longer holds all keys: Float[heads, keys]
        self._prompt_rows: dict[str, Tensor] = {}  # the prompt's rows, where they had to be computed at once
        self._other_calls: dict[str, list[Call]] = {}  # of connector and tower

    def __call__(self, name: str, call: Call, output: Tensor) -> Tensor:
        if name not in self._layers:
            if name == CONNECTOR or name in self._names:
                self._other_calls.setdefault(name, []).append(call._replace(value=call.key))
        else:
            self._read(name, call)
        return output

    def _read(self, name: str, call: Call) -> None:
        queries, keys = call.lengths
        past = call.past
        if past is None:  # a call by hand
            past = 0 if queries == keys else self._prompt + self._steps(name)
        if past == 0:
            self._begin(name, call)
        elif name not in self._queries or past != self._prompt + self._steps(name) or queries != 1:
            raise ValueError(
                f"{name}: found {queries} tokens read after {past} others, expected a prompt from its first token on "
                "and then one token after another"
            )
        elif call.keeps_keys and keys == past + 1:
            self._queries[name].append(call.query)
            self._last[name] = call
        else:
            self._late.setdefault(name, []).append(_only_row(call))

    @cached_property
    def _prompt_positions(self) -> Int[np.ndarray, " rows"]:
        return np.array(self._wanted(), dtype=np.int64)

    @property
    def positions(self) -> np.ndarray:
        """Int[rows], ascending: the tokens that have a row."""
        steps = max((self._steps(name) for name in self._queries), default=0)
        return np.append(self._prompt_positions, np.arange(self._prompt, self._prompt + steps))

    @torch.no_grad()
    def rows(self, name: str, most: int) -> Float[Tensor, "heads rows keys"]:
        """The last ``most`` rows of a layer over the tokens read, in half precision, on the CPU."""
        late = self._late.get(name, [])
        early = len(self.positions) - len(late)
        first = max(len(self.positions) - most, 0)
        parts = []
        if first < early:
            prompt_rows = self._prompt_rows.get(name)
            parts = [
                self._early_rows(name, self.positions[first:early])
                if prompt_rows is None
                else prompt_rows[:, first:early]
            ]
        parts += [one.cpu()[:, None] for one in late[max(first - early, 0) :]]
        out = torch.zeros(parts[0].shape[0], sum(part.shape[1] for part in parts), self.positions[-1] + 1)
        out = out.half()
        at = 0
        for part in parts:
            count, keys = part.shape[1:]
            # A late row saw the tokens before it and itself; early rows begin at the first token.
            end = keys if at < early - first else int(self.positions[first + at]) + 1
            out[:, at : at + count, end - keys : end] = part
            at += count
        return out

    @torch.no_grad()
    def connector(self) -> list[Float[Tensor, "heads queries patches"]]:
        """What the connector's queries looked at, image by image, in half precision, on the CPU; none where it does
        not attend."""
        return [
            rows for call in self._other_calls.get(CONNECTOR, ()) for rows in _every_row(call).half().cpu()
        ]

    @torch.no_grad()
    def tower(
        self, name: str, sequences: Sequence[TowerSequence] | None
    ) -> list[Float[Tensor, "heads patches patches"]]:
        """What the patches of each image looked at in a layer of the tower, row-major, in half precision, on the CPU;
        0 where a patch lies in another window or tile; none where the layer did not run. Without overviews.

        sequences   the family's ``tower_sequences``; None: one an image, its places are its patches
        """
        calls = self._other_calls.get(name, [])
        rows = [one for call in calls for one in _every_row(call).half().cpu()]
        if sequences is None or not rows:
            return rows
        if len(rows) == 1:  # a kernel that keeps several sequences apart in one call
            sequences = [joined(list(sequences))]
        return _by_patch(rows, sequences)

    def _begin(self, name: str, call: Call) -> None:
        query = call.query
        self._prompt = query.shape[2]
        self._late.pop(name, None)
        self._prompt_rows.pop(name, None)
        if not call.keeps_keys:
            self._queries[name] = [query[:, :, :0]]
            self._prompt_rows[name] = _chosen_rows(call, self._prompt_positions)
            return
        if query.nbytes > THINNED_FROM_BYTES:
            query = query.index_select(2, torch.from_numpy(self._prompt_positions).to(query.device))
            call = call._replace(query=query, value=call.key)  # the prompt's others may go
        self._queries[name] = [query]
        self._last[name] = call
        if call.mask is not None and call.mask.ndim == 4:
            self._masks[name] = call.mask

    def _kept_queries(self, name: str) -> Float[Tensor, "batch heads rows width"]:
        first, *steps = self._queries[name]
        if first.shape[2] != len(self._prompt_positions):
            first = first[:, :, torch.from_numpy(self._prompt_positions).to(first.device)]
        return torch.cat([first, *steps], dim=2)

    def _steps(self, name: str) -> int:
        return len(self._queries[name]) - 1 + len(self._late.get(name, ()))

    def _early_rows(self, name: str, positions: Int[np.ndarray, " rows"]) -> Float[Tensor, "heads rows keys"]:
        """The last rows of those whose keys are all there, in one product."""
        last = self._last[name]
        place = torch.from_numpy(positions).to(last.query.device)[:, None]
        key = torch.arange(last.lengths[1], device=place.device)
        allowed = (key <= place)[None]  # heads or 1, rows, keys
        if window := last.options.get("sliding_window"):
            allowed &= place - key < window
        of_prompt = int((positions < self._prompt).sum())
        if (mask := self._masks.get(name)) is not None and of_prompt:
            mask = mask.expand(-1, -1, self._prompt, -1)
            seen = _allowed(mask[0, :, place[:of_prompt, 0], : self._prompt])
            allowed = allowed.repeat(seen.shape[0], 1, 1)
            allowed[:, : seen.shape[1], : self._prompt] = seen
        query = self._kept_queries(name)[:, :, -len(positions) :]
        # A mask of four axes is all the rule there is, whatever the kernel.
        return _every_row(last._replace(query=query, mask=allowed.expand(1, -1, -1, -1)))[0].half().cpu()


def _allowed(mask: Tensor) -> Tensor:
    """A mask that adds forbids by its type's lowest number."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


@torch.no_grad()
def _only_row(call: Call) -> Float[Tensor, "heads keys"]:
    return call.by_token(_every_row(call.of_tokens()))[0, :, 0].half()


@torch.no_grad()
def _chosen_rows(call: Call, positions: Int[np.ndarray, " rows"]) -> Float[Tensor, "heads rows keys"]:
    call = call.of_tokens()
    device = call.query.device
    places = torch.from_numpy(positions).to(device)[None]
    logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=device), places)
    return attention_rows(logits, sink_logits(call))[0].half().cpu()


def _every_row(call: Call) -> Float[Tensor, "batch heads queries keys"]:
    batch, queries = call.query.shape[0], call.query.shape[2]
    every = torch.arange(max(batch, queries), device=call.query.device)
    logits = attention_logits(call, every[:batch], every[:queries].expand(batch, -1))
    return attention_rows(logits, sink_logits(call))


def _by_patch(
    rows: Sequence[Float[Tensor, "heads places places"]], sequences: Sequence[TowerSequence]
) -> list[Float[Tensor, "heads patches patches"]]:
    """Rows and keys put back in the order of patches, image by image."""
    every = joined(list(sequences))
    found = []
    for image in sorted(
        {int(one) for sequence in sequences if not sequence.is_overview for one in sequence.image}
    ):
        patches = int(every.patch[every.image == image].max()) + 1
        out = torch.zeros(rows[0].shape[0], patches, patches, dtype=torch.half)
        for one, sequence in zip(rows, sequences, strict=True):
            places = np.flatnonzero((sequence.image == image) & (sequence.patch >= 0))
            patch = torch.from_numpy(sequence.patch[places])
            out[:, patch[:, None], patch] = one[:, places[:, None], places]
        found.append(out)
    return found
