"""Dataset and collator: conversations → encoded samples → batches."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from finetune.data import look
from finetune.data.kept_samples import KeptSamples
from finetune.data.lengths import IGNORED, Lengths, count, faults_of, faults_text, measure, shrink
from finetune.data.mixture import Mixture, Source
from finetune.data.schedule import Row
from finetune.families.base import Encoded, Family, encode_for_training, joined_media
from finetune.samples.conversation import Conversation, ImageRef, OnDemand, Turn, VideoRef
from finetune.samples.listing import shown

MOST_NAMES_SHOWN = 20

OnBadSample = Literal["error", "drop", "shrink"]
Ahead = Callable[[Sequence[Encoded]], list[Encoded]]


class Sample(NamedTuple):
    """One item of the dataset.

    number    its place in the dataset
    encoded   the conversation as the model reads it
    source    which of the mixture's sources it comes from
    looks     rows that should look into boxes; () where attention is not supervised
    """

    number: int
    encoded: Encoded
    source: int = 0
    looks: tuple[look.LookRow, ...] = ()


class Fault(NamedTuple):
    """A sample that could not be read: its place in the dataset, and what is wrong with it."""

    number: int
    message: str


class ConversationDataset(Dataset[Sample]):
    """Conversations of a mixture, encoded when asked for: images are decoded in the data loader's workers.

    conversations   all sources, one after another
    lengths         tokens of each, known before training; None with streaming, where nothing is counted in advance
    mixture         the sources, and the order of an epoch
    source_of       Int[samples], which source each comes from
    look            which rows of answers' phrases are supervised; None: none, and ``look_at`` is not read
    is_held_out     of evaluation data: False where it is known to be trained on as well
    kept            samples that stay in memory as they were first read: none until ``keep``
    ahead           what is computed of samples that are read together, before they are kept; None: nothing
    seconds_ahead   that this took so far
    """

    def __init__(
        self,
        mixture: Mixture,
        lengths: Lengths | None,
        processor: Any,
        family: Family,
        *,
        max_length: int,
        on_bad_sample: OnBadSample,
        look: look.Rows | None = None,
    ) -> None:
        assert lengths is None or len(lengths.tokens) == len(mixture.conversations)
        self.mixture, self.conversations, self.lengths = mixture, mixture.conversations, lengths
        self.source_of = mixture.source_of  # the mixture recomputes it on each access
        self.processor, self.family = processor, family
        self.max_length, self.on_bad_sample, self.look = max_length, on_bad_sample, look
        self.is_held_out = True
        self.kept: KeptSamples[Sample] = KeptSamples(0)
        self.ahead: Ahead | None = None
        self.seconds_ahead = 0.0

    def keep(self, room_bytes: float, *, ahead: Ahead | None = None) -> None:
        """From here on, keep what is read in memory, up to so many bytes, and forget what was kept before."""
        self.kept, self.ahead = KeptSamples(room_bytes), ahead

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Sample:
        """Raises ValueError that names the sample where it cannot be read, and with streaming where it is too long."""
        kept = self.kept.get(index)
        return self._ready([self._read(index)])[0] if kept is None else kept

    def together(self, indices: Sequence[int]) -> list[Sample | Fault]:
        """Those of a batch. A sample that cannot be read becomes a ``Fault``."""
        found: dict[int, Sample | Fault] = {}
        read = []
        for index in dict.fromkeys(indices):
            kept = self.kept.get(index)
            try:
                if kept is None:
                    read.append(self._read(index))
                else:
                    found[index] = kept
            except ValueError as error:
                found[index] = Fault(index, str(error))
        found |= {sample.number: sample for sample in self._ready(read)}
        return [found[index] for index in indices]

    def _ready(self, read: Sequence[Sample]) -> list[Sample]:
        """Samples that were just read, with what is computed ahead, and kept where there is room."""
        ready = list(read)
        if self.ahead is not None and ready:
            begun = time.perf_counter()
            encoded = self.ahead([sample.encoded for sample in ready])
            self.seconds_ahead += time.perf_counter() - begun
            ready = [sample._replace(encoded=one) for sample, one in zip(ready, encoded, strict=True)]
        for sample in ready:
            self.kept.offer(sample.number, sample, sample.encoded, look.arrays_of(sample.looks))
        return ready

    def _read(self, index: int) -> Sample:
        conversation = self.conversations[index]
        try:
            encoded = encode_for_training(self.family, self.processor, conversation)
        except ValueError as error:
            raise ValueError(f"{conversation.source}: {error}") from error
        if self.lengths is None:
            encoded = self._fitting(conversation, encoded)
        elif len(encoded.input_ids) != self.lengths.tokens[index]:
            raise ValueError(
                f"{conversation.source}: found {len(encoded.input_ids)} tokens, expected "
                f"{self.lengths.tokens[index]} as counted before training; the data file or its pictures have "
                "changed since"
            )
        return Sample(index, encoded, int(self.source_of[index]), self._looks(conversation, encoded))

    def _looks(self, conversation: Conversation, encoded: Encoded) -> tuple[look.LookRow, ...]:
        if self.look is None:
            return ()
        try:
            return look.look_rows(conversation, encoded, self.processor, self.look)
        except ValueError as error:
            raise ValueError(f"{conversation.source}: {error}") from error

    def _fitting(self, conversation: Conversation, encoded: Encoded) -> Encoded:
        """The checks of ``build_dataset``, for one streamed sample."""
        if not (encoded.labels[1:] != IGNORED).any():
            raise ValueError(f"{conversation.source}: no token to learn")
        if len(encoded.input_ids) <= self.max_length:
            return encoded
        if self.on_bad_sample == "shrink":
            smaller = shrink(conversation, self.processor, self.family, self.max_length)
            if smaller is not None:
                return encode_for_training(self.family, self.processor, smaller)
        raise ValueError(
            f"{_weight(conversation, len(encoded.input_ids))}, over --model_max_length {self.max_length}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Length limit
# ---------------------------------------------------------------------------------------------------------------------


def build_dataset(
    mixture: Mixture | Sequence[Conversation],
    processor: Any,
    family: Family,
    *,
    max_length: int,
    on_bad_sample: OnBadSample,
    streaming: bool = False,
    look: look.Rows | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> ConversationDataset:
    """Count the tokens of every sample and enforce ``max_length``: a sample is never truncated.

    mixture         plain conversations are a mixture of one source
    on_bad_sample   samples that are too long are an error, left out ("drop"), or get smaller pictures ("shrink")
    streaming       nothing is counted in advance; samples are checked when they are read
    look            as in ``ConversationDataset``
    workers         processes that count; None: as many as the cores allow

    Samples that the family cannot read, and those without a token to learn, are an error or left out in the same way.

    Raises ValueError with the counts and the samples' names where one stays too long or cannot be read, or where a
    source has none left.
    """
    mixed = mixture if isinstance(mixture, Mixture) else Mixture([Source("all", mixture, "base")], 0)
    lengths = None
    if not streaming:
        fit = Fitting(processor, family, max_length, on_bad_sample, say)
        counted = [
            count(one.conversations, processor, family, workers=workers, say=say) for one in mixed.sources
        ]
        sources, parts = zip(*fit.sources(mixed.sources, counted), strict=True)
        lengths = Lengths(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        mixed = Mixture(sources, mixed.seed)
    return ConversationDataset(
        mixed, lengths, processor, family, max_length=max_length, on_bad_sample=on_bad_sample, look=look
    )


class Selected(OnDemand):
    """A subset of the conversations, in order, some of them replaced.

    kept      Int[samples]: which
    changed   place in ``conversations`` → what stands there instead
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        kept: Int[np.ndarray, "samples"],
        changed: Mapping[int, Conversation],
    ) -> None:
        self.conversations, self.kept, self.changed = conversations, kept, changed

    def __len__(self) -> int:
        return len(self.kept)

    def at(self, place: int) -> Conversation:
        number = int(self.kept[place])
        return self.changed[number] if number in self.changed else self.conversations[number]


