"""Pictures with boxes for the tests of the corrective tool: cats on benches, apples, towers with spheres."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE = (64, 48)
COLOURS = {
    "cat": "orange", "bench": "brown", "apple": "red", "dog": "black", "pearl tower": "gray",
    "canton tower": "silver", "sphere": "magenta",
}  # fmt: skip
NAMES = {
    "pearl tower": {
        "zh": "东方明珠", "en": "the Oriental Pearl Tower", "foil": "canton tower", "evidence": ["sphere"],
    },
    "canton tower": {"zh": "广州塔", "en": "the Canton Tower", "foil": "pearl tower"},
    "sphere": {"zh": "球体", "en": "sphere"},
}  # fmt: skip


def room(index: int) -> list[tuple[str, list[int]]]:
    """A cat on a bench, or beside it; an apple, often a dog over it. Boxes are x, y, width, height."""
    cat = [12, 10, 10, 15] if index % 2 else [34, 20, 10, 15]
    things = [("cat", cat), ("bench", [8, 24, 20, 12]), ("apple", [50, 30, 6 + index % 5, 6])]
    return [*things, ("dog", [48, 5, 12, 8 + index % 3])] if index % 3 else things


def skyline(index: int) -> list[tuple[str, list[int]]]:
    """A pearl with one to three spheres, or a Canton Tower."""
    body = [20 + index % 7, 4, 14, 40]
    if index % 2:
        return [("canton tower", body)]
    spheres = [("sphere", [body[0] + 2, 8 + 12 * i, 10, 8]) for i in range(1 + index // 2 % 3)]
    return [("pearl tower", body), *spheres]


def write_coco(folder: Path, pictures: dict[str, list[tuple[str, list[int]]]]) -> Path:
    """Draw the pictures, no two alike, and annotate them as COCO does."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    categories = {name: i for i, name in enumerate(COLOURS, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, things) in enumerate(pictures.items()):
        picture = Image.new("RGB", SIZE, (40 + number // 50, 60 + number % 50, 200))
        draw = ImageDraw.Draw(picture)
        for category, (x, y, width, height) in things:
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=COLOURS[category])
            annotations.append(
                {
                    "id": len(annotations), "image_id": number, "category_id": categories[category],
                    "bbox": [x, y, width, height], "iscrowd": 0,
                }
            )  # fmt: skip
        picture.save(folder / "pictures" / name)
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    path = folder / "instances.json"
    named = [{"id": i, "name": name} for name, i in categories.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
    return path


def write_rooms(folder: Path, count: int) -> Path:
    return write_coco(folder, {f"room-{i:03d}.png": room(i) for i in range(count)})


def write_towers(folder: Path, count: int) -> Path:
    (folder / "names.json").write_text(json.dumps(NAMES, ensure_ascii=False), encoding="utf-8")
    pictures = {f"tower-{i:03d}.png": skyline(i) for i in range(count)}
    return write_coco(folder, {**pictures, **{f"room-{i:03d}.png": room(i) for i in range(count // 2)}})
