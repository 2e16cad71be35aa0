"""Conversations → batches: lazy decoding, lengths that are checked before training, padding to the longest."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from finetune.conversation import Conversation
from finetune.families.base import Encoded, Family

IGNORED = -100  # a label that is not trained on
MOST_NAMES_SHOWN = 20


class Sample(NamedTuple):
    """One item of the dataset: its place in the file's order, and the conversation as the model reads it."""

    number: int
    encoded: Encoded


class ConversationDataset(Dataset[Sample]):
    """Conversations, encoded when asked for: images are decoded in the data loader's workers.

    ``lengths`` are the samples' token counts, known before training.
    """

    def __init__(
        self, conversations: Sequence[Conversation], lengths: Sequence[int], processor: Any, family: Family
    ) -> None:
        assert len(conversations) == len(lengths)
        self.conversations, self.lengths = list(conversations), list(lengths)
        self.processor, self.family = processor, family

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Sample:
        encoded = self.family.encode(self.processor, self.conversations[index])
        assert len(encoded.input_ids) == self.lengths[index], self.conversations[index].source
        return Sample(index, encoded)


def build_dataset(
    conversations: Sequence[Conversation],
    processor: Any,
    family: Family,
    *,
    max_length: int,
    on_bad_sample: Literal["error", "drop"],
    say: Callable[[str], None] = print,
) -> ConversationDataset:
    """Count every sample's tokens, and let none in that is longer than ``max_length``: a sample is never cut.

    Raises ValueError with the counts and the samples' names where one is too long (``on_bad_sample="error"``),
    or where none is left.
    """
    lengths = count_tokens(conversations, processor, family)
    keep = [i for i, length in enumerate(lengths) if length <= max_length]
    if len(keep) < len(lengths):
        long = [i for i, length in enumerate(lengths) if length > max_length]
        message = _too_long(conversations, lengths, long, max_length)
        if on_bad_sample == "error":
            raise ValueError(
                f"{message}\nraise --model_max_length, shorten them, or leave them out: --on_bad_sample drop"
            )
        say(f"{message}\nleft out, as --on_bad_sample drop says")
    if not keep:
        raise ValueError(f"no sample is left: all {len(lengths)} are over --model_max_length {max_length}")
    return ConversationDataset(
        [conversations[i] for i in keep], [lengths[i] for i in keep], processor, family
    )


def _too_long(
    conversations: Sequence[Conversation], lengths: Sequence[int], long: Sequence[int], max_length: int
) -> str:
    lines = [
        f"{len(long)} of {len(lengths)} samples are over --model_max_length {max_length}; "
        "cutting them could cut through an image"
    ]
    for i in long[:MOST_NAMES_SHOWN]:
        images = len(conversations[i].images)
        lines.append(
            f"  {conversations[i].source}: {lengths[i]} tokens, {images} image{'' if images == 1 else 's'}"
        )
    if len(long) > MOST_NAMES_SHOWN:
        lines.append(f"  ... and {len(long) - MOST_NAMES_SHOWN} more")
    return "\n".join(lines)


def count_tokens(conversations: Sequence[Conversation], processor: Any, family: Family) -> list[int]:
    """Tokens of each conversation; no picture is opened.

    Raises ValueError that names the samples without a single token to learn.
    """
    lengths, empty = [], []
    for conversation in tqdm(conversations, desc="counting tokens", unit="sample", delay=2):
        encoded = family.encode(processor, conversation, media=False)
        lengths.append(len(encoded.input_ids))
        if not (encoded.labels[1:] != IGNORED).any():
            empty.append(conversation.source)
    if empty:
        shown = "\n".join(f"  {name}" for name in empty[:MOST_NAMES_SHOWN])
        raise ValueError(f"{len(empty)} of {len(lengths)} samples have no token to learn:\n{shown}")
    return lengths


class Collator:
    """Samples → one batch, padded on the right to its longest sample.

    input_ids       Int[batch, tokens], padding has ``pad_id``
    labels          Int[batch, tokens], -100 where not trained on, padding included
    attention_mask  Int[batch, tokens], 0 on padding. It comes from the lengths, not from the ids: a ``pad_id``
                    that a text contains is seen
    sample_indices  Int[batch], the samples' numbers in the dataset, so that a broken batch can be named
    and the family's media, joined on their first axis in the order of the batch
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        assert samples
        encoded = [sample.encoded for sample in samples]
        batch = {
            "input_ids": _pad([one.input_ids for one in encoded], self.pad_id),
            "labels": _pad([_predictable(one.labels) for one in encoded], IGNORED),
            "attention_mask": _pad([np.ones_like(one.input_ids) for one in encoded], 0),
            "sample_indices": torch.tensor([sample.number for sample in samples]),
        }
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        for name in sorted({name for one in encoded for name in one.media}):
            batch[name] = torch.cat([one.media[name] for one in encoded if name in one.media])
        return batch


def _predictable(labels: np.ndarray) -> np.ndarray:
    """Nothing predicts the first token. Masked, it isn't counted when the loss is divided by its tokens."""
    return np.concatenate([[IGNORED], labels[1:]])


def _pad(rows: Sequence[np.ndarray], value: int) -> Int[Tensor, "batch tokens"]:
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.from_numpy(np.asarray(row))
    return padded


def show_sample(sample: Sample, processor: Any) -> str:
    """A sample as text: each run of tokens that trains, and each that doesn't, on a line of its own.

    An image's slots are written as their count: whatever ids stand in them are replaced by the picture.
    """
    ids, labels = sample.encoded.input_ids, sample.encoded.labels
    trained = labels != IGNORED
    slots = np.zeros(len(ids), bool)
    for image in sample.encoded.images:
        slots[image.positions] = True
    counts = f"{len(ids)} tokens, {int(trained.sum())} supervised, {len(sample.encoded.images)} images"
    lines = [f"sample {sample.number}: {counts}"]
    for start, end in _runs(trained):
        mark = "train |" if trained[start] else "      |"
        lines.append(f"  {mark} {_readable(ids[start:end], slots[start:end], processor)}")
    return "\n".join(lines)


def _readable(ids: np.ndarray, slots: np.ndarray, processor: Any) -> str:
    """Ids decoded, with line breaks made visible."""
    parts = [
        f"({end - start} image tokens)"
        if slots[start]
        else processor.tokenizer.decode(ids[start:end].tolist())
        for start, end in _runs(slots)
    ]
    return "".join(parts).replace("\n", "⏎")


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of each run of one value."""
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])
