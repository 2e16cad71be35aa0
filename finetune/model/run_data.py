"""Which of some pictures a model was trained on, looked up in the data of the run that it comes from.

A run says in ``run.json`` which files it was trained on, and what was in them. ``seen.json`` knows only pictures of the
probes that were given to the training; whoever asks other probes afterwards has to look once more.
"""

from __future__ import annotations

import hashlib
import json
import re
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
        "model_name_or_path": TEXT | NULL, "lora_weight_path": TEXT | NULL, "resume_from_checkpoint": TEXT | NULL,
        "data_path": TEXT | NULL,
        "data sha256": TEXT | NULL, "image_folder": TEXT | NULL, "streaming": TRUTH,
        "data_format": one_of("auto", "qwen-vl", "llava", "sharegpt", "openai", "alpaca"),
        "box_units": TEXT | NULL, "on_bad_sample": TEXT, "model_max_length": whole(1) | NULL,
        "min_pixels": whole(1) | NULL, "max_pixels": whole(1) | NULL, "seed": whole(0), "data_seed": whole(0) | NULL,
        "data_fraction": number(0, 1, above=True) | NULL, "data_fraction_of": items(TEXT) | NULL,
        "data_fraction_same": one_of("steps", "epochs"),
        "video_fps": number(0, above=True), "video_max_frames": whole(1),
}  # fmt: skip
_STINTS = items(part({"after": whole(0), "marks": _MARKS}))
_EARLIER = items(part({"model": TEXT, "end": whole(0) | NULL, "stints": _STINTS | NULL}))
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
    moved_to   where the same content is now, if not there
    """

    path: Path
    role: SourceRole
    digest: str | None
    share: float | None = None
    repeat: int = 1
    moved_to: Path | None = None

    @property
    def read_from(self) -> Path:
        return self.moved_to or self.path


class Record(NamedTuple):
    """The file that says what a model was trained on.

    file     ``lineage.json`` beside it, or else ``run.json`` of its run
    end      step that its weights were saved after; None: the last one that the file tells of
    left     its folder, where its run left it behind, and the file is of the steps that were trained in its place
    """

    file: Path
    end: int | None = None
    left: Path | None = None


class RunData:
    """Looks pictures up in the data of runs, in that of each run once: several models may come from it, and a monitor
    asks at every checkpoint."""

    def __init__(self, pictures: Iterable[Path], *, looked_through: Marks | None = None) -> None:
        """``looked_through``: marks of the run under way, which looks through its own data itself."""
        self.pictures = tuple(dict.fromkeys(pictures))
        # Through JSON, as the marks of a file went.
        self._looked_through = (
            None if looked_through is None else _same(_data_marks(json.loads(json.dumps(looked_through))))
        )
        self._found: dict[Record, frozenset[str]] = {}
        self._found_by: dict[str, frozenset[str]] = {}
        self._unrecorded = set[str]()

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

    def _found_in(self, record: Record) -> frozenset[str]:
        run = record.file.parent
        try:
            every = _marks(record)
        except ValueError as error:
            _say_unknown(run, f"what it was trained on cannot be read ({one_line(str(error), 300)})")
            return frozenset()
        for model in _unrecorded(record):
            if model not in self._unrecorded:  # a run and its exports name it alike
                self._unrecorded.add(model)
                _say_unknown(run, f"it began with {one_line(model, 200)}, of whose data there is no record")
        if record.left is not None:
            _say_unknown(
                record.left, f"its run left it behind, and it has no {LINEAGE_FILE} to say what it saw since"
            )
        found = frozenset[str]()
        copies = _copies(every)
        for marks in every:
            if _same(marks) == self._looked_through:
                continue
            sources = [_found_again(one, copies) for one in _sources(marks)]
            # A run and those that began with it say the same of its data.
            known = json.dumps([_same(marks), *sorted(str(one.read_from) for one in sources)])
            if known not in self._found_by:
                self._found_by[known] = _found_by(marks, sources, run, self.pictures)
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
    began_with = _origins(Record(above / RUN_FILE))
    return None if any(Path(one).resolve() == own.resolve() for one in began_with) else above


def _records(folders: Iterable[str | Path]) -> Iterator[Record]:
    """What says what the given models were trained on, back to where each began."""
    left, known = [*folders], set[Record]()
    while left:
        record = _record_of(left.pop(0))
        if record is None or record in known:
            continue
        known.add(record)
        left += _origins(record)
        yield record


def _record_of(folder: str | Path) -> Record | None:
    own = Path(folder).expanduser().absolute()
    if (own / LINEAGE_FILE).is_file():
        return Record((own / LINEAGE_FILE).resolve())
    run = run_of(own)
    if run is None:
        return None
    file = (run / RUN_FILE).resolve()
    if own.parent.name == SUPERSEDED and run != own:
        return Record(file, left=own)
    step = None if run == own else re.fullmatch(rf"{CHECKPOINT}([0-9]{{1,18}})", own.name)
    return Record(file, None if step is None else int(step[1]))


def _origins(record: Record) -> list[str]:
    """The models and adapters that training began with; none where the file does not say."""
    try:
        every = _marks(record)
    except ValueError:  # said where its data is looked through
        return []
    keys = ("model_name_or_path", "lora_weight_path", "resume_from_checkpoint")
    return [str(name) for marks in every for key in keys if (name := marks.get(key))]


def _marks(record: Record) -> list[Marks]:
    """Those of each start that had other data, up to the record's end, and of the models that training began with.

    Raises ValueError for a file of another shape.
    """
    found: dict[str, Marks] = {}
    for marks in _all_marks(record):
        own = _data_marks(marks)
        for key, value in own.items():
            if _role(key) and not key.endswith(" sha256"):
                fields.check(value, _OF_A_SOURCE, f"{record.file}: {one_line(key, 200)}")
        found.setdefault(_same(own), own)
    return [*found.values()]


def _data_marks(marks: Marks) -> dict[str, Any]:
    """Those that say what was trained on."""
    return {key: value for key, value in marks.items() if key in _MARKS or key.partition(" ")[0] in ROLES}


def _same(marks: Marks) -> str:
    """Equal for marks of the same samples. With --data_fraction a source's place among the others decides which of its
    samples are drawn; without, their order decides nothing, and the data need not be read twice."""
    places = [key for key in marks if _role(key)] if _is_in_part(marks) else []
    return json.dumps([marks, places], sort_keys=True)


def _read_record(file: Path) -> tuple[Marks | None, Mapping[str, Any]]:
    """The marks of a run's last start, and what else is known of what was trained on.

    Raises ValueError for a file of another shape.
    """
    if file.name == LINEAGE_FILE:
        return None, fields.load(file, LINEAGE_SHAPE, required=tuple(LINEAGE_SHAPE))
    content = fields.load(file, SHAPE, required=("version", "marks"))
    return content["marks"], content.get("lineage", {})


def _unrecorded(record: Record) -> list[str]:
    """The models that training began with, and whose own training no run of ours wrote down."""
    marks, lineage = _read_record(record.file)
    if marks is not None and not lineage:  # of an earlier release, whose record is of its own data alone
        began_with = [marks.get(key) for key in ("lora_weight_path", "resume_from_checkpoint")]
        return [str(name) for name in began_with if name and _record_of(name) is None]
    every = lineage.get("earlier", ())
    return [str(one.get("model", "a model")) for one in every if one.get("stints") is None]


def _all_marks(record: Record) -> Iterator[Marks]:
    last, lineage = _read_record(record.file)
    stints = lineage.get("stints") or ()
    # The first one is of every branch; which of the others a checkpoint had that was left behind is not known.
    there = stints[:1] if record.left else _until(record.end, stints)
    if last is not None and len(there) == len(stints):
        yield last
    yield from (stint["marks"] for stint in there)
    for one in lineage.get("earlier", ()):
        yield from (stint["marks"] for stint in _until(one.get("end"), one.get("stints") or ()))


def _until(end: int | None, stints: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Those that weights were trained in which were saved after step ``end``; None: all."""
    there = [one for one in stints if end is None or one.get("after", 0) < end]
    return there or stints[:1]


