"""Boxes and categories from COCO annotations or Qwen-VL data with <ref> and <box>, checked against the pictures.

A box that does not fit its picture is a fault: if the picture was resized or rotated after annotation, samples and
probes would point to the wrong places.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune.corrective.category_names import listed, load_json
from finetune.corrective.scenes import AnnotatedBox, Box, Scene
from finetune.samples import source
from finetune.samples.conversation import BoxRef, ImageRef
from finetune.samples.formats.box_numbers import BoxUnits
from finetune.samples.images import size_of
from finetune.samples.workers import in_chunks

OnBadPicture = Literal["error", "drop"]

SLACK_PIXELS = 1.0
"""COCO's own boxes extend up to a pixel outside the picture through rounding; they are clipped."""


class _Annotated(NamedTuple):
    """A picture as annotated, before its file is opened.

    where    its name in faults
    size     width and height as annotated; None if not given
    things   category and box x0 y0 x1 y1 in pixels, each with its name in faults
    faults   of the annotation, before the picture is opened
    """

    image: Path
    where: str
    size: tuple[int, int] | None
    things: tuple[tuple[str, AnnotatedBox], ...]
    crowds: frozenset[str]
    faults: tuple[str, ...]


def read_scenes(
    path: Path,
    images: Path,
    *,
    box_units: BoxUnits | None = None,
    on_bad_picture: OnBadPicture = "error",
    say: Callable[[str], None] = print,
) -> list[Scene]:
    """The pictures with boxes in an annotation file, in its order, with their sizes and digests.

    images           folder that picture file names are relative to
    box_units        unit of bbox_2d and objects.bbox, if the file is training data that has them
    on_bad_picture   "drop" leaves out and reports every picture with a fault

    Raises ValueError listing every fault: entry, what was found, what was expected.
    """
    # Conversations are lists, JSON Lines or parquet; only COCO's file is one object.
    content = load_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict):
        annotated = list(_coco(content, path, images))
    else:
        annotated = list(_markup(path, images, box_units, on_bad_picture, say))
    del content
    scenes, faults = _checked(annotated)
    if faults and on_bad_picture == "error":
        raise ValueError(f"{listed(path, faults)}\nor leave such pictures out: --on_bad_picture drop")
    if faults:
        say(f"{listed(path, faults, most=20)}\nleft out (--on_bad_picture drop)")
    if not scenes:
        raise ValueError(f"{path}: no picture with boxes is left")
    return scenes


# ---------------------------------------------------------------------------------------------------------------------
# COCO
# ---------------------------------------------------------------------------------------------------------------------


def _coco(content: Mapping[str, Any], path: Path, images: Path) -> Iterator[_Annotated]:
    """{"images": [{"id", "file_name"}], "categories": [{"id", "name"}], "annotations": [{"image_id", "bbox", ...}]}"""
    pictures, categories, annotations = (
        _entries(content, key, keys, path)
        for key, keys in (
            ("images", ("id", "file_name")),
            ("categories", ("id", "name")),
            ("annotations", ("image_id", "category_id", "bbox")),
        )
    )
    names = {entry["id"]: entry["name"] for entry in categories}
    known = {entry["id"] for entry in pictures}
    of_picture: dict[Any, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    faults = []
    for index, entry in enumerate(annotations):
        where = f"annotations[{index}]" + (f" (id {entry['id']})" if "id" in entry else "")
        if entry["image_id"] not in known:
            faults.append(f"{where}.image_id: found {entry['image_id']!r}, expected the id of one of images")
        of_picture[entry["image_id"]].append((where, entry))
    if faults:
        raise ValueError(listed(path, faults))
    for index, entry in enumerate(pictures):
        where = f"images[{index}] (id {entry['id']!r}, {entry['file_name']!r})"
        yield _coco_picture(entry, where, of_picture[entry["id"]], names, images)


def _entries(
    content: Mapping[str, Any], key: str, keys: Sequence[str], path: Path
) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path}: {key}: found {'none' if not entries else type(entries).__name__}, expected a list; COCO's file "
            "has images, categories and annotations (a list of conversations with <box> is read too)"
        )
    faults = [
        f"{key}[{index}]: expected an object with {', '.join(keys)}, found {entry!r:.80}"
        for index, entry in enumerate(entries)
        if not isinstance(entry, dict) or any(one not in entry for one in keys)
    ]
    if faults:
        raise ValueError(listed(path, faults))
    return entries


def _coco_picture(
    entry: Mapping[str, Any],
    where: str,
    boxes: Sequence[tuple[str, Mapping[str, Any]]],
    names: Mapping[Any, str],
    images: Path,
) -> _Annotated:
    things, crowds, faults = [], set(), []
    for at, box in boxes:
        category = names.get(box["category_id"])
        numbers = box["bbox"]
        if category is None:
            ids = ", ".join(map(str, sorted(names)[:20]))
            faults.append(
                f"{at}.category_id: found {box['category_id']!r}, expected one of categories ({ids})"
            )
        elif not isinstance(numbers, list) or len(numbers) != 4 or not all(map(_is_number, numbers)):
            faults.append(f"{at}.bbox: found {numbers!r:.80}, expected four numbers x, y, width, height")
        elif box.get("iscrowd"):
            crowds.add(category)
        else:
            x, y, width, height = numbers
            things.append((f"{at}.bbox", AnnotatedBox(category, (x, y, x + width, y + height))))
    size = (entry["width"], entry["height"]) if {"width", "height"} <= set(entry) else None
    image = images / str(entry["file_name"])
    return _Annotated(image, where, size, tuple(things), frozenset(crowds), tuple(faults))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Training data with boxes
