"""Boxes in the texts of a conversation: markup, JSON or placeholders → ``BoxRef``, in fractions of the picture.

    <ref>the dog</ref><box>(250,0),(500,500)</box>       thousandths of the picture, always (Qwen-VL)
    <|object_ref_start|>the dog<|object_ref_end|><|box_start|>(250,0),(500,500)<|box_end|>    the same (Qwen2-VL)
    <ref>the dog</ref><box>[[250, 0, 500, 500]]</box>    the same (InternVL)
    {"bbox_2d": [112, 0, 224, 100], "label": "the dog"}  pixels or thousandths, as ``box_units`` says; so is "bbox"
    {"point_2d": [112, 50], "label": "the dog"}          a point, the same; <|box_start|>(250,250)<|box_end|> is one too
    <ref-object><bbox> beside objects: {"ref": ["the dog"], "bbox": [[112, 0, 224, 100]]}    the same
    {"bbox_2d": <bbox>, "label": "<ref-object>"} beside the same objects (ms-swift's grounding data)

In a picture of 448 × 200, each of these boxes is (0.25, 0, 0.5, 0.5). Pixels refer to the upright picture, as
a person sees it. Text between boxes stays text, so a list of JSON objects keeps its brackets and commas.
``<quad>`` stays text, which Qwen-VL reads and other families refuse. A phrase marked without a box,
``<ref>the dog</ref>``, is a ``BoxRef`` without boxes.

This markup is recognised in questions and answers; each family then gets it in its own control tokens. A backslash
before it keeps it as text: ``\\<|box_start|>``. In a system turn it is always text.

A box belongs to the picture that ``"image": 0`` or ``objects.image_id: [0]`` names, counted from 0; else to the
only picture of the conversation; else to the last one before the box.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

from finetune.fields import TwiceError, each_once
from finetune.samples.box_numbers import BoxUnits, fractions, point_fractions
from finetune.samples.conversation import BoxKey, BoxRef, ImageRef, Part, Turn, VideoRef
from finetune.samples.formats.look_at import look_at
from finetune.samples.formats.record import Record, Spoken, a_kind, joined

THOUSANDTHS = 1000
MOST_BRACES = 200  # opening braces before a key that are tried as the start of its object
_NUMBER = r"\s*(-?\d{1,15})\s*"
_POINT = rf"\({_NUMBER},{_NUMBER}\)"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"


class _Markup(NamedTuple):
    """A markup for boxes.

    whole   phrase and boxes, groups "ref" and "boxes"
    one     the numbers of one box
    """

    style: str
    whole: re.Pattern[str]
    one: re.Pattern[str]


def _markup(style: str, ref: tuple[str, str], box: tuple[str, str], inside: str, one: str) -> _Markup:
    # Starts with a literal instead of an alternation: 30 times faster to search for.
    boxes = rf"{box[0]}\s*{inside}\s*<{box[1]}"
    phrase = rf"{ref[0]}(?P<ref>(?:(?!<{ref[0]}|<{ref[1]}).)*)<{ref[1]}"
    return _Markup(
        style,
        re.compile(
            rf"(?<!\\)<(?:{phrase}(?:\s*<(?P<boxes>{boxes}(?:<{boxes})*)|(?!\s*<{box[0]}))|(?P<alone>{boxes}(?:<{boxes})*))",
            re.DOTALL,
        ),
        re.compile(one),
    )


_MARKUPS = (
    _markup(
        "qwen-vl",
        ("ref>", "/ref>"),
        ("box>", "/box>"),
        rf"{_POINT}\s*,\s*{_POINT}",
        rf"{_POINT}\s*,\s*{_POINT}",
    ),
    _markup(
        "internvl", ("ref>", "/ref>"), ("box>", "/box>"), rf"\[\s*{_LIST}(?:\s*,\s*{_LIST})*\s*\]", _LIST
    ),
    _markup(
        "qwen2-vl",
        (r"\|object_ref_start\|>", r"\|object_ref_end\|>"),
        (r"\|box_start\|>", r"\|box_end\|>"),
        rf"{_POINT}(?:\s*,\s*{_POINT})?",
        rf"{_POINT}(?:\s*,\s*{_POINT})?",
    ),
)
_MARK = r"</?box>|<\|(?:box|object_ref|quad)_(?:start|end)\|>"
_LEFT_OVER = re.compile(rf"(?<!\\)(?:{_MARK})")
_WORD = re.compile(rf"\\({_MARK}|</?ref>|<bbox>|<ref-object>)")
_PLACEHOLDER = re.compile(r"(?<!\\)(?:(?:(?P<ref><ref-object>)\s*)?(?P<bbox><bbox>)|(?P<alone><ref-object>))")
# <bbox> as the value of a key, with or without brackets or quotes around it.
_VALUE = re.compile(r"""(?<=[{,])\s*(["'])(?P<key>[^"'{}]*)\1\s*:\s*["'\[\s]*(?P<bbox><bbox>)""")
_BOX_KEYS = "(?:bbox_2d|bbox|point_2d)"
# The key of a box right before a placeholder, in an object or not.
_BOX_KEY_BEFORE = re.compile(rf"""(?:["'“]{_BOX_KEYS}["'”]|bbox_2d|point_2d)\s*:\s*["'\[(\s]*$""")
# Not names of numbers, as in an instruction: {"bbox_2d": [x1, y1, x2, y2]}, [左上x, ...], ["x1", "y1", ...]. Nor
# placeholders, which are read apart.
_JSON_KEY = re.compile(
    rf""""({_BOX_KEYS})"\s*:(?!["\[\s]*<bbox>|\s*\[?\s*(?!NaN|Inf|null|true|false)[^\s\d\-+'"\[\](){{}}])"""
    r"""(?!\s*\[\s*"[^"]*[^\s\d.\-+"][^"]*"\s*,)"""
)
_NULL = "null".ljust(len("<bbox>"))  # JSON of the same length
_NUMBERS = r"[\[(\s]*(?:[A-Za-z_][\w.]*\(\s*)?[\[(\s]*[-+]?\.?\d"
# What would stay text with its numbers as they are: a Python dict, NumPy's numbers, JSON in JSON, typed quotes, a key
# without any, and Gemini's key.
_NO_JSON_KEY = re.compile(
    rf"""(?P<key>'{_BOX_KEYS}'|[“”‘’]{_BOX_KEYS}[“”‘’]|\\["']{_BOX_KEYS}\\["']|(?<![\w"'“”‘’\\])(?:bbox_2d|point_2d)"""
    rf"""|(?P<gemini>(?:\\?["'“‘])?(?<!\w)box_2d(?:\\?["'”’])?))\s*[:：]\s*(?=[\[(]|[A-Za-z_][\w.]*\(){_NUMBERS}"""
    rf"""|(?P<json>"{_BOX_KEYS}")\s*(?:：\s*{_NUMBERS}|:[\[(\s]*(?:[A-Za-z_][\w.]*\([\[(\s]*[-+]?\.?|\.)\d)"""
)
_JSON_KEYS = {"label", "image"}
_SIGNS = (
    "box>",
    "/ref>",
    "_2d",
    '"bbox"',
    "'bbox'",
    "<ref-object>",
    "box_start|>",
    "box_end|>",
    "object_ref_",
    "quad_",
)
"""A text without any of these has no box."""
_DECODER = json.JSONDecoder()
_EACH_ONCE = json.JSONDecoder(object_pairs_hook=each_once)


class _Found(NamedTuple):
    """A span of text and what it stands for."""

    start: int
    end: int
    part: str | BoxRef


def unescaped(text: str) -> str:
    """Words of marks that a backslash keeps as text: ``\\<box>`` → ``<box>``."""
    return _WORD.sub(r"\1", text)


def with_boxes(record: Record, spoken: Sequence[Spoken], units: BoxUnits | None) -> tuple[Turn, ...]:
    """The turns with boxes parsed out of user and assistant texts; problems become faults."""
    images = [part for turn in spoken for part in turn.parts if isinstance(part, ImageRef | VideoRef)]
    places = _Places(record, images, units)
    turns = []
    for turn in spoken:
        places.at = turn.text_at
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, str) and turn.role != "system":
                parts += places.split(part)
            else:
                places.seen += isinstance(part, ImageRef | VideoRef)
                parts.append(part)
        looks = look_at(record, turn, parts, images[: places.seen])
        turns.append(Turn(turn.role, joined(parts), turn.trained, looks))
    if not record.faults:
        places.objects.close()
    return tuple(turns)


class _Places:
    """Finds boxes in texts, and the picture that each belongs to.

    at     the field being read
    seen   number of pictures and videos before it
    """

    def __init__(self, record: Record, images: Sequence[ImageRef | VideoRef], units: BoxUnits | None) -> None:
        self.record, self.images, self.units = record, images, units
        self.objects = _Objects(record)
        self.at, self.seen = "", 0
        self.asked_for_units = False

    def split(self, text: str) -> Iterator[str | BoxRef]:
        """A text's words and boxes in reading order; joined as written, they are the text again."""
        if not any(sign in text for sign in _SIGNS):
            yield text
            return
        position = 0
        found_ones = [*self._marked(text), *self._json(text), *self._placeholders(text)]
        for found in sorted(found_ones, key=lambda one: one.start):
            if found.start < position:
                self.record.fault(
                    f"{self.at}: found a box inside another one's {text[found.start : found.end]!r:.80}"
                )
                continue
            if found.start > position:
                yield unescaped(text[position : found.start])
            if found.part != "":
                yield found.part
            position = found.end
        if position < len(text) or not text:
            yield unescaped(text[position:])

    def _marked(self, text: str) -> Iterator[_Found]:
        rest = text
        for markup in _MARKUPS:
            left, position = "", 0
            for match in markup.whole.finditer(rest):
                boxes = match["boxes"] or match["alone"]
                if boxes or self.images:  # a phrase refers to a picture; without one it is plain text
                    yield from self._markup(text, match, markup, boxes or "")
                    left += rest[position : match.start()] + " " * len(match[0])
                    position = match.end()
            rest = left + rest[position:]
        if (self.images and _LEFT_OVER.search(rest)) or "<box>" in rest or "</box>" in rest:
            self._left_over(rest)

    def _markup(self, text: str, match: re.Match[str], markup: _Markup, boxes: str) -> Iterator[_Found]:
        if not boxes:
            yield _Found(*match.span(), BoxRef(match[0], (), match["ref"], 0, markup.style))
            return
        numbers = [[int(one) for one in box if one] for box in markup.one.findall(boxes)]
        if len({len(one) for one in numbers}) > 1:
            self.record.fault(
                f"{self.at}: found points and boxes side by side in {match[0]!r:.80}, expected one kind"
            )
            return
        key: BoxKey = "point_2d" if len(numbers[0]) == 2 else "bbox_2d"
        yield from self._found(
            match.span(), text, numbers, "thousandths", match["ref"], None, markup.style, key
        )

    def _left_over(self, rest: str) -> None:
        found = _LEFT_OVER.search(rest)
        if found is None:
            return
        expected = {"<box>": "<box>(x0,y0),(x1,y1)</box>", "</box>": "<box>(x0,y0),(x1,y1)</box>"}.get(
            found[0],
            "<|box_start|>(x0,y0),(x1,y1)<|box_end|>, its phrase <|object_ref_start|>...<|object_ref_end|>",
        )
        self.record.fault(
            f"{self.at}: found a {found[0]} that is not written {expected}, in whole thousandths of the picture; to "
            f"keep it as text, put a backslash before it: \\{found[0]}"
        )

    def _json(self, text: str) -> Iterator[_Found]:
        if self.units == "text":
            return
        self._check_keys(text)
        end = 0
        for match in _JSON_KEY.finditer(text):
            key = cast(BoxKey, match[1])
            if not self.images and key != "bbox_2d":
                continue  # text about something else
            if match.start() < end:
                self.record.fault(
                    f"{self.at}: found {key} nested in or beside another one in one object, expected one object each"
                )
                continue
            try:
                found = _object_around(text, match.start(), end, key)
            except TwiceError as error:
                self.record.fault(f"{self.at}: {error}; keep one")
                continue
            if found is None:
                self.record.fault(
                    f"{self.at}: found {key} outside an object, expected "
                    f'{{"{key}": [{"x, y" if key == "point_2d" else "x0, y0, x1, y1"}], "label": ...}}'
                )
                continue
            start, end, content = found
            yield from self._json_object(text, start, end, content, key)

    def _check_keys(self, text: str) -> None:
        """A fault for the first box that is meant as JSON and is not read as such."""
        found = _NO_JSON_KEY.search(text) if self.images else None
        if found is None:
            return
        if found["gemini"]:
            said, remedy = (
                "Gemini's key for thousandths y0, x0, y1, x1",
                "exchange x and y, and write bbox_2d",
            )
        else:
            said, remedy = "which is no JSON", "write double quotes, as json.dumps does"
        self.record.fault(
            f"{self.at}: found {found['key'] or found[0]}, {said}, expected "
            f'{{"bbox_2d": [x0, y0, x1, y1], "label": ...}}; {remedy} (or give --box_units text to train the '
            "numbers as written)"
        )

    def _json_object(
        self, text: str, start: int, end: int, content: Mapping[str, Any], key: BoxKey
    ) -> Iterator[_Found]:
        label, numbers = content.get("label"), content[key]
        unknown = sorted(content.keys() - _JSON_KEYS - {key})
        if unknown:
            self.record.fault(
                f"{self.at}: found {', '.join(map(repr, unknown))} beside {key}, expected label and image alone; "
                "move anything else outside the object (or give --box_units text to train it as written)"
            )
        elif label is not None and not isinstance(label, str):
            self.record.fault(f"{self.at}: found {a_kind(label)} as the label of {key}, expected text")
        elif self._units_known(key):
            several = (
                isinstance(numbers, list) and bool(numbers) and all(isinstance(one, list) for one in numbers)
            )
            corners = numbers if several else [numbers]
            yield from self._found(
                (start, end), text, corners, self.units, label, content.get("image"), "json", key
            )

    def _placeholders(self, text: str) -> Iterator[_Found]:
        if "<bbox>" not in text and "<ref-object>" not in text:
            return
        objects = {start: (end, content, key) for start, end, content, key in self._objects_around(text)}
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            if match.start() < end:
                continue
            start = max((one for one in objects if one < match.start() < objects[one][0]), default=None)
            if start is not None:
                end, content, held_by = objects[start]
                if (filled := self._filled(content, held_by)) is not None:
                    yield from self._json_object(text, start, end, filled, held_by)
                continue
            if match["bbox"] and _is_a_value(text, match.start("bbox")):
                return self._misplaced(text[max(0, match.start() - 40) : match.end()].strip())
            label = self.objects.next_ref() if match["ref"] or match["alone"] else None
            if match["alone"]:
                if label is not None and not label.strip():
                    self.record.fault(
                        f"{self.at}: found an empty phrase in objects.ref for <ref-object>, expected text"
                    )
                yield _Found(*match.span(), label or "")
                continue
            box = self.objects.next_box()
            if box is not None and self._units_known("objects.bbox"):
                numbers, image = box
                key: BoxKey = "point_2d" if isinstance(numbers, list) and len(numbers) == 2 else "bbox_2d"
                yield from self._found(
                    match.span(), text, [numbers], self.units, label, image, "placeholder", key
                )

    def _objects_around(self, text: str) -> Iterator[tuple[int, int, Mapping[str, Any], BoxKey]]:
        """Start, end, content and key of each JSON object whose box is a placeholder, null in the content."""
        blank, end = text.replace("<bbox>", _NULL), 0
        for match in _VALUE.finditer(text):
            found = None
            if match["key"] in get_args(BoxKey):
                with contextlib.suppress(TwiceError):  # a fault where the object is read
                    found = _object_around(blank, match.start("key"), end, cast(BoxKey, match["key"]))
            if found is not None and found[2][match["key"]] is None:
                end = found[1]
                yield *found, cast(BoxKey, match["key"])

    def _misplaced(self, words: str) -> None:
        self.record.fault(
            f"{self.at}: found {words!r:.80}, expected <bbox> alone or as "
            '{"bbox_2d": <bbox>, "label": "<ref-object>"} (or bbox, point_2d), without quotes or brackets, '
            "one object for each box"
        )

    def _filled(self, content: Mapping[str, Any], key: BoxKey) -> Mapping[str, Any] | None:
        """An object with what its placeholders stand for, in place of them; None if no box is left."""
        filled, named = {**content}, content.get("image")
        if isinstance(label := content.get("label"), str):
            filled["label"] = re.sub("<ref-object>", lambda _: self.objects.next_ref() or "", label)
        box = self.objects.next_box()
        if box is None:
            return None
        filled[key], image = box
        if image is not None and named not in (None, image):
            self.record.fault(
                f"{self.at}: found picture {named!r} in an object whose box objects.image_id has in picture {image!r}, "
                "expected one of the two"
            )
        return filled if image is None else {**filled, "image": image}

    def _units_known(self, what: str) -> bool:
        if self.units is None and not self.asked_for_units:
            self.asked_for_units = True
            self.record.fault(
                f"{self.at}: {what} may be in pixels or in thousandths of the picture, and the data does not say "
                "which; "
                "give --box_units pixels or --box_units thousandths (or text, which trains the numbers as written)"
            )
        elif self.units == "text" and not self.asked_for_units:
            self.asked_for_units = True
            self.record.fault(
                f"{self.at}: found {what} with --box_units text, expected pixels or thousandths"
            )
        return self.units not in (None, "text")

    def _found(
        self,
        span: tuple[int, int],
        text: str,
        corners: Sequence[Any],
        units: BoxUnits | None,
        label: str | None,
        named: Any,
        style: str,
        key: BoxKey,
    ) -> Iterator[_Found]:
        """The box reference of a span of text, or its faults."""
        if label is not None:
            self.record.check_characters(label, self.at)
        image = self._image(named)
        if image is None:
            return
        if isinstance(self.images[image], VideoRef):
            return self.record.fault(
                f"{self.at}: found a box in a video, but boxes are only supported in pictures; write it as "
                "plain text"
            )
        size = (THOUSANDTHS, THOUSANDTHS) if units == "thousandths" else self.images[image].size_pixels
        if size is None:
            return  # the picture cannot be read, which is a fault already
        try:
            read = point_fractions if key == "point_2d" else fractions
            boxes = tuple(read(one, units, size) for one in corners)
        except ValueError as error:
            return self.record.fault(f"{self.at}: {error}")
        yield _Found(*span, BoxRef(text[slice(*span)], boxes, label, image, style, key))

    def _image(self, named: Any) -> int | None:
        """The place of a box's picture among pictures and videos: the one named, counted without videos, else the only
        one, else what stands before the box."""
        pictures = [place for place, one in enumerate(self.images) if not isinstance(one, VideoRef)]
        count = len(pictures)
        if not self.images:
            self.record.fault(f"{self.at}: found a box, but no picture in the conversation")
        elif named is not None and count:
            if isinstance(named, int) and not isinstance(named, bool) and 0 <= named < count:
                return pictures[named]
            beside = ", without videos" if count < len(self.images) else ""
            self.record.fault(
                f"{self.at}: found a box in picture {named!r}, expected 0 to {count - 1}, counted from 0{beside}"
            )
        elif count <= 1:
            return pictures[0] if pictures else 0
        elif self.seen:
            return self.seen - 1
        else:
            self.record.fault(
                f"{self.at}: found a box before the first of {count} pictures; say which it is in "
                '("image": 0, objects.image_id), or write it behind its picture'
            )
        return None


def _is_a_value(text: str, place: int) -> bool:
    """Whether the placeholder there stands where a box would make an object within an object, or no JSON: behind the
    key of a box, in a string, or anywhere in an object. A list of placeholders is one of boxes."""
    if _BOX_KEY_BEFORE.search(text, max(0, place - 40), place):
        return True
    blank = text.replace("<bbox>", _NULL)
    opening = max(text.rfind("{", 0, place), text.rfind("[", 0, place))
    for _ in itertools.repeat(None, MOST_BRACES):
        if opening < 0:
            break
        # As it is, JSON can hold a placeholder in a string alone.
        if _decoded_until(text, opening) > place or (
            text[opening] == "{" and _decoded_until(blank, opening) > place
        ):
            return True

        opening = max(text.rfind("{", 0, opening), text.rfind("[", 0, opening))
    return False


def _decoded_until(text: str, start: int) -> int:
    """The end of the JSON that begins there; 0 if none does."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return 0


def _object_around(
    text: str, key: int, begin: int, name: BoxKey
) -> tuple[int, int, Mapping[str, Any]] | None:
    """Start, end and content of the JSON object whose top level has the key ``name`` at position ``key``.

    Raises TwiceError for an object with a key twice: which of the two was meant?
    """
    start = text.rfind("{", begin, key)
    for _ in itertools.repeat(None, MOST_BRACES):
        if start < 0:
            return None
        try:
            content, end = _EACH_ONCE.raw_decode(text, start)
        except TwiceError:
            raise
        except (ValueError, RecursionError):  # a number with thousands of digits raises a ValueError too
            content, end = None, 0
        if isinstance(content, dict) and end > key:
            return (start, end, content) if name in content else None
        start = text.rfind("{", begin, start)
    return None


class _Objects:
    """``objects`` beside the conversation: phrases and boxes, assigned to placeholders in order."""

    def __init__(self, record: Record) -> None:
        self.record = record
        given = record.content.get("objects") if isinstance(record.content, Mapping) else None
        self.given = given if isinstance(given, Mapping) else {}
        if given is not None and not isinstance(given, Mapping):
            record.fault(f"objects: found {a_kind(given)}, expected an object with ref and bbox")
        for key in self.given.keys() - {"ref", "bbox", "image_id"}:
            record.fault(f"objects.{key}: is not read here, expected ref, bbox and image_id; see --box_units")
        self.refs, self.boxes, self.images = (self._list(key) for key in ("ref", "bbox", "image_id"))
        self.asked = {"ref": 0, "bbox": 0}

    def _list(self, key: str) -> list[Any]:
        found = self.given.get(key)
        if found is not None and not isinstance(found, list):
            self.record.fault(f"objects.{key}: found {a_kind(found)}, expected a list")
        return found if isinstance(found, list) else []

    def next_ref(self) -> str | None:
        index = self._next_index("ref")
        ref = self.refs[index] if index < len(self.refs) else None
        if ref is not None and not isinstance(ref, str):
            self.record.fault(f"objects.ref[{index}]: found {a_kind(ref)}, expected text")
            return None
        if ref is not None:
            self.record.check_characters(ref, f"objects.ref[{index}]")
        return ref

    def next_box(self) -> tuple[Any, int | None] | None:
        """Four numbers and the index of their picture, if given; None if no box is left."""
        index = self._next_index("bbox")
        if index >= len(self.boxes):
            return None
        return self.boxes[index], self.images[index] if index < len(self.images) else None

    def _next_index(self, key: str) -> int:
        self.asked[key] += 1
        return self.asked[key] - 1

    def close(self) -> None:
        """Records a fault if the text has more or fewer placeholders than there are phrases or boxes."""
        for key, placeholder, given in (("ref", "<ref-object>", self.refs), ("bbox", "<bbox>", self.boxes)):
            if self.asked[key] != len(given):
                self.record.fault(
                    f"objects.{key}: found {len(given)}, and {self.asked[key]} {placeholder} in the text, expected "
                    "one for each"
                )
        if self.images and len(self.images) != len(self.boxes):
            self.record.fault(
                f"objects.image_id: found {len(self.images)} for {len(self.boxes)} boxes, expected one for each"
            )
