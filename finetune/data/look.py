"""Where answers should look, as the model reads them: which rows write the supervised words, and what boxes cover.

… <|im_start|> assistant \n  the   cat   <|im_end|>
t                        6    7     8     9          "cat" is token 8, and row 7 writes it
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetune.families.base import Encoded, ImageTokens
from finetune.families.parts.coverage import region_coverage, token_weights
from finetune.families.parts.phrases import token_texts, tokens_of, written_words
from finetune.samples.conversation import BoxRef, Conversation, LookAt, Part
from finetune.samples.formats.look_at import of_turn, places

Rows = Literal["first", "phrase"]
"""Which rows of a phrase are supervised: the one that writes its first token, or those that write any of it."""
NO_TOKEN = -1
NO_ROWS: tuple[int, ...] = ()


class LookRow(NamedTuple):
    """A supervised row of a sample: where the model should look as it writes one token.

    row       its place in the sample: it writes token ``row + 1``
    tokens    Int[tokens]: places of the sample's image tokens, image after image
    weights   Float[ends, places]: how far each place is covered by the boxes, 0 to 1. Places are the image tokens, or
              through a connector the cells, image after image
    images    Int[images]: through a connector, which of the sample's images the tokens are of; otherwise empty
    """

    row: int
    tokens: np.ndarray
    weights: np.ndarray
    images: np.ndarray


def arrays_of(rows: Sequence[LookRow]) -> Iterator[np.ndarray]:
    """All arrays of a sample's supervised rows; those of one sample share ``tokens`` and ``images``."""
    for row in rows:
        yield from (row.tokens, row.weights, row.images)


class LookBatch(NamedTuple):
    """The supervised rows of a batch.

    sequences   Int[sequences]: which rows of the batch have supervised rows of attention
    positions   Int[sequences, most]: those rows of attention, the last one repeated where a sequence has fewer
    at          Int[rows, 2]: of each supervised row, its place in ``positions``
    tokens      Int[rows, tokens]: places of image tokens, ``NO_TOKEN`` where a row has fewer
    weights     Float[rows, ends, places]: as ``LookRow.weights``, a single end repeated
    ends        Int[rows]: how many there are
    images      Int[rows, images]: through a connector, which images of the batch; otherwise no column
    sources     Int[rows]: the source of each row's sample
    """

    sequences: Int[Tensor, "sequences"]
    positions: Int[Tensor, "sequences most"]
    at: Int[Tensor, "rows 2"]
    tokens: Int[Tensor, "rows tokens"]
    weights: Float[Tensor, "rows ends places"]
    ends: Int[Tensor, "rows"]
    images: Int[Tensor, "rows images"]
    sources: Int[Tensor, "rows"]

    @property
    def is_token(self) -> Bool[Tensor, "rows tokens"]:
        return self.tokens != NO_TOKEN


class Placed(NamedTuple):
    """A supervised row of an answer by its token, before boxes are laid over cells."""

    row: int
    look: LookAt


def placed(conversation: Conversation, encoded: Encoded, processor: Any, rows: Rows) -> Iterator[Placed]:
    """The rows that write each supervised phrase: of token t it is row t − 1. No picture is needed.

    Raises ValueError where an answer does not have a phrase, or its tokens do not give its words, and for two phrases
    that begin in one token: one row would be taught two places.
    """
    for turn, (start, end) in zip(conversation.turns, encoded.turn_spans, strict=True):
        if not of_turn(turn):
            continue
        texts = token_texts(processor.tokenizer, encoded.input_ids[start:end].tolist())
        if not any(isinstance(part, BoxRef) for part in turn.parts):
            turn = replace(turn, parts=("".join(texts),))  # as the tokenizer reads it, which may change it
        else:
            turn = replace(turn, parts=_as_trimmed(turn.parts, "".join(texts)))
        written = written_words(turn.parts, texts)
        begun: dict[int, str] = {}
        for look, begin, stop in places(turn):
            tokens = _with_first_bytes(tokens_of(begin, stop, written, texts), texts)
            for token in tokens[:1]:
                if token in begun:
                    raise ValueError(_of_one_token(begun[token], look.phrase, texts[token]))
                begun[token] = look.phrase
            for token in tokens[:1] if rows == "first" else tokens:
                yield Placed(start + token - 1, look)


def _as_trimmed(parts: Sequence[Part], read: str) -> tuple[Part, ...]:
    """The parts without the white space at the ends of the answer that the chat template trims (Gemma 3's does)."""
    found = list(parts)
    first, last = found[0], found[-1]
    if isinstance(first, str) and read[:1] != first[:1]:
        found[0] = first.lstrip()
    if isinstance(last, str) and read[-1:] != last[-1:]:
        found[-1] = found[-1].rstrip() if isinstance(found[-1], str) else found[-1]
    return tuple(part for part in found if part != "")


