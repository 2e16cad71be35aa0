"""Encodes a probe: its prompt, its tokens, and the tokens whose attention rows are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diagnostics.probing.pictures import OpenPictures, written
from diagnostics.records.probes import PLACEHOLDER, Probe
from diagnostics.records.record import Query
from finetune.families import Encoded, Family
from finetune.families.base import IGNORED, joined_media
from finetune.families.parts.phrases import find_phrase, token_texts
from finetune.families.parts.picture_breaks import without_first_break, without_last_break
from finetune.samples.conversation import Conversation, ImageRef, Turn, without_label
from finetune.samples.formats.boxes import unescaped

MOST_NAMED = 3


class EncodedProbe(NamedTuple):
    """A probe as tokens: with its answer, with its foil, the text of each token of the sequence with the answer, and
    the queries whose rows are kept (the answer query first)."""

    probe: Probe
    answer: Encoded
    foil: Encoded | None
    tokens: tuple[str, ...]
    queries: tuple[Query, ...]

    @property
    def parted(self) -> int:
        """Index of the first token where answer and foil differ; the start of the answer without a foil."""
        return self.queries[0].position + 1


_BOXES = re.compile(r"(?<!\\)<(?:box>|ref>|\|box_start\|>|\|object_ref_start\|>).*?<[/|]\S*?>", re.DOTALL)


class ProbeEncoder:
    """Encodes probes with a model's processor.

    Raises ValueError if the processor lacks a part, and, naming the probe, for an answer or phrase that cannot be
    located in the tokens.

    keep_bytes   pixels of probes to keep for the next time that they are read, at most: the first that fit
    """

    def __init__(self, family: Family, processor: Any, *, keep_bytes: int = 0) -> None:
        check_processor(processor)
        self.family = family
        self.processor = processor
        self.pictures = OpenPictures()
        self._room = keep_bytes
        self._kept: dict[str, tuple[tuple[tuple[int, int], ...], EncodedProbe]] = {}

    def read(self, probe: Probe, *, max_pixels: int | None = None) -> EncodedProbe:
        """The probe with its answer, its foil and the rows to keep.

        max_pixels   limit for the first picture, below the processor's own
        """
        changed = _changed(probe) if max_pixels is None else None
        if changed is None:
            return self._read(probe, max_pixels)
        found, one = self._kept.get(probe.id, (None, None))
        if one is None or found != changed or one.probe != probe:
            one = self._read(probe, None)
            size = sum(tensor.numel() * tensor.element_size() for tensor in one.answer.media.values())
            if probe.id not in self._kept and size <= self._room:
                self._room -= size
                self._kept[probe.id] = changed, one
        return one

    def _read(self, probe: Probe, max_pixels: int | None) -> EncodedProbe:
        _check_question(self.family, probe)
        answer = self.encode(probe, probe.answer, max_pixels=max_pixels)
        foil = (
            None if probe.foil is None else self.encode(probe, probe.foil, like=answer, max_pixels=max_pixels)
        )
        tokens = self.texts(answer)
        return EncodedProbe(probe, answer, foil, tuple(tokens), tuple(queries(probe, answer, foil, tokens)))

    def opened(self, probe: Probe) -> list[Image.Image]:
        """A probe's pictures, not to be changed.

        Raises ValueError naming one that cannot be read.
        """
        return [self.pictures.open(path) for path in probe.images]

    def encode(
        self,
        probe: Probe,
        reply: str,
        *,
        like: Encoded | None = None,
        images: Sequence[Any] | None = None,
        max_pixels: int | None = None,
        generated: bool = False,
    ) -> Encoded:
        """Prompt and reply. ``like`` supplies its opened pictures, so that none is opened twice; ``images`` replace the
        probe's files; ``max_pixels`` limits the first picture only; ``generated``: the reply is the model's own, which
        need not have the form of an answer that can be learned."""
        if like is None and images is None:
            images = self.opened(probe)
        asked = user_parts(probe, images, max_pixels)
        encoded = self._encoded(probe, reply, asked, media=like is None, generated=generated)
        return encoded if like is None else replace(encoded, images=like.images, media=like.media)

    def encode_alone(self, probe: Probe, reply: str) -> Encoded | None:
        """The question without pictures, and the reply; None if the family refuses a prompt without one."""
        question = " ".join(part.strip() for part in unescaped(probe.question).split(PLACEHOLDER)).strip()
        try:
            return self._encoded(probe, reply, (question,), media=True)
        except ValueError:  # the family refuses it; the probe with its pictures has been read before
            return None

    def _encoded(
        self,
        probe: Probe,
        reply: str,
        asked: tuple[str | ImageRef, ...],
        *,
        media: bool,
        generated: bool = False,
    ) -> Encoded:
        turns = (Turn("user", asked), Turn("assistant", (reply,), trained=not generated))
        conversation = Conversation(turns, source=f"probe {probe.id}")
        encoded = self.family.encode(self.processor, conversation, media=media)
        start, end = encoded.turn_spans[-1]
        if start == end:
            raise ValueError(f"probe {probe.id}: {reply!r} has no tokens, expected at least one")
        return encoded

    def parts_for_a_server(self, probe: Probe) -> tuple[str | ImageRef, ...]:
        """The prompt without the line breaks and labels beside pictures that this model does not read as words: the
        server's chat template writes its own breaks, as ours does, and nothing there takes out what we do."""
        parts = user_parts(probe)
        asked = self._encoded(probe, probe.answer, parts, media=False).input_ids
        bare = _without_labels(parts)
        if np.array_equal(self._encoded(probe, probe.answer, bare, media=False).input_ids, asked):
            parts = bare
        for before, behind in ((True, True), (False, True), (True, False)):
            fewer = _without_breaks(parts, before=before, behind=behind)
            if np.array_equal(self._encoded(probe, probe.answer, fewer, media=False).input_ids, asked):
                return fewer
        return parts

    def longest_reply(self, probe: Probe) -> int:
        """Tokens of the longest text that a generated answer is judged by: a spelling of the answer, or the foil."""
        texts = [*probe.spellings, *([] if probe.foil is None else [probe.foil])]
        asked = Turn("user", ("?",))
        read = [
            self.family.encode(self.processor, Conversation((asked, Turn("assistant", (text,)))), media=False)
            for text in texts
        ]
        return max(end - start for start, end in (one.turn_spans[-1] for one in read))

    def check(self, probes: Sequence[Probe], source: str) -> tuple[str, ...]:
        """Warnings, one line each, for answers and foils of different length. Needs no weights, and only the headers of
        the pictures. ``source``: the probe file, for the message.

        Raises ValueError listing every probe that the model cannot read.
        """
        faults, unlike = [], []
        for probe in probes:
            try:
                answer, foil = self._check(probe)
                if foil and answer != foil:
                    unlike.append(f"{probe.id} ({answer} and {foil})")
            except ValueError as error:
                named = f"probe {probe.id}: "
                faults.append(named + str(error).removeprefix(named))
        if faults:
            raise ValueError(
                "\n  ".join([f"{source}: {len(faults)} probe(s) that this model cannot read:", *faults])
            )
        return (_unlike_words(source, unlike, len(probes)),) if unlike else ()

    def _check(self, probe: Probe) -> tuple[int, int]:
        """Number of scored tokens of answer and foil; 0 without a foil."""
        asked = user_parts(probe)
        answer = self._encoded(probe, probe.answer, asked, media=False)
        foil = None if probe.foil is None else self._encoded(probe, probe.foil, asked, media=False)
        queries(probe, answer, foil, self.texts(answer))
        lengths = [0 if one is None else len(range(*scored_span(one))) for one in (answer, foil)]
        return lengths[0], lengths[1]

    def layout(self, probe: Probe) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
        """The text of each token of the probe with its answer, and the grid (rows, columns) of each picture."""
        encoded = self.encode(probe, probe.answer)
        return tuple(self.texts(encoded)), tuple(image.grid for image in encoded.images)

    def texts(self, encoded: Encoded) -> list[str]:
        """The text of each token."""
        slots = {int(position) for image in encoded.images for position in image.all_positions}
        return token_texts(self.processor.tokenizer, encoded.input_ids.tolist(), slots)


