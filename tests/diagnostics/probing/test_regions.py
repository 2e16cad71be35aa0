"""What is taken away is the region, all of it and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diagnostics.probing.regions import (
    blocked_patches,
    blocked_tokens,
    occlude,
    place_coverage,
    region_cells,
    region_tokens,
)
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import region_coverage


def an_image(positions=range(6), *, through_connector=True) -> ImageTokens:
    """Two rows of three cells over 30 × 10 pixels."""
    boxes = np.array([(10.0 * c, 5.0 * r, 10.0 * c + 10, 5.0 * r + 5) for r in range(2) for c in range(3)])
    return ImageTokens(np.array(positions), (2, 3), boxes, (30, 10), through_connector)


def test_occlusion_takes_the_colour_around_the_box():
    pixels = np.full((20, 30, 3), 100, np.uint8)
    pixels[:, 15:] = (20, 40, 60)
    pixels[5:10, 3:8] = 255
    picture = Image.fromarray(pixels)
    hidden = np.asarray(occlude(picture, [(3, 5, 8, 10)]))
    assert (hidden[5:10, 3:8] == 100).all()
    pixels[5:10, 3:8] = 100
    assert np.array_equal(hidden, pixels)  # nothing else
    assert np.asarray(picture)[6, 4, 0] == 255  # and not in place


def test_other_boxes_of_the_region_do_not_colour_the_ring_and_fractions_are_hidden_whole():
    pixels = np.full((10, 30, 3), 50, np.uint8)
    pixels[2:6, 4:12] = 250
    hidden = np.asarray(occlude(Image.fromarray(pixels), [(4, 2, 8, 6), (8.2, 2.4, 11.6, 5.5)]))
    assert (hidden == 50).all()


def test_a_box_that_fills_the_picture_takes_its_mean():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = 100
    assert (np.asarray(occlude(Image.fromarray(pixels), [(0, 0, 6, 4)])) == 50).all()


def test_region_cells_are_as_many_as_the_area():
    assert region_cells(an_image(), [(9, 0, 21, 5)]).tolist() == [False, True, False, False, False, False]
    assert region_cells(an_image(), [(14, 0, 30, 10)]).tolist() == [False, True, True, False, False, True]
    assert region_cells(an_image(), [(29, 9, 30, 10)]).tolist() == [False] * 5 + [True]
    with pytest.raises(ValueError, match="covers 0 of 6 cells, expected more than 0"):
        region_cells(an_image(), [(40, 0, 50, 5)])


def test_a_large_region_of_few_cells_leaves_the_one_that_it_covers_least():
    """27 × 9.5 of 30 × 10 pixels are 5.1 of 6 cells; 29 × 9.8 are 5.7, which would round to all."""
    assert region_cells(an_image(), [(3, 0, 30, 9.5)]).sum() == 5
    assert region_cells(an_image(), [(1, 0, 30, 9.8)]).tolist() == [True] * 3 + [False] + [True] * 2
    assert region_cells(an_image(), [(0, 0, 30, 10)]).sum() == 5


def test_blocked_patches_leave_other_images_whole():
    cells = np.array([False, True, True])
    assert blocked_patches([None, cells]).tolist() == [[[False] * 3], [[False, True, True]]]


def test_blocked_tokens_are_hidden_from_what_follows_the_image():
    image = an_image([1, 2, 3, 4, 5, 6], through_connector=False)
    blocked = blocked_tokens([None, (image, np.array([2, 6]))], 9)
    expected = torch.zeros(2, 9, 9, dtype=torch.bool)
    expected[1, 7:, [2, 6]] = True
    assert torch.equal(blocked, expected)


def with_overview() -> ImageTokens:
    """Tokens 1 to 6, and behind a mark an overview of the left and of the right half, tokens 8 and 9."""
    halves = np.array([(0.0, 0, 15, 10), (15, 0, 30, 10)])
    overview = ImageTokens(np.array([8, 9]), (1, 2), halves, (30, 10), False)
    return replace(an_image(range(1, 7), through_connector=False), overview=overview, tiles=(1, 1))


def test_a_region_of_a_picture_with_an_overview_is_in_both():
    assert region_tokens(with_overview(), [(20, 5, 30, 10)], None).tolist() == [6, 9]
    assert region_tokens(with_overview(), [(0, 0, 10, 10)], None).tolist() == [1, 4, 8]
    # All of the overview may go, as long as a cell is left.
    assert region_tokens(with_overview(), [(0, 0, 30, 8)], None).tolist() == [1, 2, 3, 4, 5, 8, 9]


def test_what_follows_a_picture_follows_its_overview_too():
    blocked = blocked_tokens([(with_overview(), np.array([6, 9]))], 12)
    expected = torch.zeros(1, 12, 12, dtype=torch.bool)
    expected[0, 10:, [6, 9]] = True
    assert torch.equal(blocked, expected)


def test_a_control_covers_as_many_cells_as_its_region_whatever_their_size():
    """Three cells of 12, 12 and 6 pixels across: attention that is the same on each is no more on the region."""
    edges = ((0.0, 12.0), (12.0, 24.0), (24.0, 30.0))
    boxes = np.array([(left, 5.0 * row, right, 5.0 * row + 5) for row in range(2) for left, right in edges])
    image = ImageTokens(np.arange(6), (2, 3), boxes, (30, 10), True)
    region = [(24.0, 0.0, 30.0, 5.0)]
    places = [
        [(0.0, 0.0, 6.0, 5.0)],
        [(9.0, 5.0, 15.0, 10.0)],
        [(40.0, 0.0, 46.0, 5.0)],
    ]  # the last beside it
    own, control = region_coverage(region, image), place_coverage(places, region, image)
    assert own.sum() == pytest.approx(1) and control.sum() == pytest.approx(1)
    np.testing.assert_allclose(control, [0.5, 0, 0, 0.25, 0.25, 0])
    assert place_coverage(places[2:], region, image).sum() == pytest.approx(1)