class Fitting(NamedTuple):
    """What is done with samples that are too long or that the model cannot read."""

    processor: Any
    family: Family
    max_length: int
    on_bad_sample: OnBadSample
    say: Callable[[str], None]

    def sources(
        self, given: Sequence[Source], counted: Sequence[Lengths]
    ) -> Iterator[tuple[Source, Lengths]]:
        """Each source with the samples that fit, and their lengths."""
        pairs = [self._readable(source, lengths) for source, lengths in zip(given, counted, strict=True)]
        changed: list[dict[int, Conversation]] = [
            self._shrunk(source, lengths) if self.on_bad_sample == "shrink" else {}
            for source, lengths in pairs
        ]
        long = [
            [i for i in np.flatnonzero(lengths.tokens > self.max_length).tolist() if i not in smaller]
            for (_, lengths), smaller in zip(pairs, changed, strict=True)
        ]
        if any(long):
            self._tell(pairs, long)
        for (source, lengths), smaller, left_out in zip(pairs, changed, long, strict=True):
            yield self._selected(source, lengths, smaller, left_out)

    def _readable(self, source: Source, lengths: Lengths) -> tuple[Source, Lengths]:
        """The source without what this model cannot read. Raises ValueError if such samples are not dropped."""
        faults = faults_of(source.conversations, lengths, self.processor, self.family)
        if not faults:
            return source, lengths
        message = faults_text(faults, len(lengths.tokens))
        if self.on_bad_sample != "drop":
            raise ValueError(f"{message}\ncorrect them, or leave them out: --on_bad_sample drop")
        if len(faults) == len(lengths.tokens):
            raise ValueError(f"{message}\n{source.name}: no sample is left")
        self.say(f"{message}\nleft out, as --on_bad_sample drop says")
        return self._selected(source, lengths, {}, [*faults])

    def _shrunk(self, source: Source, lengths: Lengths) -> dict[int, Conversation]:
        """Those that fit with smaller pictures."""
        found = {}
        for i in np.flatnonzero(lengths.tokens > self.max_length).tolist():
            smaller = shrink(source.conversations[i], self.processor, self.family, self.max_length)
            if smaller is not None:
                found[i] = smaller
        if found:
            self.say(
                f"{source.name}: the pictures of {len(found):,} of {len(lengths.tokens):,} samples were downscaled to "
                f"fit --model_max_length {self.max_length}"
            )
        return found

    def _tell(self, pairs: Sequence[tuple[Source, Lengths]], long: Sequence[Sequence[int]]) -> None:
        """Raise an error for samples that are too long, or list those that are left out."""
        too_long, samples = sum(map(len, long)), sum(len(lengths.tokens) for _, lengths in pairs)
        names = [
            _weight(source.conversations[i], int(lengths.tokens[i]))
            for (source, lengths), several in zip(pairs, long, strict=True)
            for i in several[:MOST_NAMES_SHOWN]
        ]
        names += [""] * (too_long - len(names))  # counted, never shown
        message = "\n".join(
            [
                f"{too_long:,} of {samples:,} samples are over --model_max_length {self.max_length}; "
                "samples are never truncated",
                *shown(names, MOST_NAMES_SHOWN),
            ]
        )
        if self.on_bad_sample == "error":
            raise ValueError(
                f"{message}\nraise --model_max_length, shorten them, or leave them out: --on_bad_sample drop"
            )
        if self.on_bad_sample == "shrink":
            raise ValueError(
                f"{message}\nthey are too long even with the smallest pictures; raise --model_max_length, or leave "
                "them "
                "out: --on_bad_sample drop"
            )
        self.say(f"{message}\nleft out, as --on_bad_sample drop says")

    def _selected(
        self, source: Source, lengths: Lengths, smaller: Mapping[int, Conversation], left_out: Sequence[int]
    ) -> tuple[Source, Lengths]:
        if not smaller and not left_out:
            return source, lengths
        kept = np.setdiff1d(np.arange(len(lengths.tokens)), left_out)
        if not len(kept):
            raise ValueError(
                f"{source.name}: no sample is left: all {len(lengths.tokens)} are over --model_max_length "
                f"{self.max_length}"
            )
        if smaller:
            anew = measure(list(smaller.values()), self.processor, self.family, say=self.say)
            columns = [column.copy() for column in lengths]
            for column, values in zip(columns, anew, strict=True):
                column[list(smaller)] = values
            lengths = Lengths(*columns)
        chosen = Selected(source.conversations, kept, dict(smaller))
        return source._replace(conversations=chosen), Lengths(*(column[kept] for column in lengths))


