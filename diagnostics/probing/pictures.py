"""The pictures of probes, decoded once for all that reads them: prompts, interventions, places to compare with."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from PIL import Image

from finetune.samples.images import open_image

KEPT_BYTES = 2**27
"""Decoded pictures kept, at most: three of 12 megapixels, or all of a window of small ones. A choice."""


class OpenPictures:
    """Pictures by path, upright and in RGB, as they lie on the disk now. The latest are kept, ``kept_bytes`` at most
    or one.

    A picture that ``open`` returns is shared: not to be changed.
    """

    def __init__(self, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._room = kept_bytes
        self._kept: OrderedDict[tuple[Path, int, int], Image.Image] = OrderedDict()

    def open(self, path: Path) -> Image.Image:
        """Raises ValueError naming the picture if it is missing, broken or too large (``open_image``)."""
        try:
            key = path, *written(path)
        except OSError:
            return open_image(path)  # which says what is wrong
        if key not in self._kept:
            self._kept[key] = picture = open_image(path)
            self._room -= _bytes_of(picture)
        self._kept.move_to_end(key)
        picture = self._kept[key]
        while self._room < 0 and len(self._kept) > 1:
            self._room += _bytes_of(self._kept.popitem(last=False)[1])
        return picture

    def close(self) -> None:
        """Forget all."""
        while self._kept:
            self._room += _bytes_of(self._kept.popitem()[1])


def written(path: Path) -> tuple[int, int]:
    """When a file was last written, ns, and its size: a copy that keeps the time (``cp -p``, rsync) has another one.

    Raises OSError if it is gone.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _bytes_of(picture: Image.Image) -> int:
    """Of an RGB picture, which Pillow holds in four bytes a pixel."""
    return 4 * picture.width * picture.height
