"""A sample as read: turns of text, images and boxes."""

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
class VideoRef:
    """A video inside a turn: frames in order of time, all of one size.

    written       as the user wrote it
    seconds       when each frame is shown
    frames        the frames as pictures, where they are files of their own; () for frames of ``path``
    path          a video file, or the working directory where ``frames`` are given
    at            which frames of ``path`` are taken, counted from 0
    duration      of the whole video, in seconds; None: until its last frame is shown
    size_pixels   (width, height) of a frame
    max_pixels    at most so many pixels for a frame, below the processor's own budget; else None
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
    """Boxes inside a turn: where a phrase lies in an image. Each family writes them in its own way.

    written   as the user wrote them, phrase and markup together
    boxes     x0 y0 x1 y1 of each, as fractions of the upright image's width and height, 0 to 1; a point is x y x y;
              () for a phrase that is marked and has no box
    label     the phrase they belong to, or None
    image     which of the conversation's images and videos, counted from 0
    style     how ``written`` is written: "qwen-vl" (<ref>, <box>, thousandths), "qwen2-vl" (<|box_start|>),
              "internvl" (<box>[[...]]</box>), "json" (bbox_2d), or "placeholder"
    key       under which JSON has them; "point_2d": they are points
    """

    written: str
    boxes: tuple[tuple[float, float, float, float], ...]
    label: str | None = None
    image: int = 0
    style: str = "qwen-vl"
    key: BoxKey = "bbox_2d"


Part = str | ImageRef | VideoRef | BoxRef


@dataclass(frozen=True)
class Turn:
    """One turn; ``parts`` are text, images, videos and boxes in reading order.

    trained   of an answer: is it learned? Data says so turn by turn (``"weight": 0``); other turns never are
    """

    role: Role
    parts: tuple[Part, ...]
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and ``source``, the words by which an error names this sample (file, record, id)."""

    turns: tuple[Turn, ...]
    source: str = field(default="conversation", compare=False)

    @property
    def media(self) -> tuple[ImageRef | VideoRef, ...]:
        """Images and videos, in order."""
        parts = (part for turn in self.turns for part in turn.parts)
        return tuple(part for part in parts if isinstance(part, ImageRef | VideoRef))

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Images, in order. Raises ValueError where there is a video: who reads images alone would lose it in
        silence."""
        videos = [one for one in self.media if isinstance(one, VideoRef)]
        if videos:
            raise ValueError(
                f"{self.source}: found the video {videos[0].written!r}, which this model does not read here; expected "
                "images alone, or a model of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, LLaVA-OneVision, InternVL or "
                "SmolVLM"
            )
        return tuple(one for one in self.media if isinstance(one, ImageRef))


class OnDemand(Sequence[Conversation]):
    """Conversations that are made when they are indexed, one at a time; a slice is a list of them."""

    @abstractmethod
    def at(self, place: int) -> Conversation:
        """The conversation at a place from 0 to ``len(self)`` - 1."""

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [*map(self.at, places)]


def questions(conversations: Sequence[Conversation]) -> list[tuple[Path, str, str]]:
    """(picture, question, answer) of every turn about one picture on disk, as a person would read it."""
    found: list[tuple[Path, str, str]] = []
    for one in conversations:
        if len(one.media) != 1 or not isinstance(ref := one.media[0], ImageRef) or ref.data is not None:
            continue
        for asked, answered in itertools.pairwise(one.turns):
            if (asked.role, answered.role) == ("user", "assistant") and answered.trained:
                found.append((ref.path, _words(asked).removeprefix("Picture 1: ").strip(), _words(answered)))
    return found


def numbers_pictures(turn: Turn) -> bool | None:
    """Does the turn write ``Picture 1: `` before a picture, as Qwen-VL's data does? None without a picture."""
    for before, part in itertools.pairwise(("", *turn.parts)):
        if isinstance(part, ImageRef):
            return isinstance(before, str) and re.search(r"Picture \d+: ?$", before) is not None
    return None


def _words(turn: Turn) -> str:
    """A turn without its pictures, boxes as they were written."""
    words = (part.written if isinstance(part, BoxRef) else part for part in turn.parts)
    return "".join(part for part in words if isinstance(part, str))