def _weight(conversation: Conversation, tokens: int) -> str:
    videos = sum(isinstance(ref, VideoRef) for ref in conversation.media)
    images = len(conversation.media) - videos
    also = f", {videos} video{'' if videos == 1 else 's'}" if videos else ""
    return f"{conversation.source}: {tokens} tokens, {images} image{'' if images == 1 else 's'}{also}"


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


class Rows(Dataset[list[Sample | Fault]]):
    """The items of the data loader: the samples of a row. A sample that cannot be read becomes a ``Fault``: a worker's
    exception would reach the trainer as a traceback, and without the rest of its batch."""

    def __init__(self, dataset: ConversationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Row) -> list[Sample | Fault]:
        return self.dataset.together(row)

    def __getitems__(self, rows: Sequence[Row]) -> list[list[Sample | Fault]]:
        """A batch at once: torch's loader asks so where it can."""
        found = iter(self.dataset.together([index for row in rows for index in row]))
        return [[next(found) for _ in row] for row in rows]


class Collator:
    """Rows of samples → one batch, padded on the right to its longest row.

    input_ids       Int[batch, tokens], padding has ``pad_id``
    labels          Int[batch, tokens], -100 where not trained on, padding and the first token of a sample included
    attention_mask  Int[batch, tokens], 0 on padding. It comes from the lengths, not from the ids: a ``pad_id``
                    that a text contains is seen. Packed rows have what ``Family.packed`` gives instead
    and the family's further values of each token, and its media, joined on their first axis in the order of the batch

    about           what the trainer wants to know, and no model:
        samples     Int[samples], their numbers in the dataset, so that a broken batch can be named
        sample_sources   Int[samples], the source of each of them
        sources     Int[batch, tokens], the source of each token
        kept        Int[positions], where in any row a token stands whose successor is trained: at least one
        pictures    Int[], how many there are, a blank one not counted
        faults      number in the dataset → what is wrong, of the samples that could not be read
        look        the rows that should look into boxes (``look.LookBatch`` as a dict); only where there is one

    pad_id          of padding
    blank           ``Family.blank``: the row of a batch that has no sample (the last of an epoch, of more processes
                    than samples), and what follows a batch without pictures
    blank_pictures  let a blank picture follow where a batch has none, so that every process computes the same modules
    blank_video     and this a batch without videos: the tower has a call of its own for them
    packed          ``Family.packed`` for the model, where rows hold several samples; None: one sample a row
    one_row         join the packed rows into one, [1, tokens of all], which needs no padding: of a batch of several
                    rows flash kernels do not learn where samples begin (``packing.needs_one_row``)
    """

    def __init__(
        self,
        pad_id: int,
        blank: Encoded,
        *,
        blank_pictures: bool = False,
        blank_video: Encoded | None = None,
        packed: Callable[[Sequence[Encoded]], Mapping[str, Tensor]] | None = None,
        one_row: bool = False,
    ) -> None:
        assert packed is not None or not one_row, "unpacked, samples of one row would see each other"
        self.pad_id, self.blank, self.packed, self.one_row = pad_id, blank, packed, one_row
        self.must_have = [blank] * blank_pictures + ([] if blank_video is None else [blank_video])

    def __call__(self, rows: Sequence[Sequence[Sample | Fault]]) -> dict[str, Any]:
        read = [[one for one in row if isinstance(one, Sample)] for row in rows]
        read = [row for row in read if row]
        if self.one_row and read:
            read = [[sample for row in read for sample in row]]
        pieces = self._with_blank([[sample.encoded for sample in row] for row in read])
        labels = _pad([_joined([_predictable(one.labels) for one in row]) for row in pieces], IGNORED)
        batch: dict[str, Any] = {
            "input_ids": _pad([_ids(row) for row in pieces], self.pad_id),
            "labels": labels,
        }
        batch |= self._apart(pieces) | _per_token(pieces) | _media(pieces)
        samples = [sample for row in read for sample in row]
        batch["about"] = {
            "samples": torch.tensor([sample.number for sample in samples], dtype=torch.long),
            "sample_sources": torch.tensor([sample.source for sample in samples], dtype=torch.long),
            "sources": _sources(read, labels.shape),
            "kept": _kept(labels),
            "pictures": torch.tensor(sum(len(sample.encoded.images) for sample in samples)),
            "faults": {one.number: one.message for row in rows for one in row if isinstance(one, Fault)},
        }
        supervised = list(_supervised(read))
        if supervised:
            # As a dict: transformers moves tuples to the device in a way that named ones do not survive.
            batch["about"]["look"] = look.look_batch(supervised)._asdict()
        return batch

    def _with_blank(self, pieces: list[list[Encoded]]) -> list[list[Encoded]]:
        if not pieces:
            return [self.must_have or [self.blank]]
        for blank in self.must_have:
            if not any(blank.media.keys() & one.media.keys() for row in pieces for one in row):
                shortest = min(range(len(pieces)), key=lambda i: _length(pieces[i]))
                pieces = [[*row, blank] if i == shortest else row for i, row in enumerate(pieces)]
        return pieces

    def _apart(self, pieces: Sequence[Sequence[Encoded]]) -> dict[str, Tensor]:
        """What tells text from padding, and samples from each other."""
        if self.packed is None:
            return {"attention_mask": _pad([np.ones_like(_ids(row)) for row in pieces], 0)}
        longest = max(map(_length, pieces))
        # Padding is a sample of its own: nobody sees it, and it sees nobody.
        filled = [[*row, *self._padding(longest - _length(row), row[0])] for row in pieces]
        parts = [self.packed(row) for row in filled]
        return {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}

    def _padding(self, length: int, like: Encoded) -> list[Encoded]:
        if not length:
            return []
        ids = np.full(length, self.pad_id)
        kinds = {name: np.zeros(length, np.int64) for name in like.per_token}
        return [Encoded(ids, np.full(length, IGNORED), (), per_token=kinds)]


