"""A sample as read: turns of text and images. Errors name file, record and field."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ImageRef:
    """An image inside a turn.

    written       as the user wrote it
    path          where it is to be opened
    data          the encoded file itself, where the data set holds pictures inside; else None
    size_pixels   (width, height) of the upright picture, where the reader has seen its header; else None
    max_pixels    at most so many pixels for this picture, below the processor's own budget; else None
    """

    written: str
    path: Path
    data: bytes | None = field(default=None, compare=False, repr=False)
    size_pixels: tuple[int, int] | None = field(default=None, compare=False)
    max_pixels: int | None = None


@dataclass(frozen=True)
class BoxRef:
    """Boxes inside a turn: where a phrase lies in an image. Each family writes them in its own way.

    written   as the user wrote them, phrase and markup together
    boxes     x0 y0 x1 y1 of each, as fractions of the upright image's width and height, 0 to 1
    label     the phrase they belong to, or None
    image     which of the conversation's images, counted from 0
    style     how ``written`` is written: "qwen-vl" (<ref>, <box>, thousandths), or "json" (bbox_2d), or
              "placeholder"
    """

    written: str
    boxes: tuple[tuple[float, float, float, float], ...]
    label: str | None = None
    image: int = 0
    style: str = "qwen-vl"


Part = str | ImageRef | BoxRef


@dataclass(frozen=True)
class Turn:
    """One turn; ``parts`` are text, images and boxes in reading order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and ``source``, the words by which an error names this sample (file, record, id)."""

    turns: tuple[Turn, ...]
    source: str = field(default="conversation", compare=False)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


def questions(conversations: Sequence[Conversation]) -> list[tuple[Path, str, str]]:
    """(picture, question, answer) of every turn about one picture on disk, as a person would read it."""
    found: list[tuple[Path, str, str]] = []
    for one in conversations:
        paths = [ref.path for ref in one.images if ref.data is None]
        if len(paths) != 1 or len(one.images) != 1:
            continue
        for asked, answered in itertools.pairwise(one.turns):
            if (asked.role, answered.role) == ("user", "assistant"):
                found.append((paths[0], _words(asked).removeprefix("Picture 1: ").strip(), _words(answered)))
    return found


def _words(turn: Turn) -> str:
    """A turn without its pictures, boxes as they were written."""
    words = (part.written if isinstance(part, BoxRef) else part for part in turn.parts)
    return "".join(part for part in words if isinstance(part, str))


# ---------------------------------------------------------------------------------------------------------------------
# Reading Qwen-VL's JSON
# ---------------------------------------------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant")
IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
MOST_FAULTS_SHOWN = 50
MOST_PIXELS = 100_000_000  # 300 MB as RGB; beyond that it is an accident or an attack


def read_qwen_vl(path: str | Path) -> list[Conversation]:
    """Read a Qwen-VL training file: a JSON list of ``{"id", "conversations": [{"from", "value"}]}``.

    ``"Picture 1: <img>a.png</img>\\nWhat is this?"`` becomes the parts ``("Picture 1: ", ImageRef("a.png"),
    "\\nWhat is this?")``. Image paths are relative to the file, then to the working directory.

    Every image is opened as far as its header, so that a run does not stop hours later.

    Raises ValueError that lists every fault of the file: which record and field, what was found and expected.
    """
    path = Path(path)
    records = _load(path)
    faults: list[str] = []
    images = _ImageHeaders(path.parent)
    conversations = []
    for index, record in enumerate(tqdm(records, desc=f"reading {path.name}", unit="sample", delay=2)):
        reader = _Record(path, index, record, images)
        conversations.append(reader.read())
        faults += reader.faults
    if faults:
        raise ValueError(_listed(path, faults))
    return conversations


def _load(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; expected a JSON list of conversations")
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "expected one JSON list of conversations"
        ) from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: found a JSON {_kind(records)}, expected a list of conversations")
    if not records:
        raise ValueError(f"{path}: the list is empty; expected at least one conversation")
    return records


def _listed(path: Path, faults: list[str]) -> str:
    shown = faults[:MOST_FAULTS_SHOWN]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more")
    return f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}\n" + "\n".join(
        f"  {one}" for one in shown
    )


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


class _ImageHeaders:
    """Finds images and opens their headers, each file once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[Path, str | None] = {}

    def find(self, written: str) -> tuple[Path, str | None]:
        """Where the image is, and what is wrong with it (None: nothing)."""
        if re.match(r"[a-z]+://", written):
            return Path(written), "is an address, expected a file; download it first"
        given = Path(written).expanduser()
        places = [given] if given.is_absolute() else [self.folder / given, Path.cwd() / given]
        for place in places:
            if place not in self.seen and place.is_file():
                self.seen[place] = _header_fault(place)
            if place in self.seen:
                return place, self.seen[place]
        return places[
            0
        ], f"no such file (looked at {' and '.join(str(place) for place in dict.fromkeys(places))})"


