"""Pictures that visitors send: checked when they are read, and bounded on disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFont

from diagnostics.web.texts import RefusedError
from finetune.files import in_place_of, write_atomically
from finetune.fonts import text_font
from finetune.samples.conversation import ImageRef
from finetune.samples.images import open_image, size_of
from finetune.samples.markup import draw_boxes

FILE_MAX_BYTES = 10 * 2**20
PIXELS_MAX = 25_000_000
SHOWN_PIXELS = 1024  # the longer side of a picture in the chat
BOXED_PIXELS = 480  # a smaller picture is enlarged before boxes are drawn on it
WAITING_MAX_FILES = 500
WAITING_MAX_BYTES = 512 * 2**20
SESSION_FILES = "sessions"
SESSION_MAX_FILES = 200
SESSION_MAX_BYTES = 128 * 2**20
"""Of one session's pictures on disk: twice the six of a conversation at their largest. Questions that are taken back
may bring any number."""
EMPTY_SECONDS = 60


@dataclass(frozen=True)
class Upload:
    """An uploaded picture: the checked bytes of its file, and its upright size (EXIF applied)."""

    name: str
    data: bytes

    @classmethod
    def read(cls, path: str | Path) -> Upload:
        """Raises ValueError, with a message for the visitor, for a file that is not a picture or too large. Pixels are
        counted from the header, before decoding."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:  # no longer in the upload folder
            raise RefusedError("no_image", file=_short(path.name)) from error
        if len(data) > FILE_MAX_BYTES:
            found = f"{len(data) / 2**20:.1f}"
            raise RefusedError(
                "file_large", file=_short(path.name), found=found, most=FILE_MAX_BYTES // 2**20
            )
        most = PIXELS_MAX // 10**6
        try:
            width, height = size_of(data)
            if width * height <= PIXELS_MAX:
                open_image(data)
        except ValueError as error:  # its message names an object in memory
            key = "pixels_too_many" if "expected at most" in str(error) else "no_image"
            raise RefusedError(key, file=_short(path.name), most=most) from error
        if width * height > PIXELS_MAX:
            raise RefusedError("pixels_many", file=_short(path.name), width=width, height=height, most=most)
        return cls(path.name, data)

    def open(self) -> Image.Image:
        """The picture, upright."""
        return open_image(self.reference())

    def reference(self) -> ImageRef:
        return ImageRef(self.name, Path(self.name), data=self.data)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"


class PictureFiles:
    """One session's pictures, as files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shown(self, upload: Upload) -> Path:
        """Upright and scaled down for the screen; written once."""
        place = self._place(upload.data, ".jpg")
        if not place.is_file():
            small = upload.open().convert("RGB")
            small.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
            with in_place_of(place) as temporary:
                small.save(temporary, "JPEG", quality=90)
            self._bound()
        return place

    def original(self, upload: Upload) -> Path:
        """The bytes as uploaded, under the visitor's own file name."""
        place = self._place(upload.data, "") / upload.name
        write_atomically(place, upload.data)
        self._bound()
        return place

    def boxed(self, upload: Upload, answer: str) -> Path:
        """The picture with the answer's boxes drawn on it; written once."""
        place = self._place((upload.data, answer), ".png")
        if not place.is_file():
            picture = upload.open().convert("RGB")
            factor = max(1, round(BOXED_PIXELS / max(picture.size)))
            picture = picture.resize((picture.width * factor, picture.height * factor))
            drawn = draw_boxes(picture, answer, font=ImageFont.truetype(str(text_font(answer)), 18))
            with in_place_of(place) as temporary:
                drawn.save(temporary, "PNG")
            self._bound()
        return place

    def clear(self) -> None:
        """Delete them all."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bound(self) -> None:
        """The oldest go first; those that are shown again are written again."""
        kept = [Path(inside) / name for inside, _, names in os.walk(self._folder) for name in names]
        _delete_oldest(kept, SESSION_MAX_FILES, SESSION_MAX_BYTES)

    def _place(self, content: Hashable, ending: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{abs(hash(content)):x}{ending}"


def bound_waiting(
    folder: Path, most_files: int = WAITING_MAX_FILES, most_bytes: int = WAITING_MAX_BYTES
) -> None:
    """Delete the oldest files that were sent and belong to no session yet until the rest fit the limits, and folders
    that stayed empty for a minute."""
    waiting = []
    for inside, _, names in os.walk(folder):  # passes over folders that another thread deletes meanwhile
        if Path(inside) != folder and folder / SESSION_FILES not in Path(inside).parents:
            waiting += [Path(inside) / name for name in names]
    _delete_oldest(waiting, most_files, most_bytes)
    for place in [*folder.iterdir()]:
        with suppress(OSError):  # not empty, no folder, or gone
            if place.name != SESSION_FILES and place.stat().st_mtime < time.time() - EMPTY_SECONDS:
                place.rmdir()


def _delete_oldest(paths: Sequence[Path], most_files: int, most_bytes: int) -> None:
    """Delete the oldest files until the rest fit the limits; what another thread deletes meanwhile is no error."""
    found = []
    for path in paths:
        with suppress(OSError):
            if path.is_file():
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    files, size = len(found), sum(one[1] for one in found)
    for _, file_bytes, path in sorted(found):
        if files <= most_files and size <= most_bytes:
            break
        with suppress(OSError):
            path.unlink()
        files, size = files - 1, size - file_bytes
