"""Each number once by hand."""

import numpy as np
import pytest

from diagnostics.measures.attention import (
    auc,
    collapse,
    enrichment,
    entropy,
    gradient_weighted,
    iou,
    jensen_shannon_nats,
    lowest_head_entropy,
    nss,
    pointing_game,
    random_coverages,
    random_regions,
    region_mass,
    relative_attention,
    rollout,
    row_entropy,
    visual_share,
)
from diagnostics.measures.geometry import shared_area_pixels, union_area_pixels
from finetune.families.base import ImageTokens

CELLS = np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
COVERAGE = np.array([1.0, 0.5, 0.0])


def test_visual_share_sums_the_image_keys():
    rows = np.array([[[0.1, 0.2, 0.3, 0.4]], [[0.0, 0.0, 1.0, 0.0]]])
    np.testing.assert_allclose(visual_share(rows, np.array([3, 1])), [[0.6], [0.0]])


def test_region_mass_and_enrichment():
    np.testing.assert_allclose(region_mass(CELLS, COVERAGE), [0.625, 0])
    np.testing.assert_allclose(enrichment(CELLS, COVERAGE), [1.25, 0])
    np.testing.assert_allclose(enrichment(np.full(6, 1 / 6), np.array([0, 0.3, 0, 0, 1, 0])), 1.0)
    with pytest.raises(ValueError, match="covers no cell"):
        enrichment(CELLS, np.zeros(3))


def test_entropy_is_one_when_even_and_zero_at_a_point():
    np.testing.assert_allclose(entropy(np.array([[0.25] * 4, [0, 1, 0, 0]])), [1, 0], atol=1e-12)
    np.testing.assert_allclose(entropy(CELLS[0]), (1.5 * np.log(2)) / np.log(3))


def test_pointing_game_asks_the_strongest_cell():
    assert pointing_game(CELLS, COVERAGE).tolist() == [True, False]


def test_jensen_shannon():
    first, second = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    by_hand = 0.5 * np.log(1 / 0.75) + 0.5 * (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    assert jensen_shannon_nats(first, second) == pytest.approx(by_hand) == pytest.approx(0.2158, abs=1e-4)
    assert jensen_shannon_nats(second, first) == pytest.approx(by_hand)
    assert jensen_shannon_nats(first, first[::-1]) == pytest.approx(np.log(2))
    assert jensen_shannon_nats(CELLS, CELLS).tolist() == [0, 0]


def test_random_regions_have_the_regions_area_lie_inside_and_are_the_same_again():
    boxes, size = [(10, 20, 20, 34), (12, 40, 30, 44)], (120, 70)
    regions = random_regions(boxes, size, count=5, name="pearl-night-03")
    assert regions == random_regions(boxes, size, count=5, name="pearl-night-03")
    assert regions != random_regions(boxes, size, count=5, name="pearl-night-04")
    assert len({tuple(region) for region in regions}) == 5
    for region in regions:
        assert union_area_pixels(region) == union_area_pixels(boxes) == 212
        assert shared_area_pixels(region, boxes) == 0
        assert all(0 <= x0 < x1 <= 120 and 0 <= y0 < y1 <= 70 for x0, y0, x1, y1 in region)


def test_a_region_as_large_as_the_picture_overlaps_as_little_as_can_be():
    [region] = random_regions([(0, 0, 100, 50)], (110, 50), count=1, name="large")
    assert region[0][0] >= 9 and shared_area_pixels(region, [(0, 0, 100, 50)]) <= 91 * 50


def one_cell(grid, *places):
    cells = np.zeros(grid)
    for row, column in places:
        cells[row, column] = 1 / len(places)
    return cells.ravel()


def test_iou_of_the_box_around_the_attention():
    upper_left = one_cell((2, 4), (0, 0), (0, 1))
    assert iou(upper_left, upper_left, (2, 4)) == pytest.approx(2 / 4)
    # One bright cell in the corner of 4 x 5 spreads over 2 x 2 cells; three columns of the same two rows match 4 / 6.
    corner, wide = one_cell((4, 5), (3, 4)), np.zeros((4, 5))
    wide[2:, 2:] = 1
    np.testing.assert_allclose(
        iou(np.stack([[corner, np.full(20, 1 / 20)]]), wide.ravel(), (4, 5)), [[4 / 6, 0]]
    )
    assert iou(np.full(14, 1 / 14), np.eye(14)[3], (2, 7)) == 0  # rounding leaves one cell above its mean
    assert iou(one_cell((4, 5), (0, 0)), wide.ravel(), (4, 5)) == 0
    # Far from each other, the box spans both: rows 0..1 of columns 0..4, the region is one of its 10 cells.
    assert iou(one_cell((4, 5), (0, 0), (0, 4)), one_cell((4, 5), (1, 3)), (4, 5)) == pytest.approx(1 / 10)


def test_iou_takes_cells_half_covered_for_the_region_and_says_what_is_wrong():
    region = np.zeros((4, 5))
    region[2:, 3:], region[2:, 2] = 0.8, 0.3
    assert iou(one_cell((4, 5), (3, 4)), region.ravel(), (4, 5)) == 1
    region[2:, 2] = 0.4
    assert iou(one_cell((4, 5), (3, 4)), region.ravel(), (4, 5)) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="found 20 cells, expected 24 for a grid of"):
        iou(np.zeros(20), region.ravel(), (4, 6))
    with pytest.raises(ValueError, match="covers no cell"):
        iou(np.zeros(20), np.zeros(20), (4, 5))