def _of_one_token(first: str, second: str, token: str) -> str:
    return (
        f"look_at: found the phrases {first!r:.80} and {second!r:.80}, which begin in one token of this model's "
        f"tokenizer, {token!r:.40}, so that one row of attention would be taught two places; expected one place for "
        "each row: put the boxes into one entry, leave one of the two out, or write words between them"
    )


def _with_first_bytes(tokens: Sequence[int], texts: Sequence[str]) -> list[int]:
    """The tokens of a phrase, in order, and before them those that begin its characters.

    ``token_texts`` gives a character of several tokens to the one that completes it, and "" to those before; the row
    that writes the last of them has read the others, and decides little.

    Tokens 3 and 5 of texts ``["a", "", "", "鹳", "on", "b"]`` → 1, 2, 3, 5.
    """
    found = dict[int, None]()
    for token in tokens:
        begin = token
        while begin > 0 and texts[begin - 1] == "":
            begin -= 1
        found |= dict.fromkeys(range(begin, token + 1))
    return [*found]


def look_rows(
    conversation: Conversation, encoded: Encoded, processor: Any, rows: Rows
) -> tuple[LookRow, ...]:
    """The supervised rows of a sample; () where nothing of it says where to look.

    encoded   with its pictures

    Raises ValueError as ``placed``.
    """
    found = list(placed(conversation, encoded, processor, rows))
    if not found:
        return ()
    images = encoded.images
    tokens = np.concatenate([image.all_positions for image in images])
    through = np.arange(len(images)) if images[0].through_connector else np.array([], np.int64)
    return tuple(LookRow(one.row, tokens, _weights(one.look, images), through) for one in found)


def _weights(look: LookAt, images: Sequence[ImageTokens]) -> Float[np.ndarray, "ends places"]:
    return np.stack([_over_places(end, look.image, images) for end in look.ends])


def boxes_pixels(boxes: Sequence[Sequence[float]], image: ImageTokens) -> list[tuple[float, ...]]:
    """Fractions of a picture → pixels of the original picture."""
    width, height = image.image_size_pixels
    return [(x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in boxes]


def cells_covered(boxes: Sequence[Sequence[float]], image: ImageTokens) -> Float[np.ndarray, " cells"]:
    """How far each cell of the picture is covered by boxes in fractions of it, 0 to 1."""
    return region_coverage(boxes_pixels(boxes, image), image)


def _over_places(
    boxes: Sequence[Sequence[float]], number: int, images: Sequence[ImageTokens]
) -> Float[np.ndarray, " places"]:
    """Coverage over the places of all images, 0 on those that the boxes are not in."""
    parts = []
    for at, image in enumerate(images):
        cells = cells_covered(boxes, image) if at == number else np.zeros(len(image.cell_boxes_pixels))
        parts.append(cells if image.through_connector else token_weights(cells, image))
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


class Supervised(NamedTuple):
    """A sample in a batch: the batch's row, where the sample begins in it, how many images of the batch come before it,
    its source, and its supervised rows."""

    sequence: int
    start: int
    images_before: int
    source: int
    rows: Sequence[LookRow]


def look_batch(samples: Sequence[Supervised]) -> LookBatch:
    """The supervised rows of a batch as tensors; without any, tensors of no row."""
    flat = [(one, row) for one in samples for row in one.rows]
    sequences = sorted({one.sequence for one, _ in flat})
    by_sequence: list[list[int]] = [[] for _ in sequences]
    at = []
    for one, row in flat:
        kept = sequences.index(one.sequence)
        at.append((kept, len(by_sequence[kept])))
        by_sequence[kept].append(one.start + row.row)
    most = max(map(len, by_sequence), default=0)
    positions = [several + [several[-1]] * (most - len(several)) for several in by_sequence]
    return LookBatch(
        sequences=torch.tensor(sequences, dtype=torch.long),
        positions=torch.tensor(positions, dtype=torch.long).reshape(len(sequences), most),
        at=torch.tensor(at, dtype=torch.long).reshape(-1, 2),
        tokens=_padded([one.start + row.tokens for one, row in flat], NO_TOKEN),
        weights=_padded_weights([row.weights for _, row in flat]),
        ends=torch.tensor([len(row.weights) for _, row in flat], dtype=torch.long),
        images=_padded([one.images_before + row.images for one, row in flat], NO_TOKEN),
        sources=torch.tensor([one.source for one, _ in flat], dtype=torch.long),
    )


def _padded(rows: Sequence[np.ndarray], value: int) -> Int[Tensor, "rows columns"]:
    out = torch.full((len(rows), max(map(len, rows), default=0)), value, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(np.asarray(row, np.int64))
    return out


def _padded_weights(rows: Sequence[np.ndarray]) -> Float[Tensor, "rows ends places"]:
    ends, places = (max((row.shape[axis] for row in rows), default=0) for axis in (0, 1))
    out = torch.zeros(len(rows), ends, places)
    for i, row in enumerate(rows):
        out[i, :, : row.shape[1]] = torch.from_numpy(row[[*range(len(row)), *[0] * (ends - len(row))]])
    return out
