"""The margin of a probe with something hidden from the model, reading no token twice that can be read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import EncodedProbe, forget_positions, padded, parted, scored_span
from diagnostics.probing.reading import summed_nats
from diagnostics.probing.regions import blocked_in_tower, blocked_patches, blocked_tokens
from finetune.families import Encoded, Family
from finetune.families.base import reads_prompts_whole

Blocked = Mapping[str, Tensor]


class ScoredInput(NamedTuple):
    """A sequence to score. At most one of ``cells`` (of the first image, hidden inside tower and resampler),
    ``tokens`` (hidden from the answer query in ``layers``, or from all tokens after the image in all layers) and
    ``dropped`` (hidden from every other token, in ``layers`` or in all) is set."""

    encoded: Encoded
    cells: np.ndarray | None = None
    tokens: np.ndarray | None = None
    layers: tuple[int, int] | None = None
    dropped: np.ndarray | None = None


class Margins:
    """Reads sequences through one model: the margin log p(answer) − log p(foil) of each, nats.

    The tokens that answer and foil share are read once for each case. Cases that hide tokens only from what follows the
    pictures go on from one reading of these, where the family's pictures do not see the question.
    """

    def __init__(self, model: nn.Module, extractor: AttentionExtractor, *, batch_size: int) -> None:
        self.model: Any = model
        self.extractor = extractor
        self.batch_size = batch_size

    def read(self, asked: EncodedProbe, cases: Sequence[ScoredInput]) -> list[float]:
        """The margin of each case. Every case ends with the probe's answer."""
        replies = _Replies.of(asked)
        behind = self._behind_pictures(asked, cases)
        margins: dict[int, float] = dict(
            zip(behind, self._read_behind(asked, [cases[at] for at in behind], replies), strict=True)
        )
        apart = [at for at in range(len(cases)) if at not in margins]
        for batch in self._equally_long(apart, cases):
            part = [cases[at] for at in batch]
            margins |= zip(batch, self._read_whole(asked, part, replies), strict=True)
        return [margins[at] for at in range(len(cases))]

    def _behind_pictures(self, asked: EncodedProbe, cases: Sequence[ScoredInput]) -> list[int]:
        """Indices of the cases that read the pictures as the probe does; none where there is only one."""
        end = _end_of_pictures(asked.answer)
        if reads_prompts_whole(self.extractor.family) or end >= asked.parted:
            return []
        found = [
            at
            for at, case in enumerate(cases)
            if case.tokens is not None and case.encoded is asked.answer and _hidden_from(case, asked) >= end
        ]
        return found if len(found) > 1 else []

    def _equally_long(self, chosen: Sequence[int], cases: Sequence[ScoredInput]) -> Iterator[list[int]]:
        """Indices of cases whose sequences are equally long: the next token is read behind the last of each."""
        lengths = {at: len(cases[at].encoded.input_ids) for at in chosen}
        for length in dict.fromkeys(lengths.values()):
            yield from self._batches([at for at, one in lengths.items() if one == length])

    def _batches(self, chosen: Sequence[Any]) -> Iterator[list[Any]]:
        for start in range(0, len(chosen), self.batch_size):
            yield list(chosen[start : start + self.batch_size])

    def _read_behind(
        self, asked: EncodedProbe, cases: Sequence[ScoredInput], replies: _Replies
    ) -> list[float]:
        """Both replies of every case behind one reading of the pictures."""
        if not cases:
            return []
        end = _end_of_pictures(asked.answer)
        pictures = self._read([_until(asked.answer, end)]).past_key_values
        texts = [
            torch.cat([torch.from_numpy(asked.answer.input_ids[end : replies.shared]), tail[:-1]])
            for tail in replies.tails
        ]
        tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self._device)
        margins: list[float] = []
        for batch in self._batches(cases):
            is_last = len(margins) + len(batch) == len(cases)
            cache = pictures if is_last else deepcopy(pictures)
            cache.reorder_cache(torch.zeros(2 * len(batch), dtype=torch.long, device=self._device))
            with self.extractor.knocked_out(_twice(self._blocked(asked, batch, replies))):
                read = self.model(
                    input_ids=tokens.repeat(len(batch), 1),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=replies.longest,
                )
            margins += replies.margins(read.logits[:, -replies.longest :])
        return margins

    def _read_whole(
        self, asked: EncodedProbe, cases: Sequence[ScoredInput], replies: _Replies
    ) -> list[float]:
        """Both replies of every case behind its own prompt."""
        blocked = self._blocked(asked, cases, replies)
        said = replies.shared - asked.answer.turn_spans[-1][0]  # shared tokens of the reply
        prompts = [_until(case.encoded, case.encoded.turn_spans[-1][0] + said) for case in cases]
        with self.extractor.knocked_out(blocked):
            read = self._read(prompts)
        logits = read.logits[:, -1:].repeat_interleave(2, dim=0)  # [case, tail], tails within a case
        if replies.longest > 1:
            cache = read.past_key_values
            # Not ``batch_repeat_interleave``: caches of linear attention have none.
            cache.reorder_cache(torch.arange(len(cases), device=self._device).repeat_interleave(2))
            ends = nn.utils.rnn.pad_sequence([tail[:-1] for tail in replies.tails], batch_first=True)
            ends = ends.repeat(len(cases), 1).to(self._device)
            with self.extractor.knocked_out(_twice(blocked)):
                rest = self.model(input_ids=ends, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, rest], dim=1)
        return replies.margins(logits)

    def _read(self, prompts: Sequence[Encoded]) -> Any:
        inputs = padded(prompts, self._device, left=False)
        forget_positions(self.model)
        return self.model(**inputs, use_cache=True, logits_to_keep=1)

    def _blocked(
        self, asked: EncodedProbe, cases: Sequence[ScoredInput], replies: _Replies
    ) -> dict[str, Tensor]:
        length = replies.shared + replies.longest
        return _blocked(cases, self.extractor.names, answer_query=asked.parted - 1, length=length)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class _Replies(NamedTuple):
    """Answer and foil.

    shared   tokens of the sequence that both have
    tails    what follows these in each, through its end
    """

    shared: int
    tails: list[Tensor]

    @classmethod
    def of(cls, asked: EncodedProbe) -> _Replies:
        assert asked.foil is not None
        both = (asked.answer, asked.foil)
        shared = parted(*both)
        return cls(shared, [torch.from_numpy(one.input_ids[shared : scored_span(one)[1]]) for one in both])

    @property
    def longest(self) -> int:
        return max(map(len, self.tails))

    def margins(self, logits: Float[Tensor, "cases_times_2 longest vocabulary"]) -> list[float]:
        """log p(first tail) − log p(second tail), nats; the two of a case are neighbours."""
        nats = [
            summed_nats(logits[row, : len(self.tails[row % 2])], self.tails[row % 2])
            for row in range(len(logits))
        ]
        return (torch.stack(nats[::2]) - torch.stack(nats[1::2])).tolist()


