"""Finds the pictures and videos that records name: files, or bytes inside the data."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Int

from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.formats.finding import find_file
from finetune.samples.images import size_of
from finetune.samples.videos import SAMPLING, Sampling, video_of_file, video_of_frames

SHORTEST_BASE64 = 64
LONGEST_PATH = 1024
_FIRST_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""Magic numbers of PNG, JPEG, GIF, WebP, BMP and TIFF; those of HEIC and AVIF follow a length."""

Size = tuple[int, int]
Measure = Callable[[ImageRef], Size]


class Finder:
    """Finds pictures and videos, and their sizes.

    folders    where relative paths are looked up; the first that has the file wins
    measure    returns a picture's upright size; raises ValueError for a broken one
    sampling   which frames of videos are sampled
    """

    def __init__(
        self,
        folders: tuple[Path, ...],
        measure: Measure,
        sampling: Sampling = SAMPLING,
    ) -> None:
        self.folders, self.measure, self.sampling = folders, measure, sampling

    def find(self, spec: Any, at: str) -> ImageRef:
        """See ``Pictures.find``; ``at`` names a picture that has no path."""
        ref = self._ref(spec, at)
        return replace(ref, size_pixels=self.measure(ref))

    def find_video(self, spec: Any, at: str) -> VideoRef:
        """See ``Pictures.find_video``."""
        fps = self.sampling.fps
        if isinstance(spec, Mapping) and isinstance(spec.get("frames"), list):
            spec, fps = spec["frames"], spec.get("fps", fps)
            if not isinstance(fps, int | float) or isinstance(fps, bool):
                raise ValueError(f"fps: found {fps!r:.80}, expected frames per second as a number")
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
        if isinstance(spec, Mapping):
            return self._of_mapping(spec, at)
        if not isinstance(spec, str) or not spec.strip():
            raise ValueError(f"found {spec!r:.80}, expected the path of a picture, or its bytes")
        written = spec.strip()
        if written[:5].lower() == "data:":
            return ImageRef(at, Path(), data=_of_address(written))
        try:
            return ImageRef(written, self._place(written))
        except ValueError:
            inside = _of_base64_alone(written)
            if inside is None:
                raise
        return ImageRef(at, Path(), data=inside)

    def _of_mapping(self, spec: Mapping[str, Any], at: str) -> ImageRef:
        """``{"bytes", "path"}`` of Hugging Face datasets; in JSON the bytes are base64."""
        content = next((spec[key] for key in ("bytes", "base64") if spec.get(key)), None)
        if isinstance(content, bytes):
            written = str(spec.get("path") or at)
            return ImageRef(written, Path(written), data=content)
        if isinstance(content, str):
            found = _of_base64(content)
            if found is None:
                raise ValueError(f"found {content!r:.80} as bytes, expected base64")
            return ImageRef(at, Path(), data=found)
        inner = spec.get("path") or spec.get("url")
        if not isinstance(inner, str):
            raise ValueError(f"found {spec!r:.80}, expected the path of a picture, or its bytes")
        return self._ref(inner, at)

    def _place(self, written: str, what: str = "image") -> Path:
        return find_file(written, self.folders, what)


def _of_address(address: str) -> bytes:
    """The content of a ``data:`` URL, whatever is between ``data:`` and ``;base64,``.

    ``data:image/png;base64,…``, ``data:image/PNG;charset=utf-8;BASE64,…``, ``data:;base64,…``.
    """
    head, comma, content = address.partition(",")
    kind, *options = head[len("data:") :].lower().split(";")
    is_picture = kind.strip() in ("", "application/octet-stream") or kind.strip().split("/")[0] == "image"
    if not comma or not is_picture or "base64" not in [one.strip() for one in options]:
        raise ValueError(f"found {address[:40]!r}, expected data:image/png;base64,... or the like")
    found = _of_base64(unquote(content) if "%" in content else content)
    if found is None:
        raise ValueError(f"found a broken data: URL ({content[:40]!r}...), expected base64")
    return found


def _of_base64(text: str) -> bytes | None:
    """Decoded base64, standard or URL-safe, with any line breaks; None if it is not base64."""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _of_base64_alone(text: str) -> bytes | None:
    """A picture file in bare base64, without a ``data:`` prefix; None if the text is more likely a path.

    Raises ValueError if it is too long for a path and not a picture.
    """
    found = _of_base64(text) if len(text) >= SHORTEST_BASE64 else None
    if found is None and len(text) <= LONGEST_PATH:
        return None
    if found is None or not (found.startswith(_FIRST_BYTES) or found[4:8] == b"ftyp"):
        if len(text) <= LONGEST_PATH:
            return None
        held = "text" if found is None else f"base64 of {len(found):,} bytes that begin with {found[:8]!r}"
        raise ValueError(
            f"found {len(text):,} characters, {held}, expected a path, or a picture file in base64 (PNG, JPEG, ...; "
            "raw pixels have no size)"
        )
    return found


class HeaderSizes:
    """Sizes from the pictures' headers, cached per file.

    Remembers at most ``most_kept`` files (20 MB).
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
    """Passes another measure's sizes on and records them in ``sizes``."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.sizes: list[Size] = []

    def __call__(self, ref: ImageRef) -> Size:
        self.sizes.append(self.measure(ref))
        return self.sizes[-1]


class KnownSizes:
    """Sizes recorded earlier, returned in the order in which they were recorded.

    sizes   width and height of each
    """

    def __init__(self, sizes: Int[np.ndarray, "pictures 2"]) -> None:
        self.sizes: Iterator[list[int]] = iter(sizes.tolist())

    def __call__(self, ref: ImageRef) -> Size:
        size = next(self.sizes, None)
        if size is None:
            raise ValueError(f"image {ref.written!r}: did not exist when the data was checked")
        return size[0], size[1]
