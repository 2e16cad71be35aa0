"""Which of some pictures a model was trained on, looked up in the data of the run that it comes from.

A run says in ``run.json`` which files it was trained on, and what was in them. ``seen.json`` knows only pictures of the
probes that were given to the training; whoever asks other probes afterwards has to look once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from finetune import fields
from finetune.data.mixture import Mixture, SourceRole, unique_names
from finetune.data.mixture import Source as Mixed
from finetune.fields import NULL, TEXT, TRUTH, items, number, one_of, part, whole
from finetune.printable import one_line
from finetune.samples import same_pictures, source
from finetune.samples.conversation import Conversation, ImageRef, OnDemand
from finetune.samples.formats import spread
from finetune.samples.videos import Sampling

RUN_FILE = "run.json"
LINEAGE_FILE = "lineage.json"
"""Beside weights that an export made of a run's, which no longer lie in its folder: what they were trained on
(``finetune.training.lineage``)."""
CHECKPOINT, SUPERSEDED = "checkpoint-", "superseded"
"""Names of a run's folders: of its checkpoints, and of what it left when it went on from an earlier step."""
ROLES: dict[str, SourceRole] = {"corrective_data": "corrective", "replay_data": "replay"}
_MARKS: fields.Shape = {
        "model_name_or_path": TEXT | NULL, "lora_weight_path": TEXT | NULL, "data_path": TEXT | NULL,
        "data sha256": TEXT | NULL, "image_folder": TEXT | NULL, "streaming": TRUTH,
        "data_format": one_of("auto", "qwen-vl", "llava", "sharegpt", "openai", "alpaca"),
        "box_units": TEXT | NULL, "on_bad_sample": TEXT, "seed": whole(0), "data_seed": whole(0) | NULL,
        "data_fraction": number(0, 1, above=True) | NULL, "data_fraction_of": items(TEXT) | NULL,
        "data_fraction_same": one_of("steps", "epochs"),
        "video_fps": number(0, above=True), "video_max_frames": whole(1),
}  # fmt: skip
_STINTS = items(part({"marks": _MARKS}))
_EARLIER = items(part({"stints": _STINTS | NULL}))
SHAPE: fields.Shape = {
    "version": one_of(1),
    "marks": _MARKS,
    "lineage": {"stints": _STINTS, "earlier": _EARLIER},
}
"""What is read of ``run.json`` here; the rest may hold anything."""
LINEAGE_SHAPE: fields.Shape = {"version": one_of(1), "earlier": _EARLIER}
"""The same of ``lineage.json``."""
_OF_A_SOURCE: fields.Shape = {"share": number(0, above=True) | NULL, "repeat": whole(1)}
LOOKED_AT = 200
"""Samples that are tried first: pictures that were moved away are not found in any."""
_ANY_SIZE = (1 << 20, 1 << 20)

Marks = Mapping[str, Any]


class Source(NamedTuple):
    """A data file (or a folder of them) of a run.

    digest   of its content, as the run wrote it down; None where it did not
    share, repeat   how it was mixed in, as in ``finetune.data.mixture.SourceSpec``
    """

    path: Path
    role: SourceRole
    digest: str | None
    share: float | None = None
    repeat: int = 1


class RunData:
    """Looks pictures up in the data of runs, in that of each run once: several models may come from it, and a monitor
    asks at every checkpoint."""

    def __init__(self, pictures: Iterable[Path]) -> None:
        self.pictures = tuple(dict.fromkeys(pictures))
        self._found: dict[Path, frozenset[str]] = {}
        self._found_by: dict[str, frozenset[str]] = {}

    def trained_on(self, folders: Iterable[str | Path]) -> frozenset[str]:
        """SHA-256 of those pictures that are in the data of the runs that these models come from, and of the runs that
        those began with, whether or not their folders are still there. Folders that belong to no run, and hub names,
        say nothing.

        A data file that cannot say (gone, changed, streamed) is named in one line: it is not known then.
        """
        found = frozenset[str]()
        for record in _records(folders) if self.pictures else ():
            if record not in self._found:
                self._found[record] = self._found_in(record)
            found |= self._found[record]
        return found

    def _found_in(self, record: Path) -> frozenset[str]:
        try:
            every = _marks(record)
        except ValueError as error:
            _say_unknown(
                record.parent, f"what it was trained on cannot be read ({one_line(str(error), 300)})"
            )
            return frozenset()
        found = frozenset[str]()
        for marks in every:
            # A run and those that began with it say the same of its data.
            known = json.dumps(marks, sort_keys=True)
            if known not in self._found_by:
                self._found_by[known] = _found_by(marks, record.parent, self.pictures)
            found |= self._found_by[known]
        return found