def test_auc_counts_pairs_with_halves_for_ties():
    assert auc(CELLS[0], COVERAGE) == pytest.approx((1 + 0.5 * 0.5) / 1.5)
    np.testing.assert_allclose(
        auc(np.array([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]]), np.array([1.0, 1, 0, 0])), [[1, 0]]
    )
    np.testing.assert_allclose(auc(np.full(6, 1 / 6), np.array([0, 1, 0, 0, 0.25, 0])), 0.5)
    # In: .4 and .1. Out: .2, .2, .1. .4 beats all three; .1 beats none and ties with one.
    assert auc(np.array([0.2, 0.4, 0.1, 0.2, 0.1]), np.array([0.0, 1, 1, 0, 0])) == pytest.approx(3.5 / 6)
    for nothing in (np.zeros(3), np.ones(3)):
        with pytest.raises(ValueError, match="of 3 cells, expected more than 0 and not all"):
            auc(CELLS, nothing)


def test_auc_agrees_with_counting_every_pair():
    rng = np.random.default_rng(0)
    cells, coverage = rng.integers(0, 5, (3, 2, 17)).astype(float), rng.random(17)
    weights = coverage[:, None] * (1 - coverage)
    wins = cells[..., :, None] > cells[..., None, :]
    ties = cells[..., :, None] == cells[..., None, :]
    np.testing.assert_allclose(
        auc(cells, coverage), ((wins + ties / 2) * weights).sum((-2, -1)) / weights.sum()
    )


def test_nss_is_in_standard_deviations_of_the_map():
    np.testing.assert_allclose(nss(CELLS[0], COVERAGE), np.sqrt(0.5))
    # [0, 0, 1]: mean 1/3, deviation √2/3, so every covered cell is −1/√2.
    np.testing.assert_allclose(nss(CELLS[None], COVERAGE), [[np.sqrt(0.5), -np.sqrt(0.5)]])
    assert nss(np.full(7, 1 / 7), np.eye(7)[2]) == 0
    with pytest.raises(ValueError, match="covers no cell"):
        nss(CELLS, np.zeros(3))


def test_relative_attention_is_a_log_ratio_that_survives_empty_cells():
    found = relative_attention(np.array([[0.75, 0.25]]), np.array([[0.25, 0.75]]), eps=0.5)
    np.testing.assert_allclose(found, [[np.log(2), -np.log(2)]])
    empty = relative_attention(np.array([1.0, 1e-9, 0]), np.array([1.0, 1e-12, 0]))
    np.testing.assert_allclose(empty, 0, atol=1e-6)
    coarse, fine = (relative_attention(np.repeat([0.9, 0.1], n) / n, np.full(2 * n, 0.5 / n)) for n in (1, 3))
    np.testing.assert_allclose(fine, np.repeat(coarse, 3))
    with pytest.raises(ValueError, match="found eps 0, expected a number above 0"):
        relative_attention(CELLS, CELLS, eps=0)


def test_row_entropy_is_of_the_keys_a_query_may_see():
    rows = np.array([[0.5, 0.25, 0.25, 0], [0.25] * 4, [1, 0, 0, 0]])
    expected = [1.5 * np.log(2) / np.log(3), 1, 0]
    np.testing.assert_allclose(row_entropy(rows, np.array([3, 4, 1])), expected)
    np.testing.assert_allclose(row_entropy(rows[None, :1].astype(np.float32), 8), [[0.5]])
    with pytest.raises(ValueError, match=r"a row on 4 keys, expected at most 3; .*position \+ 1"):
        row_entropy(rows, 3)