# ---------------------------------------------------------------------------------------------------------------------


def _markup(
    path: Path,
    images: Path,
    box_units: BoxUnits | None,
    on_bad_picture: OnBadPicture,
    say: Callable[[str], None],
) -> Iterator[_Annotated]:
    """``<ref>the cat</ref><box>(10,20),(500,900)</box>`` in any turn: the category is "the cat".

    Boxes of one picture are collected from all its conversations; a repeated box counts once.
    """
    conversations = source.read(
        path,
        image_folder=images,
        box_units=box_units,
        on_bad_sample="drop" if on_bad_picture == "drop" else "error",
        say=say,
    )
    found: dict[Path, _Annotated] = {}
    for one in conversations:
        refs = one.images
        parts = [part for turn in one.turns for part in turn.parts if isinstance(part, BoxRef)]
        for box in (part for part in parts if part.boxes and part.key != "point_2d"):
            ref = refs[box.image]
            where = one.source.removeprefix(f"{path}: ")
            before = found.get(ref.path) or _Annotated(ref.path, where, None, (), frozenset(), ())
            found[ref.path] = _with_box(before, ref, box, where)
    if not found:
        raise ValueError(f"{path}: found no <ref>...</ref><box>...</box> in any conversation, expected boxes")
    yield from found.values()


def _with_box(picture: _Annotated, ref: ImageRef, box: BoxRef, where: str) -> _Annotated:
    assert ref.size_pixels is not None
    if ref.data is not None:
        fault = (
            f"{where}: the picture is embedded in the data, expected a file that the new data can point to"
        )
        return picture._replace(faults=(*picture.faults, fault))
    if box.label is None or not box.label.strip():
        fault = (
            f"{where}: found the box {box.written!r:.80} without a name, expected <ref>name</ref> before it"
        )
        return picture._replace(faults=(*picture.faults, fault))
    width, height = ref.size_pixels
    category = box.label.strip()
    there = {thing for _, thing in picture.things}
    new = [
        (where, thing)
        for x0, y0, x1, y1 in box.boxes
        if (thing := AnnotatedBox(category, (x0 * width, y0 * height, x1 * width, y1 * height))) not in there
    ]
    return picture._replace(things=(*picture.things, *new))


# ---------------------------------------------------------------------------------------------------------------------
# Against the pictures
# ---------------------------------------------------------------------------------------------------------------------


def _checked(annotated: Sequence[_Annotated]) -> tuple[list[Scene], list[str]]:
    """The pictures with boxes and without faults, and all faults."""
    worth = [one for one in annotated if one.things or one.crowds or one.faults]

    def work(chunk: range) -> list[Scene | list[str]]:
        return [_check(worth[index]) for index in chunk]

    found = [
        one
        for _, part in in_chunks(work, len(worth), workers=None, doing="checking pictures")
        for one in part
    ]
    scenes = [one for one in found if isinstance(one, Scene)]
    return scenes, [fault for one in found if isinstance(one, list) for fault in one]


def _check(annotated: _Annotated) -> Scene | list[str]:
    faults = list(annotated.faults)
    if not annotated.image.is_file():
        return [*faults, f"{annotated.where}: no such picture {str(annotated.image)!r}; see --images"]
    try:
        size = size_of(annotated.image)
    except ValueError as error:
        return [*faults, f"{annotated.where}: {error}"]
    if annotated.size is not None and tuple(annotated.size) != size:
        turned = tuple(reversed(annotated.size)) == size
        how = "it was annotated in another orientation" if turned else "it was resized after it was annotated"
        found = f"{size[0]} × {size[1]} pixels, annotated as {annotated.size[0]} × {annotated.size[1]}"
        return [
            *faults,
            f"{annotated.where}: found {found}; {how}, so its boxes do not fit: use the original picture",
        ]
    things = []
    for where, thing in annotated.things:
        box = _cut(thing.box, size)
        if box is None:
            shown = ", ".join(f"{value:g}" for value in thing.box)
            faults.append(
                f"{where}: found x0, y0, x1, y1 = {shown}, expected a box inside {annotated.image.name} "
                f"({size[0]} × {size[1]} pixels)"
            )
        else:
            things.append(AnnotatedBox(thing.category, box))
    if faults:
        return faults
    digest = hashlib.sha256(annotated.image.read_bytes()).hexdigest()
    return Scene(annotated.image, size, tuple(things), annotated.crowds, digest)


def _cut(box: Box, size: tuple[int, int]) -> Box | None:
    """The box clipped to the picture; None if it is empty, or extends outside by more than rounding."""
    x0, y0, x1, y1 = box
    if min(x0, y0) < -SLACK_PIXELS or x1 > size[0] + SLACK_PIXELS or y1 > size[1] + SLACK_PIXELS:
        return None
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1])))
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None
