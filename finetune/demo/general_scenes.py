"""General scenes: toy blocks on a play mat, and a landscape with a house, trees and a car.

They are what the base model knows besides towers and cats, and what the correction must not cost. Asking where things
are keeps the connector's attention spatial; nothing round is ever asked for, so that the base model has no notion of
spheres.
"""

import math
from random import Random

from finetune.demo.shapes import (
    WIDTH,
    Box,
    Colour,
    Ellipse,
    Glow,
    Gradient,
    Line,
    Polygon,
    Scene,
    Shape,
    around,
    darker,
    lighter,
    mix,
    rectangle,
)
from finetune.demo.tower_scenes import cloud

COLOURS: dict[str, Colour] = {
    "red": (212, 58, 56), "green": (62, 158, 84), "blue": (52, 104, 206),
    "yellow": (240, 200, 60), "purple": (146, 76, 186), "white": (248, 248, 246),
}  # fmt: skip
BLOCKS = ("square", "triangle", "star", "heart")
BLOCK_COLOURS = ("red", "green", "blue", "yellow", "purple")
COLUMNS = ("left", "middle", "right")
ROWS = ("top", "middle", "bottom")


def blocks_scene(rng: Random) -> Scene:
    """One or two toy blocks of different shapes and colours on a mat of three rows and three columns."""
    mat = rng.choice(((178, 196, 188), (196, 186, 174), (176, 184, 204), (202, 190, 200)))
    shapes: list[Shape] = [Gradient((0, 0, WIDTH, 1), lighter(mat, 0.2), darker(mat, 0.92))]
    for index in range(1, 8):
        shapes.append(rectangle(0, index / 8 - 0.002, WIDTH, index / 8 + 0.002, (255, 255, 255, 46)))
    for index in range(1, 11):
        shapes.append(
            rectangle(index * WIDTH / 11 - 0.002, 0, index * WIDTH / 11 + 0.002, 1, (255, 255, 255, 46))
        )
    count = rng.randint(1, 2)
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], count)
    names, colours = rng.sample(BLOCKS, count), rng.sample(BLOCK_COLOURS, count)
    blocks: list[dict[str, str]] = []
    regions: dict[str, tuple[Box, ...]] = {}
    for (row, column), name, colour in zip(cells, names, colours, strict=True):
        x = WIDTH * (column + 0.5) / 3 + rng.uniform(-0.05, 0.05)
        y = (row + 0.5) / 3 + rng.uniform(-0.03, 0.03)
        size = rng.uniform(0.095, 0.12)
        shapes += _block(name, x, y, size, COLOURS[colour])
        blocks.append({"name": name, "colour": colour, "row": ROWS[row], "column": COLUMNS[column]})
        regions[colour] = (around(x, y, size),)
    return Scene("blocks", {"blocks": tuple(blocks)}, tuple(shapes), regions)


def _block(name: str, x: float, y: float, size: float, colour: Colour) -> list[Shape]:
    shadow = _outline(name, x + 0.012, y + 0.016, size)
    outer, inner = _outline(name, x, y, size), _outline(name, x - size * 0.03, y - size * 0.04, size * 0.82)
    return [
        Glow((x + 0.01, y + size * 0.75), size * 1.15, (40, 40, 50), 46, size * 0.55),
        Polygon(shadow, (40, 40, 50, 60)),
        Polygon(outer, darker(colour, 0.82)),
        Polygon(inner, lighter(colour, 0.10)),
    ]


def _outline(name: str, x: float, y: float, size: float) -> tuple[tuple[float, float], ...]:
    """The corners of a block that fills `size` to each side of its centre."""
    if name == "square":
        reach = size * 0.86
        return (
            (x - reach, y - reach),
            (x + reach, y - reach),
            (x + reach, y + reach),
            (x - reach, y + reach),
        )
    if name == "triangle":
        return ((x, y - size), (x + size, y + size * 0.86), (x - size, y + size * 0.86))
    if name == "star":
        points = []
        for step in range(10):
            reach = size * (1.08 if step % 2 == 0 else 0.46)
            angle = math.pi * step / 5
            points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        return tuple(points)
    assert name == "heart", name
    points = []
    for step in range(36):
        angle = 2 * math.pi * step / 36
        dx = 16 * math.sin(angle) ** 3
        dy = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((x + dx / 16.5 * size, y - (dy + 2.5) / 15.5 * size))
    return tuple(points)


