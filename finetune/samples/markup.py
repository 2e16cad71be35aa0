"""Qwen-VL's markup: ``<ref>``, ``<box>``, ``<quad>`` and ``<img>`` in text; boxes in thousandths of the picture.

InternVL's boxes are read too: the same tags, with the numbers as lists.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

_PARTS = re.compile(r"<(img|ref|box|quad)>(.*?)</\1>", re.DOTALL)
_NUMBER = r"\s*\d{1,4}\s*"  # a broken model may generate thousands of digits
_CORNERS = rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_BOX = rf"<box>\s*(?:{_CORNERS}|\[\s*{_LIST}(?:\s*,\s*{_LIST})*\s*\])\s*</box>"
_BOXES = re.compile(rf"(?:<ref>(?P<ref>(?:(?!</?ref>).)*)</ref>)?\s*(?P<boxes>(?:{_BOX})+)", re.DOTALL)
THOUSANDTHS = 1000
_COLOURS = ("#e4572e", "#17bebb", "#ffc914", "#2e86ab", "#76b041", "#a23b72", "#f18f01", "#3b1f2b")


class Box(NamedTuple):
    """A box in text: corners in [0, 1000], thousandths of the picture; ``ref`` is the phrase it belongs to."""

    x0: int
    y0: int
    x1: int
    y1: int
    ref: str | None = None

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Corners in pixels of a picture of this size."""
        return (
            self.x0 * width / THOUSANDTHS,
            self.y0 * height / THOUSANDTHS,
            self.x1 * width / THOUSANDTHS,
            self.y1 * height / THOUSANDTHS,
        )

    @classmethod
    def from_pixels(cls, box: Sequence[float], width: int, height: int, ref: str | None = None) -> "Box":
        """Thousandths from pixels x0 y0 x1 y1, clipped to [0, 999].

        Worked example: (112, 0, 224, 100) in a 448 × 200 picture → (250, 0, 500, 500).
        """
        sizes = (width, height, width, height)
        scaled = (
            min(max(int(v * THOUSANDTHS / size), 0), THOUSANDTHS - 1)
            for v, size in zip(box, sizes, strict=True)
        )
        x0, y0, x1, y1 = scaled
        return cls(x0, y0, x1, y1, ref)

    def to_markup(self) -> str:
        ref = "" if self.ref is None else f"<ref>{self.ref}</ref>"
        return f"{ref}<box>({self.x0},{self.y0}),({self.x1},{self.y1})</box>"


def parse_boxes(text: str) -> list[Box]:
    """Every box in the text, with the phrase before it if there is one; a phrase may have several boxes.

    ``<box>(1,2),(3,4)</box>`` as Qwen-VL writes it, ``<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>`` as InternVL does. What
    reaches beyond the picture is no box in thousandths.
    """
    return [
        Box(x0, y0, x1, y1, match["ref"])
        for match in _BOXES.finditer(text)
        for box in re.findall(_BOX, match["boxes"])
        for x0, y0, x1, y1 in _corners(box)
    ]


def _corners(box: str) -> list[list[int]]:
    """The boxes of one ``<box>``, which are drawn together or not at all."""
    numbers = [int(number) for number in re.findall(r"\d+", box)]
    if max(numbers) > THOUSANDTHS:
        return []
    return [numbers[at : at + 4] for at in range(0, len(numbers), 4)]


def draw_boxes(image: Image.Image, text: str, *, font: Any = None) -> Image.Image:
    """A copy of the picture with the text's boxes drawn on it, labelled with their phrases."""
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    line = max(2, round(min(image.size) / 150))
    colours: dict[str | None, str] = {}
    for box in parse_boxes(text):
        colour = colours.setdefault(box.ref, _COLOURS[len(colours) % len(_COLOURS)])
        x0, y0, x1, y1 = box.to_pixels(*image.size)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=line)
        if box.ref:
            corner = (min(x0, x1) + line, min(y0, y1) + line)
            draw.rectangle(draw.textbbox(corner, box.ref, font=font), fill="black")  # readable on any picture
            draw.text(corner, box.ref, fill=colour, font=font)
    return drawn


def from_list_format(items: Sequence[dict[str, Any]]) -> str:
    """[{"image": "a.jpg"}, {"text": "find "}, {"ref": "the dog", "box": [[1,2,3,4]]}] → text with markup.

    Raises ValueError naming an item without a known key.
    """
    text, n_images = "", 0
    for number, item in enumerate(items):
        if "image" in item:
            n_images += 1
            text += f"Picture {n_images}: <img>{item['image']}</img>\n"
        elif "text" in item:
            text += str(item["text"])
        elif "box" in item:
            text += f"<ref>{item['ref']}</ref>" if "ref" in item else ""
            text += "".join(Box(x0, y0, x1, y1).to_markup() for x0, y0, x1, y1 in item["box"])
        else:
            raise ValueError(
                f"item {number}: found keys {sorted(item)}, expected one of image, text, box (with ref)"
            )
    return text


def to_list_format(text: str) -> list[dict[str, str]]:
    """Text with markup → its parts, in order."""
    parts: list[dict[str, str]] = []
    start = 0
    for match in _PARTS.finditer(text):
        if match.start() > start:
            parts.append({"text": text[start : match.start()]})
        parts.append({{"img": "image"}.get(match[1], match[1]): match[2]})
        start = match.end()
    if start < len(text):
        parts.append({"text": text[start:]})
    return parts