def run_of(folder: str | Path) -> Path | None:
    """The folder of the run that a model comes from: its own, or the one that it lies in; None for any other.

    What a run began with may lie in its folder too, and does not come from it.
    """
    own = Path(folder).expanduser().absolute()
    if not own.is_dir():
        return None
    if (own / RUN_FILE).is_file():
        return own
    is_checkpoint = own.name.startswith(CHECKPOINT)
    above = own.parent.parent if is_checkpoint and own.parent.name == SUPERSEDED else own.parent
    if not (above / RUN_FILE).is_file():
        return None
    if is_checkpoint:
        return above
    began_with = _origins(above / RUN_FILE)
    return None if any(Path(one).resolve() == own.resolve() for one in began_with) else above


def _records(folders: Iterable[str | Path]) -> Iterator[Path]:
    """The file that says what a model was trained on, from the given models back to where each began: of an export its
    own, else its run's."""
    left, known = [*folders], set[Path]()
    while left:
        record = _record_of(left.pop(0))
        if record is None or (record := record.resolve()) in known:
            continue
        known.add(record)
        left += _origins(record)
        yield record


def _record_of(folder: str | Path) -> Path | None:
    own = Path(folder).expanduser() / LINEAGE_FILE
    if own.is_file():
        return own
    run = run_of(folder)
    return None if run is None else run / RUN_FILE


def _origins(record: Path) -> list[str]:
    """The models and adapters that training began with; none where the file does not say."""
    try:
        every = _marks(record)
    except ValueError:  # said where its data is looked through
        return []
    keys = ("model_name_or_path", "lora_weight_path")
    return [str(name) for marks in every for key in keys if (name := marks.get(key))]


def _marks(record: Path) -> list[Marks]:
    """Those of the last start, of earlier ones that had other data, and of the models that training began with.

    Raises ValueError for a file of another shape.
    """
    found: list[Marks] = []
    for marks in _all_marks(record):
        own = {key: value for key, value in marks.items() if key in _MARKS or key.partition(" ")[0] in ROLES}
        for key, value in own.items():
            if _role(key) and not key.endswith(" sha256"):
                fields.check(value, _OF_A_SOURCE, f"{record}: {one_line(key, 200)}")
        found += [own] if own not in found else []
    return found


def _all_marks(record: Path) -> Iterator[Marks]:
    if record.name == LINEAGE_FILE:
        lineage = fields.load(record, LINEAGE_SHAPE, required=tuple(LINEAGE_SHAPE))
    else:
        content = fields.load(record, SHAPE, required=("version", "marks"))
        yield content["marks"]
        lineage = content.get("lineage", {})
    every = [lineage.get("stints"), *(one["stints"] for one in lineage.get("earlier", ()))]
    yield from (stint["marks"] for stints in every for stint in stints or ())


def _found_by(marks: Marks, run: Path, pictures: Collection[Path]) -> frozenset[str]:
    known, read = [*_sources(marks)], list[tuple[Source, Sequence[Conversation]]]()
    for one in known:
        try:
            read.append((one, _read(one, marks)))
        except (ValueError, OSError) as error:
            said = str(error) if isinstance(error, _UnknownError) else "cannot be read"
            _say_unknown(run, f"its data {one.path} {said}")
    if _is_in_part(marks) and len(read) == len(known):
        read = _in_part(read, marks)
    found = frozenset[str]()
    for one, conversations in read:
        if (fault := _cannot_say(conversations, marks)) is not None:
            _say_unknown(run, f"of its data {one.path} {fault}")
        found |= frozenset(same_pictures.files_among(pictures, conversations).values())
    return found


def _say_unknown(run: Path, why: str) -> None:
    print(
        f"warning: {run}: {why}; it is not known whether pictures of the probes were trained on", flush=True
    )


