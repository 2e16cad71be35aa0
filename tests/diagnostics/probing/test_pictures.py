"""A picture is decoded once, as it lies on the disk now, and only so many are kept."""

import os

import pytest
from PIL import Image

from diagnostics.probing import pictures as module
from diagnostics.probing.pictures import OpenPictures
from finetune.samples.images import open_image


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in order."""
    found = []

    def opening(path):
        found.append(path.name)
        return open_image(path)

    monkeypatch.setattr(module, "open_image", opening)
    return found


@pytest.fixture
def files(tmp_path):
    for name, colour in (("a.png", (1, 2, 3)), ("b.png", (4, 5, 6)), ("c.png", (7, 8, 9))):
        Image.new("RGB", (5, 3), colour).save(tmp_path / name)
    return tmp_path


def test_a_picture_is_decoded_once(files, decoded):
    pictures = OpenPictures()
    first = pictures.open(files / "a.png")
    assert pictures.open(files / "a.png") is first
    assert (first.size, first.getpixel((0, 0))) == ((5, 3), (1, 2, 3))
    assert decoded == ["a.png"]


def test_a_picture_that_was_written_again_is_decoded_again(files, decoded):
    pictures, path = OpenPictures(), files / "a.png"
    pictures.open(path)
    Image.new("RGB", (5, 3), (9, 9, 9)).save(path)
    os.utime(path, ns=(1, 1))
    assert pictures.open(path).getpixel((0, 0)) == (9, 9, 9)
    assert decoded == ["a.png", "a.png"]


def test_the_latest_are_kept_as_far_as_they_fit(files, decoded):
    pictures = OpenPictures(kept_bytes=2 * 5 * 3 * 4)
    for name in "aba":
        pictures.open(files / f"{name}.png")
    pictures.open(files / "c.png")  # for which b goes
    assert decoded == ["a.png", "b.png", "c.png"]
    pictures.open(files / "a.png")
    pictures.open(files / "b.png")
    assert decoded[3:] == ["b.png"]
    pictures.close()
    pictures.open(files / "b.png")
    assert decoded[4:] == ["b.png"]


def test_one_that_fits_nowhere_is_kept_alone(files, decoded):
    pictures = OpenPictures(kept_bytes=1)
    for name in "aabb":
        pictures.open(files / f"{name}.png")
    assert decoded == ["a.png", "b.png"]


def test_a_picture_that_is_gone_is_named(files):
    with pytest.raises(ValueError, match=r"absent\.png"):
        OpenPictures().open(files / "absent.png")