def test_lowest_head_entropy_says_where():
    assert lowest_head_entropy(np.array([[0.5, 0.4, 0.3], [0.6, 0.1, 0.9]])) == (0.1, 1, 1)


def test_collapse_compares_each_head_with_itself():
    calm, logits = np.array([[0.4, 0.008, 0.5], [0.3, 0.2, 0.1]]), np.array([[3.0, 40, 5], [1, 2, 4]])
    found = collapse(calm, calm, logits, logits)
    assert found == ((0.008, 0, 1), 0.008, 40, 40, 0, False)
    rested = calm.copy()
    rested[0, 1] = 0.005  # on one token, as before
    assert not collapse(calm, rested, logits, logits).warn
    sharp = calm * 0.11
    sharp[0, 1] = 0.008  # the others are far sharper, and still on several tokens
    assert not collapse(calm, sharp, logits, logits).warn
    frozen = calm.copy()
    frozen[1, 0] = 0.006
    assert collapse(calm, frozen, logits, logits) == ((0.006, 1, 0), 0.008, 40, 40, 1, True)
    many = np.full((30, 9), 0.4)
    for count, warns in ((2, False), (3, True)):  # of 270 heads
        after = many.copy()
        after.flat[:count] = 0.005
        found = collapse(many, after, many, many)
        assert (found.collapsed_heads, found.warn) == (count, warns)


def test_collapse_warns_of_logits_that_double_beyond_a_hundred(shapes_unchecked):
    entropies = np.full((2, 3), 0.4)

    def warns(before, after):
        return collapse(entropies, entropies, np.full((2, 3), before), np.full((2, 3), after)).warn

    assert warns(45.0, 101.0)
    assert not warns(45.0, 99.0) and not warns(60.0, 110.0)
    with pytest.raises(ValueError, match="expected four of one shape"):
        collapse(entropies, entropies, entropies, entropies.T)


def test_rollout_goes_from_the_last_layer_to_the_first(shapes_unchecked):
    first, last = [[1, 0], [1, 0]], [[1, 0], [0.5, 0.5]]
    np.testing.assert_allclose(rollout(np.array([first, last], float), 1), [0.625, 0.375])
    rng = np.random.default_rng(1)
    layers = np.tril(rng.random((3, 5, 5)))
    layers /= layers.sum(-1, keepdims=True)
    product = np.eye(5)
    for attention in layers:
        product = (attention + np.eye(5)) / 2 @ product
    np.testing.assert_allclose(rollout(layers.astype(np.float32), 3), product[3], rtol=1e-6)
    assert rollout(layers, 4).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="found query 5, expected 0 to 4"):
        rollout(layers, 5)
    with pytest.raises(ValueError, match=r"found shape \(3, 4, 5\)"):
        rollout(layers[:, :4], 0)


def test_gradient_weighted_keeps_what_speaks_for_the_answer():
    rows, gradients = np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([[1.0, -1.0], [0.0, 2.0]])
    np.testing.assert_allclose(gradient_weighted(rows[None], gradients[None]), [[0.4, 0.5]])


def test_random_coverages_are_the_random_regions_in_cells():
    columns, rows = np.meshgrid(np.arange(5), np.arange(3))
    boxes = np.stack([columns * 10, rows * 8, columns * 10 + 10, rows * 8 + 8], -1).reshape(15, 4)
    image = ImageTokens(np.arange(2, 17), (3, 5), boxes.astype(float), (50, 24), through_connector=False)
    region = [(3, 2, 15, 10)]
    coverages = random_coverages(region, image, count=4, name="cat")
    assert coverages.shape == (4, 15)
    np.testing.assert_allclose(coverages.sum(-1), 96 / 80)
    for coverage, [(x0, y0, x1, y1)] in zip(
        coverages, random_regions(region, (50, 24), count=4, name="cat"), strict=True
    ):
        pixels = np.zeros((24, 50))
        pixels[int(y0) : int(y1), int(x0) : int(x1)] = 1
        np.testing.assert_allclose(coverage.reshape(3, 5), pixels.reshape(3, 8, 5, 10).mean((1, 3)))
