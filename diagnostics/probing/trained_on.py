"""What a model was trained on before, by the notes beside its weights and beside those of its base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune.model.folders import is_adapter, resolve
from finetune.model.look_file import Supervised, supervised_of
from finetune.model.run_data import RunData
from finetune.model.seen_file import seen_of


class TrainedOn(NamedTuple):
    """What is known of a model's training.

    supervised   its attention that was trained on; None where none was
    seen         SHA-256 of pictures of probes that it was trained on
    """

    supervised: Supervised | None
    seen: frozenset[str]


def trained_on(
    places: Iterable[str | Path], data: RunData | None = None, *, running: Path | None = None
) -> TrainedOn:
    """What the notes in several folders say together; hub names say nothing.

    data      looks the probes' pictures up in the data of the runs that the models in these folders come from
    running   folder of the run under way, whose notes say all that is known of its data

    Raises ValueError for a note of another shape.
    """
    folders = [*dict.fromkeys(map(str, places))]
    seen = frozenset[str]() if data is None else data.trained_on(folders)
    folders += [] if running is None or str(running) in folders else [str(running)]
    noted = [one for one in map(supervised_of, folders) if one is not None]
    seen = seen.union(*map(seen_of, folders))
    if not noted:
        return TrainedOn(None, seen)
    layers = sorted({layer for one in noted for layer in one.layers})
    known = [one.pictures for one in noted if one.pictures is not None]
    looked_at = frozenset().union(*known) if known else None
    connector, more = (any(getattr(one, name) for one in noted) for name in ("connector", "some_unknown"))
    supervised = Supervised(tuple(layers), looked_at, connector, more and looked_at is not None)
    return TrainedOn(supervised, seen)


def with_base(name: str | Path, *, base: str | None = None) -> Iterator[str | Path]:
    """Where notes of a model are: its folder and, of an adapter, that of its base, where there is one.

    base   of an adapter, instead of the one that it names
    """
    folder = Path(name).expanduser()
    yield folder if folder.is_dir() else name
    if folder.is_dir() and is_adapter(folder):
        with suppress(ValueError):  # a base that is not there has no notes
            yield resolve(folder, base=base)[0]
