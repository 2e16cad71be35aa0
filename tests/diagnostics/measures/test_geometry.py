"""Maps by hand on grids that are not square, and images that are not either."""

from dataclasses import replace

import numpy as np
import pytest

from diagnostics.measures.geometry import (
    attention_on_cells,
    cells_from_row,
    patch_boxes_pixels,
    pixel_map,
    resampled,
    shared_area_pixels,
    union_area_pixels,
)
from finetune.families.base import ImageTokens
from finetune.families.parts.coverage import disjoint_boxes, region_coverage, token_weights


def an_image(grid, size, positions, *, through_connector=False) -> ImageTokens:
    """A regular grid over the whole image."""
    (rows, columns), (width, height) = grid, size
    boxes = [
        (c * width / columns, r * height / rows, (c + 1) * width / columns, (r + 1) * height / rows)
        for r in range(rows)
        for c in range(columns)
    ]
    return ImageTokens(np.array(positions), grid, np.array(boxes, float), size, through_connector)


def test_a_row_is_composed_with_the_connector():
    image = an_image((1, 3), (30, 10), [4, 2], through_connector=True)
    row = np.array([0.5, 0, 0.1, 0.1, 0.3])
    connector = np.array([[1, 0, 0], [0.5, 0, 0.5]])
    np.testing.assert_allclose(cells_from_row(row, image, connector), [0.875, 0, 0.125])


