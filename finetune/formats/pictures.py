"""Finding the pictures and videos that records name: files, or bytes inside the data."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Int

from finetune.conversation import ImageRef, VideoRef
from finetune.images import size_of
from finetune.videos import SAMPLING, Sampling, video_of_file, video_of_frames

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_DATA_URI = re.compile(r"data:image/[^;,]*;base64,")

Size = tuple[int, int]
Measure = Callable[[ImageRef], Size]


class Finder:
    """Finds pictures and videos, and gives each its size.

    folders    where relative paths may begin, the first that has the file wins
    measure    gives a picture's upright size; raises ValueError for a broken one
    sampling   which frames of videos are taken
    """

    def __init__(
        self,
        folders: tuple[Path, ...],
        measure: Measure,
        sampling: Sampling = SAMPLING,
    ) -> None:
        self.folders, self.measure, self.sampling = folders, measure, sampling

    def find(self, spec: Any, at: str) -> ImageRef:
        """As ``Pictures.find`` says; ``at`` is what a picture without a path is called."""
        ref = self._ref(spec, at)
        return replace(ref, size_pixels=self.measure(ref))

    def find_video(self, spec: Any, at: str) -> VideoRef:
        """As ``Pictures.find_video`` says."""
        fps = self.sampling.fps
        if isinstance(spec, Mapping) and isinstance(spec.get("frames"), list):
            spec, fps = spec["frames"], spec.get("fps", fps)
            if not isinstance(fps, int | float) or isinstance(fps, bool):
                raise ValueError(f"fps: found {fps!r:.80}, expected frames a second as a number")
        if isinstance(spec, list):
            if not spec:
                raise ValueError("found an empty list, expected at least one frame")
            frames = [self.find(one, f"{at}[{i}]") for i, one in enumerate(spec)]
            return video_of_frames(frames, at, fps)
        if isinstance(spec, Mapping):
            spec = spec.get("path")
        if not isinstance(spec, str) or not spec.strip():
            raise ValueError(
                f'found {spec!r:.80}, expected the path of a video, or {{"frames": [path, ...], "fps": number}}'
            )
        written = spec.strip()
        return video_of_file(self._place(written, "video"), written, self.sampling)

    def _ref(self, spec: Any, at: str) -> ImageRef:
        if isinstance(spec, bytes):
            return ImageRef(at, Path(), data=spec)
        if isinstance(spec, Mapping) and isinstance(spec.get("bytes"), bytes):
            written = str(spec.get("path") or at)
            return ImageRef(written, Path(written), data=spec["bytes"])
        if isinstance(spec, Mapping):
            spec = spec.get("path")
        if not isinstance(spec, str) or not spec.strip():
            raise ValueError(f"found {spec!r:.80}, expected the path of a picture, or its bytes")
        written = spec.strip()
        if written.startswith("data:"):
            return ImageRef(at, Path(), data=_decoded(written))
        return ImageRef(written, self._place(written))

    def _place(self, written: str, what: str = "image") -> Path:
        path = unquote(written.removeprefix("file://")) if written.startswith("file://") else written
        if _ADDRESS.match(path):
            raise ValueError(f"{what} {written!r}: is an address, expected a file; download it first")
        given = Path(path).expanduser()
        places = [given] if given.is_absolute() else list(dict.fromkeys(one / given for one in self.folders))
        for place in places:
            if _is_file(place):
                return place
        looked = " and ".join(str(place) for place in places)
        raise ValueError(f"{what} {written!r}: no such file (looked at {looked}); see --image_folder")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes: too long, or with a NUL in it
        return False


def _decoded(uri: str) -> bytes:
    start = _DATA_URI.match(uri)
    if start is None:
        raise ValueError(f"found {uri[:40]!r}, expected data:image/png;base64,... or the like")
    try:
        return base64.b64decode(uri[start.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"found a data: URI that is broken ({error}), expected base64") from error


class HeaderSizes:
    """Sizes from the pictures' headers; what is known of a file is kept, for it may come again.

    At most ``most_kept`` files are remembered, 20 MB.
    """

    def __init__(self, most_kept: int = 1 << 16) -> None:
        self.most_kept = most_kept
        self.known: dict[Path, Size | str] = {}

    def __call__(self, ref: ImageRef) -> Size:
        if ref.data is not None:
            return size_of(ref)
        if ref.path not in self.known:
            if len(self.known) >= self.most_kept:
                self.known.pop(next(iter(self.known)))
            try:
                self.known[ref.path] = size_of(ref)
            except ValueError as error:
                self.known[ref.path] = str(error)
        found = self.known[ref.path]
        if isinstance(found, str):
            raise ValueError(found)
        return found


class NotedSizes:
    """What another way of measuring gives, noted in ``sizes``."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.sizes: list[Size] = []

    def __call__(self, ref: ImageRef) -> Size:
        self.sizes.append(self.measure(ref))
        return self.sizes[-1]


class KnownSizes:
    """Sizes found before, handed out in the order in which they were asked for then.

    sizes   width and height of each
    """

    def __init__(self, sizes: Int[np.ndarray, "pictures 2"]) -> None:
        self.sizes: Iterator[list[int]] = iter(sizes.tolist())

    def __call__(self, ref: ImageRef) -> Size:
        size = next(self.sizes, None)
        if size is None:
            raise ValueError(f"image {ref.written!r}: was not there when the data was checked")
        return size[0], size[1]