def _changed(probe: Probe) -> tuple[tuple[int, int], ...] | None:
    """How a probe's pictures were last written; None if one is gone, which opening it reports."""
    try:
        return tuple(map(written, probe.images))
    except OSError:
        return None


def _unlike_words(source: str, unlike: Sequence[str], probes: int) -> str:
    more = f" and {len(unlike) - MOST_NAMED} more" if len(unlike) > MOST_NAMED else ""
    return (
        f"{source}: in {len(unlike)} of {probes} probes answer and foil differ in their number of tokens: "
        f"{', '.join(unlike[:MOST_NAMED])}{more}; every token lowers a score, so a margin near 0 says little there: "
        "choose a foil of the same length if there is one"
    )


def check_processor(processor: Any) -> None:
    """Processors of transformers and of families have no common base class, but all have these two parts.

    Raises ValueError naming what is missing.
    """
    missing = [
        f".{name}" for name in ("tokenizer", "image_processor") if getattr(processor, name, None) is None
    ]
    if missing:
        raise ValueError(
            f"processor: found {type(processor).__name__}, without {' and '.join(missing)}; expected the model's "
            "whole processor, as AutoProcessor.from_pretrained(…) gives it: probes are read with their pictures"
        )


def _check_question(family: Family, probe: Probe) -> None:
    """Raises ValueError for boxes in a question, which training reads and a probe does not. Qwen-VL's markup is its own
    tokens wherever it stands."""
    found = None if family.name == "qwen-vl" else _BOXES.search(probe.question)
    if found is not None:
        raise ValueError(
            f"probe {probe.id!r}: question: found {found[0]!r:.80}, expected words: {family.name} is trained with "
            "boxes in a writing of its own, and this one would be asked as it stands; ask in words, and give the "
            "place as a region"
        )


