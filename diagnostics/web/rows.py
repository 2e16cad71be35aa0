"""Rows of attention of a reply, taken while it is generated, at the price of a reference a token."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diagnostics.capture import Call, attention_logits, attention_rows


class ReplyRows:
    """What did the prompt's text and each token of the reply look at? A tap for ``AttentionExtractor.tapped``.

    The prefill's rows are computed as it runs. Of a cached step only the query is kept: the cache never changes a
    key, so the last step's keys are those that every step before it saw, and the rows of all steps are one product
    at the end. A product for each step and layer would cost a small model a tenth of its time.

    names       language layers, ``layer_N``
    positions   Int[rows], ascending: which rows of the prompt to keep

    One sequence, without padding.
    """

    def __init__(self, names: Collection[str], positions: Int[Tensor, " rows"]) -> None:
        self.positions = positions
        self._names = frozenset(names)
        self._prompt: dict[str, Tensor] = {}
        self._length = 0
        self._steps: dict[str, list[Tensor]] = {name: [] for name in names}
        self._last: dict[str, Call] = {}

    def __call__(self, name: str, call: Call, output: Tensor) -> Tensor:
        if name in self._names:
            queries, keys = call.lengths
            if queries == keys:
                self._begin(name, call)
            else:
                self._steps[name].append(call.query)
                self._last[name] = call
        return output

    @property
    def steps(self) -> int:
        """Tokens of the reply that have a row."""
        return max(map(len, self._steps.values()), default=0)

    @property
    def length(self) -> int:
        """Tokens that the model has read: prompt and steps."""
        return self._length + self.steps

    @torch.no_grad()
    def rows(self, name: str, most: int) -> Float[Tensor, "heads rows tokens"]:
        """The last ``most`` rows of a layer in half precision, on the CPU: the prompt's, then the steps'.

        Raises ValueError where the model's cache forgets keys.
        """
        of_steps = min(most, self.steps)
        of_prompt = min(most - of_steps, len(self.positions))
        prompt = self._prompt[name]
        out = torch.zeros(prompt.shape[0], of_prompt + of_steps, self.length, dtype=torch.half)
        out[:, :of_prompt, : self._length] = prompt[:, prompt.shape[1] - of_prompt :].cpu()
        if of_steps:
            out[:, of_prompt:] = self._step_rows(name, of_steps).cpu()
        return out

    @torch.no_grad()
    def _begin(self, name: str, call: Call) -> None:
        self._length = call.lengths[0]
        self._steps[name] = []
        places = self.positions.to(call.query.device)[None]
        logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=places.device), places)
        self._prompt[name] = attention_rows(logits)[0].half()

    def _step_rows(self, name: str, most: int) -> Float[Tensor, "heads steps tokens"]:
        last = self._last[name]
        keys = last.lengths[1]
        if keys != self.length:
            raise ValueError(
                f"{name}: its cache holds {keys} of {self.length} tokens; a cache that forgets cannot be shown"
            )
        device = last.query.device
        place = torch.arange(self.length - most, self.length, device=device)[:, None]
        key = torch.arange(keys, device=device)
        allowed = key <= place
        if window := last.options.get("sliding_window"):
            allowed &= place - key < window
        call = last._replace(
            kernel="sdpa", query=torch.cat(self._steps[name][-most:], dim=2), mask=allowed[None, None]
        )
        every = torch.arange(most, device=device)[None]
        logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=device), every)
        return attention_rows(logits)[0].half()
