"""The same picture under another name is the same picture; another picture is not."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diagnostics.records.pictures import names_by_picture, picture_mark
from diagnostics.records.probes import Probe


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 9, 3), np.uint8))


def saved(picture: Image.Image, path: Path, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return picture_mark(path)


def test_copies_have_one_mark_however_they_are_stored(picture, tmp_path):
    mark = saved(picture, tmp_path / "a.png")
    words = PngImagePlugin.PngInfo()
    words.add_text("comment", "a copy")
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying, shown upright
    copies = [
        saved(picture, tmp_path / "copies" / "b.png", compress_level=0, pnginfo=words),
        saved(picture, tmp_path / "c.bmp"),
        saved(picture.rotate(90, expand=True), tmp_path / "turned.png", exif=turned),
    ]
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "copies" / "b.png").read_bytes()
    assert copies == [mark] * 3
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert picture_mark(str(tmp_path / "link.png")) == mark


def test_other_pictures_have_other_marks(picture, tmp_path):
    array = np.asarray(picture).copy()
    array[0, 0, 0] ^= 1
    others = [
        picture,
        Image.fromarray(array),
        picture.rotate(180),
        picture.crop((0, 0, 8, 5)),
        Image.fromarray(np.asarray(picture).reshape(9, 5, 3)),  # the same bytes in another shape
    ]
    marks = [saved(one, tmp_path / f"{index}.png") for index, one in enumerate(others)]
    assert len({*marks}) == 5


def test_a_file_that_changes_is_read_again(picture, tmp_path):
    before = saved(picture, tmp_path / "a.png")
    saved(picture.rotate(180), tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (1, 1))
    assert picture_mark(tmp_path / "a.png") != before


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"image '.*none\.png': there is no such file"):
        picture_mark(tmp_path / "none.png")
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(ValueError, match=r"words\.png': not an image file"):
        picture_mark(tmp_path / "words.png")


def test_a_picture_s_name_is_the_first_of_its_copies_and_has_no_place_on_this_machine(picture, tmp_path):
    mark = saved(picture, tmp_path / "z" / "b.png")
    saved(picture, tmp_path / "k" / "c.png")
    other = saved(picture.rotate(180), tmp_path / "k" / "b.png")
    of = [
        Probe(str(path), "g", (path,), "?", "yes") for path in sorted(tmp_path.rglob("*.png"), reverse=True)
    ]
    assert names_by_picture(of) == names_by_picture(of[::-1]) == {mark: "k/c.png", other: "k/b.png"}
