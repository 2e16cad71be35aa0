"""Boxes and categories from COCO annotations or Qwen-VL data with <ref> and <box>, checked against the pictures.

A box that does not fit its picture is a fault: if the picture was resized or rotated after annotation, samples and
probes would point to the wrong places.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune import fields
from finetune.corrective.category_names import listed, load_json
from finetune.corrective.scenes import AnnotatedBox, Box, Scene, absent_in, digest_of, merged
from finetune.fields import NULL, Kind, whole
from finetune.samples import source
from finetune.samples.box_numbers import BoxUnits, looks_like_fractions
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import open_image
from finetune.samples.workers import in_chunks

OnBadPicture = Literal["error", "drop"]

_ARTICLE = re.compile(r"^(?:the|an?) (?=\S)", re.IGNORECASE)
_MOST_LABELS_SHOWN = 10

SLACK_PIXELS = 1.0
"""COCO's own boxes extend up to a pixel outside the picture through rounding; they are clipped."""


class _Annotated(NamedTuple):
    """A picture as annotated, before its file is opened.

    where    its name in faults
    size     width and height as annotated; None if not given
    things   category and box x0 y0 x1 y1 in pixels, each with its name in faults
    crowds   categories of which more may be there than things
    absent   categories that are known not to be there; None: all that are neither things nor crowds
    faults   of the annotation, before the picture is opened
    unsure   categories that may be there or not, by what cannot be relied on
    """

    image: Path
    where: str
    size: tuple[int, int] | None
    things: tuple[tuple[str, AnnotatedBox], ...]
    crowds: frozenset[str]
    faults: tuple[str, ...]
    absent: frozenset[str] | None = None
    unsure: frozenset[str] = frozenset()


def read_scenes(
    path: Path,
    images: Path,
    *,
    named: Collection[str] = (),
    box_units: BoxUnits | None = None,
    on_bad_picture: OnBadPicture = "error",
    say: Callable[[str], None] = print,
) -> list[Scene]:
    """The pictures with boxes in an annotation file, in its order, copies of one as one, with their sizes and digests.

    images           folder that picture file names are relative to
    named            categories of --names: a label of these is read as it is written there
    box_units        unit of bbox_2d and objects.bbox, if the file is training data that has them
    on_bad_picture   "drop" leaves out and reports every picture with a fault

    Raises ValueError listing every fault: entry, what was found, what was expected.
    """
    # Conversations are lists, JSON Lines or parquet; only COCO's file is one object.
    content = load_json(path) if path.suffix == ".json" else None
    if isinstance(content, dict):
        annotated = list(_coco(content, path, images, say))
    else:
        annotated = list(_markup(path, images, box_units, on_bad_picture, say))
    del content
    scenes, faults = _checked(_one_a_file(_by_category(annotated, path, named, say)))
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


NOT_THERE, MORE_OF_IT = "neg_category_ids", "not_exhaustive_category_ids"
"""Of LVIS's pictures (Gupta, Dollár & Girshick, CVPR 2019): in no other way is known what is not there, and of these
categories not every thing has a box."""