def user_parts(
    probe: Probe, images: Sequence[Any] | None = None, max_pixels: int | None = None
) -> tuple[str | ImageRef, ...]:
    """A probe's prompt as Qwen-VL's data writes it, ``Picture 1: `` image ``\\n`` question, images numbered from 1;
    or, where the question has an ``<image>`` for each, with the images there and nothing added. Marks of boxes behind a
    backslash are words, as in training data.

    ``images`` replace the probe's files (occluded pictures), in the same order; ``max_pixels`` limits the first
    picture only.
    """
    sources = probe.images if images is None else images
    refs = [
        ImageRef(path.name, source, max_pixels=max_pixels if at == 0 else None)
        for at, (path, source) in enumerate(zip(probe.images, sources, strict=True))
    ]
    question = unescaped(probe.question)
    if PLACEHOLDER in question:
        first, *texts = question.split(PLACEHOLDER)
        parts = [first, *(part for pair in zip(refs, texts, strict=True) for part in pair)]
        return tuple(part for part in parts if part)
    before = ["\n" * (at > 0) + f"Picture {at + 1}: " for at in range(len(refs))]
    return (*(part for pair in zip(before, refs, strict=True) for part in pair), f"\n{question}")


def _without_labels(parts: Sequence[str | ImageRef]) -> tuple[str | ImageRef, ...]:
    found = [
        without_label(part) if isinstance(part, str) and isinstance(behind, ImageRef) else part
        for part, behind in zip(parts, (*parts[1:], ""), strict=True)
    ]
    return tuple(part for part in found if part != "")


def _without_breaks(
    parts: Sequence[str | ImageRef], *, before: bool, behind: bool
) -> tuple[str | ImageRef, ...]:
    """Without one line break before, or behind, each picture."""
    found = list(parts)
    for at, part in enumerate(parts):
        if not isinstance(part, str):
            continue
        words = part
        if behind and at > 0 and isinstance(parts[at - 1], ImageRef):
            words = without_first_break(words)
        if before and at + 1 < len(parts) and isinstance(parts[at + 1], ImageRef):
            words = without_last_break(words)
        found[at] = words
    return tuple(part for part in found if part != "")