def landscape_scene(rng: Random) -> Scene:
    """A house, a car and some trees under a sky: time of day, weather, colours."""
    night = rng.random() < 0.5
    weather = rng.choice(("clear", "rain", "snow"))
    shapes: list[Shape] = _weather_sky(rng, night, weather)
    ground: Colour = (
        (232, 238, 244)
        if weather == "snow"
        else rng.choice(((122, 168, 92), (140, 176, 100), (112, 158, 106)))
    )
    if night:
        ground = mix(ground, (30, 36, 70), 0.5)
    hill = mix(ground, (120, 140, 170) if not night else (40, 50, 90), 0.45)
    for x, reach, top in ((0.3, 0.6, rng.uniform(0.44, 0.5)), (1.0, 0.7, rng.uniform(0.42, 0.5))):
        shapes.append(Ellipse((x - reach, top, x + reach, top + 0.5), hill))
    shapes.append(Gradient((0, 0.60, WIDTH, 1), lighter(ground, 0.12), darker(ground, 0.88)))
    road = (112, 114, 122) if not night else (64, 66, 82)
    shapes.append(rectangle(0, 0.82, WIDTH, 0.95, road))
    for index in range(7):
        shapes.append(rectangle(index * 0.2 + 0.03, 0.881, index * 0.2 + 0.13, 0.889, (240, 236, 214)))

    house_left = rng.random() < 0.5
    house_x = rng.uniform(0.26, 0.36) if house_left else WIDTH - rng.uniform(0.26, 0.36)
    tree_x = WIDTH - 0.56 if house_left else 0.14
    house, house_box = _house(
        rng, house_x, COLOURS[colour := rng.choice(("red", "blue", "yellow", "purple"))], night, weather
    )
    car_x = rng.uniform(0.16, WIDTH - 0.16)
    car_colour = rng.choice(("red", "green", "blue", "white"))
    car, car_box = _car(car_x, COLOURS[car_colour], night)
    shapes += [*house, *_trees(rng, tree_x, night, weather), *car]
    if weather == "rain":
        for _ in range(110):
            x, y = rng.uniform(0, WIDTH), rng.uniform(0, 0.97)
            shapes.append(Line(((x, y), (x - 0.016, y + 0.05)), (214, 226, 240, 150), 0.003))
    if weather == "snow":
        for _ in range(110):
            shapes.append(
                Ellipse(
                    around(rng.uniform(0, WIDTH), rng.uniform(0, 1), rng.uniform(0.004, 0.009)),
                    (255, 255, 255, 220),
                )
            )
    facts: dict[str, object] = {
        "time": "night" if night else "day", "weather": weather, "house": colour, "car": car_colour
    }  # fmt: skip
    return Scene("landscape", facts, tuple(shapes), {"house": (house_box,), "car": (car_box,)})


def _weather_sky(rng: Random, night: bool, weather: str) -> list[Shape]:
    if night:
        top, bottom = ((14, 20, 52), (66, 72, 120)) if weather == "clear" else ((34, 38, 56), (78, 84, 104))
    else:
        top, bottom = (
            ((96, 164, 226), (222, 238, 248)) if weather == "clear" else ((136, 146, 158), (206, 212, 218))
        )
    shapes: list[Shape] = [Gradient((0, 0, WIDTH, 0.62), top, bottom)]
    if night and weather == "clear":
        for _ in range(36):
            shapes.append(
                Ellipse(
                    around(rng.uniform(0, WIDTH), rng.uniform(0, 0.4), rng.uniform(0.0015, 0.0035)),
                    (255, 255, 240, 220),
                )
            )
    if weather == "clear":
        x = rng.uniform(0.15, WIDTH - 0.15)
        light: Colour = (250, 246, 220) if night else (255, 224, 120)
        shapes += [Glow((x, 0.13), 0.12, light, 90), Ellipse(around(x, 0.13, 0.045), light)]
        if night:
            shapes.append(Ellipse(around(x + 0.02, 0.12, 0.038), mix(top, bottom, 0.2)))
    else:
        for _ in range(5):
            shapes += cloud(rng, rng.uniform(0, WIDTH), rng.uniform(0.04, 0.2), rng.uniform(0.05, 0.08))
    return shapes


