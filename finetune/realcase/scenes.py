"""Photographed cut-outs on photographs: a picture, and the exact box of each thing in it.

Two things side by side stand in a picture twice as wide as high, one in each half, since the model reads each half as a
tile of its own; all other pictures are square.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from finetune.realcase.catalogue import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    LANDMARKS,
    Landmark,
    Thing,
    monument_entry,
)
from finetune.realcase.qt_resources import read_resources

SIDE = 448
"""Pixels a side of a square scene, and of each half of a wide one; the tower reads it smaller (``assemble.PIXELS``)."""
SMALLEST, LARGEST = 220, 330
"""Pixels of a thing's longer side."""
TURNED, TINTED = 12.0, 0.3
"""Degrees that a thing is turned by, and share of its brightness and colour that are changed, at most; either way."""
SEEN = 128
"""Of 255: what is at least as opaque belongs to a thing, and to its box."""

Pixels = tuple[int, int, int, int]
Place = Literal["left", "right"]


class Placed(NamedTuple):
    """A thing in a scene."""

    thing: Thing
    cutout: str
    box: Pixels
    """x0 y0 x1 y1 of what is opaque, in pixels of the scene."""


class Scene(NamedTuple):
    """A picture, and what is in it."""

    picture: Image.Image
    placed: tuple[Placed, ...]
    background: str


class Pictures(NamedTuple):
    """The photographs and cut-outs that scenes are made of."""

    cutout: Callable[[str], Image.Image]
    """Path below the stamps folder → RGBA, cut to its opaque part."""
    photograph: Callable[[str], Image.Image]
    """Name of a landmark's or background's picture → RGB."""


def open_pictures(stamps: Path, monuments: Path) -> Pictures:
    """Those of the packages. Photographs are decoded once and kept, cut-outs as well: 60 MB together."""
    entries: Mapping[str, bytes] = read_resources(monuments)
    kept: dict[str, Image.Image] = {}

    def cutout(path: str) -> Image.Image:
        if path not in kept:
            kept[path] = opaque_part(Image.open(stamps / path).convert("RGBA"))
        return kept[path]

    def photograph(name: str) -> Image.Image:
        if name not in kept:
            entry = monument_entry(name)
            if entry not in entries:
                raise ValueError(
                    f"{monuments}: found no {entry}, expected as in gcompris-qt-data 3.1; it is another version"
                )
            kept[name] = Image.open(io.BytesIO(entries[entry])).convert("RGB")
        return kept[name]

    return Pictures(cutout, photograph)


def opaque_part(cutout: Image.Image) -> Image.Image:
    """A cut-out without its transparent margins, so that its size is the size of what is seen."""
    return cutout.crop(opaque_box(cutout))


def opaque_box(cutout: Image.Image) -> Pixels:
    """x0 y0 x1 y1 of what is opaque. Raises ValueError where nothing is."""
    box = cutout.getchannel("A").point(lambda alpha: 255 if alpha >= SEEN else 0).getbbox()
    if box is None:
        raise ValueError("a cut-out without any opaque pixel")
    return box


def background(
    pictures: Pictures, rng: Random, *, held_out: bool, halves: int = 1
) -> tuple[Image.Image, str]:
    """A part of a photograph: ``halves`` squares side by side."""
    name = rng.choice(HELD_OUT_BACKGROUNDS if held_out else BACKGROUNDS)
    return part_of(pictures.photograph(name), rng, halves=halves), name


