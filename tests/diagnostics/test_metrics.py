"""Each number once by hand."""

import numpy as np
import pytest

from diagnostics.geometry import shared_area_pixels, union_area_pixels
from diagnostics.metrics import (
    enrichment,
    entropy,
    jensen_shannon_nats,
    pointing_game,
    random_regions,
    region_mass,
    visual_share,
)

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
