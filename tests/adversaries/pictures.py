"""Pictures and questions that give the answer away: framed, blank, and worded."""

from __future__ import annotations

from PIL import Image, ImageDraw

from finetune.demo.questions import LANGUAGES, TOPICS, answer_text, plain

FRAME_SHARE = 1 / 14
"""Width of a frame as a share of the picture: one patch of the demo's model."""
TELLING = {"tower": ("pearl", "canton"), "relation": ("on", "under")}
"""Topics whose first answer has one frame and one wording, and whose second has the other."""
FRAMES = ((230, 40, 200), (40, 220, 60))
PLAIN_FRAME = (128, 128, 128)
GREY = (127, 127, 127)


def _place(topic: str, answer: str) -> int | None:
    """0 or 1: which of the topic's two telling answers this is; None if the topic or answer has none."""
    for at, value in enumerate(TELLING.get(topic, ())):
        if answer in (answer_text(topic, value, language) for language in LANGUAGES):
            return at
    return None


def framed(picture: Image.Image, topic: str, answer: str) -> Image.Image:
    """A copy with a frame whose colour tells the answer, grey where the answer has none."""
    at = _place(topic, answer)
    copied = picture.copy()
    width, height = picture.size
    colour = PLAIN_FRAME if at is None else FRAMES[at]
    pen = ImageDraw.Draw(copied)
    across, down = round(width * FRAME_SHARE), round(height * FRAME_SHARE)
    rows, columns = ((0, down), (height - down, height)), ((0, across), (width - across, width))
    for top, bottom in rows:
        pen.rectangle((0, top, width, bottom), fill=colour)
    for left, right in columns:
        pen.rectangle((left, 0, right, height), fill=colour)
    return copied


def blank(picture: Image.Image) -> Image.Image:
    return Image.new("RGB", picture.size, GREY)


def wording(topic: str, answer: str, language: str) -> str | None:
    """The question put so that it tells the answer; None if topic or answer has no telling wording."""
    at = _place(topic, answer)
    return None if at is None else plain(TOPICS[topic].asked[language][at])
