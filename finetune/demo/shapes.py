"""Vector shapes and the one function that turns them into pixels.

Units: the picture is 1 high and 4/3 wide, x to the right and y down, so a circle is a circle and the same scene
renders at any size. Colours are (red, green, blue) or (red, green, blue, alpha), 0 to 255.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image, ImageDraw, ImageFilter, ImageStat

WIDTH = 4 / 3
"""Width of every scene in units of its height."""

PATCHES = 14
"""Rows, and columns, of patches in which the demo's model sees a picture. Cues fill whole patches: hidden, they leave
nothing behind."""

SUPERSAMPLING = 3
"""Pixels are drawn this many times finer and averaged: edges come out smooth."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Colour = tuple[int, ...]


class Painter:
    """A supersampled image and the scale from scene units to its pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        self.scale_x = width * SUPERSAMPLING / WIDTH
        self.scale_y = height * SUPERSAMPLING
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def pixels(self, points: Iterable[Point]) -> list[Point]:
        return [(x * self.scale_x, y * self.scale_y) for x, y in points]

    def corners(self, box: Box) -> Box:
        """The box in pixels."""
        (x0, y0), (x1, y1) = self.pixels((box[:2], box[2:]))
        return x0, y0, x1, y1

    def ellipse(self, box: Box, colour: Colour) -> None:
        x0, y0, x1, y1 = self.corners(box)
        self.pen.ellipse((x0, y0, max(x0, x1), max(y0, y1)), fill=colour)


class Shape(Protocol):
    """Anything that can be drawn. Shapes are frozen dataclasses: their `repr` is the scene's identity."""

    def draw(self, painter: Painter) -> None: ...


@dataclass(frozen=True)
class Gradient:
    """A box filled from one colour at the top to another at the bottom."""

    box: Box
    top: Colour
    bottom: Colour

    def draw(self, painter: Painter) -> None:
        x0, y0, x1, y1 = map(round, painter.corners(self.box))
        width, height = max(1, x1 - x0), max(1, y1 - y0)
        steps = max(2, min(64, height))
        levels = bytearray()
        for step in range(steps):
            levels += bytes(mix(self.top, self.bottom, step / (steps - 1)))
        column = Image.frombytes("RGB", (1, steps), bytes(levels)).resize(
            (1, height), Image.Resampling.BILINEAR
        )
        painter.image.paste(column.resize((width, height), Image.Resampling.NEAREST), (x0, y0))


@dataclass(frozen=True)
class Polygon:
    points: tuple[Point, ...]
    colour: Colour

    def draw(self, painter: Painter) -> None:
        painter.pen.polygon(painter.pixels(self.points), fill=self.colour)


@dataclass(frozen=True)
class Ellipse:
    box: Box
    colour: Colour

    def draw(self, painter: Painter) -> None:
        painter.ellipse(self.box, self.colour)


@dataclass(frozen=True)
class Line:
    """A stroke through `points`, `width` in scene units."""

    points: tuple[Point, ...]
    colour: Colour
    width: float

    def draw(self, painter: Painter) -> None:
        width = max(1, round(self.width * painter.scale_y))
        painter.pen.line(painter.pixels(self.points), fill=self.colour, width=width, joint="curve")


@dataclass(frozen=True)
class Glow:
    """Light that fades outwards; with a dark colour, a soft shadow. `radius_y` 0 means a circle."""

    centre: Point
    radius: float
    colour: Colour
    strength: int = 90
    radius_y: float = 0.0

    def draw(self, painter: Painter) -> None:
        x, y = self.centre
        steps = 10
        alpha = max(1, round(self.strength / steps))
        for step in range(steps, 0, -1):
            rx = self.radius * step / steps
            ry = (self.radius_y or self.radius) * step / steps
            painter.ellipse((x - rx, y - ry, x + rx, y + ry), (*self.colour[:3], alpha))


@dataclass(frozen=True)
class Ball:
    """A sphere lit from the upper left."""

    centre: Point
    radius: float
    colour: Colour

    def draw(self, painter: Painter) -> None:
        x, y = self.centre
        steps = 8
        for step in range(steps):
            part = step / (steps - 1)
            radius = self.radius * (1 - 0.88 * part)
            shift = self.radius * 0.34 * part
            shade = mix(darker(self.colour, 0.62), lighter(self.colour, 0.62), part**1.15)
            painter.ellipse(
                (x - shift - radius, y - shift - radius, x - shift + radius, y - shift + radius), shade
            )