def _coco(
    content: Mapping[str, Any], path: Path, images: Path, say: Callable[[str], None]
) -> Iterator[_Annotated]:
    """{"images": [{"id", "file_name"}], "categories": [{"id", "name"}], "annotations": [{"image_id", "bbox", ...}]}"""
    pictures = _entries(content, "images", ("id", "file_name"), {"id": ID, "file_name": WORDS}, path)
    categories = _entries(content, "categories", ("id", "name"), {"id": ID, "name": WORDS}, path)
    annotations = _entries(
        content, "annotations", ("image_id", "category_id", "bbox"), {"image_id": ID}, path
    )
    if repeated := [*_repeated("images", pictures), *_repeated("categories", categories)]:
        raise ValueError(listed(path, repeated))
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
    federated = any(NOT_THERE in entry for entry in pictures)
    if federated:
        told = sum(bool(entry.get(NOT_THERE)) for entry in pictures)
        say(
            f"{path}: what is not in a picture is taken from {NOT_THERE}, which {told} of {len(pictures)} have"
        )
    if more := sum(bool(entry.get(MORE_OF_IT)) for entry in pictures):
        say(
            f"{path}: {more} picture(s) have {MORE_OF_IT}: of these categories there may be more than has boxes"
        )
    if ignored := sum(bool(entry.get("ignore")) for entry in annotations):
        say(f"{path}: {ignored} annotation(s) to be ignored are read as crowds")
    for index, entry in enumerate(pictures):
        where = f"images[{index}] (id {entry['id']!r}, {entry['file_name']!r})"
        yield _coco_picture(entry, where, of_picture[entry["id"]], names, images, federated=federated)


def _is_id(value: Any) -> bool:
    return (isinstance(value, int | str) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


ID = Kind("a whole number or text", _is_id)
WORDS = Kind("text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
PIXELS = {"width": whole(1) | NULL, "height": whole(1) | NULL}


def _entries(
    content: Mapping[str, Any], key: str, keys: Sequence[str], shape: fields.Shape, path: Path
) -> list[Mapping[str, Any]]:
    """The entries of a list in COCO's file: each has all ``keys``, and fields as ``shape`` says."""
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path}: {key}: found {'none' if not entries else type(entries).__name__}, expected a list; COCO's file "
            "has images, categories and annotations (a list of conversations with <box> is read too)"
        )
    faults: list[str] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(one not in entry for one in keys):
            faults.append(f"{key}[{index}]: expected an object with {', '.join(keys)}, found {entry!r:.80}")
        else:
            faults += fields.faults(entry, shape, at=f"{key}[{index}].")
    if faults:
        raise ValueError(listed(path, faults))
    return entries