def _found_by(marks: Marks, known: Sequence[Source], run: Path, pictures: Collection[Path]) -> frozenset[str]:
    read = list[tuple[Source, Sequence[Conversation]]]()
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
            _say_unknown(run, f"of its data {one.read_from} {fault}")
        files = same_pictures.files_among(pictures, conversations)
        found |= frozenset(_kept(files, one, conversations, marks, run).values())
    return found


def _kept(
    files: dict[Path, str], one: Source, conversations: Sequence[Conversation], marks: Marks, run: Path
) -> dict[Path, str]:
    """Those files in samples that were not left out as too long."""
    most = marks.get("model_max_length")
    if not files or marks.get("on_bad_sample") != "drop" or most is None:
        return files
    from finetune.model import left_out  # imports torch

    measured = conversations.conversations if isinstance(conversations, _Unmeasured) else conversations
    try:
        return left_out.files_kept(files, conversations, measured, marks, run)
    except ValueError as error:
        print(
            f"warning: {run}: its data {one.read_from} shows {len(files)} pictures of the probes, but it may have left "
            f"them out (--on_bad_sample drop, --model_max_length {most:,}), and cannot be asked "
            f"({one_line(str(error), 300)}); they are not counted as trained on",
            flush=True,
        )
        return {}


def _copies(every: Iterable[Marks]) -> dict[str, Path]:
    """Digest → where data of this content is: a run that was resumed after its data was moved names both places."""
    named = [one for marks in every for one in _sources(marks)]
    return {one.digest: one.path for one in named if one.digest is not None and one.path.exists()}


def _found_again(one: Source, copies: Mapping[str, Path]) -> Source:
    if one.digest is None or one.path.exists():
        return one
    return one._replace(moved_to=copies.get(one.digest))


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
    if not one.read_from.exists():
        raise _UnknownError("is gone")
    if one.digest is not None and one.digest != content_digest(one.read_from):
        raise _UnknownError("has changed since")
    read = source.read(
        one.read_from,
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
