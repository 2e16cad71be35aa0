"""Loads training data in any known format: checks it before training, parses each conversation on demand."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.samples.box_numbers import BoxUnits
from finetune.samples.cache import cache_folder
from finetune.samples.conversation import Conversation, ImageRef, OnDemand, Part, VideoRef
from finetune.samples.formats import Format, named, recognise, spread
from finetune.samples.formats.containers import Records, open_records
from finetune.samples.formats.pictures import Finder, HeaderSizes, KnownSizes, Measure, NotedSizes
from finetune.samples.formats.record import Note, Record
from finetune.samples.listing import LONGEST_LINE, shortened, shown
from finetune.samples.videos import SAMPLING, Sampling
from finetune.samples.workers import in_chunks

LOOKED_AT = 1000  # records that the format is detected from
MOST_FAULTS_SHOWN = 50
MOST_DROPPED_SHOWN = 20
MOST_NOTES_SHOWN = 20
STREAMED_AHEAD = 100  # records examined for unread keys with --streaming, which does not check the whole file

DataFormat = Literal["auto", "qwen-vl", "llava", "sharegpt", "openai", "alpaca"]
OnBadSample = Literal["error", "drop", "shrink"]


def read(
    path: str | Path,
    *,
    data_format: DataFormat = "auto",
    image_folder: str | Path | None = None,
    box_units: BoxUnits | None = None,
    on_bad_sample: OnBadSample = "error",
    sampling: Sampling = SAMPLING,
    streaming: bool = False,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> "Conversations":
    """The checked conversations of a file or folder: random access, not held in memory.

    data_format     format of the records; "auto" detects it; an unknown format is an error
    image_folder    where relative picture paths are looked up, before the data's folder and the working directory
    box_units       units of bbox_2d and objects.bbox
    sampling        which frames of videos are sampled
    on_bad_sample   what to do with faulty records: "drop" leaves them out and lists them, "error" raises
                    ("shrink" applies to samples that are too long; for faulty records it is "error")
    streaming       check nothing in advance: a fault raises when its conversation is read
    workers         processes that check; None: one per available core

    Every picture's header is read, so that a broken one does not stop the run hours later.

    Raises ValueError listing every fault: record, field, what was found and expected.
    """
    path = Path(path)
    records = open_records(path, cache_folder())
    chosen, because = _format_of(path, records, data_format)
    folders = tuple(Path(one) for one in (image_folder,) if one is not None)
    places = (*folders, path if path.is_dir() else path.parent, Path.cwd())
    layout = Layout(path, chosen, places, box_units, sampling)
    if streaming:
        say(
            f"{path}: {len(records):,} samples, {chosen.name} ({because}); streaming: nothing is checked in advance"
        )
        for note in records.notes:
            say(f"{path}: {note}")
        for line in _noted(path, _looked_ahead(records, layout), "record looked at", "records looked at"):
            say(line)
        return Conversations(records, layout, None)
    checked = _check(records, layout, workers)
    if checked.faults:
        _report_faults(path, checked, len(records), on_bad_sample, say)
    counts = f"{_count(len(checked.kept), 'sample')}, {_count(len(checked.sizes), 'picture')}"
    say(f"{path}: {counts}, {chosen.name} ({because})")
    for note in records.notes:
        say(f"{path}: {note}")
    for line in _noted(path, checked.notes, "record", "records"):
        say(line)
    return Conversations(records, layout, checked)


def _noted(path: Path, notes: Counter[Note], one: str, several: str) -> Iterator[str]:
    """One line per kind of unread key, the most frequent first."""
    for note, number in notes.most_common(MOST_NOTES_SHOWN):
        yield f"{path}: {note[0]} ({number:,} {one if number == 1 else several}) {note[1]}"
    if len(notes) > MOST_NOTES_SHOWN:
        yield f"{path}: ... and {len(notes) - MOST_NOTES_SHOWN:,} more kinds of keys are not read"


def _format_of(path: Path, records: Records, data_format: DataFormat) -> tuple[Format, str]:
    if data_format != "auto":
        return named(data_format), "as --data_format says"
    looked, broken = [], []
    for index in spread(len(records), LOOKED_AT):
        try:
            looked.append((records.name(index)[0], records[index]))
        except ValueError as error:  # reported as a fault when everything is checked
            broken.append(f"{_where(records.name(index), None)}: {error}")
    if not looked:
        raise ValueError(_listed(path, broken))
    return recognise(str(path), looked)


@dataclass(frozen=True)
class Layout:
    """How a file's records become conversations.

    folders   where relative picture paths are looked up
    """

    path: Path
    format: Format
    folders: tuple[Path, ...]
    box_units: BoxUnits | None
    sampling: Sampling = SAMPLING

    def read(self, records: Records, index: int, measure: Measure) -> "Found":
        """A record's conversation, or its faults."""
        try:
            content, broken = records[index], None
        except ValueError as error:
            content, broken = None, str(error)
        where = _where(records.name(index), content)
        if broken is not None:
            return Found(None, [f"{where}: {broken}"], frozenset())
        record = Record(content, where, Finder(self.folders, measure, self.sampling))
        try:
            conversation = self.format.read(record, f"{self.path}: {where}", self.box_units)
        except RecursionError:
            return Found(None, [f"{where}: found lists or objects nested too deeply to be read"], frozenset())
        faults = [shortened(one) for one in record.faults]
        return Found(None if faults else conversation, faults, frozenset(record.notes))


