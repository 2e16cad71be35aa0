"""Opens pictures upright and in RGB, or reads only their size from the header."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from finetune.printable import one_line
from finetune.samples.conversation import ImageRef
from finetune.samples.listing import shortened

ImageSource = ImageRef | str | os.PathLike | bytes | Image.Image
MAX_PIXELS = (
    100_000_000  # a 10,000 × 10,000 picture takes 300 MB as RGB; anything larger is a mistake or an attack
)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TURNED = (5, 6, 7, 8)  # EXIF orientations whose width and height are exchanged
_LONGEST_NAME = 600  # characters of a path in an error
_LONGEST_REASON = 200  # characters of a reader's error about a broken file


def open_image(source: ImageSource) -> Image.Image:
    """One picture in RGB, upright.

    EXIF orientation is applied, so boxes and maps refer to the picture as a person sees it. 16-bit greys and
    floats are scaled to 8 bits, not clipped; where their values fit into 12 bits or 8, from those. Alpha is dropped,
    as in the original Qwen-VL. An animation gives its first frame.

    Raises ValueError naming the picture if it is missing, broken, or larger than 100 megapixels.
    """
    name, place = _name_and_place(source)
    opened = place if isinstance(place, Image.Image) else _decoded(place, name)
    _check_size(opened.size, name)
    with _naming_faults(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a broken EXIF block means no orientation
        upright = ImageOps.exif_transpose(opened)
        if upright.mode == "F":
            return _from_floats(upright)
        return _from_sixteen_bit(upright) if upright.mode in _SIXTEEN_BIT else upright.convert("RGB")


def size_of(source: ImageSource) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture; reads only its header.

    A photograph stored as 30 × 20 with EXIF orientation 6 is (20, 30), as ``open_image`` returns it.

    Raises ValueError as ``open_image`` does, except for faults that only decoding reveals.
    """
    name, place = _name_and_place(source)
    if isinstance(place, Image.Image):
        size, orientation = place.size, place.getexif().get(ExifTags.Base.Orientation)
        return _upright(size, orientation)
    with _naming_faults(name), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # MAX_PIXELS replaces Pillow's limit; a broken EXIF block means no orientation
        with _stream(place) as stream, Image.open(stream) as opened:
            size = opened.size
            orientation = _orientation(opened, stream) if _fits(size) else None
    _check_size(size, name)
    return _upright(size, orientation)


def known_size(ref: ImageRef) -> tuple[int, int]:
    """(width, height) of a picture without decoding it: the size in the record, else the file header's."""
    return ref.size_pixels or size_of(ref.path if ref.data is None else ref)


def _name_and_place(source: ImageSource) -> tuple[str, Path | bytes | Image.Image]:
    """The picture's name in errors, and where its bytes are."""
    if isinstance(source, ImageRef):
        if source.data is None:
            return shortened(repr(os.fspath(source.path)), _LONGEST_NAME), source.path
        return f"{source.written!r} ({len(source.data):,} bytes inside the data)", source.data
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", source
    if isinstance(source, Image.Image):
        return (getattr(source, "filename", "") or f"<PIL image {source.size[0]} × {source.size[1]}>"), source
    return shortened(repr(os.fspath(source)), _LONGEST_NAME), Path(source)


def _stream(place: Path | bytes) -> IO[bytes]:
    if isinstance(place, Path) and not (stat.S_ISREG(place.stat().st_mode) or place.is_dir()):
        raise ValueError("a pipe or a device, expected a file")  # it might never end
    if (len(place) if isinstance(place, bytes) else place.stat().st_size) == 0:
        raise ValueError("0 bytes")
    return io.BytesIO(place) if isinstance(place, bytes) else place.open("rb")


def _decoded(place: Path | bytes, name: str) -> Image.Image:
    with _naming_faults(name), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", Image.DecompressionBombWarning
        )  # our own limit has the better message
        with _stream(place) as stream, Image.open(stream) as opened:
            if opened.format == "EPS":
                raise ValueError(
                    "EPS, which only another program can draw"
                )  # Pillow would run Ghostscript on it
            if _fits(opened.size):
                opened.load()
            return opened


def _fits(size: tuple[int, int]) -> bool:
    return 0 < size[0] * size[1] <= MAX_PIXELS


def _check_size(size: tuple[int, int], name: str) -> None:
    if not _fits(size):
        bound = (
            f"expected at most {MAX_PIXELS:,}; scale it down first" if all(size) else "expected at least 1"
        )
        raise ValueError(f"image {name}: found {size[0]} × {size[1]} pixels, {bound}")


@contextmanager
def _naming_faults(name: str) -> Iterator[None]:
    """Turns Pillow's errors into a ValueError that names the picture."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"image {name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"image {name}: found a folder, expected a file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name}: not an image file (unknown or broken format)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name}: expected at most {MAX_PIXELS:,} pixels; {error}") from error
    except Exception as error:  # of any kind: each format's decoder raises what its author chose
        reason = one_line(f"{error or type(error).__name__}", _LONGEST_REASON)
        raise ValueError(
            f"image {name}: found a broken file ({reason}); save or download it again"
        ) from error


def _upright(size: tuple[int, int], orientation: int | None) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _TURNED else size


def _orientation(opened: Image.Image, stream: IO[bytes]) -> int | None:
    """The EXIF orientation that still has to be applied to ``opened.size``."""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        return None  # Pillow already returns a TIFF's upright size
    if isinstance(opened, PngImagePlugin.PngImageFile) and not _follows(stream):
        # Pillow decodes a whole PNG to read its EXIF, in case the block follows the pixels.
        return Image.Image.getexif(opened).get(ExifTags.Base.Orientation)
    return opened.getexif().get(ExifTags.Base.Orientation)


def _follows(stream: IO[bytes]) -> bool:
    """Whether a PNG stores its orientation after the pixels. Reads only the chunk headers."""
    stream.seek(8)
    pixels_seen = False
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if pixels_seen and kind == b"eXIf":
            return True
        if pixels_seen and kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = stream.read(min(length, 32))
            if key.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                return True
            length -= len(key)
        pixels_seen |= kind == b"IDAT"
        stream.seek(length + 4, os.SEEK_CUR)
    return False


def _from_floats(image: Image.Image) -> Image.Image:
    """A float picture in 8 bits, from 0 to 1 or from the fewest of 8, 12 and 16 bits that hold its largest value.

    Pillow would clip at 0 and 255, which turns values from 0 to 1 black.
    """
    values = np.asarray(image, np.float64)
    low, high = values.min(initial=0), values.max(initial=0)
    if not np.isfinite(values).all() or low < 0 or high > 65535:
        raise ValueError(f"values from {low:g} to {high:g}, expected 0 to 1, to 255, to 4095 or to 65535")
    white = next(most for most in (1, 255, 4095, 65535) if high <= most)
    scaled = values * (255 / white)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """A grey picture of whole numbers in 8 bits, from the fewest of 8, 12 and 16 bits that hold its largest value.

    Cameras and scanners store 8 or 12 bits in files of 16: 4095 is white there, and would be nearly black. Up to 255
    values stay, up to 4095 they are divided by 16, above by 257 (65535 → 255). A picture of 16 bits that is this dark
    all over cannot be told from one of 12, and is brightened. Files of 32 bits may hold more, which is refused.
    """
    values = np.asarray(image).astype(np.int64)
    least, most = values.min(initial=0), values.max(initial=0)
    if least < 0 or most > 65535:
        raise ValueError(f"values from {least} to {most}, expected 0 to 255, to 4095 or to 65535")
    scaled = values if most <= 255 else values // 16 if most <= 4095 else values // 257
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
