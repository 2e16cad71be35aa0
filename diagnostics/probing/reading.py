"""Reads each prompt once: attention rows, the scores of answer and foil and the model's own reply, from one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.capture.hidden_states import HiddenStates
from diagnostics.probing.prompts import EncodedProbe, forget_positions, padded, scored_span
from finetune.families import Family
from finetune.families.parts.thoughts import PROMPT_END, begun_by


class Reading(NamedTuple):
    """What a model makes of one probe.

    answer_nats     log p of the answer and of its end given the prompt, summed over tokens, nats
    foil_nats       the same of the foil; None without one
    reply           the model's own greedy reply, and before it "<think>" where the prompt ends inside a thought; "" if
                    none was asked for
    rows            Float32[attending layers, heads, queries, tokens of the probe with its answer]
    highest_logit   Float32[attending layers, heads]: the answer query's highest logit
    connector       Float32[queries, patches] of each image, mean over heads; empty without a connector that attends
    hidden          key layer's name → Float32[tokens, width], at the input of that layer
    """

    answer_nats: float
    foil_nats: float | None
    reply: str
    rows: np.ndarray
    highest_logit: np.ndarray
    connector: tuple[np.ndarray, ...]
    hidden: dict[str, np.ndarray]


class PromptReader:
    """Reads prompts through one model; answers, foils and generated replies continue from the prompts' cache.

    key_layers       language layers whose hidden states are kept
    max_new_tokens   limit of a generated reply; 0: none is generated
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        processor: Any,
        *,
        key_layers: Sequence[int],
        max_new_tokens: int,
    ) -> None:
        self.model: Any = model
        self.family = family
        self.tokenizer = processor.tokenizer
        self.key_layers = tuple(key_layers)
        self.max_new_tokens = max_new_tokens
        self.stops = tuple(family.stop_token_ids(processor))

    def read(self, extractor: AttentionExtractor, asked: Sequence[EncodedProbe]) -> list[Reading]:
        """Probes whose prompts are equally long (``alike``), in one pass and what continues from it."""
        [length] = {_prompt_length(one) for one in asked}
        prompt = self._prompt_pass(extractor, asked, length)
        # A copy, also where no reply is generated: caches of sliding windows and linear attention cannot be cut back to
        # the prompt, and the extractor takes tokens for a pass of their own only behind another cache.
        tails = self._tails_pass(extractor, asked, length, deepcopy(prompt.cache), prompt.logits)
        with extractor.paused():
            replies = self._greedy(prompt.logits, prompt.cache)
        if self.max_new_tokens:
            begun = [begun_by("".join(one.tokens[max(length - PROMPT_END, 0) : length])) for one in asked]
            replies = [before + reply for before, reply in zip(begun, replies, strict=True)]
        images = iter(prompt.connector)
        return [
            Reading(
                *tails.nats[at],
                replies[at],
                *_of_queries(one, prompt.captured, tails.captured, at, length),
                tuple(islice(images, len(one.answer.images))),
                {
                    name: np.concatenate([states[at], tails.hidden[name][at]])[: len(one.answer.input_ids)]
                    for name, states in prompt.hidden.items()
                },
            )
            for at, one in enumerate(asked)
        ]

    def _prompt_pass(
        self, extractor: AttentionExtractor, asked: Sequence[EncodedProbe], length: int
    ) -> _PromptPass:
        prompts = [replace(one.answer, input_ids=one.answer.input_ids[:length]) for one in asked]
        extractor.query_tokens = _places(asked, within=range(length))
        extractor.sequences = list(range(len(asked)))
        extractor.images = list(range(sum(len(one.answer.images) for one in asked)))
        with HiddenStates(self.model, self.key_layers, family=self.family) as states:
            forget_positions(self.model)
            output = self.model(**padded(prompts, self._device, left=False), use_cache=True, logits_to_keep=1)
        connector = extractor.attention_weights.get("visual_attn")
        return _PromptPass(
            _captured(extractor),
            states.hidden_states,
            () if connector is None else tuple(connector.mean(1)),
            output.logits[:, -1],
            output.past_key_values,
        )

    def _tails_pass(
        self,
        extractor: AttentionExtractor,
        asked: Sequence[EncodedProbe],
        length: int,
        cache: Any,
        first: Float[Tensor, "probes vocabulary"],
    ) -> _TailsPass:
        """Answers, through all that follows them, and foils."""
        # Each probe's continuations are neighbours: models with positions of their own repeat them so.
        ways = 1 if all(one.foil is None for one in asked) else 2
        texts = [text for one in asked for text in (one.answer, one.foil or one.answer)[:ways]]
        tails = [torch.from_numpy(text.input_ids[length:]) for text in texts]
        tokens = nn.utils.rnn.pad_sequence(tails, batch_first=True).to(self._device)
        if ways > 1:
            # Not ``batch_repeat_interleave``: caches of linear attention have none.
            cache.reorder_cache(torch.arange(len(asked), device=self._device).repeat_interleave(ways))
        answers = list(range(0, len(texts), ways))
        extractor.query_tokens = _places(asked, within=range(length, length + tokens.shape[1]))
        extractor.sequences, extractor.images = answers, None
        is_asked = any(query.position >= length for one in asked for query in one.queries)
        with (
            HiddenStates(self.model, self.key_layers, sequences=answers, family=self.family) as states,
            nullcontext() if is_asked else extractor.paused(),
        ):
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        captured = _captured(extractor) if is_asked else None
        logits = torch.cat([first.repeat_interleave(ways, dim=0)[:, None], output.logits], dim=1)
        nats = []
        for row, text in enumerate(texts):
            start, end = scored_span(text)
            nats.append(summed_nats(logits[row, : end - start], torch.from_numpy(text.input_ids[start:end])))
        summed = torch.stack(nats).tolist()
        pairs = [
            (summed[at * ways], summed[at * ways + 1] if one.foil is not None else None)
            for at, one in enumerate(asked)
        ]
        return _TailsPass(captured, states.hidden_states, pairs)

    def _greedy(self, first: Float[Tensor, "probes vocabulary"], cache: Any) -> list[str]:
        """The likeliest token again and again, until every reply has ended."""
        if not self.max_new_tokens:
            return [""] * len(first)
        chosen = first.float().argmax(-1)
        replies = [[token] for token in chosen.tolist()]
        while len(replies[0]) < self.max_new_tokens and not all(map(self._has_ended, replies)):
            output = self.model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True)
            cache, chosen = output.past_key_values, output.logits[:, -1].float().argmax(-1)
            for reply, token in zip(replies, chosen.tolist(), strict=True):
                reply.append(token)
        return [self._decoded(reply) for reply in replies]

    def _has_ended(self, reply: Sequence[int]) -> bool:
        return any(token in self.stops for token in reply)

    def _decoded(self, reply: Sequence[int]) -> str:
        """The reply up to its end. Embeddings outnumber tokens (151,936 for 151,860 in Qwen-VL), so a broken
        model can generate an id without text, which becomes U+FFFD."""
        answer = reply[: next((at for at, token in enumerate(reply) if token in self.stops), None)]
        runs = groupby(answer, key=lambda token: token < len(self.tokenizer))
        return "".join(
            str(self.tokenizer.decode(list(run))) if is_known else "\N{REPLACEMENT CHARACTER}"
            for is_known, run in runs
        ).strip()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class _Captured(NamedTuple):
    """Of one pass: rows [probes, attending layers, heads, queries, keys], without meaning for queries outside it, and
    the highest logit of the first query [probes, attending layers, heads]."""

    rows: np.ndarray
    highest: np.ndarray


