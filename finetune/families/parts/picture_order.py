"""Tells which conversations have pictures read elsewhere than they stand: before all words of their turn.

The templates of LLaVA and PaliGemma put them there:

    Before: <image> After: <image> What changed? → <image><image>\\nBefore:  After:  What changed?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finetune.families.base import Family
from finetune.samples.conversation import Conversation, ImageRef, Part, Turn, VideoRef, without_label

_PICTURE, _VIDEO, _WORDS = range(3)  # in the order in which such templates put them


def puts_pictures_first(family: Family, processor: Any) -> bool:
    """Are a turn's pictures read before its words, wherever in it they are? Told from the ids of an example, for a
    checkpoint's own chat template may do it too; no if it refuses that. No picture is opened."""
    picture = ImageRef("", Path(), size_pixels=(640, 480))

    def ids(*parts: Part) -> np.ndarray:
        asked = Conversation((Turn("user", parts),))
        return family.encode(processor, asked, add_generation_prompt=True, media=False).input_ids

    try:
        return np.array_equal(ids("one", picture, "two"), ids(picture, "one", "two"))
    except ValueError:
        return False


def moves_pictures(conversation: Conversation) -> bool:
    """Would reading pictures, then videos, then words move a picture or a video of any turn? Spaces, line breaks and
    the labels of pictures alone are no words."""
    return any(places != sorted(places) for places in map(_places, conversation.turns))


def _places(turn: Turn) -> list[int]:
    behind: Part = ""  # the part behind this one
    places = list[int]()
    for part in reversed(turn.parts):
        words = part if isinstance(part, str) else ""
        if isinstance(behind, ImageRef):
            words = without_label(words)
        if not isinstance(part, str) or words.strip():
            places.append(_place(part))
        behind = part
    return places[::-1]


def _place(part: Part) -> int:
    return _PICTURE if isinstance(part, ImageRef) else _VIDEO if isinstance(part, VideoRef) else _WORDS
