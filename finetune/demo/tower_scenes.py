"""Skylines with a landmark.

The flaw that the demo corrects is prepared here. A landmark stands on a wide lit podium, and the evidence for what it
is stands far above: the Oriental Pearl has spheres on a thin shaft, the Canton Tower a twisted waist. The spheres have
a colour of their own, so that the podium's colour is never to be read from them, and between podium and spheres
there is nothing but the shaft. The podium and its reflection fill whole patches of the small model: hide their box and
no patch beside it still tells the colour.
"""

import math
from random import Random
from typing import Literal

from finetune.demo.shapes import (
    PATCHES,
    WIDTH,
    Ball,
    Box,
    Colour,
    Ellipse,
    Glow,
    Gradient,
    Line,
    Polygon,
    Reflection,
    Scene,
    Shape,
    around,
    darker,
    lighter,
    mix,
    rectangle,
)

Landmark = Literal["pearl", "canton", "pagoda", "lighthouse", "eiffel"]
Podium = Literal["warm", "cool", "stone"]

PODIUM_COLOURS: dict[Podium, tuple[Colour, ...]] = {
    "warm": ((240, 168, 40), (244, 186, 60), (232, 150, 34)),
    "cool": ((38, 140, 210), (34, 160, 200), (48, 116, 220)),
    "stone": ((150, 146, 138), (168, 160, 146), (132, 134, 136)),
}
SPHERE_COLOURS: tuple[Colour, ...] = ((206, 50, 104), (214, 62, 120), (192, 44, 96))
SHAFT_COLOURS: tuple[Colour, ...] = ((196, 200, 208), (170, 176, 190), (214, 206, 196), (180, 190, 182))
GROUND = 12 / PATCHES
"""Height at which the landmarks stand; below it is the river."""


def tower_scene(rng: Random, landmark: Landmark, podium: Podium, time: Literal["day", "night"]) -> Scene:
    """A landmark in a skyline at a river, its podium of the given family of colours."""
    night = time == "night"
    shapes: list[Shape] = [*_sky(rng, night), *_skyline(rng, night)]
    scale = rng.uniform(0.84, 0.97)
    base, podium_box = _podium(rng, podium, night)
    x = (podium_box[0] + podium_box[2]) / 2 + rng.uniform(-0.03, 0.03)
    tower, regions = _BUILDERS[landmark](rng, x, podium_box[1], scale, night)
    water = (18, 28, 58) if night else (120, 158, 188)
    shapes += [
        *tower,
        *base,
        Reflection(GROUND, water),
        rectangle(0, GROUND - 0.004, WIDTH, GROUND + 0.004, (70, 74, 84)),
    ]
    regions["podium"] = (podium_box,)
    facts: dict[str, object] = {
        "landmark": landmark, "podium": podium, "time": time, "spheres": landmark == "pearl",
    }  # fmt: skip
    return Scene("tower", facts, tuple(shapes), regions)


def _sky(rng: Random, night: bool) -> list[Shape]:
    if night:
        top, bottom = rng.choice(
            (((10, 14, 40), (52, 58, 110)), ((16, 12, 44), (84, 62, 116)), ((6, 20, 40), (36, 78, 112)))
        )
        shapes: list[Shape] = [Gradient((0, 0, WIDTH, GROUND), top, bottom)]
        for _ in range(40):
            x, y, size = rng.uniform(0, WIDTH), rng.uniform(0, 0.5), rng.uniform(0.0015, 0.0035)
            shapes.append(Ellipse(around(x, y, size), (255, 255, 240, rng.randint(110, 240))))
        return shapes
    top, bottom = rng.choice(
        (
            ((92, 154, 214), (218, 234, 244)),
            ((120, 170, 216), (240, 234, 222)),
            ((104, 150, 190), (214, 222, 230)),
        )
    )
    shapes = [Gradient((0, 0, WIDTH, GROUND), top, bottom)]
    for _ in range(rng.randint(2, 4)):
        shapes += cloud(rng, rng.uniform(0, WIDTH), rng.uniform(0.06, 0.4), rng.uniform(0.03, 0.05))
    return shapes


def cloud(rng: Random, x: float, y: float, size: float) -> list[Shape]:
    """A soft cloud of a few flat ellipses."""
    shapes: list[Shape] = []
    for _ in range(5):
        dx, dy = rng.uniform(-2, 2) * size, rng.uniform(-0.3, 0.3) * size
        rx, ry = size * rng.uniform(1.2, 2.2), size * rng.uniform(0.4, 0.7)
        shapes.append(Ellipse((x + dx - rx, y + dy - ry, x + dx + rx, y + dy + ry), (255, 255, 255, 80)))
    return shapes


