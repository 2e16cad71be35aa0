"""Records the attention rows of a reply during generation; costs only a few references per token."""

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
"""Size of a layer's prompt queries above which only the requested rows are kept during the run, not afterwards."""


class TraceRecorder:
    """Records the attention of the prompt, each token of the reply, the connector and the tower. A tap for
    ``AttentionExtractor.tapped``.

    During generation it keeps only queries. A cache never changes its keys, so the last step's keys are those that
    every earlier token saw, and a layer's rows are one product once the reply is complete. Computing them token by
    token would slow generation; that happens only if the cache drops keys: with a full sliding window, and with
    static, quantised and offloaded caches.

    names       language layers, ``layer_N``, causal unless a 4-D mask is given, and tower layers, ``vision_layer_N``
    positions   ascending: rows of the prompt to keep. Called when first needed, which for a short prompt is after the
                reply

    Expects one sequence without padding: the whole prompt first, then token by token.
    """

    def __init__(self, names: Collection[str], positions: Callable[[], Sequence[int] | np.ndarray]) -> None:
        self._names = frozenset(names)
        self._layers = frozenset(name for name in names if name.startswith("layer_"))
        self._wanted = positions
        self._prompt = 0
        self._queries: dict[str, list[Tensor]] = {}
        self._last: dict[str, Call] = {}
        self._masks: dict[str, Tensor] = {}  # the prompt's attention mask, if 4-D
        self._late: dict[
            str, list[Tensor]
        ] = {}  # rows of steps whose cache has dropped keys: Float[heads, keys]
        self._prompt_rows: dict[str, Tensor] = {}  # the prompt's rows, if they had to be computed immediately
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
        if past is None:  # called without a cache
            past = 0 if queries == keys else self._prompt + self._steps(name)
        if past == 0:
            self._begin(name, call)
        elif name not in self._queries or past != self._prompt + self._steps(name) or queries != 1:
            raise ValueError(
                f"{name}: found {queries} tokens after {past} others, expected the whole prompt first and then one "
                "token at a time"
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
        """The last ``most`` rows of a layer, in half precision, on the CPU."""
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
            # A row attends to the tokens up to its own; early rows start at the first token.
            end = keys if at < early - first else int(self.positions[first + at]) + 1
            out[:, at : at + count, end - keys : end] = part
            at += count
        return out

    @torch.no_grad()
    def connector(self) -> list[Float[Tensor, "heads queries patches"]]:
        """Attention of the connector's queries, one tensor per picture, in half precision, on the CPU; empty if the
        connector has no attention."""
        return [
            rows for call in self._other_calls.get(CONNECTOR, ()) for rows in _every_row(call).half().cpu()
        ]

    @torch.no_grad()
    def tower(
        self, name: str, sequences: Sequence[TowerSequence] | None
    ) -> list[Float[Tensor, "heads patches patches"]]:
        """Attention between the patches of each picture in a tower layer, row-major, in half precision, on the CPU; 0
        between windows or tiles; empty if the layer did not run. Excludes overviews.

        sequences   the family's ``tower_sequences``; None: one sequence per picture, in the order of its patches
        """
        calls = self._other_calls.get(name, [])
        rows = [one for call in calls for one in _every_row(call).half().cpu()]
        if sequences is None or not rows:
            return rows
        if len(rows) == 1:  # a kernel that handles several sequences in one call
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
            call = call._replace(query=query, value=call.key)  # frees the prompt's other tensors
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
        """The rows whose keys are all still cached, in one product."""
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
        # A 4-D mask replaces causality, whatever the kernel.
        return _every_row(last._replace(query=query, mask=allowed.expand(1, -1, -1, -1)))[0].half().cpu()


def _allowed(mask: Tensor) -> Tensor:
    """Converts a mask to Bool; an additive mask forbids with its type's lowest number."""
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
    """Rows and keys reordered to the order of patches, one tensor per picture."""
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
