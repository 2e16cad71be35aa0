"""Reading data: any of the known formats, checked before training, each conversation parsed when asked for."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Int

from finetune.cache import cache_folder
from finetune.conversation import Conversation, ImageRef, Part, VideoRef
from finetune.formats import Format, named, recognise, spread
from finetune.formats.boxes import BoxUnits
from finetune.formats.containers import Records, open_records
from finetune.formats.pictures import Finder, HeaderSizes, KnownSizes, Measure, NotedSizes
from finetune.formats.record import Record
from finetune.parallel import in_chunks
from finetune.videos import SAMPLING, Sampling

LOOKED_AT = 1000  # records from which the format is recognised
MOST_FAULTS_SHOWN = 50
MOST_DROPPED_SHOWN = 20

DataFormat = Literal["auto", "qwen-vl", "llava", "sharegpt", "openai"]
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
    """The conversations of a file or folder, checked, at any place, in memory that does not grow with them.

    data_format     how the records are written; "auto" recognises it from the records, or refuses
    image_folder    where relative paths of pictures begin; then the data's own folder, then the working directory
    box_units       what the numbers of bbox_2d and objects.bbox are
    sampling        which frames of videos are taken
    on_bad_sample   what happens to records with faults: "drop" leaves them out and says which, "error" raises
                    ("shrink" is for samples that are too long; faults are as for "error")
    streaming       nothing is checked ahead: a fault raises when its conversation is asked for
    workers         processes that check; None: as many as there are cores for

    Every picture is opened as far as its header, so that a run does not stop hours later.

    Raises ValueError that lists every fault: which record and field, what was found and expected.
    """
    path = Path(path)
    records = open_records(path, cache_folder())
    chosen, because = _format_of(path, records, data_format)
    folders = tuple(Path(one) for one in (image_folder,) if one is not None)
    places = (*folders, path if path.is_dir() else path.parent, Path.cwd())
    layout = Layout(path, chosen, places, box_units, sampling)
    if streaming:
        say(
            f"{path}: {len(records):,} samples, {chosen.name} ({because}); streaming, so nothing is checked ahead"
        )
        return Conversations(records, layout, None)
    checked = _check(records, layout, workers)
    if checked.faults:
        _tell(path, checked, len(records), on_bad_sample, say)
    counts = f"{_count(len(checked.kept), 'sample')}, {_count(len(checked.sizes), 'picture')}"
    say(f"{path}: {counts}, {chosen.name} ({because})")
    return Conversations(records, layout, checked)


def _format_of(path: Path, records: Records, data_format: DataFormat) -> tuple[Format, str]:
    if data_format != "auto":
        return named(data_format), "as --data_format says"
    looked, broken = [], []
    for index in spread(len(records), LOOKED_AT):
        try:
            looked.append((records.name(index)[0], records[index]))
        except ValueError as error:  # becomes a fault when everything is checked
            broken.append(f"{_where(records.name(index), None)}: {error}")
    if not looked:
        raise ValueError(_listed(path, broken))
    return recognise(str(path), looked)


@dataclass(frozen=True)
class Layout:
    """How the records of a file become conversations.

    folders   where relative paths of pictures begin
    """

    path: Path
    format: Format
    folders: tuple[Path, ...]
    box_units: BoxUnits | None
    sampling: Sampling = SAMPLING

    def read(self, records: Records, index: int, measure: Measure) -> tuple[Conversation | None, list[str]]:
        """The conversation of a record, and its faults; with faults there is none."""
        try:
            content, broken = records[index], None
        except ValueError as error:
            content, broken = None, str(error)
        where = _where(records.name(index), content)
        if broken is not None:
            return None, [f"{where}: {broken}"]
        record = Record(content, where, Finder(self.folders, measure, self.sampling))
        conversation = self.format.read(record, f"{self.path}: {where}", self.box_units)
        return (None, record.faults) if record.faults else (conversation, [])


def _where(name: tuple[str, ...], content: Any) -> str:
    """``record 4 (line 5, id 'x7')``."""
    first, *rest = name
    if isinstance(content, dict) and content.get("id") is not None:
        rest.append(f"id {content['id']!r:.80}")
    return f"{first} ({', '.join(rest)})" if rest else first


class Conversations(Sequence[Conversation]):
    """The conversations of one file, each parsed when it is asked for.

    Held are where each record begins, the sizes of its pictures, and which records are left in: 24 to 40 bytes a
    sample and 8 a picture. It can be sent to other processes.

    digest   of all that token counts depend on: texts, boxes, sizes of pictures; None where nothing was checked
    """

    def __init__(self, records: Records, layout: Layout, checked: "Checked | None") -> None:
        self.records, self.layout, self.checked = records, layout, checked
        self.digest = None if checked is None else checked.digest

    def __len__(self) -> int:
        return len(self.records) if self.checked is None else len(self.checked.kept)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self.checked is None:
            conversation, faults = self.layout.read(self.records, place, HeaderSizes())
        else:
            number, sizes = int(self.checked.kept[place]), KnownSizes(self.checked.sizes_of(place))
            conversation, faults = self.layout.read(self.records, number, sizes)
        if conversation is None:
            raise ValueError(_listed(self.layout.path, faults))
        return conversation


# ---------------------------------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What is known of a file once every record was read.

    kept            Int[samples]: the records without faults
    first_picture   Int[samples + 1]: where each sample's pictures begin in ``sizes``
    sizes           Int[pictures, 2]: width and height of each, upright, frames among them, in the order of asking
    faults          of each faulty record, in order
    digest          of the kept conversations
    """

    kept: Int[np.ndarray, "samples"]
    first_picture: Int[np.ndarray, "ends"]
    sizes: Int[np.ndarray, "pictures 2"]
    faults: tuple[tuple[str, ...], ...]
    digest: str

    def sizes_of(self, place: int) -> Int[np.ndarray, "pictures 2"]:
        return self.sizes[self.first_picture[place] : self.first_picture[place + 1]]