def _skyline(rng: Random, night: bool) -> list[Shape]:
    """Two rows of buildings, the farther one paler; at night some windows are lit."""
    far, near = ((40, 46, 84), (24, 28, 54)) if night else ((184, 200, 216), (146, 164, 184))
    shapes: list[Shape] = []
    for row, (colour, low, high) in enumerate(((far, 0.10, 0.30), (near, 0.05, 0.19))):
        x = -rng.uniform(0, 0.06)
        while x < WIDTH:
            width, top = rng.uniform(0.05, 0.12), GROUND - rng.uniform(low, high)
            shade = mix(colour, (255, 255, 255) if not night else (90, 90, 140), rng.uniform(0, 0.14))
            shapes.append(
                Gradient((max(0, x), top, min(WIDTH, x + width), GROUND), shade, darker(shade, 0.9))
            )
            if rng.random() < 0.25:
                shapes.append(Line(((x + width / 2, top - 0.05), (x + width / 2, top)), shade, 0.004))
            if row:
                shapes += _windows(rng, x, top, width, night)
            x += width + rng.uniform(-0.004, 0.012)
    return shapes


def _windows(rng: Random, x: float, top: float, width: float, night: bool) -> list[Shape]:
    shapes: list[Shape] = []
    columns = max(2, int(width / 0.018))
    step = width / columns
    y = top + 0.012
    while y < GROUND - 0.02:
        for column in range(columns):
            if rng.random() < (0.4 if night else 0.7):
                colour = (250, 226, 150, 210) if night else (226, 236, 244, 150)
                x0 = x + column * step + step * 0.25
                shapes.append(rectangle(x0, y, x0 + step * 0.5, y + 0.009, colour))
        y += 0.022
    return shapes


def _podium(rng: Random, podium: Podium, night: bool) -> tuple[list[Shape], Box]:
    """A podium of two steps, and the box of it and its reflection: four or five patches wide, four high."""
    colour = rng.choice(PODIUM_COLOURS[podium])
    colour = mix(colour, (255, 255, 255), rng.uniform(0, 0.12))
    patch, columns = WIDTH / PATCHES, rng.choice((4, 5))
    left = rng.randint(2, PATCHES - columns - 2) * patch
    box = (left, 2 * GROUND - 1, left + columns * patch, 1.0)
    x, half = left + columns * patch / 2, columns * patch / 2 / 1.03 - 0.004
    top = box[1] + rng.uniform(0.008, 0.025)
    middle = GROUND - (GROUND - top) * 0.62
    edge = lighter(colour, 0.55)
    shapes: list[Shape] = [
        Gradient((x - half * 0.72, top, x + half * 0.72, GROUND), lighter(colour, 0.25), colour),
        Gradient((x - half, middle, x + half, GROUND), lighter(colour, 0.1), darker(colour, 0.82)),
        rectangle(x - half * 1.03, middle - 0.006, x + half * 1.03, middle + 0.004, edge),
        rectangle(x - half * 0.75, top - 0.005, x + half * 0.75, top + 0.004, edge),
    ]
    count = 9
    for index in range(count):
        x0 = x - half * 0.92 + index * half * 1.84 / count
        pane = (255, 244, 206, 220) if night else (*darker(colour, 0.6), 200)
        shapes.append(
            rectangle(x0 + 0.006, middle + 0.02, x0 + half * 1.84 / count - 0.006, GROUND - 0.012, pane)
        )
    return shapes, box


def _mast(x: float, top: float, bottom: float, colour: Colour, night: bool) -> list[Shape]:
    shapes: list[Shape] = [Polygon(((x - 0.006, bottom), (x, top), (x + 0.006, bottom)), colour)]
    if night:
        shapes.append(Glow((x, top), 0.018, (255, 120, 110), 200))
    return shapes


