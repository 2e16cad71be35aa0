"""A sample as read: turns of text, pictures and boxes."""

from __future__ import annotations

import itertools
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

Role = Literal["system", "user", "assistant"]
BoxKey = Literal["bbox_2d", "bbox", "point_2d"]


@dataclass(frozen=True)
class ImageRef:
    """A picture inside a turn.

    written       as the user wrote it
    path          the file to open
    data          the encoded file, if the dataset stores pictures inline; else None
    size_pixels   (width, height) of the upright picture, if its header has been read; else None
    max_pixels    limit for this picture, below the processor's own; else None
    """

    written: str
    path: Path
    data: bytes | None = field(default=None, compare=False, repr=False)
    size_pixels: tuple[int, int] | None = field(default=None, compare=False)
    max_pixels: int | None = None


@dataclass(frozen=True)
class VideoRef:
    """A video inside a turn: frames in temporal order, all of one size.

    written       as the user wrote it
    seconds       timestamp of each frame
    frames        the frames, if they are files of their own; () if they are read from ``path``
    path          the video file; the working directory if ``frames`` are given
    at            indices of the frames sampled from ``path``, counted from 0
    duration      of the whole video, in seconds; None: up to the timestamp of the last frame
    size_pixels   (width, height) of a frame
    max_pixels    limit for a frame, below the processor's own; else None
    """

    written: str
    seconds: tuple[float, ...]
    frames: tuple[ImageRef, ...] = ()
    path: Path = Path()
    at: tuple[int, ...] = ()
    duration: float | None = None
    size_pixels: tuple[int, int] | None = field(default=None, compare=False)
    max_pixels: int | None = None


@dataclass(frozen=True)
class BoxRef:
    """Boxes inside a turn: where a phrase lies in a picture. Each family writes them in its own format.

    written   as the user wrote them, phrase and markup together
    boxes     x0 y0 x1 y1 of each, as fractions of the upright picture's width and height, 0 to 1; a point is x y x y;
              () for a marked phrase without a box
    label     the phrase they belong to, or None
    image     index among the conversation's pictures and videos, from 0
    style     markup of ``written``: "qwen-vl" (<ref>, <box>, thousandths), "qwen2-vl" (<|box_start|>),
              "internvl" (<box>[[...]]</box>), "json" (bbox_2d), or "placeholder"
    key       the JSON key that holds them; "point_2d": they are points
    """

    written: str
    boxes: tuple[tuple[float, float, float, float], ...]
    label: str | None = None
    image: int = 0
    style: str = "qwen-vl"
    key: BoxKey = "bbox_2d"


@dataclass(frozen=True)
class LookAt:
    """Where an answer should look as it writes a phrase (``--look_weight``).

    phrase   words of the answer
    ends     the places to look at, all of them: one, or the subject and the object of a relation. Each is a tuple of
             boxes, x0 y0 x1 y1 as fractions of the upright image's width and height
    image    which of the conversation's images and videos, counted from 0
    """

    phrase: str
    ends: tuple[tuple[tuple[float, float, float, float], ...], ...]
    image: int = 0


Part = str | ImageRef | VideoRef | BoxRef


@dataclass(frozen=True)
class Turn:
    """One turn; ``parts`` are text, pictures, videos and boxes in reading order.

    trained   whether an answer is trained; data can exclude one (``"weight": 0``). Other turns are never trained
    look_at   where an answer should look, as the data says; markup that says it is in ``parts``
    """

    role: Role
    parts: tuple[Part, ...]
    trained: bool = True
    look_at: tuple[LookAt, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Turns in order; ``source`` names the sample in errors (file, record, id)."""

    turns: tuple[Turn, ...]
    source: str = field(default="conversation", compare=False)

    @property
    def media(self) -> tuple[ImageRef | VideoRef, ...]:
        """Pictures and videos, in order."""
        parts = (part for turn in self.turns for part in turn.parts)
        return tuple(part for part in parts if isinstance(part, ImageRef | VideoRef))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Pictures, in order. Raises ValueError for a video, which a caller that handles only pictures would drop."""
        videos = [one for one in self.media if isinstance(one, VideoRef)]
        if videos:
            raise ValueError(
                f"{self.source}: found the video {videos[0].written!r}, which this model does not read here; expected "
                "images alone, or a model of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, LLaVA-OneVision, InternVL or "
                "SmolVLM"
            )
        return tuple(one for one in self.media if isinstance(one, ImageRef))


class OnDemand(Sequence[Conversation]):
    """Conversations built on access; a slice is a list of them."""

    @abstractmethod
    def at(self, place: int) -> Conversation:
        """The conversation at an index from 0 to ``len(self)`` - 1."""

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [*map(self.at, places)]


def questions(conversations: Sequence[Conversation]) -> list[tuple[Path, str, str]]:
    """(picture, question, answer) of every trained answer about a single picture on disk, without control tokens."""
    found: list[tuple[Path, str, str]] = []
    for one in conversations:
        if len(one.media) != 1 or not isinstance(ref := one.media[0], ImageRef) or ref.data is not None:
            continue
        for asked, answered in itertools.pairwise(one.turns):
            if (asked.role, answered.role) == ("user", "assistant") and answered.trained:
                found.append((ref.path, _words(asked).removeprefix("Picture 1: ").strip(), _words(answered)))
    return found


def numbers_pictures(turn: Turn) -> bool | None:
    """Whether the turn writes ``Picture 1: `` before a picture, as Qwen-VL's data does; None without a picture."""
    for before, part in itertools.pairwise(("", *turn.parts)):
        if isinstance(part, ImageRef):
            return isinstance(before, str) and re.search(r"Picture \d+: ?$", before) is not None
    return None


_LABEL = re.compile(r"(?:\A|\r?\n)Picture \d+: ?\Z")


def without_label(words: str) -> str:
    """Words before a picture, without the line ``Picture 1: `` at their end by which Qwen-VL's data number it.

    A label amid a line is a part of what was said: "Compare this with Picture 1: ".
    """
    return _LABEL.sub("", words)


def _words(turn: Turn) -> str:
    """A turn's text without its pictures; boxes as they were written."""
    words = (part.written if isinstance(part, BoxRef) else part for part in turn.parts)
    return "".join(part for part in words if isinstance(part, str))
