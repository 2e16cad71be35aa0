"""Boxes as answers: hand-computed overlaps, each planted error named, noise not named."""

from collections.abc import Callable

import numpy as np
import pytest

from finetune.families.parts.box_answers import BoxFrame, Writing, fractions, pixels, thousandths
from finetune.families.parts.box_scores import BoxAnswer, BoxScores, box_scores, centre_inside, iou

FORM = '{"bbox_2d": [x0, y0, x1, y1]}'
RESIZED, FILE = (560, 840), (1280, 1900)  # never square
LOW = np.array([0, 34, 0, 34])


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes, float)


def test_overlaps_by_hand():
    a = rows((0, 0, 4, 2), (0, 0, 4, 2), (0, 0, 4, 2), (4, 2, 0, 0), (0, 0, 4, 2))
    b = rows((2, 0, 6, 2), (0, 0, 4, 2), (5, 0, 9, 2), (0, 0, 4, 2), (1, 1, 2, 2))
    assert iou(a, b).tolist() == [4 / 12, 1, 0, 0, 1 / 8]
    stretch = [3, 7, 3, 7]  # a unit of its own on each axis changes nothing
    assert iou(a * stretch, b * stretch).tolist() == pytest.approx(iou(a, b).tolist())


def test_the_centre_may_lie_on_the_border():
    a = rows((0, 0, 4, 2), (0, 0, 4, 2), (0, 0, 4, 2))
    b = rows((2, 0, 6, 2), (2.1, 0, 6, 2), (0, 1.1, 4, 2))
    assert centre_inside(a, b).tolist() == [True, False, False]


def answer(said: str, right: tuple[float, ...] = (10, 20, 50, 40), **more: object) -> BoxAnswer:
    frame = pixels(RESIZED, "the resized picture")
    given = {"others": {}, "units": (), "picture": 0, **more}
    return BoxAnswer(said, right, Writing(FORM, frame), **given)  # type: ignore[arg-type]


def written(box: object) -> str:
    return f'{{"bbox_2d": {[round(float(one)) for one in box]}, "label": "dog"}}'  # type: ignore[attr-defined]


def test_what_breaks_is_told_apart():
    cat = {"the cat": (100.0, 100.0, 140.0, 160.0)}
    scores = box_scores([
        answer(written((10, 20, 50, 40))),
        answer(written((10, 20, 30, 40))),  # half of it: IoU .5 is not above .5, its centre is inside
        answer("I see a dog."),
        answer("<box>(10,20),(50,40)</box>"),
        answer(written((50, 40, 10, 20))),
        answer(written((100, 100, 140, 150)), others=cat),
        answer(written((500, 100, 540, 150)), others=cat),
    ])  # fmt: skip
    assert scores == BoxScores(
        asked=7, right=1, mean_iou=pytest.approx(1.5 / 7), pointing=pytest.approx(2 / 7), no_box=1,
        wrong_format={"<box>(x0,y0),(x1,y1)</box>": 1}, not_a_box=1, wrong_object={"the cat": 1}, systematic=None,
    )  # fmt: skip
    assert scores.words() == (
        "1 of 7 boxes right at IoU .5 (mean IoU 0.21, centre inside 29%); without a box: 1; written as "
        "<box>(x0,y0),(x1,y1)</box>: 1; corners that span no box: 1; on the cat instead: 1"
    )


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match="found no answers, expected at least one"):
        box_scores([])


# --- errors that boxes share -------------------------------------------------------------------------------------