def reads_pictures_first(family: Family, encoded: Encoded) -> bool:
    """Can all knock-outs of this probe's tokens go on from one reading of its pictures?"""
    end = _end_of_pictures(encoded)
    return not reads_prompts_whole(family) and end == int(encoded.images[0].all_positions.max()) + 1


def _twice(blocked: Blocked) -> Blocked:
    return {name: mask.repeat_interleave(2, dim=0) for name, mask in blocked.items()}


def _until(encoded: Encoded, end: int) -> Encoded:
    """A sequence up to a token that does not belong to it; its pictures all lie before."""
    return replace(encoded, input_ids=encoded.input_ids[:end])


def _end_of_pictures(encoded: Encoded) -> int:
    """Index of the first token behind the pictures, and behind what stands in their places but is no cell: LLaVA's
    padding below a wide picture, the newline behind LLaVA-NeXT's last row."""
    ids = encoded.input_ids
    last = max((int(image.all_positions.max()) for image in encoded.images), default=-1)
    while 0 <= last < len(ids) - 1 and ids[last + 1] == ids[last]:
        last += 1
    return last + 1


def _hidden_from(case: ScoredInput, asked: EncodedProbe) -> int:
    """The first token that does not see what a case with ``tokens`` hides."""
    if case.layers is not None:
        return asked.parted - 1
    return int(case.encoded.images[0].all_positions.max()) + 1


def _blocked(
    batch: Sequence[ScoredInput], names: Sequence[str], *, answer_query: int, length: int
) -> dict[str, Tensor]:
    """The blocked positions in this batch, by module name; ``length`` is that of the longer reply's sequence, since a
    position beyond the mask is not knocked out.

    Cells: patches in the vision tower and at the resampler. Tokens: from the answer query on in the case's window, or,
    without one, after the image in every language layer. Dropped: from all tokens but themselves in the case's window.
    """
    language = [name for name in names if name.startswith("layer_")]
    blocked: dict[str, Tensor] = {}
    if any(case.cells is not None for case in batch):
        others = [None] * (len(batch[0].encoded.images) - 1)  # regions are in the first image
        patches = blocked_patches([one for case in batch for one in (case.cells, *others)])
        tower = [name for name in names if name.startswith("vision_layer_")]
        blocked |= {"visual_attn": patches, **dict.fromkeys(tower, blocked_in_tower(patches))}
    if any(case.tokens is not None and case.layers is None for case in batch):
        chosen = [
            None if case.tokens is None or case.layers is not None else (case.encoded.images[0], case.tokens)
            for case in batch
        ]
        blocked |= dict.fromkeys(language, blocked_tokens(chosen, length))
    windows = [_window(case, language) for case in batch]
    made: dict[tuple[bool, ...], torch.Tensor] = {}  # layers that hide the same share one mask
    for name in dict.fromkeys(name for window in windows for name in window):
        hides = tuple(name in window for window in windows)
        if hides not in made or name in blocked:
            mask = blocked.get(name, torch.zeros(len(batch), length, length, dtype=torch.bool)).clone()
            for row, case in enumerate(batch):
                if hides[row]:
                    _hide(mask[row], case, answer_query)
            made[hides] = mask
        blocked[name] = made[hides]
    return blocked


def _hide(mask: Bool[Tensor, "queries keys"], case: ScoredInput, answer_query: int) -> None:
    """Marks, in one sequence's mask, what its case hides in one layer of its window."""
    if case.dropped is None:
        mask[answer_query:, torch.from_numpy(case.tokens)] = True
        return
    places = torch.from_numpy(case.dropped)
    mask[:, places] = True
    mask[places, places] = False  # a row that sees nothing would be no number


def _window(case: ScoredInput, language: Sequence[str]) -> Sequence[str]:
    """Of the layers that attend, those in the window."""
    if case.layers is None:
        return []
    first, last = case.layers
    return [name for name in language if first <= int(name.removeprefix("layer_")) <= last]