class _Part(NamedTuple):
    """What one process found in one chunk."""

    kept: list[int]
    pictures: list[int]
    sizes: Int[np.ndarray, "pictures 2"]
    faults: list[tuple[str, ...]]
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
        digest=hashlib.sha256(b"".join(part.digest for part in parts)).hexdigest(),
    )


def _check_chunk(records: Records, layout: Layout, measure: HeaderSizes, chunk: range) -> _Part:
    kept, pictures, sizes, faults = list[int](), list[int](), list[Any](), list[tuple[str, ...]]()
    hashed = hashlib.sha256()
    for index in chunk:
        noted = NotedSizes(measure)
        conversation, wrong = layout.read(records, index, noted)
        if conversation is None:
            faults.append(tuple(wrong))
            continue
        kept.append(index)
        pictures.append(len(noted.sizes))
        sizes += noted.sizes
        hashed.update(fingerprint(conversation))
    return _Part(kept, pictures, np.array(sizes, np.int32).reshape(-1, 2), faults, hashed.digest())


def fingerprint(conversation: Conversation) -> bytes:
    """All of a conversation that its tokens depend on: roles, texts, boxes, sizes of pictures."""
    turns = [(turn.role, [_bare(part) for part in turn.parts]) for turn in conversation.turns]
    return repr(turns).encode(errors="surrogatepass")


def _bare(part: Part) -> Any:
    if isinstance(part, ImageRef):
        return ("image", part.size_pixels, part.max_pixels)
    if isinstance(part, VideoRef):
        return ("video", part.size_pixels, part.max_pixels, part.seconds, part.duration)
    return (
        part
        if isinstance(part, str)
        else ("box", part.boxes, part.label, part.image, part.style, part.written)
    )


def _tell(
    path: Path, checked: Checked, count: int, on_bad_sample: OnBadSample, say: Callable[[str], None]
) -> None:
    """Raise the faults, or say which samples are left out."""
    faults = [one for several in checked.faults for one in several]
    if on_bad_sample != "drop":
        message = _listed(path, faults)
        most = len(checked.kept) > 0
        raise ValueError(f"{message}\nor leave such samples out: --on_bad_sample drop" if most else message)
    if not len(checked.kept):
        raise ValueError(f"{_listed(path, faults)}\nno sample is left")
    left_out = [several[0] for several in checked.faults]
    lines = [f"{path}: {len(left_out):,} of {count:,} samples left out, as --on_bad_sample drop says"]
    lines += _shown(left_out, MOST_DROPPED_SHOWN)
    say("\n".join(lines))


def _listed(path: Path, faults: Sequence[str]) -> str:
    return "\n".join([f"{path}: {_count(len(faults), 'fault')}", *_shown(faults, MOST_FAULTS_SHOWN)])


def _shown(lines: Sequence[str], most: int) -> Iterable[str]:
    yield from (f"  {one}" for one in lines[:most])
    if len(lines) > most:
        yield f"  ... and {len(lines) - most:,} more"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