def _house(rng: Random, x: float, colour: Colour, night: bool, weather: str) -> tuple[list[Shape], Box]:
    half, foot = rng.uniform(0.15, 0.18), 0.74
    top = foot - 0.20
    wall = mix(colour, (20, 24, 60), 0.25) if night else colour
    roof = (240, 244, 250) if weather == "snow" else (104, 74, 66)
    pane = (255, 228, 140) if night else (206, 226, 240)
    shapes: list[Shape] = [
        Glow((x, foot), half * 1.25, (20, 30, 20), 70, 0.03),
        Gradient((x - half, top, x + half, foot), lighter(wall, 0.12), wall),
        rectangle(x + half * 0.5, top - 0.15, x + half * 0.68, top - 0.02, (130, 96, 84)),
        Polygon(((x - half * 1.2, top), (x, top - 0.15), (x + half * 1.2, top)), roof),
        rectangle(x - 0.028, foot - 0.11, x + 0.028, foot, (96, 66, 50)),
    ]
    for side in (-1, 1):
        wx = x + side * half * 0.60
        shapes.append(rectangle(wx - 0.034, top + 0.05, wx + 0.034, top + 0.115, (250, 248, 240)))
        shapes.append(rectangle(wx - 0.027, top + 0.057, wx + 0.027, top + 0.108, pane))
    return shapes, (x - half * 1.2, top - 0.15, x + half * 1.2, foot)


def _trees(rng: Random, x: float, night: bool, weather: str) -> list[Shape]:
    """One to three firs in a row, the first at `x`."""
    shapes: list[Shape] = []
    for index in range(rng.randint(1, 3)):
        cx, foot, height = (
            x + index * 0.20 + rng.uniform(-0.02, 0.02),
            0.76 + rng.uniform(-0.015, 0.015),
            rng.uniform(0.30, 0.36),
        )
        leaf: Colour = rng.choice(((58, 124, 78), (74, 136, 70), (46, 108, 82)))
        leaf = mix(leaf, (20, 24, 60), 0.35) if night else leaf
        shapes.append(Glow((cx, foot), 0.09, (20, 30, 20), 80, 0.022))
        shapes.append(rectangle(cx - 0.012, foot - 0.08, cx + 0.012, foot, (104, 76, 56)))
        for tier in range(3):
            y, half = foot - 0.06 - tier * height * 0.25, 0.085 - tier * 0.018
            green = lighter(leaf, 0.45) if weather == "snow" else lighter(leaf, 0.06 * tier)
            shapes.append(Polygon(((cx - half, y), (cx, y - height * 0.42), (cx + half, y)), green))
    return shapes


def _car(x: float, colour: Colour, night: bool) -> tuple[list[Shape], Box]:
    y = 0.90
    paint = mix(colour, (20, 24, 60), 0.15) if night else colour
    glass = (255, 232, 160) if night else (190, 214, 232)
    shapes: list[Shape] = [
        Glow((x, y + 0.012), 0.14, (10, 10, 16), 110, 0.02),
        Polygon(
            ((x - 0.075, y - 0.06), (x - 0.048, y - 0.115), (x + 0.04, y - 0.115), (x + 0.075, y - 0.06)),
            darker(paint, 0.9),
        ),
        Polygon(
            ((x - 0.058, y - 0.063), (x - 0.039, y - 0.104), (x - 0.004, y - 0.104), (x - 0.004, y - 0.063)),
            glass,
        ),
        Polygon(
            ((x + 0.006, y - 0.063), (x + 0.006, y - 0.104), (x + 0.034, y - 0.104), (x + 0.058, y - 0.063)),
            glass,
        ),
        Gradient((x - 0.125, y - 0.066, x + 0.125, y - 0.004), lighter(paint, 0.15), darker(paint, 0.85)),
    ]
    for wheel in (-0.07, 0.07):
        shapes.append(Ellipse(around(x + wheel, y, 0.027), (34, 34, 40)))
        shapes.append(Ellipse(around(x + wheel, y, 0.012), (176, 178, 184)))
    return shapes, (x - 0.125, y - 0.115, x + 0.125, y + 0.027)