class Found(NamedTuple):
    """The result of reading a record.

    conversation   None if there are faults
    notes          what is not read, worded without the record's own values so that notes can be counted
    """

    conversation: Conversation | None
    faults: list[str]
    notes: frozenset[Note]


def _where(name: tuple[str, ...], content: Any) -> str:
    """``record 4 (line 5, id 'x7')``."""
    first, *rest = name
    if isinstance(content, dict) and content.get("id") is not None:
        rest.append(f"id {content['id']!r:.80}")
    return f"{first} ({', '.join(rest)})" if rest else first


def _looked_ahead(records: Records, layout: Layout) -> Counter[Note]:
    """The notes of the first records, for --streaming, which does not check the whole file."""
    found = (layout.read(records, index, HeaderSizes()) for index in spread(len(records), STREAMED_AHEAD))
    return Counter(note for one in found if one.conversation is not None for note in one.notes)


class Conversations(OnDemand):
    """The conversations of one file, each parsed on demand.

    Holds the position of each record, the sizes of its pictures, and which records are kept: 24 to 40 bytes per
    sample and 8 per picture. Can be pickled.

    digest   of everything that token counts depend on: texts, boxes, picture sizes; None if nothing was checked
    """

    def __init__(self, records: Records, layout: Layout, checked: "Checked | None") -> None:
        self.records, self.layout, self.checked = records, layout, checked
        self.digest = None if checked is None else checked.digest

    def __len__(self) -> int:
        return len(self.records) if self.checked is None else len(self.checked.kept)

    def at(self, place: int) -> Conversation:
        if self.checked is None:
            found = self.layout.read(self.records, place, HeaderSizes())
        else:
            number, sizes = int(self.checked.kept[place]), KnownSizes(self.checked.sizes_of(place))
            found = self.layout.read(self.records, number, sizes)
        if found.conversation is None:
            raise ValueError(_listed(self.layout.path, found.faults))
        return found.conversation


