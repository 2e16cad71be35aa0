"""The size that a header tells is that of the picture as it is opened."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from finetune.samples.conversation import ImageRef
from finetune.samples.images import open_image, size_of

ORIENTATION = 0x0112


def encoded(kind: str, orientation: int | None) -> bytes:
    """A picture of 30 × 20 pixels, left half blue, as a file."""
    picture = Image.new("RGB", (30, 20), "white")
    picture.paste("blue", (0, 0, 15, 20))
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    picture.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, *range(9)])
def test_the_headers_size_is_the_opened_ones(
    kind: str, orientation: int | None, monkeypatch: pytest.MonkeyPatch
):
    content = encoded(kind, orientation)
    opened = open_image(content)
    assert opened.size == ((20, 30) if orientation in (5, 6, 7, 8) else (30, 20))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("the picture was decoded"))
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile, "load", lambda *_: pytest.fail("the picture was decoded")
    )
    assert size_of(content) == opened.size


def behind_the_pixels(kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk between its pixels and its end, where some programs write EXIF."""
    content = encoded("PNG", None)
    end = content.rindex(b"IEND") - 4
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content[:end] + chunk + content[end:]


@pytest.mark.parametrize(
    ("kind", "data", "size"),
    [
        (b"eXIf", None, (20, 30)),
        (b"tEXt", b"date:create\x002026", (30, 20)),
        (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="8"/>', (20, 30)),
    ],
)
def test_an_orientation_behind_the_pixels_is_seen(kind: bytes, data: bytes | None, size: tuple[int, int]):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = behind_the_pixels(kind, exif.tobytes()[6:] if data is None else data)
    assert size_of(content) == open_image(content).size == size


def test_every_kind_of_source_is_opened_alike(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded("PNG", 6))
    sources: list[Any] = [
        file, str(file), file.read_bytes(), Image.open(file), ImageRef("a.png", file),
        ImageRef("images[0]", Path("nowhere"), data=file.read_bytes()),
    ]  # fmt: skip
    for source in sources:
        assert size_of(source) == (20, 30)
        assert open_image(source).getpixel((19, 2)) == (0, 0, 255)  # what was left is on top now
    sources[3].close()


@pytest.mark.parametrize("opening", [open_image, size_of])
def test_errors_name_the_picture(opening: Any, tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    inside = ImageRef("images[0]", Path("images[0]"), data=b"xyz")
    with pytest.raises(ValueError, match=r"image '.*no\.png': there is no such file"):
        opening(tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"image '.*text\.png': not an image file"):
        opening(tmp_path / "text.png")
    with pytest.raises(
        ValueError, match=r"huge\.png': found 20000 × 6000 pixels, expected at most 100,000,000"
    ):
        opening(tmp_path / "huge.png")
    with pytest.raises(
        ValueError, match=r"image 'images\[0\]' \(3 bytes inside the data\): not an image file"
    ):
        opening(inside)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_cut_and_harmed_files_are_errors_that_name_them(kind: str, capfd: pytest.CaptureFixture[str]):
    file = io.BytesIO()
    Image.effect_noise((37, 23), 60).convert("RGB").save(file, kind)
    content = file.getvalue()
    fault = r"not an image file" if kind == "AVIF" else r"found a broken file .*; save or download it again"
    with pytest.raises(ValueError, match=rf"image <\d+ bytes>: {fault}"):
        open_image(content[: len(content) // 2])
    for place in range(0, len(content), max(1, len(content) // 60)):
        harmed = bytearray(content)
        harmed[place] ^= 0x55
        for broken in (content[:place], bytes(harmed)):
            for opening in (open_image, size_of):
                try:
                    opening(broken)
                except ValueError as error:
                    assert str(error).startswith("image <")


@pytest.mark.parametrize(
    "raised",
    [RuntimeError, NotImplementedError, SyntaxError, MemoryError, zlib.error, type("Own", (Exception,), {})],
)
@pytest.mark.parametrize("opening", [open_image, size_of])
def test_whatever_a_reader_raises_on_a_file_names_it_in_few_words(
    opening: Any, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "odd.avif").write_bytes(encoded("PNG", None))

    def fail(*_: Any, **__: Any) -> Any:
        raise raised("unimplemented " + "x" * 5000)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"odd\.avif': found a broken file \(unimplemented x") as caught:
        opening(tmp_path / "odd.avif")
    assert len(str(caught.value)) < 600


def test_no_other_program_draws_a_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("ran Ghostscript"))
    written = io.BytesIO()
    Image.new("RGB", (3, 2)).save(written, "EPS")
    with pytest.raises(ValueError, match="EPS, which only another program can draw"):
        open_image(written.getvalue())


@pytest.mark.parametrize("opening", [open_image, size_of])
def test_an_empty_file_and_a_folder_are_named_as_such(opening: Any, tmp_path: Path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "album.png").mkdir()
    with pytest.raises(ValueError, match=r"empty\.png': found a broken file \(0 bytes\)"):
        opening(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"album\.png': found a folder"):
        opening(tmp_path / "album.png")
    with pytest.raises(ValueError, match=r"\(0 bytes\)"):
        opening(b"")


@pytest.mark.parametrize("scale", [1.0, 255.0, 4095.0, 65535.0])
def test_floats_are_scaled_not_cut(scale: float, tmp_path: Path):
    values = np.array([[0.0, 0.25, 1.0]], np.float32) * scale
    Image.fromarray(values).save(tmp_path / "f.tiff")
    found = open_image(tmp_path / "f.tiff")
    assert [found.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (64,) * 3, (255,) * 3]
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(ValueError, match="values from nan to nan, expected 0 to 1"):
        open_image(tmp_path / "nan.tiff")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 64, 255], [0, 64, 255]),  # 8 bits
        ([0, 64, 256], [0, 4, 16]),  # 12 bits
        ([0, 1024, 4095], [0, 64, 255]),
        ([0, 1024, 4096], [0, 3, 15]),  # 16 bits
        ([0, 16448, 65535], [0, 64, 255]),
    ],
)
@pytest.mark.parametrize("written", ["PNG", "TIFF", "big-endian TIFF", "int32 TIFF"])
def test_greys_of_8_and_12_bits_in_16_are_not_black(
    written: str, values: list[int], expected: list[int], tmp_path: Path
):
    kind = {"big-endian TIFF": ">u2", "int32 TIFF": "<i4"}.get(written, "<u2")
    picture = Image.fromarray(np.array([values], kind))
    assert picture.mode == {">u2": "I;16B", "<i4": "I", "<u2": "I;16"}[kind]
    picture.save(tmp_path / "grey", written.split()[-1])
    found = open_image(tmp_path / "grey")
    assert [found.getpixel((x, 0)) for x in range(3)] == [(one,) * 3 for one in expected]


@pytest.mark.parametrize("values", [[0, 1, 65536], [-1, 0, 3000]])
def test_greys_of_32_bits_are_not_cut(values: list[int], tmp_path: Path):
    """Computed tomography has values below 0."""
    Image.fromarray(np.array([values], "<i4")).save(tmp_path / "grey.tiff")
    with pytest.raises(ValueError, match=f"values from {values[0]} to {values[2]}, expected 0 to 255"):
        open_image(tmp_path / "grey.tiff")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]
)
def test_every_mode_is_opened_in_rgb(mode: str):
    for size in ((1, 1), (4, 3000)):
        assert open_image(Image.new(mode, size)).mode == "RGB"


def test_of_an_animation_it_is_the_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert size_of(tmp_path / "a.gif") == (8, 6)
    assert open_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


def test_a_pipe_a_device_and_a_long_name_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("fifo.png", "zero.png", "x" * 5000, "a\x1b[2J.png"):
        for read in (open_image, size_of):
            with pytest.raises(ValueError, match="^image ") as caught:
                read(tmp_path / name)
            assert len(str(caught.value)) < 1500 and "\x1b" not in str(caught.value)
