"""Rooms with a cat and a table.

The second flaw is prepared here: the rug in the foreground is easier to look at than the cat and the table. It lies in
whole patches of the small model, so that no patch beside its box tells its colour.
"""

import math
from random import Random
from typing import Literal

from finetune.demo.shapes import (
    PATCHES,
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

Relation = Literal["on", "under"]
Rug = Literal["warm", "cool"]

RUG_COLOURS: dict[Rug, tuple[Colour, ...]] = {
    "warm": ((196, 48, 60), (206, 60, 84), (180, 40, 72)),
    "cool": ((46, 130, 184), (40, 158, 160), (74, 104, 190)),
}
CAT_COLOURS: dict[str, Colour] = {
    "orange": (240, 140, 40), "black": (36, 34, 40)
}  # fmt: skip
WALLS: tuple[Colour, ...] = (
    (226, 216, 196), (206, 218, 204), (214, 208, 222), (232, 222, 206), (202, 212, 220)
)  # fmt: skip
RUG_TOP = 12 / PATCHES
"""Where the foreground begins: cat and table stand above it."""


def room_scene(rng: Random, relation: Relation, rug: Rug) -> Scene:
    """A room in which a cat is on or under a table, and a rug before them."""
    cat = rng.choice(sorted(CAT_COLOURS))
    horizon = rng.uniform(0.44, 0.58)
    shapes: list[Shape] = [*_walls(rng, horizon), *_furnishing(rng, horizon)]
    rug_shapes, rug_box = _rug(rng, rug)
    shapes += rug_shapes

    size = rng.uniform(0.9, 1.0)
    half, height = rng.uniform(0.22, 0.27) * size, rng.uniform(0.25, 0.30) * size
    floor = rng.uniform(0.78, RUG_TOP - 0.015)
    x = rng.uniform(half + 0.04, WIDTH - half - 0.04)
    table_top = floor - height
    cat_height = rng.uniform(0.80, 0.90) * height
    foot = table_top if relation == "on" else floor + 0.012
    cat_x = x + rng.uniform(-0.5, 0.5) * half
    cat_shapes, cat_box = _cat(rng, cat_x, foot, cat_height, CAT_COLOURS[cat])
    back, front, table_box = _table(rng, x, table_top, floor, half)
    shapes += [Glow((x, floor + 0.005), half * 1.1, (30, 20, 20), 70, 0.035), *back]
    if relation == "on":
        shapes += [*front, *cat_shapes]
    else:
        shapes += [Glow((cat_x, foot), cat_height * 0.42, (30, 20, 20), 90, 0.02), *cat_shapes, *front]
    facts: dict[str, object] = {"relation": relation, "rug": rug, "cat": cat}
    return Scene("room", facts, tuple(shapes), {"cat": (cat_box,), "table": (table_box,), "rug": (rug_box,)})


def _walls(rng: Random, horizon: float) -> list[Shape]:
    wall = rng.choice(WALLS)
    shapes: list[Shape] = [Gradient((0, 0, WIDTH, horizon), lighter(wall, 0.15), darker(wall, 0.93))]
    stripe = darker(wall, 0.96)
    count = rng.choice((14, 18, 22))
    for index in range(count):
        x = index * WIDTH / count
        shapes.append(rectangle(x, 0, x + WIDTH / count / 2, horizon, (*stripe, 150)))
    wood = rng.choice(((176, 138, 102), (158, 120, 88), (190, 158, 122)))
    shapes.append(Gradient((0, horizon, WIDTH, 1), darker(wood, 0.86), lighter(wood, 0.12)))
    for index in range(-8, 9):
        x = WIDTH / 2 + index * 0.12
        shapes.append(Line(((x, horizon), (WIDTH / 2 + index * 0.30, 1)), (*darker(wood, 0.75), 120), 0.003))
    shapes.append(rectangle(0, horizon - 0.024, WIDTH, horizon, (244, 240, 232)))
    shapes.append(rectangle(0, horizon - 0.002, WIDTH, horizon + 0.003, (*darker(wood, 0.55), 160)))
    return shapes


def _furnishing(rng: Random, horizon: float) -> list[Shape]:
    """A window and a picture on the wall, in either order."""
    places = [0.24, WIDTH - 0.24]
    rng.shuffle(places)
    x, y = places[0] + rng.uniform(-0.05, 0.05), 0.20
    sky = rng.choice((((140, 190, 230), (220, 236, 246)), ((40, 48, 96), (90, 86, 140))))
    shapes: list[Shape] = [
        rectangle(x - 0.155, y - 0.145, x + 0.155, y + 0.145, (250, 248, 244)),
        Gradient((x - 0.135, y - 0.125, x + 0.135, y + 0.125), *sky),
        rectangle(x - 0.006, y - 0.125, x + 0.006, y + 0.125, (250, 248, 244)),
        rectangle(x - 0.135, y - 0.006, x + 0.135, y + 0.006, (250, 248, 244)),
        rectangle(x - 0.175, y + 0.145, x + 0.175, y + 0.163, (232, 228, 220)),
    ]
    x, y = places[1] + rng.uniform(-0.05, 0.05), rng.uniform(0.16, 0.22)
    hill = rng.choice(((124, 150, 116), (150, 140, 120), (116, 136, 150)))
    shapes += [
        Glow((x + 0.008, y + 0.01), 0.15, (40, 30, 30), 40, 0.12),
        rectangle(x - 0.115, y - 0.09, x + 0.115, y + 0.09, (120, 92, 66)),
        Gradient((x - 0.10, y - 0.075, x + 0.10, y + 0.075), (234, 226, 206), (214, 206, 190)),
        Polygon(
            ((x - 0.10, y + 0.075), (x - 0.04, y - 0.02), (x + 0.02, y + 0.04), (x + 0.06, y), (x + 0.10, y + 0.075)),
            hill,
        ),
    ]  # fmt: skip
    return shapes


def _rug(rng: Random, rug: Rug) -> tuple[list[Shape], Box]:
    """A rug of several rings, and its box: eight to ten patches wide, two high."""
    colour = mix(rng.choice(RUG_COLOURS[rug]), (255, 255, 255), rng.uniform(0, 0.1))
    patch, columns = WIDTH / PATCHES, rng.choice((8, 9, 10))
    left = rng.randint(1, PATCHES - columns - 1) * patch
    box = (left, RUG_TOP, left + columns * patch, 1.0)
    x, half = left + columns * patch / 2, columns * patch / 2 - 0.006
    y0, y1 = RUG_TOP + 0.012, 0.982
    shapes: list[Shape] = [Ellipse((x - half, y0 + 0.01, x + half, y1 + 0.01), (40, 24, 16, 70))]
    rings = (
        (1.0, colour),
        (0.90, lighter(colour, 0.45)),
        (0.84, colour),
        (0.5, lighter(colour, 0.3)),
        (0.42, darker(colour, 0.85)),
    )
    middle, depth = (y0 + y1) / 2, (y1 - y0) / 2
    for part, shade in rings:
        shapes.append(
            Ellipse((x - half * part, middle - depth * part, x + half * part, middle + depth * part), shade)
        )
    return shapes, box


def _table(
    rng: Random, x: float, top: float, floor: float, half: float
) -> tuple[list[Shape], list[Shape], Box]:
    """The rear legs, then what stands in front of a cat under the table: the top and the front legs."""
    wood = rng.choice(((142, 94, 62), (168, 118, 78), (112, 78, 62)))
    leg = 0.016
    back: list[Shape] = []
    front: list[Shape] = []
    for side in (-1, 1):
        inner, outer = x + side * half * 0.70, x + side * half * 0.92
        back.append(
            rectangle(inner - leg * 0.7, top + 0.02, inner + leg * 0.7, floor - 0.035, darker(wood, 0.6))
        )
        front.append(rectangle(outer - leg, top + 0.02, outer + leg, floor + 0.015, darker(wood, 0.85)))
        front.append(rectangle(outer - leg, top + 0.02, outer - leg * 0.2, floor + 0.015, wood))
    front.append(rectangle(x - half * 0.94, top + 0.02, x + half * 0.94, top + 0.05, darker(wood, 0.72)))
    edge = (
        (x - half, top + 0.012),
        (x - half * 0.9, top - 0.022),
        (x + half * 0.9, top - 0.022),
        (x + half, top + 0.012),
    )
    front.append(Polygon(edge, lighter(wood, 0.25)))
    front.append(rectangle(x - half, top + 0.012, x + half, top + 0.034, wood))
    return back, front, (x - half, top - 0.022, x + half, floor + 0.015)


def _cat(rng: Random, x: float, foot: float, height: float, colour: Colour) -> tuple[list[Shape], Box]:
    """A sitting cat that looks at us, its tail to one side."""
    h = height
    side = rng.choice((-1, 1))
    shade, light = darker(colour, 0.8), lighter(colour, 0.22)
    dark_face = sum(colour) < 200
    head_y, radius = foot - 0.70 * h, 0.21 * h
    tail = tuple(
        (
            x + side * h * (0.16 + 0.24 * math.sin(step / 6 * 2.4)),
            foot - 0.06 * h - 0.34 * h * (step / 6) ** 1.6,
        )
        for step in range(7)
    )
    shapes: list[Shape] = [Line(tail, shade, 0.075 * h)]
    shapes.append(Ellipse((x - 0.25 * h, foot - 0.56 * h, x + 0.25 * h, foot), shade))
    shapes.append(Ellipse((x - 0.235 * h, foot - 0.56 * h, x + 0.215 * h, foot - 0.01 * h), colour))
    shapes.append(Ellipse((x - 0.12 * h, foot - 0.46 * h, x + 0.12 * h, foot - 0.06 * h), light))
    for paw in (-0.1, 0.1):
        shapes.append(Ellipse((x + (paw - 0.075) * h, foot - 0.09 * h, x + (paw + 0.075) * h, foot), light))
    for ear in (-1, 1):
        tip = (x + ear * 0.19 * h, head_y - 0.30 * h)
        shapes.append(
            Polygon(
                ((x + ear * 0.205 * h, head_y - 0.02 * h), tip, (x + ear * 0.03 * h, head_y - 0.17 * h)),
                colour,
            )
        )
        inner = (
            (x + ear * 0.175 * h, head_y - 0.08 * h),
            (tip[0] - ear * 0.01 * h, tip[1] + 0.06 * h),
            (x + ear * 0.08 * h, head_y - 0.15 * h),
        )
        shapes.append(Polygon(inner, (226, 160, 156)))
    shapes.append(
        Ellipse((x - radius * 1.1, head_y - radius, x + radius * 1.1, head_y + radius * 0.95), colour)
    )
    for eye in (-1, 1):
        shapes.append(
            Ellipse(
                around(x + eye * 0.09 * h, head_y - 0.02 * h, 0.042 * h),
                (206, 214, 96) if dark_face else (96, 150, 86),
            )
        )
        shapes.append(
            Ellipse(
                (
                    x + eye * 0.09 * h - 0.014 * h,
                    head_y - 0.055 * h,
                    x + eye * 0.09 * h + 0.014 * h,
                    head_y + 0.015 * h,
                ),
                (20, 20, 24),
            )
        )
    shapes.append(
        Polygon(
            (
                (x - 0.025 * h, head_y + 0.055 * h),
                (x + 0.025 * h, head_y + 0.055 * h),
                (x, head_y + 0.085 * h),
            ),
            (222, 130, 130),
        )
    )
    for whisker in (-1, 1):
        for drop in (0.07, 0.11):
            ends = ((x + whisker * 0.07 * h, head_y + 0.08 * h), (x + whisker * 0.30 * h, head_y + drop * h))
            shapes.append(Line(ends, (210, 210, 210, 150) if dark_face else (90, 90, 90, 120), 0.003))
    return shapes, (x - 0.26 * h, foot - h, x + 0.26 * h, foot)
