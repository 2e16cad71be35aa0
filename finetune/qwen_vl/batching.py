"""Batches token rows of different length: truncation (never inside an image) and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_UNBOUNDED = 10**20  # transformers uses 1e30 for a tokenizer without a maximum length


class Row(NamedTuple):
    """One text's tokens.

    ids         its tokens
    images      (start, end) of each image's run, ``<img>`` and ``</img>`` included
    generated   1 for a token that the assistant wrote; None if not requested"""

    ids: list[int]
    images: list[tuple[int, int]]
    generated: list[int] | None = None


@dataclass(frozen=True)
class Fitting:
    """Options for batching rows, as in a tokenizer; ``left`` and ``cut_left``: pad or truncate on the left."""

    padding: bool | str
    truncation: bool | str | None
    max_length: int | None
    multiple: int | None
    left: bool
    cut_left: bool
    longest: float

    def __post_init__(self) -> None:
        if self.padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={self.padding!r}: expected True, False, 'longest' or 'max_length'")
        if self.truncation not in (True, False, None, "longest_first", "only_first", "do_not_truncate"):
            raise ValueError(f"truncation={self.truncation!r}: expected True, False or 'longest_first'")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length={self.max_length!r}: expected at least 1")
        if self.multiple is not None and self.multiple < 1:
            raise ValueError(f"pad_to_multiple_of={self.multiple!r}: expected at least 1")
        if self.max_length is not None and not self.cuts and self.padding != "max_length":
            raise ValueError(
                f"max_length={self.max_length}: has no effect without truncation=True or padding='max_length'"
            )

    @property
    def cuts(self) -> bool:
        return self.truncation not in (False, None, "do_not_truncate")

    @property
    def pads(self) -> bool:
        return self.padding not in (False, "do_not_pad")

    @property
    def bound(self) -> int:
        """max_length, or the tokenizer's. Raises ValueError if neither is set."""
        if self.max_length is None and self.longest > _UNBOUNDED:
            raise ValueError("truncation, padding='max_length': give max_length too, the tokenizer has none")
        return int(self.longest if self.max_length is None else self.max_length)

    def cut(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of at most ``bound`` tokens. Raises ValueError if truncation would cut or remove an image."""
        return [self._cut(number, row) for number, row in enumerate(rows)] if self.cuts else list(rows)

    def _cut(self, number: int, row: Row) -> Row:
        length = len(row.ids)
        if length <= self.bound:
            return row
        first = length - self.bound if self.cut_left else 0
        kept = slice(first, first + self.bound)
        lost = [start for start, end in row.images if start < kept.start or end > kept.stop]
        if lost:
            raise ValueError(
                f"text {number}: {length} tokens, max_length={self.bound}: truncation would cut the image at token "
                f"{lost[0]}; give max_length={length} or more, or shorten the text"
            )
        generated = None if row.generated is None else row.generated[kept]
        return Row(row.ids[kept], [(start - first, end - first) for start, end in row.images], generated)

    def batch(self, rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
        """``input_ids``, ``attention_mask`` and, where requested, ``assistant_masks``."""
        width = max(len(row.ids) for row in rows)
        width = max(width, self.bound) if self.padding == "max_length" else width
        width += -width % (self.multiple or 1)
        columns = {
            "input_ids": [self._padded(row.ids, width, pad_id) for row in rows],
            "attention_mask": [self._padded([1] * len(row.ids), width, 0) for row in rows],
        }
        if rows[0].generated is not None:
            columns["assistant_masks"] = [self._padded(row.generated or [], width, 0) for row in rows]
        return columns

    def _padded(self, values: list[int], width: int, filler: int) -> list[int]:
        if not self.pads:
            return values
        pad = [filler] * (width - len(values))
        return pad + values if self.left else values + pad