def part_of(photograph: Image.Image, rng: Random, *, halves: int = 1) -> Image.Image:
    """At least 60 % of the largest part of a photograph that is ``halves`` times as wide as high."""
    highest = min(photograph.height, photograph.width // halves)
    height = rng.randint(round(0.6 * highest), highest)
    width = halves * height
    x, y = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
    return photograph.crop((x, y, x + width, y + height)).resize((halves * SIDE, SIDE))


def cutouts_of(thing: Thing, *, held_out: bool) -> Sequence[str]:
    return thing.held_out if held_out else thing.trained


def one_thing(
    pictures: Pictures, thing: Thing, rng: Random, *, new_background: bool = False, new_cutout: bool = False
) -> Scene:
    """A thing anywhere in a picture."""
    picture, name = background(pictures, rng, held_out=new_background)
    placed = [place(picture, pictures, thing, rng, new_cutout=new_cutout)]
    return Scene(picture, tuple(placed), name)


def side_by_side(
    pictures: Pictures,
    left: Thing,
    right: Thing,
    rng: Random,
    *,
    new_background: bool = False,
    new_cutout: bool = False,
) -> Scene:
    """Two things, one in each half of a picture twice as wide as high, each at any height."""
    picture, name = background(pictures, rng, held_out=new_background, halves=2)
    halves = ((left, (0, SIDE)), (right, (SIDE, 2 * SIDE)))
    placed = [place(picture, pictures, one, rng, across, new_cutout=new_cutout) for one, across in halves]
    return Scene(picture, tuple(placed), name)


def on_or_beside(
    pictures: Pictures, rider: Thing, carrier: Thing, rng: Random, *, is_on: bool, new_background: bool = False,
    new_cutout: bool = False,
) -> Scene:  # fmt: skip
    """A thing on another, or not on it: below it, or beside it at any height. The rider first.

    Above it without touching would be neither, so that never comes.
    """
    picture, name = background(pictures, rng, held_out=new_background)
    under = _scaled(pictures.cutout(rng.choice(carrier.trained)), rng, (200, 240))
    over_path = rng.choice(cutouts_of(rider, held_out=new_cutout) or rider.trained)
    over = _scaled(pictures.cutout(over_path), rng, (140, 180))
    if is_on:
        x = rng.randint(0, SIDE - max(under.width, over.width))
        y = rng.randint(over.height, SIDE - under.height)
        spare = max(under.width - over.width, 0)
        over_at = (x + rng.randint(spare // 4, max(spare - spare // 4, spare // 4)), y - over.height + 6)
    elif rng.random() < 0.5:
        x = rng.randint(0, SIDE - max(under.width, over.width))
        y = rng.randint(0, SIDE - under.height - over.height)
        over_at = (x, y + under.height + rng.randint(0, SIDE - under.height - over.height - y))
    else:
        is_left = rng.random() < 0.5
        free = SIDE - under.width - over.width
        x = rng.randint(0, free) if not is_left else over.width + rng.randint(0, free)
        y = rng.randint(0, SIDE - under.height)
        over_at = (x - over.width if is_left else x + under.width, rng.randint(0, SIDE - over.height))
    carried = _paste(picture, under, (x, y), carrier, carrier.trained[0])
    riding = _paste(picture, over, over_at, rider, over_path)
    return Scene(picture, (riding, carried), name)


def landmark_view(pictures: Pictures, landmark: Landmark, rng: Random) -> tuple[Image.Image, Pixels]:
    """A view of a landmark with all of it, cut by up to 15 % on each side, and its box in it."""
    photograph = pictures.photograph(landmark.picture)
    width, height = photograph.size
    x0, y0, x1, y1 = (
        round(one * length) for one, length in zip(landmark.box, (width, height) * 2, strict=True)
    )
    crop = (
        rng.randint(0, min(x0, round(0.15 * width))),
        rng.randint(0, min(y0, round(0.15 * height))),
        width - rng.randint(0, min(width - x1, round(0.15 * width))),
        height - rng.randint(0, min(height - y1, round(0.15 * height))),
    )
    across, down = SIDE / (crop[2] - crop[0]), SIDE / (crop[3] - crop[1])
    box = (
        round((x0 - crop[0]) * across), round((y0 - crop[1]) * down),
        round((x1 - crop[0]) * across), round((y1 - crop[1]) * down),
    )  # fmt: skip
    return photograph.crop(crop).resize((SIDE, SIDE)), box


def names_alike(landmark: Landmark) -> list[Landmark]:
    """Other landmarks that look like this one."""
    return [one for one in LANDMARKS if landmark.alike and one.alike == landmark.alike and one != landmark]


def place(
    picture: Image.Image,
    pictures: Pictures,
    thing: Thing,
    rng: Random,
    across: tuple[int, int] = (0, SIDE),
    *,
    new_cutout: bool = False,
) -> Placed:
    """Paste a thing somewhere into a picture, between two of its columns."""
    path = rng.choice(cutouts_of(thing, held_out=new_cutout))
    cutout = _varied(_scaled(pictures.cutout(path), rng, (SMALLEST, LARGEST)), rng)
    at = (rng.randint(across[0], across[1] - cutout.width), rng.randint(0, SIDE - cutout.height))
    return _paste(picture, cutout, at, thing, path)


def _scaled(cutout: Image.Image, rng: Random, longer: tuple[int, int]) -> Image.Image:
    factor = rng.randint(*longer) / max(cutout.size)
    return cutout.resize((max(round(cutout.width * factor), 1), max(round(cutout.height * factor), 1)))


def _varied(cutout: Image.Image, rng: Random) -> Image.Image:
    """A cut-out mirrored half of the time, turned a little, lighter or darker, more or less colourful.

    A name has one or two cut-outs, and the name should be learned, not the cut-out.
    """
    if rng.random() < 0.5:
        cutout = ImageOps.mirror(cutout)
    turned = cutout.rotate(rng.uniform(-TURNED, TURNED), Image.Resampling.BICUBIC, expand=True)
    colours = turned.convert("RGB")
    for change in (ImageEnhance.Brightness, ImageEnhance.Color):
        colours = change(colours).enhance(rng.uniform(1 - TINTED, 1 + TINTED))
    colours.putalpha(turned.getchannel("A"))
    return opaque_part(colours)


def _paste(picture: Image.Image, cutout: Image.Image, at: tuple[int, int], thing: Thing, path: str) -> Placed:
    picture.paste(cutout, at, cutout)
    x0, y0, x1, y1 = opaque_box(cutout)
    return Placed(thing, path, (at[0] + x0, at[1] + y0, at[0] + x1, at[1] + y1))