@dataclass(frozen=True)
class Reflection:
    """Water below `waterline`: what stands above it, upside down, softened, tinted and broken by ripples."""

    waterline: float
    tint: Colour
    strength: float = 0.55

    def draw(self, painter: Painter) -> None:
        image = painter.image
        line = round(self.waterline * painter.scale_y)
        depth = image.height - line
        above = image.crop((0, max(0, line - depth), image.width, line)).transpose(
            Image.Transpose.FLIP_TOP_BOTTOM
        )
        above = above.resize((image.width, depth)).filter(ImageFilter.GaussianBlur(painter.scale_y / 240))
        image.paste(Image.blend(Image.new("RGB", above.size, self.tint[:3]), above, self.strength), (0, line))
        for ripple in range(1, 9):
            y = self.waterline + (1 - self.waterline) * (ripple / 9) ** 1.3
            phase = math.sin(ripple * 12.9) * 0.3
            for start in (0.05, 0.5, 0.95):
                x0 = start + phase
                Line(((x0, y), (x0 + 0.28, y)), (255, 255, 255, 26), 0.004).draw(painter)


@dataclass(frozen=True)
class Veil:
    """Hides boxes: each takes the mean colour of a ring around it, whose width is 15 % of the box's longer side.

    A black box would be a thing to look at; this one has nothing to say. The other boxes are no part of the ring.
    """

    boxes: tuple[Box, ...]

    def draw(self, painter: Painter) -> None:
        seen = Image.new("L", painter.image.size, 255)
        for box in self.boxes:
            seen.paste(0, _whole(painter.corners(box)))
        before = painter.image.copy()
        for box in self.boxes:
            inner = _whole(painter.corners(box))
            margin = round(0.15 * max(inner[2] - inner[0], inner[3] - inner[1]))
            outer = (inner[0] - margin, inner[1] - margin, inner[2] + margin, inner[3] + margin)
            # Outside the picture a crop is black, in the mask too: it does not count.
            ring = ImageStat.Stat(before.crop(outer), seen.crop(outer))
            painter.image.paste(tuple(map(round, ring.mean)), inner)


def _whole(box: Box) -> tuple[int, int, int, int]:
    """The pixels that a box touches, by more than what floating point adds to the edge of one."""
    x0, y0, x1, y1 = (round(edge, 6) for edge in box)
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


@dataclass(frozen=True)
class Scene:
    """A picture as shapes, with what is true of it."""

    kind: str
    """Which builder made it: "tower", "room", "blocks" or "landscape"."""
    facts: dict[str, object]
    """What questions can be answered from; the keys depend on the kind."""
    shapes: tuple[Shape, ...]
    """In the order of drawing, the background first."""
    regions: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    """Boxes x0 y0 x1 y1 in scene units of what can be looked at, by name."""

    def digest(self) -> str:
        """Identity of the picture: sha256 over its shapes. Two scenes with one digest look the same."""
        return hashlib.sha256(repr(self.shapes).encode()).hexdigest()

    def boxes_pixels(self, width: int, height: int) -> dict[str, list[list[int]]]:
        """The regions in whole pixels of a rendering, clipped to it, x1 and y1 exclusive."""

        def whole(box: Box) -> list[int]:
            x0, y0, x1, y1 = _whole(
                (box[0] / WIDTH * width, box[1] * height, box[2] / WIDTH * width, box[3] * height)
            )
            return [max(0, x0), max(0, y0), min(width, x1), min(height, y1)]

        return {name: [whole(box) for box in boxes] for name, boxes in self.regions.items()}


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB image of `width` x `height` pixels."""
    painter = Painter(width, height)
    for shape in scene.shapes:
        shape.draw(painter)
    return painter.image.reduce(SUPERSAMPLING)


def mix(first: Colour, second: Colour, part: float) -> Colour:
    """The colour `part` (0 to 1) of the way from the first to the second."""
    (red, green, blue), (other_red, other_green, other_blue) = first[:3], second[:3]
    # Written out: called for every line of every gradient.
    return (
        round(red + (other_red - red) * part),
        round(green + (other_green - green) * part),
        round(blue + (other_blue - blue) * part),
    )


def darker(colour: Colour, part: float = 0.75) -> Colour:
    return tuple(round(channel * part) for channel in colour[:3])


def lighter(colour: Colour, part: float = 0.35) -> Colour:
    return mix(colour, (255, 255, 255), part)


def rectangle(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> Polygon:
    return Polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)


def around(x: float, y: float, radius: float) -> Box:
    """The box of a circle."""
    return (x - radius, y - radius, x + radius, y + radius)