def test_without_a_connector_token_i_is_cell_i_and_leading_axes_are_kept():
    image = an_image((2, 1), (10, 30), [3, 0])
    rows = np.array([[[0.1, 0.5, 0.0, 0.4]], [[0.0, 1.0, 0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(cells_from_row(rows, image), [[[0.8, 0.2]], [[0, 0]]], atol=1e-7)


def with_overview() -> ImageTokens:
    """Two rows and three columns of cells of 20 × 15 pixels, tokens 0 to 5; an overview of one row and two columns of
    30 × 30 pixels, tokens 6 and 7: the first has the left column and half of the middle one."""
    coarse = an_image((1, 2), (60, 30), [6, 7])
    return replace(an_image((2, 3), (60, 30), range(6)), overview=coarse, tiles=(1, 1))


def test_an_overview_s_attention_is_shared_out_among_the_cells_under_it_by_area():
    """.36 on the first coarse token: .12 on each of the left column's two cells, .06 on each of the middle one's."""
    row = np.array([0, 0.1, 0, 0, 0, 0.2, 0.36, 0, 0.34])
    np.testing.assert_allclose(attention_on_cells(row, with_overview()), [0.12, 0.16, 0, 0.12, 0.06, 0.2])
    np.testing.assert_allclose(
        cells_from_row(row, with_overview()), np.array([0.12, 0.16, 0, 0.12, 0.06, 0.2]) / 0.66
    )
    other = np.array([0, 0, 0, 0, 0, 0, 0, 0.6, 0.4])
    np.testing.assert_allclose(attention_on_cells(other, with_overview()), [0, 0.1, 0.2, 0, 0.1, 0.2])
    both = attention_on_cells(np.stack([[row], [other]]), with_overview())
    assert both.shape == (2, 1, 6)
    np.testing.assert_allclose(both[1, 0], [0, 0.1, 0.2, 0, 0.1, 0.2])


def test_the_docstring_s_case_of_an_overview():
    coarse = an_image((1, 1), (40, 20), [4])
    image = replace(an_image((2, 2), (40, 20), range(4)), overview=coarse)
    np.testing.assert_allclose(
        attention_on_cells(np.array([0.1, 0.2, 0, 0.1, 0.4]), image), [0.2, 0.3, 0.1, 0.2]
    )


@pytest.mark.parametrize("coarse", [(1, 2), (3, 2), (5, 4)])
def test_attention_on_a_picture_is_all_in_its_map(coarse):
    """Also where the overview has more rows than the picture's cells, which lie unevenly."""
    rng = np.random.default_rng(0)
    x, y = np.array([0, 7.0, 30, 41, 60]), np.array([0, 4.0, 21, 30])
    row, column = np.divmod(np.arange(12), 4)
    boxes = np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)
    overview = an_image(coarse, (60, 30), range(12, 12 + coarse[0] * coarse[1]))
    image = ImageTokens(np.arange(12), (3, 4), boxes, (60, 30), False, overview)
    attention = rng.dirichlet(np.ones(40), 5)
    cells = attention_on_cells(attention, image)
    assert (cells >= attention[:, :12]).all()
    np.testing.assert_allclose(cells.sum(-1), attention[:, image.all_positions].sum(-1))
    # Carried back to tokens: the same product.
    weights = rng.random(12)
    np.testing.assert_allclose(
        cells @ weights, attention[:, image.all_positions] @ token_weights(weights, image)
    )


def test_weights_are_carried_back_through_a_connector():
    image = an_image((1, 3), (30, 10), [4, 2], through_connector=True)
    connector = np.array([[1, 0, 0], [0.5, 0, 0.5]])
    assert token_weights(np.array([0, 0, 1.0]), image, connector).tolist() == [0, 0.5]


def test_wrong_shapes_say_found_and_expected():
    resampled = an_image((1, 3), (30, 10), [4, 2], through_connector=True)
    with pytest.raises(ValueError, match=r"found none, expected \(2, 3\)"):
        cells_from_row(np.ones(5), resampled)
    with pytest.raises(ValueError, match=r"found \(3, 2\), expected \(2, 3\)"):
        cells_from_row(np.ones(5), resampled, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"image tokens: found 2, expected 3 for a grid of \(1, 3\)"):
        cells_from_row(np.ones(5), an_image((1, 3), (30, 10), [4, 2]))


def test_pixels_have_their_cells_attention_rows_before_columns():
    image = an_image((2, 3), (6, 2), range(6))
    picture = pixel_map(np.array([0.1, 0.2, 0.3, 0.0, 0.4, 0.0]), image)
    np.testing.assert_allclose(
        picture, [[0.05, 0.05, 0.1, 0.1, 0.15, 0.15], [0, 0, 0.2, 0.2, 0, 0]], atol=1e-12
    )


def test_cells_smaller_or_larger_than_pixels_lose_nothing():
    cells = np.array([0.5, 0.25, 0.25])
    picture = pixel_map(cells, an_image((1, 3), (2, 5), range(3)))
    np.testing.assert_allclose(picture[0], [(0.5 + 0.125) / 5, (0.125 + 0.25) / 5], atol=1e-12)
    assert picture.shape == (5, 2) and picture.sum() == pytest.approx(1)


def test_smooth_maps_keep_sum_and_order_and_are_not_blocks():
    cells = np.array([0.0, 0.0, 0.5, 0.1, 0.1, 0.3])
    picture = pixel_map(cells, an_image((2, 3), (30, 20), range(6)), smooth=True)
    assert picture.shape == (20, 30) and picture.sum() == pytest.approx(1)
    assert np.unravel_index(picture.argmax(), picture.shape)[1] >= 25
    assert picture.argmax(1)[0] >= 25 and picture[0, 22] > picture[0, 18] > picture[0, 12] == 0


def test_coverage_is_fractional_and_overlapping_boxes_count_once():
    image = an_image((1, 3), (30, 10), range(3))
    np.testing.assert_allclose(region_coverage([(5, 0, 15, 10)], image), [0.5, 0.5, 0])
    np.testing.assert_allclose(region_coverage([(20, 0, 26, 10), (24, 0, 30, 5)], image), [0, 0, 0.8])
    np.testing.assert_allclose(region_coverage([(20, 0, 30, 10)] * 2, image), [0, 0, 1])


def test_unions_and_shared_areas():
    boxes = [(0, 0, 4, 4), (2, 2, 6, 6)]
    assert union_area_pixels(boxes) == 28
    assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in disjoint_boxes(boxes)) == 28
    assert shared_area_pixels(boxes, [(3, 0, 10, 3)]) == 1 * 3 + 2 * 1  # x 3–4 by y 0–3, and x 4–6 by y 2–3


def uneven(rng, grid, size) -> ImageTokens:
    """A grid whose rows and columns are of any height and width."""
    (rows, columns), (width, height) = grid, size
    x = np.sort([0, width, *rng.uniform(0, width, columns - 1)])
    y = np.sort([0, height, *rng.uniform(0, height, rows - 1)])
    row, column = np.divmod(np.arange(rows * columns), columns)
    boxes = np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)
    return ImageTokens(np.arange(rows * columns), grid, boxes, size, False)


def test_cells_are_moved_onto_others_by_area():
    three, two = an_image((1, 3), (30, 10), range(3)), an_image((1, 2), (30, 10), range(2))
    np.testing.assert_allclose(
        resampled(np.array([0.6, 0.3, 0.1]), three.cell_boxes_pixels, two), [0.75, 0.25]
    )
    np.testing.assert_allclose(
        resampled(np.array([0.75, 0.25]), two.cell_boxes_pixels, three), [0.5, 0.25 + 1 / 12, 1 / 6]
    )
    # rows before columns: two rows of one cell onto one row of two
    tall, wide = an_image((2, 1), (30, 10), range(2)), an_image((1, 2), (30, 10), range(2))
    np.testing.assert_allclose(resampled(np.array([0.9, 0.1]), tall.cell_boxes_pixels, wide), [0.5, 0.5])
    half = ImageTokens(np.arange(1), (1, 1), np.array([[0.0, 0.0, 15.0, 10.0]]), (30, 10), False)
    np.testing.assert_allclose(resampled(np.array([0.6, 0.3, 0.1]), three.cell_boxes_pixels, half), [0.75])


@pytest.mark.parametrize("seed", range(6))
def test_moving_cells_keeps_mass_is_linear_and_exact_on_uneven_grids(seed):
    rng = np.random.default_rng(seed)
    size = (37, 23)
    one, other = uneven(rng, (4, 3), size), uneven(rng, (2, 7), size)
    cells = rng.dirichlet(np.ones(12), size=(2, 5))
    moved = resampled(cells, one.cell_boxes_pixels, other)
    assert moved.shape == (2, 5, 14)
    np.testing.assert_allclose(moved.sum(-1), 1)
    np.testing.assert_allclose(resampled(cells, one.cell_boxes_pixels, one), cells, atol=1e-12)
    # each cell's share of a target by the boxes alone: coverage of the cell by the target's box
    parts = np.stack([region_coverage([box], one) for box in other.cell_boxes_pixels.tolist()], axis=1)
    np.testing.assert_allclose(moved, cells @ parts, atol=1e-12)
    # an even map stays even: each target has its area's share
    area = (one.cell_boxes_pixels[:, 2:] - one.cell_boxes_pixels[:, :2]).prod(1) / (37 * 23)
    even = (other.cell_boxes_pixels[:, 2:] - other.cell_boxes_pixels[:, :2]).prod(1) / (37 * 23)
    np.testing.assert_allclose(resampled(area, one.cell_boxes_pixels, other), even)


def test_patches_are_parts_of_their_cells_row_major():
    image = an_image((1, 2), (8, 6), range(2))
    expected = [
        *([0, 0, 2, 3], [2, 0, 4, 3], [4, 0, 6, 3], [6, 0, 8, 3]),
        *([0, 3, 2, 6], [2, 3, 4, 6], [4, 3, 6, 6], [6, 3, 8, 6]),
    ]
    np.testing.assert_allclose(patch_boxes_pixels(image, 2), expected)
    rng = np.random.default_rng(3)
    some = uneven(rng, (3, 2), (20, 50))
    np.testing.assert_allclose(patch_boxes_pixels(some, 1), some.cell_boxes_pixels)
    fine = patch_boxes_pixels(some, 3)
    assert fine.shape == (54, 4)
    ones = resampled(np.full(54, 1 / 9), fine, some)
    np.testing.assert_allclose(ones, np.ones(6))
