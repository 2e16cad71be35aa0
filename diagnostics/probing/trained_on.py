"""What a model was trained on before, by the notes beside its weights and beside those of its base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune.model.folders import is_adapter, resolve
from finetune.model.look_file import Supervised, supervised_of
from finetune.model.seen_file import seen_of


class TrainedOn(NamedTuple):
    """What is known of a model's training.

    supervised   its attention that was trained on; None where none was
    seen         SHA-256 of pictures of probes that it was trained on
    """

    supervised: Supervised | None
    seen: frozenset[str]


def trained_on(places: Iterable[str | Path]) -> TrainedOn:
    """What the notes in several folders say together; hub names say nothing.

    Raises ValueError for a note of another shape.
    """
    folders = [*dict.fromkeys(map(str, places))]
    noted = [one for one in map(supervised_of, folders) if one is not None]
    seen = frozenset().union(*map(seen_of, folders))
    if not noted:
        return TrainedOn(None, seen)
    layers = sorted({layer for one in noted for layer in one.layers})
    known = [one.pictures for one in noted if one.pictures is not None]
    return TrainedOn(Supervised(tuple(layers), frozenset().union(*known) if known else None), seen)


def with_base(name: str | Path, *, base: str | None = None) -> Iterator[str | Path]:
    """Where notes of a model are: its folder and, of an adapter, that of its base, where there is one.

    base   of an adapter, instead of the one that it names
    """
    folder = Path(name).expanduser()
    yield folder if folder.is_dir() else name
    if folder.is_dir() and is_adapter(folder):
        with suppress(ValueError):  # a base that is not there has no notes
            yield resolve(folder, base=base)[0]