class _PromptPass(NamedTuple):
    captured: _Captured
    hidden: dict[str, np.ndarray]
    connector: tuple[np.ndarray, ...]
    logits: Float[Tensor, "probes vocabulary"]
    cache: Any


class _TailsPass(NamedTuple):
    """captured   None where no query lies in a reply
    nats       of answer and foil"""

    captured: _Captured | None
    hidden: dict[str, np.ndarray]
    nats: list[tuple[float, float | None]]


def alike(asked: Sequence[EncodedProbe], most: int) -> Iterator[list[int]]:
    """Indices of probes whose prompts are equally long, at most ``most`` together, by first appearance."""
    lengths = [_prompt_length(one) for one in asked]
    for length in dict.fromkeys(lengths):
        same = [at for at, one in enumerate(lengths) if one == length]
        for start in range(0, len(same), most):
            yield same[start : start + most]


def summed_nats(logits: Float[Tensor, "tokens vocabulary"], tokens: Tensor) -> Float[Tensor, ""]:
    """Σ log p of the tokens, softmax in fp32."""
    return logits.float().log_softmax(-1).gather(1, tokens.to(logits.device)[:, None]).sum()


def _prompt_length(one: EncodedProbe) -> int:
    return one.answer.turn_spans[-1][0]


def _places(asked: Sequence[EncodedProbe], *, within: range) -> Tensor:
    """Int[probes, queries]: the place of each query; the end of ``within`` for what lies outside or is missing."""
    most = max(len(one.queries) for one in asked)
    places = torch.full((len(asked), most), within[-1])
    for at, one in enumerate(asked):
        for number, query in enumerate(one.queries):
            if query.position in within:
                places[at, number] = query.position
    return places


def _captured(extractor: AttentionExtractor) -> _Captured:
    weights, logits = extractor.attention_weights, extractor.highest_logits
    names = extractor.language_names
    return _Captured(
        np.stack([weights[name] for name in names], axis=1),
        np.stack([logits[name][:, :, 0] for name in names], axis=1),
    )


def _of_queries(
    one: EncodedProbe, prompt: _Captured, tails: _Captured | None, at: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The at-th probe's rows over all its tokens, and its answer query's highest logit: of each query from the pass
    that read its token."""
    count = len(one.answer.input_ids)
    in_prompt = np.array([query.position < length for query in one.queries])
    rows = np.zeros((*prompt.rows.shape[1:3], len(in_prompt), count), np.float32)
    rows[:, :, in_prompt, :length] = prompt.rows[at][:, :, : len(in_prompt)][:, :, in_prompt]
    if tails is not None:
        rows[:, :, ~in_prompt] = tails.rows[at][:, :, : len(in_prompt)][:, :, ~in_prompt, :count]
    first = prompt if in_prompt[0] or tails is None else tails
    return rows, first.highest[at]