def right_boxes(count: int, seed: int) -> np.ndarray:
    """Float[count, 4] in a picture of 560 × 840, wider than high or the other way round."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform((40, 60), (120, 90), (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(RESIZED) - sizes)
    return np.concatenate([corners, corners + sizes], axis=1)


def scored(
    said: Callable[[np.ndarray], np.ndarray], count: int = 24, seed: int = 0, jitter: float = 3
) -> BoxScores:
    """Right boxes of 560 × 840, changed, with noise of some pixels; two boxes a picture."""
    right = right_boxes(count, seed)
    noise = np.random.default_rng(seed + 1).normal(0, jitter, right.shape)
    units = (
        thousandths(),
        pixels(FILE, "the file"),
        fractions(),
        pixels(RESIZED, "the resized picture"),
    )
    return box_scores([
        answer(written(box), tuple(target), units=units, picture=index // 2)
        for index, (box, target) in enumerate(zip(said(right) + noise, right, strict=True))
    ])  # fmt: skip


def test_an_offset_is_named_with_its_interval():
    found = scored(lambda boxes: boxes + LOW).systematic
    assert found is not None and found.kind == "offset" and found.right == 24
    start, end = found.words.split("boxes are ")[1].split(" low (95 % interval ")
    low, high = map(float, end.split(")")[0].split(" to "))
    assert low <= 34 <= high and high - low < 6 and abs(float(start) - 34) < 2
    assert found.words.endswith("), in pixels of the resized picture")


def test_directions_of_an_offset():
    left = scored(lambda boxes: boxes - np.array([30, 0, 30, 0]), jitter=0).systematic
    assert left is not None
    assert left.words == (
        "boxes are 30 to the left (95 % interval 29.9 to 30.1), in pixels of the resized picture"
    )
    both = scored(lambda boxes: boxes + np.array([30, -25, 30, -25]), jitter=0).systematic
    assert both is not None and "30 to the right (" in both.words and " and 24.9 high (" in both.words


def test_a_scale_of_each_axis_is_named():
    found = scored(lambda boxes: boxes * [1.3, 0.8, 1.3, 0.8]).systematic
    assert found is not None and found.kind == "scale"
    assert "x is 1.30 times" in found.words and "y is 0.80 times" in found.words


def test_an_axis_swap_is_named():
    found = scored(lambda boxes: boxes[:, [1, 0, 3, 2]]).systematic
    assert found is not None and (found.kind, found.words) == ("axis swap", "x and y are exchanged")


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (thousandths(), "thousandths of the picture"),
        (pixels(FILE, "the file"), "pixels of the file"),
    ],
)
def test_a_wrong_unit_is_named(unit: BoxFrame, words: str):
    found = scored(lambda boxes: boxes / np.tile(RESIZED, 2) * np.tile(unit.extent, 2)).systematic
    assert found is not None and found.kind == "unit"
    assert found.words == f"answers are in {words}, the family uses pixels of the resized picture"


def test_pixels_where_the_family_uses_thousandths():
    right = right_boxes(12, 4) / np.tile(RESIZED, 2) * 1000
    writing = Writing(FORM, thousandths())
    units = (thousandths(), pixels(RESIZED, "the resized picture"))
    said = [written(box * np.tile(RESIZED, 2) / 1000) for box in right]
    scores = box_scores([
        BoxAnswer(text, tuple(box), writing, {}, units, place)
        for place, (text, box) in enumerate(zip(said, right, strict=True))
    ])  # fmt: skip
    assert scores.systematic is not None
    assert scores.systematic.words == (
        "answers are in pixels of the resized picture, the family uses thousandths of the picture"
    )


def test_noise_is_not_named():
    """Boxes elsewhere, and boxes that are right but for noise: 20 seeds of each."""
    rng = np.random.default_rng(9)
    for seed in range(20):
        assert scored(lambda boxes, seed=seed: right_boxes(24, 100 + seed), seed=seed).systematic is None  # type: ignore[misc]
        wide = rng.normal(0, 14, (24, 4))
        assert scored(lambda boxes, wide=wide: boxes + wide, seed=seed).systematic is None  # type: ignore[misc]


def test_some_boxes_on_the_wrong_object_do_not_pull_the_fit():
    def said(boxes: np.ndarray) -> np.ndarray:
        moved = boxes + LOW
        moved[::5] = right_boxes(24, 77)[::5]
        return moved

    found = scored(said).systematic
    assert found is not None and found.kind == "offset"
    assert 31 < float(found.words.split("boxes are ")[1].split(" low")[0]) < 37


def test_few_boxes_or_few_pictures_are_not_enough():
    assert scored(lambda boxes: boxes + LOW, count=7).systematic is None
    right = right_boxes(24, 0)
    one = [answer(written(box + LOW), tuple(box), picture="the same") for box in right]
    assert box_scores(one).systematic is None
