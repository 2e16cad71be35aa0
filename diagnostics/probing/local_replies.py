"""A checkpoint's own answers, token by token, for comparison with a server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.probes import Probe
from finetune.families import Encoded, Family, bare_model, family_of
from finetune.families.parts.phrases import token_texts
from finetune.families.parts.processors import picture_settings
from finetune.families.parts.thoughts import CLOSE
from finetune.model.untouched import untouched
from finetune.samples.conversation import Conversation, Turn

GENERATE_AND_SCORE = replace(WATCH, name="served")


class LocalReply(NamedTuple):
    """A greedy answer, and facts about its prompt.

    text            without the end token
    tokens          texts of its tokens, end token included; () for an empty answer
    nats            log p of each token, given those before it
    leads           lead of the likeliest token over the second at each place, nats, at least 0
    prompt_tokens   tokens of the prompt, through the header of the answer
    image_tokens    number of image tokens among them
    ended           whether it ended before the limit of new tokens
    """

    text: str
    tokens: tuple[str, ...]
    nats: tuple[float, ...]
    leads: tuple[float, ...]
    prompt_tokens: int
    image_tokens: int
    ended: bool


class LocalReplies(NamedTuple):
    """The replies in the order of the probes, and their limit of new tokens."""

    replies: tuple[LocalReply, ...]
    max_new_tokens: int


def local_replies(model: nn.Module, processor: Any, probes: Sequence[Probe]) -> LocalReplies:
    """The model's generated replies, scored once more for the log-probabilities of their tokens.

    The text is scored, so a reply with two possible tokenisations gets the tokenizer's own.
    """
    prober = Prober(
        model, processor, key_layers=auto_key_layers(model), probes=probes, depth=GENERATE_AND_SCORE
    )
    records = prober.run_all(0, "before", progress=True)
    reader = prober.reader
    replies = [
        _reply(prober.model, reader, probe, record.scores.generated, prober.max_new_tokens)
        for probe, record in zip(probes, records, strict=True)
    ]
    return LocalReplies(tuple(replies), prober.max_new_tokens)


def _reply(model: nn.Module, reader: ProbeEncoder, probe: Probe, text: str, limit: int) -> LocalReply:
    encoded = reader.encode(probe, text or probe.answer, generated=bool(text))
    start, end = encoded.turn_spans[-1]
    image_tokens = sum(len(image.all_positions) for image in encoded.images)
    if not text:
        return LocalReply(text, (), (), (), start, image_tokens, True)
    nats, leads = _nats(model, encoded)
    tokens = token_texts(reader.processor.tokenizer, encoded.input_ids[slice(*scored_span(encoded))].tolist())
    return LocalReply(text, tuple(tokens), nats, leads, start, image_tokens, end - start < limit)


def _nats(model: nn.Module, encoded: Encoded) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """log p of each token of the reply and of its end, and the lead of the likeliest token over the second."""
    start, end = scored_span(encoded)
    inputs = padded([encoded], next(model.parameters()).device, left=False)
    kept = inputs["input_ids"].shape[1] - start + 1
    with untouched(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits[0, -kept:]
    log_p = torch.log_softmax(logits[: end - start].double(), dim=-1)
    nats = log_p.gather(1, inputs["input_ids"][0, start:end, None])[:, 0]
    best = log_p.topk(2, dim=-1).values
    return tuple(nats.tolist()), tuple((best[:, 0] - best[:, 1]).tolist())


def tokens_of_question(family: Family, processor: Any, question: str) -> int | None:
    """Tokens of a prompt without a picture, through the header of the answer; None if the family refuses one."""
    conversation = Conversation((Turn("user", (question,)), Turn("assistant", (question,))))
    try:
        return family.encode(processor, conversation, media=False).turn_spans[-1][0]
    except ValueError:  # the family refuses it
        return None


def prompt_closes_thought(family: Family, processor: Any, question: str) -> bool:
    """Whether prompts end in an empty thought (``</think>``), so that answers are made without thinking."""
    conversation = Conversation((Turn("user", (question,)), Turn("assistant", (question,))))
    try:
        encoded = family.encode(processor, conversation, media=False)
    except ValueError:  # the family refuses a question without a picture, as no family that thinks does
        return False
    start = encoded.turn_spans[-1][0]
    prompt = "".join(token_texts(processor.tokenizer, encoded.input_ids[:start].tolist()))
    return prompt.rstrip().endswith(CLOSE)


def pixels_per_token(model: nn.Module, processor: Any, size_pixels: tuple[int, int]) -> float:
    """Pixels per image token, after the processor's resize."""
    config = bare_model(model).config
    arithmetic = family_of(config).image_arithmetic(config, size_pixels, picture_settings(processor))
    width, height = arithmetic.resized_pixels
    return width * height / arithmetic.tokens
