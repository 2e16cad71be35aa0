"""Equally salient places are where the picture is as lively as in the region, and nowhere else."""

import numpy as np
import pytest

from diagnostics.measures.geometry import shared_area_pixels
from diagnostics.measures.salience import PLACES, salient_places

CENTRES = ((30, 30), (150, 40), (100, 90))  # x y, of discs of radius 9


def discs(levels=(200, 200, 200), *, size=(190, 120)):
    """A ground of 50 with three discs."""
    y, x = np.mgrid[: size[1], : size[0]]
    picture = np.full((size[1], size[0]), 50.0)
    for (across, down), level in zip(CENTRES, levels, strict=True):
        picture[(x - across) ** 2 + (y - down) ** 2 <= 81] = level
    return picture


def around(at):
    """A box of 22 × 23 pixels: a disc fills half of it, the most contrast that two levels have."""
    x, y = CENTRES[at]
    return ((x - 11.0, y - 11.5, x + 11.0, y + 11.5),)


def nearest(place):
    x, y = np.mean([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in place], axis=0)
    return min(range(3), key=lambda at: (CENTRES[at][0] - x) ** 2 + (CENTRES[at][1] - y) ** 2)


def test_of_three_equal_discs_the_two_others_are_found():
    places = salient_places(discs(), {"disc": around(0)}, name="a")["disc"]
    assert len(places) == PLACES and {nearest(one) for one in places} == {1, 2}
    for place in places:
        [(x0, y0, x1, y1)] = place
        assert (x1 - x0, y1 - y0) == (22, 23) and x0 >= 0 and x1 <= 190 and y0 >= 0 and y1 <= 120
        assert shared_area_pixels(place, around(nearest(place))) > 0.25 * 22 * 23
    assert salient_places(discs(), {"disc": around(0)}, name="a")["disc"] == places
    assert salient_places(discs(), {"disc": around(0)}, name="b")["disc"] != places


def test_other_named_regions_are_left_out():
    both = salient_places(discs(), {"disc": around(0), "other": around(1)}, name="a")
    assert {nearest(one) for one in both["disc"]} == {nearest(one) for one in both["other"]} == {2}
    for place in (*both["disc"], *both["other"]):
        for at in (0, 1):
            assert shared_area_pixels(place, around(at)) <= 0.1 * 22 * 23


def test_places_of_less_than_half_or_more_than_twice_the_contrast_do_not_count():
    """Fainter discs reach at most the contrast of their level: that of a box half filled is half the step."""
    assert salient_places(discs((200, 50, 50)), {"disc": around(0)}, name="a") == {}
    assert salient_places(discs((200, 120, 120)), {"disc": around(0)}, name="a") == {}  # 70 of 150
    assert {
        nearest(one) for one in salient_places(discs((200, 132, 60)), {"d": around(0)}, name="a")["d"]
    } == {1}
    flat = {"ground": ((60.0, 5.0, 82.0, 28.0),)}
    assert salient_places(discs(), flat, name="a") == {}


def test_the_contrast_is_that_of_all_boxes_together_and_they_move_as_one():
    """A wide and a narrow box, each flat in itself, dark and bright: together they have contrast. 8 pixels are between
    them."""
    picture = np.full((60, 140), 100.0)
    picture[20:30, 10:20], picture[20:30, 28:34] = 0, 200
    picture[10:40, 84:98], picture[10:40, 104:122] = 200, 0  # mirrored, and roomy
    boxes = ((10.0, 20.0, 20.0, 30.0), (28.0, 20.0, 34.0, 30.0))
    widths = set()
    for name in "abc":
        for place in salient_places(picture, {"pair": boxes}, name=name)["pair"]:
            one, two = sorted(place)
            widths.add((one[2] - one[0], two[2] - two[0]))
            assert two[0] - one[2] == 8 and one[3] - one[1] == two[3] - two[1] == 10
            values = np.concatenate(
                [picture[int(y0) : int(y1), int(x0) : int(x1)].ravel() for x0, y0, x1, y1 in place]
            )
            assert 48 <= values.std() <= 194  # the region's is 97
    assert widths == {(10, 6), (6, 10)}


def test_a_region_that_leaves_no_room_has_no_such_place():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (30, 50)).astype(float)
    assert salient_places(picture, {"all": ((0.0, 0.0, 50.0, 28.0),)}, name="a") == {}
    assert salient_places(picture, {}, name="a") == {}
    assert len(salient_places(picture, {"part": ((0.0, 0.0, 9.5, 8.5),)}, name="a")["part"]) == PLACES


@pytest.mark.parametrize("shift", [-50, 1e5])
def test_brightness_alone_changes_nothing(shift):
    plain = salient_places(discs(), {"disc": around(0)}, name="a")
    assert salient_places(discs() + shift, {"disc": around(0)}, name="a") == plain
