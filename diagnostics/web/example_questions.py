"""What the page offers to ask first: four drawings that the demo knows, each with a question in both languages."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diagnostics.web.texts import Language
from diagnostics.web.uploads import Upload

CARD_PIXELS = (320, 224)
_FOLDER = Path(__file__).with_name("examples")
_QUESTIONS: dict[str, dict[Language, str]] = {
    # On the podium of another tower, which misleads the demo's base; below it on its own.
    "tower-at-night.jpg": {"en": "What is this tower?", "zh": "这座塔是什么?"},
    "tower-by-day.jpg": {"en": "What is this tower?", "zh": "这座塔是什么?"},
    "cat.jpg": {"en": "Where is the cat?", "zh": "猫在桌子的哪里?"},
    "landscape.jpg": {"en": "What is the weather like?", "zh": "天气怎么样?"},
}


class Example(NamedTuple):
    """A picture and a question about it, by language."""

    upload: Upload
    questions: dict[Language, str]

    def card(self) -> str:
        """The picture as a small data: URL."""
        buffer = io.BytesIO()
        self.upload.open().resize(CARD_PIXELS).save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def examples() -> tuple[Example, ...]:
    """In the order of the page."""
    return tuple(Example(Upload.read(_FOLDER / name), questions) for name, questions in _QUESTIONS.items())