def _repeated(key: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Ids that an earlier entry has: of which of the two an annotation speaks cannot be known."""
    first: dict[Any, int] = {}
    for index, entry in enumerate(entries):
        before = first.setdefault(entry["id"], index)
        if before != index:
            yield (
                f"{key}[{index}].id: found {entry['id']!r}, the id of {key}[{before}], expected one of its own; "
                "number entries anew where files are put together"
            )


def _coco_picture(
    entry: Mapping[str, Any],
    where: str,
    boxes: Sequence[tuple[str, Mapping[str, Any]]],
    names: Mapping[Any, str],
    images: Path,
    *,
    federated: bool,
) -> _Annotated:
    things, crowds, faults = [], set(), []
    for at, box in boxes:
        category = names.get(box["category_id"]) if _is_id(box["category_id"]) else None
        numbers = box["bbox"]
        if category is None:
            ids = ", ".join(map(repr, list(names)[:20]))  # not sorted: text and numbers have no order
            faults.append(
                f"{at}.category_id: found {box['category_id']!r}, expected one of categories ({ids})"
            )
        elif not isinstance(numbers, list) or len(numbers) != 4 or not all(map(_is_number, numbers)):
            faults.append(f"{at}.bbox: found {numbers!r:.80}, expected four numbers x, y, width, height")
        elif box.get("iscrowd") or box.get("ignore"):
            crowds.add(category)
        else:
            x, y, width, height = numbers
            things.append((f"{at}.bbox", AnnotatedBox(category, (x, y, x + width, y + height))))
    absent, more = (_categories_in(entry, key, where, names, faults) for key in (NOT_THERE, MORE_OF_IT))
    image, size = images / entry["file_name"], None
    if wrong := list(fields.faults(entry, PIXELS, at=f"{where}.")):
        faults += wrong
    elif entry.get("width") is not None and entry.get("height") is not None:
        size = (int(entry["width"]), int(entry["height"]))
    return _Annotated(
        image,
        where,
        size,
        tuple(things),
        frozenset(crowds | more),
        tuple(faults),
        absent if federated else None,
    )


def _categories_in(
    entry: Mapping[str, Any], key: str, where: str, names: Mapping[Any, str], faults: list[str]
) -> frozenset[str]:
    """The categories that a picture lists under a key; what is no list of their ids is added to ``faults``."""
    ids = entry.get(key) or []
    if not isinstance(ids, list) or not all(_is_id(one) and one in names for one in ids):
        faults.append(f"{where}.{key}: found {ids!r:.80}, expected a list of ids of categories")
        return frozenset()
    return frozenset(names[one] for one in ids)


def _is_number(value: Any) -> bool:
    # The bound leaves out NaN, infinity and whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


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
    """``<ref>the cat</ref><box>(10,20),(500,900)</box>`` in any turn: one entry for each mark, labelled "the cat".

    Not of answers that are not trained on, which may be wrong: what they name beside other boxes may be there or not.
    """

    def where_of(one: Conversation) -> str:
        return one.source.removeprefix(f"{path}: ")

    conversations = source.read(
        path,
        image_folder=images,
        box_units=box_units,
        on_bad_sample="drop" if on_bad_picture == "drop" else "error",
        say=say,
    )
    annotated, untrained = set[Path](), list[_Annotated]()
    for one in conversations:
        refs = one.images
        for turn in one.turns:
            boxes = [part for part in turn.parts if isinstance(part, BoxRef) and part.boxes]
            boxes = [part for part in boxes if part.key != "point_2d"]
            if turn.role == "assistant" and not turn.trained:
                untrained += [_unsure(refs[box.image], box, where_of(one)) for box in boxes]
                continue
            for box in boxes:
                annotated.add(refs[box.image].path)
                yield _marked(refs[box.image], box, where_of(one))
    yield from (one for one in untrained if one.image in annotated)
    if untrained:
        say(
            f"{path}: {len(untrained)} box(es) in answers that are not trained on (weight 0) are not read; whether "
            "what they name is there is not asked"
        )
    if not annotated:
        raise ValueError(f"{path}: found no <ref>...</ref><box>...</box> in any conversation, expected boxes")


def _unsure(ref: ImageRef, box: BoxRef, where: str) -> _Annotated:
    """What a box names, of which is not known whether it is there."""
    named = frozenset({box.label}) if box.label is not None and box.label.strip() else frozenset[str]()
    return _Annotated(ref.path, where, None, (), frozenset(), (), unsure=named)


def _marked(ref: ImageRef, box: BoxRef, where: str) -> _Annotated:
    assert ref.size_pixels is not None
    entry = _Annotated(ref.path, where, None, (), frozenset(), ())
    if ref.data is not None:
        fault = "the picture is embedded in the data, expected a file that the new data can point to"
        return entry._replace(faults=(f"{where}: {fault}",))
    if box.label is None or not box.label.strip():
        fault = f"found the box {box.written!r:.80} without a name, expected <ref>name</ref> before it"
        return entry._replace(faults=(f"{where}: {fault}",))
    width, height = ref.size_pixels
    things = (
        AnnotatedBox(box.label, (x0 * width, y0 * height, x1 * width, y1 * height))
        for x0, y0, x1, y1 in box.boxes
    )
    return entry._replace(things=tuple((where, thing) for thing in things))


# ---------------------------------------------------------------------------------------------------------------------
# Labels → categories
# ---------------------------------------------------------------------------------------------------------------------


def _by_category(
    annotated: Sequence[_Annotated], path: Path, named: Collection[str], say: Callable[[str], None]
) -> Iterator[_Annotated]:
    """The pictures with categories for labels: were "the cat" and "cat" two, each would be absent beside the other."""
    labels = {
        label
        for one in annotated
        for label in (
            *one.crowds,
            *(one.absent or ()),
            *one.unsure,
            *(thing.category for _, thing in one.things),
        )
    }
    categories = _categories(labels, named)
    if changed := _changed(categories):
        say(f"{path}: {changed}")
    for one in annotated:
        things = tuple(
            (where, thing._replace(category=categories[thing.category])) for where, thing in one.things
        )
        yield one._replace(
            things=things,
            crowds=frozenset(categories[label] for label in one.crowds),
            absent=None if one.absent is None else frozenset(categories[label] for label in one.absent),
            unsure=frozenset(categories[label] for label in one.unsure),
        )


def _categories(labels: Collection[str], named: Collection[str]) -> dict[str, str]:
    """The category of each label.

    "the cat", " cat" and "Cat" beside them → "cat"; "TV" alone stays "TV", and a label of ``named`` what it is there.
    """
    plain = {label: _category(label, named) for label in labels}
    spellings: dict[str, set[str]] = defaultdict(set)
    for one in (*plain.values(), *named):
        spellings[one.casefold()].add(one)

    def joined(one: str) -> str:
        alike = spellings[one.casefold()]
        if one in named or len(alike) == 1:
            return one
        given = alike.intersection(named)
        return given.pop() if len(given) == 1 else one.casefold()

    return {label: joined(one) for label, one in plain.items()}


def _category(label: str, named: Collection[str]) -> str:
    """A label without its article, and with single spaces."""
    if label in named:
        return label
    words = " ".join(label.split())
    if words.casefold() in {one.casefold() for one in named}:
        return words
    return _ARTICLE.sub("", words)


def _changed(categories: Mapping[str, str]) -> str:
    """``labels are read as categories: 'Cat', 'cat', 'the cat' as cat; ' dog' as dog``; empty where nothing changed."""
    written: dict[str, list[str]] = defaultdict(list)
    for label, category in sorted(categories.items()):
        written[category].append(repr(label))
    shown = [
        f"{', '.join(labels)} as {category}"
        for category, labels in sorted(written.items())
        if labels != [repr(category)]
    ]
    if not shown:
        return ""
    more = f" and {len(shown) - _MOST_LABELS_SHOWN:,} more" if len(shown) > _MOST_LABELS_SHOWN else ""
    return f"labels are read as categories: {'; '.join(shown[:_MOST_LABELS_SHOWN])}{more}"


# ---------------------------------------------------------------------------------------------------------------------
# One entry a file
# ---------------------------------------------------------------------------------------------------------------------


def _one_a_file(annotated: Iterable[_Annotated]) -> list[_Annotated]:
    """Every file once, with all that is annotated of it and each box once, however often they are listed."""
    place = functools.cache(_place)
    of_file: dict[str, list[_Annotated]] = defaultdict(list)
    for one in annotated:
        of_file[place(one.image)].append(one)
    return [_together(several) for several in of_file.values()]


def _place(image: Path) -> str:
    try:
        return os.path.realpath(image)
    except ValueError:  # a name that no file can have: it is reported when the file is looked for
        return str(image)


def _together(several: Sequence[_Annotated]) -> _Annotated:
    where: dict[AnnotatedBox, str] = {}
    for at, thing in (one for entry in several for one in entry.things):
        where.setdefault(thing, at)
    faults = [fault for one in several for fault in one.faults]
    sized = [one for one in several if one.size is not None]
    for one in sized[1:]:
        if one.size != sized[0].size:
            faults.append(
                f"{one.where}: found {_by(one.size)} pixels, but {sized[0].where} is the same file and has "
                f"{_by(sized[0].size)}; correct or delete one of them"
            )
    return several[0]._replace(
        size=sized[0].size if sized else None,
        things=tuple((at, thing) for thing, at in where.items()),
        crowds=frozenset().union(*(one.crowds for one in several)),
        absent=absent_in([one.absent for one in several]),
        unsure=frozenset().union(*(one.unsure for one in several)),
        faults=tuple(faults),
    )


def _by(size: tuple[int, int] | None) -> str:
    assert size is not None
    return f"{size[0]} × {size[1]}"


# ---------------------------------------------------------------------------------------------------------------------
# Against the pictures
# ---------------------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A picture held against its file. With faults its scene lacks things; without a file there is none."""

    where: str
    scene: Scene | None
    faults: list[str]


def _checked(annotated: Sequence[_Annotated]) -> tuple[list[Scene], list[str]]:
    """The pictures with boxes and without faults, copies as one, and all faults."""
    worth = [one for one in annotated if one.things or one.crowds or one.faults]

    def work(chunk: range) -> list[_Found]:
        return [_check(worth[index]) for index in chunk]

    found = [
        one
        for _, part in in_chunks(work, len(worth), workers=None, doing="checking pictures")
        for one in part
    ]
    faults = [fault for one in found for fault in one.faults]
    copies: dict[str, list[_Found]] = defaultdict(list)
    for one in found:
        if one.scene is not None:
            copies[one.scene.digest].append(one)
    scenes = []
    for several in copies.values():
        if broken := next((one for one in several if one.faults), None):
            # Left alone, it would be asked whether it has what the broken entry names.
            faults += [
                f"{one.where}: the same picture as {broken.where}, which has a fault"
                for one in several
                if not one.faults
            ]
        else:
            scenes.append(merged([one.scene for one in several if one.scene is not None]))
    return scenes, faults


def _check(annotated: _Annotated) -> _Found:
    where, faults = annotated.where, list(annotated.faults)
    if not annotated.image.is_file():
        fault = f"{where}: no such picture {str(annotated.image)!r}; see --images"
        return _Found(where, None, [*faults, fault])
    try:
        picture = open_image(annotated.image)
    except ValueError as error:
        return _Found(where, None, [*faults, f"{where}: {error}"])
    things, more = _inside(annotated, picture.size)
    scene = Scene(
        annotated.image,
        picture.size,
        things,
        annotated.crowds,
        digest_of(picture),
        annotated.absent,
        annotated.unsure,
    )
    return _Found(where, scene, [*faults, *more])


def _inside(annotated: _Annotated, size: tuple[int, int]) -> tuple[tuple[AnnotatedBox, ...], list[str]]:
    """The things whose boxes fit a picture of this size, clipped to it, and the faults of the others."""
    if annotated.size is not None and annotated.size != size:
        turned = tuple(reversed(annotated.size)) == size
        how = "it was annotated in another orientation" if turned else "it was resized after it was annotated"
        found = f"{_by(size)} pixels, annotated as {_by(annotated.size)}"
        return (), [
            f"{annotated.where}: found {found}; {how}, so its boxes do not fit: use the original picture"
        ]
    things, faults = [], []
    for where, thing in annotated.things:
        box = _cut(thing.box, size)
        if box is None:
            faults.append(
                f"{where}: found x0, y0, x1, y1 = {_numbers(thing.box)}, expected a box inside {annotated.image.name} "
                f"({size[0]} × {size[1]} pixels)"
            )
        elif looks_like_fractions(thing.box, size):
            faults.append(
                f"{where}: found x0, y0, x1, y1 = {_numbers(thing.box)}, which looks like fractions of the picture, "
                f"expected pixels; multiply x by {size[0]} and y by {size[1]} ({annotated.image.name})"
            )
        else:
            things.append(AnnotatedBox(thing.category, box))
    return tuple(things), faults


def _numbers(box: Box) -> str:
    return ", ".join(f"{value:g}" for value in box)


def _cut(box: Box, size: tuple[int, int]) -> Box | None:
    """The box clipped to the picture; None if it is empty, or extends outside by more than rounding."""
    x0, y0, x1, y1 = box
    if min(x0, y0) < -SLACK_PIXELS or x1 > size[0] + SLACK_PIXELS or y1 > size[1] + SLACK_PIXELS:
        return None
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1])))
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None