def blank_video(family: Family, processor: Any) -> Encoded | None:
    """A short sequence with the smallest video, no label trained; None if the family reads no videos."""
    still = ImageRef("blank", cast(Any, Image.new("RGB", (8, 8))), size_pixels=(8, 8))
    video = VideoRef("blank", (0.0,), frames=(still,), size_pixels=(8, 8), max_pixels=1)
    try:
        found = family.encode(processor, Conversation((Turn("user", (video,)),)))
    except ValueError:  # what reads pictures alone refuses every video
        return None
    return replace(found, labels=np.full_like(found.labels, IGNORED))


def _length(row: Sequence[Encoded]) -> int:
    return sum(len(one.input_ids) for one in row)


def _ids(row: Sequence[Encoded]) -> Int[np.ndarray, "tokens"]:
    return _joined([one.input_ids for one in row])


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays)


def _per_token(pieces: Sequence[Sequence[Encoded]]) -> dict[str, Tensor]:
    """The family's further values of each token: all samples have the same ones."""
    names = {frozenset(one.per_token) for row in pieces for one in row}
    assert len(names) == 1, (
        f"samples of one batch differ in what their tokens have: {sorted(map(sorted, names))}"
    )
    (found,) = names
    return {
        name: _pad([_joined([one.per_token[name] for one in row]) for row in pieces], 0)
        for name in sorted(found)
    }


