"""Held-out questions, each chosen from a few answers: which does the model find likeliest, and where does it look?

The likelihood of an answer is the probability of all its tokens and of the end of the turn, in nats. The prompt is read
once for a question; its answers continue it side by side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from finetune import families
from finetune.families.parts.coverage import region_coverage, token_weights
from finetune.families.parts.phrases import find_span, token_texts
from finetune.samples.conversation import Conversation, ImageRef, Turn


class HeldOutQuestion(NamedTuple):
    """An element of the probe file, and the answers to choose from."""

    identity: str
    group: str
    language: str
    image: Path
    text: str
    choices: tuple[str, ...]
    """The right one first, its foil second."""
    phrase: str
    """The words of the right answer that say what is in the boxes."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """Where it has to look; () where the file does not say."""


class Chosen(NamedTuple):
    """What a model makes of a question."""

    identity: str
    group: str
    language: str
    choice: int
    """Index among its choices: 0 is right, 1 the foil. Of several that are equally likely it is the last, not the right
    one."""
    choices: int
    mass: tuple[float, ...]
    """Share of the attention to the picture that lies in the boxes, in the row that writes the first token of the right
    answer's phrase, mean over heads, for each language layer; () without boxes."""


def read_questions(probe_file: Path) -> list[HeldOutQuestion]:
    """Of a folder that ``corpus.write_probes`` wrote."""
    probes = json.loads(probe_file.read_text(encoding="utf-8"))["probes"]
    choices = json.loads((probe_file.parent / "choices.json").read_text(encoding="utf-8"))
    return [
        HeldOutQuestion(
            one["id"], one["group"], "zh" if any(ord(letter) > 0x2E80 for letter in one["question"]) else "en",
            probe_file.parent / one["images"][0], one["question"].removeprefix("<image>\n"), tuple(choices[one["id"]]),
            next(iter(one["phrases"]), one["answer"]),
            tuple(tuple(box) for name, boxes in one["regions"].items() if name != "other" for box in boxes),
        )
        for one in probes
    ]  # fmt: skip


def choose_all(
    model: Any, processor: Any, questions: Sequence[HeldOutQuestion], *, progress: str = "choosing"
) -> list[Chosen]:
    """The model must compute attention by its eager kernel: the others return none."""
    return [choose(model, processor, one) for one in tqdm(questions, desc=progress, unit="question", delay=2)]


@torch.no_grad()
def choose(model: Any, processor: Any, question: HeldOutQuestion) -> Chosen:
    family = families.family_of(families.bare_model(model).config)
    asked = Turn("user", (ImageRef(question.image.name, question.image), "\n", question.text))
    prompt = family.encode(processor, Conversation((asked,)), add_generation_prompt=True)
    ids = torch.from_numpy(prompt.input_ids)[None]
    looks = bool(question.boxes)
    seen = model(input_ids=ids, **prompt.media, use_cache=True, output_attentions=looks)
    answers = _answers(family, processor, asked, question.choices, ids.shape[1])
    nats, attentions = _answers_nats(model, seen, answers, looks=looks)
    image, mass = prompt.images[0], ()
    if looks:
        row = _first_of(question.phrase, answers[0], processor) - 1
        if row < 0:
            attentions = seen.attentions
        covered = torch.from_numpy(token_weights(region_coverage(question.boxes, image), image)).float()
        rows = torch.stack([layer[0, :, row, image.all_positions].float() for layer in attentions])
        # Each head by itself, before the mean: a head that rests on the first token says little of the picture.
        mass = tuple((rows / rows.sum(-1, keepdim=True) @ covered).mean(1).tolist())
    choice = _likeliest(nats, question.identity)
    return Chosen(question.identity, question.group, question.language, choice, len(question.choices), mass)


def _likeliest(nats: torch.Tensor, identity: str) -> int:
    """Index of the likeliest answer, the last of several: the right one, which is the first, must beat all others.

    Raises ValueError for numbers that are not finite: nothing is chosen then.
    """
    if not nats.isfinite().all():
        raise ValueError(
            f"question {identity}: found log probabilities {nats.tolist()} of its answers; expected finite numbers: "
            "the model's weights are broken or its precision is too low; train again, or load it in float32"
        )
    return int((nats == nats.max()).nonzero()[-1])


def _answers(
    family: Any, processor: Any, asked: Turn, choices: Sequence[str], begin: int
) -> list[np.ndarray]:
    """The token ids of each answer and the end of its turn, as they follow the prompt's ``begin`` tokens."""
    found = []
    for answer in choices:
        whole = family.encode(processor, Conversation((asked, Turn("assistant", (answer,)))))
        first, end = whole.turn_spans[-1]
        assert first == begin, f"an answer from token {first} on behind a prompt of {begin}"
        found.append(whole.input_ids[first : end + 1])
    return found


def _first_of(phrase: str, answer: np.ndarray, processor: Any) -> int:
    """Which of the answer's tokens is the phrase's first?"""
    texts = token_texts(processor.tokenizer, answer.tolist())
    span = find_span(phrase, texts, 0, len(texts))
    assert span is not None, f"no {phrase!r} in {''.join(texts)!r}"
    return int(span[0])


def _answers_nats(
    model: Any, seen: Any, answers: Sequence[np.ndarray], *, looks: bool
) -> tuple[torch.Tensor, Any]:
    """(Float[answers]: log p of each, all its tokens summed, after the prompt that was seen; with ``looks`` the
    attention of their rows, a layer each)."""
    count, longest = len(answers), max(map(len, answers))
    ids = torch.zeros(count, longest, dtype=torch.long)
    real = torch.zeros(count, longest, dtype=torch.bool)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)], real[row, : len(answer)] = torch.from_numpy(answer), True
    cache = seen.past_key_values
    begin = cache.get_seq_length()
    cache.batch_repeat_interleave(count)
    mask = torch.cat([torch.ones(count, begin, dtype=torch.bool), real], dim=1).long()
    further = model(input_ids=ids, attention_mask=mask, past_key_values=cache, output_attentions=looks)
    before = seen.logits[:, -1:].float().expand(count, 1, -1)
    logits = torch.cat([before, further.logits[:, :-1].float()], dim=1).log_softmax(-1)
    return (logits.gather(-1, ids[..., None])[..., 0] * real).sum(1), further.attentions