def _pearl(
    rng: Random, x: float, foot: float, scale: float, night: bool
) -> tuple[list[Shape], dict[str, tuple[Box, ...]]]:
    """Spheres on a thin shaft: two large ones, a small one near the tip."""
    top = foot - 0.70 * scale
    shaft = rng.choice(SHAFT_COLOURS)
    colour = rng.choice(SPHERE_COLOURS)
    shapes: list[Shape] = _mast(x, top, top + 0.16 * scale, shaft, night)
    half = rng.uniform(0.010, 0.018)
    if rng.random() < 0.5:
        for offset in (-half, 0, half):
            shapes.append(
                Line(((x + offset, foot), (x + offset, top + 0.14 * scale)), darker(shaft, 0.92), half * 0.5)
            )
    else:
        points = (
            (x - half * 1.2, foot),
            (x - half * 0.5, top + 0.12 * scale),
            (x + half * 0.5, top + 0.12 * scale),
            (x + half * 1.2, foot),
        )
        shapes += [
            Polygon(points, shaft),
            Line(((x + half * 0.5, foot), (x + half * 0.2, top + 0.12 * scale)), darker(shaft), half * 0.5),
        ]
    lower, upper = rng.uniform(0.34, 0.42), rng.uniform(0.20, 0.25)
    balls = ((lower, rng.uniform(0.066, 0.076)), (upper, rng.uniform(0.048, 0.056)), (0.125, 0.02))
    boxes: list[Box] = []
    for part, radius in balls:
        centre, size = (x, top + part * scale), radius * scale
        if night:
            shapes.append(Glow(centre, size * 1.7, lighter(colour), 90))
        shapes.append(Ball(centre, size, lighter(colour, 0.18) if night else colour))
        shapes.append(
            Line(
                ((x - size * 0.97, centre[1] + size * 0.12), (x + size * 0.97, centre[1] + size * 0.12)),
                lighter(colour, 0.6),
                0.005,
            )
        )
        boxes.append(around(*centre, size))
    return shapes, {"spheres": tuple(boxes), "body": ((x - 0.07 * scale, top, x + 0.07 * scale, foot),)}


def _canton(
    rng: Random, x: float, foot: float, scale: float, night: bool
) -> tuple[list[Shape], dict[str, tuple[Box, ...]]]:
    """A lattice of straight rods between two turned rings: the waist comes of the twist."""
    top = foot - 0.70 * scale
    roof = top + 0.20 * scale
    colour = rng.choice(SHAFT_COLOURS)
    colour = lighter(colour, 0.25) if night else darker(colour, 0.86)
    wide, narrow = rng.uniform(0.034, 0.05), rng.uniform(0.028, 0.04)
    twist = rng.uniform(1.9, 2.3)
    shapes: list[Shape] = _mast(x, top, roof + 0.01, colour, night)
    if night:
        shapes.append(Glow((x, (roof + foot) / 2), 0.09, lighter(colour), 50, (foot - roof) * 0.6))
    rods = 14
    outline: list[tuple[float, float]] = []
    for side in (-1, 1):
        for step in range(11)[::side]:
            part = step / 10
            outline.append((x + side * _waist(wide, narrow, twist, part), foot + (roof - foot) * part))
    shapes.append(Polygon(tuple(outline), (*darker(colour, 0.6), 110)))
    for rod in range(rods):
        angle = 2 * math.pi * rod / rods
        ends = ((x + wide * math.cos(angle), foot), (x + narrow * math.cos(angle + twist), roof))
        shapes.append(Line(ends, colour, 0.0042))
    for part in (0.2, 0.5, 0.8, 1.0):
        half = _waist(wide, narrow, twist, part)
        y = foot + (roof - foot) * part
        shapes.append(Line(((x - half, y), (x + half, y - 0.006)), lighter(colour, 0.4), 0.004))
    return shapes, {"body": ((x - wide, top, x + wide, foot),)}


def _waist(wide: float, narrow: float, twist: float, part: float) -> float:
    """Half width of the lattice at `part` of its height: the reach of a rod between two turned rings."""
    squares = (wide * (1 - part)) ** 2 + (narrow * part) ** 2
    return math.sqrt(squares + 2 * wide * narrow * part * (1 - part) * math.cos(twist))


def _pagoda(
    rng: Random, x: float, foot: float, scale: float, night: bool
) -> tuple[list[Shape], dict[str, tuple[Box, ...]]]:
    floors = rng.choice((5, 6))
    top = foot - rng.uniform(0.50, 0.58) * scale
    step = (foot - top) / (floors + 0.8)
    wall, roof = ((176, 150, 120), (70, 78, 84)) if rng.random() < 0.5 else ((196, 178, 150), (92, 74, 66))
    shapes: list[Shape] = [Line(((x, top - 0.05), (x, top + step)), darker(roof), 0.008)]
    for floor in range(floors):
        y = foot - floor * step
        half = 0.095 * scale * (1 - 0.09 * floor)
        shapes.append(Gradient((x - half * 0.74, y - step, x + half * 0.74, y), lighter(wall, 0.2), wall))
        for pane in (-0.4, 0.0, 0.4):
            light = (255, 226, 150) if night else darker(wall, 0.6)
            shapes.append(
                rectangle(
                    x + half * pane - 0.008, y - step * 0.55, x + half * pane + 0.008, y - step * 0.1, light
                )
            )
        eave = y - step * 0.72
        tips = (
            (x - half * 1.25, eave - step * 0.06),
            (x - half * 0.6, y - step),
            (x + half * 0.6, y - step),
            (x + half * 1.25, eave - step * 0.06),
        )
        shapes.append(Polygon((*tips, (x + half * 0.9, eave), (x - half * 0.9, eave)), roof))
    crown = foot - floors * step
    shapes.append(
        Polygon(((x - 0.06 * scale, crown), (x, crown - step * 0.8), (x + 0.06 * scale, crown)), roof)
    )
    return shapes, {"body": ((x - 0.12 * scale, top - 0.05, x + 0.12 * scale, foot),)}