def _media(pieces: Sequence[Sequence[Encoded]]) -> dict[str, Tensor]:
    return joined_media([one for row in pieces for one in row])


def _sources(read: Sequence[Sequence[Sample]], shape: torch.Size) -> Int[Tensor, "batch tokens"]:
    sources = torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(read):
        start = 0
        for sample in row:
            end = start + len(sample.encoded.input_ids)
            sources[i, start:end] = sample.source
            start = end
    return sources


def _supervised(read: Sequence[Sequence[Sample]]) -> Iterator[look.Supervised]:
    """The samples with supervised rows. Blank pictures follow all others of a row, but not of the batch: they are put
    into a batch without pictures alone, which has no supervised rows."""
    images = 0
    for i, row in enumerate(read):
        start = 0
        for sample in row:
            if sample.looks:
                yield look.Supervised(i, start, images, sample.source, sample.looks)
            start += len(sample.encoded.input_ids)
            images += len(sample.encoded.images)


def _kept(labels: Int[Tensor, "batch tokens"]) -> Int[Tensor, "positions"]:
    kept = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    return kept if len(kept) else torch.zeros(1, dtype=torch.long)


def _predictable(labels: np.ndarray) -> np.ndarray:
    """Nothing predicts the first token. Masked, it isn't counted when the loss is divided by its tokens."""
    return np.concatenate([[IGNORED], labels[1:]])


def _pad(rows: Sequence[np.ndarray], value: int) -> Int[Tensor, "batch tokens"]:
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.from_numpy(np.asarray(row))
    return padded