def forget_positions(model: nn.Module) -> None:
    """Before a prompt is read: no positions of an earlier one.

    Trap: the Qwen-VL models of transformers keep how far pictures moved positions (``rope_deltas``) until the next
    prompt with a picture, and add it to what follows a prompt without any. A model keeps it, and never a layer: lists
    of layers, which are most of a model's modules, are not entered.
    """
    if getattr(model, "rope_deltas", None) is not None:
        model.rope_deltas = None  # type: ignore[assignment]
    for child in model.children():
        if not isinstance(child, nn.ModuleList):
            forget_positions(child)


def padded(batch: Sequence[Encoded], device: torch.device, *, left: bool) -> dict[str, Tensor]:
    """Encoded conversations as one batch: input_ids, attention_mask and what the family has for each token
    [batch, tokens], padded with 0; media joined in order. Ids may be cut to those of the prompt."""
    width = max(len(one.input_ids) for one in batch)
    names = ("input_ids", "attention_mask", *batch[0].per_token)
    inputs = {name: torch.zeros(len(batch), width, dtype=torch.long) for name in names}
    for row, one in enumerate(batch):
        count = len(one.input_ids)
        place = slice(width - count, None) if left else slice(0, count)
        inputs["input_ids"][row, place] = torch.from_numpy(np.asarray(one.input_ids))
        inputs["attention_mask"][row, place] = 1
        for name, values in one.per_token.items():
            inputs[name][row, place] = torch.from_numpy(np.asarray(values[:count]))
    inputs |= joined_media(batch)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def text_spans(encoded: Encoded) -> tuple[tuple[int, int], tuple[int, int]]:
    """Token ranges (start, end) of question and answer. The question starts after the images."""
    user_start, user_end = encoded.turn_spans[-2]
    after_images = max([user_start, *(int(image.all_positions.max()) + 1 for image in encoded.images)])
    return (after_images, user_end), encoded.turn_spans[-1]


def scored_span(encoded: Encoded) -> tuple[int, int]:
    """Tokens (start, end) of the last reply and of what ends it, over which log probabilities are summed.

    Without its end a reply never loses to a longer one that it begins: p("Canton") ≥ p("Canton Tower"), always.

        <|im_start|>assistant\\n Canton Tower <|im_end|> \\n    →  Canton Tower <|im_end|>

    Raises ValueError if the family trains on no token after the reply.
    """
    start, end = encoded.turn_spans[-1]
    if end >= len(encoded.labels) or encoded.labels[end] == IGNORED:
        found = "nothing" if end >= len(encoded.labels) else "a token that is not trained on"
        raise ValueError(
            f"found {found} after the last reply; expected the token that ends an answer, as training learns it: "
            "scores run through it, so let the family's encode write it and label it"
        )
    return start, end + 1


def parted(answer: Encoded, foil: Encoded) -> int:
    """Index of the first token where the two replies differ; if one is a prefix of the other, of the token that ends
    the shorter one. Raises ValueError if both have the same tokens."""
    start, end = scored_span(answer)
    pairs = zip(answer.input_ids[start:end], foil.input_ids[slice(*scored_span(foil))], strict=False)
    differing = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if differing is None:
        raise ValueError(
            "answer and foil have the same tokens; expected a foil with other tokens in this model"
        )
    return start + differing


def queries(probe: Probe, answer: Encoded, foil: Encoded | None, texts: Sequence[str]) -> list[Query]:
    """The answer query first: the token before the first one where answer and foil differ; then, for each phrase,
    the token that completes it, in the question if it appears there, else in the answer."""
    question, reply = text_spans(answer)
    predicted = reply[0] if foil is None else parted(answer, foil)
    found = [Query(predicted - 1, "answer", texts[predicted])]
    for phrase in probe.phrases:
        place = find_phrase(phrase, texts, *question)
        place = find_phrase(phrase, texts, *reply) if place is None else place
        if place is None:
            raise ValueError(
                f"probe {probe.id}: phrase {phrase!r} not found as a whole word in the tokens of question or answer, "
                f"{list(texts[question[0] : reply[1]])}; write words as they stand there"
            )
        found.append(Query(place, f"phrase:{phrase}", phrase))
    return found
