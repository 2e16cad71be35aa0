"""The card of one evaluated sample: which of many pictures it shows; and how shares are said."""

import numpy as np
import pytest
from PIL import Image

from finetune.training import answer_card
from finetune.training.answer_card import AnswerCard, draw_answer, with_boxes

COLOURS = ((0, 0, 250), (0, 250, 0), (250, 250, 0), (120, 120, 120), (250, 0, 0))


@pytest.mark.parametrize(
    ("count", "boxed", "shown", "note"),
    [
        (5, 4, (0, 1, 2, 4), "IoU 0.50 · 4 of 5 pictures: 1, 2, 3, 5"),
        (5, None, (0, 1, 2, 3), "IoU 0.50 · 4 of 5 pictures: 1, 2, 3, 4"),
        (4, 3, (0, 1, 2, 3), "IoU 0.50"),
    ],
)
def test_of_many_pictures_the_one_with_boxes_is_shown_and_the_rest_counted(
    count: int, boxed: int | None, shown: tuple[int, ...], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    class Noting(answer_card.Pen):
        def lines(self, text, *more, **named):  # type: ignore[no-untyped-def]
            written.append(text)
            return super().lines(text, *more, **named)

    monkeypatch.setattr(answer_card, "Pen", Noting)
    pictures = [Image.new("RGB", (100, 100), colour) for colour in COLOURS[:count]]
    if boxed is not None:
        pictures[boxed] = with_boxes(pictures[boxed], (0.2, 0.2, 0.4, 0.4), None)
    page = np.asarray(draw_answer(AnswerCard(pictures, "t", "Which?", "a", "b", False, note="IoU 0.50")))
    seen = [at for at, colour in enumerate(COLOURS) if (page == colour).all(-1).any()]
    assert (*seen,) == shown and written[-1] == note