# ---------------------------------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What checking a whole file found.

    kept            Int[samples]: indices of the records without faults
    first_picture   Int[samples + 1]: start of each sample's pictures in ``sizes``
    sizes           Int[pictures, 2]: upright width and height of each, frames included, in reading order
    faults          of each faulty record, in order
    notes           what is not read, and in how many of the kept records
    digest          of the kept conversations
    """

    kept: Int[np.ndarray, "samples"]
    first_picture: Int[np.ndarray, "ends"]
    sizes: Int[np.ndarray, "pictures 2"]
    faults: tuple[tuple[str, ...], ...]
    notes: Counter[Note]
    digest: str

    def sizes_of(self, place: int) -> Int[np.ndarray, "pictures 2"]:
        return self.sizes[self.first_picture[place] : self.first_picture[place + 1]]


class _Part(NamedTuple):
    """The result of one process for one chunk."""

    kept: list[int]
    pictures: list[int]
    sizes: Int[np.ndarray, "pictures 2"]
    faults: list[tuple[str, ...]]
    notes: Counter[Note]
    digest: bytes


def _check(records: Records, layout: Layout, workers: int | None) -> Checked:
    measure = HeaderSizes()

    def work(chunk: range) -> _Part:
        return _check_chunk(records, layout, measure, chunk)

    found = in_chunks(work, len(records), workers=workers, doing=f"checking {layout.path.name}")
    parts = [part for _, part in found]
    pictures = np.concatenate([np.array(part.pictures, np.int64) for part in parts])
    return Checked(
        kept=np.concatenate([np.array(part.kept, np.int64) for part in parts]),
        first_picture=np.concatenate([[0], np.cumsum(pictures)]),
        sizes=np.concatenate([part.sizes for part in parts]),
        faults=tuple(one for part in parts for one in part.faults),
        notes=sum((part.notes for part in parts), Counter[Note]()),
        digest=hashlib.sha256(b"".join(part.digest for part in parts)).hexdigest(),
    )


def _check_chunk(records: Records, layout: Layout, measure: HeaderSizes, chunk: range) -> _Part:
    kept, pictures, sizes, faults = list[int](), list[int](), list[Any](), list[tuple[str, ...]]()
    hashed, notes = hashlib.sha256(), Counter[Note]()
    for index in chunk:
        noted = NotedSizes(measure)
        found = layout.read(records, index, noted)
        if found.conversation is None:
            faults.append(tuple(found.faults))
            continue
        kept.append(index)
        pictures.append(len(noted.sizes))
        sizes += noted.sizes
        hashed.update(fingerprint(found.conversation))
        notes.update(found.notes)
    return _Part(kept, pictures, np.array(sizes, np.int32).reshape(-1, 2), faults, notes, hashed.digest())


def fingerprint(conversation: Conversation) -> bytes:
    """Everything that a conversation's tokens and labels depend on: roles, texts, boxes, picture sizes."""
    turns = [(turn.role, turn.trained, [_bare(part) for part in turn.parts]) for turn in conversation.turns]
    return repr(turns).encode(errors="surrogatepass")


def _bare(part: Part) -> Any:
    if isinstance(part, ImageRef):
        return ("image", part.size_pixels, part.max_pixels)
    if isinstance(part, VideoRef):
        return ("video", part.size_pixels, part.max_pixels, part.seconds, part.duration)
    return (
        part
        if isinstance(part, str)
        else ("box", part.boxes, part.label, part.image, part.style, part.key, part.written)
    )


def _report_faults(
    path: Path, checked: Checked, count: int, on_bad_sample: OnBadSample, say: Callable[[str], None]
) -> None:
    """Raise the faults, or list the samples that are left out."""
    faults = [one for several in checked.faults for one in several]
    if on_bad_sample != "drop":
        message = _listed(path, faults)
        any_left = len(checked.kept) > 0
        raise ValueError(
            f"{message}\nor leave such samples out: --on_bad_sample drop" if any_left else message
        )
    if not len(checked.kept):
        raise ValueError(f"{_listed(path, faults)}\nno sample is left")
    left_out = [several[0] for several in checked.faults]
    lines = [f"{path}: {len(left_out):,} of {count:,} samples left out, as --on_bad_sample drop says"]
    lines += shown(left_out, MOST_DROPPED_SHOWN, characters=MOST_DROPPED_SHOWN * LONGEST_LINE)
    say("\n".join(lines))


def _listed(path: Path, faults: Sequence[str]) -> str:
    return "\n".join([f"{path}: {_count(len(faults), 'fault')}", *shown(faults, MOST_FAULTS_SHOWN)])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