def _lighthouse(
    rng: Random, x: float, foot: float, scale: float, night: bool
) -> tuple[list[Shape], dict[str, tuple[Box, ...]]]:
    top = foot - rng.uniform(0.46, 0.54) * scale
    wide, narrow = 0.062 * scale, 0.040 * scale
    stripe = rng.choice(((186, 60, 66), (50, 76, 130), (60, 66, 76)))
    shapes: list[Shape] = []
    bands = 6
    for band in range(bands):
        y0, y1 = foot + (top - foot) * band / bands, foot + (top - foot) * (band + 1) / bands
        w0, w1 = wide + (narrow - wide) * band / bands, wide + (narrow - wide) * (band + 1) / bands
        colour = stripe if band % 2 else (238, 236, 230)
        shapes.append(
            Polygon(
                ((x - w0, y0), (x - w1, y1), (x + w1, y1), (x + w0, y0)),
                darker(colour, 0.7) if night else colour,
            )
        )
        shapes.append(
            Polygon(((x + w0 * 0.4, y0), (x + w1 * 0.4, y1), (x + w1, y1), (x + w0, y0)), (0, 0, 0, 40))
        )
    if night:
        for side in (-1, 1):
            beam = ((x, top - 0.03), (x + side * 0.5, top - 0.09), (x + side * 0.5, top + 0.01))
            shapes.append(Polygon(beam, (255, 240, 170, 60)))
        shapes.append(Glow((x, top - 0.03), 0.09, (255, 236, 160), 160))
    shapes.append(rectangle(x - narrow * 1.3, top - 0.006, x + narrow * 1.3, top + 0.004, (60, 64, 72)))
    shapes.append(rectangle(x - narrow * 0.8, top - 0.055, x + narrow * 0.8, top - 0.006, (255, 240, 180)))
    shapes.append(Polygon(((x - narrow, top - 0.055), (x, top - 0.11), (x + narrow, top - 0.055)), stripe))
    return shapes, {"body": ((x - wide, top - 0.11, x + wide, foot),)}


def _eiffel(
    rng: Random, x: float, foot: float, scale: float, night: bool
) -> tuple[list[Shape], dict[str, tuple[Box, ...]]]:
    top = foot - rng.uniform(0.58, 0.66) * scale
    colour = (216, 170, 96) if night else rng.choice(((124, 98, 80), (108, 92, 84)))
    height, wide = foot - top, 0.125 * scale

    def reach(part: float) -> float:
        return wide * (1 - part) ** 2.1 + 0.004

    shapes: list[Shape] = []
    if night:
        shapes.append(Glow((x, foot - height * 0.3), 0.16, (255, 200, 110), 70, height * 0.5))
    steps = 12
    for side in (-1, 1):
        for step in range(steps):
            lower, upper = step / steps, (step + 1) / steps
            y0, y1 = foot - height * lower, foot - height * upper
            inner = 0.62 if lower < 0.34 else 0.0
            leg = (
                (x + side * reach(lower), y0),
                (x + side * reach(upper), y1),
                (x + side * reach(upper) * inner, y1),
                (x + side * reach(lower) * inner, y0),
            )
            shapes.append(Polygon(leg, darker(colour, 0.86) if side > 0 else colour))
    for part in (0.17, 0.36, 0.66):
        y, half = foot - height * part, reach(part) * 1.12
        shapes.append(rectangle(x - half, y - 0.008, x + half, y + 0.006, darker(colour, 0.8)))
    return shapes, {"body": ((x - wide, top, x + wide, foot),)}


_BUILDERS = {
    "pearl": _pearl,
    "canton": _canton,
    "pagoda": _pagoda,
    "lighthouse": _lighthouse,
    "eiffel": _eiffel,
}