def _role(key: str) -> SourceRole | None:
    """``"corrective_data /data/towers.json"`` → ``"corrective"``."""
    flag, space, _ = key.partition(" ")
    return ROLES.get(flag) if space else None


def _sources(marks: Marks) -> Iterator[Source]:
    if marks.get("data_path"):
        yield Source(Path(marks["data_path"]), "base", marks.get("data sha256"))
    for key, value in marks.items():
        if (role := _role(key)) is not None and isinstance(value, dict):
            place = Path(key.partition(" ")[2])
            digest = marks.get(f"{key} sha256")
            yield Source(place, role, digest, value.get("share"), int(value.get("repeat", 1)))


class _UnknownError(ValueError):
    """Why a data file cannot say, to be read after its name."""


def _read(one: Source, marks: Marks) -> Sequence[Conversation]:
    """Raises _UnknownError where the file is not what was trained on, and ValueError where it cannot be read."""
    if marks.get("streaming"):
        raise _UnknownError("was streamed (--streaming), and is not looked through")
    if not one.path.exists():
        raise _UnknownError("is gone")
    if one.digest is not None and one.digest != content_digest(one.path):
        raise _UnknownError("has changed since")
    read = source.read(
        one.path,
        data_format=marks.get("data_format", "auto"),
        image_folder=marks.get("image_folder"),
        box_units=marks.get("box_units"),
        on_bad_sample="drop" if marks.get("on_bad_sample") == "drop" else "error",
        sampling=Sampling(marks.get("video_fps", 2.0), int(marks.get("video_max_frames", 32))),
        streaming=not _is_in_part(marks),  # the places of a part are among the samples without faults
        say=lambda line: None,
    )
    return read if _is_in_part(marks) else _Unmeasured(read)


def _is_in_part(marks: Marks) -> bool:
    return marks.get("data_fraction") not in (None, 1)


def _in_part(
    read: Sequence[tuple[Source, Sequence[Conversation]]], marks: Marks
) -> list[tuple[Source, Sequence[Conversation]]]:
    """What ``--data_fraction`` kept of them."""
    from finetune.data.subset import with_fraction  # imports torch

    names = unique_names([str(one.path) for one, _ in read])
    sources = [
        Mixed(name, some, one.role, one.share, one.repeat)
        for name, (one, some) in zip(names, read, strict=True)
    ]
    data_seed = marks.get("data_seed")
    mixed = Mixture(sources, int(marks.get("seed", 42) if data_seed is None else data_seed))
    same = marks.get("data_fraction_same", "steps")
    part, _ = with_fraction(mixed, marks["data_fraction"], marks.get("data_fraction_of"), same)
    return [(one, kept.conversations) for (one, _), kept in zip(read, part.sources, strict=True)]


class _Unmeasured(OnDemand):
    """Conversations whose pictures are found, not opened: 100,000 of them take seconds.

    Raises ValueError that names the sample where it cannot be read.
    """

    def __init__(self, conversations: source.Conversations) -> None:
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def at(self, place: int) -> Conversation:
        one = self.conversations
        found = one.layout.read(one.records, place, _unmeasured).conversation
        return one.at(place) if found is None else found  # boxes may depend on the size


def _unmeasured(ref: ImageRef) -> tuple[int, int]:
    return _ANY_SIZE


def _cannot_say(conversations: Sequence[Conversation], marks: Marks) -> str | None:
    """Why the samples cannot say: their pictures are no longer where they were. None where they can."""
    faults, places = list[str](), [*spread(len(conversations), LOOKED_AT)]
    for place in places:
        try:
            conversations[place]
        except ValueError as error:
            faults.append(str(error))
    were_dropped = marks.get("on_bad_sample") == "drop" and len(faults) < len(places)
    if not faults or were_dropped:
        return None
    first = one_line(faults[0].splitlines()[-1].strip(), 300)
    return f"{len(faults)} of {len(places)} samples looked at can no longer be read, the first: {first}"


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, as a run writes it into run.json."""
    if not path.is_dir():
        return _sha256(path)
    digest = hashlib.sha256()
    files = sorted(one for one in path.rglob("*") if one.is_file())
    for file in tqdm(files, desc=f"reading {path.name}", unit="file", delay=2):
        digest.update(f"{file.relative_to(path)}\0{_sha256(file)}\0".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