def _header_fault(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        return f"absurdly large: {error}"
    except (OSError, ValueError, SyntaxError) as error:  # what PIL's readers raise on broken headers
        return f"not a readable image ({error})"
    if not 0 < width * height <= MOST_PIXELS:
        return (
            f"found {width} x {height} pixels, expected at least 1 and at most {MOST_PIXELS:,}; scale it down"
        )
    return None


class _Record:
    """One record of the file, and the faults found in it."""

    def __init__(self, path: Path, index: int, record: Any, images: _ImageHeaders) -> None:
        self.record, self.images, self.faults = record, images, list[str]()
        name = record.get("id") if isinstance(record, dict) else None
        self.where = f"record {index}" + (f" (id {name!r})" if name is not None else "")
        self.source = f"{path}: {self.where}"

    def fault(self, what: str) -> None:
        self.faults.append(f"{self.where}: {what}")

    def read(self) -> Conversation:
        turns = list(self._turns())
        if not self.faults:
            self._check_order([turn.role for turn in turns])
        return Conversation(tuple(turns), self.source)

    def _turns(self) -> Iterator[Turn]:
        if not isinstance(self.record, dict):
            return self.fault(
                f"found a {_kind(self.record)}, expected an object with 'id' and 'conversations'"
            )
        raw = self.record.get("conversations")
        if not isinstance(raw, list) or not raw:
            found = (
                "none" if raw is None else f"a {_kind(raw)}" if not isinstance(raw, list) else "an empty list"
            )
            return self.fault(f"conversations: found {found}, expected a list of turns {{'from', 'value'}}")
        for i, item in enumerate(raw):
            at = f"conversations[{i}]"
            if not isinstance(item, dict) or not isinstance(item.get("value"), str):
                self.fault(
                    f"{at}: expected an object whose 'from' and 'value' are strings, found {item!r:.80}"
                )
            elif item.get("from") not in ROLES:
                self.fault(
                    f"{at}.from: unknown role {item.get('from')!r}, expected user or assistant (or system, first)"
                )
            else:
                yield Turn(item["from"], tuple(self._parts(item["from"], item["value"], f"{at}.value")))

    def _parts(self, role: Role, text: str, at: str) -> Iterator[str | ImageRef]:
        rest = IMAGE.sub("", text)
        for marker, missing in (("<img>", "</img>"), ("</img>", "<img>")):
            if marker in rest:
                self.fault(f"{at}: found {marker} without {missing}; an image is written <img>path</img>")
        if role == "assistant" and not text.strip():
            self.fault(f"{at}: found an empty answer, expected text to learn")
        position = 0
        for match in IMAGE.finditer(text):
            if match.start() > position:
                yield text[position : match.start()]
            yield self._image(role, match[1].strip(), at)
            position = match.end()
        if position < len(text) or not text:
            yield text[position:]

    def _image(self, role: Role, written: str, at: str) -> ImageRef:
        if role != "user":
            self.fault(
                f"{at}: found an image {written!r} in a turn of the {role}, expected images in the user's turns"
            )
        if not written:
            self.fault(f"{at}: found <img></img> without a path")
            return ImageRef(written, Path())
        path, wrong = self.images.find(written)
        if wrong is not None:
            self.fault(f"{at}: image {written!r}: {wrong}")
        return ImageRef(written, path)

    def _check_order(self, roles: list[Role]) -> None:
        if "system" in roles[1:]:
            self.fault(f"conversations[{roles.index('system', 1)}].from: a system turn can only come first")
        spoken = [role for role in roles if role != "system"]
        offset = len(roles) - len(spoken)
        if "assistant" not in spoken:
            self.fault("conversations: found no assistant turn, so there is nothing to learn; add the answer")
        elif spoken[0] == "assistant":
            self.fault(
                f"conversations[{offset}].from: found assistant first, expected the user's turn before it"
            )
        for i, (before, role) in enumerate(itertools.pairwise(spoken), start=offset + 1):
            if before == role:
                self.fault(
                    f"conversations[{i}].from: two {role} turns in a row; user and assistant take turns"
                )
